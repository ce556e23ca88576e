"""A slider or two and a picture: initialisation, batches, steps, order."""

import ipywidgets as ipw
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from rso_lab import plots
from rso_lab.data import Data
from rso_lab.lessons import RandomProposals
from rso_lab.models import build, stack
from rso_lab.notebook import Pictured, image, poster
from rso_lab.visits import weight_visits


class Initialisation(Pictured):
    """What the scale of the initial weights does to the signals in a row of linear layers: a slider, and a picture.

    The layers have ReLU and no batch norm; their weights are He's times the slider.
    """

    def __init__(self, data: Data, depth: int = 8):
        self.x = data.x_train[:500]
        self.model = stack(depth, self.x[0].numel(), classes=data.classes or 1)
        self.first = [weight.detach().clone() for weight in self.model.parameters() if weight.dim() > 1]
        self.figure = Figure(figsize=(7, 2.9), layout="constrained")
        self.axes = self.figure.subplots(1, 2)
        self.scale = ipw.FloatLogSlider(
            value=1,
            min=-1,
            max=1,
            step=0.05,
            description="times He",
            readout_format=".2f",
            continuous_update=False,
            layout=ipw.Layout(min_width="300px"),
        )
        self.he = ipw.Button(description="Back to He's")
        self.image = ipw.HTML()
        self.post = poster()
        self.scale.observe(lambda change: self.post(self.draw), names="value")
        self.he.on_click(lambda button: self.scale.set_trait("value", 1))
        self.draw()
        super().__init__([ipw.HBox([self.scale, self.he], layout=ipw.Layout(flex_flow="row wrap")), self.image])

    @torch.no_grad()
    def draw(self) -> None:
        """Set the weights, and show the signals as they are now."""
        weights = [weight for weight in self.model.parameters() if weight.dim() > 1]
        for weight, first in zip(weights, self.first, strict=True):
            weight.copy_(first * self.scale.value)
        self.spreads = layer_signals(self.model, self.x)
        signals, outputs = self.axes
        for ax in self.axes:
            ax.clear()
        plots.signals(self.spreads, signals)
        chances = F.softmax(self.model(self.x), dim=1).max(dim=1).values.numpy()
        outputs.hist(chances, bins=20, range=(0, 1), color=plots.BLUE, alpha=0.7)
        outputs.set(xlabel="probability of its answer", ylabel="images")
        last = self.spreads[-1]
        self.image.value = image(
            self.figure, f"Weights of {self.scale.value:.2f} times He: outputs of size {last:.2g}."
        )


@torch.no_grad()
def layer_signals(model: nn.Sequential, x: torch.Tensor) -> list[float]:
    """Root mean square of x (B, ...), and of what each linear layer, with its ReLU, makes of it."""
    sizes = [x]
    for module in model:
        x = module(x)
        if isinstance(module, nn.Linear):
            sizes.append(x)
        elif isinstance(module, nn.ReLU):
            sizes[-1] = x
    return [value.square().mean().sqrt().item() for value in sizes]


class Batches(Pictured):
    """What mini-batches of a size that a slider sets say of one good change: a histogram over 1000 of them.

    Of one_conv with random weights; of two opposite changes, the one with the lower loss of all training images.
    """

    @torch.no_grad()
    def __init__(self, data: Data):
        model = build("one_conv", data)
        weight = model.get_parameter("fc.weight").detach()
        step, before = 0.3 * weight.std(correction=0), weight[3, 5].clone()

        def losses(value: Tensor) -> Tensor:
            weight[3, 5] = value
            return F.cross_entropy(model(data.x_train), data.y_train, reduction="none")

        changed = min(losses(before + step), losses(before - step), key=torch.mean)
        self.differences = (changed - losses(before)).numpy()  # of each image
        self.figure = Figure(figsize=(7, 2.9), layout="constrained")
        self.axes = self.figure.subplots()
        wide = ipw.Layout(min_width="300px")
        self.size = ipw.IntSlider(value=30, min=5, max=200, description="images", continuous_update=False, layout=wide)
        self.said = ipw.Label(layout=ipw.Layout(width="100%"))  # a line of its own: the picture stays where it is
        self.image = ipw.HTML()
        self.post = poster()
        self.size.observe(lambda change: self.post(self.draw), names="value")
        self.draw()
        super().__init__([ipw.HBox([self.size, self.said], layout=ipw.Layout(flex_flow="row wrap")), self.image])

    def draw(self) -> None:
        """Draw 1000 mini-batches and show what they say."""
        generator = np.random.default_rng(0)
        rows = generator.integers(len(self.differences), size=(1000, self.size.value))
        self.means = self.differences[rows].mean(axis=1)
        self.axes.clear()
        plots.differences({f"{self.size.value} images each": self.means}, self.axes)
        widest = 3 * self.differences.std() / 5**0.5
        self.axes.axvline(self.differences.mean(), color=plots.ORANGE, linestyle="--", label="all training images")
        self.axes.set(xlim=(-widest, widest), ylabel="mini-batches")
        self.axes.legend(loc="upper left")
        self.said.value = f"{(self.means > 0).mean():.0%} of the mini-batches say that the change does harm."
        self.image.value = image(self.figure, self.said.value)


