"""What the statistics of the batch norms cost by depth, and the first step of DenseNet-121: in forward passes.

    python benchmarks/depth.py     (a minute on two cores)

A forward pass of the same images, in the same pieces, is the unit. Of several times the least is taken: other work on
the machine makes them longer, never shorter. Prints a table, then one line of JSON.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.models import densenet121

import rso_lab as rso
from rso_lab.graph import Network
from rso_lab.history import machine, versions

DEPTHS = (8, 16, 32, 64, 128)
CHANNELS = 16
TIMES = 3


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes: the least of a few, and of one before them that makes room."""
    times = []
    for _ in range(1 + TIMES):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return min(times)


def stack(depth: int, channels: int) -> nn.Module:
    """So many convolutions, each with batch norm and ReLU, and one linear layer."""
    layers: list[nn.Module] = []
    for number in range(depth):
        entering = CHANNELS if number else channels
        layers += [nn.Conv2d(entering, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU()]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10)]
    return rso.models.he_init_(nn.Sequential(*layers, *pool), seed=0)


@torch.no_grad()
def statistics(model: nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """Seconds of a forward pass, and of taking all statistics over x (N, C, H, W)."""
    network = Network(model, x[:2])

    def refresh() -> None:
        network.stale = set(network.batch_norms)
        network.refresh_statistics(x)

    return seconds(lambda: network.outputs(x)), seconds(refresh)


def first_step(model: nn.Module, data: rso.Data) -> float:
    """Seconds until the first weight has been searched, from the model on."""

    def step() -> None:
        next(rso.steps(model.train(), data, rso.RSO(1, len(data.x_train)), seed=0))

    return seconds(step)


def main() -> None:
    """Measure, print the table and the line of JSON."""
    begun = time.perf_counter()
    runs: list[dict[str, Any]] = []
    x = rso.load("digits", train_limit=200).x_train
    print(f"{'layers':>12} {'forward, ms':>12} {'statistics, ms':>15} {'in passes':>10}")
    for depth in DEPTHS:
        forward, taken = statistics(stack(depth, x.shape[1]), x)
        runs.append({"layers": depth, "forward": forward, "statistics": taken})
        print(f"{depth:12} {1000 * forward:12.1f} {1000 * taken:15.1f} {taken / forward:10.1f}", flush=True)
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(24, 3, 32, 32, generator=generator), torch.arange(24) % 10
    model = rso.models.he_init_(densenet121(num_classes=10), seed=0)
    forward, taken = statistics(model, x)
    step = first_step(model, rso.Data.from_arrays(x, labels, x, labels))
    print(f"{'densenet121':>12} {1000 * forward:12.1f} {1000 * taken:15.1f} {taken / forward:10.1f}")
    print(f"its first step: {1000 * step:.0f} ms, {step / forward:.1f} passes")
    runs.append({"layers": "densenet121", "forward": forward, "statistics": taken, "first_step": step})
    about = {"command": "python benchmarks/depth.py", "seeds": [0], "machine": machine(torch.device("cpu"))}
    print(json.dumps({**about, "versions": versions(), "seconds": time.perf_counter() - begun, "runs": runs}))


if __name__ == "__main__":
    main()
