"""What the relatives have in common: the loss as a function of one vector of weights, and noise that can be redrawn."""

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from rso_lab.descent import Task, refuse_not_finite
from rso_lab.rso import as_loss

CHUNK = 64  # rows of noise that are drawn together, from a seed of their own


class Surface:
    """The loss of a mini-batch, given all trained weights as one vector (D,). The model changes in `move_to` only."""

    def __init__(self, task: Task):
        self.model, self.loss = task.network.module, task.loss
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        ends = torch.tensor([0, *(p.numel() for p in self.trained.values())]).cumsum(0).tolist()
        self.places = {name: slice(*ends[i : i + 2]) for i, name in enumerate(self.trained)}
        self.size = ends[-1]
        self.scratch = {  # batch norms write there
            f"{norm}.{name}".lstrip("."): buffer.clone()
            for norm in task.network.batch_norms
            for name, buffer in self.model.get_submodule(norm).named_buffers()
        }

    def here(self) -> Tensor:
        """A copy of the model's weights (D,)."""
        # torch's parameters_to_vector takes no channels_last ones, and vector_to_parameters would share our memory.
        return torch.cat([parameter.detach().flatten() for parameter in self.trained.values()])

    @torch.no_grad()
    def move_to(self, weights: Tensor) -> None:
        """Give the model these weights (D,). Raises FloatingPointError, before it does, where one is not finite."""
        if not bool(weights.isfinite().all()):
            raise FloatingPointError("a weight is not finite")
        for name, parameter in self.trained.items():
            parameter.copy_(weights[self.places[name]].view_as(parameter))

    def at(self, weights: Tensor, x: Tensor, y: Tensor) -> Any:
        """The loss of a mini-batch, as the loss function gives it, with these weights (D,)."""
        given = {name: weights[self.places[name]].view_as(parameter) for name, parameter in self.trained.items()}
        return self.loss(functional_call(self.model, {**given, **self.scratch}, (x,)), y)

    @torch.no_grad()
    def height(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The loss (), float64, finite or not."""
        return as_loss(self.at(weights, x, y), weights.device)

    @torch.enable_grad()
    def slope(self, weights: Tensor, mask: Tensor | float, x: Tensor, y: Tensor) -> tuple[float, Tensor]:
        """The loss at weights * mask, and its gradient by the weights (D,).

        Raises FloatingPointError where either is not finite.
        """
        weights = weights.detach().requires_grad_()
        loss = self.at(weights * mask, x, y)
        refuse_not_finite(loss.item())
        (gradient,) = torch.autograd.grad(loss, weights)
        if not bool(gradient.isfinite().all()):
            raise FloatingPointError("the gradient is not finite")
        return loss.item(), gradient


def noise_generator(seed: int) -> torch.Generator:
    """A run's second generator. Its seed is another number than the run's: the same would give the same stream."""
    return torch.Generator().manual_seed(draw_seed(torch.Generator().manual_seed(seed)))


def draw_seed(generator: torch.Generator) -> int:
    """A seed of the 32 bits that torch's generator on the CPU keeps."""
    return int(torch.randint(2**32, (), generator=generator))


def draw_seeds(rows: int, generator: torch.Generator) -> list[int]:
    """A seed of 32 bits for each chunk of so many rows."""
    return [draw_seed(generator) for _ in chunks(rows)]


def chunks(rows: int) -> list[int]:
    """How many rows each chunk has. Other chunks would be other noise: torch draws rows together, not row by row."""
    return [min(CHUNK, rows - begun) for begun in range(0, rows, CHUNK)]


def draw_chunk(seed: int, rows: int, like: Tensor, distribution: str = "gaussian") -> Tensor:
    """Noise (rows, D) as wide as `like` (D,), of its dtype and on its device; the same for the same seed.

    From N(0, 1), from U(-1, 1), or of +-1 ("signs").
    """
    generator, shape = torch.Generator().manual_seed(seed), (rows, len(like))
    if distribution == "uniform":
        drawn = torch.rand(shape, generator=generator, dtype=like.dtype).mul_(2).sub_(1)
    elif distribution == "signs":
        drawn = torch.randint(2, shape, generator=generator, dtype=like.dtype).mul_(2).sub_(1)
    else:
        drawn = torch.randn(shape, generator=generator, dtype=like.dtype)
    return drawn.to(like.device)


def draw_rows(seeds: list[int], rows: int, like: Tensor, distribution: str = "gaussian") -> Tensor:
    """All chunks (rows, D)."""
    return torch.cat(
        [draw_chunk(seed, part, like, distribution) for seed, part in zip(seeds, chunks(rows), strict=True)]
    )
