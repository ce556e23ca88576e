"""Lesson 11: shadows of the gradient, votes of a cloud, and what masks keep."""

import copy
import statistics

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rso_lab as rso
from rso_lab import lessons, plots
from rso_lab.lessons.family import (
    _ES_MISTAKES,
    _SHADOW_MISTAKES,
    Plane,
    check_es_gradient,
    check_shadow,
    estimated,
)
from rso_lab.quizzes import QUIZZES

SOURCE = rso.experiments.RESULTS.parent / "notebooks" / "source" / "11_family.py"


def shadow(gradient, directions):
    return directions.T @ (directions @ gradient)


def with_a_loop(gradient, directions):
    total = torch.zeros(len(gradient))
    for direction in directions:
        total += (direction * gradient).sum() * direction
    return total


@pytest.mark.parametrize(
    "answer",
    [shadow, with_a_loop, lambda g, p: g @ p.T @ p, lambda g, p: (p @ g) @ p, lambda g, p: p.mT @ p @ g],
)
def test_a_right_shadow_passes(answer, capsys):
    assert check_shadow(answer)
    assert capsys.readouterr().out.startswith("Right")


SHADOW_MISTAKES = {
    "no transpose": (lambda g, p: p @ (p @ g), "The transpose is missing"),
    "coordinates": (lambda g, p: p @ g, "Those are the coordinates"),
    "no coordinates": (lambda g, p: p.T @ g, "The coordinates come first"),
    "two transposes": (lambda g, p: p.T @ (p.T @ g), "a transpose too many"),
    "downhill": (lambda g, p: -shadow(g, p), "The minus comes later"),
    "mean": (lambda g, p: shadow(g, p) / len(p), "Nothing is divided"),
    "no weights": (lambda g, p: p.sum(0), "as much as its coordinate"),
    "star": (lambda g, p: (p * g).sum(0), "multiplies number by number"),
    "all of it": (lambda g, p: g, "2 directions show a part only"),
    "a matrix": (lambda g, p: p.T @ p, "has the shape (5,)"),
    "a list": (lambda g, p: shadow(g, p).tolist(), "of the type list"),
    "an error": (lambda g, p: p.nothing, "stopped with AttributeError"),
}


@pytest.mark.parametrize("name", SHADOW_MISTAKES)
def test_a_mistake_in_the_shadow_is_named(name, capsys):
    answer, named = SHADOW_MISTAKES[name]
    assert not check_shadow(answer)
    said = capsys.readouterr().out
    assert said.startswith("Not yet")
    assert named in said


def es_gradient(plus, minus, noise, sigma):
    return (plus - minus) @ noise / (2 * sigma * len(plus))


def pair_by_pair(plus, minus, noise, sigma):
    slopes = [(p - m) / (2 * sigma) for p, m in zip(plus, minus, strict=True)]
    return torch.stack([slope * row for slope, row in zip(slopes, noise, strict=True)]).mean(0)


@pytest.mark.parametrize(
    "answer", [es_gradient, pair_by_pair, lambda p, m, n, s: ((p - m)[:, None] * n).mean(0) / (2 * s)]
)
def test_a_right_estimate_passes(answer, capsys):
    assert check_es_gradient(answer)
    assert capsys.readouterr().out.startswith("Right")


ES_CASES = {
    "no sigma": (lambda p, m, n, s: es_gradient(p, m, n, 1), "sigma is missing"),
    "a reward": (lambda p, m, n, s: es_gradient(m, p, n, s), "you took the loss for a reward"),
    "sigma twice": (lambda p, m, n, s: es_gradient(p, m, n, s) / s, "You divide by sigma twice"),
    "one sigma of two": (lambda p, m, n, s: (p - m) @ n / (s * len(p)), "Twice as long"),
    "no brackets": (lambda p, m, n, s: (p - m) / 2 * s @ n / len(p), "brackets around (2 * sigma)"),
    "sum": (lambda p, m, n, s: (p - m) @ n / (2 * s), "divide by their number, len(plus)"),
    "weights": (lambda p, m, n, s: (p - m) @ n / (2 * s * n.shape[1]), "not by that of the weights"),
    "plus only": (lambda p, m, n, s: p @ n / (s * len(p)), "minus takes no part"),
    "added": (lambda p, m, n, s: (p + m) @ n / (2 * s * len(p)), "The slope is in plus - minus"),
    "star": (lambda p, m, n, s: ((p - m) * n).mean(0) / (2 * s), "Each has a row of noise"),
    "slopes": (lambda p, m, n, s: (p - m) / (2 * s), "Not yet"),
    "an error": (lambda p, m, n, s: p @ m @ n, "stopped with RuntimeError"),
    "no mean": (lambda p, m, n, s: (p - m)[:, None] * n / (2 * s), "has the shape (4,)"),
}


