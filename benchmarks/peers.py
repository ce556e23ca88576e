"""RSO among its peers: test accuracy against CPU seconds on one thread, for seven ways to train the paper's network.

    pip install evotorch                       for snes only; it brings ray with it
    python benchmarks/peers.py --methods all
    python benchmarks/peers.py --methods es,ga --budget 60 --held-out

    rso          Algorithm 1 with a mini-batch held for a neuron, and mini-batches that grow from cycle to cycle
    snes         EvoTorch's separable natural evolution strategy: a population around a centre, which is measured
    es           rso_lab's evolution strategy: Adam on a gradient estimated from a cloud of networks (Salimans 2017)
    ga           rso_lab's genetic algorithm: the best of a generation have children, changed at random (Such 2017)
    differences  Adam on central finite differences, one weight after the other, behind an activation cache
    rbd          rso_lab's random bases descent: the true gradient's shadow on 250 random directions (Gressmann 2020)
    adam         Adam on the true gradient, by backpropagation: what the others do without

All start from the same weights. The time is the process's CPU time on one thread; measuring does not count, and is done
with batch norms that hold the training set's statistics. While training, they use the mini-batch's.

What had to be chosen for the peers (SETTINGS says what) was chosen on the last 5,000 training images, never on the test
set; --held-out measures on these. Each method's curve joins those in --out when it is done; a figure lies beside.
Prints a table, and then one line of JSON.
"""

import argparse
import importlib
import importlib.util
import itertools
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor, nn
from torch.func import replace_all_batch_norm_modules_

import rso_lab as rso
from rso_lab.data import NAMES
from rso_lab.descent import descend
from rso_lab.graph import Network
from rso_lab.history import machine, replacing, versions
from rso_lab.plots import BLUE, GREEN, GREY, ORANGE
from rso_lab.rso import initial_sigmas, one_by_one, search_cycle
from rso_lab.train import EVALUATORS, stepper_for

MARKS = (10, 30, 60, 120, 200, 300, 450, 600)  # CPU seconds at which the accuracy is measured
HELD_OUT = 5000
PURPLE, RED, SKY = "#CC79A7", "#D55E00", "#56B4E9"  # of Okabe & Ito's colours, as those of rso_lab.plots
SETTINGS: dict[str, dict[str, Any]] = {
    # A cycle for each batch size, planned as 16 s and 0.235 s an image, 578 s in all: not tried out, unlike the peers'
    # settings. Others are settings of rso_lab.RSO.
    "rso": {"batch_sizes": (50, 50, 60, 70, 90, 120, 170, 250, 370, 550), "batch_every": "neuron"},
    "snes": {"population": 50, "batch_size": 64, "stdev": 0.05},  # and EvoTorch's defaults
    # Samples, sigma and rate: of (4, 0.03, 0.005), (5, 0.03, 0.01) and (10, 0.05, 0.02) the best on held-out images
    # after 20 to 30 s.
    "es": {"batch_size": 32, "learning_rate": 0.01, "samples": 5, "sigma": 0.03},
    # Sigma: of 0.01, 0.03 and 0.1, the best on held-out images after 10 to 30 s.
    "ga": {"batch_size": 64, "population": 50, "parents": 10, "sigma": 0.03},
    # epsilon: of 0.001 to 0.03, nearest to the true gradient. The others, of 8 to 32 and 0.01 to 0.03: the best on
    # held-out images with the true gradient in place of the differences, for as many steps as fit into 600 s.
    "differences": {"batch_size": 16, "learning_rate": 0.02, "epsilon": 0.003},
    # Rate: of 0.5, 2, 8 and 32, the best on held-out images after 20 s.
    "rbd": {"batch_size": 32, "learning_rate": 8.0},
    "adam": {"batch_size": 128, "learning_rate": 0.001},
}
# The colour and the marker of each method's line.
LOOKS = dict(zip(SETTINGS, zip((BLUE, ORANGE, SKY, RED, PURPLE, GREEN, GREY), "osv^dPX", strict=True), strict=True))
WITH_GRADIENT = {"rbd", "adam"}
FOREVER = 10**6  # epochs: the budget ends them

