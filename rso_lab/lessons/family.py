"""Lesson 11: a gradient's shadow on random directions, what a cloud of networks votes for, what a mask keeps."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from rso_lab import plots
from rso_lab.data import Data
from rso_lab.lessons.answers import advise, ask
from rso_lab.models import build
from rso_lab.sgd import SGD
from rso_lab.train import run


def gradient_of(model: nn.Module, data: Data) -> Tensor:
    """The gradient (D,) of the loss of 500 training images, by all weights."""
    return _gradient(model, data.x_train[:500], data.y_train[:500])


def estimated(plus: Tensor, minus: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """The gradient (D,) that the losses (n,) at the centre +- sigma * noise speak for; noise (n, D)."""
    return (plus - minus) @ noise / (2 * sigma * len(plus))


class Plane:
    """The loss of mlp in a plane of its weights, on 500 images; places are two lengths from the random start.

    The first leads to where SGD gets in five epochs, the second, at a right angle to it, downhill.
    """

    def __init__(self, data: Data):
        self.model = build("mlp", data)
        self.x, self.y = data.x_train[:500], data.y_train[:500]
        trained = build("mlp", data)
        deque(run(trained, data, SGD(5, 32, 0.1), seed=0), maxlen=0)
        self.start = _flat(self.model.parameters())
        there = _flat(trained.parameters()) - self.start
        self.trained = torch.tensor([float(there.norm()), 0.0])  # its place
        along = there / there.norm()
        down = -gradient_of(self.model, data)
        aside = F.normalize(down - (down @ along) * along, dim=0)
        self.axes = torch.stack([along, aside])

    def downhill_at(self, place: Tensor) -> Tensor:
        """Minus the slope along both axes (2,)."""
        self._go_to(place)
        return -self.axes @ _gradient(self.model, self.x, self.y)

    @torch.no_grad()
    def losses(self, places: Tensor) -> Tensor:
        """At each of these places (n, 2): (n,)."""
        found = []
        for place in places:
            self._go_to(place)
            found.append(F.cross_entropy(self.model(self.x), self.y))
        return torch.stack(found)

    def _go_to(self, place: Tensor) -> None:
        nn.utils.vector_to_parameters(self.start + place @ self.axes, self.model.parameters())

    def surface(self, along: Tensor, aside: Tensor) -> Tensor:
        """The loss (aside, along) at all pairs of these."""
        places = torch.cartesian_prod(aside, along).flip(1)
        return self.losses(places).view(len(aside), len(along))


def kept_pixels(models: Mapping[str, nn.Module], data: Data) -> Figure:
    """How many weights of the first layer of each mlp read each pixel, on a map of how much the pixels differ.

    Says how much those differ that are read: their standard deviation over the images, a mean over the weights.
    """
    differ = data.x_train.std(dim=0).mean(dim=0)
    print(f"The pixels differ by {differ.mean():.2f} from image to image, in the mean of all of them.")
    counts = {}
    for name, model in models.items():
        read = (model.get_parameter("fc1.weight") != 0).sum(dim=0).view(differ.shape)
        mean = (read * differ).sum() / read.sum()
        print(f"{name}: {read.sum()} weights; the pixels that they read differ by {mean:.2f}")
        counts[name] = read.numpy()
    return plots.pixels(differ.numpy(), counts)


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return _flat(torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters())))


def _flat(parameters: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


_SHADOW_MISTAKES: list[tuple[Callable[..., Any], str]] = [
    (
        lambda gp: gp[1] @ (gp[1] @ gp[0]),
        "The transpose is missing: `directions @ ...` measures along the directions. What adds the directions up is "
        "`directions.T @ ...`.",
    ),
    (
        lambda gp: gp[1] @ gp[0],
        "Those are the coordinates, a number for each direction. Now add the directions up, each times its "
        "coordinate: directions.T @ ...",
    ),
    (
        lambda gp: gp[1].T @ gp[0],
        "`directions.T @ ...` adds the directions up, each times a number: its coordinate, not a slope of the "
        "gradient. The coordinates come first: directions @ gradient.",
    ),
    (
        lambda gp: gp[1].T @ (gp[1].T @ gp[0]),
        "The first product has a transpose too many: the coordinates are directions @ gradient.",
    ),
    (lambda gp: -gp[0], "The shadow points where the gradient does, uphill. The minus comes later, with the step."),
    (
        lambda gp: gp[0] / len(gp[1]),
        "Nothing is divided: the shadow is the sum of the directions, each times its coordinate, not their mean.",
    ),
    (lambda gp: gp[1].sum(0), "You add the directions up as they are. Each counts as much as its coordinate."),
    (
        lambda gp: (gp[1] * gp[0]).sum(0),
        "`*` multiplies number by number. What is wanted are sums of such products: `@`.",
    ),
]


def check_shadow(answer: Callable[[Tensor, Tensor], Any]) -> bool:
    """Check a learner's `shadow(gradient, directions)` with directions at right angles, as many as weights and fewer.

    Says what to change; returns whether it is right.
    """
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(5, generator=generator)
    basis = torch.linalg.qr(torch.randn(5, 5, generator=generator)).Q
    for directions, right in ((basis, gradient), (basis[:2], basis[:2].T @ (basis[:2] @ gradient))):
        given = _arrow("shadow", answer, (gradient.clone(), directions.clone()), 5, "the shadow")
        if given is None:
            return False
        if not torch.allclose(given, right, atol=1e-5):
            if len(directions) == 5:
                print("Not yet. 5 directions at right angles miss nothing of 5 weights: the shadow is the gradient.")
                advise([given], [(gradient, basis)], _SHADOW_MISTAKES)
            else:
                print("Not yet. It is right for 5 directions of 5 weights, but not for 2.")
                if torch.allclose(given, gradient, atol=1e-5):
                    print("Your answer is the gradient itself. Of it, 2 directions show a part only.")
            return False
    print("Right: 5 directions of 5 weights show the whole gradient, 2 of them a part.")
    return True


_ES_MISTAKES: list[tuple[Callable[..., Any], str]] = [
    (
        lambda q: (q[0] - q[1]) @ q[2] / (2 * len(q[0])),
        "sigma is missing: the two members of a pair are 2 * sigma * noise apart, and a slope is a difference "
        "divided by the distance.",
    ),
    (
        lambda q: -estimated(*q),
        "The sign: you took the loss for a reward, of which more is better. The gradient of a loss points uphill, to "
        "where it is larger: plus - minus.",
    ),
    (
        lambda q: estimated(*q) / q[3],
        "You divide by sigma twice: the noise that multiplies has no sigma in it, so one is enough.",
    ),
    (
        lambda q: estimated(*q) * 2,
        "Twice as long as it should be: plus and minus are 2 * sigma * noise apart, on both sides of the centre.",
    ),
    (
        lambda q: (q[0] - q[1]) @ q[2] / 2 * q[3] / len(q[0]),
        "Python divides by 2 and multiplies by sigma: brackets around (2 * sigma).",
    ),
    (
        lambda q: estimated(*q) * len(q[0]) / q[2].shape[1],
        "Divide by the number of pairs, len(plus), not by that of the weights.",
    ),
    (lambda q: estimated(*q) * len(q[0]), "The mean over the pairs, not the sum: divide by their number, len(plus)."),
    (
        lambda q: q[0] @ q[2] / (q[3] * len(q[0])),
        "minus takes no part. Its loss shows how much of plus was there in any case.",
    ),
    (
        lambda q: (q[0] + q[1]) @ q[2] / (2 * q[3] * len(q[0])),
        "plus + minus tells how high the two are together. The slope is in plus - minus.",
    ),
    (
        lambda q: ((q[0] - q[1]) * q[2]).mean(0) / (2 * q[3]),
        "`*` multiplies each pair's difference with a weight's column. Each has a row of noise: use `@`, or [:, None].",
    ),
]


def check_es_gradient(answer: Callable[[Tensor, Tensor, Tensor, float], Any]) -> bool:
    """Check a learner's `es_gradient(plus, minus, noise, sigma)` on a quadratic, whose gradient it finds exactly.

    Says what to change; returns whether it is right.
    """
    generator = torch.Generator().manual_seed(0)
    matrix, centre = torch.randn(4, 4, generator=generator), torch.randn(4, generator=generator)
    sigma = 0.3

    def loss(weights: Tensor) -> Tensor:
        return (weights @ matrix).square().sum(1) / 2 + 2

    # At right angles, and as long as four numbers from N(0, 1) are in the mean of the squares.
    across = 2 * torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    for noise in (across, across[:3]):
        question = (loss(centre + sigma * noise), loss(centre - sigma * noise), noise, sigma)
        copies = tuple(part.clone() for part in question[:3])
        given = _arrow("es_gradient", answer, (*copies, sigma), 4, "the estimate")
        if given is None:
            return False
        right = estimated(*question)
        if not torch.allclose(given, right, rtol=1e-3, atol=1e-3):
            print(f"Not yet. The estimate from {len(noise)} pairs is {_numbers(right)}, yours is {_numbers(given)}.")
            advise([given], [question], _ES_MISTAKES)
            return False
    print("Right: of a quadratic, 4 pairs at right angles tell the gradient of 4 weights exactly.")
    return True


def _arrow(name: str, answer: Callable, question: tuple, size: int, wanted: str) -> Tensor | None:
    """What a learner's function returns, `size` numbers; None, with a word to the learner, where it is not that."""
    given = ask(name, answer, *question, wanted=wanted)
    if given is None:
        return None
    if not isinstance(given, Tensor):
        print(f"Not yet: a tensor is wanted, your answer was of the type {type(given).__name__}.")
        return None
    if given.shape != (size,):
        print(f"Not yet: {wanted} has the shape ({size},), a number for each weight; yours has {tuple(given.shape)}.")
        return None
    return given.float()


def _numbers(arrow: Tensor) -> str:
    return f"({', '.join(f'{number:.2f}' for number in arrow.tolist())})"