@pytest.mark.parametrize("name", ES_CASES)
def test_a_mistake_in_the_estimate_is_named(name, capsys):
    answer, named = ES_CASES[name]
    assert not check_es_gradient(answer)
    said = capsys.readouterr().out
    assert said.startswith("Not yet")
    assert named in said


@pytest.mark.parametrize("stub", [None, ...])
def test_a_stub_is_not_done_yet(stub, capsys):
    def shadow(gradient, directions):
        return stub

    def es_gradient(plus, minus, noise, sigma):
        return stub

    for answer in (shadow, es_gradient):
        lessons.check(answer)
        assert capsys.readouterr().out.startswith("Not done yet")


def test_each_piece_of_advice_is_for_one_mistake():
    for mistakes, cases in ((_SHADOW_MISTAKES, SHADOW_MISTAKES), (_ES_MISTAKES, ES_CASES)):
        for _, advice in mistakes:
            assert sum(named in advice for _, named in cases.values()) == 1, advice


def test_pairs_at_right_angles_tell_the_gradient_of_a_quadratic():
    """Against autograd, in float64."""
    generator = torch.Generator().manual_seed(1)
    matrix, centre = torch.randn(6, 6, generator=generator).double(), torch.randn(6, generator=generator).double()
    centre.requires_grad_()

    def loss(weights):
        return (weights @ matrix).square().sum(-1) + weights.sum(-1)

    (gradient,) = torch.autograd.grad(loss(centre), centre)
    noise = 6**0.5 * torch.linalg.qr(torch.randn(6, 6, generator=generator).double()).Q
    members = [loss(centre.detach() + sign * 0.2 * noise) for sign in (1, -1)]
    assert torch.allclose(estimated(*members, noise, 0.2), gradient, atol=1e-12)


@pytest.fixture(scope="module")
def plane(digits):
    return Plane(digits)


def test_the_plane_is_the_loss(plane, digits):
    model = rso.models.build("mlp", digits)
    along, aside = plane.axes
    assert torch.allclose(plane.axes @ plane.axes.T, torch.eye(2), atol=1e-5)
    places = torch.tensor([[0.0, 0.0], [1.5, -0.5]])
    for place, loss in zip(places, plane.losses(places), strict=True):
        weights = nn.utils.parameters_to_vector(rso.models.build("mlp", digits).parameters())
        nn.utils.vector_to_parameters(weights + place[0] * along + place[1] * aside, model.parameters())
        assert F.cross_entropy(model(digits.x_train), digits.y_train).item() == pytest.approx(loss.item(), rel=1e-5)
    surface = plane.surface(torch.tensor([0.0, 1.5]), torch.tensor([0.0, 1.0, -0.5]))
    assert surface[2, 1].item() == pytest.approx(plane.losses(places)[1].item())
    assert plane.losses(plane.trained[None]) < 0.5 * plane.losses(places[:1])


def test_downhill_is_minus_the_slope(plane):
    place, step = torch.tensor([0.7, -0.4]), 1e-2
    for axis, down in enumerate(plane.downhill_at(place)):
        away = step * torch.eye(2)[axis]
        high, low = plane.losses(torch.stack([place + away, place - away]))
        assert down.item() == pytest.approx(((low - high) / (2 * step)).item(), rel=0.02)


def test_the_gradient_is_autograds(digits):
    model = rso.models.build("mlp", digits)
    F.cross_entropy(model(digits.x_train), digits.y_train).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert torch.equal(lessons.gradient_of(model, digits), expected)


