"""The microscope: the loss along one weight, with three dots on it."""

import ipywidgets as ipw
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from rso_lab import plots
from rso_lab.data import Data
from rso_lab.graph import Network
from rso_lab.notebook import Pictured, image, poster
from rso_lab.rso import CANDIDATES, RSO, LossFunction, PlainEvaluator, choose, draw_batch, initial_sigmas


class Microscope(Pictured):
    """The loss along one weight of a network, with the three candidates of a proposal whose change a slider sets.

    A button keeps the best of the three: it changes the model. The losses are those of one mini-batch of at most 1000
    training images. `parameter` is a dotted parameter name, `index` the weight's place in it; with `gradient`, an arrow
    shows what calculus says; the curve is measured at so many `points`. Raises ValueError where there is no such
    weight.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        parameter: str,
        index: tuple[int, ...],
        gradient: bool = False,
        points: int = 61,
        loss: LossFunction = F.cross_entropy,
    ):
        network = Network(model, data.x_train[:2])
        layers = {name: layer for layer in network.layers for name in layer.parameters}
        if parameter not in layers:
            raise ValueError(f"parameter {parameter!r} is not known: choose from {', '.join(layers)}")
        weights = layers[parameter].parameters[parameter].detach()
        if len(index) != weights.dim() or not all(0 <= i < size for i, size in zip(index, weights.shape, strict=True)):
            raise ValueError(f"index is {index}: {parameter} has shape {tuple(weights.shape)}, each number from 0 on")
        self.weight = weights[index]
        self.points = points
        self.gradient_of = (layers[parameter].parameters[parameter], index) if gradient else None
        self.label = f"{parameter}{list(index)}"
        self.count = sum(layer.size for layer in network.layers)
        batch_size = min(1000, len(data.x_train))
        self.sigma = initial_sigmas(network, RSO(1, batch_size))[parameter]
        self.evaluator = PlainEvaluator(network, data, loss)
        self.evaluator.begin_sweep(layers[parameter], batch_size)
        network.refresh_statistics(data.x_train)
        self.evaluator.begin_batch(draw_batch(len(data.x_train), batch_size, torch.Generator().manual_seed(0)))
        self.before: list[tuple[float, float]] = []
        self.figure = Figure(figsize=(7, 2.9), layout="constrained")
        self.axes = self.figure.subplots()

        step = self.sigma / 10
        self.delta = ipw.FloatSlider(
            value=10 * step,
            min=step,
            max=30 * step,
            step=step,
            description="change δ",
            readout_format=".2f",
            continuous_update=False,  # as everywhere here: to draw takes a tenth of a second
            layout=ipw.Layout(min_width="250px"),
        )
        self.keep_best = ipw.Button(description="Keep the best", tooltip="Set the weight to the best of the three")
        self.said = ipw.Label("Move the slider, then keep the best.")
        self.image = ipw.HTML()
        self.post = poster()
        self.delta.observe(lambda change: self.post(self.draw), names="value")
        self.keep_best.on_click(lambda button: self.post(self.accept))
        self.look()
        controls = ipw.HBox([self.delta, self.keep_best, self.said], layout=ipw.Layout(flex_flow="row wrap"))
        super().__init__([controls, self.image])

    @torch.no_grad()
    def loss_at(self, value: float) -> float:
        """The loss with the weight at `value`; the weight is put back."""
        before = self.weight.clone()
        try:
            self.weight.fill_(value)
            return self.evaluator.loss().item()
        finally:
            self.weight.copy_(before)

    def slope(self) -> float | None:
        """The derivative of the loss by the weight, where it is shown."""
        if self.gradient_of is None:
            return None
        parameter, index = self.gradient_of
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.evaluator.loss(), parameter)
        return gradient[index].item()

    def candidates(self) -> dict[str, tuple[float, float]]:
        """Weight and loss of each of the three candidates."""
        weight, delta = self.weight.item(), self.delta.value
        values = {"minus": weight - delta, "keep": weight, "plus": weight + delta}
        return {name: (value, self.loss_at(value)) for name, value in values.items()}

    def look(self) -> None:
        """Measure the loss along the weight, four sigma to either side of where it is and has been, and draw it."""
        places = [self.weight.item(), *(weight for weight, _ in self.before)]
        self.curve_weights = np.linspace(min(places) - 4 * self.sigma, max(places) + 4 * self.sigma, self.points)
        self.curve_losses = np.array([self.loss_at(weight) for weight in self.curve_weights])
        self.draw()

    def accept(self) -> None:
        """Set the weight to the candidate with the lowest loss, and say what that brought."""
        points = self.candidates()
        choice = CANDIDATES[int(choose(torch.tensor([points[name][1] for name in CANDIDATES], dtype=torch.float64)))]
        weight, loss = points[choice]
        if choice == "keep":
            lowest = self.curve_losses.min()
            tied = loss in (points["minus"][1], points["plus"][1])  # on the same stair of a loss that has some
            higher = f"{loss:.4f}, the curve's lowest is {lowest:.4f}: try a {'larger' if tied else 'smaller'} δ"
            there = "the bottom" if loss < lowest + 1e-4 else higher
            self.said.value = f"Kept: neither side is lower. You are at {there}."
            return
        self.said.value = f"The loss fell from {points['keep'][1]:.4f} to {loss:.4f}."
        self.before.append(points["keep"])
        self.weight.fill_(weight)
        self.look()

    def draw(self) -> None:
        """Show curve and candidates as they are now."""
        points = self.candidates()
        self.axes.clear()
        plots.loss_along_weight(self.curve_weights, self.curve_losses, points, self.before, self.axes, self.slope())
        self.axes.set_title(f"One of the network's {self.count} weights: {self.label}", fontsize="medium")
        losses = ", ".join(f"{name} {loss:.4f} at {weight:.3f}" for name, (weight, loss) in points.items())
        self.image.value = image(self.figure, f"Loss along weight {self.label}. Candidates: {losses}.")
