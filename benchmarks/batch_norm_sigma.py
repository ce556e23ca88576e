"""Which sigma for gamma and beta: accuracy on held-out training images of digits, for each of several.

The paper gives none. Nothing of the test set is looked at. Writes results/batch_norm_sigma.json.

    python benchmarks/batch_norm_sigma.py
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

import rso_lab as rso
from rso_lab.history import machine, versions
from rso_lab.train import Method

SIGMAS = (3.0, 1.0, 0.3, 0.1, 0.03)
SEEDS = (0, 1, 2)
HELD_OUT = 360
CYCLES = {"depth3": 5, "paper_cnn": 1}  # a cycle of the second takes ten times as long
BATCH_SIZE = 250


def main() -> None:
    """Run every sigma with every seed, print a table and write the result."""
    methods = {
        (name, sigma): rso.RSO(CYCLES[name], BATCH_SIZE, batch_norm_sigma=sigma) for name in CYCLES for sigma in SIGMAS
    }
    compare("batch_norm_sigma", [(name, f"sigma {sigma}", method) for (name, sigma), method in methods.items()])


def compare(name: str, ways: Sequence[tuple[str, str, Method]]) -> None:
    """Train each network, named first, by each method, named second, and write results/<name>.json.

    Where `sigma_floor` is set, the last layer begins with zeros.
    """
    torch.set_num_threads(1)
    digits = rso.load("digits")
    x, y = digits.x_train, digits.y_train
    data = rso.Data.from_arrays(x[:-HELD_OUT], y[:-HELD_OUT], x[-HELD_OUT:], y[-HELD_OUT:], name="digits, held out")
    begun = time.perf_counter()
    records = []
    for network, label, method in ways:
        accuracies = []
        for seed in SEEDS:
            model = rso.models.build(network, data, seed=seed)
            if isinstance(method, rso.RSO) and method.sigma_floor:
                nn.init.zeros_(list(model.modules())[-1].weight)
            accuracies.append(held_out_accuracy(model, data, method, seed))
            records.append(
                {"way": label, "settings": asdict(method), "model": network, "seed": seed, "accuracy": accuracies[-1]}
            )
        mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
        print(f"{network:9}  {label}  accuracy {mean:.3f} +- {spread:.3f}", flush=True)
    result = {
        "command": f"python benchmarks/{name}.py",
        "seeds": list(SEEDS),
        "settings": {"data": data.name, "held_out": HELD_OUT},
        "versions": versions(),
        "machine": machine(torch.device("cpu")),
        "seconds": round(time.perf_counter() - begun, 1),
        "records": records,
    }
    path = Path(__file__).parent.parent / "results" / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def held_out_accuracy(model: nn.Module, data: rso.Data, method: Method, seed: int) -> float:
    """At the end; 0 where training has diverged."""
    try:
        accuracy = rso.fit(model, data, method, seed=seed).cycles[-1].test_accuracy
    except FloatingPointError:
        return 0.0
    assert accuracy is not None
    return accuracy


if __name__ == "__main__":
    main()
