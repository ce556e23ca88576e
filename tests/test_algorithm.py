"""Algorithm 1 against the naive second version in reference.py, step by step in float64."""

import copy
import itertools
import math

import pytest
import reference
import torch

import rso_lab as rso

SETTINGS = [
    {},
    {"order": "input"},
    {"layer_order": "input_first"},
    {"order": "input", "layer_order": "input_first", "batch_every": "neuron"},
    {"batch_every": "neuron"},
    {"batch_every": "layer"},
    {"distribution": "uniform", "sigma_scale": 3.0},
    {"distribution": "template", "sigma_end": 0.5},
    {"weight_decay": 0.01},
    {"batch_norm": False},
    {"batch_norm_sigma": 0.4},
    {"opposite": False},
]
CYCLES = 2


def layer_of(name):
    return name.split(".")[0]


@pytest.mark.parametrize("evaluator", ["plain", "cached", "incremental"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_step_is_as_the_paper_says(digits64, settings, evaluator):
    model = reference.small_network()
    shadow = copy.deepcopy(model)
    method = rso.RSO(CYCLES, 50, **settings)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    sigma_d = {name: weights[f"{layer_of(name)}.weight"].std(correction=0).item() for name in weights}
    sigma_d |= {f"{bn}.{key}": method.batch_norm_sigma for bn in reference.BATCH_NORMS for key in ("weight", "bias")}
    expected = reference.visits(method.order, method.layer_order, method.batch_norm)
    previous = None

    steps = list(rso.steps(model, digits64, method, seed=1, evaluator=evaluator))
    assert len(steps) == CYCLES * len(expected)
    for number, (step, (name, index, group)) in enumerate(zip(steps, expected * CYCLES, strict=True)):
        cycle = 1 + number // len(expected)
        assert (step.cycle, step.layer, step.name, step.index) == (cycle, layer_of(name), name, index)
        annealed = 1.0 if cycle == 1 else method.sigma_end
        assert step.sigma == pytest.approx(sigma_d[name] * method.sigma_scale * annealed, rel=1e-12)
        losses = reference.losses(shadow, digits64, step, method.weight_decay, method.opposite)
        assert step.losses._asdict() == pytest.approx(losses, rel=1e-10, nan_ok=True)
        lowest = min(loss for loss in losses.values() if not math.isnan(loss))
        assert losses[step.choice] <= lowest + 1e-13
        parameter = dict(shadow.named_parameters())[name].detach()
        parameter[index] += {"minus": -step.delta, "keep": 0.0, "plus": step.delta}[step.choice]
        key = (cycle, step.layer, {"weight": number, "neuron": group, "layer": 0}[method.batch_every])
        if previous is not None:
            assert (previous[0] == key) == torch.equal(previous[1], step.batch)
        previous = key, step.batch
        assert len(set(step.batch.tolist())) == 50
    for trained, replayed in zip(model.parameters(), shadow.parameters(), strict=True):
        assert torch.equal(trained, replayed)


@pytest.mark.parametrize("evaluator", ["plain", "cached", "incremental"])
@pytest.mark.parametrize("layer_order", ["output_first", "input_first"])
@pytest.mark.parametrize("level", ["layer", "network"])
def test_layer_and_network_level(digits64, level, layer_order, evaluator):
    model = reference.small_network()
    shadow = copy.deepcopy(model)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    method = rso.RSO(1, 50, level=level, layer_order=layer_order, batch_every="layer")
    layers = reference.LAYERS if layer_order == "input_first" else [reference.LAYERS[i] for i in (4, 2, 3, 0, 1)]
    turns = itertools.cycle(layers if level == "layer" else [[name for layer in layers for name in layer]])
    batches = set()
    steps = list(rso.steps(model, digits64, method, seed=2, evaluator=evaluator))
    assert len(steps) == len(reference.visits("neuron", "output_first"))
    for step, names in zip(steps, turns, strict=False):
        assert (step.name, step.index) == (None, ())
        assert step.layer == (layer_of(names[0]) if level == "layer" else None)
        assert list(step.delta) == names
        for name in names:
            sigma_d = weights[f"{layer_of(name)}.weight"].std(correction=0).item()
            if layer_of(name) in reference.BATCH_NORMS:
                sigma_d = method.batch_norm_sigma
            assert step.sigma[name] == pytest.approx(sigma_d / 10, rel=1e-12)
        losses = reference.losses(shadow, digits64, step, whole_batch=True)
        assert step.losses._asdict() == pytest.approx(losses, rel=1e-10)
        assert losses[step.choice] <= min(losses.values()) + 1e-13
        for name in names:
            parameter = dict(shadow.named_parameters())[name].detach()
            parameter += {"minus": -1, "keep": 0, "plus": 1}[step.choice] * step.delta[name]
        batches.add(tuple(step.batch.tolist()))
    assert len(batches) == len(steps)
    for trained, replayed in zip(model.parameters(), shadow.parameters(), strict=True):
        assert torch.equal(trained, replayed)


@pytest.mark.parametrize(
    ("distribution", "deviation", "bound"),
    [("gaussian", 1.0, math.inf), ("uniform", 4 / 12**0.5, 2.0), ("template", (2 / 3) ** 0.5, 1.0)],
)
def test_distributions_have_the_moments_of_their_closed_forms(distribution, deviation, bound):
    from rso_lab.rso import draw

    values = draw(distribution, torch.Size([100_000]), torch.Generator().manual_seed(0))
    assert values.dtype == torch.float64
    assert values.mean().item() == pytest.approx(0, abs=4 * deviation / 100_000**0.5)
    assert values.std().item() == pytest.approx(deviation, rel=0.01)
    assert values.abs().max() <= bound
    if distribution == "template":
        assert set(values.tolist()) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize(
    ("losses", "choice"),
    [
        ((3.0, 2.0, 1.0), "plus"),
        ((1.0, 2.0, 3.0), "minus"),
        ((3.0, 2.0, 3.0), "keep"),
        ((2.0, 2.0, 2.0), "keep"),
        ((1.0, 1.0, 1.5), "keep"),
        ((math.nan, 2.0, math.nan), "keep"),
        ((math.nan, 2.0, 1.0), "plus"),
        ((1.0, 2.0, -math.inf), "minus"),
        ((math.inf, 2.0, math.inf), "keep"),
    ],
)
def test_choose(losses, choice):
    from rso_lab.rso import CANDIDATES, choose

    minus, keep, plus = losses
    assert CANDIDATES[choose(torch.tensor([keep, plus, minus]))] == choice


def test_annealing_is_linear_between_its_ends():
    from rso_lab.rso import annealing

    method = rso.RSO(50, 1)
    assert [annealing(c, method) for c in (1, 50)] == [1.0, pytest.approx(0.1, rel=1e-12)]
    assert annealing(25, method) == pytest.approx(1 - 0.9 * 24 / 49, rel=1e-12)
    assert annealing(1, rso.RSO(1, 1)) == 1.0


def test_draws_depend_on_nothing_but_the_seed(digits64):
    """Not on outcomes, evaluator or dtype: the same weights, batches and (up to rounding) changes."""
    method = rso.RSO(1, 40, batch_every="neuron")
    data32 = rso.Data.from_arrays(digits64.x_train.float(), digits64.y_train, digits64.x_test.float(), digits64.y_test)
    runs = [
        rso.steps(reference.small_network(), digits64, method, seed=3, evaluator="plain"),
        rso.steps(reference.small_network(), digits64, method, seed=3, evaluator="cached"),
        rso.steps(reference.small_network(), digits64, method, seed=3, evaluator="incremental"),
        rso.steps(reference.small_network(torch.float32), data32, method, seed=3),
        rso.steps(reference.small_network(), digits64, method, seed=3, loss=lambda out, y: -out.square().mean()),
    ]
    choices = [[] for _ in runs]
    for steps in zip(*runs, strict=True):
        first = steps[0]
        for step, chosen in zip(steps, choices, strict=True):
            assert (step.name, step.index) == (first.name, first.index)
            assert torch.equal(step.batch, first.batch)
            assert step.delta == pytest.approx(first.delta, rel=1e-6)
            chosen.append(step.choice)
        assert steps[1].delta == steps[2].delta == first.delta
        assert steps[3].delta == torch.tensor(first.delta / first.sigma * steps[3].sigma).float().item()
    assert choices[0] != choices[4]
    other = next(rso.steps(reference.small_network(), digits64, method, seed=4))
    assert not torch.equal(other.batch, first.batch)


def test_global_generator_and_gradient_mode_are_left_alone(digits64):
    state = torch.random.get_rng_state()
    model = rso.models.build("one_conv", digits64, seed=1)
    steps = rso.steps(model, digits64, rso.RSO(1, 20), seed=0)
    next(steps)
    assert torch.is_grad_enabled()
    torch.nn.functional.cross_entropy(model(digits64.x_test), digits64.y_test).backward()
    steps.close()
    assert torch.equal(state, torch.random.get_rng_state())


def test_same_seed_same_run(digits):
    runs = [rso.fit(rso.models.build("mlp", digits), digits, rso.RSO(1, 50), seed=7) for _ in range(2)]
    assert [(r.loss, r.kept) for r in runs[0].cycles] == [(r.loss, r.kept) for r in runs[1].cycles]