# Called with (model, data, seed, **settings): trains in place, and yields every so often how many steps it has done.
Method = Callable[..., Iterator[int]]


def train_rso(model: nn.Module, data: rso.Data, seed: int, batch_sizes: Sequence[int], **others: Any) -> Iterator[int]:
    """Algorithm 1, with a mini-batch size for each cycle. Yields after each weight; ends after its cycles.

    Sigma is annealed from the first cycle to the last, however far the budget goes.
    """
    settings = rso.RSO(len(batch_sizes), 1, **others)
    network = Network(model, data.x_train[:2])
    sigmas = initial_sigmas(network, settings)
    evaluator = EVALUATORS["auto"](network, data, F.cross_entropy)
    generator = torch.Generator().manual_seed(seed)
    visited = itertools.count(1)
    for cycle, batch_size in enumerate(batch_sizes, 1):
        settings = replace(settings, batch_size=min(batch_size, len(data.x_train)))
        for _ in search_cycle(cycle, sigmas, network, data, settings, evaluator, generator, one_by_one):
            yield next(visited)


def train_snes(
    model: nn.Module, data: rso.Data, seed: int, population: int, batch_size: int, stdev: float
) -> Iterator[int]:
    """One generation after the other. All of its members share a mini-batch, and the model holds the centre.

    One forward pass a member: torch.func.vmap over all or some of them took 1.6 to 5 times as long on one thread.
    """
    evotorch = importlib.import_module("evotorch")  # before the first generation: importing costs no budget
    algorithms = importlib.import_module("evotorch.algorithms")

    def generations() -> Iterator[int]:
        batches = draw_batches(data, batch_size, seed)

        def losses(members: Tensor) -> Tensor:  # (population, weights) -> (population,)
            x, y = next(batches)
            return torch.stack([loss_at(weights, model, x, y) for weights in members])

        centre = get_weights(model)
        problem = evotorch.Problem(
            "min", losses, solution_length=len(centre), vectorized=True, seed=seed, store_solution_stats=False
        )
        searcher = algorithms.SNES(problem, popsize=population, stdev_init=stdev, center_init=centre)
        for generation in itertools.count(1):
            searcher.step()
            set_weights(model, searcher.status["center"])
            yield generation

    return generations()


def train_relative(kind: type, model: nn.Module, data: rso.Data, seed: int, **settings: Any) -> Iterator[int]:
    """A method of rso_lab.relatives. Yields after each mini-batch, which is a step."""
    method = kind(FOREVER, **settings)
    network = Network(model, data.x_train[:2])
    stepper = stepper_for(method, network, data, seed, F.cross_entropy)
    yield from descend(network, data, method, stepper, torch.Generator().manual_seed(seed))


@torch.no_grad()
def train_differences(
    model: nn.Sequential, data: rso.Data, seed: int, batch_size: int, learning_rate: float, epsilon: float
) -> Iterator[int]:
    """Two forward passes a weight, from its layer on: what enters the layer is computed once. Yields after each weight.

    From the output to the input, each layer with a mini-batch of its own, and with its step as soon as its gradient is
    complete: on held-out images this was better than one step of all layers together.
    """
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    batches = draw_batches(data, batch_size, seed)
    visited = itertools.count(1)
    for i in itertools.cycle(reversed(range(len(model)))):
        parameters = list(model[i].parameters())
        if not parameters:
            continue
        x, y = next(batches)
        entering, later = model[:i](x), model[i:]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
            for index in np.ndindex(parameter.shape):
                weight, before, losses = parameter[index], parameter[index].clone(), []
                for value in (before + epsilon, before - epsilon):
                    weight.copy_(value)
                    losses.append(F.cross_entropy(later(entering), y))
                weight.copy_(before)
                parameter.grad[index] = (losses[0] - losses[1]) / (2 * epsilon)
                yield next(visited)
        optimizer.step()
        optimizer.zero_grad()  # None: only the layer that has a gradient takes a step


