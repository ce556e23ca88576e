"""Masks by evolution, weights by gradient descent: networks that are sparse from the first step on."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from rso_lab.descent import THERE_AND_BACK, Task
from rso_lab.relatives.evolution import centred_ranks
from rso_lab.relatives.surface import Surface, draw_rows, draw_seeds, noise_generator
from rso_lab.rso import BELOW_1, explained, refuse_what_cannot_be, with_meanings

MASK_RATES = {"scores": 0.003, "bernoulli": 3.0}
FARTHEST = 6.0  # that a Bernoulli score may be from 0, beyond the logit of the density


@with_meanings
@dataclass(frozen=True)
class Masks:
    """An evolution strategy learns which weights are used, SGD learns the weights, both from the same passes.

    So does the hybrid of Lenc et al. 2019, sparse from the first step. We had its abstract only; the rest is ours: each
    weight has a score, and in each tensor the k weights with the highest scores are used; masks are drawn in pairs; SGD
    takes the mean gradient of a step's masks; and all default values. Masked are the weights of convolutions and linear
    layers, not their biases, and not the output layer unless told.

    After each step the model's weights are theta times the mask of the top k = max(1, round(density * size)).
    Raises ValueError, naming the setting, its value and what is allowed.
    """

    uses_gradient: ClassVar[bool] = True

    epochs: int = explained("passes over the training set")
    batch_size: int = explained("images in a mini-batch")
    learning_rate: float = explained("of the weights; 0: only the mask is learned", least=0)
    _: KW_ONLY
    density: float = explained("the share of each masked tensor's weights that is used", most=1.0, default=0.1)
    sampling: Literal["scores", "bernoulli"] = explained(
        "the top k of the scores with noise added and subtracted, or each weight with a chance of its own",
        default="scores",
    )
    pairs: int = explained("pairs of opposite masks in a step, each a pass there and back", default=2)
    sigma: float = explained("deviation of the scores' noise, and of the scores at first in each tensor", default=0.1)
    mask_rate: float | None = explained(
        "how far a step moves the scores; 0: the mask stays, in one pass a step; None: 0.003 for scores, "
        "3 for bernoulli",
        least=0,
        default=None,
    )
    start: Literal["random", "magnitude"] = explained(
        "the scores at first: random, or the larger the weight the higher", default="random"
    )
    momentum: float = explained(
        "the share of the last step that the weights' next one goes on with", least=0, most=BELOW_1, default=0.9
    )
    mask_output: bool = explained("mask the output layer, the last convolution or linear layer, too", default=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        refuse_what_cannot_be(self)
        if self.learning_rate == 0 and self.mask_rate == 0:
            raise ValueError("learning_rate is 0, with mask_rate=0: expected more of one of them, nothing to train")


class MasksStepper:
    """Masks at work. The model holds the masked weights, `theta` all of them."""

    period = 1

    def __init__(self, settings: Masks, task: Task):
        self.settings = settings
        self.surface = Surface(task)
        names = masked_tensors(settings, task, self.surface)
        self.theta = nn.Parameter(self.surface.here())
        sizes = [self.surface.trained[name].numel() for name in names]
        self.active = [max(1, round(settings.density * size)) for size in sizes]  # in each masked tensor
        self.sizes = sizes
        self.indices = torch.cat([torch.arange(self.surface.size)[self.surface.places[name]] for name in names])
        self.indices = self.indices.to(self.theta.device)  # places in theta
        self.rate = MASK_RATES[settings.sampling] if settings.mask_rate is None else settings.mask_rate
        self.evaluations = 2 * settings.pairs if self.rate else 1
        self.multiply_adds = THERE_AND_BACK * task.forward * self.evaluations
        self.optimizer = torch.optim.SGD([self.theta], settings.learning_rate, settings.momentum)
        self.noise = noise_generator(task.seed)
        self.scores = self.first_scores()

    def first_scores(self) -> Tensor:
        """Scores (masked weights,): in each tensor of mean 0 and deviation sigma; of chances, moved to fit."""
        like = self.theta.detach()[self.indices]
        (scores,) = draw_rows(draw_seeds(1, self.noise), 1, like)
        if self.settings.start == "magnitude":
            sizes = [part.abs() for part in like.split(self.sizes)]
            scores = torch.cat([(part - part.mean()) / part.std(correction=0).clamp_min(1e-30) for part in sizes])
        scores = self.settings.sigma * scores
        return self.fitting(scores) if self.settings.sampling == "bernoulli" else scores

    def apply_mask(self) -> None:
        """Give the model theta times the mask of the top scores."""
        self.surface.move_to(self.theta.detach() * self.full_mask(self.top(self.scores)))

    def top(self, scores: Tensor) -> Tensor:
        """The mask (masked weights,): 1 for the k highest of each tensor's scores, else 0."""
        return torch.cat([top_k(part, k) for part, k in zip(scores.split(self.sizes), self.active, strict=True)])

    def full_mask(self, mask: Tensor) -> Tensor:
        """The mask of all weights (D,), given that of the masked ones: 1 for the others."""
        return torch.ones_like(self.theta).index_copy_(0, self.indices, mask)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Masks (2 * pairs, masked weights), plus then minus, and of each the gradient of its log-probability.

        It is the gradient by the scores, of the same shape.
        """
        settings = self.settings
        kind = "gaussian" if settings.sampling == "scores" else "uniform"
        noise = draw_rows(draw_seeds(settings.pairs, self.noise), settings.pairs, self.scores, kind)
        if settings.sampling == "scores":
            away = torch.cat([noise, -noise])
            masks = torch.stack([self.top(self.scores + settings.sigma * row) for row in away])
            return masks, away / settings.sigma
        chances = self.chances()
        masks = (torch.cat([noise, -noise]) < 2 * chances - 1).to(chances.dtype)
        return masks, masks - chances

    def chances(self) -> Tensor:
        """With which each masked weight is used, where each is drawn by itself; 1 in a tensor of which all are."""
        parts = zip(self.scores.split(self.sizes), self.active, strict=True)
        return torch.cat([part.sigmoid() if k < len(part) else torch.ones_like(part) for part, k in parts])

    def fitting(self, scores: Tensor) -> Tensor:
        """The scores (masked weights,), in each tensor moved by one number: k of its weights are drawn on average."""
        parts = zip(scores.split(self.sizes), self.active, strict=True)
        return torch.cat([shift_to(part, k / len(part)) if k < len(part) else part for part, k in parts])

    def step(self, x: Tensor, y: Tensor) -> float:
        """A step of the weights and one of the scores; the loss is the mean over the masks: see `descent.Stepper`."""
        masks, log_gradients = self.draw() if self.rate else (self.top(self.scores)[None], None)
        found = [self.surface.slope(self.theta, self.full_mask(mask), x, y) for mask in masks]
        losses = torch.tensor([loss for loss, _ in found], dtype=torch.float64)
        self.theta.grad = torch.stack([gradient for _, gradient in found]).mean(0)
        self.optimizer.step()
        if log_gradients is not None:
            moved = self.scores - self.rate * score_gradient(losses, log_gradients)
            self.scores = self.fitting(moved) if self.settings.sampling == "bernoulli" else moved
        self.apply_mask()
        return float(losses.mean())

    def state_dict(self) -> dict[str, Any]:
        """All weights, momentum, scores and noise."""
        return {
            "theta": self.theta.detach(),
            "optimizer": self.optimizer.state_dict(),
            "scores": self.scores,
            "noise": self.noise.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.theta.data.copy_(state["theta"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scores = state["scores"].to(self.scores.device)
        self.noise.set_state(state["noise"])


def masked_tensors(settings: Masks, task: Task, surface: Surface) -> list[str]:
    """Names of the trained weights of convolutions and linear layers. Raises ValueError where none can be masked."""
    weighted = [layer for layer in task.network.layers if isinstance(layer.module, _ConvNd | nn.Linear)]
    if not settings.mask_output:
        weighted = weighted[:-1]
    names = [name for layer in weighted if (name := f"{layer.name}.weight".lstrip(".")) in surface.trained]
    if not names:
        raise ValueError(f"mask_output is {settings.mask_output}: the network has no layer to mask")
    return names


def top_k(scores: Tensor, k: int) -> Tensor:
    """1 for the k highest scores (size,), else 0."""
    return torch.zeros_like(scores).index_fill_(0, scores.topk(k).indices, 1)


def score_gradient(losses: Tensor, log_gradients: Tensor) -> Tensor:
    """The estimated gradient of the loss by the scores (size,): REINFORCE, with ranks for the losses (masks,).

    log_gradients (masks, size) are those of the log-probability of each mask.
    """
    return centred_ranks(losses).to(log_gradients) @ log_gradients / len(log_gradients)


def shift_to(scores: Tensor, density: float) -> Tensor:
    """The scores (size,) moved by one number, found by bisection, for a mean chance of `density`, below 1.

    None ends farther from 0 than the density's logit plus 6: at a fixed bound, scores of a low density would be equal.
    """
    logit = math.log(density / (1 - density))
    low, high = logit - float(scores.max()), logit - float(scores.min())
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if float((scores + middle).sigmoid().mean()) > density else (middle, high)
    farthest = FARTHEST + abs(logit)
    return (scores + low).clamp_(-farthest, farthest)
