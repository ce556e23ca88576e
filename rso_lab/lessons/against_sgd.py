"""Lesson 08: a step of SGD, the grid search for its settings, and what is ahead on which axis."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rso_lab import experiments, rso
from rso_lab.counts import descent_cost, layer_costs
from rso_lab.data import Data
from rso_lab.graph import Network
from rso_lab.history import History
from rso_lab.lessons.answers import advise, ask
from rso_lab.models import build, paper_cnn
from rso_lab.plots import SPENT

Step = Callable[[Tensor, Tensor, Tensor, float, float], Any]  # weight, gradient, velocity, rate, momentum

UNITS = {"updates": "updates", "evaluations": "evaluations", "multiply_adds": "multiply-adds", "seconds": "seconds"}


def price_of_a_gradient(data: Data) -> None:
    """Print how long the loss of 500 images takes, without and with the slopes of all weights of one_conv."""
    model = build("one_conv", data)
    x, y = data.x_train[:500], data.y_train[:500]

    def loss() -> Tensor:
        return F.cross_entropy(model(x), y)

    @torch.no_grad()
    def forward() -> None:
        loss()

    def there_and_back() -> None:
        torch.autograd.grad(loss(), list(model.parameters()))

    weights = sum(parameter.numel() for parameter in model.parameters())
    seconds = []
    for what, run in (("the loss", forward), (f"the loss, and the slopes of all {weights} weights", there_and_back)):
        times = []
        for _ in range(50):
            begun = time.perf_counter()
            run()
            times.append(time.perf_counter() - begun)
        seconds.append(statistics.median(times))
        print(f"{what}: {1000 * seconds[-1]:.2f} ms")
    print(f"that is {seconds[1] / seconds[0]:.1f} times as long; RSO takes {3 * weights:,} losses to visit them all")


def _walk(step: Step, gradients: Tensor) -> Tensor:
    """Weight and velocity (steps, 2, n) after each of a few steps along the gradients (steps, n); the rate changes."""
    weight, velocity = torch.ones_like(gradients[0]), torch.zeros_like(gradients[0])
    places = []
    for gradient, rate in zip(gradients, _RATES, strict=True):
        weight, velocity = step(weight.clone(), gradient.clone(), velocity.clone(), rate, _MOMENTUM)
        places.append(torch.stack((weight, velocity)))
    return torch.stack(places)


_RATES, _MOMENTUM = (0.1, 0.2, 0.05), 0.8


# What learners write instead, and what to tell them.
_MISTAKES: list[tuple[Step, str]] = [
    (lambda w, g, v, r, m: (w + r * (m * v + g), m * v + g), "The gradient points uphill: subtract."),
    (lambda w, g, v, r, m: (w - m * v - g, m * v + g), "The rate is missing: it scales the step."),
    (lambda w, g, v, r, m: (w - r * (m * v + g), v), "You return the old velocity, so it stays 0. Return the new one."),
    (lambda w, g, v, r, m: (w - r * g, m * v + g), "The weight follows the gradient alone. It follows the velocity."),
    (lambda w, g, v, r, m: (w - r * v, m * v + g), "The weight follows the old velocity: compute the new one first."),
    (lambda w, g, v, r, m: (w - r * (v + g), v + g), "momentum is missing: the old velocity fades by it."),
    (lambda w, g, v, r, m: (w - r * (0.9 * v + g), 0.9 * v + g), "0.9 is what is usual. Here it is given: `momentum`."),
    (lambda w, g, v, r, m: (w - r * (m + v + g), m + v + g), "momentum multiplies the old velocity."),
    (lambda w, g, v, r, m: (w - r * m * (v + g), m * (v + g)), "momentum belongs to the old velocity alone."),
    (lambda w, g, v, r, m: (w - r * (m * v + (1 - m) * g), m * v + (1 - m) * g), "The gradient counts fully."),
    (lambda w, g, v, r, m: (w - r * (m * v - g), m * v - g), "Add the gradient to the velocity, then subtract that."),
    (lambda w, g, v, r, m: (w - m * v - r * g, m * v + r * g), "The rate does not belong into the velocity."),
    (lambda w, g, v, r, m: (m * v + g, w - r * (m * v + g)), "Exchanged: the weight is returned first."),
]


def check_sgd_step(answer: Step) -> bool:
    """Check a learner's `sgd_step(weight, gradient, velocity, rate, momentum)` against torch's own.

    Says what to change; returns whether it is right.
    """
    gradients = torch.randn(len(_RATES), 5, generator=torch.Generator().manual_seed(0))
    wanted = "the new weight and the new velocity: return weight, velocity"
    start = torch.ones(5), gradients[0].clone(), torch.zeros(5), _RATES[0], _MOMENTUM
    first = ask("sgd_step", answer, *start, wanted=wanted)
    if first is None:
        return False
    if isinstance(first, tuple | list) and len(first) == 2 and all(part is None or part is ... for part in first):
        print(f"Not done yet: sgd_step returns nothing. It should return {wanted}.")
        return False
    if not isinstance(first, tuple | list) or len(first) != 2 or not all(isinstance(part, Tensor) for part in first):
        print(f"Not yet: two tensors are wanted, {wanted}.")
        return False
    if any(part.shape != (5,) for part in first):
        print("Not yet: for 5 weights, weight and velocity are 5 numbers each. Nothing is added up.")
        return False
    parameter = torch.nn.Parameter(torch.ones(5))
    optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=_MOMENTUM)
    right = []
    for gradient, rate in zip(gradients, _RATES, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = gradient.clone()
        optimizer.step()
        right.append(torch.stack((parameter.detach(), optimizer.state[parameter]["momentum_buffer"])))
    given = _walk(answer, gradients).float()
    agree = [torch.allclose(a, b, atol=1e-6) for a, b in zip(given, right, strict=True)]
    if not all(agree):
        print(f"Not yet. After step {agree.index(False) + 1} weight and velocity are not those of torch.optim.SGD.")
        mistakes = [(lambda question, step=step: _walk(step, question), advice) for step, advice in _MISTAKES]
        advise([given], [gradients], mistakes)
        return False
    print("Right: step by step the weights of torch.optim.SGD.")
    return True


def descend_with(answer: Step, data: Data) -> None:
    """Train one_conv for an epoch with a learner's `sgd_step`, mini-batches of 50, and print how well it reads."""
    if not check_sgd_step(answer):
        return
    model = build("one_conv", data)
    weights = list(model.parameters())
    velocities = [torch.zeros_like(weight) for weight in weights]
    shuffled = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(0))
    batches = shuffled[: len(shuffled) // 50 * 50].split(50)  # whole ones, as rso.SGD has them
    for rows in batches:
        loss = F.cross_entropy(model(data.x_train[rows]), data.y_train[rows])
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for number, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
                moved, velocities[number] = answer(weight.detach().clone(), gradient, velocities[number], 0.1, 0.9)
                weight.copy_(moved)
    with torch.no_grad():
        right = (model(data.x_test).argmax(dim=1) == data.y_test).double().mean().item()
    print(f"After one epoch, {len(batches)} steps of yours: {right:.1%} of the test images right.")


def grid_table(result: dict[str, Any], of: str) -> tuple[NDArray, list[int], list[float]]:
    """A recorded grid search as a table (batch sizes, rates), with both: the means over the seeds.

    of: "accuracy", that at the end, or "updates", to 90 %; nan where a run does not get there.
    """
    ways = result["settings"]["ways"]
    sizes = sorted({way["batch_size"] for way in ways.values()})
    rates = sorted({way["learning_rate"] for way in ways.values()})
    table = np.full((len(sizes), len(rates)), np.nan)
    for label, way in ways.items():
        cycles = [run["cycles"] for run in result["runs"] if run["method"] == label]
        if of == "accuracy":
            found = [records[-1]["test_accuracy"] if records else 0.0 for records in cycles]  # 0: it failed
        else:
            found = [
                next((record["updates"] for record in records if record["test_accuracy"] >= 0.9), math.nan)
                for records in cycles
            ]
        table[sizes.index(way["batch_size"]), rates.index(way["learning_rate"])] = statistics.mean(found)
    return table, sizes, rates


def recorded(name: str, size: str) -> dict[str, list[History]]:
    """The runs of each way of a recorded experiment."""
    return experiments.curves(experiments.read(experiments.RESULTS / f"{name}_{size}.json"))


def spent_to(runs: Mapping[str, Sequence[History]], accuracy: float) -> dict[str, dict[str, float]]:
    """What each way had spent when it was first measured at such an accuracy, by axis: means over its runs.

    It is infinite for a way with a run that never was.
    """

    def spent(history: History, axis: str) -> float:
        there = (
            getattr(r, axis) for r in history.cycles if r.test_accuracy is not None and r.test_accuracy >= accuracy
        )
        return next(there, math.inf)

    return {
        label: {axis: statistics.mean(spent(history, axis) for history in histories) for axis in SPENT}
        for label, histories in runs.items()
    }


def spent_by_the_paper() -> dict[str, dict[str, float]]:
    """What RSO and SGD spent to 99.12 % of MNIST's test images, by the paper's own account (§4.1, §4.5, §4.7).

    RSO: 50 cycles with 5000 images for each weight, of 12 minutes each; SGD: 600 iterations with as many, 12 of them an
    epoch of 10 seconds. Multiply-adds are ours, counted with the paper's activation cache.
    """
    example = torch.zeros(2, 1, 28, 28)
    network = Network(paper_cnn(), example)
    settings = rso.RSO(50, 5000)
    costs = layer_costs(network, example, settings, "cached")
    layers = rso.searched_layers(network, settings)
    weights = sum(layer.size for layer in layers)
    cycle = 3 * 5000 * sum(layer.size * costs[layer.name].candidate for layer in layers)
    return {
        "RSO": {"updates": 50, "evaluations": 50 * 3 * weights, "multiply_adds": 50 * cycle, "seconds": 50 * 12 * 60},
        "SGD": {
            "updates": 600,
            "evaluations": 600,
            "multiply_adds": 600 * descent_cost(network, example, 5000),
            "seconds": 600 / 12 * 10,
        },
    }


def bill(spent: Mapping[str, Mapping[str, float]], verdict: Mapping[str, object] | None = None) -> None:
    """Print what RSO and SGD have spent, axis by axis, who is ahead by what factor, and the learner's verdict."""
    print(
        f"{'counted':15}{'RSO':>18}{'SGD':>18}   ahead" + ("" if verdict is None else "                 your verdict")
    )
    for axis in SPENT:
        ours, theirs = spent["RSO"][axis], spent["SGD"][axis]
        factor = max(ours, theirs) / min(ours, theirs) if math.isfinite(min(ours, theirs)) else math.nan
        times = f", {factor:,.{0 if factor >= 10 else 1}f} times" if math.isfinite(factor) else ""
        ahead = f"{'RSO' if ours < theirs else 'SGD'}{times}" if ours != theirs else "neither"
        said = "" if verdict is None else f"{_said(verdict.get(axis, ...))}"
        numbers = (f"{_number(amount, axis):>18}" for amount in (ours, theirs))
        print(f"{UNITS[axis]:15}{''.join(numbers)}   {ahead:22}{said}".rstrip())


def _number(amount: float, axis: str) -> str:
    if math.isinf(amount):
        return "never"
    if axis == "multiply_adds":
        return f"{amount / 1e9:,.{0 if amount >= 1e11 else 1}f} billion"
    return f"{amount:,.{1 if axis == 'seconds' and amount < 100 else 0}f}"


def _said(verdict: object) -> str:
    return "-" if verdict is ... else str(verdict)
