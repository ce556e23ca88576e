"""Bad input gets an error that names it, when the settings are made or when fit, run or steps is called."""

import dataclasses
import itertools
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import rso_lab as rso

CALLS = [rso.fit, rso.run, rso.steps]

# Settings

NUMBERS = [0, -1, math.nan, math.inf, -math.inf, "1", None, True, [0.1]]
WHOLE = [0, -3, 1.5, 2.0, "3", None, True, math.nan]
WORDS = ["", "Weight", 1, None, True, ["weight"]]
SWITCHES = [0, 1, "yes", None]
BAD = {
    "cycles": WHOLE,
    "batch_size": WHOLE,
    "level": WORDS,
    "order": [*WORDS, "output"],
    "layer_order": [*WORDS, "output"],
    "parallel": [value for value in [*WORDS, "weight"] if value is not None],
    "distribution": [*WORDS, "normal"],
    "sigma_scale": NUMBERS,
    "sigma_end": NUMBERS,
    "batch_growth": NUMBERS,
    "batch_every": [*WORDS, "cycle"],
    "opposite": SWITCHES,
    "weight_decay": [value for value in NUMBERS if value != 0],
    "sigma_floor": [value for value in NUMBERS if value != 0],
    "batch_norm": SWITCHES,
    "batch_norm_sigma": NUMBERS,
}
GOOD = {
    "cycles": [1, 1000],
    "batch_size": [1, 5000],
    "level": ["weight", "layer", "network"],
    "order": ["neuron", "input"],
    "layer_order": ["output_first", "input_first"],
    "parallel": [None, "neuron", "layer"],
    "distribution": ["gaussian", "uniform", "template"],
    "sigma_scale": [1, 0.5, 1e-9, 10.0],
    "sigma_end": [1, 0.1, 1e-9],
    "batch_growth": [1, 0.5, 2.0],
    "batch_every": ["weight", "neuron", "layer"],
    "opposite": [True, False],
    "weight_decay": [0, 0.0, 1e-4],
    "sigma_floor": [0, 1.0],
    "batch_norm": [True, False],
    "batch_norm_sigma": [0.1, 1],
}


def pairs(table):
    return [pytest.param(name, value, id=f"{name}={value!r}") for name, values in table.items() for value in values]


def test_every_setting_is_in_the_tables():
    assert BAD.keys() == GOOD.keys() == {setting.name for setting in dataclasses.fields(rso.RSO)}


@pytest.mark.parametrize(("name", "value"), pairs(BAD))
def test_a_bad_setting_is_named_with_its_value_and_what_is_allowed(name, value):
    with pytest.raises(ValueError, match=r": expected .") as caught:
        rso.RSO(**{"cycles": 1, "batch_size": 10, name: value})
    assert str(caught.value).startswith(f"{name} is {value!r}: expected ")
    for allowed in GOOD[name]:
        if isinstance(allowed, str):
            assert repr(allowed) in str(caught.value)


@pytest.mark.parametrize("level", ["layer", "network"])
@pytest.mark.parametrize("parallel", ["neuron", "layer"])
def test_parallel_search_is_of_weights(level, parallel):
    with pytest.raises(ValueError, match=rf"^parallel is '{parallel}': expected None at the level '{level}'$"):
        rso.RSO(1, 10, level=level, parallel=parallel)


@pytest.mark.parametrize(("name", "value"), pairs(GOOD))
def test_a_good_setting_is_kept(name, value):
    assert getattr(rso.RSO(**{"cycles": 1, "batch_size": 10, name: value}), name) == value


def test_settings_cannot_be_changed_afterwards_or_given_by_position():
    with pytest.raises(dataclasses.FrozenInstanceError):
        rso.RSO(1, 10).cycles = 0
    with pytest.raises(TypeError):
        rso.RSO(1, 10, "layer")


# Arguments


@pytest.fixture
def state():
    """Whether a call has left the model's weights and torch's global generator alone."""

    class State:
        def __init__(self, model):
            self.model = model
            self.tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            self.chance = torch.get_rng_state()

        def assert_untouched(self):
            assert torch.equal(torch.get_rng_state(), self.chance)
            for name, tensor in self.model.state_dict().items():
                assert torch.equal(tensor, self.tensors[name]), name

    return State


