"""The search on a GPU, without one: torch's "meta" device in its place, whose tensors have a shape and no numbers.

So an operation between its tensors and the processor's fails, and so does whatever would wait for a number.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rso_lab as rso
from rso_lab.graph import Network
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
    ],
    ids=str,
)
def test_no_weight_waits_for_the_device(digits, kind, settings):
    """Only the last one of a sweep does, when the losses of all are looked at."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(6), nn.Flatten(), nn.Linear(4, 10)
    )
    network = Network(model, digits.x_train[:2])
    method = rso.RSO(1, 2, **settings)  # batches too small for the activation cache, which is checked when it is filled
    sigmas = initial_sigmas(network, method)
    network.stale.clear()  # statistics are read, but once a sweep
    model.to("meta")
    evaluator = kind(network, digits.to(torch.device("meta")), F.cross_entropy)
    steps = []
    with pytest.raises(RuntimeError, match="meta"):
        steps.extend(search_cycle(1, sigmas, network, evaluator.data, method, evaluator, torch.Generator()))
    assert len(steps) == (50 if method.level == "weight" else 94) - 1
    for step in steps:
        assert step.candidate_losses.is_meta
        assert step.candidate_losses.shape == (3,)
        assert step.chosen.is_meta
        assert not step.batch.is_meta