def train_adam(model: nn.Module, data: rso.Data, seed: int, batch_size: int, learning_rate: float) -> Iterator[int]:
    """Backpropagation."""
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    for step, (x, y) in enumerate(draw_batches(data, batch_size, seed), 1):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        yield step


METHODS: dict[str, Method] = {
    "rso": train_rso,
    "snes": train_snes,
    "es": partial(train_relative, rso.ES),
    "ga": partial(train_relative, rso.GA),
    "differences": train_differences,
    "rbd": partial(train_relative, rso.Subspace),
    "adam": train_adam,
}


def draw_batches(data: rso.Data, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Mini-batches without end, each training image once an epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(data.x_train), generator=generator).split(batch_size):
            yield data.x_train[rows], data.y_train[rows]


def get_weights(model: nn.Module) -> Tensor:
    """A copy of all weights as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@torch.no_grad()
def set_weights(model: nn.Module, weights: Tensor) -> None:
    """Give the model the weights of this vector."""
    parameters = list(model.parameters())
    for parameter, values in zip(parameters, weights.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(values.view(parameter.shape))


@torch.no_grad()
def loss_at(weights: Tensor, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The mini-batch's loss with these weights, which the model then holds."""
    set_weights(model, weights)
    return F.cross_entropy(model(x), y)


@torch.no_grad()
def measure(model: nn.Module, data: rso.Data) -> float:
    """Test accuracy of a copy of the model, its batch norms on the training set's statistics."""
    copy = rso.models.paper_cnn(in_channels=data.x_train.shape[1], classes=data.classes)
    for parameter, ours in zip(copy.parameters(), model.parameters(), strict=True):
        parameter.copy_(ours)
    network = Network(copy.to(memory_format=torch.channels_last), data.x_train[:2])
    network.refresh_statistics(data.x_train)
    return int((network.outputs(data.x_test).argmax(dim=1) == data.y_test).sum()) / len(data.y_test)


def follow(steps: Iterator[int], model: nn.Module, data: rso.Data, marks: list[int]) -> list[dict[str, float]]:
    """Take steps until the last mark, or as long as there are any: at each mark, how far it is and what it has cost."""
    curve = []
    spent, done, latest = 0.0, 0, 0
    for mark in marks:
        resumed = time.process_time()
        while latest >= 0 and spent + time.process_time() - resumed < mark:
            latest = next(steps, -1)
            done = max(done, latest)
        spent += time.process_time() - resumed
        curve.append({"mark": mark, "seconds": spent, "steps": done, "test_accuracy": measure(model, data)})
        print(f"{spent:8.1f} s  {done:8} steps  accuracy {curve[-1]['test_accuracy']:.4f}", flush=True)
        if latest < 0:
            break
    return curve


def run(name: str, data: rso.Data, seed: int, budget: int) -> dict[str, Any]:
    """Train with one method: its record."""
    begun, made_with = time.perf_counter(), versions()
    model = rso.models.paper_cnn(in_channels=data.x_train.shape[1], classes=data.classes, seed=seed)
    if name in ("snes", "differences", "adam"):  # rso_lab's look after their batch norms themselves
        model = replace_all_batch_norm_modules_(model).to(memory_format=torch.channels_last)
    marks = [mark for mark in MARKS if mark < budget] + [budget]
    steps = METHODS[name](model, data, seed, **SETTINGS[name])
    curve = follow(steps, model, data, marks)
    extra = {package: version(package) for package in ("evotorch", "ray") if name == "snes"}
    return {
        "command": f"python benchmarks/peers.py {shlex.join(sys.argv[1:])}",
        "seed": seed,
        "settings": {"budget": budget, **SETTINGS[name]},
        "versions": made_with | extra,
        "machine": machine(torch.device("cpu")),
        "seconds": round(time.perf_counter() - begun, 1),  # by the clock, with measuring
        "curve": curve,
    }


