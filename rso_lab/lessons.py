"""What the lessons call: their first cell, checks of a learner's answers that name the likely mistake, the ledger."""

import contextlib
import json
import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from tqdm.auto import tqdm

from rso_lab import doctor, experiments, notebook, plots, rso
from rso_lab.data import Data
from rso_lab.graph import Network
from rso_lab.history import History, replacing
from rso_lab.models import build
from rso_lab.train import fit, steps

Choose = Callable[[float, float, float], object]  # (minus, keep, plus) -> the name of the candidate to take

NAMES = ("minus", "keep", "plus")

# Losses at w - δ, w and w + δ, and what they should teach.
_CASES = [
    ((0.9, 0.5, 0.7), "both changes raise the loss, so the weight is kept"),
    ((0.7, 0.5, 0.4), "w + δ has the lowest loss"),
    ((0.4, 0.5, 0.7), "w - δ has the lowest loss"),
    ((0.3, 0.5, 0.4), "both changes lower the loss, and w - δ lowers it most"),
    ((0.4, 0.5, 0.3), "both changes lower the loss, and w + δ lowers it most"),
    ((0.5, 0.5, 0.5), "all three are equal: a change that gains nothing is not made"),
    ((0.5, 0.5, 0.7), "w - δ is no better than w: a change that gains nothing is not made"),
    ((0.7, 0.5, 0.5), "w + δ is no better than w: a change that gains nothing is not made"),
]

# What learners write instead, and what to tell them.
_FIRST_THAT_HELPS = "You take the first change that helps. Compare both."
_MISTAKES: list[tuple[Choose, str]] = [
    (lambda m, k, p: NAMES[(m, k, p).index(max(m, k, p))], "You take the highest loss. The lowest is the best."),
    (lambda m, k, p: NAMES[(m, k, p).index(min(m, k, p))], "On a tie your min takes the first. Ask about keep first."),
    (lambda m, k, p: "minus" if m < k else "plus" if p < k else "keep", _FIRST_THAT_HELPS),
    (lambda m, k, p: "plus" if p < k else "minus" if m < k else "keep", _FIRST_THAT_HELPS),
    (lambda m, k, p: "keep" if k <= min(m, p) else "minus" if p < m else "plus", "minus and plus look exchanged."),
]


def begin() -> None:
    """Check the set-up, have figures described in words, and compute on one thread.

    The lessons' small networks gain little from a second one, and lose much where a browser keeps the cores busy.
    """
    torch.set_num_threads(1)
    notebook.describe_figures()
    doctor.check()


def check_choose(answer: Choose) -> bool:
    """Check a learner's `choose(minus, keep, plus)`; prints what to change, and returns whether it is right."""
    try:
        answers = [answer(*losses) for losses, _ in _CASES]
    except Exception as error:
        print(f"Not yet: your choose stopped with {type(error).__name__}: {error}.")
        return False
    if all(given in (None, ...) for given in answers):
        print('Not done yet: choose returns nothing. It should return "minus", "keep" or "plus".')
        return False
    for (losses, why), given in zip(_CASES, answers, strict=True):
        minus, keep, plus = losses
        right = rso.CANDIDATES[int(rso.choose(torch.tensor([keep, plus, minus])))]
        if given != right:
            print(f"Not yet. With the losses {losses[0]} at w - δ, {losses[1]} at w and {losses[2]} at w + δ: {why}.")
            print(f"Your answer was {given!r}, the right one is {right!r}.")
            if isinstance(given, float):
                print("That is a loss: return the name of its candidate, in quotes.")
            elif given not in NAMES:
                print('It has to be one of "minus", "keep" and "plus".')
            for mistake, advice in _MISTAKES:
                if answers == [mistake(*losses) for losses, _ in _CASES]:
                    print(advice)
                    break
            return False
    print("Right: your choose takes the best of the three.")
    return True


def _ask(name: str, answer: Callable, *question: Any, wanted: str) -> Any:
    """What a learner's function returns; None, with a word to the learner, where it stops or returns nothing."""
    try:
        given = answer(*question)
    except Exception as error:
        print(f"Not yet: your {name} stopped with {type(error).__name__}: {error}.")
        return None
    if given is None or given is ...:
        print(f"Not done yet: {name} returns nothing. It should return {wanted}.")
        return None
    return given


