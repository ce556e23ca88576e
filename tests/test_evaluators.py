"""All evaluators give the same: exactly the same choices in float64, the same losses up to rounding in float32."""

import copy
import dataclasses
import itertools

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import rso_lab as rso
from rso_lab.graph import Network
from rso_lab.incremental import IncrementalEvaluator
from rso_lab.ranks import Ranks
from rso_lab.rso import CachedEvaluator, PlainEvaluator, apply, choose, propose
from rso_lab.visits import sweeps


class Residual(nn.Module):
    """A shortcut, an in-place activation, a grouped convolution and parameters read by the module's own forward."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.norm = nn.GroupNorm(2, 4)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 12).view(3, 4))
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.bn(input=self.conv1(x)), inplace=True)
        y = self.norm(self.conv2(x))
        y += x * self.scale[0].view(1, 4, 1, 1)
        y = torch.cat([y, x], dim=1)[:, 2:6]
        return self.fc(y.view(y.size(0), -1))


class MixesRows(nn.Module):
    """What one image gives depends on the others, in front of the layers that are searched last."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 6)
        self.fc2 = nn.Linear(6, 10)

    def forward(self, x):
        x = torch.tanh(self.fc1(x.flatten(1)))
        return self.fc2(x - x.mean(dim=0))


class Gated(nn.Module):
    """What enters a linear layer is read by others, too: a gate beside it, a shortcut around it."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 6)
        self.fc2 = nn.Linear(6, 6)
        self.gate = nn.Linear(6, 6)
        self.fc3 = nn.Linear(6, 10)

    def forward(self, x):
        x = torch.relu(self.fc1(x.flatten(1)))
        gate = torch.sigmoid(self.gate(x))
        return self.fc3(torch.relu(self.fc2(x)) * gate + x * (1 - gate))


class PassesOn(nn.Module):
    """An identity behind what was kept before: where caches are filled in place, it lies in one of them."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (nn.Conv2d(channels, 2, 1) for channels in (1, 2, 2, 2))
        self.same = nn.Identity()
        self.fc = nn.Linear(2, 10)

    def forward(self, x):
        a = self.conv1(x)
        b = self.conv2(a)
        e, c = self.conv3(torch.relu(b)), self.same(a)
        return self.fc(torch.tanh(self.conv4(e) + b * c + e).mean((2, 3)))


def other_layers():
    return nn.Sequential(
        nn.Flatten(2), nn.Conv1d(1, 3, 5, stride=2), nn.LayerNorm(30), nn.PReLU(), nn.Flatten(), nn.Linear(90, 10)
    )


def pruned():
    """Masks and other hooks are part of what a module computes."""
    layers = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 10))
    for number, share in ((0, 0.4), (4, 0.7)):
        prune.random_unstructured(layers[number], "weight", share)
    layers[1].register_forward_hook(lambda module, inputs, output: output + 0.3 * inputs[0])
    return layers


NETWORKS = {
    "pruned": lambda data: pruned(),
    **{name: lambda data, name=name: rso.models.build(name, data) for name in rso.models.MODELS},
    "residual": lambda data: Residual(),
    "mixes rows": lambda data: MixesRows(),
    "passes on": lambda data: PassesOn(),
    "gated": lambda data: Gated(),
    "other layers": lambda data: other_layers(),
    "linear": lambda data: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)),
}


