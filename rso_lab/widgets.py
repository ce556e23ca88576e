"""Things to play with in a notebook. Each shows a plain picture where widgets cannot run."""

import contextlib
import copy
import html
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import ipywidgets as ipw
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import HTML, display
from matplotlib.figure import Figure
from torch import nn

from rso_lab import plots
from rso_lab.data import Data
from rso_lab.experiments import EXPERIMENTS, RESULTS, curves, results
from rso_lab.graph import Network
from rso_lab.history import History
from rso_lab.lessons import RandomProposals
from rso_lab.models import build, stack
from rso_lab.notebook import Live, Pictured, described, image, poster
from rso_lab.quizzes import QUIZZES
from rso_lab.rso import CANDIDATES, RSO, PlainEvaluator, Step, choose, draw_batch, initial_sigmas, searched_layers
from rso_lab.train import steps
from rso_lab.visits import weight_visits


class Microscope(Pictured):
    """The loss along one weight of a network, with the three candidates of a proposal whose change a slider sets.

    A button keeps the best of the three: it changes the model. The losses are those of one mini-batch of at most 1000
    training images. `parameter` is a dotted parameter name, `index` the weight's place in it; with `gradient`, an arrow
    shows what calculus says. Raises ValueError where there is no such weight.
    """

    def __init__(self, model: nn.Module, data: Data, parameter: str, index: tuple[int, ...], gradient: bool = False):
        network = Network(model, data.x_train[:2])
        layers = {name: layer for layer in network.layers for name in layer.parameters}
        if parameter not in layers:
            raise ValueError(f"parameter {parameter!r} is not known: choose from {', '.join(layers)}")
        weights = layers[parameter].parameters[parameter].detach()
        if len(index) != weights.dim() or not all(0 <= i < size for i, size in zip(index, weights.shape, strict=True)):
            raise ValueError(f"index is {index}: {parameter} has shape {tuple(weights.shape)}, each number from 0 on")
        self.weight = weights[index]
        self.gradient_of = (layers[parameter].parameters[parameter], index) if gradient else None
        self.label = f"{parameter}{list(index)}"
        self.count = sum(layer.size for layer in network.layers)
        batch_size = min(1000, len(data.x_train))
        self.sigma = initial_sigmas(network, RSO(1, batch_size))[parameter]
        self.evaluator = PlainEvaluator(network, data, F.cross_entropy)
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
        self.curve_weights = np.linspace(min(places) - 4 * self.sigma, max(places) + 4 * self.sigma, 61)
        self.curve_losses = np.array([self.loss_at(weight) for weight in self.curve_weights])
        self.draw()

    def accept(self) -> None:
        """Set the weight to the candidate with the lowest loss, and say what that brought."""
        points = self.candidates()
        choice = CANDIDATES[int(choose(torch.tensor([points[name][1] for name in CANDIDATES], dtype=torch.float64)))]
        weight, loss = points[choice]
        if choice == "keep":
            lowest = self.curve_losses.min()
            there = "the bottom" if loss < lowest + 1e-4 else f"{loss:.4f}, the curve's lowest is {lowest:.4f}"
            self.said.value = f"Kept: no change helps. You are at {there}."
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


