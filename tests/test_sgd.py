"""SGD: torch's own loop written out, the schedule in closed form, and what it shares with RSO."""

import copy
import itertools

import pytest
import reference
import torch
import torch.nn.functional as F

import rso_lab as rso
from rso_lab.sgd import schedule_of

BAD = {
    "epochs": [0, 1.5, None, True],
    "batch_size": [0, -1, "10"],
    "learning_rate": [0, 10**400, -1.0, float("nan"), float("inf"), "0.1", None],
    "momentum": [-0.1, 1, float("nan"), None],
    "weight_decay": [-1e-4, float("inf"), True],
    "warm_up": [-1, 0.5, None],
    "drops": [(0.5,), [0.5, 0.75], (0.75, 0.5), (0.0, 0.5), (0.5, 1.5), None, ("a", "b")],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_setting_is_named_with_its_value_and_what_is_allowed(name, value):
    with pytest.raises(ValueError, match=r": expected .") as caught:
        rso.SGD(**{"epochs": 9, "batch_size": 10, "learning_rate": 0.1, name: value})
    assert str(caught.value).startswith(f"{name} is {value!r}: expected ")


def test_a_warm_up_ends_before_the_rate_drops(digits):
    optimizer, schedule = schedule_of(rso.models.build("one_conv", digits), rso.SGD(4, 10, 0.8, warm_up=5), 2)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.08, 0.08, 0.008, 0.008])


def test_dropout_stays_off(digits):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 10)).eval()
    losses = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            losses.append(rso.fit(copy.deepcopy(model), digits, rso.SGD(2, 50, 0.1, warm_up=1), seed=0).cycles[-1].loss)
    assert losses[0] == losses[1]


def test_the_learning_rate_grows_and_is_divided_by_ten_twice():
    method = rso.SGD(20, 10, 0.8, warm_up=2, drops=(0.5, 0.75))
    optimizer, schedule = schedule_of(reference.small_network(), method, batches=4)
    rates = []
    for _ in range(20 * 4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [0.8 * (i + 1) / 8 for i in range(8)] + [0.8] * 32 + [0.08] * 20 + [0.008] * 20
    assert rates == pytest.approx(expected, rel=1e-12)


def test_it_is_the_loop_that_one_writes(digits64):
    """Momentum and weight decay spelled out, the mini-batch's statistics, and every image once an epoch."""
    model = reference.small_network()
    plain = copy.deepcopy(model)
    rso.fit(model, digits64, rso.SGD(2, 50, 0.1, warm_up=0, drops=(1.0, 1.0), weight_decay=0.01), seed=4)
    generator = torch.Generator().manual_seed(4)
    velocity = [torch.zeros_like(p) for p in plain.parameters()]
    for _ in range(2):
        for rows in torch.randperm(120, generator=generator).split(50)[:2]:
            x, y = digits64.x_train[rows], digits64.y_train[rows]
            loss = F.cross_entropy(reference.outputs(plain, x, x, first=0), y)
            gradients = torch.autograd.grad(loss, list(plain.parameters()), allow_unused=True)
            with torch.no_grad():
                for p, v, gradient in zip(plain.parameters(), velocity, gradients, strict=True):
                    v.mul_(0.9).add_(gradient + 0.01 * p)
                    p -= 0.1 * v
    for trained, written in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(trained, written, rtol=1e-9, atol=1e-11)


def test_its_history_is_like_that_of_rso(digits, tmp_path):
    model = rso.models.build("paper_cnn", digits)
    history = rso.fit(model, digits, rso.SGD(6, 20, 0.1, warm_up=1), seed=0)
    history.save(tmp_path / "run.json")
    assert rso.History.load(tmp_path / "run.json").cycles == history.cycles
    assert [record.cycle for record in history.cycles] == [1, 2, 3, 4, 5, 6]
    assert [record.evaluations for record in history.cycles] == [6, 12, 18, 24, 30, 36]
    assert (history.settings["method"], history.settings["learning_rate"]) == ("SGD", 0.1)
    assert history.settings["parameters"] == 12_026
    last = history.cycles[-1]
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        right = (model(digits.x_test).argmax(dim=1) == digits.y_test).double().mean().item()
    assert last.test_accuracy == right > 0.5
    rso.plots.accuracy([history, history])


def test_the_same_seed_gives_the_same_run_and_chance_is_left_alone(digits):
    state = torch.random.get_rng_state()
    runs = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            model = rso.models.build("one_conv", digits)
            runs.append([record.loss for record in rso.run(model, digits, rso.SGD(2, 30, 0.05, warm_up=1), seed=1)])
    assert runs[0] == runs[1]
    assert torch.equal(state, torch.random.get_rng_state())


def test_stopped_early_the_model_is_valid(digits64):
    model = reference.small_network()
    records = rso.run(model, digits64, rso.SGD(9, 30, 0.1, warm_up=2), seed=0)
    next(records)
    next(records)
    records.close()
    assert not any(module.training for module in model.modules())
    x = model[0](digits64.x_train)
    torch.testing.assert_close(model[1].running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, x.var((0, 2, 3), correction=0))


def test_a_gradient_that_is_not_finite_is_not_taken(digits64):
    model, calls = reference.small_network(), itertools.count()

    def loss(outputs, y):
        zero = 0 * outputs.sum()
        return F.cross_entropy(outputs, y) + (zero.sqrt() if next(calls) > 2 else zero)

    with pytest.raises(FloatingPointError, match="the gradient is not finite in epoch 1"):
        rso.fit(model, digits64, rso.SGD(2, 30, 0.1), seed=0, loss=loss)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_what_sgd_cannot_do_is_said(digits):
    model, method = rso.models.build("one_conv", digits), rso.SGD(1, 20, 0.1, warm_up=0)
    with pytest.raises(ValueError, match="expected 'auto' for SGD"):
        rso.fit(model, digits, method, seed=0, evaluator="plain")
    with pytest.raises(ValueError, match="SGD needs one, ES and RSO do not"):
        rso.fit(model, digits, method, seed=0, loss=lambda outputs, y: (outputs.argmax(1) != y).double().mean())
    with pytest.raises(TypeError, match="expected settings such as"):
        rso.steps(model, digits, method, seed=0)
    with pytest.raises(ValueError, match="batch_size is 500: expected at most 120"):
        rso.fit(model, digits, rso.SGD(1, 500, 0.1, warm_up=1), seed=0)
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in epoch \d"):
        rso.fit(model, digits, rso.SGD(9, 20, 1e30, warm_up=0), seed=0)
    assert not model.training
