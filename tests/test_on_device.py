"""The incremental evaluator in plain torch operations gives what three forward passes give, and never waits.

For every network: test_incremental.py.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from test_bad_input import failing_loss
from test_incremental import SHAPE, assert_identical_runs, build, everything, images

import rso_lab as rso
from rso_lab import train
from rso_lab.graph import Network
from rso_lab.on_device import OnDeviceEvaluator
from rso_lab.rso import Sweep, initial_sigmas
from rso_lab.visits import weight_visits

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

MORE = (
    {},
    {"opposite": False},
    {"weight_decay": 0.1},
    {"distribution": "template"},
    {"parallel": "neuron"},
    {"parallel": "layer"},
)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_every": every, "order": ("neuron", "input")[(i + j) % 2]} | more
        for i, every in enumerate(("weight", "neuron", "layer"))
        for j, more in enumerate(MORE)
    ],
    ids=str,
)
def test_every_setting(settings):
    assert_identical_runs(everything, images(SHAPE), [OnDeviceEvaluator], cycles=1, **settings)


class NoWaits(torch.utils._python_dispatch.TorchDispatchMode):
    """Raises where a program would wait for a GPU: where a number is read, or a shape depends on numbers."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags):
            raise AssertionError(f"{function} waits for the device")
        return function(*args, **kwargs or {})


@torch.no_grad()
def test_a_group_of_proposals_waits_for_nothing():
    data, method = images(SHAPE), rso.RSO(1, 10, batch_every="neuron")
    network = Network(build(everything, data), data.x_train[:2])
    network.refresh_statistics(data.x_train)
    for layer in network.layers:
        evaluator = OnDeviceEvaluator(network, data, F.cross_entropy)
        visits, sigmas = list(weight_visits(layer.name, layer.parameters, "neuron")), initial_sigmas(network, method)
        sweep = Sweep(1, layer, visits, sigmas, network.module, len(data.x_train), method, evaluator)
        evaluator.begin_sweep(layer, sweep.rows)
        for turns in itertools.islice(sweep.groups(torch.Generator().manual_seed(0)), 2):
            evaluator.begin_batch(turns[0].rows)
            evaluator.followed.take([turn.proposal for turn in turns], True, None)
            with NoWaits():
                losses, choices = evaluator.followed.search(slice(0, len(turns)))
            assert torch.equal(losses.argmin(1), choices)


def test_a_loss_that_is_not_finite_is_named_and_an_interrupt_leaves_a_valid_network(monkeypatch):
    monkeypatch.setitem(train.EVALUATORS, "auto", OnDeviceEvaluator)
    data = images(SHAPE)
    model = build(everything, data)
    with pytest.raises(FloatingPointError, match=r"the loss is nan in cycle 1, layer '\d"):
        rso.fit(model, data, rso.RSO(1, 10), seed=0, loss=failing_loss(100, float("nan")))
    weights, calls = {name: parameter.clone() for name, parameter in model.named_parameters()}, itertools.count()

    def interrupted(outputs, targets):
        if next(calls) == 100:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets)

    def follow():
        for step in rso.steps(model, data, rso.RSO(1, 10), seed=0, loss=interrupted):
            weights[step.name] = model.get_parameter(step.name).clone()

    with pytest.raises(KeyboardInterrupt):
        follow()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
