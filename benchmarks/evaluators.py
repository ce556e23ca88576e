"""Plain, cached and incremental side by side in one run: milliseconds per proposal and layer, and what a cycle takes.

    python benchmarks/evaluators.py --dataset mnist --batch-size 5000     (less than five minutes)
    python benchmarks/evaluators.py --models paper_cnn one_conv           (make bench: digits, half a minute)

A cycle's time is extrapolated: for each layer, the mean time of a few proposals times its number of weights, plus what
its mini-batches and its activation cache cost, the latter scaled to the size of the whole training set. Plain is
measured twice: as one writes it (a module, three forward passes in a row), and tuned (channels last, memory reused).
A multiply-add is counted as two operations; the peak is that of this machine's matrix product, measured in the same
run. Prints a table for each network and then one line of JSON.
"""

import argparse
import ctypes
import itertools
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import rso_lab as rso
from rso_lab.data import NAMES
from rso_lab.graph import Layer, Network
from rso_lab.history import machine, versions
from rso_lab.paths import find_path, multiply_adds
from rso_lab.rso import CachedEvaluator, Evaluator, apply, choose, draw_batch, initial_sigmas, propose
from rso_lab.train import EVALUATORS
from rso_lab.visits import layer_sequence, weight_visits

MODELS = ("paper_cnn", "one_conv", "two_conv", "depth10")
COLUMNS = ("plain", "tuned", "cached", "incremental")


def seconds(work: Callable[[], Any], times: int = 3) -> float:
    """The shortest of a few times, after one that does not count."""
    work()
    measured = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        measured.append(time.perf_counter() - begun)
    return min(measured)


def matrix_peak() -> float:
    """Operations a second of a product of two 2000 x 2000 matrices, on all threads of torch."""
    a, b = torch.randn(2000, 2000), torch.randn(2000, 2000)
    return 2 * 2000**3 / seconds(lambda: a @ b)


def plain_seconds(name: str, data: rso.Data, batch_size: int) -> tuple[float, float]:
    """A proposal's three losses by a module in training mode: as one writes it, and tuned."""
    model = rso.models.build(name, data).train()
    x, y = data.x_train[:batch_size], data.y_train[:batch_size]
    as_written = 3 * seconds(lambda: F.cross_entropy(model(x), y).item(), 1)
    reuse_memory()
    model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return as_written, 3 * seconds(lambda: F.cross_entropy(model(x), y).item(), 2)


def reuse_memory() -> None:
    """Have glibc, where there is one, keep what is freed instead of asking for new pages each time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((-3, 2**30), (-1, 2**31 - 1), (-4, 0)):  # MMAP_THRESHOLD, TRIM_THRESHOLD, MMAP_MAX
            mallopt(option, value)


def row(numbers: dict[str, float]) -> str:
    """A line of the table."""
    return " ".join(f"{numbers[column]:11.2f}" for column in COLUMNS)


def time_layer(
    network: Network, data: rso.Data, evaluator: Evaluator, layer: Layer, settings: rso.RSO, steps: int, rows: int
) -> tuple[float, float, float]:
    """Seconds to begin the layer's sweep, to begin a mini-batch, and per proposal on it, choice and all."""
    generator = torch.Generator().manual_seed(0)
    sigmas = initial_sigmas(network, settings)
    parameters = dict(network.module.named_parameters())
    begun = time.perf_counter()
    evaluator.begin_sweep(layer, rows)
    sweep = time.perf_counter() - begun
    batch = seconds(
        lambda: evaluator.begin_batch(draw_batch(len(data.x_train), settings.batch_size, generator)), times=1
    )
    visits = itertools.islice(weight_visits(layer.name, layer.parameters, settings.order), steps + 1)
    times = []
    for visit in visits:
        begun = time.perf_counter()
        proposal = propose(visit, parameters, sigmas, 1.0, settings.distribution, generator)
        (losses,) = evaluator.losses([proposal], settings.opposite)
        choice = choose(losses)
        apply(proposal, choice)
        evaluator.commit(proposal, choice)
        times.append(time.perf_counter() - begun)
    return sweep, batch, sum(times[1:]) / len(times[1:])  # the first one makes room


