"""Lesson 01: He's rule, normalised images, random networks."""

import math
from collections.abc import Callable

import torch

from rso_lab.data import Data
from rso_lab.lessons.answers import advise, ask, number_of, stopped
from rso_lab.models import build

# Fan-in, fan-out and what they are of: the shapes that a learner's rule is tried on.
_SHAPES = [(16, 144, (16, 16, 3, 3)), (4, 9, (4, 1, 3, 3)), (10, 64, (10, 64))]

_SIGMA_MISTAKES: list[tuple[Callable[[torch.Tensor], float], str]] = [
    (lambda w: 2 / w[0].numel(), "That is the variance: sigma is its square root."),
    (lambda w: (1 / w[0].numel()) ** 0.5, "Without the 2: ReLU lets only half of the signal's square through."),
    (lambda w: (2 / w.shape[0]) ** 0.5, "You divide by the outputs. Each output sums over its inputs: count those."),
    (lambda w: (2 / w.numel()) ** 0.5, "You divide by all weights. Count those of one output neuron."),
    (lambda w: 2 / w[0].numel() ** 0.5, "The root is of the whole fraction: brackets around 2 / w[0].numel()."),
    (
        lambda w: (2 / (w.shape[1] * 9)) ** 0.5,
        "Not every layer has 3 x 3 places: w[0].numel() counts whatever is there.",
    ),
    (lambda w: (2 / w.shape[1]) ** 0.5, "An output of a convolution also sums over the kernel's places: w[0].numel()."),
    (lambda w: float(w.std()), "That is the spread it has. The rule says which it should have, from its shape alone."),
]


def check_he_sigma(answer: Callable[[torch.Tensor], float]) -> bool:
    """Check a learner's `he_sigma(weight)`; prints what to change, and returns whether it is right."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for _, _, shape in _SHAPES]
    try:
        answers = [answer(weight) for weight in weights]
    except Exception as error:
        stopped("he_sigma", error)
        if "unpack" in str(error) or "index out of range" in str(error):
            print(
                "A linear layer's weight tensor has two dimensions, a convolution's four: weight[0].numel() suits both."
            )
        return False
    if all(given is None or given is ... for given in answers):
        print("Not done yet: he_sigma returns nothing. It should return a number.")
        return False
    for (_, fan_in, shape), given in zip(_SHAPES, answers, strict=True):
        right = (2 / fan_in) ** 0.5
        if (number := number_of(given)) is None:
            return False
        if not math.isclose(number, right, rel_tol=1e-6):
            print(f"Not yet. For a weight tensor of shape {shape} it is {right:.4f}, your answer was {given!r}.")
            advise(answers, weights, _SIGMA_MISTAKES)
            return False
    print("Right: your rule keeps the signals as large as they came.")
    return True


_NORMALISE_MISTAKES: list[tuple[Callable[[torch.Tensor], torch.Tensor], str]] = [
    (lambda x: x - x.mean(), "Divide by the deviation, too."),
    (lambda x: x / x.std(), "Subtract the mean first."),
    (lambda x: x - x.mean() / x.std(), "Python divides first: brackets around x - x.mean()."),
    (lambda x: (x - x.mean()) / x.var(), "You divide by the variance. The deviation is its square root."),
    (
        lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True),
        "Each image by its own mean: that takes away how dark it is as a whole. Use one mean for all.",
    ),
    (lambda x: (x - x.mean(0)) / (x.std(0) + 1e-8), "Each pixel by its own mean. Use one mean for all."),
    (lambda x: x / x.max(), "That is a scale from 0 to 1. The mean has to become 0, the deviation 1."),
]


def check_normalise(answer: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Check a learner's `normalise(x)`; prints what to change, and returns whether it is right."""
    x = 16 * torch.rand((50, 1, 8, 8), generator=torch.Generator().manual_seed(0)) ** 3
    x *= torch.linspace(0.5, 1, 50).view(-1, 1, 1, 1)
    given = ask("normalise", answer, x.clone(), wanted="the images, changed")
    if given is None:
        return False
    if not isinstance(given, torch.Tensor) or given.shape != x.shape:
        print("Not yet: return a tensor of the same shape as x.")
        return False
    given = given.to(x.dtype)
    mean, deviation = given.mean().item(), given.std().item()
    spread = (x - x.mean()) / x.std()
    if not torch.allclose(given, spread, atol=0.02):
        print(f"Not yet. Yours have the mean {mean:.3f} and the deviation {deviation:.3f}; wanted are 0 and 1.")
        advise([given], [x], _NORMALISE_MISTAKES)
        return False
    print("Right: mean 0, deviation 1.")
    return True


@torch.no_grad()
def random_networks(data: Data, count: int) -> list[float]:
    """Test accuracies of one_conv with random weights, of so many seeds."""
    models = (build("one_conv", data, seed) for seed in range(count))
    return [(model(data.x_test).argmax(dim=1) == data.y_test).double().mean().item() for model in models]