def store(name: str, record: dict[str, Any], settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Put a method's record among those in the file, and draw them all. Returns what the file then holds."""
    methods = json.loads(path.read_text(encoding="utf-8"))["methods"] if path.exists() else {}
    methods = {key: record if key == name else methods[key] for key in METHODS if key in {name, *methods}}
    records = list(methods.values())
    result = {
        "command": "; ".join(dict.fromkeys(r["command"] for r in records)),
        "seeds": sorted({r["seed"] for r in records}),
        "settings": settings,
        "versions": {key: value for r in records for key, value in r["versions"].items()},
        "machine": "; ".join(dict.fromkeys(r["machine"] for r in records)),
        "seconds": round(sum(r["seconds"] for r in records), 1),
        "methods": methods,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, path.with_suffix(".png"))
    return result


def draw(result: dict[str, Any], path: Path) -> None:
    """The figure: one line a method, hollow and dashed where it uses the gradient."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    for name, record in result["methods"].items():
        colour, marker = LOOKS[name]
        looks: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5, "label": name}
        if name in WITH_GRADIENT:
            looks |= {"linestyle": "--", "markerfacecolor": "white"}
        points = [(point["seconds"], point["test_accuracy"]) for point in record["curve"]]
        ax.plot(*zip(*points, strict=True), **looks)
    ax.axhline(0.1, color=GREY, linewidth=1, linestyle=":", label="guessing")
    ax.set(xscale="log", xlabel="CPU time on one thread (s, log scale)", ylabel="test images right", ylim=(0, 1))
    ax.set_xticks(MARKS, labels=map(str, MARKS))
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(alpha=0.3)
    ax.legend(title="hollow: uses the gradient", title_fontsize="small", loc="best", fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train with each of the methods, store what comes out, and print all that is stored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="all", help=f"all, or some of {','.join(METHODS)}")
    parser.add_argument("--budget", type=int, default=600, help="CPU seconds for each method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dataset", choices=NAMES, default="mnist")
    parser.add_argument("--held-out", action="store_true", help=f"test on the last {HELD_OUT} training images")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "results" / "peers.json")
    options = parser.parse_args()
    names = list(METHODS) if options.methods == "all" else options.methods.split(",")
    if unknown := set(names) - set(METHODS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(METHODS)}")
    if "snes" in names and importlib.util.find_spec("evotorch") is None:
        parser.error("snes is EvoTorch's: python -m pip install evotorch, or leave it out of --methods")
    data = rso.load(options.dataset)
    if options.held_out:
        x, y, name = data.x_train, data.y_train, f"{data.name}, held out"
        data = rso.Data.from_arrays(x[:-HELD_OUT], y[:-HELD_OUT], x[-HELD_OUT:], y[-HELD_OUT:], name=name)
    settings = {"model": "paper_cnn", "data": data.name, "train_images": len(data.x_train)}
    if options.out.exists() and json.loads(options.out.read_text(encoding="utf-8"))["settings"] != settings:
        parser.error(f"{options.out} holds other settings than {settings}: name another with --out")
    torch.set_num_threads(1)
    # glibc hands freed tensors back to the system at once, until it has seen one of this size freed: without it a
    # forward pass takes up to half as long again, or not, by chance.
    torch.empty(31 << 20, dtype=torch.uint8)
    torch.optim.Adam([nn.Parameter(torch.zeros(1))])  # the first one imports torch's compiler, for a second
    for name in names:
        print(f"{name}: {SETTINGS[name]}, seed {options.seed}", flush=True)
        result = store(name, run(name, data, options.seed, options.budget), settings, options.out)
    curves = {
        name: {point["mark"]: point["test_accuracy"] for point in record["curve"]}
        for name, record in result["methods"].items()
    }
    marks = sorted({mark for curve in curves.values() for mark in curve})
    print(f"{'CPU seconds':12}" + "".join(f"{mark:8}" for mark in marks))
    for name, curve in curves.items():
        print(f"{name:12}" + "".join(f"{curve[mark]:8.4f}" if mark in curve else f"{'':8}" for mark in marks))
    print(json.dumps({"test_accuracy": curves, "versions": result["versions"], "machine": result["machine"]}))


if __name__ == "__main__":
    main()