# Fan-in, fan-out and what they are of: the shapes that a learner's rule is tried on.
_SHAPES = [(16, 144, (16, 16, 3, 3)), (4, 9, (4, 1, 3, 3)), (10, 64, (10, 64))]
_SIGMA_MISTAKES: list[tuple[Callable[[torch.Tensor], float], str]] = [
    (lambda w: 2 / w[0].numel(), "That is the variance: sigma is its square root."),
    (lambda w: (1 / w[0].numel()) ** 0.5, "Without the 2: ReLU lets only half of the signal's square through."),
    (lambda w: (2 / w.shape[0]) ** 0.5, "You divide by the outputs. Each output sums over its inputs: count those."),
    (lambda w: (2 / w.numel()) ** 0.5, "You divide by all weights. Count those of one output neuron."),
    (lambda w: (2 / w.shape[1]) ** 0.5, "An output of a convolution also sums over the kernel's places: w[0].numel()."),
    (lambda w: float(w.std()), "That is the spread it has. The rule says which it should have, from its shape alone."),
]


def check_he_sigma(answer: Callable[[torch.Tensor], float]) -> bool:
    """Check a learner's `he_sigma(weight)`; prints what to change, and returns whether it is right."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for _, _, shape in _SHAPES]
    try:
        answers = [answer(weight) for weight in weights]
    except Exception as error:
        print(f"Not yet: your he_sigma stopped with {type(error).__name__}: {error}.")
        return False
    if all(given in (None, ...) for given in answers):
        print("Not done yet: he_sigma returns nothing. It should return a number.")
        return False
    for (_, fan_in, shape), given in zip(_SHAPES, answers, strict=True):
        right = (2 / fan_in) ** 0.5
        if not isinstance(given, int | float | torch.Tensor) or not math.isclose(float(given), right, rel_tol=1e-6):
            print(f"Not yet. For a weight tensor of shape {shape} it is {right:.4f}, your answer was {given!r}.")
            _advise(answers, weights, _SIGMA_MISTAKES)
            return False
    print("Right: your rule keeps the signals as large as they came.")
    return True


def _number(given: Any) -> float | None:
    """A learner's answer as a number; None, with a word to the learner, where it is none."""
    if callable(given):
        print("Not yet: that is a function and not its value. Are brackets missing, as in x.std()?")
    elif isinstance(given, torch.Tensor) and given.numel() != 1:
        print(f"Not yet: your answer is {given.numel()} numbers, and one is wanted. Add them up, or take their spread?")
    elif not isinstance(given, Real | torch.Tensor):
        print(f"Not yet: a number is wanted, your answer was {given!r}.")
    else:
        return float(given)
    return None


_ERROR_MISTAKES: list[tuple[Callable[..., Any], str]] = [
    (lambda d: d.std() / 40, "You divide by the number of images. The luck shrinks with its square root only."),
    (lambda d: d.std(), "That is the spread of single images. A mean over n of them varies less."),
    (lambda d: d.var() / 40, "That is the square of it: use the standard deviation, and the root of n."),
    (lambda d: (d.std() / 40) ** 0.5, "The root is of n alone, not of the whole fraction."),
    (lambda d: d.std() / 40**1 / 2, "Python reads n**1/2 as half of n. Write n**0.5."),
    (lambda d: d.std() / len(d) ** 0.5, "n is the number you are given, not the number of all images."),
    (lambda d: d.std() * 40**0.5, "A mean over n of them varies less: divide."),
    (lambda d: d.mean() / 40**0.5, "The spread is wanted: .std() in place of .mean()."),
    (lambda d: d[:40].std() / 40**0.5, "Take the spread of all of them, not of the first n."),
]


def check_standard_error(answer: Callable[[torch.Tensor, int], float]) -> bool:
    """Check a learner's `standard_error(differences, n)`: says what to change; returns whether it is right."""
    differences = torch.randn(300, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 0.5, 300) + 0.1
    given = _ask("standard_error", answer, differences, 40, wanted="a number")
    if given is None or (number := _number(given)) is None:
        return False
    right = differences.std().item() / 40**0.5
    if not math.isclose(number, right, rel_tol=0.01):
        print(f"Not yet. For the numbers tried and n = 40 it is {right:.4f}, your answer was {number:.4f}.")
        _advise([given], [differences], _ERROR_MISTAKES)
        return False
    print("Right: four times the images, half the luck.")
    return True


