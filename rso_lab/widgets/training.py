"""Networks while they train: the monitor, the race, and a picture after each cycle."""

import contextlib
import copy
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Generator, Iterable
from typing import Any, cast

import ipywidgets as ipw
import torch
import torch.nn.functional as F
from IPython.display import HTML, display
from matplotlib.figure import Figure
from torch import nn

from rso_lab import plots
from rso_lab.counts import StepCosts
from rso_lab.data import Data
from rso_lab.descent import batches_of, descend
from rso_lab.experiments import held_out
from rso_lab.graph import Network
from rso_lab.history import History
from rso_lab.notebook import Live, described
from rso_lab.rso import RSO, Step, searched_layers
from rso_lab.train import Descent, Method, stepper_for, steps

HELD_OUT = "held-out images right"


class Training(ABC):
    """A network while it trains: what it has spent, and its accuracy on at most 1000 images to test it.

    For the accuracy, batch norms use the statistics of these images: those of the training set are up to date when the
    training rests.
    """

    every: int  # after so many steps the accuracy is measured: four times a cycle or an epoch
    total: int  # steps that there are

    def __init__(self, model: nn.Module, data: Data, seed: int):
        self.model, self.data, self.seed = model, data, seed
        self.network = Network(model, data.x_train[:2])
        self.first = copy.deepcopy(model.state_dict())
        self.begin()

    def begin(self) -> None:
        """Nothing is done yet."""
        self.evaluations = self.multiply_adds = 0  # these four as a Record has them
        self.updates = self.seconds = 0.0
        self.accuracies: list[float] = []
        self.measured: dict[str, list[float]] = {
            axis: [] for axis in plots.SPENT
        }  # what had been spent, for each accuracy
        self.measure()

    def restore(self) -> None:
        """Give the model its initial weights."""
        self.model.load_state_dict(self.first)
        self.settle()
        self.begin()

    def settle(self) -> None:
        """Give the batch norms the training set's statistics."""
        self.network.stale = set(self.network.batch_norms)
        self.network.refresh_statistics(self.data.x_train)

    def steps(self) -> Generator[None]:
        """All of it, step by step."""
        with contextlib.closing(self.work()) as work:
            begun = time.perf_counter()
            for number, step in enumerate(work, 1):
                self.seconds += time.perf_counter() - begun
                self.count(step)
                if number % self.every == 0 or number == self.total:
                    self.measure()
                yield
                begun = time.perf_counter()

    @abstractmethod
    def work(self) -> Generator[Any]:
        """The training itself."""

    @abstractmethod
    def count(self, step: Any) -> None:
        """Add what a step has spent."""

    def measure(self) -> None:
        """Take the accuracy."""
        self.accuracies.append(self.accuracy())
        for axis, places in self.measured.items():
            places.append(getattr(self, axis))

    @torch.no_grad()
    def accuracy(self) -> float:
        """Share of these images that it reads right."""
        x, y = self.data.x_test[:1000], self.data.y_test[:1000]
        values = self.network.propagate({self.network.input: x}, batch_statistics_from=1)
        return (values[self.network.nodes[-1]].argmax(dim=1) == y).float().mean().item()


