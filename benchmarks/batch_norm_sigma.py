"""Which sigma for gamma and beta: accuracy on held-out training images of digits, for each of several.

The paper gives none. Nothing of the test set is looked at. Writes results/batch_norm_sigma.json.

    python benchmarks/batch_norm_sigma.py
"""

import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

import rso_lab as rso
from rso_lab.history import machine, versions

SIGMAS = (0.01, 0.03, 0.1, 0.3, 1.0)
SEEDS = (0, 1, 2)
HELD_OUT = 360
METHOD = rso.RSO(cycles=2, batch_size=250)


def main() -> None:
    """Run every sigma with every seed, print a table and write the result."""
    torch.set_num_threads(1)
    digits = rso.load("digits")
    x, y = digits.x_train, digits.y_train
    data = rso.Data.from_arrays(x[:-HELD_OUT], y[:-HELD_OUT], x[-HELD_OUT:], y[-HELD_OUT:], name="digits, held out")
    begun = time.perf_counter()
    records = []
    for sigma in SIGMAS:
        for seed in SEEDS:
            model = rso.models.build("paper_cnn", data, seed=seed)
            history = rso.fit(model, data, replace(METHOD, batch_norm_sigma=sigma), seed=seed)
            accuracies = [record.test_accuracy for record in history.cycles]
            records.append({"batch_norm_sigma": sigma, "seed": seed, "held_out_accuracy": accuracies})
            print(records[-1], flush=True)
    for sigma in SIGMAS:
        last = [record["held_out_accuracy"][-1] for record in records if record["batch_norm_sigma"] == sigma]
        print(f"sigma {sigma:5}: {statistics.mean(last):.3f} +- {statistics.stdev(last):.3f}")
    result = {
        "command": "python benchmarks/batch_norm_sigma.py",
        "seeds": list(SEEDS),
        "settings": {**asdict(METHOD), "batch_norm_sigma": list(SIGMAS), "model": "paper_cnn", "data": data.name},
        "versions": versions(),
        "machine": machine(torch.device("cpu")),
        "seconds": round(time.perf_counter() - begun, 1),
        "records": records,
    }
    path = Path(__file__).parent.parent / "results" / "batch_norm_sigma.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
