"""Prove and measure the search on a GPU, in stages that each end in time and leave their results behind.

    python benchmarks/gpu.py --out gpu                     stages a, b and c on the first GPU, ten minutes in all
    python benchmarks/gpu.py --stages c --out gpu          the paper's run goes on where it was cut off
    python benchmarks/gpu.py --device cpu --small          every stage in small, where there is no GPU

a  The choices are those of the plain evaluator on the CPU: in float64 all of them, in float32 but for near-ties.
   Nothing waits for the host within a group of proposals.
b  Milliseconds a proposal and layer, plain, cached and incremental; seconds a cycle; the share of the card's own matrix
   product.
c  The paper's run: its MNIST network, 50 cycles, 5000 images held for a neuron, with checkpoints.

Each stage prints a table and one line of JSON, and writes the latter into the folder --out.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import rso_lab as rso
from rso_lab.doctor import agrees
from rso_lab.graph import Layer, Network
from rso_lab.history import machine, save_weights, versions
from rso_lab.on_device import OnDeviceEvaluator
from rso_lab.paths import find_path, multiply_adds
from rso_lab.rso import CachedEvaluator, Evaluator, PlainEvaluator, Sweep, apply, choose, initial_sigmas, one_by_one
from rso_lab.visits import layer_sequence, weight_visits

NETWORKS = ("one_conv", "two_conv", "paper_cnn", "depth3", "mlp")


def noise(rows: int, size: int = 12) -> rso.Data:
    """Images (rows, 1, size, size) of noise in float64, ten classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 1, size, size, generator=generator, dtype=torch.float64)
    return rso.Data.from_arrays(x, torch.arange(rows) % 10, x[:20], torch.arange(20) % 10)


def synchronize(device: torch.device) -> None:
    """Wait for what the device has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def agree_in_float64(device: torch.device, steps: int) -> dict[str, int]:
    """How many of the first steps are decided otherwise than by the plain evaluator on the CPU, network by network."""
    different = {}
    for name in NETWORKS:
        choices = []
        for where, evaluator in (("cpu", "plain"), (device, "incremental")):
            data = noise(60).to(torch.device(where))
            model = rso.models.build(name, noise(60)).double()
            method = rso.RSO(1, 40, batch_every="neuron", layer_order="input_first")
            found = rso.steps(model, data, method, seed=1, device=where, evaluator=evaluator)
            choices.append([step.choice for step in itertools.islice(found, steps)])
        different[name] = sum(a != b for a, b in zip(*choices, strict=True))
    return different


@torch.no_grad()
def replay_in_float32(data: rso.Data, device: torch.device, steps: int) -> dict[str, float]:
    """The incremental evaluator on the device beside the plain one on the CPU, whose choices are forced on both.

    Returns how many steps are decided otherwise, how many of them where the best two losses are not within 1e-6, and
    the largest relative difference of losses.
    """
    sides = []
    for where, kind in ((torch.device("cpu"), PlainEvaluator), (device, OnDeviceEvaluator)):
        there = data.to(where)
        network = Network(rso.models.build("paper_cnn", data).to(where), there.x_train[:2])
        sides.append((there, network, kind(network, there, F.cross_entropy)))
    method = rso.RSO(1, min(1000, len(data.x_train) // 2), batch_every="neuron")
    different, wrong, largest = 0, 0, 0.0
    names = [layer.name for layer in layer_sequence(sides[0][1].layers, "output_first")]
    each = -(-steps // len(names))
    for name in names:
        turns, losses = [], []
        for there, network, evaluator in sides:
            layer = next(layer for layer in network.layers if layer.name == name)
            network.refresh_statistics(there.x_train, before=layer.position)
            visits = list(itertools.islice(weight_visits(name, layer.parameters, "neuron"), each))
            sigmas = initial_sigmas(network, method)
            sweep = Sweep(1, layer, visits, sigmas, network.module, len(there.x_train), method, evaluator)
            evaluator.begin_sweep(layer, sweep.rows)
            turns.append([t for group in sweep.groups(torch.Generator().manual_seed(3)) for t in group])
        rows: Tensor | None = None
        for pair in zip(*turns, strict=True):
            if pair[0].rows is not rows:
                rows = pair[0].rows
                for _, _, evaluator in sides:
                    evaluator.begin_batch(rows)
            found = [e.losses([turn.proposal], True)[0] for turn, (_, _, e) in zip(pair, sides, strict=True)]
            plain, fast = (losses.cpu() for losses in found)
            choice = choose(plain)
            least, second = plain.sort().values[:2].tolist()
            otherwise = bool(choose(fast) != choice)
            different += otherwise
            wrong += otherwise and second - least >= 1e-6
            largest = max(largest, float(((fast - plain) / plain).abs().max()))
            for turn, (there, _, evaluator) in zip(pair, sides, strict=True):
                here = choice.to(there.x_train.device)
                apply(turn.proposal, here)
                evaluator.commit(turn.proposal, here)
            losses.append(plain)
    return {"different": different, "wrong": wrong, "largest_relative_difference": largest}


def waits(data: rso.Data, device: torch.device) -> str:
    """What a group of proposals waits for, if anything: only the losses at the end of a sweep may be read."""
    if device.type != "cuda":
        return "not tried: no GPU"
    _, _, sweep = swept(data, device, "conv5", OnDeviceEvaluator, 64)
    turns = next(sweep.groups(torch.Generator().manual_seed(0)))
    for use_graphs in (False, True):
        sweep.evaluator.use_graphs = use_graphs  # type: ignore[attr-defined]
        for _ in range(2):
            for _ in sweep.search(turns, choose):
                pass
        synchronize(device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in sweep.evaluator.search([turn.proposal for turn in turns], True, None, choose):
                pass
        except RuntimeError as error:
            return f"{'graphs' if use_graphs else 'no graphs'}: {error}"
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return "nothing"


@torch.no_grad()
def swept(
    data: rso.Data, device: torch.device, name: str, kind: Callable[..., Evaluator], batch_size: int
) -> tuple[Network, Layer, Sweep]:
    """The paper's network, one of its layers, and a sweep of that layer that has begun."""
    data = data.to(device)
    network = Network(rso.models.build("paper_cnn", data).to(device), data.x_train[:2])
    network.refresh_statistics(data.x_train)
    layer = next(layer for layer in network.layers if layer.name == name)
    method = rso.RSO(1, batch_size, batch_every="neuron")
    visits = list(weight_visits(name, layer.parameters, "neuron"))
    evaluator = kind(network, data, F.cross_entropy)
    sweep = Sweep(
        1, layer, visits, initial_sigmas(network, method), network.module, len(data.x_train), method, evaluator
    )
    evaluator.begin_sweep(layer, sweep.rows)
    return network, layer, sweep


