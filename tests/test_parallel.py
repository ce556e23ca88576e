"""Neuron- and layer-parallel search against the naive second version in reference.py, step by step in float64."""

import copy
import itertools

import pytest
import reference
import torch
import torch.nn.functional as F

import rso_lab as rso
from rso_lab import incremental
from rso_lab.graph import Network
from rso_lab.incremental import IncrementalEvaluator
from rso_lab.parallel import layer_search
from rso_lab.rso import CachedEvaluator, PlainEvaluator, propose, search_cycle
from rso_lab.visits import sweeps

CONVOLUTIONS = ("0", "4")
SETTINGS = [
    {},
    {"order": "input", "batch_every": "neuron"},
    {"batch_every": "neuron", "layer_order": "input_first"},
    {"batch_every": "layer", "order": "input"},
    {"batch_every": "layer", "weight_decay": 0.05},
    {"opposite": False, "batch_norm": False},
]


def move(model, step):
    parameter = dict(model.named_parameters())[step.name].detach()
    parameter[step.index] += {"minus": -step.delta, "keep": 0.0, "plus": step.delta}[step.choice]


@pytest.mark.parametrize("evaluator", ["plain", "cached", "incremental"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("parallel", ["neuron", "layer"])
def test_every_step_sees_the_state_that_it_should(digits64, parallel, settings, evaluator):
    model = reference.small_network()
    shadow = copy.deepcopy(model)
    method = rso.RSO(1, 40, parallel=parallel, **settings)
    steps = list(rso.steps(model, digits64, method, seed=1, evaluator=evaluator))
    in_turn = list(rso.steps(reference.small_network(), digits64, rso.RSO(1, 40, **settings), seed=1))
    for step, other in zip(steps, in_turn, strict=True):
        assert (step.name, step.index, step.sigma) == (other.name, other.index, other.sigma)
        assert step.delta == pytest.approx(other.delta, rel=1e-12)
        assert torch.equal(step.batch, other.batch)
    for layer, its_steps in itertools.groupby(steps, key=lambda step: step.layer):
        before = copy.deepcopy(shadow)
        of_neuron = {}
        for step in its_steps:
            if layer not in CONVOLUTIONS:
                seen = shadow
            elif parallel == "layer":
                seen = before
            else:
                seen = of_neuron.setdefault(step.index[0], copy.deepcopy(before))
            losses = reference.losses(seen, digits64, step, method.weight_decay, method.opposite)
            assert step.losses._asdict() == pytest.approx(losses, rel=1e-10, nan_ok=True)
            assert losses[step.choice] <= min(loss for loss in losses.values() if loss == loss) + 1e-13
            move(shadow, step)
            if layer in CONVOLUTIONS and parallel == "neuron":
                move(seen, step)
    for trained, replayed in zip(model.parameters(), shadow.parameters(), strict=True):
        assert torch.equal(trained, replayed)
    assert [step.choice for step in steps] != [step.choice for step in in_turn]


def test_interrupted_within_a_neuron_the_layer_is_what_it_was(digits64):
    model = reference.small_network()
    before = copy.deepcopy(model.state_dict())
    calls = itertools.count()

    def loss(outputs, targets):
        if next(calls) == 3 * 70:  # 18 weights of the first convolution and 4 of its batch norm come first
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets)

    method = rso.RSO(1, 40, parallel="neuron", layer_order="input_first", batch_every="neuron")
    with pytest.raises(KeyboardInterrupt):
        list(rso.steps(model, digits64, method, seed=0, evaluator="plain", loss=loss))
    assert torch.equal(model.state_dict()["4.weight"], before["4.weight"])
    assert not torch.equal(model.state_dict()["0.weight"], before["0.weight"])


@pytest.mark.parametrize("parallel", [None, "neuron", "layer"])
@pytest.mark.parametrize("batch_every", ["weight", "neuron", "layer"])
@pytest.mark.parametrize("order", ["neuron", "input"])
def test_the_evaluator_is_told_how_many_rows_to_expect(digits, parallel, batch_every, order):
    told, seen = [], []

    class Counting(PlainEvaluator):
        def begin_sweep(self, layer, rows):
            told.append(rows)
            seen.append(0)
            super().begin_sweep(layer, rows)

        def begin_batch(self, rows):
            seen[-1] += len(rows)
            super().begin_batch(rows)

    model = reference.small_network(torch.float32)
    network = Network(model, digits.x_train[:2])
    method = rso.RSO(1, 3, parallel=parallel, batch_every=batch_every, order=order)
    evaluator, generator = Counting(network, digits, F.cross_entropy), torch.Generator().manual_seed(0)
    sigmas = dict.fromkeys(dict(model.named_parameters()), 0.1)
    list(search_cycle(1, sigmas, network, digits, method, evaluator, generator, layer_search(parallel)))
    assert len(told) == 5
    assert told == seen


@pytest.mark.parametrize("kind", [PlainEvaluator, CachedEvaluator, IncrementalEvaluator])
@torch.no_grad()
def test_many_proposals_at_once_have_the_losses_of_each_alone(digits, kind):
    model = rso.models.build("paper_cnn", digits)
    network = Network(model, digits.x_train[:2])
    network.refresh_statistics(digits.x_train)
    evaluator = kind(network, digits, F.cross_entropy)
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    for layer, visits in sweeps(network.layers, "weight", "neuron", "output_first"):
        evaluator.begin_sweep(layer, 10**6)
        evaluator.begin_batch(torch.arange(100))
        some = itertools.islice(visits, 0, 20, 3)
        sigmas = dict.fromkeys(parameters, 0.2)
        proposals = [propose(visit, parameters, sigmas, 1.0, "gaussian", generator) for visit in some]
        together = evaluator.losses(proposals, True)
        assert together.shape == (len(proposals), 3)
        alone = torch.cat([evaluator.losses([proposal], True) for proposal in proposals])
        assert torch.equal(together, alone)
        assert len(together[:, 1:].unique()) > len(proposals)


@pytest.mark.parametrize("parallel", ["neuron", "layer"])
def test_the_number_of_threads_changes_nothing_at_all(monkeypatch, digits, threads, parallel):
    monkeypatch.setattr(incremental, "THREADED", -1)
    method = rso.RSO(1, 50, parallel=parallel, batch_every="neuron", layer_order="input_first")
    runs = []
    for count in (1, 2, 4):
        threads(count)
        model = rso.models.build("paper_cnn", digits)
        runs.append([step.losses for step in itertools.islice(rso.steps(model, digits, method, seed=0), 200)])
    assert runs[0] == runs[1] == runs[2]