def test_kept_pixels_counts_the_weights_that_are_used(digits, capsys):
    model = rso.models.build("mlp", digits)
    with torch.no_grad():
        model.fc1.weight.zero_()
        model.fc1.weight[3:5, 20] = 1.0  # pixel (2, 4)
        model.fc1.weight[7, 0] = -1.0
    figure = lessons.kept_pixels({"mine": model}, digits)
    differ = digits.x_train.std(dim=0).flatten()
    assert f"mine: 3 weights; the pixels that they read differ by {(2 * differ[20] + differ[0]) / 3:.2f}" in (
        capsys.readouterr().out
    )
    (dots,) = figure.axes[0].collections
    assert dots.get_offsets().tolist() == [[0, 0], [4, 2]]
    assert dots.get_sizes()[1] == 2 * dots.get_sizes()[0]
    assert np.array_equal(figure.axes[0].images[0].get_array(), differ.view(8, 8).numpy())
    assert "mine: 3 weights" in plots.describe(figure)


def _mean(name, method):
    """Test accuracy at the end, of all seeds."""
    runs = rso.experiments.read(rso.experiments.RESULTS / f"{name}_class.json")["runs"]
    ends = [run["cycles"][-1]["test_accuracy"] for run in runs if run["method"] == method]
    assert len(ends) == 3
    return f"{100 * statistics.mean(ends):.1f} %"


@pytest.mark.parametrize(
    "quote",
    [
        "ten kept read {} of the test images, ten drawn anew {}.".format(
            *(_mean("subspace", f"10 {way}") for way in ("fixed", "re-drawn"))
        ),
        "kept read {}, drawn anew {}, and SGD {}.".format(
            *(_mean("subspace", way) for way in ("250 fixed", "250 re-drawn", "SGD"))
        ),
        "GA {}, RSO at the network level {}, ES {}, RSO {}.".format(
            *(_mean("evolution", way) for way in ("GA", "RSO, network level", "ES", "RSO"))
        ),
        "random {}, learned {}, and {} with all weights".format(
            *(_mean("masks", way) for way in ("2 %, random, fixed", "2 %, scores", "dense"))
        ),
        f"hardly a difference: {_mean('masks', '10 %, random, fixed')} and {_mean('masks', '10 %, scores')}.",
        f"twice the pairs and 15 epochs, it is {_mean('masks', '10 %, mask only')}.",
        f"we see {_mean('masks', '10 %, scores')} against {_mean('masks', 'dense')}, at 2 % it is "
        f"{_mean('masks', '2 %, scores')}.",
    ],
)
def test_what_the_lesson_quotes_is_recorded(quote):
    assert quote in SOURCE.read_text("utf-8").replace("\n# ", " ")


@torch.no_grad()
def _losses_around(model, data, sigma):
    """Of 50 members, on 500 images."""
    noisy, found = copy.deepcopy(model), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        for parameter, centre in zip(noisy.parameters(), model.parameters(), strict=True):
            parameter.copy_(centre + sigma * torch.randn(centre.shape, generator=generator))
        found.append(F.cross_entropy(noisy(data.x_train[:500]), data.y_train[:500]).item())
    return found


def test_what_the_lesson_works_out_is_right():
    said = SOURCE.read_text("utf-8").replace("\n# ", " ")
    data = rso.load("digits")
    model = rso.models.build("mlp", data)
    gradient = lessons.gradient_of(model, data)
    size, sigma = len(gradient), rso.ES(1, 1, 1.0).sigma
    losses = torch.tensor(_losses_around(model, data, sigma))
    loss = losses.mean().item()
    assert f"0.1 · sqrt(2,410) = {sigma * size**0.5:.1f} away" in said
    assert f"each member has a loss of about {loss:.1f}, by {losses.std():.1f} more or less" in said
    assert f"All losses are about {loss:.1f}." in QUIZZES["11"][1][0]
    drowned = loss / sigma * (size / 50) ** 0.5
    assert f"{loss:.1f} / 0.1 · sqrt(2,410 / 50) = {round(drowned, -1):.0f} long" in said
    assert f"the gradient is {gradient.norm():.0f} long" in said
    assert f"250 of 101,770 is one in {101_770 / 250:.0f}." in said
    assert f"has {model.fc1.weight.numel():,} weights. At a density of 2 % it has {round(0.02 * 2048)} left" in said
