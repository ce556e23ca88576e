"""Networks while they train: the monitor, the race, and a picture after each cycle."""

import contextlib
import copy
from collections import Counter
from collections.abc import Generator, Iterable

import torch
from IPython.display import HTML, display
from matplotlib.figure import Figure
from torch import nn

from rso_lab import plots
from rso_lab.data import Data
from rso_lab.graph import Network
from rso_lab.history import History
from rso_lab.notebook import Live, described
from rso_lab.rso import RSO, Step, searched_layers
from rso_lab.train import steps


class Search:
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
        self.search = Search(model, data, method, seed)
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
        self.searches = {label: Search(copy.deepcopy(model), data, method, seed) for label, method in methods.items()}
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
