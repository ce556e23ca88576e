"""The incremental evaluator gives what three forward passes give: in every network, setting, and way to compute it."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

import rso_lab as rso
from rso_lab import incremental, kernels, stages, straight, train
from rso_lab.graph import Network
from rso_lab.incremental import IncrementalEvaluator
from rso_lab.on_device import OnDeviceEvaluator
from rso_lab.paths import find_path
from rso_lab.rso import PlainEvaluator, apply, choose, propose
from rso_lab.visits import sweeps
from rso_lab.workers import Workers

NEVER = 10**18


def images(shape, rows=30, dtype=torch.float64, classes=3):
    """Noise. Where a pixel is the same in all images, a batch norm right behind a layer takes a change back but for
    rounding, and which of three equal losses is the least would be a matter of the evaluator: so there is no such pixel
    here, and no bias in the networks below that a norm takes back."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((rows, *shape), generator=generator, dtype=torch.float64).to(dtype)
    y = torch.arange(rows) % classes
    return rso.Data.from_arrays(x, y, x[:5], y[:5])


# Networks, each with the shape of its images. A lazy linear layer takes whatever comes.


class Custom(nn.Module):
    """A module whose forward is given."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.own_forward = forward
        for name, module in modules.items():
            if isinstance(module, torch.Tensor) and not isinstance(module, nn.Parameter):
                self.register_buffer(name, module)
            else:
                setattr(self, name, module)

    def forward(self, x):
        return self.own_forward(self, x)


def flat(*modules):
    """These modules, and a linear layer at the end."""
    return nn.Sequential(*modules, nn.Flatten(), nn.LazyLinear(3))


def custom(forward, **modules):
    """This forward, and a linear layer at the end."""
    return Custom(lambda self, x: self.fc(forward(self, x).flatten(1)), fc=nn.LazyLinear(3), **modules)


def conv3(inputs=2, outputs=3, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def two(forward):
    """Two convolutions and a batch norm, for this forward."""
    return lambda: custom(forward, a=conv3(), bn=nn.BatchNorm2d(3), b=conv3(3))


def frozen(channels=3):
    """A batch norm that keeps its statistics: `build` puts it in eval mode."""
    norm = nn.BatchNorm2d(channels).requires_grad_(False)
    norm.running_mean.normal_()
    return norm


def unused(self, x):
    y = self.bn(self.a(x))
    self.b(y)
    return y


def written_and_used(self, x):
    y = self.a(x)
    z = F.relu(y, inplace=True)
    return self.b(z) + y


def written_in_silence(self, x):
    y = self.a(x)
    torch.relu_(y)
    return self.b(y)


def written_before(self, x):
    y = self.a(x)
    z = y * 2
    y.relu_()
    return self.b(y) + z


def augmented(self, x):
    y = self.bn(self.a(x))
    y += self.b(y)
    y *= 2
    return y


def squeezed(self, x):
    y = self.a(x)
    return y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]


def batch_norm_aside(self, x):
    return self.a(x) * torch.sigmoid(self.bn(self.b(x[:, :1])))


def batch_norm_of_the_images(self, x):
    return self.a(x) + self.b(self.bn(x))


SHAPE = (2, 6, 5)
NETWORKS = {
    "stride": lambda: flat(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 2, stride=(1, 2))
    ),
    "stride beyond the kernel": lambda: flat(nn.Conv2d(2, 3, 1, stride=2), nn.ReLU(), nn.Conv2d(3, 3, 1, stride=2)),
    "dilation": lambda: flat(nn.Conv2d(2, 3, 3, dilation=2, padding=3), nn.ReLU(), nn.Conv2d(3, 3, 2, dilation=(1, 2))),
    "padding": lambda: flat(nn.Conv2d(2, 3, 3, padding=(0, 2)), nn.Tanh(), nn.Conv2d(3, 3, 3, padding="same")),
    "more padding than kernel": lambda: flat(nn.Conv2d(2, 3, 1, padding=2), nn.ReLU(), nn.Conv2d(3, 3, 2, padding=3)),
    "valid": lambda: flat(nn.Conv2d(2, 3, 3, padding="valid"), nn.ReLU(), nn.Conv2d(3, 3, 2, padding="valid")),
    "same and dilated": lambda: flat(nn.Conv2d(2, 3, 3, padding="same", dilation=2), nn.ReLU(), conv3(3)),
    "reflect": lambda: flat(conv3(padding_mode="reflect"), nn.ReLU(), conv3(3, padding_mode="circular")),
    "groups": lambda: flat(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 6, 1, groups=2), nn.BatchNorm2d(6)),
    "groups, then all": lambda: flat(
        nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 2, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 2)
    ),
    "depthwise": lambda: flat(
        nn.Conv2d(2, 3, 1),
        nn.ReLU(),
        conv3(3, groups=3),
        nn.BatchNorm2d(3),
        nn.ReLU6(),
        conv3(3, 6, groups=3),
        nn.ELU(),
    ),
    "depthwise twice": lambda: flat(conv3(2, 2, groups=2), conv3(2, 4, groups=2), nn.BatchNorm2d(4), conv3(4, 2)),
    "1x1": lambda: flat(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.MaxPool2d(2)),
    "5x5": lambda: flat(nn.Conv2d(2, 2, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(2, 2, 5, padding=2)),
    "rectangles": lambda: flat(nn.Conv2d(2, 3, (1, 4), padding=(0, 2)), nn.ReLU(), nn.Conv2d(3, 2, (3, 1))),
    "small images": lambda: flat(
        conv3(bias=False),
        nn.MaxPool2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 3, 3, padding=1, stride=2),
        nn.BatchNorm2d(3),
        conv3(3, 2),
    ),
    "one pixel": lambda: flat(
        conv3(bias=False), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.ReLU()
    ),
    "overlapping pools": lambda: flat(conv3(), nn.MaxPool2d(3, 2, padding=1), conv3(3), nn.AvgPool2d(3, 1, padding=1)),
    "ceiling pools": lambda: flat(conv3(), nn.MaxPool2d(2, ceil_mode=True), conv3(3), nn.AvgPool2d(2, ceil_mode=True)),
    "odd pools": lambda: flat(
        conv3(),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.ReLU(),
        conv3(3),
        nn.AvgPool2d(2, divisor_override=3),
    ),
    "dilated pool": lambda: flat(conv3(), nn.MaxPool2d(2, 1, dilation=2), conv3(3)),
    "adaptive pools": lambda: flat(conv3(), nn.AdaptiveMaxPool2d((4, 3)), conv3(3), nn.AdaptiveAvgPool2d((None, 2))),
    "power pool": lambda: flat(conv3(), nn.ReLU(), nn.LPPool2d(2, 2), conv3(3)),
    "functional pools": two(
        lambda self, x: F.adaptive_avg_pool2d(self.b(F.max_pool2d(self.bn(self.a(x)), 2, ceil_mode=True)), (2, 1))
    ),
    "pool with indices": lambda: custom(
        lambda self, x: self.b(self.pool(self.a(x))[0]),
        a=conv3(),
        pool=nn.MaxPool2d(2, return_indices=True),
        b=conv3(3),
    ),
    "residual": two(lambda self, x: (lambda y: F.relu(y + self.b(y)))(F.relu(self.bn(self.a(x))))),
    "residual across a batch norm": two(lambda self, x: (lambda y: self.bn(self.b(F.relu(y))) + y)(self.a(x))),
    "shortcut within a channel": two(lambda self, x: (lambda y: self.b(F.relu(self.bn(y)) + y))(self.a(x))),
    "shortcut around a batch norm": two(
        lambda self, x: (lambda y: self.bn(y) * torch.sigmoid(y) - self.b(y))(self.a(x))
    ),
    "three consumers": two(lambda self, x: (lambda y: self.bn(y) + torch.tanh(y) * self.b(y))(self.a(x))),
    "pools of two sizes": two(
        lambda self, x: (lambda y: torch.cat([F.max_pool2d(y, 3).flatten(1), self.b(y).flatten(1)], 1))(self.a(x))
    ),
    "concatenation": two(lambda self, x: (lambda y: torch.cat([F.relu(self.bn(y)), self.b(y), x], 1))(self.a(x))),
    "concatenation before a layer": lambda: custom(
        lambda self, x: self.b(F.relu(torch.cat([self.a(x), x], 1))), a=conv3(), b=conv3(5)
    ),
    "slices": lambda: custom(
        lambda self, x: (lambda y: y[:, :2] * y[:, 2:])(self.bn(self.a(x))),
        **{"a": conv3(2, 4), "bn": nn.BatchNorm2d(4)},
    ),
    "view": two(lambda self, x: (lambda y: y.view(y.size(0), -1))(self.b(F.relu(self.bn(self.a(x)))))),
    "torch.flatten": two(lambda self, x: torch.flatten(self.b(self.bn(self.a(x)).relu()), 1)),
    "reshape to fewer": two(lambda self, x: self.b(self.a(x)).reshape(-1, 45, 2)),
    "transposed before flatten": two(lambda self, x: self.b(self.bn(self.a(x))).transpose(1, 2).flatten(1)),
    "permuted in between": lambda: custom(
        lambda self, x: self.b(self.a(x).permute(0, 3, 1, 2).relu()), a=conv3(), b=nn.Conv2d(5, 2, 1)
    ),
    "functional": two(lambda self, x: self.b(F.leaky_relu(self.bn(F.gelu(self.a(x))), 0.2)).clamp(-0.5, 0.5)),
    "arithmetic": two(lambda self, x: (lambda y: 1 - self.b(2 * y / (1 + y.abs())) ** 2 + (y > 0))(self.bn(self.a(x)))),
    "sum with a factor": two(lambda self, x: (lambda y: torch.add(y, self.b(y), alpha=3))(self.bn(self.a(x)))),
    "in place": lambda: flat(
        conv3(), nn.ReLU(inplace=True), nn.AvgPool2d(2), conv3(3), nn.BatchNorm2d(3), nn.LeakyReLU(0.1, inplace=True)
    ),
    "in place on a sum": two(lambda self, x: (lambda y: torch.relu_(y + self.b(y)) + y)(self.bn(self.a(x)))),
    "in place on a pool": two(lambda self, x: self.b(F.relu(F.avg_pool2d(self.bn(self.a(x)), 2), inplace=True))),
    "in place on the images": lambda: custom(lambda self, x: self.a(torch.tanh_(x)) + self.b(x), a=conv3(), b=conv3()),
    "written and used": two(written_and_used),
    "written in silence": two(written_in_silence),
    "read, then written": two(written_before),
    "augmented sum": two(augmented),
    "unknown modules": lambda: flat(
        conv3(2, 4),
        nn.GroupNorm(2, 4),
        nn.PReLU(4),
        nn.Conv2d(4, 3, 2),
        nn.LayerNorm([3, 5, 4]),
        nn.Softmax(1),
        conv3(3, 2),
    ),
    "unknown at the end": lambda: nn.Sequential(flat(conv3(), nn.BatchNorm2d(3), nn.ReLU()), nn.PReLU(), nn.Softmax(1)),
    "transposed convolution": lambda: flat(
        conv3(), nn.ReLU(), nn.ConvTranspose2d(3, 2, 2), nn.Upsample(scale_factor=2)
    ),
    "instance norm": lambda: flat(conv3(bias=False), nn.InstanceNorm2d(3, affine=True), nn.ReLU(), conv3(3)),
    "rows are mixed": two(lambda self, x: self.b((lambda y: F.relu(y - y.square().mean(0)))(self.bn(self.a(x))))),
    "rows are mixed at the end": two(lambda self, x: (lambda y: y * y.mean(0))(self.b(self.bn(self.a(x))))),
    "rows are mixed at the beginning": two(lambda self, x: self.b(self.bn(self.a(x - x.mean(0, keepdim=True))))),
    "rows are turned round": two(lambda self, x: (lambda y: y + self.b(y).flip(0))(self.bn(self.a(x)))),
    "pixel constants": lambda: custom(
        lambda self, x: self.b(F.relu(self.a(x) * self.mask + self.shift)),
        a=conv3(),
        b=conv3(3),
        mask=torch.linspace(0, 1, 30).view(6, 5),
        shift=torch.linspace(-1, 1, 3).view(1, 3, 1, 1),
    ),
    "a parameter of its own": lambda: custom(
        lambda self, x: self.b(self.a(x) * self.scale),
        a=conv3(),
        b=conv3(3),
        scale=nn.Parameter(torch.rand(1, 3, 6, 5)),
    ),
    "squeeze and excite": lambda: custom(squeezed, a=conv3(), gate=nn.Linear(3, 3)),
    "no layer takes it": two(unused),
    "batch norm aside": lambda: custom(batch_norm_aside, a=conv3(), bn=nn.BatchNorm2d(3), b=conv3(1)),
    "batch norm of the images": lambda: custom(batch_norm_of_the_images, a=conv3(), bn=nn.BatchNorm2d(2), b=conv3()),
    "batch norm first": lambda: flat(nn.BatchNorm2d(2), conv3(), nn.ReLU(), nn.BatchNorm2d(3)),
    "batch norms in a row": lambda: flat(conv3(), nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.ReLU(), conv3(3)),
    "batch norm behind pooling": lambda: flat(
        conv3(bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(3), conv3(3)
    ),
    "batch norm without weights": lambda: flat(conv3(), nn.BatchNorm2d(3, affine=False), nn.ReLU(), conv3(3)),
    "batch norm with a large eps": lambda: flat(conv3(), nn.BatchNorm2d(3, eps=0.5), nn.ReLU(), conv3(3)),
    "batch norm of features": lambda: nn.Sequential(
        nn.Flatten(),
        nn.Linear(60, 3),
        nn.BatchNorm1d(3),
        nn.ReLU(),
        nn.Linear(3, 4),
        nn.BatchNorm1d(4),
        nn.Linear(4, 3),
    ),
    "batch norm of flattened pixels": lambda: nn.Sequential(
        nn.Conv2d(2, 2, 3, bias=False), nn.Flatten(), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3)
    ),
    "batch norm of sequences": lambda: flat(nn.Flatten(2), nn.Conv1d(2, 3, 5, stride=5), nn.BatchNorm1d(3), nn.ReLU()),
    "batch norm of 3-D": lambda: custom(
        lambda self, x: self.b(self.bn(self.a(x).flatten(2)).view(-1, 3, 6, 5)),
        a=conv3(bias=False),
        bn=nn.BatchNorm1d(3),
        b=conv3(3),
    ),
    "batch norm as the output": lambda: nn.Sequential(flat(conv3(), nn.ReLU()), nn.BatchNorm1d(3)),
    "linear on 3-D": lambda: flat(nn.Flatten(2), nn.Linear(30, 3), nn.ReLU(), nn.Linear(3, 3), nn.Flatten()),
    "linear on 4-D": lambda: flat(conv3(), nn.ReLU(), nn.Linear(5, 2), nn.ReLU()),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(60, 3)),
    "linear without bias": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(60, 2, bias=False), nn.Tanh(), nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)
    ),
    "residual of features": lambda: custom(
        lambda self, x: (lambda y: y + self.b(F.relu(self.bn(y))))(self.a(x.flatten(1))),
        a=nn.Linear(60, 3),
        bn=nn.BatchNorm1d(3),
        b=nn.Linear(3, 3),
    ),
    "features and pixels": lambda: custom(
        lambda self, x: self.a(x).flatten(1) + self.b(x.flatten(1)), a=nn.Conv2d(2, 1, 3), b=nn.Linear(60, 12)
    ),
    "one channel": lambda: flat(
        nn.Conv2d(2, 1, 3), nn.BatchNorm2d(1), nn.ReLU(), conv3(1, 1), nn.BatchNorm2d(1), conv3(1, 2), nn.ReLU()
    ),
    "no dropout": lambda: flat(
        conv3(bias=False), nn.Dropout(0.0), nn.BatchNorm2d(3), nn.Identity(), nn.Dropout2d(0.0), conv3(3)
    ),
    "frozen batch norms": lambda: flat(
        conv3(), frozen(), nn.ReLU(), conv3(3, bias=False), nn.BatchNorm2d(3), conv3(3), frozen()
    ),
    "outputs by softmax": lambda: nn.Sequential(flat(conv3(), nn.ReLU()), nn.Softmax(1)),
}


def build(make, data, seed=1):
    """The network, with weights for these images, gammas and betas of both signs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().to(data.x_train.dtype).eval()
        with torch.no_grad():
            model(data.x_train[:2].clone())
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                    module.weight.uniform_(0.5, 1.5).mul_(torch.randint(2, module.weight.shape) * 2 - 1)
                    module.bias.uniform_(-0.5, 0.5)
    return model


