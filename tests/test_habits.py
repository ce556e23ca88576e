"""What users of torch are used to: loss classes, modes, copies, closures with backward, autocast, numpy's numbers."""

import copy
import itertools
import json
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rso_lab as rso

X = torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
DATA = rso.Data.from_arrays(X, torch.arange(40) % 3, X, torch.arange(40) % 3)


def network() -> nn.Module:
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(2)
    return nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 3)).eval()


@pytest.mark.parametrize("evaluator", ["plain", "cached", "incremental"])
@pytest.mark.parametrize("verb", [rso.run, rso.steps, rso.histories])
def test_a_mode_that_is_set_between_records_does_not_change_the_search(evaluator, verb):
    weights = []
    for toggles in (False, True):
        model = network()
        for _ in verb(model, DATA, rso.RSO(2, 20), seed=0, evaluator=evaluator):
            if toggles:
                model.train()
        assert not model[2].training
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *weights))


@pytest.mark.parametrize("evaluator", ["plain", "cached", "incremental"])
def test_products_are_of_float32_whatever_torch_has_been_told(evaluator):
    """Fails where the processor has products of bf16."""
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    data, losses = rso.Data.from_arrays(x, torch.arange(200) % 3, x, torch.arange(200) % 3), []
    told = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
            steps = rso.steps(model, data, rso.RSO(1, 100, batch_every="neuron"), seed=0, evaluator=evaluator)
            losses.append(torch.stack([step.candidate_losses for step in itertools.islice(steps, 300)]))
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(told)
    assert torch.equal(*losses)


@pytest.mark.parametrize("method", [rso.RSO(1, 20), rso.RSO(1, 20, level="network"), rso.SGD(1, 20, 0.1)], ids=repr)
@pytest.mark.parametrize("still", [True, False])
def test_a_frozen_batch_norm_keeps_its_statistics(method, still):
    model = network().train(not still)
    model[2].eval()
    model[1].requires_grad_(False)
    model[1].running_mean.fill_(3.0)
    model[0].requires_grad_(method.level != "weight" if isinstance(method, rso.RSO) else True)
    history = rso.fit(model, DATA, method, seed=0)
    assert bool((model[1].running_mean == 3).all()) == still
    with torch.no_grad():
        assert history.cycles[-1].loss == pytest.approx(float(F.cross_entropy(model(X), DATA.y_train)))


class Holder(nn.Module):
    """Holds a parameter beside a layer."""

    def __init__(self, value: torch.Tensor):
        super().__init__()
        self.shift = nn.Parameter(value.clone())
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head((x.flatten(1)[:, None] + self.shift).mean(1))


def sigmas_of(model: nn.Module, **settings: float) -> dict[str, float]:
    return {step.name: step.sigma for step in rso.steps(model, DATA, rso.RSO(1, 20, **settings), seed=0)}


def test_a_parameter_beside_child_modules_has_a_sigma_of_its_own():
    shift = torch.linspace(-5, 5, 32).view(2, 16)
    model = Holder(shift)
    expected = [float(values.std(correction=0)) for values in (shift, model.head.weight.detach())]
    optimizer = rso.RSOptimizer(model.named_parameters(), seed=0)
    for sigmas in (optimizer.sigmas, sigmas_of(model)):
        assert [sigmas["shift"], sigmas["head.weight"]] == pytest.approx(expected)


def test_layers_that_begin_with_zeros_stay_and_say_so_or_move_with_a_floor():
    for layer, name in (("head", "head.weight"), ("", "shift")):
        model = Holder(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
        parameter = nn.init.zeros_(model.get_parameter(name))
        with pytest.warns(UserWarning, match=f"layer '{layer}' are equal: sigma_d is 0, and they stay.*sigma_floor"):
            rso.fit(model, DATA, rso.RSO(1, 20), seed=0)
        assert not parameter.any()
        assert sigmas_of(model, sigma_floor=0.5)[name] == pytest.approx(0.5 * (2 / 16) ** 0.5)
        assert parameter.any()


def test_a_loss_class_is_called_so():
    with pytest.raises(TypeError, match=r"loss is the class MSELoss: pass an instance of it, MSELoss\(\)"):
        rso.fit(network(), DATA, rso.RSO(1, 20), seed=0, loss=nn.MSELoss)


def test_autocast_is_refused():
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match=r"torch\.autocast is on"):
        rso.fit(network(), DATA, rso.RSO(1, 20), seed=0)


@pytest.mark.parametrize("verb", [rso.run, rso.steps, rso.histories])
def test_autocast_is_refused_when_it_begins_later(verb):
    model = network()
    begun = verb(model, DATA, rso.RSO(9, 20), seed=0)
    next(begun)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match=r"torch\.autocast is on"):
        next(begun)
    assert bool(model[1].running_mean.any())
    assert len(list(rso.run(model, DATA, rso.SGD(1, 20, 0.1), seed=0))) == 1


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_optimizer_is_not_copied(make):
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        make(rso.RSOptimizer(network().named_parameters(), seed=0))


def test_closures_for_other_optimizers_are_told_what_is_wanted():
    model = network()
    optimizer = rso.RSOptimizer(model.named_parameters(), seed=np.int64(0))
    before = copy.deepcopy(model.state_dict())

    def with_backward() -> torch.Tensor:
        loss = F.cross_entropy(model(X), DATA.y_train)
        loss.backward()
        return loss

    for closure, said in ((with_backward, "backward"), (lambda: None, "NoneType"), (lambda: model(X), "one number")):
        with pytest.raises((RuntimeError, TypeError), match=said):
            optimizer.step(closure)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_numbers_of_numpy_are_numbers(tmp_path):
    numbers = rso.RSO(np.int64(1), np.int32(20), sigma_scale=np.float32(0.5), opposite=np.bool_(True), level="network")
    assert numbers == rso.RSO(1, 20, sigma_scale=0.5, level="network")
    rso.fit(network(), DATA, numbers, seed=np.uint8(7)).save(tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["seeds"] == [7]
    descent = rso.SGD(np.int64(3), 20, np.float64(0.1), drops=(np.float32(0.5), np.float64(0.75)))
    assert descent == rso.SGD(3, 20, 0.1)
    assert json.dumps(descent.drops) == "[0.5, 0.75]"
    limited = rso.load("digits", train_limit=np.int64(9), test_limit=np.int16(5))
    assert (len(limited.x_train), len(limited.x_test)) == (9, 5)


@pytest.mark.parametrize("evaluator", ["plain", "cached", "incremental"])
@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
def test_one_logit_tells_two_classes_apart(evaluator, shape):
    y = (X.mean((1, 2, 3)) > 0).long()
    two = rso.Data.from_arrays(X, y, X, y)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0) if shape == (-1,) else nn.Identity())

    def loss(outputs, targets):
        return F.binary_cross_entropy_with_logits(outputs.flatten(), targets.float())

    history = rso.fit(model, two, rso.RSO(2, 40), seed=0, loss=loss, evaluator=evaluator)
    right = ((model(X).flatten() > 0) == (y == 1)).sum() / 40
    assert history.cycles[-1].test_accuracy == pytest.approx(float(right))
    with pytest.raises(ValueError, match="shape"):
        rso.fit(model, two, rso.RSO(1, 40), seed=0)
