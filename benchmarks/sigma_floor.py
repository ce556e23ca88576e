"""Which sigma for a last layer that begins with zeros: accuracy on held-out training images of digits.

For each of several floors, and, as 0, for a last layer that begins as the others do. Nothing of the test set is looked
at. Writes results/sigma_floor.json.

    python benchmarks/sigma_floor.py
"""

import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import torch

import rso_lab as rso
from rso_lab.history import machine, versions

FLOORS = (0.0, 0.1, 0.3, 1.0, 3.0)
SEEDS = (0, 1, 2)
HELD_OUT = 360
CYCLES = {"one_conv": 4}
BATCH_SIZE = 250


def main() -> None:
    """Run every floor with every seed, print a table and write the result."""
    torch.set_num_threads(1)
    digits = rso.load("digits")
    x, y = digits.x_train, digits.y_train
    data = rso.Data.from_arrays(x[:-HELD_OUT], y[:-HELD_OUT], x[-HELD_OUT:], y[-HELD_OUT:], name="digits, held out")
    begun = time.perf_counter()
    records = []
    for name, cycles in CYCLES.items():
        for floor in FLOORS:
            accuracies = []
            for seed in SEEDS:
                model = rso.models.build(name, data, seed=seed)
                if floor:
                    torch.nn.init.zeros_(list(model.modules())[-1].weight)
                method = rso.RSO(cycles, BATCH_SIZE, sigma_floor=floor, batch_every="neuron")
                history = rso.fit(model, data, method, seed=seed)
                accuracies.append(history.cycles[-1].test_accuracy)  # of the held-out training images
                records.append({"settings": asdict(method), "model": name, "seed": seed, "accuracy": accuracies[-1]})
            spread = statistics.stdev(accuracies)
            print(f"{name:9}  floor {floor:4}  accuracy {statistics.mean(accuracies):.3f} +- {spread:.3f}", flush=True)
    result = {
        "command": "python benchmarks/sigma_floor.py",
        "seeds": list(SEEDS),
        "settings": {"data": data.name, "held_out": HELD_OUT},
        "versions": versions(),
        "machine": machine(torch.device("cpu")),
        "seconds": round(time.perf_counter() - begun, 1),
        "records": records,
    }
    path = Path(__file__).parent.parent / "results" / "sigma_floor.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
