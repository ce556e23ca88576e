"""Stochastic gradient descent, the method that RSO is compared with (§4.4, §4.5): torch's own, and its schedule."""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from rso_lab.data import Data
from rso_lab.graph import Network
from rso_lab.rso import as_python, explained, is_number, is_whole, with_meanings


@with_meanings
@dataclass(frozen=True)
class SGD:
    """The settings, the paper's where it gives them. Raises ValueError, naming the setting and what is allowed.

    The learning rate grows linearly over the first epochs, and is divided by ten twice.
    """

    epochs: int = explained("passes over the training set")
    batch_size: int = explained("images in a mini-batch (§4.4: 100 to 20,000)")
    learning_rate: float = explained("how far a step goes along the gradient (§4.4: 0.01 to 5)")
    _: KW_ONLY
    momentum: float = explained("the share of the last step that the next one goes on with", default=0.9)
    weight_decay: float = explained(
        "times |W|^2 / 2, added to the loss; of all parameters, as torch has it", default=1e-4
    )
    warm_up: int = explained("epochs in which the rate grows, at most those before the first drop (§4.5)", default=5)
    drops: tuple[float, float] = explained(
        "the shares of the epochs after which the rate is divided by ten; the paper does not say", default=(0.5, 0.75)
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        as_python(self)
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name == "drops":
                fits = isinstance(value, tuple) and len(value) == 2 and all(map(is_number, value))
                fits = fits and 0 < value[0] <= value[1] <= 1
                allowed = "two shares of the epochs, between 0 and 1, in order"
            elif setting.type is int:
                least = 0 if setting.name == "warm_up" else 1
                fits = is_whole(value) and value >= least
                allowed = f"a whole number, at least {least}"
            elif setting.name == "learning_rate":
                fits, allowed = is_number(value) and 0 < value <= sys.float_info.max, "a finite number, more than 0"
            else:
                most = math.nextafter(1, 0) if setting.name == "momentum" else sys.float_info.max
                fits = is_number(value) and 0 <= value <= most
                allowed = "a number from 0 to below 1" if most < 1 else "a finite number, 0 or more"
            if not fits:
                raise ValueError(f"{setting.name} is {value!r}: expected {allowed}")


def descend(
    network: Network,
    data: Data,
    settings: SGD,
    generator: torch.Generator,
    loss: Callable[[Any, Any], Any],
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
) -> Iterator[int]:
    """Train the network, in eval mode, in place; after each iteration, yields how many there have been.

    An epoch takes as many whole mini-batches as there are, in a random order. While one trains, batch norms use the
    mini-batch's statistics. Optimizer and schedule are from `schedule_of`; where they have been in use, the training
    goes on at the epoch that they have come to. Raises FloatingPointError when the loss is not finite.
    """
    model = network.module
    norms = [model.get_submodule(name) for name in network.batch_norms]
    batches = batches_of(data, settings)
    for epoch in range(schedule.last_epoch // batches, settings.epochs):
        order = torch.randperm(len(data.x_train), generator=generator).to(data.x_train.device)
        for number, rows in enumerate(order.split(settings.batch_size)[:batches], 1):
            for norm in norms:
                norm.train()
            try:
                optimizer.zero_grad()
                with torch.enable_grad():
                    current = loss(model(data.x_train[rows]), data.y_train[rows])
                    current.backward()
                if not math.isfinite(current.item()):
                    raise FloatingPointError(f"the loss is {current.item()} in epoch {epoch + 1}")
                optimizer.step()
                schedule.step()
            finally:
                model.eval()
            yield epoch * batches + number


def batches_of(data: Data, settings: SGD) -> int:
    """How many iterations an epoch has."""
    return len(data.x_train) // settings.batch_size


def schedule_of(model: nn.Module, settings: SGD, batches: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """The optimizer, and what sets its learning rate for each iteration, of which an epoch has `batches`."""
    optimizer = torch.optim.SGD(
        model.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
    )
    drops = [math.ceil(share * settings.epochs) * batches for share in settings.drops]
    growth = max(1, min(settings.warm_up * batches, drops[0]))

    def share_of_the_rate(iteration: int) -> float:
        return min(1.0, (iteration + 1) / growth) * 0.1 ** sum(iteration >= drop for drop in drops)

    return optimizer, LambdaLR(optimizer, share_of_the_rate)
