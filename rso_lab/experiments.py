"""The papers' claims as named experiments: each a few ways to train, side by side, over several seeds, recorded.

The ways of an experiment have network, data and seeds in common, and differ in what their names say. What is done is
stored after each cycle, so that an interrupted experiment goes on where it was.
"""

import itertools
import json
import os
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rso_lab.data import Data, load
from rso_lab.history import History, Record, machine, records_of, replacing, save_weights, versions
from rso_lab.models import build, paper_cnn
from rso_lab.relatives import ES, GA, Masks, Subspace
from rso_lab.rso import RSO, is_number
from rso_lab.sgd import SGD
from rso_lab.train import Method, histories

RESULTS = Path(__file__).parent.parent / "results"  # what is recorded, in a checkout
SEEDS = 3  # that an experiment has unless told
Run = dict[str, Any]  # of one way with one seed, as it is stored


@dataclass(frozen=True)
class Size:
    """What is trained on what, and the settings that the ways vary.

    The rival's were found by the grid search, on two_conv; those of `full` are the paper's.
    """

    dataset: str
    model: str
    rso: RSO
    sgd: SGD


CLASS = Size("digits", "two_conv", RSO(4, 500, batch_every="neuron"), SGD(20, 50, 0.1))
EVENING = Size("mnist", "two_conv", RSO(5, 1000, batch_every="neuron"), SGD(10, 100, 0.1))
# §4.1 and §4.5; but the paper holds no mini-batch.
FULL = Size("mnist", "paper_cnn", RSO(50, 5000, batch_every="neuron"), SGD(50, 5000, 0.5))


def _plain_sgd(epochs: int, batch_size: int, learning_rate: float, momentum: float = 0.0) -> SGD:
    """At one rate from first to last, as the relatives have theirs."""
    constant: dict[str, Any] = {"weight_decay": 0.0, "warm_up": 0, "drops": (1.0, 1.0)}
    return SGD(epochs, batch_size, learning_rate, momentum=momentum, **constant)


# Of the relatives. Rates, here and in the ways of class size, are the best on held-out training images of digits:
# benchmarks/relatives_rates.py.
RELATIVES_CLASS = Size("digits", "mlp", RSO(4, 500, batch_every="neuron"), _plain_sgd(20, 32, 0.3))
RELATIVES_EVENING = Size("mnist", "mlp", RSO(5, 1000, batch_every="neuron"), _plain_sgd(10, 100, 0.3))


@dataclass(frozen=True)
class Way:
    """A way to train; what is not given is the size's."""

    method: Method
    model: str | None = None
    scale: float = 1.0  # of the initial weights
    evaluator: str = "auto"
    before: tuple[Method, ...] = ()  # train first, one after the other

    @property
    def cycles(self) -> int:
        """Of other methods than RSO: epochs."""
        return sum(stage.cycles if isinstance(stage, RSO) else stage.epochs for stage in self.stages)

    @property
    def stages(self) -> tuple[Method, ...]:
        """All methods, in order."""
        return (*self.before, self.method)


Ways = dict[str, Way]


@dataclass(frozen=True)
class Measure:
    """A number of a run, and how it is written."""

    of: Callable[[Run], float | None]
    form: Callable[[float], str]


def _accuracy(run: Run) -> float:
    return run["cycles"][-1]["test_accuracy"]


def _accuracy_after(cycle: int) -> Measure:
    return Measure(lambda run: next((c["test_accuracy"] for c in run["cycles"] if c["cycle"] == cycle), None), _percent)


def _updates_to(accuracy: float) -> Measure:
    def updates(run: Run) -> float | None:
        return next((cycle["updates"] for cycle in run["cycles"] if cycle["test_accuracy"] >= accuracy), None)

    return Measure(updates, lambda number: f"{number:.0f}")


def _accuracy_at(updates: int) -> Measure:
    """After the first record with so many updates."""

    def accuracy(run: Run) -> float | None:
        return next((cycle["test_accuracy"] for cycle in run["cycles"] if cycle["updates"] >= updates), None)

    return Measure(accuracy, _percent)


def _largest_fall(run: Run) -> float:
    """Of the accuracy, from one cycle to the next."""
    accuracies = [cycle["test_accuracy"] for cycle in run["cycles"]]
    return max([0.0, *(before - after for before, after in itertools.pairwise(accuracies))])


def _per_cycle(key: str) -> Callable[[Run], float]:
    return lambda run: run["cycles"][-1][key] / len(run["cycles"])


def _percent(share: float) -> str:
    return f"{share:.1%}"


ACCURACY = Measure(_accuracy, _percent)
KEPT = Measure(lambda run: statistics.mean(cycle["kept"]["all"] for cycle in run["cycles"]), _percent)
MOVED = Measure(lambda run: run["moved"], _percent)
NONZERO = Measure(lambda run: max(cycle["nonzero"] for cycle in run["cycles"]), lambda number: f"{number:,.0f}")
FALL = Measure(_largest_fall, lambda share: f"{100 * share:.1f} points")
SECONDS = Measure(_per_cycle("seconds"), lambda number: f"{number:.1f} s")
MULTIPLY_ADDS = Measure(_per_cycle("multiply_adds"), lambda number: f"{number:.2g}")


