"""The paper's claims as named experiments: each a few ways to train, side by side, over several seeds, recorded.

Every run has the same network, data and seeds, and differs in what its name says. Runs are stored one by one, so that
an interrupted experiment goes on with those that are missing.
"""

import json
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rso_lab.data import load
from rso_lab.history import History, machine, replacing, versions
from rso_lab.models import build
from rso_lab.rso import RSO
from rso_lab.train import fit

Methods = dict[str, RSO]
SEEDS = 3  # that an experiment has unless told


@dataclass(frozen=True)
class Size:
    """What is trained, on what, and the search that all runs vary."""

    dataset: str
    model: str
    base: RSO


SIZES = {"class": Size("digits", "two_conv", RSO(4, 500, batch_every="neuron"))}  # minutes for each experiment


@dataclass(frozen=True)
class Experiment:
    """A question, what the paper says to it, and the ways that are compared; the first is the paper's default."""

    question: str
    paper: str
    methods: Callable[[RSO], Methods]


def _levels(base: RSO) -> Methods:
    # Above the weight level each proposal has a mini-batch of its own, and the whole network to run.
    base = replace(base, batch_every="weight", batch_size=100, cycles=2)
    return {level: replace(base, level=level) for level in ("weight", "layer", "network")}


def _order(base: RSO) -> Methods:
    return {
        f"{order} first, {layer_order.partition('_')[0]} layer first": replace(
            base, order=order, layer_order=layer_order
        )
        for order in ("neuron", "input")
        for layer_order in ("output_first", "input_first")
    }


def _distribution(base: RSO) -> Methods:
    return {name: replace(base, distribution=name) for name in ("gaussian", "uniform", "template")}


def _sigma(base: RSO) -> Methods:
    return {f"{scale} sigma_d": replace(base, sigma_scale=scale) for scale in (1.0, 0.1, 0.3, 3.0, 10.0)}


def _annealing(base: RSO) -> Methods:
    return {"to a tenth": base, "none": replace(base, sigma_end=1.0)}


def _opposite(base: RSO) -> Methods:
    return {"w + d and w - d": base, "w + d only": replace(base, opposite=False)}


def _hold(base: RSO) -> Methods:
    return {f"for a {unit}": replace(base, batch_every=unit) for unit in ("weight", "neuron", "layer")}


def _parallel(base: RSO) -> Methods:
    return {
        "one by one": base,
        "neurons apart": replace(base, parallel="neuron"),
        "weights apart": replace(base, parallel="layer"),
    }


EXPERIMENTS = {
    "levels": Experiment(
        "Move one weight, a layer or the whole network at a time?",
        "weight, by far; then layer, network (§4.2)",
        _levels,
    ),
    "order": Experiment(
        "Does the order of the search matter?", "hardly: 99.06 and 99.12 % with neuron and input first (§4.3)", _order
    ),
    "distribution": Experiment(
        "Which distribution are changes drawn from?", "uniform and template would also be effective (§3)", _distribution
    ),
    "sigma": Experiment("How large are the first changes?", "0.1 to 10 sigma_d: within 0.15 points (§4.1)", _sigma),
    "annealing": Experiment(
        "Do changes have to become smaller?", "its changes do, to a tenth of sigma_d (§4.1)", _annealing
    ),
    "opposite": Experiment(
        "Is the opposite direction worth a third evaluation?", "it often leads to a better choice (§3)", _opposite
    ),
    "hold": Experiment("How long may a mini-batch be held?", "a new one for each weight (§3)", _hold),
    "parallel": Experiment(
        "What does it cost to search in parallel?", "MNIST: almost nothing after 50 cycles (§4.6)", _parallel
    ),
}


