"""Stochastic gradient descent, the method that RSO is compared with (§4.4, §4.5): torch's own, and its schedule."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from rso_lab.descent import THERE_AND_BACK, Task, refuse_not_finite
from rso_lab.rso import BELOW_1, explained, is_number, refuse_what_cannot_be, with_meanings


@with_meanings
@dataclass(frozen=True)
class SGD:
    """The settings, the paper's where it gives them. Raises ValueError, naming the setting and what is allowed.

    The learning rate grows linearly over the first epochs, and is divided by ten twice.
    """

    uses_gradient: ClassVar[bool] = True

    epochs: int = explained("passes over the training set")
    batch_size: int = explained("images in a mini-batch (§4.4: 100 to 20,000)")
    learning_rate: float = explained("how far a step goes along the gradient (§4.4: 0.01 to 5)")
    _: KW_ONLY
    momentum: float = explained(
        "the share of the last step that the next one goes on with", least=0, most=BELOW_1, default=0.9
    )
    weight_decay: float = explained(
        "times |W|^2 / 2, added to the loss; of all parameters, as torch has it", least=0, default=1e-4
    )
    warm_up: int = explained(
        "epochs in which the rate grows, at most those before the first drop (§4.5)", least=0, default=5
    )
    drops: tuple[float, float] = explained(
        "the shares of the epochs after which the rate is divided by ten; the paper does not say", default=(0.5, 0.75)
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        refuse_what_cannot_be(self)
        drops = self.drops
        fits = isinstance(drops, tuple) and len(drops) == 2 and all(map(is_number, drops))
        if not fits or not 0 < drops[0] <= drops[1] <= 1:
            raise ValueError(f"drops is {drops!r}: expected two shares of the epochs, between 0 and 1, in order")


class SGDStepper:
    """SGD at work: a step is an iteration."""

    evaluations = period = 1

    def __init__(self, settings: SGD, task: Task):
        self.model, self.loss = task.network.module, task.loss
        self.multiply_adds = THERE_AND_BACK * task.forward
        self.optimizer, self.schedule = schedule_of(self.model, settings, task.batches)

    def step(self, x: Tensor, y: Tensor) -> float:
        """An iteration: see `descent.Stepper`."""
        self.optimizer.zero_grad()
        with torch.enable_grad():
            current = self.loss(self.model(x), y)
            current.backward()
        refuse_not_finite(current.item())
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if not bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all()):
            raise FloatingPointError("the gradient is not finite")
        self.optimizer.step()
        self.schedule.step()
        return current.item()

    def state_dict(self) -> dict[str, Any]:
        """Of optimizer and schedule."""
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


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
