"""fit, run and steps: what they leave behind, and what the network is when they end, however they end."""

import itertools
import time

import pytest
import reference
import torch
import torch.nn.functional as F
from torch import nn

import rso_lab as rso
from rso_lab import train
from rso_lab.workers import single_threaded


def statistics_are_fresh(model, data):
    """Whether each batch norm of an nn.Sequential holds mean and population variance over the training set."""
    x = data.x_train
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.BatchNorm2d):
                if not torch.allclose(module.running_mean, x.mean((0, 2, 3)), atol=1e-10):
                    return False
                if not torch.allclose(module.running_var, x.var((0, 2, 3), correction=0), atol=1e-10):
                    return False
            x = module(x)
    return True


def accuracy(model, x, y):
    with torch.no_grad():
        return (model(x).argmax(dim=1) == y).double().mean().item()


@pytest.mark.parametrize(
    "settings", [{}, {"layer_order": "input_first"}, {"level": "layer"}, {"level": "network"}], ids=str
)
def test_after_each_cycle_the_model_is_what_was_measured(digits64, settings):
    model = reference.small_network()
    assert not statistics_are_fresh(model, digits64)
    for record in rso.run(model, digits64, rso.RSO(2, 40, **settings), seed=0):
        if record.layer is None:
            assert not any(module.training for module in model.modules())
            assert statistics_are_fresh(model, digits64)
            assert record.test_accuracy == accuracy(model, digits64.x_test, digits64.y_test)
            assert record.train_accuracy == accuracy(model, digits64.x_train, digits64.y_train)
            with torch.no_grad():
                assert record.loss == pytest.approx(F.cross_entropy(model(digits64.x_train), digits64.y_train).item())


@pytest.mark.parametrize("end", ["close", "exception", "interrupt"])
@pytest.mark.parametrize("after", [3, 150, 180])
def test_wherever_it_stops_the_model_is_valid(digits64, end, after):
    model = reference.small_network()
    calls = itertools.count()

    def loss(outputs, targets):
        if end != "close" and next(calls) == 3 * after - 1:  # when w + delta is in place
            raise KeyboardInterrupt if end == "interrupt" else ZeroDivisionError
        return F.cross_entropy(outputs, targets)

    shadow = reference.small_network()
    steps = rso.steps(model, digits64, rso.RSO(1, 40), seed=0, loss=loss)
    if end == "close":
        assert len(list(itertools.islice(steps, after))) == after
        steps.close()
    else:
        with pytest.raises(KeyboardInterrupt if end == "interrupt" else ZeroDivisionError):
            list(steps)
    with torch.no_grad():
        for step in _run_again(digits64, after - (end != "close")):
            parameter = dict(shadow.named_parameters())[step.name]
            parameter[step.index] += {"minus": -step.delta, "keep": 0.0, "plus": step.delta}[step.choice]
    for stopped, expected in zip(model.parameters(), shadow.parameters(), strict=True):
        assert torch.equal(stopped, expected)
    assert statistics_are_fresh(model, digits64)
    assert not model.training


def test_an_interrupt_between_steps_leaves_fresh_statistics_while_its_traceback_lives(digits64):
    model = reference.small_network()
    growing = train._events(train.prepare(model, digits64, rso.RSO(1, 40), 0))
    for _ in range(150):
        next(growing)
    with pytest.raises(KeyboardInterrupt) as alive:
        growing.throw(KeyboardInterrupt)
    assert alive.tb is not None
    assert statistics_are_fresh(model, digits64)


def _run_again(data, count):
    return list(itertools.islice(rso.steps(reference.small_network(), data, rso.RSO(1, 40), seed=0), count))


def test_records_count_what_the_steps_did(digits):
    method = rso.RSO(2, 30)
    steps = list(rso.steps(rso.models.build("one_conv", digits), digits, method, seed=0))
    records = list(rso.run(rso.models.build("one_conv", digits), digits, method, seed=0))
    assert [(r.cycle, r.layer) for r in records] == [(c, layer) for c in (1, 2) for layer in ("fc", "conv1", None)]
    for record in records:
        mine = [s for s in steps if s.cycle == record.cycle and record.layer in (None, s.layer)]
        kept = sum(step.choice == "keep" for step in mine) / len(mine)
        assert record.kept["all"] == pytest.approx(kept)
        assert record.accepted["all"] == pytest.approx(1 - kept)
        assert record.evaluator == "incremental"
        if record.layer is None:
            assert set(record.kept) == {"all", "fc", "conv1"}
            assert record.evaluations == 3 * 690 * record.cycle
        else:
            losses = [getattr(step.losses, step.choice) for step in mine]
            assert record.loss == pytest.approx(sum(losses) / len(losses))
            assert (record.test_accuracy, record.train_accuracy) == (None, None)
    seconds = [record.seconds for record in records]
    assert seconds == sorted(seconds)


