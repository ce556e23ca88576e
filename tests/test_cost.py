"""Counted multiply-adds: the paper's and the design's figures, and a small network counted by hand."""

import copy

import pytest
import torch
from torch import nn

import rso_lab as rso
from rso_lab import estimate
from rso_lab.counts import StepCosts, forward_cost, layer_costs
from rso_lab.graph import Network
from rso_lab.incremental import IncrementalEvaluator
from rso_lab.rso import PlainEvaluator


def cycle(name, shape, evaluator):
    """Multiply-adds of a cycle, for one image and candidate."""
    example = torch.zeros(2, *shape)
    model = getattr(rso.models, name)(in_channels=shape[0])
    network = Network(model, example)
    costs = layer_costs(network, example, rso.RSO(1, 2), evaluator)
    return sum(layer.size * costs[layer.name].candidate for layer in network.layers)


@pytest.mark.parametrize(("name", "shape", "saved"), [("paper_cnn", (1, 28, 28), 3.0), ("depth10", (3, 32, 32), 3.5)])
def test_the_cache_saves_what_the_paper_says(name, shape, saved):
    """§4.7."""
    assert cycle(name, shape, "plain") / cycle(name, shape, "cached") == pytest.approx(saved, abs=0.05)


def test_the_networks_cycle_costs_what_the_design_counts():
    counted = [cycle("paper_cnn", (1, 28, 28), evaluator) for evaluator in ("plain", "cached", "incremental")]
    assert counted == pytest.approx([36.0e9, 12.1e9, 2.7e9], rel=0.03)


HAND = {  # one_conv on 8x8: conv1 4 channels of 3x3 on 64 places, fc of 64 features to 10: two sweeps, fc first
    "plain": (650 + 40) * 3 * (4 * 9 * 64 + 640),
    "cached": 650 * 3 * 640 + 40 * 3 * (4 * 9 * 64 + 640),
    # two candidates; a weight of fc reaches one output, one of conv1 64 places and 16 features
    "incremental": 650 * 2 * 1 + 650 * 640 + 40 * 2 * (64 + 16 * 10) + 40 * (4 * 9 * 64 + 640),
}


@pytest.mark.parametrize("evaluator", HAND)
def test_a_record_counts_what_its_evaluator_does(digits, evaluator):
    model = rso.models.build("one_conv", digits)
    assert [tuple(p.shape) for p in (model.conv1.weight, model.fc.weight)] == [(4, 1, 3, 3), (10, 64)]
    *_, record = rso.run(model, digits, rso.RSO(2, 30), seed=0, evaluator=evaluator)
    assert record.multiply_adds == 2 * 30 * HAND[evaluator]
    assert (record.updates, record.evaluations) == (2, 2 * 3 * 690)


def test_a_held_mini_batch_is_run_once(digits):
    model = rso.models.build("one_conv", digits)
    *_, record = rso.run(model, digits, rso.RSO(1, 30, batch_every="layer"), seed=0)
    assert record.multiply_adds == 30 * (650 * 2 + 640 + 40 * 2 * (64 + 160) + 2304 + 640)


def test_sgd_costs_three_forward_passes_an_iteration(digits):
    model = rso.models.build("one_conv", digits)
    *_, record = rso.run(model, digits, rso.SGD(3, 40, 0.1, warm_up=1), seed=0)
    assert record.updates == 9
    assert record.multiply_adds == 9 * 3 * 40 * (2304 + 640)
    assert forward_cost(Network(model, digits.x_train[:2]), digits.x_train) == 2304 + 640


def test_above_the_weight_level_the_whole_network_is_run(digits):
    model = rso.models.build("one_conv", digits)
    *_, record = rso.run(model, digits, rso.RSO(1, 20, level="network"), seed=0)
    assert record.multiply_adds == 690 * 3 * 20 * (2304 + 640)


def test_mini_batches_grow(digits):
    model = rso.models.build("one_conv", digits)
    sizes = {}
    for step in rso.steps(model, digits, rso.RSO(3, 10, batch_growth=1.5), seed=0):
        sizes.setdefault(step.cycle, set()).add(len(step.batch))
    assert sizes == {1: {10}, 2: {15}, 3: {22}}
    with pytest.raises(ValueError, match="batch_size is 160: expected at most 120"):
        rso.fit(model, digits, rso.RSO(5, 10, batch_growth=2), seed=0)
    with pytest.raises(ValueError, match="batch_size is inf: expected at most 120"):
        rso.fit(model, digits, rso.RSO(5, 10, batch_growth=1e300), seed=0)