@dataclass(frozen=True)
class Claim:
    """What the paper says of some of an experiment's ways, and the number that it is tested by."""

    question: str
    paper: str
    measure: Measure = ACCURACY
    labels: tuple[str, ...] = ()  # of the ways that it is about: all, where there are none
    best_only: bool = False  # whether of many ways only the most accurate is told
    remarks: dict[str, str] = field(default_factory=dict)  # by size; where it did not show: what was tried, and why


@dataclass(frozen=True)
class Experiment:
    """A question, the ways that are compared, and the claims that they test."""

    question: str
    ways: Callable[[Size], Ways]
    claims: tuple[Claim, ...]
    sizes: dict[str, Size]
    prepare: Callable[[Data], Data] = lambda data: data
    reference: tuple[str, float] | None = None  # the paper's accuracy, where it gives one, and of what
    against: str = "cycle"  # the x-axis of its figure, one of plots.AXES
    weights_of: tuple[str, ...] = ()  # sizes, of which the first seed's network is stored beside the result


PAPER = ("paper: MNIST, 50 cycles, 99.12 %", 0.9912)  # §4.1
WANN = (
    "Quoted, not run here: WANN (Gaier & Ha 2019) reads 91.9 % of MNIST with one shared weight, "
    "94.2 % with all weights trained."
)
MORE_KEPT = "On MNIST, with a new mini-batch for each weight, it is 4 to 14 %: see *julia*, below."
BY_ACCURACY = (
    "Accuracy on held-out training images after few epochs, in which small mini-batches make more steps; the paper "
    "chose by updates. The best is at the grid's edge: a smaller mini-batch may be better still."
)
DIGITS = "On digits, small pictures: only what grows and what does not can be compared."
SMALLER = "Mini-batches of 1000, a fifth of the paper's, and one held for a neuron: a poorer judge."
BUSY = "With other work on the machine."
CLASHES = "Moves of one layer, each right by itself, can clash when they are merged, the more the larger they are."


def _name_of(size: Size, experiment: str) -> str:
    return next(name for name, other in EXPERIMENTS[experiment].sizes.items() if other == size)


def _mnist(size: Size) -> Ways:
    return {"RSO": Way(size.rso)}


def _initialisation(size: Size) -> Ways:
    return {
        "RSO": Way(size.rso),
        "SGD": Way(size.sgd),
        "RSO, a tenth of He's weights": Way(size.rso, scale=0.1),
        "RSO, ten times He's weights": Way(size.rso, scale=10.0),
    }