def linear(classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def vector(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


ARGUMENTS = {
    "batch larger than the data set": (
        {"method": rso.RSO(1, 121)},
        ValueError,
        "batch_size is 121: expected at most 120",
    ),
    "a tuple as data": ({"data": (1, 2)}, TypeError, r"data is a tuple: expected rso_lab\.Data"),
    "a dictionary as settings": ({"method": {"cycles": 1}}, TypeError, "method is a dict: expected settings"),
    "the class as settings": ({"method": rso.RSO}, TypeError, "method is a type: expected settings"),
    "another evaluator": (
        {"evaluator": "quick"},
        ValueError,
        "evaluator is 'quick': expected 'auto' or 'plain' or 'cached' or 'incremental'",
    ),
    "no evaluator": ({"evaluator": None}, ValueError, "evaluator is None: expected 'auto'"),
    **{
        f"seed {seed!r}": ({"seed": seed}, ValueError, f"seed is {seed!r}: expected a whole number")
        for seed in (-1, 1.0, True, None, "0", 2**32, 2**63)
    },
    "another device": ({"device": "toaster"}, ValueError, "device is 'toaster': expected 'cpu' or 'cuda'"),
    "a loss for each image": ({"loss": vector}, ValueError, "must give one number for a mini-batch"),
    "a loss of other targets": (
        {"loss": nn.BCEWithLogitsLoss()},
        ValueError,
        r"\(2, 10\) and whole numbers as targets",
    ),
    "a loss of nothing": ({"loss": lambda outputs, targets: None}, ValueError, "must give one number for a mini-batch"),
    "a loss that takes one argument": ({"loss": torch.mean}, ValueError, "must give one number for a mini-batch"),
    "no loss": ({"loss": None}, ValueError, "must give one number for a mini-batch"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("changes", "error", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_a_bad_argument_is_named_when_called(digits, state, call, changes, error, message):
    model = linear()
    before = state(model)
    arguments = {"data": digits, "method": rso.RSO(1, 10), "seed": 0} | changes
    with pytest.raises(error, match=message):
        call(model, **arguments)
    before.assert_untouched()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("call", [*CALLS, lambda *_, device, **__: rso.load("digits", device=device)])
def test_a_gpu_that_is_not_there_is_one_sentence_with_the_remedy(digits, call):
    with pytest.raises(RuntimeError, match=r"^device 'cuda' was asked for, but torch .* finds no such GPU: use 'cpu'$"):
        call(linear(), digits, rso.RSO(1, 10), seed=0, device="cuda")


@pytest.mark.parametrize("seed", [-1, 1.0, True, None, "0", 2**32, 2**32 + 5])
def test_a_seed_that_would_be_another_ones_is_refused_wherever_one_is_taken(digits, seed):
    model = linear()
    for take in (
        lambda: rso.models.build("one_conv", digits, seed),
        lambda: rso.models.he_init_(model, seed),
        lambda: rso.RSOptimizer(model.named_parameters(), seed=seed),
    ):
        with pytest.raises(ValueError, match=f"seed is {seed!r}: expected a whole number from 0 to 4294967295"):
            take()


# Networks


class Network(nn.Module):
    """A network with a forward of its own: forward(x, self)."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.own_forward = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.own_forward(x.flatten(1), self)


def hooked(model):
    model.register_forward_hook(lambda module, inputs, outputs: -outputs)
    return model


def changed(model, change):
    change(model)
    return model


def hook(model):
    model[0].register_forward_hook(lambda module, inputs, output: 3 * output)


def dropping(**options):
    return Network(lambda x, self: F.dropout(self.fc(x), training=self.training, **options), fc=nn.Linear(64, 10))


def integer_parameter(model):
    counter = nn.Parameter(torch.zeros(3, dtype=torch.long), requires_grad=False)
    model.register_parameter("counter", counter)


class Holder(nn.ModuleList):
    """Layers that nothing calls."""


WRAPPED = {
    "compiled": (lambda: torch.compile(linear()), "OptimizedModule: pass the module inside, model._orig_mod"),
    "compiled within": (lambda: nn.Sequential(torch.compile(linear())), "the module inside, model.0._orig_mod"),
    "parallel": (lambda: nn.DataParallel(linear()), "into DataParallel: pass the module inside, model.module"),
    "scripted": (lambda: torch.jit.script(linear()), "pass the Python module that it was made from"),
    "scripted by example": (lambda: torch.jit.trace(linear(), torch.zeros(2, 64)), "that it was made from"),
    "exported": (lambda: torch.export.export(linear(), (torch.zeros(2, 1, 8, 8),)).module(), "that it was made from"),
    "without a forward": (lambda: Holder([linear()]), "Holder has no forward: pass a network that can be called"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("build", "message"), WRAPPED.values(), ids=WRAPPED)
def test_a_wrapped_network_says_what_to_hand_over(digits, build, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        rso.fit(build(), digits, rso.RSO(1, 10), seed=0)


NETWORKS = {
    "torch.dropout": (
        lambda: Network(lambda x, s: torch.dropout(s.fc(x), 0.5, True), fc=nn.Linear(64, 10)),
        ValueError,
        "'dropout' draws at random",
    ),
    "random numbers": (
        lambda: Network(lambda x, s: s.fc(x + torch.rand_like(x)), fc=nn.Linear(64, 10)),
        ValueError,
        "'rand_like' draws at random",
    ),
    "a hook": (
        lambda: hooked(linear()),
        TypeError,
        "sees another network than Sequential.*RSOptimizer",
    ),
    "a tuple": (
        lambda: Network(lambda x, s: (s.fc(x), x), fc=nn.Linear(64, 10)),
        TypeError,
        "Network puts out a tuple",
    ),
    "a function": (lambda: F.relu, TypeError, r"a function: expected a torch\.nn\.Module"),
    "a class": (lambda: nn.Linear, TypeError, r"a type: expected a torch\.nn\.Module"),
    "active dropout": (
        lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.2), linear()),
        ValueError,
        r"'1' drops .*\(0\.2\)",
    ),
    "active dropout in 2d": (
        lambda: nn.Sequential(nn.Dropout2d(0.1), linear()),
        ValueError,
        "'0' drops activations out",
    ),
    "active F.dropout": (dropping, ValueError, "dropout .* drops activations out"),
    "F.dropout that is always active": (
        lambda: Network(lambda x, self: self.fc(F.dropout(x, 0.5, True)), fc=nn.Linear(64, 10)).eval(),
        ValueError,
        "dropout .* drops activations out",
    ),
    "no parameters": (lambda: nn.Sequential(nn.Flatten(), nn.ReLU()), ValueError, "Sequential has no parameters"),
    "all frozen": (lambda: linear().requires_grad_(False), ValueError, "Sequential has no parameters to search"),
    "only batch norms": (
        lambda: nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()),
        ValueError,
        "no parameters that it uses and these settings search",
    ),
    "too few classes": (lambda: linear(3), ValueError, r"from layer '1', have shape \(2, 3\): expected \(B, 10\)"),
    "one output": (
        lambda: Network(lambda x, self: self.fc(x)[:, 0], fc=nn.Linear(64, 10)),
        ValueError,
        r"from layer 'fc', have shape \(2,\): expected \(B, 10\)",
    ),
    "outputs that are images": (
        lambda: nn.Sequential(nn.Conv2d(1, 10, 3)),
        ValueError,
        r"from layer '0', have shape \(2, 10, 6, 6\): expected \(B, 10\)",
    ),
    "an integer parameter": (
        lambda: changed(linear(), integer_parameter),
        TypeError,
        "'counter' has dtype torch.int64",
    ),
    "a forward that looks at the data": (
        lambda: Network(lambda x, self: self.fc(x) if x.sum() > 0 else x, fc=nn.Linear(64, 10)),
        TypeError,
        r"torch\.fx cannot trace Network",
    ),
    "another dtype": (
        lambda: linear().double(),
        TypeError,
        "'1.weight' has dtype torch.float64 but the images torch.float32",
    ),
    "one layer of another dtype": (
        lambda: changed(nn.Sequential(nn.Conv2d(1, 1, 1), linear()), lambda model: model[1].double()),
        TypeError,
        "'1.1.weight' has dtype torch.float64",
    ),
    "a batch norm without statistics": (
        lambda: nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), linear()),
        ValueError,
        "batch norm '0' has track_running_stats=False",
    ),
    "a layer named all": (
        lambda: Network(lambda x, self: self.get_submodule("all")(x.flatten(1)), **{"all": nn.Linear(64, 10)}),
        ValueError,
        "a layer is named 'all'",
    ),
    "a batch norm with a hook": (
        lambda: changed(nn.Sequential(nn.BatchNorm2d(1), linear()), hook),
        TypeError,
        "batch norm '0' has a forward hook",
    ),
    "three input channels": (
        lambda: nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10)),
        ValueError,
        r"fails in '1' on images of shape \(2, 1, 8, 8\)",
    ),
    "another image size": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
        ValueError,
        r"fails in '1' on images of shape \(2, 1, 8, 8\)",
    ),
    "a second input": (
        lambda: nn.Bilinear(64, 64, 10),
        TypeError,
        "^Bilinear's forward wants input2, too: pass a network that takes the images alone",
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("build", "error", "message"), NETWORKS.values(), ids=NETWORKS)
def test_a_network_that_cannot_be_searched_is_refused_by_name_when_called(digits, state, call, build, error, message):
    model = build()
    before = state(model) if isinstance(model, nn.Module) else None
    with pytest.raises(error, match=message):
        call(model, digits, rso.RSO(1, 10, batch_norm=False), seed=0)
    if before:
        before.assert_untouched()


SEARCHABLE = {
    "dropout in eval mode": lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10)).eval(),
    "dropout of nothing": lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.0), nn.Linear(64, 10)),
    "F.dropout in eval mode": lambda: dropping().eval(),
    "F.dropout of nothing": lambda: dropping(p=0.0),
    "one frozen parameter": lambda: changed(linear(), lambda model: model[1].bias.requires_grad_(False)),
    "more outputs than classes": lambda: linear(12),
    "an activation called twice": lambda: Network(
        lambda x, self: self.fc(self.relu(self.relu(x))), relu=nn.ReLU(), fc=nn.Linear(64, 10)
    ),
}


@pytest.mark.parametrize("build", SEARCHABLE.values(), ids=SEARCHABLE)
def test_what_looks_like_it_but_can_be_searched_is(digits, build):
    model = build()
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    searched = sum(p.numel() for p in model.parameters() if p.requires_grad)
    chance = torch.get_rng_state()
    history = rso.fit(model, digits, rso.RSO(1, 10), seed=0)
    assert history.settings["parameters"] == searched
    assert history.cycles[0].accepted["all"] > 0
    assert torch.equal(torch.get_rng_state(), chance)
    for name, parameter in frozen.items():
        assert torch.equal(model.get_parameter(name), parameter)


# In the middle of a run


def failing_loss(at, value):
    """Cross-entropy that from its call number `at` on gives `value`."""
    calls = itertools.count()
    return lambda outputs, targets: value if next(calls) >= at else F.cross_entropy(outputs, targets)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("evaluator", ["plain", "cached", "incremental"])
def test_a_loss_that_is_not_finite_is_named_and_leaves_the_model_valid(digits, evaluator, value):
    model = rso.models.depth3(in_channels=1)  # fc, then bn and conv of conv2, then those of conv1
    weights = {name: p.clone() for name, p in model.named_parameters()}
    steps = rso.steps(model, digits, rso.RSO(3, 10), seed=0, evaluator=evaluator, loss=failing_loss(1000, value))

    def follow():
        for step in steps:
            weights[step.name] = model.get_parameter(step.name).clone()

    with pytest.raises(FloatingPointError, match=f"the loss is {value} in cycle 1, layer 'conv2.conv'"):
        follow()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    assert not model.training
    x = digits.x_train
    for stage in (model.conv1, model.conv2):
        normalised = stage.conv(x).detach()
        variance, mean = torch.var_mean(normalised, (0, 2, 3), correction=0)
        torch.testing.assert_close(stage.bn.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stage.bn.running_var, variance, rtol=1e-4, atol=1e-5)
        x = stage(x)


@pytest.mark.parametrize("call", [rso.fit, lambda *_, **__: list(rso.run(*_, **__))])
def test_a_later_cycle_is_named_too(digits, call):
    with pytest.raises(FloatingPointError, match="the loss is nan in cycle 2, layer '1'"):
        call(linear(), digits, rso.RSO(3, 10), seed=0, loss=failing_loss(3 * 650 + 100, math.nan))


def test_weights_that_are_not_finite_from_the_start(digits):
    model = linear()
    nn.init.constant_(model[1].weight, math.nan)
    with pytest.raises(FloatingPointError, match="the loss is nan in cycle 1, layer '1'"):
        rso.fit(model, digits, rso.RSO(1, 10), seed=0)


def test_a_mini_batch_that_shrinks_too_far_is_refused_before_the_first_draw(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    with pytest.raises(ValueError, match=r"fails in '2' on images of shape \(1, 1, 8, 8\)"):
        rso.fit(model, digits, rso.RSO(3, 4, batch_growth=0.5), seed=0)


def test_weights_that_are_computed_cannot_decay(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    prune.identity(model[1], "weight")
    with pytest.raises(ValueError, match="weight_decay is not 0, and '1' computes its weight from others"):
        rso.fit(model, digits, rso.RSO(1, 10, weight_decay=0.1), seed=0)
    assert rso.fit(model, digits, rso.RSO(1, 10), seed=0).cycles


@pytest.mark.parametrize(("name", "size", "least"), [("one_conv", (1, 8), 2), ("two_conv", (3, 3), 4)])
def test_images_that_are_too_small_for_a_network_are_named(name, size, least):
    x = torch.zeros(4, 1, *size)
    data = rso.Data.from_arrays(x, [0, 1, 2, 3], x, [0, 1, 2, 3])
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels: at least {least} x {least}"):
        rso.models.build(name, data)


def test_a_batch_that_grows_beyond_all_bounds_is_refused(digits):
    with pytest.raises(ValueError, match="batch_size is inf: expected at most 120"):
        rso.fit(linear(), digits, rso.RSO(20_000, 4, batch_growth=2), seed=0)
