"""RSOptimizer makes the very decisions of the search, in a loop of one's own."""

import io
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

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


# In a loop as torch's users write it


def loop(model, optimizer, scheduler, loader, epochs):
    """Returns the losses, one a step."""
    losses = []
    for _ in range(epochs):
        for x, y in loader:
            losses.append(optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y)))
        scheduler.step()
    return losses


def loader_of(digits, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(digits.x_train, digits.y_train), batch_size=10, shuffle=True, generator=chance)


SCHEDULERS = {
    "steps": lambda optimizer: StepLR(optimizer, 2, 0.5),
    "a function": lambda optimizer: LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 5),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_scheduler_acts_on_sigma(digits, make):
    """Changes become larger and smaller as the scheduler says, and are the same draws."""
    moves = {}
    for name, scheduled in (("steady", None), ("scheduled", make)):
        model = rso.models.build("one_conv", digits)
        optimizer = rso.RSOptimizer(model.named_parameters(), seed=0)
        scheduler = scheduled(optimizer) if scheduled else LambdaLR(optimizer, lambda epoch: 1.0)
        rates, moves[name] = [], []
        for _ in range(4):
            weights = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step(itertools.chain([1.0, 0.5], [2.0]).__next__)  # plus wins
            moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - weights
            moves[name].append(float(moved[moved != 0]))
            scheduler.step()
    assert len(set(rates)) > 1
    assert moves["scheduled"] == pytest.approx([r * m for r, m in zip(rates, moves["steady"], strict=True)], rel=1e-4)


def test_it_learns_in_a_loop_with_a_loader_and_a_scheduler(digits):
    model = rso.models.build("one_conv", digits)
    before = F.cross_entropy(model(digits.x_train), digits.y_train).item()
    optimizer = rso.RSOptimizer(model.named_parameters(), seed=0)
    loop(model, optimizer, StepLR(optimizer, 20, 0.7), loader_of(digits), 60)
    assert F.cross_entropy(model(digits.x_train), digits.y_train).item() < 0.9 * before


@pytest.mark.parametrize("after", [3, 60, 58])  # in the middle of a cycle of 690 steps, behind its end, and before it
def test_its_state_goes_on_where_it_was(digits, after):
    def begin():
        model = rso.models.build("one_conv", digits)
        optimizer = rso.RSOptimizer(model.named_parameters(), seed=0, cycles=3)
        return model, optimizer, StepLR(optimizer, 2, 0.7)

    whole = begin()
    loader = loader_of(digits)
    loop(*whole, loader, after)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in whole] + [loader.generator.get_state()], file)
    expected = loop(*whole, loader, 2)
    again = begin()
    again[1].step(lambda: 1.0)  # it has done something else before
    *states, chance = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    for part, state in zip(again, states, strict=True):
        part.load_state_dict(state)
    loader = loader_of(digits, seed=1)
    loader.generator.set_state(chance)
    assert loop(*again, loader, 2) == expected
    assert all(map(torch.equal, whole[0].parameters(), again[0].parameters()))


def test_a_state_of_others_is_refused(digits):
    optimizer = rso.RSOptimizer(rso.models.build("one_conv", digits).named_parameters(), seed=0)
    other = rso.models.build("mlp", digits)
    for state in (
        rso.RSOptimizer(other.named_parameters(), seed=0).state_dict(),
        torch.optim.SGD([torch.ones(1)], 0.1).state_dict(),
    ):
        with pytest.raises(ValueError, match="not of an RSOptimizer with these parameters"):
            optimizer.load_state_dict(state)


def test_groups_have_a_sigma_each(digits):
    model = rso.models.build("mlp", digits)
    groups = [
        {"params": model.fc1.named_parameters(prefix="fc1"), "lr": 0.0},
        {"params": model.fc2.named_parameters(prefix="fc2")},
    ]
    optimizer = rso.RSOptimizer(groups, seed=0, sigma_scale=2.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 2.0]
    alone = rso.models.build("mlp", digits)
    alone.fc1.requires_grad_(False)
    other = rso.RSOptimizer(alone.named_parameters(), seed=0, sigma_scale=2.0)
    before = model.fc1.weight.detach().clone()
    x, y = digits.x_train, digits.y_train
    for _ in range(330):
        loss = optimizer.step(lambda: F.cross_entropy(model(x), y))
        assert loss == pytest.approx(other.step(lambda: F.cross_entropy(alone(x), y)), rel=1e-6)
    optimizer.step(lambda: F.cross_entropy(model(x), y))
    assert torch.equal(model.fc1.weight, before)
    assert not torch.equal(model.fc2.weight, rso.models.build("mlp", digits).fc2.weight)


def test_a_group_may_come_later(digits):
    model = rso.models.build("one_conv", digits)
    optimizer = rso.RSOptimizer(model.fc.named_parameters(prefix="fc"), seed=0)
    optimizer.add_param_group({"params": list(model.conv1.named_parameters(prefix="conv1")), "lr": 0.5})
    names = [visit.names[0] for _, visit in itertools.islice(optimizer.visits, 690)]
    assert set(names) == {"fc.weight", "fc.bias", "conv1.weight", "conv1.bias"}


GROUPS = {
    "the same names": (
        lambda m: [{"params": m.fc1.named_parameters()}, {"params": m.fc2.named_parameters()}],
        "two groups have a 'weight': give whole names",
    ),
    "a negative lr": (
        lambda m: [{"params": m.named_parameters(), "lr": -1.0}],
        "lr is -1.0: expected a finite number, 0 or more",
    ),
    "no number": (
        lambda m: [{"params": m.named_parameters(), "lr": "large"}],
        "lr is 'large': expected a finite number",
    ),
    "all at rest": (lambda m: m.requires_grad_(False).named_parameters(), "no parameters to search"),
    "nothing": (lambda m: [], "no parameters to search"),
}


@pytest.mark.parametrize(("groups", "said"), GROUPS.values(), ids=GROUPS)
def test_groups_that_cannot_be_are_refused(digits, groups, said):
    with pytest.raises(ValueError, match=said):
        rso.RSOptimizer(groups(rso.models.build("mlp", digits)), seed=0)
