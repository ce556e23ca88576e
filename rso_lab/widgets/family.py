"""RSO's relatives: the shadow of a gradient on random directions, and what a cloud of networks votes for."""

import ipywidgets as ipw
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from rso_lab import plots
from rso_lab.data import Data
from rso_lab.lessons.family import Plane, estimated, gradient_of
from rso_lab.models import build
from rso_lab.notebook import Pictured, image, poster


class Shadow(Pictured):
    """The gradient of mlp with random weights, and its shadow on so many random directions, as a slider says.

    A button draws other directions. What all draws since the slider was moved show together is their sum.
    """

    def __init__(self, data: Data):
        self.gradient = gradient_of(build("mlp", data), data)
        self.size = len(self.gradient)
        self.generator = torch.Generator().manual_seed(0)
        self.draws: list[tuple[int, float]] = []  # directions, cosine
        self.figure = Figure(figsize=(7, 2.9))
        self.figure.subplots_adjust(left=0.09, right=0.98, bottom=0.17, top=0.97, wspace=0.3)
        self.axes = self.figure.subplots(1, 2)
        sizes = [number for number in (1, 3, 10, 30, 100, 250, 500, 1000) if number < self.size]
        self.directions = ipw.SelectionSlider(
            options=[*sizes, self.size],
            value=10,
            description="directions",
            continuous_update=False,
            layout=ipw.Layout(min_width="300px"),
        )
        self.anew = ipw.Button(description="Draw anew", tooltip="As many other directions")
        self.said = ipw.Label(layout=ipw.Layout(width="100%"))  # a line of its own: the picture stays where it is
        self.image = ipw.HTML()
        self.post = poster()
        self.directions.observe(lambda change: self.post(self.begin), names="value")
        self.anew.on_click(lambda button: self.post(self.draw))
        self.begin()
        controls = [self.directions, self.anew, self.said]
        super().__init__([ipw.HBox(controls, layout=ipw.Layout(flex_flow="row wrap")), self.image])

    def begin(self) -> None:
        """Draw so many directions, the first of a new sum."""
        self.times, self.sum = 0, torch.zeros_like(self.gradient)
        self.draw()

    def draw(self) -> None:
        """Draw directions, and show the gradient's shadow on them."""
        number = self.directions.value
        self.shadow = projected(self.gradient, number, self.generator)
        self.times, self.sum = self.times + 1, self.sum + self.shadow
        cosine, together = (
            F.cosine_similarity(arrow, self.gradient, dim=0).item() for arrow in (self.shadow, self.sum)
        )
        self.draws.append((number, cosine))
        for ax in self.axes:
            ax.clear()
        expected = (number / self.size) ** 0.5
        plots.shadow(cosine, expected, self.axes[0])
        plots.cosines(self.draws, (number, together), self.size, self.axes[1])
        draws = "1 draw." if self.times == 1 else f"{self.times} draws added up: {together:.3f}."
        self.said.value = f"Cosine {cosine:.3f}, expected {expected:.3f}. {draws}"
        told = f"A gradient and its shadow on {number:,} of {self.size:,} directions. {self.said.value}"
        self.image.value = image(self.figure, told)


def projected(gradient: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """The shadow of the gradient (D,) on so many random directions; on D of them it is the gradient."""
    if number == len(gradient):
        return gradient
    directions = torch.randn(number, len(gradient), generator=generator)
    coordinates = torch.linalg.solve(directions @ directions.T, directions @ gradient)  # they are not at right angles
    return directions.T @ coordinates


class Cloud(Pictured):
    """A generation of an evolution strategy in a plane of mlp's weights: its members, and the arrow they vote for.

    Sliders set how far out the members are and how many there are, a menu whether they come in opposite pairs. Buttons
    draw another generation, go along the arrow, always by the same length, and go back to the random weights.
    """

    STEP = 1.0

    def __init__(self, data: Data):
        self.plane = Plane(data)
        self.figure = Figure(figsize=(7.4, 2.7))
        self.figure.subplots_adjust(left=0.08, right=0.72, bottom=0.17, top=0.98)
        self.axes = self.figure.subplots()
        along, aside = torch.linspace(-2, 9, 34), torch.linspace(-2.2, 3.4, 18)
        losses = self.plane.surface(along, aside).numpy()
        plots.hills(along.numpy(), aside.numpy(), losses, self.plane.trained.numpy(), self.axes)
        self.artists: list = []
        self.generator = torch.Generator().manual_seed(0)
        wide = ipw.Layout(width="260px")
        self.sigma = ipw.FloatLogSlider(
            10**-0.25, min=-1.5, max=0.5, step=0.25, description="sigma", readout_format=".2f"
        )
        self.sigma.continuous_update, self.sigma.layout = False, wide
        self.members = ipw.SelectionSlider(
            options=(2, 4, 10, 20, 50, 100), value=20, description="members", continuous_update=False, layout=wide
        )
        self.pairs = ipw.Dropdown(options={"in opposite pairs": True, "each alone": False}, layout={"width": "160px"})
        self.said = ipw.Label()
        self.image = ipw.HTML()
        self.post = poster()
        self.anew = ipw.Button(description="Draw anew", tooltip="Another generation around the same centre")
        self.there = ipw.Button(description="Go there", tooltip="The centre follows the vote")
        self.home = ipw.Button(description="Back", tooltip="To the random weights")
        self.anew.on_click(lambda button: self.post(self.draw))
        self.there.on_click(lambda button: self.post(self.go))
        self.home.on_click(lambda button: self.post(self.back))
        buttons = [self.anew, self.there, self.home]
        for button in buttons:
            button.layout.width = "100px"
        for control in (self.sigma, self.members, self.pairs):
            control.observe(lambda change: self.post(self.draw), names="value")
        self.back()
        rows = [[self.sigma, self.members, self.pairs], [*buttons, self.said]]
        wrapped = [ipw.HBox(row, layout=ipw.Layout(flex_flow="row wrap")) for row in rows]
        super().__init__([*wrapped, self.image])

    def back(self) -> None:
        """Let the centre be the random weights."""
        self.centre = torch.zeros(2)
        self.draw()

    def go(self) -> None:
        """Let the centre follow the vote."""
        self.centre = self.centre + self.vote
        self.draw()

    def draw(self) -> None:
        """Draw a generation, and show what it votes for."""
        sigma, count = self.sigma.value, self.members.value
        noise = torch.randn(count // 2 if self.pairs.value else count, 2, generator=self.generator)
        away = torch.cat([noise, -noise]) if self.pairs.value else noise
        members = self.centre + sigma * away
        losses = self.plane.losses(members)
        plus, minus = losses.chunk(2) if self.pairs.value else (2 * losses, torch.zeros(count))
        estimate = estimated(plus, minus, noise, sigma)
        self.vote = -self.STEP * F.normalize(estimate, dim=0)
        downhill = self.STEP * F.normalize(self.plane.downhill_at(self.centre), dim=0)
        self.cosine = F.cosine_similarity(self.vote, downhill, dim=0).item()
        self.loss = self.plane.losses(self.centre[None]).item()
        for artist in self.artists:
            artist.remove()
        ranks = losses.argsort().argsort()
        self.artists = plots.cloud(
            self.centre.numpy(), members.numpy(), ranks.numpy(), self.vote.numpy(), downhill.numpy(), self.axes
        )
        self.said.value = f"Loss at the centre: {self.loss:.3f}. Cosine of vote and downhill: {self.cosine:.2f}."
        self.image.value = image(self.figure, f"{count} members, sigma {sigma:.2f}. {self.said.value}")