class Search(Training):
    """RSO: a step is a proposal."""

    def __init__(self, model: nn.Module, data: Data, method: RSO, seed: int):
        self.method = method
        super().__init__(model, data, seed)
        self.sizes = {layer.name: layer.size for layer in searched_layers(self.network, method)}
        self.cycle_length = sum(self.sizes.values())  # proposals
        self.every, self.total = max(1, self.cycle_length // 4), self.cycle_length * method.cycles

    def begin(self) -> None:
        """Nothing is searched yet."""
        super().begin()
        self.proposals = 0
        self.kept: dict[str, float] = {}  # share of weights that the last whole sweep of a layer kept
        self.choices: Counter = Counter()  # of the sweep that is under way
        self.costs = StepCosts(self.network, self.data.x_train, self.method, "incremental")

    def work(self) -> Generator[Step]:
        """The search."""
        search = steps(self.model, self.data, self.method, seed=self.seed, evaluator="incremental")
        return cast(Generator[Step], search)

    def count(self, step: Step) -> None:
        """Add what a proposal has spent, and what became of it."""
        layer = step.layer or "all layers"
        self.choices[step.choice] += 1
        if self.choices.total() == self.sizes.get(layer, self.cycle_length):
            self.kept[layer] = self.choices["keep"] / self.choices.total()
            self.choices.clear()
        self.proposals += 1
        self.updates = self.proposals / self.cycle_length
        self.evaluations += self.costs.evaluations
        self.multiply_adds += self.costs.of(step)


class Descending(Training):
    """Any other method: a step takes a mini-batch."""

    def __init__(self, model: nn.Module, data: Data, method: Descent, seed: int):
        self.method = method
        super().__init__(model, data, seed)
        batches = batches_of(data, method)
        self.every, self.total = max(1, batches // 4), batches * method.epochs

    def begin(self) -> None:
        """Nothing is done yet."""
        super().begin()
        self.stepper = stepper_for(self.method, self.network, self.data, self.seed, F.cross_entropy)

    def work(self) -> Generator[int]:
        """The descent."""
        generator = torch.Generator().manual_seed(self.seed)
        return cast(Generator[int], descend(self.network, self.data, self.method, self.stepper, generator))

    def count(self, step: int) -> None:
        """Add what a step has spent."""
        self.updates = step // self.stepper.period
        self.evaluations = step * self.stepper.evaluations
        self.multiply_adds = step * self.stepper.multiply_adds


class Monitor(Live):
    """A network while it trains: accuracy, the share of weights kept in each layer, and its first layer as pictures.

    The model is trained in place, and fit for use whenever the search rests. A sixth of the training images is held out
    to measure the accuracy: whoever plays with settings has not seen the test images then. (No mini-batch can be larger
    than the rest.) A click is answered within 0.3 s where a proposal takes less than a tenth, and no batch norm has to
    gather statistics over many images.
    """

    def __init__(self, model: nn.Module, data: Data, method: RSO, seed: int = 0):
        self.stop_latest()  # which may be at work on this model
        self.data = held_out(data)
        self.search = Search(model, self.data, method, seed)
        super().__init__(Figure(figsize=(8.4, 3)))

    def work(self) -> Generator[None]:
        """The search, step by step."""
        return self.search.steps()

    def restore(self) -> None:
        """Give the model its initial weights."""
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
        plots.learning({"the network": (seen.measured["updates"], seen.accuracies)}, learning, "cycle", HELD_OUT)
        learning.set_xlim(0, seen.method.cycles)
        plots.kept(seen.kept, kept)
        shape = self.data.x_train.shape[1:]
        on_images = (
            p for p in seen.model.parameters() if p.dim() == 4 or (p.dim() == 2 and p.shape[1] == shape.numel())
        )
        first = next(on_images, None)
        filters.axis("off") if first is None else plots.filters(first, shape, filters)
        done = f"{seen.proposals / seen.cycle_length:.1f} of {seen.method.cycles} cycles"
        return f"{done}: {seen.accuracies[-1]:.0%} of {len(self.data.x_test[:1000])} held-out images right"


class Race(Live):
    """Several ways to train, all from the same random weights: choose who takes part, and what is counted.

    Those who are `waiting` take part only when they are ticked. Who has spent least of what is counted makes the next
    step. It may be changed at any time: all of it is recorded.
    A sixth of the training images is held out to measure the accuracy, as in the monitor.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        methods: dict[str, Method],
        seed: int = 0,
        against: str = "evaluations",
        waiting: Collection[str] = (),
    ):
        self.stop_latest()
        data = held_out(data)
        self.searches = {
            label: Search(copy.deepcopy(model), data, method, seed)
            if isinstance(method, RSO)
            else Descending(copy.deepcopy(model), data, method, seed)
            for label, method in methods.items()
        }
        boxes = ipw.Layout(width="auto")
        self.taking_part = {
            label: ipw.Checkbox(value=label not in waiting, description=label, indent=False, layout=boxes)
            for label in methods
        }
        self.against = ipw.Dropdown(
            options=[(plots.AXES[axis], axis) for axis in plots.SPENT],
            value=against,
            description="count",
            layout=ipw.Layout(width="auto", min_width="300px"),
        )
        controls = [self.against, *self.taking_part.values()]
        for control in controls:
            control.observe(lambda change: self.post(self.show), names="value")
        super().__init__(Figure(figsize=(7, 2.7)), ipw.HBox(controls, layout=ipw.Layout(flex_flow="row wrap")))

    @property
    def running(self) -> dict[str, Training]:
        """Those who take part."""
        return {label: search for label, search in self.searches.items() if self.taking_part[label].value}

    def work(self) -> Generator[None]:
        """Each time, the one that is behind makes a step."""
        with contextlib.ExitStack() as all_ended:
            going = {
                search: all_ended.enter_context(contextlib.closing(search.steps())) for search in self.running.values()
            }
            while going:
                behind = min(going, key=lambda search: getattr(search, self.against.value))
                try:
                    next(going[behind])
                except StopIteration:
                    del going[behind]
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
        self.figure.subplots_adjust(left=0.1, right=0.97, bottom=0.18, top=0.95)
        axis = self.against.value
        lines = {label: (search.measured[axis], search.accuracies) for label, search in self.running.items()}
        ax = plots.learning(lines, self.figure.subplots(), plots.AXES[axis], HELD_OUT)
        ax.set_xlim(left=0)
        if len({type(search) for search in self.running.values()}) > 1:
            plots.decades(ax)  # that is by how much they differ
        return ", ".join(f"{label} {accuracies[-1]:.1%}" for label, (_, accuracies) in lines.items())

    def _enable(self) -> None:
        super()._enable()
        for box in self.taking_part.values():
            box.disabled = self.state != "ready"  # those who have begun


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