_NORMALISE_MISTAKES: list[tuple[Callable[[torch.Tensor], torch.Tensor], str]] = [
    (lambda x: x - x.mean(), "Divide by the deviation, too."),
    (lambda x: x / x.std(), "Subtract the mean first."),
    (lambda x: (x - x.mean()) / x.var(), "You divide by the variance. The deviation is its square root."),
    (
        lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True),
        "Each image by its own mean: that takes away how dark it is as a whole. Use one mean for all.",
    ),
    (lambda x: (x - x.mean(0)) / (x.std(0) + 1e-8), "Each pixel by its own mean. Use one mean for all."),
    (lambda x: x / x.max(), "That is a scale from 0 to 1. The mean has to become 0, the deviation 1."),
]


def check_normalise(answer: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Check a learner's `normalise(x)`; prints what to change, and returns whether it is right."""
    x = 16 * torch.rand((50, 1, 8, 8), generator=torch.Generator().manual_seed(0)) ** 3
    x *= torch.linspace(0.5, 1, 50).view(-1, 1, 1, 1)
    given = _ask("normalise", answer, x.clone(), wanted="the images, changed")
    if given is None:
        return False
    if not isinstance(given, torch.Tensor) or given.shape != x.shape:
        print("Not yet: return a tensor of the same shape as x.")
        return False
    mean, deviation = given.mean().item(), given.std().item()
    spread = (x - x.mean()) / x.std()
    if not torch.allclose(given, spread, atol=0.02):
        print(f"Not yet. Yours have the mean {mean:.3f} and the deviation {deviation:.3f}; wanted are 0 and 1.")
        _advise([given], [x], _NORMALISE_MISTAKES)
        return False
    print("Right: mean 0, deviation 1.")
    return True


def _advise(answers: list, questions: list, mistakes: list) -> None:
    """Print what to tell a learner whose answers are those of one of the mistakes."""
    for mistake, advice in mistakes:
        wrong = [torch.as_tensor(mistake(question)) for question in questions]
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            if all(torch.allclose(torch.as_tensor(a), w) for a, w in zip(answers, wrong, strict=True)):
                print(advice)
                return


Evaluate = Callable[[Callable[[], float], torch.Tensor, tuple, float], Any]
Apply = Callable[[torch.Tensor, tuple, float, str], object]


def evaluate(
    loss: Callable[[], float], weights: torch.Tensor, index: tuple, delta: float
) -> tuple[float, float, float]:
    """The losses at w - delta, w and w + delta, w being `weights[index]`, which is put back: lesson 02's solution."""
    w = weights[index].item()
    keep = loss()
    weights[index] = w - delta
    minus = loss()
    weights[index] = w + delta
    plus = loss()
    weights[index] = w
    return minus, keep, plus


def check_evaluate(answer: Evaluate) -> bool:
    """Check a learner's `evaluate(loss, weights, index, delta)`: says what to change; returns whether it is right."""
    weights = torch.tensor([[0.3, 0.1], [0.7, -0.2]])
    before = weights.clone()
    index, delta = (0, 1), 0.0371

    def loss() -> float:
        return (
            1 + 4 * (weights[0, 1].item() - 0.2) ** 2 + 10 * (weights - before).abs()[[0, 1, 1], [0, 0, 1]].sum().item()
        )

    right = [1 + 4 * (0.1 + step - 0.2) ** 2 for step in (-delta, 0, delta)]
    given = _ask("evaluate", answer, loss, weights, index, delta, wanted="three losses: minus, keep, plus")
    if given is None:
        return False
    if isinstance(given, tuple | list) and any(map(callable, given)):
        print("Not yet: you return the function. Write loss(), with brackets.")
        return False
    try:
        losses = [float(value) for value in given]
    except (TypeError, ValueError):
        losses = []
    drift = (weights - before).abs().max().item()
    if drift > 1e-3:
        print(f"Not yet. The weight was {before[index]:.4f}, and afterwards it is {weights[index]:.4f}: put it back.")
        return False
    if len({round(value, 4) for value in losses}) == 1:
        print("Not yet. All three are the same: call loss() again after each change of the weight.")
        return False
    if len(losses) == 3 and math.isclose(losses[2], right[1], rel_tol=1e-5) and losses[0] != losses[1]:
        print("Not yet. Your plus is the loss at w. Either you have only taken the minus step back, or you have kept")
        print("the old value as `w = weights[index]`: print w before and after you set the weight; see also .item().")
        return False
    if drift > 0:
        print("Nearly. The weight came back, but not exactly: what is added and subtracted is rounded each time.")
        print("Keep the old number, and set the weight to it at the end.")
        return False
    if len(losses) != 3:
        print(f"Not yet. Return three losses, `return minus, keep, plus`. You returned {given!r}.")
        return False
    if not all(math.isclose(mine, wanted, rel_tol=1e-5) for mine, wanted in zip(losses, right, strict=True)):
        print(f"Not yet. Wanted are {[round(value, 4) for value in right]}, yours are {[round(v, 4) for v in losses]}.")
        if sorted(round(v, 4) for v in losses) == sorted(round(v, 4) for v in right):
            print("The order is minus, keep, plus.")
        return False
    print("Right: three losses, and the weight is where it was.")
    return True


def check_apply(answer: Apply) -> bool:
    """Check a learner's `apply(weights, index, delta, choice)`: says what to change; returns whether it is right."""
    wrong = []
    for choice, wanted in (("minus", -0.15), ("keep", 0.1), ("plus", 0.35)):
        weights = torch.tensor([[0.3, 0.1], [0.7, -0.2]])
        before = weights.clone()
        try:
            returned = answer(weights, (0, 1), 0.25, choice)
        except Exception as error:
            print(f"Not yet: your apply stopped with {type(error).__name__}: {error}.")
            return False
        others = (weights != before).sum().item() - (weights[0, 1] != before[0, 1]).item()
        if others:
            print(f"Not yet. With {choice!r}, {others} other weights changed. Only weights[index] may.")
            return False
        if not math.isclose(weights[0, 1].item(), wanted, abs_tol=1e-6):
            wrong.append((choice, wanted, weights[0, 1].item()))
    if [choice for choice, *_ in wrong] == ["minus", "plus"] and all(
        math.isclose(is_, 0.1, abs_tol=1e-6) for *_, is_ in wrong
    ):
        told = "Set weights[index]." if returned in (None, ...) else "Do not return the new value: set weights[index]."
        print(f"Not done yet: nothing changes. {told}")
        return False
    if wrong:
        choice, wanted, value = wrong[0]
        print(f"Not yet. With {choice!r}, the weight 0.1 and delta 0.25 it should be {wanted}, and is {value:.4g}.")
        return False
    print("Right: the weight takes the value that was chosen.")
    return True


def check_visits(answer: Callable[[int, int, str], list]) -> bool:
    """Check a learner's `visits(outputs, inputs, order)`: says what to change; returns whether it is right."""
    right = {
        "neuron": [(i, j) for i in range(2) for j in range(3)],
        "input": [(i, j) for j in range(3) for i in range(2)],
    }
    for order, wanted in right.items():
        try:
            given = answer(2, 3, order)
            given = given if given in (None, ...) else [tuple(place) for place in given]
        except Exception as error:
            print(f"Not yet: your visits stopped with {type(error).__name__}: {error}.")
            return False
        if given in (None, ...):
            print("Not done yet: visits returns nothing. It should return a list of pairs (i, j).")
            return False
        if given == wanted:
            continue
        print(f"Not yet. For 2 outputs, 3 inputs and {order!r} it is {wanted}, yours is {given}.")
        if given == right["input" if order == "neuron" else "neuron"]:
            print("That is the other order. The outer loop is over what stays the same for longest.")
        elif given == [(j, i) for i, j in wanted]:
            print("The output comes first in each pair: (i, j).")
        elif sorted(given) != sorted(wanted):
            print("Each weight has its turn exactly once: 6 pairs.")
        return False
    print("Right: every weight once, in the order that was asked for.")
    return True


def paired(name: str, one: str, other: str) -> None:
    """Print by how many points of accuracy one way of a recorded experiment leads another, seed by seed."""
    result = experiments.read(experiments.RESULTS / f"{name}_class.json")
    last = {(run["method"], run["seed"]): run["cycles"][-1]["test_accuracy"] for run in result["runs"]}
    points = [100 * (last[one, seed] - last[other, seed]) for seed in result["seeds"]]
    told = ", ".join(f"{lead:+.1f}" for lead in points)
    print(f"{one!r} leads {other!r} by {told} points, seed by seed.")
    mean, spread = statistics.mean(points), statistics.stdev(points)
    verdict = "a difference" if abs(mean) > spread else "no difference to speak of"
    print(f"mean {mean:+.1f}, standard deviation {spread:.1f}: {verdict}")


@torch.no_grad()
def train_by_hand(evaluate: Evaluate, choose: Choose, apply: Apply, data: Data) -> None:
    """Train one_conv for a cycle with a learner's three verbs, and print how often they decided as the package does."""
    if not (check_evaluate(evaluate) and check_choose(choose) and check_apply(apply)):
        return
    method = rso.RSO(cycles=1, batch_size=min(1000, len(data.x_train)))
    theirs = list(steps(build("one_conv", data), data, method, seed=0))
    model = build("one_conv", data)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    same = 0
    for step in tqdm(theirs, desc="your cycle", unit=" weights"):
        x, y = data.x_train[step.batch], data.y_train[step.batch]
        weights = parameters[str(step.name)]
        assert isinstance(step.delta, float)

        def loss(x: torch.Tensor = x, y: torch.Tensor = y) -> float:
            return F.cross_entropy(model(x), y).item()

        losses: Any = evaluate(loss, weights, step.index, step.delta)
        choice = str(choose(*losses))
        apply(weights, step.index, step.delta, choice)
        same += choice == step.choice
    right = (model(data.x_test).argmax(dim=1) == data.y_test).double().mean().item()
    print(f"{same} of your {len(theirs)} decisions were the package's. {right:.1%} of the test images right.")


@torch.no_grad()
def symptoms(
    data: Data,
    evaluate: Evaluate,
    initialise: Callable[[list[torch.Tensor]], None] | None = None,
    batch_size: int = 100,
    same_images: bool = True,
) -> None:
    """Train one_conv for a cycle with somebody's `evaluate`, and print what one would see of it from outside.

    `initialise` is given the weight tensors, all zero, to fill them. Without `same_images` each loss has others.
    """
    model = build("one_conv", data)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    sigmas = rso.initial_sigmas(Network(model, data.x_train[:2]), rso.RSO(1, 1))
    if initialise is not None:
        for weights in parameters.values():
            weights.zero_()
        initialise([weights for weights in parameters.values() if weights.dim() > 1])
    generator = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return rso.draw_batch(len(data.x_train), batch_size, generator)

    def whole_loss() -> float:
        return F.cross_entropy(model(data.x_train), data.y_train).item()

    before, kept = whole_loss(), 0
    visits = [(name, index) for name, weights in parameters.items() for index in np.ndindex(weights.shape)]
    for name, index in tqdm(visits[::-1], desc="a cycle", unit=" weights"):
        rows = draw()

        def loss(rows: torch.Tensor = rows) -> float:
            drawn = rows if same_images else draw()
            return F.cross_entropy(model(data.x_train[drawn]), data.y_train[drawn]).item()

        delta = sigmas[name] * torch.randn((), generator=generator).item()
        minus, keep, plus = evaluate(loss, parameters[name], index, delta)
        choice = int(rso.choose(torch.tensor([keep, plus, minus])))
        parameters[name][index] += (0, delta, -delta)[choice]
        kept += choice == 0
    answers = model(data.x_test).argmax(dim=1)
    digit, times = answers.mode().values.item(), (answers == answers.mode().values).double().mean().item()
    print(f"weights kept: {kept / len(visits):.0%} of {len(visits)}")
    print(f"loss on all training images: {before:.2f} before, {whole_loss():.2f} after")
    print(f"test images right: {(answers == data.y_test).double().mean().item():.1%}")
    print(f"its most frequent answer: {digit}, to {times:.0%} of them")


def bug_b(data: Data) -> None:
    """The symptoms of lesson 02's second bug: each of the three losses has images of its own."""
    symptoms(data, evaluate, same_images=False)


@torch.no_grad()
def loss_differences(data: Data, batch_size: int, count: int = 200) -> dict[str, list[float]]:
    """By how much one change of one weight of one_conv changes the loss, over mini-batches.

    Once with the same images for the losses with and without it, once with other images for each.
    """
    model = build("one_conv", data)
    weight = model.get_parameter("fc.weight").detach()
    delta = weight.std(correction=0).item()
    generator = torch.Generator().manual_seed(0)

    def loss(rows: torch.Tensor, step: float) -> float:
        before = weight[3, 5].item()
        weight[3, 5] = before + step
        value = F.cross_entropy(model(data.x_train[rows]), data.y_train[rows]).item()
        weight[3, 5] = before
        return value

    found: dict[str, list[float]] = {"the same images": [], "other images": []}
    for _ in range(count):
        one, other = (rso.draw_batch(len(data.x_train), batch_size, generator) for _ in range(2))
        with_change = loss(one, delta)
        found["the same images"].append(with_change - loss(one, 0))
        found["other images"].append(with_change - loss(other, 0))
    return found


def signs(data: Data, batch_size: int) -> tuple[int, int]:
    """How many changes a cycle on one_conv accepts, and how many of them go downhill by autograd for their images."""
    model = build("one_conv", data)
    accepted = downhill = 0
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step in steps(model, data, rso.RSO(1, batch_size), seed=0):
        name = str(step.name)
        parameter = model.get_parameter(name)
        if step.choice != "keep":
            taken = parameter.detach().clone()
            with torch.enable_grad():
                parameter.data.copy_(before[name])
                loss = F.cross_entropy(model(data.x_train[step.batch]), data.y_train[step.batch])
                (gradient,) = torch.autograd.grad(loss, parameter)
                parameter.data.copy_(taken)
            accepted += 1
            downhill += gradient[step.index].item() * (taken - before[name])[step.index].item() < 0
            before[name] = taken
    return accepted, downhill


@torch.no_grad()
def accepted_changes(data: Data, batch_size: int, cycles: int = 3) -> tuple[list[float], list[float]]:
    """What the accepted changes of one_conv's last cycle do to the loss: of their mini-batch, and of all images."""
    model = build("one_conv", data)
    of_batch, of_all = [], []

    def whole_loss() -> float:
        return F.cross_entropy(model(data.x_train), data.y_train).item()

    search = steps(model, data, rso.RSO(cycles, batch_size, sigma_end=1.0), seed=0)
    total = cycles * sum(parameter.numel() for parameter in model.parameters())
    for step in tqdm(search, total=total, desc=f"batch {batch_size}", unit=" weights"):
        if step.cycle == cycles and step.choice != "keep":
            weight = model.get_parameter(str(step.name)).detach()
            after, value = whole_loss(), weight[step.index].item()
            assert isinstance(step.delta, float)
            weight[step.index] = value - step.delta * {"plus": 1, "minus": -1}[step.choice]
            of_all.append(after - whole_loss())
            weight[step.index] = value
            of_batch.append(getattr(step.losses, step.choice) - step.losses.keep)
    return of_batch, of_all


def promises(of_batch: Sequence[float], of_all: Sequence[float]) -> None:
    """Print what accepted changes do on average: to the loss of their mini-batch, and to that of all images."""
    promised, got = statistics.mean(of_batch), statistics.mean(of_all)
    print(f"promised by the mini-batch: {promised:+.4f} a change; for all images it was {got:+.4f}")


class RandomProposals:
    """Proposals on one_conv, after some cycles of training, that move weights drawn at random; on 500 images."""

    def __init__(self, data: Data, cycles: int = 0):
        self.model = build("one_conv", data)
        self.x, self.y = data.x_train[:500], data.y_train[:500]
        sigmas = rso.initial_sigmas(Network(self.model, self.x[:2]), rso.RSO(1, 1))
        if cycles:
            fit(self.model, data, rso.RSO(cycles, min(1000, len(data.x_train))), seed=0)
        self.parameters = [parameter.detach() for parameter in self.model.parameters()]
        spreads = [torch.full_like(p, sigmas[name]).flatten() for name, p in self.model.named_parameters()]
        self.spread = torch.cat(spreads)
        self.size = len(self.spread)

    @torch.no_grad()
    def changes(self, moved: int, step: float, count: int) -> list[float]:
        """By how much the better of w + d and w - d changes the loss; d ~ N(0, step * sigma_d) in `moved` weights."""
        generator = torch.Generator().manual_seed(0)
        start = torch.cat([parameter.flatten() for parameter in self.parameters])
        keep = self._loss_at(start)
        found = []
        for _ in range(count):
            which = torch.randperm(self.size, generator=generator)[:moved]
            delta = torch.zeros(self.size)
            delta[which] = torch.randn(moved, generator=generator) * step * self.spread[which]
            found.append(min(self._loss_at(start + delta), self._loss_at(start - delta)) - keep)
        self._loss_at(start)
        return found

    def _loss_at(self, weights: torch.Tensor) -> float:
        for parameter, some in zip(self.parameters, weights.split([p.numel() for p in self.parameters]), strict=True):
            parameter.copy_(some.view_as(parameter))
        return F.cross_entropy(self.model(self.x), self.y).item()


def gain_table(
    data: Data, moved: Sequence[int], sizes: Sequence[float], cycles: int = 0, count: int = 30
) -> np.ndarray:
    """Mean gain (sizes, moved) of proposals, after `cycles`: by how much the loss falls where it falls, otherwise 0."""
    proposals = RandomProposals(data, cycles)
    rows = [
        [np.mean([max(0.0, -change) for change in proposals.changes(number, size, count)]) for number in moved]
        for size in tqdm(sizes, desc="steps")
    ]
    return np.array(rows)


_COSINE_MISTAKES: list[tuple[Callable[..., Any], str]] = [
    (lambda ab: (ab[0] * ab[1]).sum(), "Divide by the lengths of both."),
    (lambda ab: (ab[0] * ab[1]).sum() / ab[0].norm(), "Divide by the length of the other one, too."),
    (lambda ab: (ab[0] * ab[1]).sum() / (ab[0].norm() * ab[1].norm()) ** 2, "The lengths, not their squares."),
    (lambda ab: (ab[0] * ab[1]).mean() / (ab[0].norm() * ab[1].norm()), "The sum of the products, not their mean."),
    (
        lambda ab: (ab[0] * ab[1]).sum() / ab[0].norm() * ab[1].norm(),
        "Python divides by the first length and multiplies by the second: brackets around their product.",
    ),
    (
        lambda ab: ab[0].sum() * ab[1].sum() / (ab[0].norm() * ab[1].norm()),
        "First multiply matching numbers, then add up: (a * b).sum().",
    ),
    (lambda ab: (ab[0] * ab[1]).sum() / (ab[0].norm() + ab[1].norm()), "The product of the lengths, not their sum."),
    (lambda ab: F.cosine_similarity(ab[0], ab[1], dim=0).acos(), "That is the angle: leave acos out."),
    (lambda ab: F.cosine_similarity(ab[0], ab[1], dim=0).abs(), "Without abs: opposite arrows have the cosine -1."),
]


def check_cosine(answer: Callable[[torch.Tensor, torch.Tensor], float]) -> bool:
    """Check a learner's `cosine(a, b)`: says what to change; returns whether it is right."""
    a, b = torch.randn((2, 20), generator=torch.Generator().manual_seed(0))
    b = b if (a * b).sum() < 0 else -b  # else abs() would do no harm
    given = _ask("cosine", answer, a, b, wanted="a number")
    if given is None or (number := _number(given)) is None:
        return False
    right = float(F.cosine_similarity(a, b, dim=0))
    if not math.isclose(number, right, rel_tol=1e-4):
        print(f"Not yet. For two arrows of 20 numbers it is {right:.4f}, your answer was {number:.4f}.")
        _advise([given], [(a, b)], _COSINE_MISTAKES)
        return False
    print("Right: 1 for the same direction, 0 for a right angle, -1 for the opposite.")
    return True


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "normalise": check_normalise,
    "he_sigma": check_he_sigma,
    "evaluate": check_evaluate,
    "choose": check_choose,
    "apply": check_apply,
    "cosine": check_cosine,
    "visits": check_visits,
    "standard_error": check_standard_error,
}