@torch.no_grad()
def measure(name: str, options: argparse.Namespace, peak: float) -> dict[str, Any]:
    """Time every layer of a network, print the table, and return the figures of a cycle."""
    whole = len(rso.load(options.dataset).x_train)
    data = rso.load(options.dataset, train_limit=min(whole, 2 * options.batch_size))
    batch_size = min(options.batch_size, len(data.x_train))
    as_written, tuned = plain_seconds(name, data, batch_size)
    network = Network(rso.models.build(name, data), data.x_train[:2])
    network.refresh_statistics(data.x_train)
    settings = rso.RSO(1, batch_size, batch_every=options.batch_every)
    examples = {network.input: data.x_train[:2]}
    examples |= network.propagate(examples, keep=network.nodes[1:])
    first = find_path(network, network.layers[0], examples)
    assert first is not None
    whole_network = sum(multiply_adds(part, None, examples) for part in first.parts)
    cycle = dict.fromkeys(COLUMNS, 0.0)
    counted = dict.fromkeys(("plain", "cached", "incremental"), 0)
    print(f"\n{name} on {options.dataset}, batch {batch_size}, held for one {options.batch_every}")
    print(f"{'layer':24} {'weights':>7} " + " ".join(f"{column:>11}" for column in COLUMNS) + "  ms per proposal")
    for layer in layer_sequence(network.layers, "output_first"):
        path = find_path(network, layer, examples)
        assert path is not None
        cycle["plain"] += as_written * layer.size
        cycle["tuned"] += tuned * layer.size
        milliseconds = {"plain": 1000 * as_written, "tuned": 1000 * tuned}
        groups = {
            "weight": layer.size,
            "neuron": len({v.group for v in weight_visits(layer.name, layer.parameters, settings.order)}),
            "layer": 1,
        }
        for kind in (CachedEvaluator, EVALUATORS["incremental"]):
            evaluator = kind(network, data, F.cross_entropy)
            steps = 1 if kind is CachedEvaluator else options.steps
            rows = (
                groups[options.batch_every] * batch_size * len(data.x_train) // whole
            )  # a cache pays, or not, as there
            sweep, batch, each = time_layer(network, data, evaluator, layer, settings, steps, rows)
            cycle[evaluator.name] += (
                sweep * whole / len(data.x_train) + batch * groups[options.batch_every] + each * layer.size
            )
            milliseconds[evaluator.name] = 1000 * (each + batch * (options.batch_every == "weight"))
        everything = [multiply_adds(part, None, examples) for part in path.parts]
        counted["cached"] += layer.size * sum(everything)
        counted["incremental"] += layer.size * sum(
            multiply_adds(part, path.spans[0], examples) for part in path.parts if part.node in path.affected
        )
        counted["plain"] += layer.size * whole_network
        print(f"{layer.name:24} {layer.size:7} {row(milliseconds)}", flush=True)
    losses = 2 if options.batch_every != "weight" else 3
    fraction = 2 * losses * batch_size * counted["incremental"] / cycle["incremental"] / peak
    print(f"{'a cycle, seconds':32} {row(cycle)}")
    print(
        "multiply-adds, one image and candidate: " + ", ".join(f"{key} {count:.3g}" for key, count in counted.items())
    )
    print(f"{fraction:.0%} of the matrix product's {peak / 1e9:.0f} GFLOP/s")
    return {
        "speedup_over_plain": cycle["plain"] / cycle["incremental"],
        "speedup_over_tuned": cycle["tuned"] / cycle["incremental"],
        "speedup_over_cached": cycle["cached"] / cycle["incremental"],
        "peak_fraction": fraction,
        "cycle_seconds": cycle,
        "multiply_adds": counted,
    }


def main() -> None:
    """Measure the networks that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=NAMES, default="digits", help="depth10 is measured on it, too")
    parser.add_argument("--models", nargs="+", choices=rso.models.MODELS, default=MODELS)
    parser.add_argument("--batch-size", type=int, default=1000)
    parser.add_argument("--batch-every", choices=("weight", "neuron", "layer"), default="neuron")
    parser.add_argument("--steps", type=int, default=4, help="proposals measured in each layer")
    options = parser.parse_args()
    begun = time.perf_counter()
    peak = matrix_peak()
    figures = {name: measure(name, options, peak) for name in options.models}
    about = {
        "command": " ".join(["python benchmarks/evaluators.py", *sys.argv[1:]]),
        "seeds": [0],
        "settings": vars(options),
        "versions": versions(),
        "machine": machine(torch.device("cpu")),
        "seconds": time.perf_counter() - begun,
        "peak_gflops": peak / 1e9,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    print(json.dumps({**about, "models": figures}))


if __name__ == "__main__":
    main()