def network(name, data, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NETWORKS[name](data).to(data.x_train.dtype)


@pytest.fixture(scope="session")
def noisy64(digits64):
    """Without noise some pixels are the same in all images: a batch norm right behind a layer then takes a weight's
    change back but for rounding, and which of three equal losses is the least would be a matter of the evaluator."""
    noise = torch.randn(digits64.x_train.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return dataclasses.replace(digits64, x_train=digits64.x_train + noise / 100)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_choices_in_float64(noisy64, name):
    runs = []
    for evaluator in ("plain", "cached", "incremental"):
        model = network(name, noisy64)
        steps = rso.steps(model, noisy64, rso.RSO(1, 40), seed=1, evaluator=evaluator)
        runs.append((list(itertools.islice(steps, 300)), model.state_dict()))
    (plain, weights), *rest = runs
    for steps, others in rest:
        for a, b in zip(plain, steps, strict=True):
            assert b.losses._asdict() == pytest.approx(a.losses._asdict(), rel=1e-11)
            assert (a.name, a.index, a.choice) == (b.name, b.index, b.choice)
        assert all(torch.equal(weights[key], others[key]) for key in weights if "running" not in key)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_losses_in_float32_along_the_whole_network(digits, name):
    """Every layer is visited: few proposals each, decided by the plain losses so that a near-tie cannot cascade."""
    model = network(name, digits)
    net = Network(model, digits.x_train[:2])
    evaluators = [
        kind(net, digits, F.cross_entropy) for kind in (PlainEvaluator, CachedEvaluator, IncrementalEvaluator)
    ]
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer, visits in sweeps(net.layers, "weight", "neuron", "output_first"):
            net.refresh_statistics(digits.x_train, before=layer.position)
            for evaluator in evaluators:
                evaluator.begin_sweep(layer, 10**6)
                evaluator.begin_batch(torch.randperm(120, generator=torch.Generator().manual_seed(2))[:50])
            for visit in itertools.islice(visits, 4):
                sigmas = dict.fromkeys(parameters, 0.3)
                proposal = propose(visit, parameters, sigmas, 1.0, "gaussian", generator)
                plain, *others = (evaluator.losses([proposal], True)[0] for evaluator in evaluators)
                choice = choose(plain)
                least, second, _ = plain.sort().values
                for losses in others:
                    torch.testing.assert_close(losses, plain, rtol=2e-5, atol=0)
                    assert choose(losses) == choice or second - least < 1e-6
                apply(proposal, choice)
                for evaluator in evaluators:
                    evaluator.commit(proposal, choice)


def test_a_cache_that_is_filled_in_place_of_the_one_before_is_right(digits64):
    runs = []
    for evaluator in ("plain", "cached", "incremental"):
        steps = rso.steps(
            network("passes on", digits64),
            digits64,
            rso.RSO(1, 40, layer_order="input_first"),
            seed=1,
            evaluator=evaluator,
        )
        runs.append([step.losses for step in steps])
    for losses in runs[1:]:
        assert losses == [pytest.approx(plain, rel=1e-11) for plain in runs[0]]


def test_the_current_loss_is_that_of_the_model_itself(digits64):
    """Without batch norm, nothing but torch's own forward."""
    model = rso.models.build("two_conv", digits64)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    for evaluator in ("plain", "cached", "incremental"):
        model.load_state_dict(weights)
        for step in itertools.islice(rso.steps(model, digits64, rso.RSO(1, 30), seed=0, evaluator=evaluator), 50):
            y = digits64.y_train[step.batch]
            with torch.no_grad():
                now = F.cross_entropy(model(digits64.x_train[step.batch]), y).item()
            assert getattr(step.losses, step.choice) == pytest.approx(now, rel=1e-12)


@pytest.mark.parametrize("evaluator", ["plain", "cached", "incremental"])
def test_a_change_that_dies_out_has_exactly_the_current_loss(digits, evaluator):
    model = rso.models.build("one_conv", digits)
    with torch.no_grad():
        model.conv1.bias[2] = -1e3  # a dead unit: ReLU gives 0 whatever its weights are
    method = rso.RSO(1, 50, layer_order="input_first")
    steps = list(rso.steps(model, digits, method, seed=0, evaluator=evaluator))
    dead = [step for step in steps if step.name == "conv1.weight" and step.index[0] == 2]
    assert len(dead) == 9
    for step in dead:
        assert step.losses.minus == step.losses.keep == step.losses.plus
        assert step.choice == "keep"
    alive = [step for step in steps if step.name == "conv1.weight" and step.index[0] != 2]
    assert any(step.losses.plus != step.losses.keep for step in alive)


@pytest.mark.parametrize("evaluator", ["cached", "incremental"])
def test_without_room_for_the_cache_the_losses_are_the_same(digits64, monkeypatch, evaluator):
    runs = []
    for total in (psutil.virtual_memory().total, 0):
        monkeypatch.setattr(psutil, "virtual_memory", lambda total=total: type("Memory", (), {"total": total}))
        model = rso.models.build("depth5", digits64)
        steps = rso.steps(model, digits64, rso.RSO(1, 40), seed=0, evaluator=evaluator)
        runs.append(list(itertools.islice(steps, 300)))
    for a, b in zip(*runs, strict=True):
        assert b.losses == pytest.approx(a.losses, rel=1e-11)
        assert a.choice == b.choice


@pytest.mark.parametrize("room", [True, False])
def test_the_cache_takes_at_most_a_quarter_of_the_memory(digits64, monkeypatch, room):
    model = rso.models.build("two_conv", digits64)
    net = Network(model, digits64.x_train[:2])
    needed = 4 * 120 * 16 * 4 * 4 * 8  # of 120 images 16 channels of 4x4 float64 enter conv2
    total = needed + (1 if room else -1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": total}))
    evaluator = CachedEvaluator(net, digits64, F.cross_entropy)
    with torch.no_grad():
        evaluator.begin_sweep(next(layer for layer in net.layers if layer.name == "conv2"), 10**6)
    assert bool(evaluator.cache) == room


def test_a_cache_is_kept_where_it_can_be(digits64):
    for name, cached in (("one_conv", True), ("mixes rows", False)):
        model = network(name, digits64)
        net = Network(model, digits64.x_train[:2])
        evaluator = CachedEvaluator(net, digits64, F.cross_entropy)
        with torch.no_grad():
            evaluator.begin_sweep(net.layers[-1], 240)
        assert bool(evaluator.cache) == cached
        with torch.no_grad():
            evaluator.begin_sweep(net.layers[-1], 239)
        assert not evaluator.cache


@pytest.mark.parametrize("evaluator", ["plain", "cached", "incremental"])
def test_golden_trace(digits64, evaluator):
    """The first 200 choices of a run: a change of the algorithm or of the draws shows here."""
    model = rso.models.build("one_conv", digits64)
    steps = itertools.islice(rso.steps(model, digits64, rso.RSO(1, 60), seed=0, evaluator=evaluator), 200)
    trace = "".join({"minus": "-", "keep": "0", "plus": "+"}[step.choice] for step in steps)
    assert trace == GOLDEN


GOLDEN = (
    "++-++-++--++++----0-0-+++00---++++--++--------+0--+-+++-+---+---0++-+--+---+-0--+++0+-0--+-+00++0+00"
    "+0-++---++--+0++-+--0-0-++-++-+-+++--0++--0-+--+-+-00++-0+++-0+0--+-------+-+--++0-+0++0++0-+-+-+---"
)


@pytest.mark.parametrize("evaluator", ["cached", "incremental"])
def test_a_loss_may_write_into_its_outputs(digits64, evaluator):
    def halved(outputs, targets):
        return F.cross_entropy(outputs.mul_(0.5), targets)

    model = rso.models.build("one_conv", digits64)
    runs = []
    for kind in ("plain", evaluator):
        found = rso.steps(copy.deepcopy(model), digits64, rso.RSO(1, 40), evaluator=kind, seed=0, loss=halved)
        runs.append(torch.stack([step.candidate_losses for step in found]))
    assert torch.allclose(*runs, rtol=1e-11)


def test_a_network_whose_images_depend_on_each_other_sees_them_all_at_once(digits64):
    model = network("mixes rows", digits64)
    (record,) = rso.fit(model, digits64, rso.RSO(1, 60), seed=0).cycles
    with torch.no_grad():
        loss = F.cross_entropy(model(digits64.x_train), digits64.y_train).item()
    assert record.loss == pytest.approx(loss, rel=1e-12)
    with pytest.raises(ValueError, match="MixesRows says of an image depends on those beside it: ranks share those"):
        rso.fit(model, digits64, rso.RSO(1, 60), seed=0, ranks=Ranks(0, 2))