class Steps(Pictured):
    """What 60 random proposals bring that move so many weights of one_conv by so much: two sliders, a histogram."""

    def __init__(self, data: Data):
        self.proposals = RandomProposals(data)
        self.figure = Figure(figsize=(7, 2.9), layout="constrained")
        self.axes = self.figure.subplots()
        wide = ipw.Layout(min_width="300px")
        sizes = [number for number in (1, 3, 10, 30, 100, 300, 690) if number <= self.proposals.size]
        self.moved = ipw.SelectionSlider(
            options=sizes, value=1, description="weights", continuous_update=False, layout=wide
        )
        self.step = ipw.FloatLogSlider(
            value=1, min=-2.5, max=0.5, step=0.25, description="step", continuous_update=False, layout=wide
        )
        self.said = ipw.Label(layout=ipw.Layout(width="100%"))  # a line of its own: the picture stays where it is
        self.image = ipw.HTML()
        self.post = poster()
        for control in (self.moved, self.step):
            control.observe(lambda change: self.post(self.draw), names="value")
        self.draw()
        controls = ipw.HBox([self.moved, self.step, self.said], layout=ipw.Layout(flex_flow="row wrap"))
        super().__init__([controls, self.image])

    def draw(self) -> None:
        """Try proposals, and show what the better of w + δ and w - δ does to the loss."""
        self.changes = self.proposals.changes(self.moved.value, self.step.value, 60)
        self.axes.clear()
        plots.differences({"60 proposals": self.changes}, self.axes)
        self.axes.set(xlabel="loss with the better of the two changes, minus loss without", ylabel="proposals")
        gain = np.maximum(-np.array(self.changes), 0).mean()
        self.said.value = f"{np.mean(np.array(self.changes) < 0):.0%} lower the loss; mean gain {gain:.4f}"
        self.image.value = image(self.figure, self.said.value)


class Order(Pictured):
    """The weights of a convolution, 4 output neurons of 3 input channels, as they are visited one after the other."""

    def __init__(self) -> None:
        self.weight = torch.zeros(4, 3, 3, 3)
        self.figure = Figure(figsize=(7, 2.4), layout="constrained")
        self.axes = self.figure.subplots()
        last = self.weight.numel() - 1
        self.order = ipw.ToggleButtons(options=["neuron", "input"], description="order", style={"button_width": "80px"})
        wide = ipw.Layout(min_width="300px")
        self.turn = ipw.IntSlider(value=40, max=last, description="visit", continuous_update=False, layout=wide)
        self.play = ipw.Play(value=40, max=last, interval=250)
        ipw.link((self.play, "value"), (self.turn, "value"))
        self.image = ipw.HTML()
        self.post = poster()
        for control in (self.order, self.turn):
            control.observe(lambda change: self.post(self.draw), names="value")
        self.draw()
        controls = ipw.HBox([self.order, self.play, self.turn], layout=ipw.Layout(flex_flow="row wrap"))
        super().__init__([controls, self.image])

    def draw(self) -> None:
        """Show which weights have been visited."""
        turns = np.zeros(self.weight.shape, dtype=int)
        for number, visit in enumerate(weight_visits("conv", {"conv.weight": self.weight}, self.order.value)):
            turns[visit.index] = number
        self.turns = turns
        self.axes.clear()
        plots.visited(turns, self.turn.value, self.axes)
        (place,) = np.argwhere(turns == self.turn.value)
        said = f"Visit {self.turn.value}, {self.order.value} first: output neuron {place[0]}, input channel {place[1]}."
        self.axes.set_title(said, fontsize="medium")
        self.image.value = image(self.figure, said)
