"""The incremental evaluator in plain torch operations gives what three forward passes give, and never waits."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from test_bad_input import failing_loss
from test_incremental import NETWORKS, SHAPE, assert_close, assert_identical_runs, build, everything, images, replay

import rso_lab as rso
from rso_lab import train
from rso_lab.graph import Network
from rso_lab.on_device import OnDeviceEvaluator
from rso_lab.rso import PlainEvaluator, Sweep, initial_sigmas
from rso_lab.visits import weight_visits

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.fixture(autouse=True)
def _on_device(monkeypatch):
    monkeypatch.setitem(train.EVALUATORS, "incremental", OnDeviceEvaluator)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_every_network(name):
    data = images(SHAPE)
    if name != "batch norms in a row":  # the second takes back what the first does
        assert_identical_runs(NETWORKS[name], data, cycles=1, layer_order="input_first", batch_every="layer")
    for _, (plain, fast), _ in replay(build(NETWORKS[name], data), data, (PlainEvaluator, OnDeviceEvaluator), seed=1):
        assert_close(fast, plain, 1e-11)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_every": every, "order": order} | more
        for every in ("weight", "neuron", "layer")
        for order in ("neuron", "input")
        for more in (
            {},
            {"opposite": False},
            {"weight_decay": 0.1},
            {"distribution": "template"},
            {"parallel": "neuron"},
            {"parallel": "layer"},
        )
    ],
    ids=str,
)
def test_every_setting(settings):
    assert_identical_runs(everything, images((2, 9, 8)), cycles=2, **settings)


class NoWaits(torch.utils._python_dispatch.TorchDispatchMode):
    """Raises where a program would wait for a GPU: where a number is read, or a shape depends on numbers."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags):
            raise AssertionError(f"{function} waits for the device")
        return function(*args, **kwargs or {})


@torch.no_grad()
def test_a_group_of_proposals_waits_for_nothing():
    data, method = images((2, 9, 8)), rso.RSO(1, 10, batch_every="neuron")
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


def test_a_loss_that_is_not_finite_is_named_and_an_interrupt_leaves_a_valid_network():
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
