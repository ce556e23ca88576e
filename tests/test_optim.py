"""RSOptimizer makes the very decisions of the search, in a loop of one's own."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rso_lab as rso
from rso_lab.rso import draw_batch


@pytest.mark.parametrize(
    "settings", [{}, {"order": "input", "sigma_scale": 2.0}, {"layer_order": "input_first"}], ids=str
)
def test_it_is_the_search_in_a_loop_of_ones_own(digits64, settings):
    model = rso.models.build("one_conv", digits64)
    optimizer = rso.RSOptimizer(model.named_parameters(), seed=3, cycles=2, **settings)
    other = rso.models.build("one_conv", digits64)
    for step in rso.steps(other, digits64, rso.RSO(2, 30, **settings), seed=3):
        rows = draw_batch(len(digits64.x_train), 30, optimizer.generator)
        assert torch.equal(rows, step.batch)
        loss = optimizer.step(lambda rows=rows: F.cross_entropy(model(digits64.x_train[rows]), digits64.y_train[rows]))
        assert loss == pytest.approx(getattr(step.losses, step.choice), rel=1e-12)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


class Branching(nn.Module):
    """What torch.fx cannot trace: a decision that depends on the data."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = self.fc(x.flatten(1))
        return x if x.sum() > 0 else 2 * x


def test_it_trains_what_cannot_be_traced_and_fit_points_to_it(digits):
    model = rso.models.he_init_(Branching(), seed=0)
    with pytest.raises(TypeError, match=r"cannot trace Branching.*RSOptimizer"):
        rso.fit(model, digits, rso.RSO(1, 10), seed=0)
    optimizer = rso.RSOptimizer(model.named_parameters(), seed=0)
    before = model.fc.weight.detach().clone()

    def closure():
        return F.cross_entropy(model(digits.x_train), digits.y_train)

    losses = [optimizer.step(closure) for _ in range(650)]
    assert losses == sorted(losses, reverse=True)
    assert closure().item() == pytest.approx(losses[-1], rel=1e-6)
    assert losses[-1] < losses[0]
    assert not torch.equal(before, model.fc.weight)


def test_sigma_is_annealed_over_the_cycles_and_then_stays(digits):
    model = rso.models.build("one_conv", digits)
    optimizer = rso.RSOptimizer(model.named_parameters(), seed=0, cycles=3)
    scales = [scale for scale, _ in itertools.islice(optimizer.visits, 5 * 690)]
    assert scales[::690] == pytest.approx([1, 0.55, 0.1, 0.1, 0.1])
    assert scales[689::690] == scales[::690]


def test_parameters_that_do_not_require_a_gradient_are_left_alone(digits):
    model = rso.models.build("mlp", digits)
    model.fc2.requires_grad_(False)
    optimizer = rso.RSOptimizer(model.named_parameters(), seed=0)
    assert set(optimizer.named_parameters) == {"fc1.weight", "fc1.bias"}


def test_a_bias_takes_the_sigma_of_its_weight_also_where_that_rests(digits):
    model = rso.models.build("mlp", digits)
    model.fc2.weight.requires_grad_(False)
    optimizer = rso.RSOptimizer(model.named_parameters(), seed=0)
    assert optimizer.sigmas["fc2.bias"] == pytest.approx(model.fc2.weight.double().std(correction=0).item())


def test_bad_settings_and_losses_are_refused(digits):
    model = rso.models.build("one_conv", digits)
    with pytest.raises(ValueError, match=r"\['level'\] are not known here"):
        rso.RSOptimizer(model.named_parameters(), seed=0, level="layer")
    with pytest.raises(TypeError, match=r"a Parameter without a name: expected model\.named_parameters\(\)"):
        rso.RSOptimizer(model.parameters(), seed=0)
    with pytest.raises(ValueError, match="cycles is 0"):
        rso.RSOptimizer(model.named_parameters(), seed=0, cycles=0)
    optimizer = rso.RSOptimizer(model.named_parameters(), seed=0)
    before = model.fc.weight.detach().clone()
    with pytest.raises(FloatingPointError, match=r"nan at fc\.weight\[0, 0\]"):
        optimizer.step(lambda: math.nan)
    assert torch.equal(before, model.fc.weight)
