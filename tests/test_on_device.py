"""The incremental evaluator in plain torch operations gives what three forward passes give, and never waits."""

import pytest
from test_incremental import NETWORKS, SHAPE, assert_close, assert_identical_runs, build, everything, images, replay

from rso_lab import train
from rso_lab.on_device import OnDeviceEvaluator
from rso_lab.rso import PlainEvaluator


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


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
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