def test_a_forward_pass_counts_all_layers_searched_or_not(digits):
    model = rso.models.build("mlp", digits)
    whole = forward_cost(Network(model, digits.x_train[:2]), digits.x_train)
    assert whole == sum(p.numel() for name, p in model.named_parameters() if name.endswith("weight"))
    model.get_submodule("fc1").requires_grad_(False)
    assert forward_cost(Network(model, digits.x_train[:2]), digits.x_train) == whole
    normed = nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 10))
    assert forward_cost(Network(normed, digits.x_train[:2]), digits.x_train) == 640


@pytest.mark.parametrize("parallel", [None, "neuron", "layer"])
@pytest.mark.parametrize("order", ["neuron", "input"])
@pytest.mark.parametrize("batch_every", ["weight", "neuron", "layer"])
def test_the_network_is_counted_as_often_as_it_is_run(digits, monkeypatch, parallel, order, batch_every):
    runs = []
    begin = IncrementalEvaluator.begin_batch
    monkeypatch.setattr(IncrementalEvaluator, "begin_batch", lambda self, rows: runs.append(0) or begin(self, rows))
    settings = rso.RSO(1, 30, parallel=parallel, order=order, batch_every=batch_every)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))
    costs = StepCosts(Network(model, digits.x_train[:2]), digits.x_train, settings, "incremental")
    counted = 0
    for step in rso.steps(model, digits, settings, seed=0):
        cost = costs.costs[step.layer]
        counted += (costs.of(step) - 30 * 2 * cost.candidate) // (30 * cost.batch)
    assert counted == len(runs)


# Before a run

PLANNED = [
    rso.RSO(2, 30),
    rso.RSO(2, 30, batch_every="neuron", opposite=False),
    rso.RSO(2, 30, batch_every="neuron", order="input", parallel="neuron"),
    rso.RSO(2, 30, batch_every="layer", layer_order="input_first", parallel="layer"),
    rso.RSO(2, 30, level="layer"),
    rso.SGD(2, 40, 0.1),
    rso.ES(2, 40, 0.1),
    rso.GA(2, 40),
]


@pytest.mark.parametrize("method", PLANNED, ids=str)
def test_what_is_told_before_a_run_is_what_the_run_counts(digits, method, monkeypatch):
    monkeypatch.setattr(estimate, "TRIAL", 0.0)
    model = rso.models.build("one_conv", digits)
    before = copy.deepcopy(model.state_dict())
    chance = torch.get_rng_state()
    told = rso.cost(model, digits, method)
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert told.seconds > 0
    first = next(record for record in rso.run(model, digits, method, seed=0) if record.layer is None)
    assert told.multiply_adds == first.multiply_adds
    assert f"2 {told.unit}s, {told.evaluator}: about " in str(told)


@pytest.mark.parametrize("trial", [50, 100_000])
@pytest.mark.parametrize("batch_every", ["weight", "neuron", "layer"])
def test_seconds_of_a_sweep_follow_from_its_first_steps(digits, monkeypatch, batch_every, trial):
    """By a clock that goes on by 1000 for a sweep, 10 for a mini-batch and 1 for a proposal."""
    clock = [0.0]
    for name, ticks in (("begin_sweep", 1000), ("begin_batch", 10), ("losses", 1)):
        own = getattr(PlainEvaluator, name)

        def counting(self, *given, own=own, ticks=ticks):
            clock[0] += ticks
            return own(self, *given)

        monkeypatch.setattr(PlainEvaluator, name, counting)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(estimate, "TRIAL", trial)
    model = rso.models.build("one_conv", digits)
    told = rso.cost(model, digits, rso.RSO(1, 30, batch_every=batch_every), evaluator="plain")
    batches = {"weight": (650, 40), "neuron": (10, 4), "layer": (1, 1)}[batch_every]
    expected = [1000 + 10 * count + size for count, size in zip(batches, (650, 40), strict=True)]
    assert [part.seconds for part in told.parts[:2]] == pytest.approx(expected)
