"""Lesson 03: what a proposal gains, and its direction."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from rso_lab import rso
from rso_lab.data import Data
from rso_lab.graph import Network
from rso_lab.lessons.answers import advise, ask, number_of
from rso_lab.models import build
from rso_lab.train import fit


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
        """By how much the better of w + δ and w - δ changes the loss; δ ~ N(0, step * sigma_d) in `moved` weights."""
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
    (
        lambda ab: (ab[0] * ab[1]).sum() / (len(ab[0]) * len(ab[1])),
        "len(a) counts the numbers. The length of an arrow is a.norm().",
    ),
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
    given = ask("cosine", answer, a, b, wanted="a number")
    if given is None or (number := number_of(given)) is None:
        return False
    right = float(F.cosine_similarity(a, b, dim=0))
    if not math.isclose(number, right, rel_tol=1e-4):
        print(f"Not yet. For two arrows of 20 numbers it is {right:.4f}, your answer was {number:.4f}.")
        advise([given], [(a, b)], _COSINE_MISTAKES)
        return False
    print("Right: 1 for the same direction, 0 for a right angle, -1 for the opposite.")
    return True