def _levels(size: Size) -> Ways:
    # Above the weight level each proposal has a mini-batch of its own, and the whole network to run.
    base = replace(size.rso, batch_every="weight", batch_size=size.rso.batch_size // 5, cycles=2)
    return {level: Way(replace(base, level=level)) for level in ("weight", "layer", "network")}


def _order(size: Size) -> Ways:
    return {
        f"{order} first, {layer_order.partition('_')[0]} layer first": Way(
            replace(size.rso, order=order, layer_order=layer_order)
        )
        for order in ("neuron", "input")
        for layer_order in ("output_first", "input_first")
    }


SCALES = (0.1, 0.3, 3.0, 10.0)


def _proposals(size: Size) -> Ways:
    others: dict[str, dict[str, Any]] = {
        "uniform": {"distribution": "uniform"},
        "template": {"distribution": "template"},
        "w + δ only": {"opposite": False},
        "not annealed": {"sigma_end": 1.0},
        **{f"{scale} sigma_d": {"sigma_scale": scale} for scale in SCALES},
    }
    ways = {"the usual way": Way(size.rso)} | {name: Way(replace(size.rso, **other)) for name, other in others.items()}
    return ways | _longer(ways, "0.1 sigma_d")


def _longer(ways: Ways, *labels: str) -> Ways:
    """Some of the ways once more, with five times the cycles."""
    longer = {}
    for label in labels:
        method = ways[label].method
        assert isinstance(method, RSO)
        longer[f"{label}, {5 * method.cycles} cycles"] = Way(replace(method, cycles=5 * method.cycles))
    return longer


BATCH_SIZES = {"class": (32, 100, 250, 1000), "evening": (32, 100, 5000)}


def _batch(size: Size) -> Ways:
    base = size.rso
    growing = replace(base, batch_growth=2.0, batch_size=base.batch_size * base.cycles // (2**base.cycles - 1))
    return {
        "held for a neuron": Way(base),
        **{f"batch {number}": Way(replace(base, batch_size=number)) for number in BATCH_SIZES[_name_of(size, "batch")]},
        "held for a weight": Way(replace(base, batch_every="weight")),
        "held for a layer": Way(replace(base, batch_every="layer")),
        "doubled each cycle": Way(growing),
    }


def _julia(size: Size) -> Ways:
    sizes = {"one_conv": (32, 64, 256, 512, 1024), "two_conv": (32, 512, 1000)}
    return {
        f"{model}, batch {number}": Way(replace(size.rso, batch_size=number), model)
        for model in sizes
        for number in sizes[model]
    }


def _updates(size: Size) -> Ways:
    return {"RSO": Way(size.rso), "SGD": Way(size.sgd)}


def _parallel(size: Size) -> Ways:
    ways = {
        "one by one": Way(size.rso),
        "neurons apart": Way(replace(size.rso, parallel="neuron")),
        "weights apart": Way(replace(size.rso, parallel="layer")),
    }
    return ways | (_longer(ways, *ways) if size == CLASS else {})


def _caching(size: Size) -> Ways:
    base = replace(size.rso, cycles=1, batch_every="weight")
    return {evaluator: Way(base, evaluator=evaluator) for evaluator in ("plain", "cached", "incremental")}


DEPTHS = ("depth3", "depth5", "depth10")


def _depth(size: Size) -> Ways:
    methods: dict[str, Method] = {"RSO": size.rso, "SGD": size.sgd}
    ways = {f"{depth}, {name}": Way(method, depth) for name, method in methods.items() for depth in DEPTHS}
    longest = ways.pop("depth10, RSO")  # than all the others together: the last
    return ways | {"depth10, RSO": longest}


GRID = {"class": (50, 100, 250, 1000), "evening": (100, 1000, 5000, 20_000)}
RATES = (0.01, 0.1, 0.5, 1.0, 5.0)


def _grid(size: Size) -> Ways:
    return {
        f"batch {number}, rate {rate}": Way(replace(size.sgd, batch_size=number, learning_rate=rate))
        for number in GRID[_name_of(size, "grid")]
        for rate in RATES
    }


def _subspace(size: Size) -> Ways:
    base = Subspace(size.sgd.epochs, size.sgd.batch_size, 1.0)
    if size == RELATIVES_EVENING:  # its rates are those of digits, for two_conv of a single seed
        ways = {}
        for model, rates in {"mlp": (0.3, 1.0, 1.0), "two_conv": (0.1, 1.0, 0.25)}.items():
            ways[f"{model}, SGD"] = Way(replace(size.sgd, learning_rate=rates[0]), model)
            ways[f"{model}, fixed"] = Way(replace(base, redraw=False, learning_rate=rates[1]), model)
            ways[f"{model}, re-drawn"] = Way(replace(base, learning_rate=rates[2]), model)
        return ways
    fixed, layers = replace(base, redraw=False), replace(base, dimensions=50, compartments="layer")
    return {
        "SGD": Way(size.sgd),
        "10 fixed": Way(replace(fixed, dimensions=10, learning_rate=1.0)),
        "10 re-drawn": Way(replace(base, dimensions=10, learning_rate=2.0)),
        "50 fixed": Way(replace(fixed, dimensions=50, learning_rate=2.0)),
        "50 re-drawn": Way(replace(base, dimensions=50, learning_rate=2.0)),
        "250 fixed": Way(fixed),
        "250 re-drawn": Way(base),
        "50 fixed in each layer": Way(replace(layers, redraw=False, learning_rate=0.5)),
        "50 re-drawn in each layer": Way(layers),
    }


FIFTY = Subspace(20, 32, 2.0, dimensions=50)


def _directions(size: Size) -> Ways:
    kinds: tuple[Any, ...] = ("gaussian", "uniform", "signs", "orthonormal")
    # Directions of length sqrt(1/3), as the uniform ones of the paper's code, make a third of the step.
    short = replace(FIFTY, distribution="uniform", learning_rate=FIFTY.learning_rate / 3)
    return {kind: Way(replace(FIFTY, distribution=kind)) for kind in kinds} | {"uniform, short": Way(short)}


def _switch(size: Size) -> Ways:
    def rbd(epochs: int) -> Subspace:
        return replace(FIFTY, epochs=epochs)

    def sgd(epochs: int) -> SGD:
        return replace(size.sgd, epochs=epochs)

    return {
        "RBD": Way(rbd(20)),
        "SGD": Way(sgd(20)),
        **{f"{first} RBD, {20 - first} SGD": Way(sgd(20 - first), before=(rbd(first),)) for first in (5, 10, 15)},
        **{f"{first} SGD, {20 - first} RBD": Way(rbd(20 - first), before=(sgd(first),)) for first in (5, 10, 15)},
        "in turn, 5 each": Way(sgd(5), before=(rbd(5), sgd(5), rbd(5))),
    }


def _evolution(size: Size) -> Ways:
    # Gressmann's, but for sigma and rate. An epoch has 44 mini-batches, an update 250: 120 updates.
    nes = ES(682, 32, 0.1, samples=250, sigma=0.1, antithetic=False, optimizer="sgd", own_batch=True)
    return {
        "NES": Way(nes),
        "ES": Way(ES(55, 128, 0.01)),
        "GA": Way(GA(150, size.rso.batch_size)),
        "RBD": Way(Subspace(size.sgd.epochs, size.sgd.batch_size, 1.0)),
        "RSO": Way(size.rso),
        "RSO, network level": Way(replace(size.rso, level="network")),
        "SGD": Way(size.sgd),
    }


DENSITIES = (10, 5, 2)  # percent
# Of each kind of masks the settings, and its learning rates at the densities. At 2 % the mask rate was chosen, too.
MASKS: dict[str, tuple[dict[str, Any], tuple[float, float, float]]] = {
    "random, fixed": ({"mask_rate": 0.0}, (0.1, 0.1, 0.05)),
    "largest, fixed": ({"mask_rate": 0.0, "start": "magnitude"}, (0.05, 0.1, 0.1)),
    "scores": ({}, (0.05, 0.05, 0.1)),
    "Bernoulli": ({"sampling": "bernoulli"}, (0.1, 0.05, 0.1)),
}
RATES_AT_2 = {"scores": 0.01, "Bernoulli": 10.0}


def _masks(size: Size) -> Ways:
    base = Masks(size.sgd.epochs, size.sgd.batch_size, 1.0)
    ways = {"dense": Way(size.sgd)}
    for number, percent in enumerate(DENSITIES):
        for kind, (settings, rates) in MASKS.items():
            method = replace(base, density=percent / 100, learning_rate=rates[number], **settings)
            if percent == 2 and kind in RATES_AT_2:
                method = replace(method, mask_rate=RATES_AT_2[kind])
            ways[f"{percent} %, {kind}"] = Way(method)
            if percent == 2 and "fixed" in kind:  # as many passes as masks that are learned take
                longer = replace(method, epochs=4 * base.epochs)
                ways[f"2 %, {kind}, {longer.epochs} epochs"] = Way(longer)
    chosen = replace(base, learning_rate=0.0, density=0.1, sampling="bernoulli", pairs=8)
    return ways | {"10 %, mask only": Way(chosen)}


def held_out(data: Data, most: int | None = None) -> Data:
    """The training set alone: its last sixth (as MNIST's 10,000) to test on, of the others `most`, or all, to train."""
    kept = len(data.x_train) * 5 // 6
    few = min(kept, most or kept)
    x, y = data.x_train, data.y_train
    return Data.from_arrays(x[:few], y[:few], x[kept:], y[kept:], name=f"{data.name}, held out")


EXPERIMENTS = {
    "mnist": Experiment(
        "How good does it get?",
        _mnist,
        (
            Claim(
                "How good at the end?",
                "99.12 % after 50 cycles (§4.1)",
                remarks={"evening": f"{SMALLER} {WANN}", "full": WANN},
            ),
            Claim("How good after 5 cycles?", "98.0 % (§4.5)", _accuracy_after(5), remarks={"evening": SMALLER}),
        ),
        {
            "class": replace(CLASS, rso=replace(CLASS.rso, cycles=10)),
            "evening": replace(FULL, rso=replace(FULL.rso, batch_size=1000)),
            "full": FULL,
        },
        reference=PAPER,
        weights_of=("evening", "full"),
    ),
    "initialisation": Experiment(
        "How close is the answer to the start?",
        _initialisation,
        (
            Claim(
                "How far do weights move, as a share of their length?",
                "near: the start is already close to the solution (§4.5)",
                MOVED,
                ("RSO", "SGD"),
                remarks={
                    "class": "RSO ends nearer to its start than SGD, but not near: by most of the start's own length."
                },
            ),
            Claim("Does the scale of the initial weights matter?", "He's is used throughout (§3)"),
        ),
        {"class": CLASS},
    ),
    "levels": Experiment(
        "Move one weight, a layer or the whole network at a time?",
        _levels,
        (
            Claim(
                "Which level is best, at equal steps?",
                "weight, by far; then layer, network (§4.2)",
                remarks={
                    "class": "On digits, with mini-batches of 100, none is ahead beyond the spread. Moving everything "
                    "helps most at the beginning, and so few steps are all beginning: the paper counts 500,000.",
                    "evening": "With mini-batches of 200, a 25th of the paper's: poor judges of small changes. "
                    "After one cycle the weight level is far ahead, after two the layer level has nearly "
                    "caught up, in many times the seconds; the network level stays far behind. The paper's "
                    "500,000 steps would be 48 of these cycles.",
                },
            ),
            Claim("And after one cycle?", "", _accuracy_after(1)),
            Claim("Seconds of a cycle?", "", SECONDS),
        ),
        {"class": CLASS, "evening": EVENING},
    ),
    "order": Experiment(
        "Does the order of the search matter?",
        _order,
        (
            Claim(
                "Which order is best?",
                "hardly any: 99.06 and 99.12 % with neuron and input first (§4.3)",
                remarks={
                    "evening": "After five cycles *neuron first* is ahead of *input first* by less than a point, "
                    "in every seed; the input layer first is ahead of the output layer first, less clearly (lesson 04)."
                },
            ),
        ),
        {"class": CLASS, "evening": EVENING},
        reference=PAPER,
    ),
    "proposals": Experiment(
        "What should be proposed?",
        _proposals,
        (
            Claim(
                "Which distribution of the changes?",
                "uniform and template would also be effective (§3)",
                labels=("the usual way", "uniform", "template"),
            ),
            Claim(
                "Is w - δ worth it?", "it often leads to a better choice (§3)", labels=("the usual way", "w + δ only")
            ),
            Claim(
                "Should changes become smaller?",
                "to a tenth (§4.1)",
                labels=("the usual way", "not annealed"),
                remarks={
                    "class": "In four cycles it makes no difference: the gain is to come at the end of a long run."
                },
            ),
            Claim(
                "How large may the first sigma be?",
                "0.1 to 10 sigma_d: within 0.15 points (§4.1)",
                labels=("the usual way", *(f"{scale} sigma_d" for scale in SCALES), "0.1 sigma_d, 20 cycles"),
                remarks={
                    "class": "In four cycles a tenth of sigma_d does not get far; in twenty it does. The paper has 50."
                },
            ),
            Claim(
                "What share of the weights is kept?",
                "about 10 %",
                KEPT,
                ("the usual way",),
                remarks={"class": MORE_KEPT},
            ),
        ),
        {"class": CLASS},
        reference=PAPER,
    ),
    "batch": Experiment(
        "How large a mini-batch, held how long?",
        _batch,
        (
            Claim(
                "How large a mini-batch?",
                "5000 (§4.1)",
                labels=(
                    *(f"batch {number}" for number in sorted({*BATCH_SIZES["class"], *BATCH_SIZES["evening"]})),
                    "held for a neuron",
                ),
                remarks={
                    "class": "All of them are held for a neuron; the last has 500 images.",
                    "evening": "All of them are held for a neuron; the last has 1000 images.",
                },
            ),
            Claim(
                "How long is it held?",
                "a new one for each weight (§3)",
                labels=("held for a weight", "held for a neuron", "held for a layer"),
            ),
            Claim(
                "And what share of the weights is kept?",
                "about 10 %, with a new one for each weight",
                KEPT,
                ("held for a weight", "held for a neuron", "held for a layer"),
                remarks={"class": MORE_KEPT},
            ),
            Claim(
                "A constant mini-batch, or a growing one at equal cost?",
                "constant (§4.1)",
                labels=("held for a neuron", "doubled each cycle"),
            ),
        ),
        {"class": CLASS, "evening": EVENING},
    ),
    "julia": Experiment(
        "The table of the Julia notebook, redone",
        _julia,
        (
            Claim(
                "How good are the networks of the Julia notebook?",
                "in Julia, in this order: 80.8, 83.5, 89.3, 91.5, 91.5 %; 85.0, 94.0, 96.0 %",
                remarks={"class": DIGITS},
            ),
            Claim("What share of the weights is kept?", "about 10 %", KEPT),
            Claim(
                "How long does a cycle take?",
                "in Julia, in this order: 21, 35, 164, 283, 505 s; 146, 1919, 3646 s",
                SECONDS,
                remarks={
                    "class": DIGITS,
                    "evening": "On one thread, with other work beside it, most of it beside the smallest batches.",
                },
            ),
        ),
        {
            "class": Size("digits", "one_conv", RSO(10, 1024), SGD(20, 50, 0.1)),
            "evening": Size("mnist", "one_conv", RSO(10, 1024), SGD(10, 100, 0.1)),
        },
    ),
    "updates": Experiment(
        "How often do all weights have to be updated?",
        _updates,
        (
            Claim(
                "Updates of all weights to 90 %?",
                "RSO: 50 to 99.12 %; SGD: up to 600 (§4.5)",
                _updates_to(0.9),
                remarks={
                    "evening": "SGD is looked at once an epoch, first after 600 updates: it needs fewer. On held-out "
                    "images, with batches of 5000, 20 are enough: see *grid*."
                },
            ),
            Claim(
                "And how good at the end?",
                "99.12 % both, SGD chosen so (§4.5)",
                remarks={"evening": "Five cycles of RSO are a tenth of the paper's."},
            ),
        ),
        {"class": CLASS, "evening": EVENING},
        reference=PAPER,
        against="updates",
    ),
    "parallel": Experiment(
        "What does it cost to search in parallel?",
        _parallel,
        (
            Claim(
                "Which weights may be searched at the same time?",
                "one by one; on MNIST the others almost as good after 50 cycles (§4.6)",
                remarks={
                    "class": f"{CLASHES} With five times the cycles the gap becomes smaller, and does not close.",
                    "evening": CLASHES,
                },
            ),
        ),
        {"class": CLASS, "evening": EVENING},
        reference=PAPER,
    ),
    "caching": Experiment(
        "What does it save to remember activations?",
        _caching,
        (
            Claim(
                "Multiply-adds of a cycle?",
                "cached: 3.0 times fewer on MNIST, 3.5 on Depth-10 (§4.7)",
                MULTIPLY_ADDS,
                remarks={"class": "Depth-10 is counted, not run: 3.5 (tests/test_cost.py)."},
            ),
            Claim(
                "Seconds of a cycle?",
                "",
                SECONDS,
                remarks={
                    "class": "All decide alike but for rounding: tests prove it in float64. In float32 near-ties fall "
                    "otherwise, and from there on it is another run. With new images for each weight, as here, "
                    "incremental saves least."
                },
            ),
        ),
        {"class": replace(CLASS, model="paper_cnn", rso=RSO(1, 50))},
    ),
    "depth": Experiment(
        "Is deeper better?",
        _depth,
        (
            Claim(
                "Does accuracy grow with depth?",
                "yes; Depth-10 on CIFAR-10: 81.8 % after 300 cycles, SGD 82.94 % (§4.4)",
                remarks={
                    "evening": "A few cycles, mini-batches a twentieth of the paper's, whose text gives no accuracy so "
                    "early. The networks are reconstructed, and SGD's settings were not searched for here."
                },
            ),
            Claim(
                "And after three cycles?",
                "it grows with depth",
                _accuracy_after(3),
                tuple(f"{depth}, RSO" for depth in DEPTHS),
            ),
        ),
        {
            "class": replace(CLASS, rso=RSO(2, 250, batch_every="neuron")),
            "evening": Size("cifar10", "depth10", RSO(5, 250, batch_every="neuron"), SGD(10, 100, 0.1)),
            "full": Size("cifar10", "depth10", RSO(500, 5000, weight_decay=1e-4), SGD(100, 3000, 4.0)),
        },
        reference=("paper: Depth-10, CIFAR-10, 300 cycles, 81.8 %", 0.818),
    ),
    "grid": Experiment(
        "Which SGD is the rival? Searched on held-out training images",
        _grid,
        (
            Claim(
                "Best settings of SGD?",
                "batch 5000, rate 0.5 (MNIST); 3000 and 4.0 (CIFAR-10) (§4.5)",
                best_only=True,
                remarks={
                    "class": BY_ACCURACY,
                    "evening": f"{BY_ACCURACY} By updates to 90 % batch 5000 comes first; but accuracy is looked at "
                    "once an epoch, which small mini-batches have many updates in: this grid cannot tell.",
                },
            ),
        ),
        {"class": CLASS, "evening": EVENING},
        partial(held_out, most=20_000),
    ),
    "subspace": Experiment(
        "Is a shadow of the gradient enough?",
        _subspace,
        (
            Claim(
                "Does it help to draw the directions anew at each step?",
                "dense network on MNIST, 250 directions of 101,770: fixed 80 %, re-drawn 93.9 %, SGD 98.27 % "
                "(Gressmann 2020, Table 1)",
                remarks={
                    "class": "Of 2,410 weights, so 250 directions are one for 10 weights, in the paper one for 407. "
                    "Each way has its own best rate."
                },
            ),
            Claim(
                "Do more directions help?",
                "yes (Gressmann 2020)",
                labels=("10 re-drawn", "50 re-drawn", "250 re-drawn", "SGD"),
            ),
            Claim(
                "Do directions for each layer help?",
                "in accuracy and in time (Gressmann 2020)",
                labels=("50 fixed", "50 fixed in each layer", "50 re-drawn", "50 re-drawn in each layer"),
                remarks={
                    "class": "In accuracy they do, most where directions are fixed. In time they do not: the "
                    "multiply-adds are the same, and of the seconds, in the next row, there are no fewer."
                },
            ),
            Claim(
                "Seconds of an epoch?",
                "",
                SECONDS,
                ("SGD", "50 re-drawn", "50 re-drawn in each layer", "250 re-drawn"),
                remarks={"class": BUSY},
            ),
        ),
        {"class": RELATIVES_CLASS, "evening": RELATIVES_EVENING},
    ),
    "directions": Experiment(
        "Which directions?",
        _directions,
        (
            Claim(
                "Does their distribution matter?",
                "Gaussian ones are better than uniform and Bernoulli ones (Gressmann 2020, Table 2)",
                remarks={
                    "class": "It does not show where each direction has length 1. *Short* ones have length √(1/3), as "
                    "the uniform ones of the paper's public code, and so a third of the step. All at the same rate, "
                    "the best for Gaussian ones; for the others none was searched for."
                },
            ),
        ),
        {"class": RELATIVES_CLASS},
    ),
    "switch": Experiment(
        "Can one change the method on the way?",
        _switch,
        (
            Claim(
                "Does a change of method do harm?",
                "RBD and SGD can take turns at any point without divergence (Gressmann 2020)",
                remarks={"class": "Changed after 5, 10 and 15 of 20 epochs, and every 5."},
            ),
            Claim("How far does the accuracy fall from one epoch to the next, at most?", "", FALL),
        ),
        {"class": RELATIVES_CLASS},
    ),
    "evolution": Experiment(
        "How far does one get with losses alone?",
        _evolution,
        (
            Claim(
                "How good after some 30,000 losses? (RBD and SGD: after 900 gradients)",
                "the network level is close to genetic algorithms, and slower than RSO (RSO §4.2)",
                remarks={
                    "class": "Mini-batches: of 32 in 682 epochs (NES) and in 20 (RBD, SGD), of 128 in 55 (ES), of 500 "
                    "in 150 (GA) and in 4 cycles (RSO, both levels)."
                },
            ),
            Claim(
                "At equal images: after 20 epochs?",
                "250 samples or directions, dense network on MNIST: NES 22.5 %, RBD 93.9 %, SGD 98.27 % "
                "(Gressmann 2020, Table 1)",
                _accuracy_after(20),
                ("NES", "RBD", "SGD"),
                remarks={"class": "NES has then made three updates, RBD and SGD 880 each."},
            ),
            Claim(
                "At equal updates: after 44, an epoch of RBD and SGD?",
                "",
                _accuracy_at(44),
                ("NES", "RBD", "SGD"),
            ),
        ),
        {"class": RELATIVES_CLASS},
        against="evaluations",
    ),
    "masks": Experiment(
        "How many weights does a network need, and who chooses them?",
        _masks,
        (
            Claim(
                "Do learned masks help?",
                "surprisingly competitive with dense training (Lenc 2019, abstract)",
                remarks={
                    "class": "Each way has its own best learning rate, and at 2 % the best mask rate. Of 10 % a fixed "
                    "choice is as good; of 2 % learned ones are 6 to 8 points ahead. A step costs one pass with fixed "
                    "masks, four with learned ones, and sixteen for the mask only; but in as many passes, 60 epochs, "
                    "fixed ones gain a point at most."
                },
            ),
            Claim(
                "How many weights are in use, at most, after any epoch? (the output layer's 320 always)",
                "sparse from the first step on (Lenc 2019, abstract)",
                NONZERO,
                ("dense", "10 %, scores", "5 %, scores", "2 %, scores", "10 %, mask only"),
            ),
        ),
        {
            "class": replace(RELATIVES_CLASS, sgd=_plain_sgd(15, 32, 0.1, 0.9)),
            "evening": replace(RELATIVES_EVENING, sgd=_plain_sgd(10, 100, 0.1, 0.9)),
        },
    ),
}


def perform(name: str, size: str, seeds: int, folder: Path) -> Iterator[str]:
    """Make the runs of an experiment that its file does not have yet; yields a line about each when it is done.

    Raises ValueError for an unknown name or size, and for a file that is damaged or of other settings.
    """
    experiment, of_size = _find(name, size)
    path = folder / f"{name}_{size}.json"
    ways = experiment.ways(of_size)
    result = _of(path, name, size) if path.exists() else begin(name, size)
    data = experiment.prepare(load(of_size.dataset))
    for seed in range(seeds):
        for number, (label, way) in enumerate(ways.items()):
            old = next((run for run in result["runs"] if (run["method"], run["seed"]) == (label, seed)), None)
            if old is not None and is_done(old, way):
                continue
            checkpoint = folder / "checkpoints" / f"{name}_{size}_{number}_{seed}"
            if old is not None and not checkpoint.exists():
                yield f"{label}, seed {seed}: begun anew, for want of a checkpoint of cycle {len(old['cycles'])}"
            before = _stretches(old) if old is not None and checkpoint.exists() else []
            run: Run = {}
            for run, model in _train(way, of_size, data, seed, label, checkpoint):
                if old is not None and len(run["cycles"]) < len(old["cycles"]) and not run["failed"]:
                    continue  # what is recorded stays until there is more
                run["before"] = [part for part in before if _made_by(part) != _made_by(run)]
                _put(run, result, path)
                if size in experiment.weights_of and seed == 0:
                    save_weights(model, path.with_suffix(".pt"))
            shutil.rmtree(checkpoint, ignore_errors=True)
            yield f"{label}, seed {seed}: {_told(run)}"


def _stretches(run: Run) -> list[dict[str, Any]]:
    """The parts of a run that goes on: what each was made by, and how many cycles there were at its end."""
    made_by = {key: run[key] for key in ("machine", "versions")}
    return [*run.get("before", []), {"cycles": len(run["cycles"]), **made_by}]


def _made_by(part: dict[str, Any]) -> tuple[Any, Any]:
    return part.get("machine"), part.get("versions")


def trained() -> nn.Module:
    """The paper's network with the weights of the recorded mnist run, in eval mode; reads MNIST as `load` gives it."""
    model = paper_cnn()
    model.load_state_dict(torch.load(RESULTS / "mnist_evening.pt", weights_only=True))
    return model.eval()


def _find(name: str, size: str) -> tuple[Experiment, Size]:
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment {name!r} is not known: choose from {', '.join(EXPERIMENTS)}")
    sizes = EXPERIMENTS[name].sizes
    if size not in sizes:
        raise ValueError(f"experiment {name!r} has no size {size!r}: choose from {', '.join(sizes)}")
    return EXPERIMENTS[name], sizes[size]


def _train(
    way: Way, size: Size, data: Data, seed: int, label: str, checkpoint: Path
) -> Iterator[tuple[Run, nn.Module]]:
    """Train, and yield the run so far after each cycle, with the network."""
    model = build(way.model or size.model, data, seed)
    with torch.no_grad():
        weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        for weight in weights:
            weight.mul_(way.scale)
    start = [weight.detach().clone() for weight in weights]
    run: Run = {"method": label, "seed": seed, "seconds": 0.0, "cycles": [], "failed": ""}
    try:
        for stage, method in enumerate(way.stages):
            earlier: list[dict[str, Any]] = run["cycles"]
            folder = checkpoint / str(stage)
            kept: dict[str, Any] = {"checkpoint": folder, "resume": any(folder.glob("*.pt"))}
            stage_seed = seed + 1000 * stage  # other mini-batches
            for history in histories(model, data, method, seed=stage_seed, evaluator=way.evaluator, **kept):
                cycles = [*earlier, *(_following(earlier, record) for record in history.cycles)]
                run |= {"seconds": cycles[-1]["seconds"], "cycles": cycles, "moved": moved(start, weights)}
                run |= {"versions": history.versions, "machine": history.machine}
                yield run, model
    except FloatingPointError as error:  # an answer, too
        run["failed"] = str(error)
        yield run, model


def moved(start: Sequence[Tensor], end: Sequence[Tensor]) -> float:
    """How far weights are from where they were, as a share of how far they were from zero."""
    before, after = (torch.cat([w.detach().double().cpu().flatten() for w in weights]) for weights in (start, end))
    return float((after - before).norm() / before.norm())


def is_done(run: Run, way: Way) -> bool:
    """Whether a run has all its cycles, or cannot go on."""
    return bool(run["failed"]) or len(run["cycles"]) == way.cycles


def _told(run: Run) -> str:
    if run["failed"]:
        return run["failed"]
    return f"{_accuracy(run):.2%} after {run['seconds']:.1f} s"


def _following(earlier: list[dict[str, Any]], record: Record) -> dict[str, Any]:
    """A record as it is stored; what is counted goes on from the earlier records."""
    stored = {key: value for key, value in asdict(record).items() if key != "layer"}
    counted = ("cycle", "updates", "evaluations", "multiply_adds", "seconds") if earlier else ()
    return stored | {key: earlier[-1][key] + stored[key] for key in counted}


LATER = [("sigma_floor", 0.0)]  # settings younger than some recorded runs, which were made as with these values


def begin(name: str, size: str) -> dict[str, Any]:
    """An experiment's result without runs."""
    experiment, of_size = _find(name, size)
    ways = {
        label: {
            **_settings_of(way.method),
            "model": way.model or of_size.model,
            "scale_of_weights": way.scale,
            "evaluator": way.evaluator,
            **({"before": list(map(_settings_of, way.before))} if way.before else {}),
        }
        for label, way in experiment.ways(of_size).items()
    }
    return {
        "command": f"python -m rso_lab experiment {name} --size {size}",
        "seeds": [],
        "settings": {"experiment": name, "size": size, "data": of_size.dataset, "ways": ways},
        "versions": versions(),
        "machine": machine(torch.device("cpu")),
        "seconds": 0.0,
        "runs": [],
    }


def _settings_of(method: Method) -> dict[str, Any]:
    return {"method": type(method).__name__, **asdict(method)}


def _put(run: Run, result: dict[str, Any], path: Path) -> None:
    """Put a run among the others and write the file, whole or not at all."""
    others = [old for old in result["runs"] if (old["method"], old["seed"]) != (run["method"], run["seed"])]
    result["runs"] = [*others, dict(run)]
    result["seeds"] = sorted({run["seed"] for run in result["runs"]})
    command = begin(result["settings"]["experiment"], result["settings"]["size"])["command"]
    seeds = len(result["seeds"])
    result["command"] = command if seeds == SEEDS else f"{command} --seeds {seeds}"
    result["seconds"] = sum(run["seconds"] for run in result["runs"])
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _of(path: Path, name: str, size: str) -> dict[str, Any]:
    """The result in a file. Raises ValueError where it is another experiment's, or one of other settings."""
    result = read(path)
    wanted = json.loads(json.dumps(begin(name, size)["settings"]))
    older = {label: {k: v for k, v in way.items() if (k, v) not in LATER} for label, way in wanted["ways"].items()}
    if result["settings"] not in (wanted, wanted | {"ways": older}):
        raise ValueError(f"{path} was made with other settings: move it away to begin anew")
    return result


def read(path: str | os.PathLike) -> dict[str, Any]:
    """An experiment's result. Raises ValueError, naming the file, where it is none."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        for run in result["runs"]:
            if not {"seed", "seconds", "failed"} <= run.keys() or not isinstance(run["method"], str):
                raise ValueError("a run without method or seed")
            if not run["failed"] and not isinstance(run["cycles"][-1]["test_accuracy"], float):
                raise ValueError("a run without accuracy")
        result["settings"]["experiment"], result["settings"]["ways"], result["command"]
        if not is_number(result["seconds"]) or not isinstance(result["seeds"], list) or not result["runs"]:
            raise ValueError("no seconds, seeds or runs")
        curves(result)
        return result
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not an experiment's result, or damaged ({type(error).__name__}: {error})"
        ) from None


def results(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, size and result of each experiment that has one in a folder. Raises ValueError for a damaged one."""
    for name, experiment in EXPERIMENTS.items():
        for size in experiment.sizes:
            path = folder / f"{name}_{size}.json"
            if path.exists():
                yield name, size, _of(path, name, size)


def best(result: dict[str, Any]) -> str:
    """The way with the highest mean accuracy; a failed run counts as none right."""
    accuracies: dict[str, list[float]] = {}
    for run in result["runs"]:
        accuracies.setdefault(run["method"], []).append(0.0 if run["failed"] else _accuracy(run))
    return max(accuracies, key=lambda label: statistics.mean(accuracies[label]))


def curves(result: dict[str, Any]) -> dict[str, list[History]]:
    """The runs of each way, as histories."""
    found: dict[str, list[History]] = {}
    for run in result["runs"]:
        settings = {**result["settings"]["ways"][run["method"]], "data": result["settings"]["data"]}
        records = records_of(run["cycles"])
        if records:
            history = History(settings, run["seed"], run["versions"], run["machine"], result["command"], records)
            found.setdefault(run["method"], []).append(history)
    return found
