"""A canvas to draw a digit on, with the mouse, a finger or a pen, and what a network says to it."""

import math
from collections.abc import Sequence

import anywidget
import ipywidgets as ipw
import torch
import torch.nn.functional as F
import traitlets
from matplotlib.figure import Figure
from torch import Tensor, nn

from rso_lab import plots
from rso_lab.notebook import Pictured, image, poster

Strokes = Sequence[Sequence[Sequence[float]]]  # each a list of points (x, y), 0 to 1 from the top left corner

# Of the grey values of MNIST's 60,000 training images, 0 to 1: `load` normalises by them. A test has the file.
MNIST_MEAN, MNIST_DEVIATION = 0.130660, 0.308108

PEN = 0.09  # width of a stroke, as a share of the canvas

# Drawn for this kit: points of four figures, how many hundredths to the right and down; "/" lifts the pen.
EXAMPLES = {
    "0": "5015 3522 2850 3578 5085 6578 7250 6522 5015",
    "1": "5813 5238 4685",
    "2": "3030 3817 5615 6827 6542 4862 2883 5082 7482",
    "3": "3222 4814 6522 6536 4747 6656 7070 5884 4285 2876",
    "4": "3815 3335 2755 5055 7553 / 6618 6250 6088",
    "5": "7016 3817 3545 5241 6852 6870 5484 3080",
    "6": "6214 4333 3360 3880 5485 6774 6357 4755 3568",
    "7": "2720 5020 7319 6045 5065 4487",
    "8": "6422 4815 3526 4544 6260 6378 4886 3676 4060 5844 6630 6422",
    "9": "6630 5416 3822 3540 4850 6242 6628 6455 6087",
}


def strokes_of(example: str) -> list[list[list[float]]]:
    """The strokes of one of EXAMPLES."""
    return [
        [[int(point[:2]) / 100, int(point[2:]) / 100] for point in stroke.split()]
        for stroke in EXAMPLES[example].split("/")
    ]


def ink(strokes: Strokes, size: int = 112) -> Tensor:
    """The strokes as an image (size, size), 0 where nothing is drawn, 1 on a stroke, with a soft edge of a pixel."""
    places = (torch.arange(size) + 0.5) / size
    pixels = torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=-1)
    nearest = torch.full((size, size), math.inf)
    for stroke in strokes:
        points = torch.tensor(stroke, dtype=torch.float32)
        for begin, end in zip(points, points[[*range(1, len(points)), -1]], strict=True):
            along = end - begin
            share = ((pixels - begin) @ along / along.square().sum().clamp(min=1e-12)).clamp(0, 1)
            nearest = torch.minimum(nearest, (pixels - begin - share[..., None] * along).norm(dim=-1))
    return ((PEN / 2 - nearest) * size + 0.5).clamp(0, 1)