def check(answer: Callable) -> None:
    """Check a learner's function, which has the name of an exercise, and print what to change."""
    name = getattr(answer, "__name__", "?")
    if name not in _CHECKS:
        raise ValueError(f"{name!r} is the name of no exercise: choose from {', '.join(_CHECKS)}")
    _CHECKS[name](answer)


@torch.no_grad()
def random_networks(data: Data, count: int) -> list[float]:
    """Test accuracies of one_conv with random weights, of so many seeds."""
    models = (build("one_conv", data, seed) for seed in range(count))
    return [(model(data.x_test).argmax(dim=1) == data.y_test).double().mean().item() for model in models]


@torch.no_grad()
def train_with(answer: Choose, data: Data) -> None:
    """Train one_conv for a cycle with a learner's `choose` in place of the package's, and print how well it reads."""
    if not check_choose(answer):
        return
    network = Network(build("one_conv", data), data.x_train[:2])
    settings = rso.RSO(cycles=1, batch_size=min(1000, len(data.x_train)))
    evaluator = rso.CachedEvaluator(network, data, F.cross_entropy)
    sigmas = rso.initial_sigmas(network, settings)
    generator = torch.Generator().manual_seed(0)

    def decide(losses: torch.Tensor) -> torch.Tensor:
        keep, plus, minus = losses.tolist()
        return torch.tensor(rso.CANDIDATES.index(answer(minus, keep, plus)))

    search_layer = partial(rso.one_by_one, decide=decide)
    for _ in rso.search_cycle(1, sigmas, network, data, settings, evaluator, generator, search_layer):
        pass
    right = (network.outputs(data.x_test).argmax(dim=1) == data.y_test).double().mean().item()
    print(f"After one cycle in which your choose decided every time: {right:.1%} of the test images right.")


