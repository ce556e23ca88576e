"""Evolution: many networks around one, or descended from the best, of which only the losses are looked at."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rso_lab.descent import Task
from rso_lab.relatives.surface import Surface, draw_rows, draw_seeds, noise_generator
from rso_lab.rso import explained, refuse_what_cannot_be, with_meanings


@with_meanings
@dataclass(frozen=True)
class ES:
    """An evolution strategy (Salimans et al. 2017): the losses of networks all around one say which way is down.

    The estimate of the gradient is the mean of loss * noise / sigma over all members, a sample's mirror image having
    the opposite noise; then the optimizer takes a step. Gressmann et al.'s NES is samples=250, sigma=0.01,
    antithetic=False, optimizer="sgd", own_batch=True; their code also divides the step by sqrt(D), for D weights, so
    its rate of 0.005 is 0.005 / sqrt(D) here. Raises ValueError, naming the setting.
    """

    uses_gradient: ClassVar[bool] = False

    epochs: int = explained("passes over the training set")
    batch_size: int = explained("images in a mini-batch, one a generation (Gressmann: 32)")
    learning_rate: float = explained("of the optimizer (Salimans: Adam 0.01; Gressmann: 0.005 / sqrt(D))")
    _: KW_ONLY
    samples: int = explained(
        "directions of noise in a generation (Salimans: 5,000, each with its mirror image; Gressmann: 250)", default=25
    )
    sigma: float = explained("how far out the members are (Salimans: 0.02; Gressmann: 0.01)", default=0.1)
    antithetic: bool = explained(
        "each sample has a mirror image, with the opposite noise (Salimans: so; Gressmann: not)", default=True
    )
    shaping: Literal["ranks", "none"] = explained(
        "the losses' ranks, from -0.5, the best, to 0.5, in their place (both papers), or the losses", default="ranks"
    )
    optimizer: Literal["adam", "sgd"] = explained(
        "what takes the step (Salimans: adam; Gressmann: sgd)", default="adam"
    )
    weight_decay: float = explained(
        "times the weights, added to the estimate (Salimans: 0.005, where it is not divided by sigma: 0.005 / sigma)",
        least=0,
        default=0.0,
    )
    own_batch: bool = explained(
        "each sample has a mini-batch of its own, shared with its mirror image (Gressmann: so)", default=False
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        refuse_what_cannot_be(self)
        if self.samples == 1 and not self.antithetic and self.shaping == "ranks":
            raise ValueError(
                "samples is 1, with antithetic=False and shaping='ranks': expected more of them, nothing to rank"
            )


class ESStepper:
    """An evolution strategy at work. The model holds the centre."""

    def __init__(self, settings: ES, task: Task):
        self.settings, self.ranks = settings, task.ranks
        self.surface = Surface(task)
        self.theta = nn.Parameter(self.surface.here())
        kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.SGD
        self.optimizer = kind([self.theta], settings.learning_rate, weight_decay=settings.weight_decay)
        self.noise = noise_generator(task.seed)
        self.sides = (1, -1) if settings.antithetic else (1,)
        at_once = 1 if settings.own_batch else settings.samples
        self.period = settings.samples // at_once
        self.evaluations = at_once * len(self.sides)
        self.multiply_adds = self.evaluations * task.forward + at_once * self.surface.size
        self.begin()

    def begin(self) -> None:
        """The next generation; its noise is drawn when it is needed."""
        self.seeds: list[int] = []
        self.drawn: Tensor | None = None  # (samples, D)
        self.measured = 0  # samples
        shape = self.settings.samples, len(self.sides)
        self.losses = self.theta.new_zeros(shape, dtype=torch.float64, requires_grad=False)  # 0: another rank's

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> float:
        """A generation, or with `own_batch` its next sample; the loss is the mean of this rank's. See `Stepper`."""
        samples, centre = self.settings.samples, self.theta.detach()
        self.seeds = self.seeds or draw_seeds(samples, self.noise)
        if self.drawn is None:
            self.drawn = draw_rows(self.seeds, samples, centre)
        now = range(self.measured, self.measured + samples // self.period)
        own = [sample for sample in now if sample % self.ranks.count == self.ranks.rank]
        for sample in own:
            for side, sign in enumerate(self.sides):
                member = centre + sign * self.settings.sigma * self.drawn[sample]
                self.losses[sample, side] = self.surface.height(member, x, y)
        self.measured = now.stop
        loss = float(self.losses[own].mean()) if own else math.nan
        if self.measured == samples:
            self.theta.grad = estimate(self.ranks.sum(self.losses), self.drawn, self.settings)
            self.optimizer.step()
            self.surface.move_to(self.theta)
            self.begin()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, noise and the generation under way."""
        return {
            "theta": self.theta.detach(),
            "optimizer": self.optimizer.state_dict(),
            "noise": self.noise.get_state(),
            "seeds": self.seeds,
            "measured": self.measured,
            "losses": self.ranks.sum(self.losses),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; of the losses each rank takes its own."""
        self.theta.data.copy_(state["theta"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.noise.set_state(state["noise"])
        self.seeds, self.measured = state["seeds"], state["measured"]
        self.losses[self.ranks.rank :: self.ranks.count] = state["losses"][self.ranks.rank :: self.ranks.count].to(
            self.losses.device
        )


def estimate(losses: Tensor, noise: Tensor, settings: ES) -> Tensor:
    """The gradient (D,) that losses (samples, 1 or 2) speak for, the second those of the opposite noise (samples, D).

    Raises FloatingPointError where no loss is finite, without ranks where one is not.
    """
    finite = losses.isfinite()
    if not bool(finite.any() if settings.shaping == "ranks" else finite.all()):
        raise FloatingPointError(f"the loss is {float(losses[~finite][0])}")
    shaped = centred_ranks(losses) if settings.shaping == "ranks" else losses
    votes = shaped[:, 0] - shaped[:, 1] if losses.shape[1] == 2 else shaped[:, 0]
    return votes.to(noise.dtype) @ noise / (losses.numel() * settings.sigma)


def centred_ranks(losses: Tensor) -> Tensor:
    """From -0.5, the lowest of losses (...), to 0.5; equal ones share their mean rank. What is not finite is last."""
    comparable = losses.nan_to_num(math.inf, math.inf, math.inf)
    _, place, count = comparable.unique(return_inverse=True, return_counts=True)
    ranks = count.cumsum(0) - (count + 1) / 2  # from 0
    return ranks.to(losses.dtype)[place] / (losses.numel() - 1) - 0.5


@with_meanings
@dataclass(frozen=True)
class GA:
    """A genetic algorithm (Such et al. 2017): the best of a generation have children, changed at random; no crossover.

    The best of all, the elite, goes on unchanged, and is measured anew with each mini-batch; the model holds it. The
    first generation are children of the model as it comes (Such: each member has an initialisation of its own).
    Raises ValueError, naming the setting, its value and what is allowed.
    """

    uses_gradient: ClassVar[bool] = False

    epochs: int = explained("passes over the training set")
    batch_size: int = explained("images in a mini-batch, one a generation")
    _: KW_ONLY
    population: int = explained("members, the elite among them (Such, Atari: 1,000)", default=100)
    parents: int = explained("the best so many have children (Such, Atari: 20)", default=20)
    sigma: float = explained("deviation of a child from its parent (Such, Atari: 0.002)", default=0.02)

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        refuse_what_cannot_be(self)
        for name in ("population", "parents"):
            if getattr(self, name) == 1:
                raise ValueError(f"{name} is 1: expected at least 2, for there to be a choice")
        if self.parents > self.population:
            raise ValueError(f"parents is {self.parents}: expected at most {self.population}, the population")


class GAStepper:
    """A genetic algorithm at work: a step is a generation."""

    period = 1

    def __init__(self, settings: GA, task: Task):
        self.settings, self.ranks = settings, task.ranks
        self.surface = Surface(task)
        self.parents = self.surface.here()[None]  # (parents, D): the best first
        self.noise = noise_generator(task.seed)
        self.evaluations = settings.population
        self.multiply_adds = settings.population * task.forward

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> float:
        """A generation; the loss is the new elite's: see `descent.Stepper`."""
        population, elite = self.settings.population, self.parents[:1]
        chosen = torch.randint(len(self.parents), (population - 1,), generator=self.noise).to(elite.device)
        noise = draw_rows(draw_seeds(population - 1, self.noise), population - 1, elite[0])
        members = torch.cat([elite, self.parents[chosen] + self.settings.sigma * noise])
        losses = members.new_zeros(population, dtype=torch.float64)
        for number in self.ranks.own(list(range(population))):
            losses[number] = self.surface.height(members[number], x, y)
        losses = self.ranks.sum(losses)
        best_first = losses.nan_to_num(math.inf, math.inf, math.inf).argsort(stable=True)
        best = float(losses[best_first[0]])
        if not math.isfinite(best):
            raise FloatingPointError(f"the loss is {best}")
        self.parents = members[best_first[: self.settings.parents]]
        self.surface.move_to(self.parents[0])
        return best

    def state_dict(self) -> dict[str, Any]:
        """Parents and noise."""
        return {"parents": self.parents, "noise": self.noise.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.parents = state["parents"].to(self.parents.device)
        self.noise.set_state(state["noise"])
