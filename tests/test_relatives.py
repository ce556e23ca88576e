"""RSO's relatives: closed forms, loops written out in float64, torch's own optimizers, and what they share with SGD."""

import copy
import itertools
import math
from typing import ClassVar

import pytest
import reference
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import nn
from torch.nn.utils import parameters_to_vector, prune

import rso_lab as rso
from rso_lab import checkpoint
from rso_lab.graph import Network
from rso_lab.ranks import Ranks
from rso_lab.relatives.evolution import centred_ranks, estimate
from rso_lab.relatives.masks import score_gradient, shift_to, top_k
from rso_lab.relatives.surface import draw_rows, draw_seeds, noise_generator
from rso_lab.train import stepper_for

METHODS = {
    "RBD": rso.Subspace(2, 30, 0.5, dimensions=70, momentum=0.5),
    "RBD by layer": rso.Subspace(2, 30, 0.5, dimensions=70, compartments="layer", distribution="signs"),
    "FPD": rso.Subspace(2, 30, 0.5, dimensions=70, redraw=False, distribution="uniform"),
    "ES": rso.ES(2, 30, 0.02, samples=5),
    "NES": rso.ES(2, 30, 0.02, samples=3, sigma=0.01, antithetic=False, optimizer="sgd", own_batch=True),
    "GA": rso.GA(2, 30, population=7, parents=3),
    "masks by scores": rso.Masks(2, 30, 0.05, density=0.3),
    "masks by chance": rso.Masks(2, 30, 0.05, density=0.3, sampling="bernoulli", start="magnitude"),
    "fixed masks": rso.Masks(2, 30, 0.05, density=0.3, mask_rate=0.0),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def small_network(dtype=torch.float64):
    return reference.small_network(dtype)


def two_layers(dtype=torch.float64):
    """Without batch norms, 64-4-10: 310 weights."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10)).to(dtype)


def weights_of(model):
    return parameters_to_vector(model.parameters()).detach()


def mini_batches(data, method, seed):
    """Rows of each, as SGD's loop has them."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(method.epochs):
        order = torch.randperm(len(data.x_train), generator=generator)
        yield from order.split(method.batch_size)[: len(order) // method.batch_size]


def loss_at(model, weights, x, y):
    torch.nn.utils.vector_to_parameters(weights, model.parameters())
    return F.cross_entropy(model(x), y)


def by_torch(model, data, method, seed, momentum=0.0):
    """The same mini-batches, by torch's SGD."""
    optimizer = torch.optim.SGD(model.parameters(), method.learning_rate, momentum)
    for rows in mini_batches(data, method, seed):
        optimizer.zero_grad()
        F.cross_entropy(model(data.x_train[rows]), data.y_train[rows]).backward()
        optimizer.step()
    return weights_of(model)


# Settings

GIVEN = {"epochs": 1, "batch_size": 10}
WITH_RATE = GIVEN | {"learning_rate": 0.1}
NUMBERS = (0, -1.0, float("nan"), float("inf"), "1", None, True)
BAD = [
    *((rso.Subspace, WITH_RATE, "learning_rate", value) for value in NUMBERS),
    *((rso.Subspace, WITH_RATE, "dimensions", value) for value in (0, 1.5, None, True)),
    *((rso.Subspace, WITH_RATE, name, "odd") for name in ("compartments", "distribution", "redraw")),
    *((rso.Subspace, WITH_RATE, "momentum", value) for value in (1, -0.1, float("nan"))),
    *((rso.ES, WITH_RATE, name, value) for name in ("learning_rate", "sigma") for value in NUMBERS),
    *((rso.ES, WITH_RATE, name, "odd") for name in ("shaping", "optimizer", "antithetic", "own_batch", "samples")),
    *((rso.ES, WITH_RATE, name, value) for name, value in (("samples", 0), ("weight_decay", -1.0))),
    *((rso.GA, GIVEN, "sigma", value) for value in NUMBERS),
    *((rso.GA, GIVEN, name, value) for name in ("population", "parents") for value in (0, 1, 2.0, None)),
    (rso.GA, GIVEN, "parents", 101),
    *((rso.Masks, WITH_RATE, name, value) for name in ("density", "sigma") for value in NUMBERS),
    (rso.Masks, WITH_RATE, "density", 1.1),
    *((rso.Masks, WITH_RATE, name, "odd") for name in ("sampling", "start", "mask_output", "mask_rate")),
    *((rso.Masks, WITH_RATE, name, -1.0) for name in ("learning_rate", "mask_rate", "momentum")),
    (rso.Masks, WITH_RATE, "pairs", 0),
]


@pytest.mark.parametrize(("kind", "given", "name", "value"), BAD)
def test_a_bad_setting_is_named_with_its_value_and_what_is_allowed(kind, given, name, value):
    with pytest.raises(ValueError, match=r": expected .") as caught:
        kind(**{**given, name: value})
    assert str(caught.value).startswith(f"{name} is {value!r}: expected ")


def test_what_goes_together_is_taken():
    with pytest.raises(ValueError, match="nothing to rank"):
        rso.ES(1, 10, 0.1, samples=1, antithetic=False)
    rso.ES(1, 10, 0.1, samples=1, antithetic=False, shaping="none")
    rso.ES(1, 10, 0.1, samples=1)
    rso.GA(1, 10, population=2, parents=2)
    rso.Masks(1, 10, 0, density=1)
    with pytest.raises(ValueError, match="learning_rate is 0, with mask_rate=0: expected more"):
        rso.Masks(1, 10, 0, mask_rate=0)


def no_gradient(outputs, y):
    return (outputs.argmax(1) != y).double().mean()


def test_what_cannot_be_trained_is_said(digits, digits64):
    for method in METHODS.values():
        with pytest.raises(ValueError, match="expected 'auto' for"):
            rso.fit(two_layers(), digits64, method, seed=0, evaluator="plain")
        with pytest.raises(ValueError, match="seed is 4294967296: expected a whole number"):
            rso.fit(two_layers(), digits64, method, seed=2**32)
        if method.uses_gradient:
            with pytest.raises(ValueError, match=f"{type(method).__name__} needs one, ES and RSO do not"):
                rso.fit(two_layers(), digits64, method, seed=0, loss=no_gradient)
        else:
            assert rso.fit(two_layers(), digits64, method, seed=0, loss=no_gradient).cycles
    too_many = rso.Subspace(1, 10, 0.1, dimensions=311, distribution="orthonormal")
    with pytest.raises(ValueError, match="dimensions is 311: expected at most 310, the weights of the network"):
        rso.fit(two_layers(), digits64, too_many, seed=0)
    one_layer = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ValueError, match="mask_output is False: the network has no layer to mask"):
        rso.fit(one_layer, digits, rso.Masks(1, 10, 0.1), seed=0)
    assert rso.fit(one_layer, digits, rso.Masks(1, 10, 0.1, mask_output=True), seed=0).cycles
    normed = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    with pytest.raises(ValueError, match="the network has no layer to mask"):
        rso.fit(normed, digits, rso.Masks(1, 10, 0.1), seed=0)
    with pytest.raises(ValueError, match="batch_size is 121: expected at most 120"):
        rso.fit(one_layer, digits, rso.GA(1, 121), seed=0)
    with pytest.raises(ValueError, match="Masks runs in one process"):
        rso.fit(two_layers(), digits64, rso.Masks(1, 10, 0.1), seed=0, ranks=Ranks(0, 2))


# What all have in common


@each_method
def test_the_mini_batches_are_those_of_sgd(digits64, method):
    """A generation of several losses has one, or with `own_batch` a sample has."""
    seen = []

    def loss(outputs, y):
        if len(y) == 30 and not (seen and torch.equal(seen[-1], y)):
            seen.append(y.clone())
        return F.cross_entropy(outputs, y)

    rso.fit(small_network(), digits64, method, seed=7, loss=loss)
    expected = [digits64.y_train[rows] for rows in mini_batches(digits64, method, 7)]
    assert [y.tolist() for y in seen] == [y.tolist() for y in expected]


@each_method
def test_the_same_seed_gives_the_same_run_another_one_another_and_chance_is_left_alone(digits, method):
    state = torch.random.get_rng_state()
    runs = {}
    for seed, number in ((1, 0), (1, 1), (2, 0)):
        model = small_network(torch.float32)
        runs[seed, number] = [record.loss for record in rso.run(model, digits, method, seed=seed)]
        assert not any(module.training for module in model.modules())
    assert runs[1, 0] == runs[1, 1] != runs[2, 0]
    assert torch.equal(state, torch.random.get_rng_state())


@each_method
def test_it_ends_as_if_it_had_not_been_cut_off(digits, tmp_path, monkeypatch, method):
    """NES's third generation is under way when an epoch of four mini-batches ends."""
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    model = small_network(torch.float32)
    expected = rso.fit(model, digits, method, seed=3)
    cut = rso.run(small_network(torch.float32), digits, method, seed=3, checkpoint=tmp_path)
    next(cut)
    cut.close()
    other = rso.models.he_init_(small_network(torch.float32), 8)
    resumed = rso.fit(other, digits, method, seed=3, checkpoint=tmp_path, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert [r.loss for r in resumed.cycles] == [r.loss for r in expected.cycles]


@each_method
def test_an_interrupt_within_a_step_leaves_the_weights_of_the_step_before(digits64, method):
    """Masked where there are masks; the batch norms hold the training set's statistics."""
    model, calls = small_network(), itertools.count()
    held = []

    def loss(outputs, y):
        number = next(calls)
        if number in (1, 2):
            held.append(weights_of(model))
        if number == 2:  # of the first step, or where it has one loss of the second
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, y)

    with pytest.raises(KeyboardInterrupt):
        rso.fit(model, digits64, method, seed=0, loss=loss)
    assert torch.equal(weights_of(model), held[-1])
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(model[1].running_mean, model[0](digits64.x_train).mean((0, 2, 3)))


@each_method
def test_frozen_weights_are_left_alone(digits64, method):
    model = small_network()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    rso.fit(model, digits64, method, seed=0)
    assert torch.equal(model[0].weight, before[0].weight)
    assert not torch.equal(model[9].bias, before[9].bias)


def test_records_count_what_was_spent(digits64):
    forward = 30 * (64 * 4 + 4 * 10)
    expected = {
        "RBD": (8, 1, 3 * forward + 2 * 70 * 310),
        "RBD by layer": (8, 1, 3 * forward + 2 * (70 * 260 + 50 * 50)),
        "FPD": (8, 1, 3 * forward + 2 * 70 * 310),
        "ES": (8, 10, 10 * forward + 5 * 310),
        "NES": (2, 1, forward + 310),
        "GA": (8, 7, 7 * forward),
        "masks by scores": (8, 4, 12 * forward),
        "masks by chance": (8, 4, 12 * forward),
        "fixed masks": (8, 1, 3 * forward),
    }
    for name, (updates, evaluations, multiply_adds) in expected.items():
        last = rso.fit(two_layers(), digits64, METHODS[name], seed=0).cycles[-1]
        spent = last.updates, last.evaluations, last.multiply_adds
        assert spent == (updates, 8 * evaluations, 8 * multiply_adds), name


@pytest.mark.parametrize("name", ["RBD", "ES", "GA", "masks by scores"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_it_with_the_last_weights(digits64, name, value):
    model = two_layers()
    calls = itertools.count()

    def loss(outputs, y):
        return F.cross_entropy(outputs, y) + (value if next(calls) > 50 else 0.0)

    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in epoch \d"):
        rso.fit(model, digits64, replace_epochs(METHODS[name], 30), seed=0, loss=loss)
    assert weights_of(model).isfinite().all()


def replace_epochs(method, epochs):
    return type(method)(**{**vars(method), "epochs": epochs})


def test_weights_that_overflow_are_not_taken(digits):
    model = two_layers(torch.float32)
    with pytest.raises(FloatingPointError, match="in epoch"):
        rso.fit(model, digits, rso.ES(9, 30, 1e38, optimizer="sgd", samples=2, sigma=1e-3), seed=0)
    assert weights_of(model).isfinite().all()


# Subspace


@pytest.mark.parametrize("compartments", ["network", "layer"])
def test_along_all_orthonormal_directions_it_is_sgd(digits64, compartments):
    model, plain = two_layers(), two_layers()
    method = rso.Subspace(
        2, 30, 0.1, dimensions=310, distribution="orthonormal", compartments=compartments, momentum=0.0
    )
    rso.fit(model, digits64, method, seed=4)
    torch.testing.assert_close(weights_of(model), by_torch(plain, digits64, method, 4), rtol=0, atol=1e-12)


def stepper(method, model, data):
    return stepper_for(method, Network(model, data.x_train[:2]), data, 0, F.cross_entropy)


@pytest.mark.parametrize("redraw", [False, True])
def test_drawn_once_the_weights_stay_in_the_span(digits64, redraw):
    model = two_layers()
    method = rso.Subspace(2, 30, 0.5, dimensions=70, redraw=redraw)
    spread = stepper(rso.Subspace(2, 30, 0.5, dimensions=70, redraw=False), two_layers(), digits64)
    directions = torch.cat(spread.kept)
    assert directions.shape == (70, 310)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(70, dtype=torch.float64))
    start = weights_of(model)
    rso.fit(model, digits64, method, seed=0)
    moved = weights_of(model) - start
    outside = moved - directions.T @ torch.linalg.lstsq(directions.T, moved[:, None]).solution[:, 0]
    assert (outside.norm() < 1e-10) is not redraw


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [("orthonormal", 124 / 310), *((d, 124 / 435) for d in ("gaussian", "uniform", "signs"))],
)
def test_the_shadow_is_as_near_the_gradient_as_it_has_to_be(digits64, distribution, expected):
    """cos^2 is d / D on average for orthonormal rows, d / (D + d + 1) for others."""
    made = stepper(rso.Subspace(1, 30, 0.1, dimensions=124, distribution=distribution), two_layers(), digits64)
    gradient = torch.linspace(-1, 2, 310, dtype=torch.float64)
    found = [F.cosine_similarity(made.project(gradient), gradient, dim=0).square() for _ in range(300)]
    assert float(torch.stack(found).mean()) == pytest.approx(expected, rel=0.08)


def test_each_layer_has_directions_of_its_own(digits64):
    made = stepper(METHODS["RBD by layer"], two_layers(), digits64)
    assert [(p.rows, p.place) for p in made.pieces] == [
        (slice(0, 64), slice(0, 260)),
        (slice(64, 70), slice(0, 260)),
        (slice(70, 120), slice(260, 310)),
    ]


# ES


def test_central_differences_along_orthonormal_noise_are_a_quadratics_gradient():
    generator = torch.Generator().manual_seed(1)
    half = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    matrix, theta = half @ half.T, torch.randn(20, generator=generator, dtype=torch.float64)

    def loss(w):
        return w @ matrix @ w / 2

    settings = rso.ES(1, 1, 0.1, samples=20, sigma=0.3, shaping="none")
    noise = torch.linalg.qr(half).Q * math.sqrt(20)  # rows as long as Gaussian ones
    losses = torch.stack([torch.stack([loss(theta + 0.3 * row), loss(theta - 0.3 * row)]) for row in noise])
    torch.testing.assert_close(estimate(losses, noise, settings), matrix @ theta, rtol=1e-10, atol=1e-10)

    noise = torch.randn(20_000, 20, generator=generator, dtype=torch.float64)
    sides = [theta + 0.3 * noise, theta - 0.3 * noise]
    losses = torch.stack([(w @ matrix * w).sum(1) / 2 for w in sides], dim=1)
    each = (losses[:, :1] - losses[:, 1:]) / 0.6 * noise
    error = each.std(0) / math.sqrt(20_000)
    assert ((estimate(losses, noise, settings) - matrix @ theta).abs() < 4 * error).all()


def test_ranks_are_scipys_and_do_not_see_a_monotone_change():
    losses = torch.tensor([[0.3, 0.1], [0.3, 2.0], [-1.0, 0.1]], dtype=torch.float64)
    expected = (torch.from_numpy(rankdata(losses.flatten())) - 1).view(3, 2) / 5 - 0.5
    torch.testing.assert_close(centred_ranks(losses), expected, rtol=0, atol=1e-15)
    assert torch.equal(centred_ranks(losses.exp() * 7), centred_ranks(losses))
    worst = torch.tensor([1.0, math.nan, 2.0, -math.inf], dtype=torch.float64)
    expected = torch.tensor([-0.5, 1 / 3, -1 / 6, 1 / 3], dtype=torch.float64)
    torch.testing.assert_close(centred_ranks(worst), expected, rtol=0, atol=1e-15)


def test_a_member_that_is_not_finite_is_last_or_without_ranks_ends_it():
    losses, noise = torch.tensor([[1.0, math.nan]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    assert torch.equal(estimate(losses, noise, rso.ES(1, 1, 1, samples=1, sigma=0.5)), torch.full((3,), -1.0).double())
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        estimate(losses, noise, rso.ES(1, 1, 1, samples=1, shaping="none"))
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        estimate(losses * math.nan, noise, rso.ES(1, 1, 1, samples=1))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("antithetic", [True, False])
def test_es_is_the_loop_that_one_writes(digits64, optimizer, antithetic):
    method = rso.ES(2, 30, 0.05, samples=6, sigma=0.2, antithetic=antithetic, optimizer=optimizer, weight_decay=0.01)
    model, plain = two_layers(), two_layers()
    rso.fit(model, digits64, method, seed=5)
    theta = nn.Parameter(weights_of(plain))
    made = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]([theta], 0.05, weight_decay=0.01)
    noise = noise_generator(5)
    with torch.no_grad():
        for rows in mini_batches(digits64, method, 5):
            x, y = digits64.x_train[rows], digits64.y_train[rows]
            eps = draw_rows(draw_seeds(6, noise), 6, theta)
            signs = (1, -1) if antithetic else (1,)
            members = [sign * row for row in eps for sign in signs]
            losses = [float(loss_at(plain, theta + 0.2 * member, x, y)) for member in members]
            ranks = [sorted(losses).index(loss) / (len(losses) - 1) - 0.5 for loss in losses]
            votes = [rank * member / 0.2 for rank, member in zip(ranks, members, strict=True)]
            theta.grad = torch.stack(votes).mean(0)
            made.step()
    torch.testing.assert_close(weights_of(model), theta.detach(), rtol=1e-9, atol=1e-11)


def test_the_noise_has_a_stream_of_its_own():
    """Not the run's, and of seeds of 32 bits, which are all that torch's generator keeps."""
    first = torch.randn(9, generator=noise_generator(3))
    assert not torch.equal(first, torch.randn(9, generator=torch.Generator().manual_seed(3)))
    seeds = [seed for number in range(50) for seed in draw_seeds(130, noise_generator(number))]
    assert len(set(seeds)) == len(seeds) == 150
    assert 2**31 < max(seeds) < 2**32


# GA


def test_ga_is_the_naive_one(digits64):
    method = rso.GA(3, 40, population=9, parents=3, sigma=0.1)
    model, plain = two_layers(), two_layers()
    rso.fit(model, digits64, method, seed=6)
    batches = [(digits64.x_train[rows], digits64.y_train[rows]) for rows in mini_batches(digits64, method, 6)]
    losses = reference.losses_of(plain, batches)
    elite = reference.genetic(weights_of(plain), losses, 9, 3, 0.1, noise_generator(6))
    assert torch.equal(weights_of(model), elite)


def test_the_elite_goes_on(digits64):
    whole = len(digits64.x_train)
    model = two_layers()
    start = weights_of(model)
    rso.fit(model, digits64, rso.GA(3, whole, population=5, parents=2, sigma=1e-300), seed=0)
    assert torch.equal(weights_of(model), start)
    losses = [record.loss for record in rso.run(model, digits64, rso.GA(20, whole, population=9, parents=2), seed=0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


# Masks


@pytest.mark.parametrize("sampling", ["scores", "bernoulli"])
def test_with_all_weights_it_is_sgd_with_momentum(digits64, sampling):
    model, plain = two_layers(), two_layers()
    method = rso.Masks(2, 30, 0.1, density=1.0, sampling=sampling)
    rso.fit(model, digits64, method, seed=4)
    torch.testing.assert_close(weights_of(model), by_torch(plain, digits64, method, 4, 0.9), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["masks by scores", "masks by chance", "fixed masks"])
def test_as_many_weights_are_not_zero_as_the_density_says_at_every_record(digits64, name):
    model = small_network()
    masks = []
    for _ in rso.run(model, digits64, METHODS[name], seed=0):
        assert [int(model[i].weight.count_nonzero()) for i in (0, 4)] == [round(0.3 * 18), round(0.3 * 54)]
        assert model[9].weight.count_nonzero() == 120
        masks.append(model[4].weight != 0)
    model = small_network()
    method = rso.Masks(1, 30, 0.1, density=1e-6, mask_output=True)
    rso.fit(model, digits64, method, seed=0)
    assert [int(model[i].weight.count_nonzero()) for i in (0, 4, 9)] == [1, 1, 1]


def test_fixed_masks_stay_and_the_largest_weights_are_those_that_prune_keeps(digits64):
    model, pruned = two_layers(), two_layers()
    method = rso.Masks(2, 30, 0.1, density=0.2, start="magnitude", mask_rate=0.0)
    prune.l1_unstructured(pruned[1], "weight", amount=256 - round(0.2 * 256))
    rso.fit(model, digits64, method, seed=0)
    assert torch.equal(model[1].weight != 0, pruned[1].weight_mask.bool())
    scores = torch.rand(50, generator=torch.Generator().manual_seed(1))
    layer = nn.Linear(10, 5)
    prune.l1_unstructured(layer, "weight", amount=43, importance_scores=scores.view(5, 10))
    assert torch.equal(top_k(scores, 7).view(5, 10), layer.weight_mask)


def test_without_a_rate_the_mask_is_all_that_is_learned(digits64):
    model = two_layers()
    start, seen = model[1].weight.detach().clone(), []
    for _ in rso.run(model, digits64, rso.Masks(4, 30, 0, density=0.2, mask_rate=0.1), seed=0):
        used = model[1].weight != 0
        assert torch.equal(model[1].weight[used], start[used])
        seen.append(used)
    assert not torch.equal(seen[0], seen[-1])


def test_scores_that_raise_the_loss_go_down():
    """REINFORCE over all masks of six weights is the derivative of the expected loss; ranks stand in for losses."""
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)), dtype=torch.float64)
    losses = (masks @ torch.linspace(-1, 2, 6, dtype=torch.float64)).square()
    scores = torch.linspace(-2, 1, 6, dtype=torch.float64, requires_grad=True)
    chances = scores.sigmoid()
    probability = torch.where(masks > 0, chances, 1 - chances).prod(1)
    (derivative,) = torch.autograd.grad(probability @ losses, scores)
    found = (probability * losses) @ (masks - chances)
    torch.testing.assert_close(found.detach(), derivative, rtol=1e-10, atol=1e-12)
    ranked = torch.tensor(rankdata(losses) - 1) / 63 - 0.5
    expected = (ranked[:, None] * (masks - chances)).mean(0).detach()
    torch.testing.assert_close(score_gradient(losses, (masks - chances).detach()), expected)


def test_the_masks_that_are_drawn(digits64):
    """Pairs are opposite; chances are met; scores go along the noise."""
    settings = rso.Masks(1, 30, 0.1, density=0.25, sampling="bernoulli", pairs=2000)
    made = stepper(settings, two_layers(), digits64)
    masks, log_gradients = made.draw()
    chances = made.chances()
    assert float(chances.mean()) == pytest.approx(0.25, abs=1e-6)
    assert torch.equal(log_gradients, masks - chances)
    assert not bool((masks[:2000] * masks[2000:]).any())  # below one half, opposite draws never both use a weight
    error = (chances * (1 - chances) / 4000).sqrt()
    assert ((masks.mean(0) - chances).abs() < 5 * error).all()
    made = stepper(rso.Masks(1, 30, 0.1, density=0.25, pairs=3), two_layers(), digits64)
    masks, log_gradients = made.draw()
    assert torch.equal(log_gradients[:3], -log_gradients[3:])
    for mask, log_gradient in zip(masks, log_gradients, strict=True):
        assert torch.equal(mask, top_k(made.scores + 0.1 * 0.1 * log_gradient, 64))


def test_the_scores_fit_the_density():
    scores = torch.linspace(-30, 30, 61, dtype=torch.float64)
    moved = shift_to(scores / 20, 0.1)
    assert float(moved.sigmoid().mean()) == pytest.approx(0.1, abs=1e-6)
    torch.testing.assert_close(moved - moved[0], (scores - scores[0]) / 20)
    assert shift_to(scores, 0.5).abs().max() == 6


@pytest.mark.parametrize(("density", "size"), [(0.001, 2000), (1e-6, 2000), (0.02, 10)])
def test_the_chances_fit_as_many_weights_as_are_used(digits64, density, size):
    """Also where these are few, and then the scores still differ."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = nn.Linear(64, size // 10), nn.Linear(size // 10, 10), nn.Linear(10, 10)
    model = nn.Sequential(nn.Flatten(), *layers).double()
    made = stepper(rso.Masks(1, 30, 0.1, density=density, sampling="bernoulli"), model, digits64)
    _, chances = made.chances().split(made.sizes)
    assert float(chances.sum()) == pytest.approx(max(1, round(density * size)), rel=1e-4)
    assert len(chances.unique()) == size


# Ranks

SHARED = ["RBD", "RBD by layer", "FPD", "ES", "NES", "GA"]


def train_all(rank, count, folder):
    """In a process of its own: train with each method, and save what came of it, and what it sent in a step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet{count}", rank=rank, world_size=count)
    data = rso.load("digits", train_limit=120, test_limit=30)
    ranks, found = Counting(rank, count), {}
    for name in SHARED:
        model = small_network(torch.float32)
        rso.fit(model, data, METHODS[name], seed=0, ranks=ranks, checkpoint=f"{folder}/{count}{name}")
        trained = weights_of(model)
        ranks.sent.clear()
        network = Network(model, data.x_train[:2])
        one = stepper_for(METHODS[name], network, data, 0, F.cross_entropy, ranks)
        for _ in range(one.period):
            one.step(data.x_train[:30], data.y_train[:30])
        found[name] = trained, list(ranks.sent)
    torch.save(found, f"{folder}/{count}_{rank}.pt")
    dist.destroy_process_group()


class Counting(Ranks):
    """Keeps how many numbers it has sent."""

    sent: ClassVar[list[int]] = []

    def gather(self, numbers):
        self.sent.append(numbers.numel())
        return super().gather(numbers)


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_any_number_of_ranks_ends_in_the_same_weights_and_sends_coefficients_or_losses_only(tmp_path, digits):
    numbers = {"RBD": 70, "RBD by layer": 18 + 4 + 57 + 6 + 70, "FPD": 70, "ES": 10, "NES": 3, "GA": 7}
    alone = {name: small_network(torch.float32) for name in numbers}
    for name, model in alone.items():
        rso.fit(model, digits, METHODS[name], seed=0)
    for count in (2, 3):
        mp.spawn(train_all, (count, str(tmp_path)), nprocs=count)
        for rank in range(count):
            for name, (weights, sent) in torch.load(tmp_path / f"{count}_{rank}.pt").items():
                assert torch.equal(weights, weights_of(alone[name])), name
                assert sent == [numbers[name]], name


class Scaled(nn.Module):
    """A network with a number that is not trained."""

    def __init__(self, scale):
        super().__init__()
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 10)
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x):
        return self.last(torch.relu(self.first(x.flatten(1)) * self.scale))


