"""The search on a GPU, without one: torch's "meta" device in its place, whose tensors have a shape and no numbers.

So an operation between its tensors and the processor's fails, and so does whatever would wait for a number.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rso_lab as rso
from rso_lab.graph import Network
from rso_lab.parallel import layer_search
from rso_lab.rso import CachedEvaluator, PlainEvaluator, initial_sigmas, search_cycle


@pytest.mark.parametrize("kind", [PlainEvaluator, CachedEvaluator])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_every": "neuron"},
        {"weight_decay": 0.1},
        {"opposite": False},
        {"level": "layer"},
        {"level": "network"},
        {"parallel": "neuron", "layer_order": "input_first"},
        {"parallel": "layer", "layer_order": "input_first", "batch_every": "neuron"},
    ],
    ids=str,
)
def test_no_weight_waits_for_the_device(digits, kind, settings):
    """Only the last one of a sweep does, when the losses of all are looked at."""
    computed = []

    def loss(outputs, targets):
        computed.append(outputs)
        return F.cross_entropy(outputs, targets)

    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(6), nn.Flatten(), nn.Linear(4, 10)
    )
    network = Network(model, digits.x_train[:2])
    method = rso.RSO(1, 2, **settings)  # batches too small for the activation cache, which is checked when it is filled
    sigmas, way = initial_sigmas(network, method), layer_search(method.parallel)
    network.stale.clear()  # statistics are read, but once a sweep
    model.to("meta")
    evaluator = kind(network, digits.to(torch.device("meta")), loss)
    steps = []
    with pytest.raises(RuntimeError, match="meta"):
        steps.extend(search_cycle(1, sigmas, network, evaluator.data, method, evaluator, torch.Generator(), way))
    visits = 94 if method.level != "weight" else 36 if method.layer_order == "input_first" else 50
    assert len(computed) == visits * (3 if method.opposite else 2)
    assert len(steps) == (0 if method.parallel else visits - 1)
    for step in steps:
        assert step.candidate_losses.is_meta
        assert step.candidate_losses.shape == (3,)
        assert step.chosen.is_meta
        assert not step.batch.is_meta
