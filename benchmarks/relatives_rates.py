"""Which rates for the relatives: accuracy on held-out training images of digits, for the ways of their experiments.

Of each way some settings are varied, all others are the experiment's. Nothing of the test set is looked at. Writes
results/relatives_rates.json, whose best the experiments have (tests/test_results.py).

    python benchmarks/relatives_rates.py
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from batch_norm_sigma import compare

from rso_lab.experiments import EXPERIMENTS
from rso_lab.train import Method

Grid = dict[str, tuple[float, ...]]  # of each setting, what is tried

RATES: Grid = {"learning_rate": (0.5, 1.0, 2.0, 4.0, 8.0)}
SGD_RATES: Grid = {"learning_rate": (0.1, 0.3, 1.0)}
OF_WEIGHTS: Grid = {"learning_rate": (0.02, 0.05, 0.1, 0.2)}
DIRECTIONS = ("10", "50", "250")
GRIDS: dict[str, dict[str, Grid]] = {
    "subspace": {
        "SGD": SGD_RATES,
        **{f"{number} {kind}": RATES for number in DIRECTIONS for kind in ("fixed", "re-drawn")},
        "50 fixed in each layer": RATES,
        "50 re-drawn in each layer": RATES,
    },
    "masks": {
        "dense": OF_WEIGHTS,
        **{f"{percent} %, {kind}, fixed": OF_WEIGHTS for percent in (10, 5, 2) for kind in ("random", "largest")},
        **{f"{percent} %, {kind}": OF_WEIGHTS for percent in (10, 5) for kind in ("scores", "Bernoulli")},
        "2 %, scores": OF_WEIGHTS | {"mask_rate": (0.001, 0.003, 0.01)},
        "2 %, Bernoulli": OF_WEIGHTS | {"mask_rate": (1.0, 3.0, 10.0)},
        "10 %, mask only": {"mask_rate": (1.0, 3.0, 10.0)},
    },
    "evolution": {
        "GA": {"sigma": (0.005, 0.01, 0.02, 0.05)},
        "ES": {"sigma": (0.02, 0.1, 0.3), "learning_rate": (0.003, 0.01, 0.03)},
        "NES": {"sigma": (0.01, 0.03, 0.1, 0.3), "learning_rate": (0.01, 0.03, 0.1, 0.3)},
    },
}


def ways() -> Iterator[tuple[str, str, Method]]:
    """Network, name and method of all that is tried."""
    for name, grids in GRIDS.items():
        size = EXPERIMENTS[name].sizes["class"]
        methods = EXPERIMENTS[name].ways(size)
        for label, grid in grids.items():
            for values in itertools.product(*grid.values()):
                varied: dict[str, Any] = dict(zip(grid, values, strict=True))
                told = ", ".join(f"{setting} {value}" for setting, value in varied.items())
                yield size.model, f"{name}: {label}: {told}", replace(methods[label].method, **varied)


if __name__ == "__main__":
    compare("relatives_rates", list(ways()))
