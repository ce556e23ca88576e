"""Plain against cached, side by side in one run: milliseconds per proposal and layer, and what a cycle takes.

    python benchmarks/evaluators.py --dataset mnist --model one_conv --batch-size 1024 --steps 20

A cycle's time is extrapolated: for each layer, the mean time of `steps` proposals times its number of weights, plus
what the layer costs once (the activation cache). Prints a table and then one line of JSON.
"""

import argparse
import itertools
import json
import time

import torch
import torch.nn.functional as F

import rso_lab as rso
from rso_lab.data import NAMES
from rso_lab.graph import Layer, Network
from rso_lab.history import machine, versions
from rso_lab.rso import CachedEvaluator, Evaluator, PlainEvaluator, draw_batch, initial_sigmas, propose
from rso_lab.visits import layer_sequence, weight_visits


@torch.no_grad()
def time_layer(
    network: Network, data: rso.Data, evaluator: Evaluator, layer: Layer, settings: rso.RSO, steps: int
) -> tuple[float, float]:
    """Seconds to begin the layer's sweep, and seconds per proposal with a mini-batch of its own."""
    generator = torch.Generator().manual_seed(0)
    sigmas = initial_sigmas(network, settings)
    parameters = dict(network.module.named_parameters())
    begun = time.perf_counter()
    evaluator.begin_sweep(layer)
    sweep = time.perf_counter() - begun
    visits = list(itertools.islice(weight_visits(layer.name, layer.parameters, settings.order), steps))
    begun = time.perf_counter()
    for visit in visits:
        evaluator.begin_batch(draw_batch(len(data.x_train), settings.batch_size, generator))
        proposal = propose(visit, parameters, sigmas, 1.0, settings.distribution, generator)
        evaluator.losses(proposal, settings.opposite)
    return sweep, (time.perf_counter() - begun) / len(visits)


def main() -> None:
    """Measure every layer with both evaluators."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=NAMES, default="digits")
    parser.add_argument("--model", choices=rso.models.MODELS, default="one_conv")
    parser.add_argument("--batch-size", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20, help="proposals measured in each layer")
    options = parser.parse_args()
    data = rso.load(options.dataset)
    network = Network(rso.models.build(options.model, data), data.x_train[:2])
    network.refresh_statistics(data.x_train)
    settings = rso.RSO(1, options.batch_size)
    cycle = dict.fromkeys(("plain", "cached"), 0.0)
    print(f"{options.model} on {options.dataset}, batch {options.batch_size}, {options.steps} proposals a layer")
    print(f"{'layer':28} {'weights':>7} {'plain':>9} {'cached':>9}   ms per proposal")
    for layer in layer_sequence(network.layers, "output_first"):
        milliseconds = {}
        for kind in (PlainEvaluator, CachedEvaluator):
            evaluator = kind(network, data, F.cross_entropy)
            sweep, each = time_layer(network, data, evaluator, layer, settings, options.steps)
            cycle[kind.name] += sweep + each * layer.size
            milliseconds[kind.name] = 1000 * each
        print(f"{layer.name:28} {layer.size:7} {milliseconds['plain']:9.2f} {milliseconds['cached']:9.2f}", flush=True)
    print(f"{'a cycle, seconds':28} {'':7} {cycle['plain']:9.1f} {cycle['cached']:9.1f}")
    figures = {"speedup_over_plain": cycle["plain"] / cycle["cached"], "cycle_seconds": cycle, **vars(options)}
    about = {"versions": versions(), "machine": machine(torch.device("cpu"))}
    print(json.dumps({"models": {options.model: figures}, **about}))


if __name__ == "__main__":
    main()
