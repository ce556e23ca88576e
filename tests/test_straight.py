"""Weights searched one after another in compiled loops: the losses, choices and weights of plain evaluation."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rso_lab as rso
from rso_lab import straight
from rso_lab.graph import Network
from rso_lab.incremental import IncrementalEvaluator
from rso_lab.models import he_init_
from rso_lab.paths import find_path
from rso_lab.rso import PlainEvaluator, Proposal


def data_of(x):
    """Images x, in three classes."""
    y = torch.arange(len(x)) % 3
    return rso.Data.from_arrays(x, y, x[:5], y[:5])


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def proposal(weight, name, index, delta):
    """To move one weight by delta."""
    w = weight.detach()[index]
    values = torch.stack([w, w + delta, w - delta])
    return Proposal({name: w}, index, {name: torch.tensor(delta)}, {name: 1.0}, {name: values})


@pytest.mark.parametrize("outputs", ["usual", "huge", "all equal", "one far above"])
@pytest.mark.parametrize("delta", [1e-3, 1.0, 40.0, 1e4])
@torch.no_grad()
def test_the_last_layers_losses_change_by_one_exponential_an_image(outputs, delta):
    """Beside log_softmax of all outputs, in float64; a weight after the other, on what the ones before have left."""
    data = data_of(noise(12, 4))
    layer = nn.Linear(4, 3).double()
    he_init_(layer)
    if outputs == "huge":
        layer.weight.mul_(1e5)
    elif outputs == "all equal":
        layer.weight.zero_()
    elif outputs == "one far above":
        layer.bias[1] = 500
    model = nn.Sequential(layer)
    fast, plain = (
        kind(Network(model, data.x_train[:2]), data, F.cross_entropy) for kind in (IncrementalEvaluator, PlainEvaluator)
    )
    for evaluator in (fast, plain):
        evaluator.begin_sweep(evaluator.network.layers[0], 24)
        evaluator.begin_batch(torch.arange(12))
    assert isinstance(fast.followed, straight.LastLinear)
    proposals = [proposal(layer.weight, "0.weight", index, delta) for index in itertools.product(range(3), range(4))]
    proposals += [proposal(layer.bias, "0.bias", (index,), delta) for index in range(3)]
    ((losses, choices),) = fast.search(proposals, True, None, rso.rso.choose)
    taken = iter(choices)  # a tie but for rounding must not cascade
    of_plain = plain.search(proposals, True, None, lambda _: next(taken))
    for one, found, choice, (expected, _) in zip(proposals, losses, choices, of_plain, strict=True):
        torch.testing.assert_close(found, expected[0], rtol=1e-12, atol=1e-14)
        assert choice == rso.rso.choose(found)
        rso.rso.apply(one, choice)


NETWORKS = {
    "linear": nn.Sequential(
        nn.Flatten(), nn.Linear(72, 5), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
    ),
    "pooled": nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, groups=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 20, 2),
        nn.Flatten(),
        nn.Linear(80, 3),
    ),
    "normed": nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, dilation=2, padding=2, groups=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 2, stride=(1, 2), padding=(1, 0), bias=False),
        nn.BatchNorm2d(5),
        nn.Dropout(0.0),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "settings",
    [{"batch_every": "layer", "weight_decay": 0.3}, {"batch_every": "neuron", "opposite": False}, {}],
    ids=str,
)
def test_a_group_is_searched_as_plain_evaluation_searches_it(name, settings, monkeypatch):
    """Also in calls of one weight each, behind which lie the same bits; the last layer's losses but for rounding."""
    data = data_of(noise(20, 2, 6, 6))
    runs = []
    for evaluator, at_once in (("plain", 1), ("incremental", 2**28), ("incremental", 1)):
        monkeypatch.setattr(straight, "AT_ONCE", at_once)
        model = he_init_(NETWORKS[name].double())
        method = rso.RSO(1, 12, layer_order="input_first", **settings)
        steps = list(rso.steps(model, data, method, seed=1, evaluator=evaluator))
        losses = torch.stack([step.candidate_losses for step in steps]).nan_to_num()
        runs.append(
            (losses, [step.choice for step in steps], [weight.clone() for weight in model.state_dict().values()])
        )
    plain, one_call, calls = runs
    assert one_call[1] == calls[1] == plain[1]
    torch.testing.assert_close(one_call[0], plain[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(one_call[2], plain[2], rtol=1e-9, atol=1e-12)
    behind = sum(weight.numel() for weight in list(model.parameters())[-2:])  # whose sums each call begins anew
    assert torch.equal(one_call[0][:-behind], calls[0][:-behind])
    torch.testing.assert_close(one_call[0], calls[0], rtol=1e-13, atol=0)


def test_which_paths_are_straight():
    """So that the tests above test something."""
    x = noise(2, 2, 6, 6)
    conv = nn.Conv2d(2, 3, 1)

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Linear(72, 3)

        def forward(self, x):
            y = self.a(x)
            return self.fc((y + self.b(y)).flatten(1))

    def follows(model):
        network = Network(model.double().eval(), x)
        examples = {network.input: x, **network.propagate({network.input: x}, keep=network.nodes[1:])}
        paths = [find_path(network, layer, examples) for layer in network.layers]
        return [path is not None and straight.find_segments(path, examples) is not None for path in paths]

    for model in NETWORKS.values():
        assert all(follows(model))
    flat = nn.Flatten(), nn.Linear(108, 3)
    assert follows(nn.Sequential(conv, nn.Tanh(), *flat)) == [False, True]
    assert follows(nn.Sequential(conv, nn.ReLU(), nn.BatchNorm2d(3), *flat)) == [False, True, True]
    assert follows(nn.Sequential(conv, *flat, nn.Softmax(1))) == [False, False]
    assert follows(Residual()) == [False, False, True]