@pytest.mark.parametrize(
    "method",
    [rso.Subspace(2, 40, 0.1), rso.ES(2, 40, 0.1, samples=2), rso.GA(2, 40, population=4, parents=2)],
    ids=repr,
)
def test_resumed_it_has_the_buffers_of_the_checkpoint(digits, tmp_path, method):
    torch.manual_seed(0)
    model = Scaled(1.0)
    undisturbed = copy.deepcopy(model)
    rso.fit(undisturbed, digits, method, seed=0)
    events = rso.run(model, digits, method, seed=0, checkpoint=tmp_path)
    next(events)
    events.close()
    other = Scaled(3.0)
    rso.fit(other, digits, method, seed=0, checkpoint=tmp_path, resume=True)
    assert all(map(torch.equal, other.state_dict().values(), undisturbed.state_dict().values()))


@pytest.mark.parametrize("sampling", ["scores", "bernoulli"])
def test_masks_leave_the_model_alone_until_they_train_and_take_layers_of_zeros(digits, sampling):
    torch.manual_seed(0)
    model = Scaled(1.0)
    nn.init.zeros_(model.first.weight)
    before = copy.deepcopy(model.state_dict())
    masks = stepper(rso.Masks(1, 60, 0.1, sampling=sampling, start="magnitude"), model, digits)
    assert all(map(torch.equal, before.values(), model.state_dict().values()))
    masks.step(digits.x_train, digits.y_train)
    assert masks.scores.isfinite().all()
    assert 0 < model.first.weight.count_nonzero() <= round(0.1 * 512)