def compare(prediction: object, measured: float, what: str) -> None:
    """Print a learner's prediction, a share, beside what was measured."""
    if prediction is ...:
        print(f"{what}: measured {measured:.0%}. You made no prediction this time.")
        return
    if isinstance(prediction, bool) or not isinstance(prediction, int | float) or not 0 <= prediction <= 1:
        print(f"{what}: measured {measured:.0%}. Your prediction is {prediction!r}: write a number between 0 and 1.")
        return
    points = round(100 * (measured - prediction))
    more = f"{abs(points)} percentage points {'more' if points > 0 else 'less'} than you thought"
    print(f"{what}: measured {measured:.0%}, your prediction {prediction:.0%}, {more if points else 'spot on'}.")


def yours(prediction: object) -> str:
    """A learner's prediction, to be printed beside what was measured."""
    return "you made no prediction this time" if prediction is ... else f"your prediction: {prediction}"


LEDGER = Path("ledger.json")  # in the folder that the lessons run in: a learner's own


def ledger(lesson: str, history: History) -> None:
    """Print what a run reached, and at what price, below the runs of other lessons: it is written into LEDGER."""
    try:
        rows = json.loads(LEDGER.read_text(encoding="utf-8"))
        lines = {name: str(line) for name, line in rows.items()}
    except (OSError, ValueError, AttributeError):  # the first, or not ours
        lines = {}
    last = history.cycles[-1]
    images = f"{history.settings['data']}, {len(history.cycles)} x {history.settings['batch_size']}"
    spent = f"{last.evaluations:>11,} {last.multiply_adds / 1e9:>9,.1f} billion {last.seconds:>6.1f} s"
    lines[lesson] = f"{images:<26} {last.test_accuracy:>8.1%} {spent}"
    print(f"lesson  {'data, cycles x batch':<26} accuracy evaluations     multiply-adds     time")
    for name in sorted(name for name in lines if name <= lesson):
        print(f"{name:8}{lines[name]}")
    with contextlib.suppress(OSError), replacing(LEDGER) as file:  # a folder that is not ours to write to
        file.write_text(json.dumps(lines), encoding="utf-8")


def beside_the_paper(history: History) -> Axes:
    """A run, the recorded one of the paper's network on MNIST, and the paper's own figures (§4.1, §4.5)."""
    recorded = History.load(experiments.RESULTS / "mnist_paper_cnn.json")
    runs = {"yours": [history], "recorded: MNIST, the paper's network": [recorded]}
    ax = plots.comparison(runs, reference=experiments.PAPER)
    ax.plot(5, 0.98, "*", color="black", markersize=10, label="paper: MNIST, 5 cycles, 98.0 %")
    ax.set_title("")
    ax.legend(loc="lower right", fontsize="small")
    return ax