def test_a_record_comes_before_the_next_layer_is_touched(digits):
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        return F.cross_entropy(outputs, targets)

    model = rso.models.build("one_conv", digits)
    before = model.conv1.weight.detach().clone()
    records = rso.run(model, digits, rso.RSO(1, 30, opposite=False), seed=0, loss=loss)
    tried = len(calls)
    record = next(records)
    assert record.layer == "fc"
    assert record.evaluations == len(calls) - tried == 2 * 650
    assert torch.equal(before, model.conv1.weight)


def test_sigma_is_that_of_the_model_as_it_was_handed_over(digits):
    model = rso.models.build("mlp", digits)
    sigma = model.fc2.weight.detach().double().std(correction=0).item()
    steps = rso.steps(model, digits, rso.RSO(1, 20), seed=0)
    with torch.no_grad():
        model.fc2.weight.mul_(3)
    assert next(steps).sigma == pytest.approx(sigma, rel=1e-12)


def test_fit_learns_and_says_how_well(digits):
    model = rso.models.build("mlp", digits)
    history = rso.fit(model, digits, rso.RSO(3, 100), seed=0)
    assert history.cycles[-1].test_accuracy == accuracy(model, digits.x_test, digits.y_test)
    assert history.cycles[-1].test_accuracy > 0.8
    assert history.cycles[-1].loss < history.cycles[0].loss
    assert history.settings["batch_size"] == 100
    assert history.settings["loss"] == "cross_entropy"


def test_fit_goes_on_from_the_model_as_it_comes(digits):
    model = rso.models.build("mlp", digits)
    with torch.no_grad():
        model.fc2.weight.mul_(3)
    sigma = model.fc2.weight.detach().double().std(correction=0).item()
    before = model.fc1.weight.detach().clone()
    step = next(rso.steps(model, digits, rso.RSO(1, 20), seed=0))
    assert step.sigma == pytest.approx(sigma, rel=1e-12)
    assert torch.equal(before, model.fc1.weight)


def test_frozen_parameters_are_left_alone(digits):
    model = rso.models.build("mlp", digits)
    model.fc1.weight.requires_grad_(False)
    model.fc2.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    steps = list(rso.steps(model, digits, rso.RSO(1, 20), seed=0))
    assert {step.name for step in steps} == {"fc1.bias"}
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"fc1.bias"}


def test_a_loss_without_a_gradient(digits):
    def errors(outputs, targets):
        return (outputs.argmax(dim=1) != targets).double().mean().item()

    model = rso.models.build("mlp", digits)
    start = accuracy(model, digits.x_train, digits.y_train)
    history = rso.fit(model, digits, rso.RSO(1, 120), seed=0, loss=errors)
    assert history.settings["loss"] == "errors"
    assert history.cycles[-1].loss == pytest.approx(1 - history.cycles[-1].train_accuracy)
    assert history.cycles[-1].train_accuracy > start


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_that_meets_a_kernel_is_an_interrupt(times):
    """Numba makes a SystemError of it, and another one of that."""

    @single_threaded
    def kernel():
        error = KeyboardInterrupt()
        for _ in range(times):
            cause, error = error, SystemError("returned a result with an exception set")
            error.__cause__ = cause
        raise error

    with pytest.raises(KeyboardInterrupt):
        kernel()


def test_another_system_error_stays_one():
    @single_threaded
    def kernel():
        raise SystemError("another one") from ValueError()

    with pytest.raises(SystemError, match="another one"):
        kernel()


@pytest.mark.parametrize("method", [rso.RSO(2, 20), rso.SGD(2, 20, 0.1, warm_up=1)], ids=["RSO", "SGD"])
def test_what_is_done_with_a_record_is_no_part_of_its_seconds(digits, monkeypatch, method):
    clock, slept = time.perf_counter, 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + slept)
    for record in rso.run(rso.models.build("one_conv", digits), digits, method, seed=0):
        assert record.seconds < 1000
        slept += 1000.0