def mnist_like(drawing: Tensor) -> Tensor:
    """A drawing (H, W), 0 to 1, as MNIST's images were made (LeCun et al. 1998) and `load` gives them: (1, 1, 28, 28).

    Its longer side becomes 20 pixels; its centre of mass is moved to the middle of 28 x 28, by whole pixels.
    Raises ValueError where nothing is drawn.
    """
    rows, columns = (drawing.amax(dim).nonzero().flatten() for dim in (1, 0))
    if not len(rows):
        raise ValueError("nothing is drawn")
    digit = drawing[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    size = [max(1, round(20 * side / max(digit.shape))) for side in digit.shape]
    small = F.interpolate(digit[None, None], size=size, mode="bilinear", antialias=True).clamp(0, 1)[0, 0]
    total = small.sum()
    middle = [(small.sum(1 - dim) @ torch.arange(float(small.shape[dim])) / total).item() for dim in (0, 1)]
    top, left = (min(max(round(14 - m), 0), 28 - side) for m, side in zip(middle, small.shape, strict=True))
    grey = F.pad(small, (left, 28 - left - small.shape[1], top, 28 - top - small.shape[0]))
    return ((grey - MNIST_MEAN) / MNIST_DEVIATION)[None, None]


class Canvas(anywidget.AnyWidget):
    """A square to draw on: `strokes` hold what is drawn, as soon as the pen is lifted.

    Pointer events serve mouse, finger and pen alike. The script is sent by the kernel: no network is needed.
    """

    strokes: traitlets.List = traitlets.List().tag(sync=True)
    is_example = traitlets.Bool(False).tag(sync=True)  # then the first stroke begins a drawing of one's own
    pen = traitlets.Float(PEN).tag(sync=True)
    _esm = """
    const SIDE = 160; // CSS pixels

    function render({ model, el }) {
      const canvas = document.createElement("canvas");
      const sharpness = 2; // pixels of the canvas to a CSS pixel
      canvas.width = canvas.height = SIDE * sharpness;
      Object.assign(canvas.style, {
        width: `${SIDE}px`, height: `${SIDE}px`, border: "1px solid #666666", background: "white",
        cursor: "crosshair", touchAction: "none", // else a finger scrolls the page
      });
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", "canvas: draw a digit here, or choose one in the list beside it");
      const ink = canvas.getContext("2d");
      let strokes = [];
      let pointer = null; // the one that draws: a second finger does not

      function redraw() {
        ink.clearRect(0, 0, canvas.width, canvas.height);
        ink.lineWidth = model.get("pen") * canvas.width;
        ink.lineCap = ink.lineJoin = "round";
        for (const stroke of strokes) {
          ink.beginPath();
          for (const [x, y] of [stroke[0], ...stroke]) ink.lineTo(x * canvas.width, y * canvas.height);
          ink.stroke();
        }
      }

      function add(event) {
        const box = canvas.getBoundingClientRect();
        strokes.at(-1).push([(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]);
        redraw();
      }

      canvas.addEventListener("pointerdown", (event) => {
        if (pointer !== null || event.button !== 0) return;
        event.preventDefault();
        pointer = event.pointerId;
        canvas.setPointerCapture(pointer); // strokes may leave the canvas and come back
        strokes = model.get("is_example") ? [[]] : [...strokes, []];
        add(event);
      });
      canvas.addEventListener("pointermove", (event) => {
        if (event.pointerId === pointer) add(event);
      });
      for (const end of ["pointerup", "pointercancel"]) {
        canvas.addEventListener(end, (event) => {
          if (event.pointerId !== pointer) return;
          pointer = null;
          model.set("is_example", false);
          model.set("strokes", strokes);
          model.save_changes();
        });
      }
      function show() {
        strokes = model.get("strokes");
        redraw();
      }
      model.on("change:strokes", show);
      show();
      el.append(canvas);
      return () => model.off("change:strokes", show);
    }
    export default { render };
    """


class DrawDigit(Pictured):
    """Draw a digit, and see what a network that was trained on MNIST says: the probability of each answer.

    model: (B, 1, 28, 28), normalised as `load("mnist")` does, -> (B, 10). A list puts an example on the canvas, for
    those who do not draw.
    """

    def __init__(self, model: nn.Module):
        self.model = model.eval()
        self.figure = Figure(figsize=(4.4, 1.9), layout="constrained")
        self.canvas = Canvas(layout=ipw.Layout(flex="0 0 auto"))
        self.examples = ipw.Dropdown(options=["", *EXAMPLES], description="show me a", layout=ipw.Layout(width="160px"))
        self.clear = ipw.Button(description="Clear", layout=ipw.Layout(width="90px"))
        self.said = ipw.Label()
        self.image = ipw.HTML(layout=ipw.Layout(flex="0 1 auto", min_width="0"))  # narrower, rather than below
        self.post = poster()
        self.examples.value = "3"
        self.show_example()
        self.read()
        self.canvas.observe(lambda change: self.post(self.read), names="strokes")
        self.examples.observe(lambda change: self.post(self.show_example), names="value")
        self.clear.on_click(lambda button: self.post(self.wipe))
        controls = ipw.HBox([self.examples, self.clear, self.said], layout=ipw.Layout(flex_flow="row wrap"))
        high = ipw.Layout(min_height="186px")  # with a picture or without: the page stays where it is
        super().__init__([controls, ipw.HBox([self.canvas, self.image], layout=high)])

    def show_example(self) -> None:
        """Put the example that is chosen on the canvas."""
        if self.examples.value:
            self.canvas.is_example = True
            self.canvas.strokes = strokes_of(self.examples.value)

    def wipe(self) -> None:
        """Empty the canvas."""
        self.examples.value = ""
        self.canvas.is_example = False
        self.canvas.strokes = []

    @torch.no_grad()
    def read(self) -> None:
        """Show what the network gets to see, and what it says."""
        if not self.canvas.is_example:
            self.examples.value = ""
        self.figure.clear()
        if not self.canvas.strokes:
            self.said.value = "Draw a digit."
            self.image.value = ""
            return
        seen = mnist_like(ink(self.canvas.strokes))
        self.chances = F.softmax(self.model(seen)[0], dim=0).tolist()
        picture, bars = self.figure.subplots(1, 2, width_ratios=(1, 1.4))
        plots.digit(seen[0, 0], picture)
        plots.chances(self.chances, bars)
        best = max(range(len(self.chances)), key=self.chances.__getitem__)
        self.said.value = f"It says {best}, with {self.chances[best]:.0%}."
        bars.set_title(self.said.value.rstrip("."), fontsize="small")
        told = ", ".join(f"{digit}: {chance:.0%}" for digit, chance in enumerate(self.chances))
        self.image.value = image(self.figure, f"What the network says: {told}.")