class _Search:
    """A search, and its accuracy on at most 1000 test images, four times a cycle.

    For the accuracy, batch norms use the statistics of these images: those of the training set are up to date when the
    search rests.
    """

    def __init__(self, model: nn.Module, data: Data, method: RSO, seed: int):
        self.model, self.data, self.method, self.seed = model, data, method, seed
        self.network = Network(model, data.x_train[:2])
        self.sizes = {layer.name: layer.size for layer in searched_layers(self.network, method)}
        self.cycle_length = sum(self.sizes.values())  # proposals
        self.first = copy.deepcopy(model.state_dict())
        self.begin()

    def begin(self) -> None:
        """Nothing is searched yet."""
        self.proposals = self.evaluations = 0
        self.kept: dict[str, float] = {}  # share of weights that the last whole sweep of a layer kept
        self.measured, self.accuracies = [0], [self.accuracy()]  # after how many evaluations, and what was found

    def restore(self) -> None:
        """Give the model its first weights."""
        self.model.load_state_dict(self.first)
        self.settle()
        self.begin()

    def settle(self) -> None:
        """Give the batch norms the training set's statistics."""
        self.network.stale = set(self.network.batch_norms)
        self.network.refresh_statistics(self.data.x_train)

    def steps(self) -> Generator[Step]:
        """All of it, step by step."""
        every = max(1, self.cycle_length // 4)
        search = steps(self.model, self.data, self.method, seed=self.seed)
        with contextlib.closing(search):  # type: ignore[type-var]
            choices: Counter = Counter()
            for step in search:
                layer = step.layer or "all layers"
                choices[step.choice] += 1
                if choices.total() == self.sizes.get(layer, self.cycle_length):
                    self.kept[layer] = choices["keep"] / choices.total()
                    choices.clear()
                self.proposals += 1
                self.evaluations += 3 if self.method.opposite else 2
                if self.proposals % every == 0 or self.proposals == self.cycle_length * self.method.cycles:
                    self.accuracies.append(self.accuracy())
                    self.measured.append(self.evaluations)
                yield step

    @torch.no_grad()
    def accuracy(self) -> float:
        """Share of the test images that it reads right."""
        x, y = self.data.x_test[:1000], self.data.y_test[:1000]
        values = self.network.propagate({self.network.input: x}, batch_statistics_from=1)
        return (values[self.network.nodes[-1]].argmax(dim=1) == y).float().mean().item()


class Monitor(Live):
    """A network while it trains: accuracy, the share of weights kept in each layer, and its first layer as pictures.

    The model is trained in place, and fit for use whenever the search rests. A click is answered within 0.3 s where a
    proposal takes less than a tenth, and no batch norm has to gather statistics over a large training set.
    """

    def __init__(self, model: nn.Module, data: Data, method: RSO, seed: int = 0):
        self.stop_latest()  # which may be at work on this model
        self.data = data
        self.search = _Search(model, data, method, seed)
        super().__init__(Figure(figsize=(8.4, 3)))

    def work(self) -> Generator[None]:
        """The search, step by step."""
        for _ in self.search.steps():
            yield

    def restore(self) -> None:
        """Give the model its first weights."""
        self.search.restore()

    def settle(self) -> None:
        """Give the batch norms the training set's statistics."""
        self.search.settle()

    def draw(self) -> str:
        """Show how far it is."""
        seen = self.search
        self.figure.clear()
        self.figure.subplots_adjust(left=0.09, right=0.98, bottom=0.17, top=0.88, wspace=0.35)
        learning, kept, filters = self.figure.subplots(1, 3, width_ratios=(1.6, 1.1, 1))
        per_cycle = (3 if seen.method.opposite else 2) * seen.cycle_length
        cycles = [evaluations / per_cycle for evaluations in seen.measured]
        plots.learning({"the network": (cycles, seen.accuracies)}, learning, "cycle")
        learning.set_xlim(0, seen.method.cycles)
        plots.kept(seen.kept, kept)
        shape = self.data.x_train.shape[1:]
        on_images = (
            p for p in seen.model.parameters() if p.dim() == 4 or (p.dim() == 2 and p.shape[1] == shape.numel())
        )
        first = next(on_images, None)
        filters.axis("off") if first is None else plots.filters(first, shape, filters)
        done = f"{seen.proposals / seen.cycle_length:.1f} of {seen.method.cycles} cycles"
        return f"{done}: {seen.accuracies[-1]:.0%} of {len(self.data.x_test[:1000])} test images right"


class Race(Live):
    """Several ways to search, all from the same random weights, at equal evaluations of the loss."""

    def __init__(self, model: nn.Module, data: Data, methods: dict[str, RSO], seed: int = 0):
        self.stop_latest()
        self.searches = {label: _Search(copy.deepcopy(model), data, method, seed) for label, method in methods.items()}
        super().__init__(Figure(figsize=(7, 3.4)))

    def work(self) -> Generator[None]:
        """Each time, the one that is behind makes a step."""
        with contextlib.ExitStack() as all_ended:
            going = {
                label: all_ended.enter_context(contextlib.closing(search.steps()))
                for label, search in self.searches.items()
            }
            while going:
                label = min(going, key=lambda label: self.searches[label].evaluations)
                if next(going[label], None) is None:
                    del going[label]
                yield

    def restore(self) -> None:
        """Give all networks the weights they began with."""
        for search in self.searches.values():
            search.restore()

    def settle(self) -> None:
        """Give the batch norms the training set's statistics."""
        for search in self.searches.values():
            search.settle()

    def draw(self) -> str:
        """Show how far each is."""
        self.figure.clear()
        self.figure.subplots_adjust(left=0.1, right=0.97, bottom=0.15, top=0.95)
        lines = {label: (search.measured, search.accuracies) for label, search in self.searches.items()}
        plots.learning(lines, self.figure.subplots(), plots.AXES["evaluations"])
        return ", ".join(f"{label} {accuracies[-1]:.1%}" for label, (_, accuracies) in lines.items())


class Initialisation(Pictured):
    """What the scale of the first weights does to the signals in a row of linear layers: a slider, and a picture.

    The layers have ReLU and no batch norm; their weights are He's times the slider.
    """

    def __init__(self, data: Data, depth: int = 8):
        self.x = data.x_train[:500]
        self.model = stack(depth, self.x[0].numel(), classes=data.classes)
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
        outputs.set(xlabel="probability of its first answer", ylabel="images")
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

    Of one_conv with random weights; the change lowers the loss of all training images.
    """

    @torch.no_grad()
    def __init__(self, data: Data):
        model = build("one_conv", data)
        weight = model.get_parameter("fc.weight").detach()
        losses = []
        for step in (0.0, 0.3 * weight.std(correction=0).item()):
            weight[3, 5] += step
            losses.append(F.cross_entropy(model(data.x_train), data.y_train, reduction="none"))
        self.differences = (losses[1] - losses[0]).numpy()  # of each image
        self.figure = Figure(figsize=(7, 2.9), layout="constrained")
        self.axes = self.figure.subplots()
        wide = ipw.Layout(min_width="300px")
        self.size = ipw.IntSlider(value=30, min=5, max=200, description="images", continuous_update=False, layout=wide)
        self.said = ipw.Label()
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
        self.said = ipw.Label()
        self.image = ipw.HTML()
        self.post = poster()
        for control in (self.moved, self.step):
            control.observe(lambda change: self.post(self.draw), names="value")
        self.draw()
        controls = ipw.HBox([self.moved, self.step, self.said], layout=ipw.Layout(flex_flow="row wrap"))
        super().__init__([controls, self.image])

    def draw(self) -> None:
        """Try proposals, and show what the better of w + d and w - d does to the loss."""
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
        self.order = ipw.ToggleButtons(options=["neuron", "input"], description="order")
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


class Recorded(Pictured):
    """Recorded experiments of the paper's claims: choose one, and see its curves. No run is made.

    name: of the experiment that is shown first; `ways`: the labels of those of its ways that are.
    """

    def __init__(self, name: str | None = None, against: str = "cycle", ways: Sequence[str] = ()):
        found = {f"{name} ({size})": (name, result) for name, size, result in results(RESULTS)}
        first = next(label for label in found if name is None or label.startswith(f"{name} "))
        self.found = found
        self.ways = {first: ways} if ways else {}
        self.figure = Figure(figsize=(7, 3.4), layout="constrained")
        self.axes = self.figure.subplots()
        self.choice = ipw.Dropdown(options=list(found), value=first, description="experiment")
        self.against = ipw.Dropdown(options=list(plots.AXES), value=against, description="against")
        self.image = ipw.HTML()
        self.post = poster()
        for control in (self.choice, self.against):
            control.observe(lambda change: self.post(self.draw), names="value")
        self.draw()
        super().__init__([ipw.HBox([self.choice, self.against], layout=ipw.Layout(flex_flow="row wrap")), self.image])

    def draw(self) -> None:
        """Show the experiment that is chosen."""
        name, result = self.found[self.choice.value]
        runs = curves(result)
        runs = {label: runs[label] for label in self.ways.get(self.choice.value, runs)}
        last = {label: histories[0].cycles[-1].test_accuracy or 0.0 for label, histories in runs.items()}
        self.axes.clear()
        plots.comparison(runs, self.axes, self.against.value, EXPERIMENTS[name].reference)
        # From the tenth below the worst on: what differs at the end is small.
        self.axes.set(ylim=(max(0.0, np.floor(10 * min(last.values()) - 1) / 10), 1))
        self.axes.set_title(f"{self.choice.value}: {result['command']}", fontsize="small")
        told = ", ".join(f"{label} {share:.1%}" for label, share in last.items())
        self.image.value = image(self.figure, f"Recorded accuracy at the end, first seed: {told}.")


class Quiz(ipw.VBox):
    """A question of a lesson's quiz, by number from 1 on, with answers to choose from; each is explained.

    Where widgets cannot run, all explanations are there to read.
    """

    def __init__(self, lesson: str, number: int):
        question, answers = QUIZZES[lesson][number - 1]
        self.right = next(iter(answers))
        self.explanations = answers
        shown = sorted(answers)  # so that the right one is not always the first
        self.choice = ipw.RadioButtons(options=shown, index=None, layout=ipw.Layout(width="auto"))
        self.said = ipw.HTML()
        self.post = poster()
        self.choice.observe(lambda change: self.post(self.tell), names="value")
        super().__init__([ipw.HTML(f"<b>{html.escape(question)}</b>"), self.choice, self.said])

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        told = "".join(
            f"<li>{html.escape(answer)}<br><i>{self.verdict(answer)}</i></li>" for answer in self.explanations
        )
        return {**super()._repr_mimebundle_(**kwargs), "text/html": f"{self.children[0].value}<ul>{told}</ul>"}

    def tell(self) -> None:
        """Explain the answer that was chosen."""
        self.said.value = self.verdict(self.choice.value)

    def verdict(self, answer: str) -> str:
        """What to say to an answer."""
        return f"{'Right.' if answer == self.right else 'Not quite.'} {html.escape(self.explanations[answer])}"


def watch(histories: Iterable[History]) -> History:
    """Draw the accuracy after each cycle while the network trains; returns the history, stopped early or not.

    histories: from `rso_lab.histories(...)`. An interrupt in the first cycle is passed on: there is no history yet.
    """
    handle = display(HTML(""), display_id=True)
    history: History | None = None
    try:
        for history in histories:
            figure = Figure(figsize=(7, 3.2), layout="constrained")
            plots.accuracy(history, figure.subplots())
            latest = history.cycles[-1]
            alt = f"Accuracy after cycle {latest.cycle}: {latest.test_accuracy:.1%} of the test images."
            if handle is not None:  # None outside a notebook
                handle.update(described(figure, alt), raw=True)
    except KeyboardInterrupt:
        if history is None:
            raise
        print(f"Stopped. {len(history.cycles)} cycles were completed.")
    assert history is not None
    return history