def perform(name: str, size: str, seeds: int, folder: Path) -> Iterator[str]:
    """Make the runs of an experiment that its file does not have yet; yields a line about each when it is stored.

    Raises ValueError for an unknown name or size, and for a file that is damaged or of other settings.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment {name!r} is not known: choose from {', '.join(EXPERIMENTS)}")
    if size not in SIZES:
        raise ValueError(f"size {size!r} is not known: choose from {', '.join(SIZES)}")
    path = folder / f"{name}_{size}.json"
    of_size = SIZES[size]
    methods = EXPERIMENTS[name].methods(of_size.base)
    result = _of(path, name, size) if path.exists() else begin(name, size)
    data = load(of_size.dataset)
    for seed in range(seeds):
        for label, method in methods.items():
            if any((run["method"], run["seed"]) == (label, seed) for run in result["runs"]):
                continue
            history = fit(build(of_size.model, data, seed), data, method, seed=seed)
            _add(result, label, history, path)
            last = history.cycles[-1]
            yield f"{label}, seed {seed}: {last.test_accuracy:.2%} after {last.seconds:.1f} s"


def _of(path: Path, name: str, size: str) -> dict[str, Any]:
    """The result in a file. Raises ValueError where it is another experiment's, or one of other settings."""
    result = read(path)
    if result["settings"] != begin(name, size)["settings"]:
        raise ValueError(f"{path} was made with other settings: move it away to begin anew")
    return result


def begin(name: str, size: str) -> dict[str, Any]:
    """An experiment's result without runs."""
    methods = EXPERIMENTS[name].methods(SIZES[size].base)
    settings = {
        "experiment": name,
        "size": size,
        "data": SIZES[size].dataset,
        "model": SIZES[size].model,
        "methods": {label: {"method": type(method).__name__, **asdict(method)} for label, method in methods.items()},
    }
    return {
        "command": f"python -m rso_lab experiment {name} --size {size}",
        "seeds": [],
        "settings": settings,
        "versions": versions(),
        "machine": machine(torch.device("cpu")),
        "seconds": 0.0,
        "runs": [],
    }


def _add(result: dict[str, Any], label: str, history: History, path: Path) -> None:
    """Put a run among the others and write the file, whole or not at all."""
    cycles = [{key: value for key, value in asdict(record).items() if key != "layer"} for record in history.cycles]
    run = {"method": label, "seed": history.seed, "seconds": cycles[-1]["seconds"], "cycles": cycles}
    result["runs"].append({**run, "versions": history.versions, "machine": history.machine})
    result["seeds"] = sorted({run["seed"] for run in result["runs"]})
    command = begin(result["settings"]["experiment"], result["settings"]["size"])["command"]
    seeds = len(result["seeds"])
    result["command"] = command if seeds == SEEDS else f"{command} --seeds {seeds}"
    result["seconds"] = sum(run["seconds"] for run in result["runs"])
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def read(path: str | os.PathLike) -> dict[str, Any]:
    """An experiment's result. Raises ValueError, naming the file, where it is none."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        for run in result["runs"]:
            if (
                not {"seed", "seconds"} <= run.keys()
                or not isinstance(run["method"], str)
                or not isinstance(run["cycles"][-1]["test_accuracy"], float)
            ):
                raise ValueError("a run without method or accuracy")
        result["settings"]["experiment"], result["command"], result["seeds"], result["machine"]
        return result
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ValueError(
            f"{path} is not an experiment's result, or damaged ({type(error).__name__}: {error})"
        ) from None


def report(folder: Path) -> str:
    """All results in a folder as one table in Markdown: mean accuracy of the last cycle, and its range over seeds."""
    lines = ["| experiment | paper | measured | on | command |", "|---|---|---|---|---|"]
    for name, experiment in EXPERIMENTS.items():
        for size in SIZES:
            path = folder / f"{name}_{size}.json"
            if not path.exists():
                continue
            result = _of(path, name, size)
            of_size = SIZES[size]
            measured = "<br>".join(f"{label}: {_summary(result, label)}" for label in result["settings"]["methods"])
            cycles = next(iter(experiment.methods(of_size.base).values())).cycles
            on = f"{of_size.dataset}, {of_size.model}, {_count(cycles, 'cycle')}"
            lines.append(f"| {experiment.question} | {experiment.paper} | {measured} | {on} | `{result['command']}` |")
    if len(lines) == 2:
        raise ValueError(f"{folder} has no results of experiments: python -m rso_lab experiments lists what can be run")
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _summary(result: dict[str, Any], label: str) -> str:
    shares = [run["cycles"][-1]["test_accuracy"] for run in result["runs"] if run["method"] == label]
    if not shares:
        return "not run yet"
    spread = f"{min(shares):.1%} to {max(shares):.1%}, {_count(len(shares), 'seed')}"
    return f"{statistics.mean(shares):.1%} ({spread})"
