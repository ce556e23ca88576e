"""Descent in a subspace: of the gradient only its coordinates along some random directions are used."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from rso_lab.descent import THERE_AND_BACK, Task
from rso_lab.relatives.surface import Surface, chunks, draw_chunk, draw_rows, draw_seeds, noise_generator
from rso_lab.rso import BELOW_1, explained, refuse_what_cannot_be, with_meanings


@with_meanings
@dataclass(frozen=True)
class Subspace:
    """Gradient descent along a few random directions: a = P g, then theta - rate * P' a, for P (dimensions, D).

    theta (D,) are the weights, g (D,) the gradient. Directions drawn anew at each step: random bases descent (RBD;
    Gressmann, Eaton-Rosen & Luschi 2020). Drawn once: fixed projection descent (FPD), as in Li et al. 2018. Each
    direction has length 1, so a step is on average dimensions / D of SGD's; the rate has to make up for that. All
    "orthonormal" directions are in memory at once; of others, where they are drawn anew, 64. Raises ValueError, naming
    the setting, its value and what is allowed.
    """

    uses_gradient: ClassVar[bool] = True

    epochs: int = explained("passes over the training set (Gressmann: 100)")
    batch_size: int = explained("images in a mini-batch (Gressmann: 32)")
    learning_rate: float = explained(
        "times the projected gradient (Gressmann, on MNIST: 1.0 dense, 0.0625 convolutions)"
    )
    _: KW_ONLY
    dimensions: int = explained("directions (Gressmann, Table 1: 250)", default=250)
    redraw: bool = explained("draw them anew at each step (RBD), or once (FPD)", default=True)
    compartments: Literal["network", "layer"] = explained(
        "directions through all weights, or as many in each layer, at most its size (Gressmann tries both)",
        default="network",
    )
    distribution: Literal["gaussian", "uniform", "signs", "orthonormal"] = explained(
        "of their numbers, before each has its length (Gressmann: gaussian; uniform and Bernoulli, Table 2)",
        default="gaussian",
    )
    momentum: float = explained(
        "the share of the last step that the next one goes on with (Gressmann: 0)", least=0, most=BELOW_1, default=0.0
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        refuse_what_cannot_be(self)


class Piece(NamedTuple):
    """Directions that are drawn together."""

    rows: slice  # of P
    place: slice  # where in theta they are not 0


class SubspaceStepper:
    """RBD or FPD at work."""

    evaluations = period = 1

    def __init__(self, settings: Subspace, task: Task):
        self.settings, self.ranks = settings, task.ranks
        self.surface = Surface(task)
        self.theta = nn.Parameter(self.surface.here())
        self.pieces = list(_pieces(settings, self.surface))
        self.dimensions = self.pieces[-1].rows.stop
        numbers = sum(_length(piece.rows) * _length(piece.place) for piece in self.pieces)
        self.multiply_adds = THERE_AND_BACK * task.forward + 2 * numbers
        self.optimizer = torch.optim.SGD([self.theta], settings.learning_rate, settings.momentum)
        self.noise = noise_generator(task.seed)
        self.kept = [] if settings.redraw else list(map(self.drawing(), range(len(self.pieces))))

    def drawing(self) -> Callable[[int], Tensor]:
        """How the next directions are drawn, given a piece's number: in any order, and as often as one likes."""
        seeds = [draw_seeds(_length(piece.rows), self.noise) for piece in self.pieces]
        return lambda number: self.draw(self.pieces[number], seeds[number])

    def draw(self, piece: Piece, seeds: list[int]) -> Tensor:
        """Its directions (rows, weights), each of length 1."""
        rows, like = _length(piece.rows), self.theta.detach()[piece.place]
        if self.settings.distribution == "orthonormal":
            return torch.linalg.qr(draw_rows(seeds, rows, like).T).Q.T
        directions = draw_chunk(seeds[0], rows, like, self.settings.distribution)
        return directions / directions.norm(dim=1, keepdim=True)

    def step(self, x: Tensor, y: Tensor) -> float:
        """One step along the projected gradient: see `descent.Stepper`."""
        loss, gradient = self.surface.slope(self.theta, 1.0, x, y)
        self.theta.grad = self.project(gradient)
        self.optimizer.step()
        self.surface.move_to(self.theta)
        return loss

    def project(self, gradient: Tensor) -> Tensor:
        """P' P g (D,), for the gradient g (D,).

        Ranks find the coordinates along a share of the directions each, and all of them rebuild the sum, piece after
        piece in the same order. Each rank draws each piece once a step, so it keeps the moves along its own.
        """
        directions = self.drawing() if self.settings.redraw else self.kept.__getitem__
        total, numbers = torch.zeros_like(gradient), list(range(len(self.pieces)))
        coordinates = gradient.new_zeros(self.dimensions)
        moves: dict[int, Tensor] = {}
        for number in self.ranks.own(numbers):
            piece, drawn = self.pieces[number], directions(number)
            coordinates[piece.rows] = drawn @ gradient[piece.place]
            moves[number] = drawn.T @ coordinates[piece.rows]
            if self.ranks.count == 1:
                total[piece.place] += moves.pop(number)
        if self.ranks.count == 1:
            return total
        coordinates = self.ranks.sum(coordinates)
        for number in numbers:
            piece = self.pieces[number]
            if number not in moves:
                moves[number] = directions(number).T @ coordinates[piece.rows]
            total[piece.place] += moves.pop(number)
        return total

    def state_dict(self) -> dict[str, Any]:
        """Weights, momentum and noise."""
        return {
            "theta": self.theta.detach(),
            "optimizer": self.optimizer.state_dict(),
            "noise": self.noise.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; directions that are drawn once follow from the seed."""
        self.theta.data.copy_(state["theta"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.noise.set_state(state["noise"])


def _pieces(settings: Subspace, surface: Surface) -> Iterator[Piece]:
    """Chunks of the directions of each compartment. Raises ValueError for more orthonormal ones than there can be."""
    by_layer, orthonormal = settings.compartments == "layer", settings.distribution == "orthonormal"
    if orthonormal and not by_layer and settings.dimensions > surface.size:
        raise ValueError(
            f"dimensions is {settings.dimensions}: expected at most {surface.size}, the weights of the network, for "
            "orthonormal directions"
        )
    begun = 0
    for place in _compartments(settings, surface):
        rows = min(settings.dimensions, _length(place)) if by_layer else settings.dimensions
        for part in [rows] if orthonormal else chunks(rows):
            yield Piece(slice(begun, begun + part), place)
            begun += part


def _compartments(settings: Subspace, surface: Surface) -> list[slice]:
    """Where in theta each compartment is: all of it, or each module's own weights."""
    if settings.compartments == "network":
        return [slice(0, surface.size)]
    by_layer = itertools.groupby(surface.places, key=lambda name: name.rpartition(".")[0])
    layers = [list(names) for _, names in by_layer]
    return [slice(surface.places[names[0]].start, surface.places[names[-1]].stop) for names in layers]


def _length(part: slice) -> int:
    return part.stop - part.start
