"""The incremental evaluator in plain torch operations gives what three forward passes give, in every setting.

For every network: test_incremental.py.
"""

import pytest
from test_incremental import SHAPE, assert_identical_runs, everything, images

from rso_lab.on_device import OnDeviceEvaluator

MORE = (
    {},
    {"opposite": False},
    {"weight_decay": 0.1},
    {"distribution": "template"},
    {"parallel": "neuron"},
    {"parallel": "layer"},
)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
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
