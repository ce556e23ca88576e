"""Lesson 05: the luck of a mini-batch, and what accepted changes do."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from rso_lab import rso
from rso_lab.data import Data
from rso_lab.lessons.answers import advise, ask, number_of
from rso_lab.models import build
from rso_lab.train import steps

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
    given = ask("standard_error", answer, differences, 40, wanted="a number")
    if given is None or (number := number_of(given)) is None:
        return False
    right = differences.std().item() / 40**0.5
    if not math.isclose(number, right, rel_tol=0.01):
        print(f"Not yet. For the numbers tried and n = 40 it is {right:.4f}, your answer was {number:.4f}.")
        advise([given], [differences], _ERROR_MISTAKES)
        return False
    print("Right: four times the images, half the luck.")
    return True


@torch.no_grad()
def accepted_changes(data: Data, batch_size: int, cycles: int = 3) -> tuple[list[float], list[float]]:
    """What the accepted changes of one_conv's last cycle do to the loss: of their mini-batch, and of all images.

    Of a network with more than 1000 weights, such as that for MNIST, only every second or third weight (and so on).
    """
    model = build("one_conv", data)
    weights = sum(parameter.numel() for parameter in model.parameters())
    every = math.ceil(weights / 1000)
    of_batch, of_all = [], []

    def whole_loss() -> float:
        return F.cross_entropy(model(data.x_train), data.y_train).item()

    search = steps(model, data, rso.RSO(cycles, batch_size, sigma_end=1.0), seed=0)
    looked_at = tqdm(search, total=cycles * weights, desc=f"batch {batch_size}", unit=" weights")
    for number, step in enumerate(looked_at):
        if step.cycle == cycles and step.choice != "keep" and number % every == 0:
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
