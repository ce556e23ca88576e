"""Lesson 02: Algorithm 1 by hand, its broken versions, and what one change of a weight does."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from rso_lab import rso
from rso_lab.data import Data
from rso_lab.graph import Network
from rso_lab.lessons.answers import ask, stopped
from rso_lab.lessons.start import Choose, check_choose
from rso_lab.models import build
from rso_lab.train import steps

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


def _takes_any_layer(name: str, answer: Callable[[torch.Tensor, tuple], object]) -> bool:
    """Whether a learner's verb takes the weights of a convolution and biases, too; prints what to change if not."""
    for shape in ((2, 3, 2, 2), (4,)):
        index = tuple(length - 1 for length in shape)
        try:
            if answer(torch.zeros(shape), index):
                continue
            print(f"Not yet: your {name} fits one kind of layer.")
        except Exception as error:
            stopped(name, error)
        print(
            f"It was tried with weights of shape {shape} and index {index}: write `weights[index]`, however long it is."
        )
        return False
    return True


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
    given = ask("evaluate", answer, loss, weights, index, delta, wanted="three losses: minus, keep, plus")
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
        print("Not yet. All three are the same. w is your own number: the network sees a change only when you set")
        print("`weights[index] = ...`. Do that, and call loss() anew each time.")
        return False
    if len(losses) == 3 and math.isclose(losses[2], right[1], rel_tol=1e-5):
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

    def sees_one_weight(weights: torch.Tensor, index: tuple) -> bool:
        losses = answer(lambda: weights.sum().item(), weights, index, 0.5)
        return [float(loss) for loss in losses] == [-0.5, 0.0, 0.5]

    if not _takes_any_layer("evaluate", sees_one_weight):
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
            stopped("apply", error)
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
        told = (
            "Set weights[index]."
            if returned is None or returned is ...
            else "Do not return the new value: set weights[index]."
        )
        print(f"Not done yet: nothing changes. {told}")
        return False
    if wrong:
        choice, wanted, value = wrong[0]
        print(f"Not yet. With {choice!r}, the weight 0.1 and delta 0.25 it should be {wanted}, and is {value:.4g}.")
        return False

    def moves_one_weight(weights: torch.Tensor, index: tuple) -> bool:
        answer(weights, index, 0.5, "plus")
        return weights.sum().item() == 0.5

    if not _takes_any_layer("apply", moves_one_weight):
        return False
    print("Right: the weight takes the value that was chosen.")
    return True


@torch.no_grad()
def train_by_hand(evaluate: Evaluate, choose: Choose, apply: Apply, data: Data) -> None:
    """Train one_conv for a cycle with a learner's three verbs, and print how often they decided as the package does."""
    if not (check_evaluate(evaluate) and check_choose(choose) and check_apply(apply)):
        return
    method = rso.RSO(cycles=1, batch_size=min(250, len(data.x_train)))
    model = build("one_conv", data)
    visits = sum(parameter.numel() for parameter in model.parameters())
    search = steps(build("one_conv", data), data, method, seed=0)
    theirs = list(tqdm(search, total=visits, desc="the package's cycle", unit=" weights"))
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
    """By how much a good change of one weight of one_conv changes the loss, over mini-batches.

    Good: of two opposite changes, the one with the lower loss of all training images. Once with the same images for the
    losses with and without it, once with other images for each.
    """
    model = build("one_conv", data)
    weight = model.get_parameter("fc.weight").detach()
    sigma = weight.std(correction=0).item()
    generator = torch.Generator().manual_seed(0)

    def loss(rows: torch.Tensor | slice, step: float) -> float:
        before = weight[3, 5].item()
        weight[3, 5] = before + step
        value = F.cross_entropy(model(data.x_train[rows]), data.y_train[rows]).item()
        weight[3, 5] = before
        return value

    delta = min(sigma, -sigma, key=lambda step: loss(slice(None), step))
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
    search = steps(model, data, rso.RSO(1, batch_size), seed=0)
    for step in tqdm(search, total=sum(map(torch.numel, before.values())), desc="a cycle", unit=" weights"):
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
