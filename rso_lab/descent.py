"""Training by steps of one mini-batch each: the loop that SGD and its relatives have in common."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rso_lab.data import Data
from rso_lab.graph import Network
from rso_lab.ranks import ALONE, Ranks
from rso_lab.rso import LossFunction

THERE_AND_BACK = 3  # a pass forward and back costs so many forward passes: backwards, a layer takes two products


class Settings(Protocol):
    """What the settings of such a method say of the loop."""

    @property
    def epochs(self) -> int:
        """Passes over the training set."""

    @property
    def batch_size(self) -> int:
        """Images in a mini-batch."""


@dataclass(frozen=True)
class Task:
    """What a method is to train, and with whom."""

    network: Network
    loss: LossFunction
    seed: int
    batches: int  # that an epoch has
    forward: int  # multiply-adds of the network for a mini-batch
    ranks: Ranks = ALONE


class Stepper(Protocol):
    """A method at work on a model."""

    evaluations: int  # passes over a mini-batch that a step makes
    multiply_adds: int  # of a step
    period: int  # how many steps make one update of the weights

    def step(self, x: Tensor, y: Tensor) -> float:
        """Train on a mini-batch, x (B, ...) and y (B,), and return its loss.

        Raises FloatingPointError, with the weights as they were, where that is not finite.
        """

    def state_dict(self) -> dict[str, Any]:
        """All that it goes on from, beside the model's weights; ranks that share the work call it together."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; the model has its weights already."""


def batches_of(data: Data, settings: Settings) -> int:
    """How many mini-batches an epoch has."""
    return len(data.x_train) // settings.batch_size


def descend(
    network: Network, data: Data, settings: Settings, stepper: Stepper, generator: torch.Generator, done: int = 0
) -> Iterator[int]:
    """Train in place, from the epoch on before which `done` are done; after each step, yields how many there have been.

    An epoch takes as many whole mini-batches as there are, in a random order. While a step is made, batch norms use the
    mini-batch's statistics; else the model is in eval mode. Raises FloatingPointError when the loss is not finite.
    """
    model = network.module
    norms = [model.get_submodule(name) for name in network.batch_norms]
    batches = batches_of(data, settings)
    for epoch in range(done, settings.epochs):
        order = torch.randperm(len(data.x_train), generator=generator).to(data.x_train.device)
        for number, rows in enumerate(order.split(settings.batch_size)[:batches], 1):
            for norm in norms:
                norm.train()
            try:
                stepper.step(data.x_train[rows], data.y_train[rows])
            except FloatingPointError as error:
                raise FloatingPointError(f"{error} in epoch {epoch + 1}") from None
            finally:
                model.eval()
            yield epoch * batches + number


def refuse_not_finite(loss: float) -> None:
    """Raise FloatingPointError for a loss that is not finite; `descend` adds the epoch."""
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss}")