def assert_close(losses, expected, rel):
    assert tuple(map(float, losses)) == pytest.approx(tuple(map(float, expected)), rel=rel, abs=0, nan_ok=True)


def assert_identical_runs(make, data, evaluators=(IncrementalEvaluator,), most=None, **settings):
    """Plain and these, each on its own: the same losses, choices and weights. `most`: how many steps at most."""
    runs = []
    for evaluator in (PlainEvaluator, *evaluators):
        model = build(make, data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(train.EVALUATORS, "auto", evaluator)
            steps = rso.steps(model, data, rso.RSO(batch_size=12, **settings), seed=1)
            runs.append((list(itertools.islice(steps, most)), model))
            steps.close()
    plain, model = runs[0]
    for fast, other in runs[1:]:
        for a, b in zip(plain, fast, strict=True):
            assert_close(b.losses, a.losses, 1e-11)
            assert (a.name, a.index, a.delta if a.name else None) == (b.name, b.index, b.delta if b.name else None)
            assert a.choice == b.choice
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(ours, theirs)
    assert len({step.choice for step in plain}) > 1


def replay(model, data, kinds, *, choose=None, sigmas=(0.3,), proposals=6, hold=4, seed=0, loss=F.cross_entropy):
    """Give these kinds of evaluators the same proposals, a few in each layer: yields layer, losses, choice.

    `choose`: which choice, of the first one's losses; a random one unless given. A mini-batch is held for a while.
    """
    network = Network(model, data.x_train[:2])
    evaluators = [kind(network, data, loss) for kind in kinds]
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    for layer, visits in sweeps(network.layers, "weight", "neuron", ("input_first", "output_first")[seed % 2]):
        with torch.no_grad():
            network.refresh_statistics(data.x_train, before=layer.position)
            for evaluator in evaluators:
                evaluator.begin_sweep(layer, 10**6 if seed % 3 else 0)
            network.stale |= {name for name, position in network.batch_norms.items() if position >= layer.position}
        visits = list(visits)
        picked = torch.randperm(len(visits), generator=generator)[:proposals].tolist()
        for number, visit in enumerate(visits[i] for i in picked + picked[:2]):  # two weights once more
            with torch.no_grad():
                if number % hold == 0:
                    rows = torch.randperm(len(data.x_train), generator=generator)[: len(data.x_train) // 2 + 1]
                    for evaluator in evaluators:
                        evaluator.begin_batch(rows)
                sigma = dict.fromkeys(parameters, sigmas[number % len(sigmas)])
                proposal = propose(visit, parameters, sigma, 1.0, "gaussian", generator)
                losses = [evaluator.losses([proposal], True)[0] for evaluator in evaluators]
                drawn = (PLUS, MINUS, KEEP)[int(torch.randint(3, (), generator=generator))]
                choice = choose(losses[0]) if choose else drawn
                apply(proposal, choice)
                for evaluator in evaluators:
                    evaluator.commit(proposal, choice)
            yield layer, losses, choice


KEEP, PLUS, MINUS = torch.arange(3)
BOTH = (PlainEvaluator, IncrementalEvaluator)


def assert_same_losses(model, data, kinds=BOTH, **options):
    for _, (plain, *others), _ in replay(model, data, kinds, **options):
        for fast in others:
            assert_close(fast, plain, 1e-11)


# Whole networks and all settings


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_every_network(name):
    """Also with the evaluator that is for a GPU: see test_on_device.py."""
    data = images(SHAPE)
    fast = (IncrementalEvaluator, OnDeviceEvaluator)
    settings = {"cycles": 1, "layer_order": "input_first", "batch_every": "layer"}
    if name != "batch norms in a row":  # the second takes back what the first does
        assert_identical_runs(NETWORKS[name], data, fast, most=200, **settings)  # of the last layer a part will do
    assert_same_losses(build(NETWORKS[name], data), data, (PlainEvaluator, *fast), seed=1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_same_padding_of_an_even_kernel():
    even = {"padding": "same", "kernel_size": (2, 4)}
    make = lambda: flat(nn.Conv2d(2, 2, **even), nn.ReLU(), nn.Conv2d(2, 2, dilation=(2, 1), **even))  # noqa: E731
    assert_identical_runs(make, images(SHAPE), cycles=1, batch_every="neuron")


def everything():
    """A strided convolution, batch norm, ReLU, pooling, a residual block and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=2),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        Custom(
            lambda self, x: F.relu(x + self.bn(self.conv(x))),
            conv=nn.Conv2d(3, 3, 2, padding="same", groups=3),
            bn=nn.BatchNorm2d(3),
        ),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(4),
        nn.ReLU(),
        nn.Linear(4, 3),
    )


SETTINGS = [
    {"layer_order": "output_first", "cycles": 3},
    {"layer_order": "input_first", "batch_every": "layer", "cycles": 2},
    {"order": "input"},
    {"order": "input", "batch_every": "neuron"},
    {"order": "input", "layer_order": "input_first", "batch_every": "layer"},
    {"batch_every": "neuron"},
    {"batch_every": "layer", "opposite": False},
    {"level": "layer"},
    {"level": "layer", "layer_order": "input_first"},
    {"level": "network", "opposite": False},
    {"distribution": "uniform", "batch_every": "neuron", "sigma_scale": 3.0},
    {"distribution": "template", "batch_every": "layer"},
    {"distribution": "template", "opposite": False},
    {"weight_decay": 0.1, "batch_every": "neuron"},
    {"weight_decay": 0.1, "distribution": "template"},
    {"batch_norm": False, "batch_every": "layer"},
    {"batch_norm": False, "layer_order": "input_first"},
    {"batch_norm_sigma": 0.2, "batch_every": "neuron"},
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_setting(settings):
    assert_identical_runs(everything, images(SHAPE), **{"cycles": 1} | settings)


@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("name", rso.models.MODELS)
def test_the_networks_of_the_package(name, seed):
    data = images((1, 8, 8), 24)
    assert_same_losses(rso.models.build(name, data), data, seed=seed, proposals=3)


# With the compiled kernels and without, in pieces and at once, on several threads


def stack(*layers):
    return flat(conv3(1, 16, bias=False), *layers)


def joined(forward):
    return lambda: custom(forward, a=conv3(1, 16), bn=nn.BatchNorm2d(16), b=conv3(16, 16))


def norm_relu(channels=16):
    return nn.BatchNorm2d(channels), nn.ReLU()


GLOBAL = nn.AdaptiveAvgPool2d(1)
WIDE = {
    "the paper's": (
        (1, 14, 14),
        lambda: stack(
            *norm_relu(),
            nn.AvgPool2d(2),
            conv3(16, 16),
            *norm_relu(),
            nn.AvgPool2d(2),
            conv3(16, 16),
            *norm_relu(),
            GLOBAL,
        ),
    ),
    "a block that widens": ((1, 8, 7), lambda: stack(*norm_relu(), rso.models.Block(16, 32), GLOBAL)),
    "maxima": (
        (1, 7, 9),
        lambda: stack(
            *norm_relu(), nn.MaxPool2d(2), conv3(16, 16), *norm_relu(), nn.MaxPool2d(2), conv3(16, 16), GLOBAL
        ),
    ),
    "14 wide, 3 high": (
        (1, 3, 14),
        lambda: stack(*norm_relu(), conv3(16, 16), *norm_relu(), conv3(16, 32), *norm_relu(32), GLOBAL),
    ),
    "7x7": (
        (1, 7, 7),
        lambda: stack(*norm_relu(), conv3(16, 32), nn.BatchNorm2d(32), nn.MaxPool2d(2), conv3(32, 16), GLOBAL),
    ),
    "4 wide, 5 high": (
        (1, 5, 4),
        lambda: stack(*norm_relu(), conv3(16, 16), *norm_relu(), conv3(16, 16), nn.MaxPool2d(2)),
    ),
    "6 wide, 3 high": (
        (1, 3, 6),
        lambda: stack(*norm_relu(), conv3(16, 16), nn.BatchNorm2d(16), conv3(16, 16), nn.ReLU()),
    ),
    "5x5 kernels": (
        (1, 9, 6),
        lambda: stack(
            *norm_relu(), nn.Conv2d(16, 16, 5, padding=2), *norm_relu(), nn.Conv2d(16, 16, 5), nn.AvgPool2d(2)
        ),
    ),
    "1x1 kernels": (
        (1, 5, 7),
        lambda: stack(*norm_relu(), nn.Conv2d(16, 16, 1), *norm_relu(), nn.Conv2d(16, 32, 1), GLOBAL),
    ),
    "rectangular kernels": (
        (1, 6, 8),
        lambda: stack(
            *norm_relu(),
            nn.Conv2d(16, 16, (1, 3), padding=(0, 1)),
            *norm_relu(),
            nn.Conv2d(16, 16, (3, 2), padding=(2, 0)),
        ),
    ),
    "stride": (
        (1, 8, 9),
        lambda: stack(
            *norm_relu(),
            nn.Conv2d(16, 16, 3, stride=2),
            *norm_relu(),
            nn.Conv2d(16, 16, 3, stride=(1, 2), padding=(0, 1)),
        ),
    ),
    "wide padding": (
        (1, 4, 5),
        lambda: stack(*norm_relu(), nn.Conv2d(16, 16, 2, padding=(3, 2)), nn.ReLU(), conv3(16, 16)),
    ),
    "names of padding": (
        (1, 6, 6),
        lambda: stack(
            *norm_relu(), nn.Conv2d(16, 16, 3, padding="same"), *norm_relu(), nn.Conv2d(16, 16, 3, padding="valid")
        ),
    ),
    "dilation and groups": (
        (1, 8, 8),
        lambda: stack(
            *norm_relu(),
            nn.Conv2d(16, 16, 3, dilation=2),
            *norm_relu(),
            conv3(16, 16, groups=2),
            *norm_relu(),
            conv3(16, 16, groups=16),
            *norm_relu(),
            conv3(16, 16),
        ),
    ),
    "without batch norm": (
        (1, 8, 6),
        lambda: stack(nn.ReLU(), nn.AvgPool2d(2), conv3(16, 16), nn.ReLU(), conv3(16, 16), GLOBAL),
    ),
    "without, but maxima": (
        (1, 8, 6),
        lambda: stack(
            nn.ReLU(), nn.MaxPool2d(2), conv3(16, 16), nn.MaxPool2d(2), nn.ReLU(), conv3(16, 16), nn.ReLU(), GLOBAL
        ),
    ),
    "without activation": (
        (1, 6, 6),
        lambda: stack(nn.MaxPool2d(2), conv3(16, 16), conv3(16, 16), nn.BatchNorm2d(16), GLOBAL),
    ),
    "ReLU behind pooling": (
        (1, 8, 8),
        lambda: stack(
            nn.BatchNorm2d(16),
            nn.AvgPool2d(2),
            nn.ReLU(),
            conv3(16, 16),
            nn.BatchNorm2d(16),
            nn.MaxPool2d(2),
            nn.ReLU(),
            conv3(16, 16),
            *norm_relu(),
            nn.MaxPool2d(2),
            GLOBAL,
        ),
    ),
    "batch norm behind ReLU": (
        (1, 6, 6),
        lambda: stack(
            nn.ReLU(),
            nn.BatchNorm2d(16),
            nn.AvgPool2d(2),
            conv3(16, 16),
            nn.ReLU(),
            nn.BatchNorm2d(16),
            conv3(16, 16),
            GLOBAL,
        ),
    ),
    "other pools": (
        (1, 9, 9),
        lambda: stack(
            *norm_relu(),
            nn.MaxPool2d(3, 2),
            conv3(16, 16),
            *norm_relu(),
            nn.AvgPool2d(2, 1),
            conv3(16, 16),
            *norm_relu(),
            nn.MaxPool2d(2, padding=1),
            conv3(16, 16),
            nn.MaxPool2d(2, ceil_mode=True),
            conv3(16, 16),
            nn.AdaptiveAvgPool2d(2),
        ),
    ),
    "other activations": (
        (1, 6, 6),
        lambda: stack(
            nn.BatchNorm2d(16),
            nn.Tanh(),
            conv3(16, 16),
            nn.BatchNorm2d(16),
            nn.ReLU6(),
            conv3(16, 16),
            nn.LeakyReLU(0.1),
            conv3(16, 16),
            *norm_relu(),
            nn.AvgPool2d(2, divisor_override=3),
            conv3(16, 16),
        ),
    ),
    "in place": (
        (1, 6, 6),
        lambda: stack(
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            conv3(16, 16),
            nn.ReLU(inplace=True),
            conv3(16, 16),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            GLOBAL,
        ),
    ),
    "without gamma": (
        (1, 6, 6),
        lambda: stack(
            nn.BatchNorm2d(16, affine=False), nn.ReLU(), conv3(16, 16), nn.BatchNorm2d(16, affine=False), GLOBAL
        ),
    ),
    "3 channels between": (
        (1, 6, 6),
        lambda: stack(
            *norm_relu(), conv3(16, 3), *norm_relu(3), conv3(3, 16), *norm_relu(), conv3(16, 16), *norm_relu(), GLOBAL
        ),
    ),
    "linear layers": (
        (1, 8, 8),
        lambda: stack(
            *norm_relu(),
            nn.AvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Linear(16, 16),
        ),
    ),
    "residual": ((1, 6, 6), joined(lambda self, x: (lambda y: F.relu(y + self.b(y)))(F.relu(self.bn(self.a(x)))))),
    "residual across a batch norm": (
        (1, 7, 6),
        joined(lambda self, x: (lambda y: F.adaptive_avg_pool2d(self.bn(self.b(F.relu(y))) + y, 1))(self.a(x))),
    ),
    "shortcut within a channel": (
        (1, 6, 6),
        joined(lambda self, x: (lambda y: self.b(F.relu(self.bn(y)) + y))(self.a(x))),
    ),
    "two consumers": (
        (1, 6, 8),
        joined(
            lambda self, x: (lambda y: self.b(F.avg_pool2d(y, 2)).flatten(1) + F.max_pool2d(y, 2).flatten(1))(
                torch.relu(self.bn(self.a(x)))
            )
        ),
    ),
    "two layers take it": (
        (1, 6, 6),
        lambda: custom(
            lambda self, x: (lambda y: self.b(y) * torch.sigmoid(self.c(y)))(F.relu(self.bn(self.a(x)))),
            a=conv3(1, 16),
            bn=nn.BatchNorm2d(16),
            b=conv3(16, 16),
            c=nn.Conv2d(16, 16, 3, padding=1),
        ),
    ),
    "concatenation": (
        (1, 6, 6),
        lambda: custom(
            lambda self, x: (lambda y: self.c(F.relu(torch.cat([y, self.b(y)], 1))))(F.relu(self.bn(self.a(x)))),
            a=conv3(1, 16),
            bn=nn.BatchNorm2d(16),
            b=conv3(16, 16),
            c=conv3(32, 16),
        ),
    ),
    "a bias for a batch norm and another": (
        (1, 6, 6),
        joined(lambda self, x: (lambda y: self.b(self.bn(y)) + F.relu(y))(self.a(x))),
    ),
    "frozen batch norms": (
        (1, 6, 6),
        lambda: stack(frozen(16), nn.ReLU(), conv3(16, 16), *norm_relu(), conv3(16, 16), frozen(16), nn.ReLU(), GLOBAL),
    ),
    "a group of channels enters": (
        (2, 6, 6),
        lambda: flat(nn.BatchNorm2d(2), nn.Conv2d(2, 32, 1, groups=2), nn.ReLU(), conv3(32, 16), *norm_relu(), GLOBAL),
    ),
    "rows are mixed": (
        (1, 6, 6),
        joined(lambda self, x: (lambda y: self.b(F.relu(y - y.mean(0))))(self.bn(self.a(x)))),
    ),
}

ALWAYS, SMALL = {"COMPILED": -1}, {"PIECE_BYTES": 4096}
TORCH = {"COMPILED": NEVER}
WAYS = {
    "straight": {},
    "kernels": ALWAYS,
    "kernels in pieces": ALWAYS | SMALL,
    "torch": TORCH,
    "torch in pieces": TORCH | SMALL,
}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(stages, name, value)
    if request.param != "straight":
        monkeypatch.setattr(straight, "ONE_PIECE", 0)


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.usefixtures("way")
def test_wide_networks_every_way(name):
    shape, make = WIDE[name]
    data = images(shape, 22)
    assert_same_losses(build(make, data), data, seed=1, proposals=2)


@pytest.mark.parametrize(
    "name", ["stride", "dilation", "one channel", "odd pools", "batch norm aside", "rows are mixed"]
)
@pytest.mark.usefixtures("way")
def test_narrow_networks_every_way(name):
    data = images(SHAPE)
    assert_same_losses(build(NETWORKS[name], data), data, seed=0)


def test_a_worker_has_one_thread_of_torch_for_good(threads):
    threads(2)
    made = Workers(2)
    made.run([lambda: torch.ones(10**6).sum()] * 2)  # torch looks up a thread's number at its first operation
    assert torch.get_num_threads() == 2
    assert made.run([torch.get_num_threads] * 2) == [1, 1]


@pytest.mark.parametrize("name", ["the paper's", "stride", "residual across a batch norm", "linear layers"])
@pytest.mark.usefixtures("way")
def test_threads_change_nothing_at_all(monkeypatch, threads, name):
    monkeypatch.setattr(incremental, "THREADED", -1)
    shape, make = WIDE[name]
    data = images(shape, 22, torch.float32)
    runs = []
    for count in (1, 2, 4):
        threads(count)
        model = build(make, data)
        replayed = replay(model, data, [IncrementalEvaluator], proposals=2)
        runs.append([losses.tolist() for _, (losses,), _ in replayed])
        assert torch.get_num_threads() == count
    assert runs[0] == runs[1] == runs[2]


# float32


@pytest.mark.parametrize("name", [*NETWORKS, *WIDE])
def test_float32_replay(monkeypatch, name):
    """The plain choice is forced, so that a near-tie cannot cascade."""
    monkeypatch.setattr(stages, "COMPILED", -1)
    shape, make = WIDE[name] if name in WIDE else (SHAPE, NETWORKS[name])
    data = images(shape, 22, torch.float32)
    for _, (plain, fast), choice in replay(build(make, data), data, BOTH, choose=choose, proposals=2):
        assert_close(fast, plain, 2e-5)
        least, second = sorted(plain.tolist())[:2]
        assert choose(fast) == choice or second - least < 1e-6


# What is kept


def held(model, data, layer_name, picks, choices, loss=F.cross_entropy):
    """An incremental evaluator after these choices for these weights of a layer, all on one mini-batch."""
    network = Network(model, data.x_train[:2])
    network.refresh_statistics(data.x_train)
    layer = next(layer for layer in network.layers if layer.name == layer_name)
    rows = torch.arange(len(data.x_train) - 5)
    (visits,) = (
        list(visits) for of, visits in sweeps(network.layers, "weight", "neuron", "input_first") if of == layer
    )
    generator = torch.Generator().manual_seed(3)
    parameters = dict(model.named_parameters())

    def proposal(visit, sigma=0.3):
        return propose(visit, parameters, dict.fromkeys(parameters, sigma), 1.0, "gaussian", generator)

    def begin():
        evaluator = IncrementalEvaluator(network, data, loss)
        evaluator.begin_sweep(layer, 10**6)
        evaluator.begin_batch(rows)
        return evaluator

    evaluator = begin()
    for pick, choice in zip(picks, choices, strict=True):
        change = proposal(visits[pick])
        evaluator.losses([change], True)[0]
        apply(change, choice)
        evaluator.commit(change, choice)
    return evaluator, begin, proposal, visits


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", ["the paper's", "residual across a batch norm", "linear layers", "two layers take it"])
@pytest.mark.usefixtures("way")
@torch.no_grad()
def test_after_many_changes_what_is_kept_is_what_a_fresh_run_gives(name, dtype, rel):
    shape, make = WIDE[name]
    data = images(shape, 22, dtype)
    for layer in [layer.name for layer in Network(build(make, data), data.x_train[:2]).layers]:
        model = build(make, data)
        picks, choices = [0, 9, 1, 0, 20, 5, 9, 2], [PLUS, MINUS, PLUS, KEEP, PLUS, MINUS, MINUS, PLUS]
        evaluator, begin, proposal, visits = held(model, data, layer, picks, choices)
        fresh = begin()
        for visit in (visits[1], visits[30], visits[9]):
            change = proposal(visit)
            assert_close(evaluator.losses([change], True)[0], fresh.losses([change], True)[0], rel)


def dead_relu(model):
    model[2].weight[3], model[2].bias[3] = 0.5, -50.0


def dead_gamma(model):
    model[2].weight[3], model[2].bias[3] = 0.0, 1.0


def saturated(model):
    model[2].weight[3], model[2].bias[3] = 0.5, 50.0


def masked_by_the_pool(model):
    model[1].weight[3] = torch.tensor([1.0, 0.0])[:, None, None]


MARKED = images((2, 7, 6), 22)
MARKED.x_train[:, 0, ::2, ::2] = 10.0 + MARKED.x_train[:, :1, 0, 0, None].sigmoid()  # in each 2x2 the greatest
MARKED.x_train[:, 1] = 0
MARKED.x_train[:, 1, 1, 1] = MARKED.x_train[:, 0, 1, 1].sigmoid()

DYING = {  # what makes the changes of channel 3 die out, and by what; which weights of the channel
    "ReLU": (dead_relu, nn.ReLU, nn.MaxPool2d, slice(None)),
    "gamma": (dead_gamma, nn.Tanh, nn.AvgPool2d, slice(None)),
    "ceiling": (saturated, nn.ReLU6, nn.AvgPool2d, slice(None)),
    "pool": (masked_by_the_pool, nn.ReLU, nn.MaxPool2d, slice(1, 2)),
    "nothing to multiply": (lambda model: None, nn.ReLU, nn.AvgPool2d, slice(1, 2)),  # in a channel that lives
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DYING)
@pytest.mark.usefixtures("way")
@torch.no_grad()
def test_a_change_that_dies_out_has_exactly_the_current_loss(name, dtype):
    change_weights, activation, pool, dying = DYING[name]
    # With one input channel left, a batch norm would take back every change.
    norm = nn.Identity if name in ("pool", "nothing to multiply") else lambda: nn.BatchNorm2d(16)
    data = rso.Data.from_arrays(
        MARKED.x_train.to(dtype, copy=True), MARKED.y_train, MARKED.x_test.to(dtype), MARKED.y_test
    )
    make = lambda: flat(  # noqa: E731
        nn.Identity(),
        nn.Conv2d(2, 16, 1, bias=False),
        norm(),
        activation(),
        pool(2),
        conv3(16, 16),
        *norm_relu(),
        GLOBAL,
    )
    model = build(make, data)
    change_weights(model)
    if name == "nothing to multiply":
        data.x_train[:, 1] = 0
    evaluator, begin, proposal, visits = held(model, data, "1", [0, 1, 16, 0, 31], [PLUS, MINUS, PLUS, PLUS, MINUS])
    alive = 0
    for evaluating in (evaluator, begin()):
        for visit in [visit for visit in visits if visit.index[0] == 3][dying] * 2:
            change = proposal(visit)
            keep, plus, minus = evaluating.losses([change], True)[0]
            assert minus == keep == plus
            apply(change, PLUS)
            evaluating.commit(change, PLUS)
            other = proposal(visits[10])  # of a channel that lives
            keep, plus, minus = evaluating.losses([other], True)[0]
            alive += plus != keep != minus
            apply(other, MINUS)
            evaluating.commit(other, MINUS)
    assert alive


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("way")
@torch.no_grad()
def test_a_unit_that_a_change_kills_is_dead_from_then_on(dtype):
    data = images((1, 6, 8), 22, dtype)
    make = lambda: flat(conv3(1, 16), nn.ReLU(), nn.AvgPool2d(2), conv3(16, 16), *norm_relu(), GLOBAL)  # noqa: E731
    evaluator, _, proposal, visits = held(build(make, data), data, "0", [3, 14], [PLUS, PLUS])
    killing = proposal(next(visit for visit in visits if visit.names == ("0.bias",) and visit.index == (1,)), sigma=1e3)
    choice = PLUS if killing.delta["0.bias"] < 0 else MINUS
    evaluator.losses([killing], True)[0]
    apply(killing, choice)
    evaluator.commit(killing, choice)
    for visit in visits[10:19]:
        keep, plus, minus = evaluator.losses([proposal(visit)], True)[0]
        assert minus == keep == plus


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("way")
def test_no_change_has_exactly_the_current_loss(dtype):
    shape, make = WIDE["the paper's"]
    data = images(shape, 22, dtype)
    method = rso.RSO(1, 12, distribution="template", batch_every="layer", layer_order="input_first")
    steps = list(itertools.islice(rso.steps(build(make, data), data, method, seed=0), 150))
    for step in steps:
        assert step.delta != 0 or step.losses.minus == step.losses.keep == step.losses.plus
    assert {step.losses.plus == step.losses.keep for step in steps} == {True, False}


# Losses that are not finite, and interrupts


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.usefixtures("way")
def test_a_loss_that_is_not_finite_never_wins(bad):
    shape, make = WIDE["maxima"]
    data = images(shape, 22)

    largest = []

    def loss(outputs, targets):
        largest.append(outputs.max())
        return bad if largest[-1] > 1.01 * largest[0] else F.cross_entropy(outputs, targets)

    seen = 0
    for _, (plain, fast), choice in replay(build(make, data), data, BOTH, choose=choose, loss=loss):
        assert_close(fast, plain, 1e-11)
        assert choice == choose(fast)
        seen += not all(map(math.isfinite, fast))
    assert seen


@pytest.mark.parametrize(
    "name", ["without batch norm", "without, but maxima", "the paper's", "maxima", "residual across a batch norm"]
)
@pytest.mark.usefixtures("way")
def test_an_overflow_never_wins_and_leaves_nothing_behind(name):
    shape, make = WIDE[name]
    data = images(shape, 22, torch.float32)
    turns = itertools.cycle([lambda losses: KEEP, choose])
    overflows = 0
    for number, (_, (plain, fast), _) in enumerate(
        replay(build(make, data), data, BOTH, choose=lambda losses: next(turns)(losses), sigmas=(3e38, 0.3))
    ):
        if number % 2 == 0:
            assert_close(fast[:1], plain[:1], 2e-5)
            assert math.isfinite(fast[choose(fast)])
            overflows += not all(map(math.isfinite, fast))
            if name.startswith("without"):
                assert [*map(math.isfinite, fast)] == [*map(math.isfinite, plain)]
        else:
            assert_close(fast, plain, 2e-5)
    assert overflows


@pytest.mark.parametrize(("kernels", "count", "after"), [(-1, 1, 60), (-1, 2, 5), (NEVER, 1, 60), (NEVER, 2, 5)])
def test_an_interrupt_leaves_the_model_valid(monkeypatch, threads, kernels, count, after):
    threads(count)
    monkeypatch.setattr(stages, "COMPILED", kernels)
    monkeypatch.setattr(incremental, "THREADED", -1)
    shape, make = WIDE["14 wide, 3 high"]
    data = images(shape, 22)
    calls = itertools.count()

    def loss(outputs, targets):
        if next(calls) == 3 * after:  # of the last candidate
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets)

    method = rso.RSO(1, 12)
    model, shadow = build(make, data), build(make, data)
    with pytest.raises(KeyboardInterrupt):
        list(rso.steps(model, data, method, seed=0, loss=loss))
    assert torch.get_num_threads() == count
    list(itertools.islice(rso.steps(shadow, data, method, seed=0), after - 1))
    for stopped, expected in zip(model.state_dict().values(), shadow.state_dict().values(), strict=True):
        torch.testing.assert_close(stopped, expected, rtol=1e-9, atol=1e-12)
    steps = [list(itertools.islice(rso.steps(m, data, method, seed=1), 20)) for m in (model, shadow)]
    for a, b in zip(*steps, strict=True):
        assert_close(a.losses, b.losses, 1e-9)


# Random networks


@st.composite
def networks(draw, channels):
    """Modules for images of a drawn shape: convolutions, norms, activations, pools, residual blocks, linear layers."""
    pick = lambda *options: draw(st.sampled_from(options))  # noqa: E731
    shape = draw(st.integers(1, 2)), draw(st.integers(3, 8)), draw(st.integers(3, 8))
    now, height, width = shape
    layers = []

    def convolution(out):
        nonlocal height, width
        kernel = [pick(*(k for k in (1, 2, 3, 5) if k <= size + 2)) for size in (height, width)]
        padding = [
            draw(st.integers(max(0, -(-(k - size) // 2)), 2)) for k, size in zip(kernel, (height, width), strict=True)
        ]
        stride = pick((1, 1), (1, 1), (2, 1), (2, 2))
        groups = pick(1, 1, now) if out % now == 0 else 1
        height, width = (
            (size + 2 * p - k) // s + 1 for size, k, p, s in zip((height, width), kernel, padding, stride, strict=True)
        )
        return nn.Conv2d(now, out, kernel, stride, padding, groups=groups, bias=pick(True, False))

    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=2, max_size=7)):
        if kind == "conv":
            out = draw(channels)
            layers.append(convolution(out))
            now = out
        elif kind == "norm":
            layers.append(nn.BatchNorm2d(now, affine=pick(True, True, False)))
        elif kind == "activation":
            layers.append(pick(nn.ReLU, nn.ReLU, lambda: nn.ReLU(inplace=True), nn.Tanh, nn.LeakyReLU)())
        elif kind == "pool" and min(height, width) >= 2:
            pool = pick(nn.MaxPool2d, nn.AvgPool2d)(*pick((2,), (2,), (2, 1), (2, 2, 1)))
            layers.append(pool)
            height, width = pool(torch.zeros(1, height, width)).shape[1:]
        elif kind == "block":
            inside = [nn.Conv2d(now, now, 3, padding=1, groups=pick(1, 1, now)), nn.BatchNorm2d(now), nn.ReLU()]
            inside = draw(st.permutations(inside))[: draw(st.integers(1, 3))]
            layers.append(Custom(lambda self, x: x + self.inside(x), inside=nn.Sequential(*inside)))
        elif kind == "beside":
            layers.append(Custom(lambda self, x: torch.tanh(self.norm(x)) * x, norm=nn.BatchNorm2d(now)))
    end = [pick(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d((1, 2))), nn.Flatten()]
    end += pick((), (), (nn.LazyLinear(5), nn.ReLU()), (nn.LazyLinear(5), nn.BatchNorm1d(5)))
    return shape, nn.Sequential(*layers, *end, nn.LazyLinear(3))


KINDS = ["conv", "conv", "conv", "norm", "norm", "activation", "activation", "pool", "block", "beside"]
QUICK = {"deadline": None, "derandomize": True, "database": None}


@hypothesis_settings(max_examples=60, **QUICK)
@given(networks(st.integers(1, 4)), st.integers(12, 20), st.integers(0, 1))
def test_random_networks(network, rows, seed):
    shape, model = network
    data = images(shape, rows)
    assert_same_losses(build(lambda: copy.deepcopy(model), data), data, seed=seed, proposals=3)


@hypothesis_settings(max_examples=40, **QUICK)
@given(networks(st.sampled_from([16, 16, 32])), st.integers(12, 20), st.sampled_from([4096, 2**20]))
def test_random_networks_in_kernels(network, rows, piece):
    shape, model = network
    data = images(shape, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(straight, "ONE_PIECE", 0)
        patch.setattr(stages, "COMPILED", -1)
        patch.setattr(stages, "PIECE_BYTES", piece)
        assert_same_losses(build(lambda: copy.deepcopy(model), data), data, proposals=2)


def test_changes_are_followed_where_they_can_be():
    """So that the tests above test something: these layers have a path."""
    for make, shape, followed in (
        (NETWORKS["stride"], SHAPE, {"0", "1", "3", "5"}),
        (NETWORKS["reflect"], SHAPE, {"4"}),
        (NETWORKS["batch norm of features"], SHAPE, {"1", "2", "4", "5", "6"}),
        (WIDE["residual"][1], (1, 6, 6), {"a", "bn", "b", "fc"}),
    ):
        data = images(shape)
        network = Network(build(make, data), data.x_train[:2])
        x = {network.input: data.x_train[:2]}
        examples = x | network.propagate(x, keep=network.nodes[1:])
        found = {layer.name for layer in network.layers if find_path(network, layer, examples)}
        assert found == followed


@pytest.mark.parametrize("kind", [3, 5], ids=["means", "maxima"])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_nan_passes_through_the_pooling_of_the_kernels(kind, place):
    """Wherever it stands in its 2x2 pixels, and nowhere else: as through torch's own ReLU and pooling."""
    n = kernels.VECTOR
    x = torch.randn(1, n, 4, 4, generator=torch.Generator().manual_seed(0))
    x[0, :, place[0], 2 + place[1]] = math.nan
    pool = F.max_pool2d if kind == 5 else F.avg_pool2d
    expected = pool(F.relu(x), 2)
    last = x.permute(0, 2, 3, 1).contiguous().numpy()
    ones, zeros, out = np.ones(n, np.float32), np.zeros(n, np.float32), np.empty((1, 2, 2, n), np.float32)
    one_by_one = np.full((1, 1, n, n), 1 / n, np.float32)
    kernels.convolve(last, ones, zeros, kind, one_by_one, zeros, (1, 1), (0, 0), out)
    torch.testing.assert_close(torch.from_numpy(out)[..., 0], expected.mean(1), equal_nan=True)
    plane, before = x[:, :1].contiguous().numpy(), np.zeros((1, 1, 2, 2), np.float32)
    after, entered = np.empty_like(before), np.empty((1, 2, 2, n), np.float32)
    kernels.enter(
        plane,
        1.0,
        0.0,
        kind,
        before,
        after,
        np.ones((1, 1, 1, n), np.float32),
        (1, 1),
        (0, 0),
        np.ones_like(out),
        entered,
    )
    torch.testing.assert_close(torch.from_numpy(after[:, 0]), expected[:, 0], equal_nan=True)
