"""What a change costs: the network that lights up behind it, and the multiply-adds of a cycle."""

from collections.abc import Sequence

import ipywidgets as ipw
import torch
from matplotlib.figure import Figure

from rso_lab import plots
from rso_lab.data import Data
from rso_lab.graph import Network
from rso_lab.lessons.cost import COUNTED, EVALUATORS, candidate_costs, cycle_costs, examples_of
from rso_lab.models import build, paper_cnn
from rso_lab.notebook import Pictured, image, poster
from rso_lab.rso import RSO, initial_sigmas, searched_layers


class Ripple(Pictured):
    """What one changed weight changes: what each layer of the paper's network puts out, and what it costs to know it.

    Shown is one image of a mini-batch of 100, its activations before the ReLU; the weight is the first of the channel
    that is chosen, and grows by sigma_d. Before the layer batch norms rest, as in the search.
    """

    def __init__(self, data: Data):
        self.x = data.x_train[:100]
        self.network = Network(build("paper_cnn", data), self.x[:2])
        self.network.refresh_statistics(data.x_train)
        self.layers = {layer.name: layer for layer in searched_layers(self.network, COUNTED)}
        self.sigmas = initial_sigmas(self.network, COUNTED)
        self.examples = examples_of(self.network, self.x)
        shown = {"fc": "fc"} | {f"bn{name[4:]}": name for name in self.layers if name != "fc"}
        self.shown = {node: shown[node.target] for node in self.network.nodes if node.target in shown}
        self.figure = Figure(figsize=(7, 3), layout="constrained")
        self.axes = self.figure.subplots(2, 1, height_ratios=(1, 1.5))
        wide = ipw.Layout(min_width="300px")
        self.layer = ipw.SelectionSlider(
            options=list(self.layers), value="conv4", description="layer", continuous_update=False, layout=wide
        )
        self.channel = ipw.IntSlider(value=5, max=15, description="channel", continuous_update=False, layout=wide)
        self.image = ipw.HTML()
        self.post = poster()
        self.layer.observe(lambda change: self.post(self.choose), names="value")
        self.channel.observe(lambda change: self.post(self.draw), names="value")
        self.draw()
        controls = ipw.HBox([self.layer, self.channel], layout=ipw.Layout(flex_flow="row wrap"))
        super().__init__([controls, self.image])

    def choose(self) -> None:
        """Show a change in the layer that is chosen now, in one of its channels."""
        self.channel.max = len(self.layers[self.layer.value].parameters[f"{self.layer.value}.weight"]) - 1
        self.draw()

    @torch.no_grad()
    def outputs(self) -> dict[str, torch.Tensor]:
        """What each layer puts out (channels, H, W) for the first image, before the ReLU."""
        start = self.layers[self.layer.value].position
        values = self.network.propagate({self.network.input: self.x}, batch_statistics_from=start, keep=self.shown)
        return {
            name: values[node][0].reshape(values[node].shape[1], *(values[node].shape[2:] or (1, 1)))
            for node, name in self.shown.items()
        }

    @torch.no_grad()
    def draw(self) -> None:
        """Change the weight, show what that changes, and put it back."""
        layer = self.layers[self.layer.value]
        weight = layer.parameters[f"{layer.name}.weight"].detach()[self.channel.value].view(-1)[:1]
        before, value = self.outputs(), weight.clone()
        weight += self.sigmas[f"{layer.name}.weight"]
        after = self.outputs()
        weight.copy_(value)
        self.changes = {name: (after[name] - before[name]).numpy() for name in before}
        self.costs = {
            evaluator: candidate_costs(self.network, layer, evaluator, self.examples) for evaluator in EVALUATORS
        }
        plain, cached, incremental = (sum(costs.values()) for costs in self.costs.values())
        told = f"multiply-adds: plain {plain:,}, cached {cached:,}, incremental {incremental:,}"
        for ax in self.axes:
            ax.clear()
        plots.ripple(self.changes, self.axes[0])
        self.axes[0].set_title(f"Changed by a weight of {layer.name}, channel {self.channel.value}", fontsize="medium")
        plots.layer_costs(self.costs, list(self.layers), self.axes[1])
        most = max(self.costs["plain"].values())
        self.axes[1].set(yscale="log", ylim=(0.5, 30 * most), ylabel="multiply-adds\n(log scale)", xticklabels=[])
        self.axes[1].set_title(told, fontsize="medium")
        lit = [
            f"{name} {sum(bool(channel.any()) for channel in change)} of {len(change)}"
            for name, change in self.changes.items()
        ]
        self.image.value = image(self.figure, f"Channels that change: {', '.join(lit)}; {told}.")


class Cost(Pictured):
    """The multiply-adds of a cycle, a bar for each layer and evaluator, of networks like the paper's.

    shape (C, H, W) of an image.
    """

    def __init__(self, shape: Sequence[int] = (1, 28, 28)):
        self.x = torch.zeros(2, *shape)
        self.figure = Figure(figsize=(7, 2.6), layout="constrained")
        self.axes = self.figure.subplots()
        self.width, self.depth, self.images = (
            ipw.SelectionSlider(
                options=options,
                value=value,
                description=name,
                continuous_update=False,
                layout=ipw.Layout(width="270px"),
            )
            for name, options, value in (
                ("width", (4, 8, 16, 32, 64), 16),
                ("depth", (2, 3, 4, 5, 6, 7, 8, 9, 10), 6),
                ("images", (50, 500, 5000), 5000),
            )
        )
        self.held = ipw.Dropdown(options=["weight", "neuron", "layer"], description="held for a")
        self.held.layout.width = "190px"
        self.image = ipw.HTML()
        self.post = poster()
        for control in (self.width, self.depth, self.images, self.held):
            control.observe(lambda change: self.post(self.draw), names="value")
        self.draw()
        controls = [self.width, self.depth, self.images, self.held]
        super().__init__([ipw.HBox(controls, layout=ipw.Layout(flex_flow="row wrap")), self.image])

    def draw(self) -> None:
        """Count, and show the bars."""
        model = paper_cnn(in_channels=self.x.shape[1], width=self.width.value, depth=self.depth.value)
        settings = RSO(1, self.images.value, batch_norm=False, batch_every=self.held.value)
        self.costs = cycle_costs(model, self.x, settings)
        self.axes.clear()
        plots.layer_costs(self.costs, list(self.costs["plain"]), self.axes)
        top = 1.25 * max(self.costs["plain"].values())  # room for the legend
        self.axes.set(ylabel="multiply-adds of a cycle", xlabel="searched layer", ylim=(0, top))
        plain, cached, incremental = (sum(costs.values()) for costs in self.costs.values())
        fewer = f"cached {plain / cached:.1f} times fewer, incremental {plain / incremental:.1f} times fewer"
        told = f"in all: plain {plain:.1e}, {fewer}"
        self.axes.ticklabel_format(axis="y", useMathText=True)
        self.axes.set_title(told, fontsize="medium", loc="right")  # beside the axis's power of ten
        self.image.value = image(self.figure, told)