def agreement(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Stage a."""
    data = mnist(options)
    found = {
        "different_in_float64": agree_in_float64(device, options.steps),
        "float32": replay_in_float32(data, device, options.steps),
        "waits_for": waits(data, device),
    }
    for what, value in found.items():
        print(f"{what:24} {value}")
    return found


def matrix_peak(device: torch.device) -> float:
    """Operations a second of a float32 product of two square matrices, without TF32."""
    size = 8192 if device.type == "cuda" else 1000
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    a @ b
    synchronize(device)
    begun = time.perf_counter()
    for _ in range(5):
        a @ b
    synchronize(device)
    return 5 * 2 * size**3 / (time.perf_counter() - begun)


@torch.no_grad()
def time_layer(data: rso.Data, device: torch.device, name: str, kind: Any, batch_size: int, seconds: float) -> Any:
    """Seconds to begin a mini-batch, and per proposal of a layer on it, choice, draws and all."""
    _, _, sweep = swept(data, device, name, kind, batch_size)
    sweep = replace(sweep, visits=sweep.held[0])
    for _ in one_by_one(sweep, torch.Generator().manual_seed(0)):  # makes room, chooses and records
        if kind not in (OnDeviceEvaluator, without_graphs):
            break
    synchronize(device)
    begun = time.perf_counter()
    rows = torch.randperm(len(data.x_train))[:batch_size]
    sweep.evaluator.begin_batch(rows)
    synchronize(device)
    batch = time.perf_counter() - begun
    steps, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        for _ in one_by_one(sweep, torch.Generator().manual_seed(0)):
            steps += 1
            if kind not in (OnDeviceEvaluator, without_graphs) and time.perf_counter() - begun > seconds:
                break
    synchronize(device)
    return batch, (time.perf_counter() - begun) / steps


def speed(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Stage b."""
    data = mnist(options)
    peak = matrix_peak(device)
    whole = Network(rso.models.build("paper_cnn", data), data.x_train[:2])
    examples = {whole.input: data.x_train[:2]}
    examples |= whole.propagate(examples, keep=whole.nodes[1:])
    ways: dict[str, Any] = {"plain": PlainEvaluator, "cached": CachedEvaluator, "no graphs": without_graphs}
    ways["incremental"] = OnDeviceEvaluator
    cycle = dict.fromkeys(ways, 0.0)
    counted = 0
    print(f"{'ms a proposal':10} {'weights':>7} " + " ".join(f"{way:>11}" for way in ways))
    figures = {}
    for layer in layer_sequence(whole.layers, "output_first"):
        path = find_path(whole, layer, examples)
        assert path is not None
        moving = [part for part in path.parts if part.node in path.affected]
        counted += layer.size * sum(multiply_adds(part, path.spans[0], examples) for part in moving)
        groups = len({visit.group for visit in weight_visits(layer.name, layer.parameters, "neuron")})
        each = {}
        for way, kind in ways.items():
            batch, proposal = time_layer(data, device, layer.name, kind, options.batch_size, options.seconds / 80)
            each[way] = 1000 * proposal
            cycle[way] += proposal * layer.size + (batch * groups if way in ("plain", "cached") else 0)
        figures[layer.name] = each
        print(f"{layer.name:13} {layer.size:7} " + " ".join(f"{each[way]:11.3f}" for way in ways), flush=True)
    print(f"{'a cycle, s':21} " + " ".join(f"{cycle[way]:11.1f}" for way in ways))
    fraction = 2 * 2 * options.batch_size * counted / cycle["incremental"] / peak
    print(f"{fraction:.0%} of the matrix product's {peak / 1e12:.1f} TFLOP/s")
    return {
        "milliseconds": figures,
        "cycle_seconds": cycle,
        "speedup_over_plain": cycle["plain"] / cycle["incremental"],
        "peak_tflops": peak / 1e12,
        "peak_fraction": fraction,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
    }


def without_graphs(*arguments: Any) -> Evaluator:
    """The incremental evaluator, each operation started by itself."""
    evaluator = OnDeviceEvaluator(*arguments)
    evaluator.use_graphs = False
    return evaluator


def paper_run(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Stage c. Its record is the run's history, written after each cycle."""
    data = mnist(options)
    model = rso.models.build("paper_cnn", data, seed=options.seed)
    method = rso.RSO(options.cycles, options.batch_size, batch_every=options.batch_every)
    folder = Path(options.out) / f"checkpoint-{options.seed}"
    command = " ".join(["python benchmarks/gpu.py", *sys.argv[1:]])
    begun = time.perf_counter()
    growing: Iterator[rso.History] = rso.histories(
        model, data, method, seed=options.seed, device=device, checkpoint=folder, resume=True, command=command
    )
    try:
        for history in growing:
            history.save(Path(options.out) / f"paper-{options.seed}.json")
            save_weights(model, Path(options.out) / f"paper-{options.seed}.pt")
            last = history.cycles[-1]
            spent = time.perf_counter() - begun
            print(f"cycle {last.cycle:3}  test accuracy {last.test_accuracy:.2%}  {last.seconds:.0f} s", flush=True)
            if spent + spent / max(1, len(history.cycles)) > options.seconds:
                break
    finally:
        growing.close()  # type: ignore[attr-defined]
    return {"cycles": last.cycle, "test_accuracy": last.test_accuracy, "seconds_in_all": last.seconds}


def mnist(options: argparse.Namespace) -> rso.Data:
    """MNIST, or the digits in small."""
    return rso.load("digits") if options.small else rso.load("mnist")


STAGES = {"a": (agreement, 60), "b": (speed, 90), "c": (paper_run, 430)}


def main() -> None:
    """Run the stages that are asked for, each in its time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--stages", default="abc")
    parser.add_argument("--out", default="gpu", help="folder for results and checkpoints")
    parser.add_argument("--batch-size", type=int, default=5000)
    parser.add_argument("--batch-every", choices=("weight", "neuron", "layer"), default="neuron")
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--steps", type=int, default=200, help="compared in stage a, of each network")
    parser.add_argument("--seconds", type=float, help="for each stage (a, b, c: 60, 90, 430)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="digits, mini-batches of 100, one cycle")
    options = parser.parse_args()
    if options.small:
        options.batch_size, options.cycles, options.seconds = 100, 1, options.seconds or 20
    device = torch.device(options.device)
    Path(options.out).mkdir(parents=True, exist_ok=True)
    limits = options.seconds
    for name in options.stages:
        stage, limit = STAGES[name]
        options.seconds = limits or limit
        print(f"\n{name}", flush=True)
        begun = time.perf_counter()
        found = stage(options, device)
        about = {
            "command": " ".join(["python benchmarks/gpu.py", *sys.argv[1:]]),
            "seeds": [options.seed],
            "settings": vars(options),
            "versions": versions(),
            "machine": machine(device),
            "seconds": time.perf_counter() - begun,
            "stage": name,
        }
        line = json.dumps({**about, **found})
        (Path(options.out) / f"stage-{name}.json").write_text(line + "\n", encoding="utf-8")
        print(line, flush=True)
        if name == "a" and not agrees(found):
            sys.exit("the evaluators disagree")


if __name__ == "__main__":
    main()
