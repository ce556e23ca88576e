"""What users of torch are used to: loss classes, modes, copies, closures with backward, autocast, numpy's numbers."""

import copy
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


def test_a_loss_class_is_called_so():
    with pytest.raises(TypeError, match=r"loss is the class MSELoss: pass an instance of it, MSELoss\(\)"):
        rso.fit(network(), DATA, rso.RSO(1, 20), seed=0, loss=nn.MSELoss)


def test_autocast_is_refused():
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match=r"torch\.autocast is on"):
        rso.fit(network(), DATA, rso.RSO(1, 20), seed=0)


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
    assert rso.SGD(np.int64(3), 20, np.float64(0.1)) == rso.SGD(3, 20, 0.1)
    limited = rso.load("digits", train_limit=np.int64(9), test_limit=np.int16(5))
    assert (len(limited.x_train), len(limited.x_test)) == (9, 5)


def test_one_logit_tells_two_classes_apart():
    y = (X.mean((1, 2, 3)) > 0).long()
    two = rso.Data.from_arrays(X, y, X, y)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))

    def loss(outputs, targets):
        return F.binary_cross_entropy_with_logits(outputs.flatten(), targets.float())

    history = rso.fit(model, two, rso.RSO(2, 40), seed=0, loss=loss)
    right = ((model(X).flatten() > 0) == (y == 1)).sum() / 40
    assert history.cycles[-1].test_accuracy == pytest.approx(float(right))
    with pytest.raises(ValueError, match="shape"):
        rso.fit(model, two, rso.RSO(1, 40), seed=0)
