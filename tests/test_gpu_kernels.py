"""The Triton kernels compute what torch's modules do in float64. Triton's interpreter runs them without a GPU."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rso_lab.rso import choose

gpu_kernels = pytest.importorskip("rso_lab.gpu_kernels")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYERS = {
    "one channel": (1, 4, 3, {"padding": 1}),
    "sixteen": (16, 16, 3, {"padding": 1}),
    "stride, padding and kernel of two sizes": (5, 7, (3, 2), {"stride": (2, 1), "padding": (1, 0)}),
    "dilation, more than sixteen": (20, 17, 3, {"padding": 2, "dilation": 2}),
}


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def assert_near(found, wanted):
    """Equal but for the rounding of float32."""
    torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_a_convolution_behind_a_batch_norm_and_in_front_of_one(name):
    inputs, outputs, kernel, more = LAYERS[name]
    layer, norm = nn.Conv2d(inputs, outputs, kernel, **more).to(DEVICE), nn.BatchNorm2d(outputs).to(DEVICE)
    norm.weight.normal_()
    norm.bias.normal_()
    x = torch.randn(2, 7, inputs, 7, 6, device=DEVICE)
    scale, offset = torch.randn(2, 2, inputs, device=DEVICE)
    reference = torch.full((outputs,), 0.3, device=DEVICE)
    for _ in range(2):  # with sums about another number than the mean the first is less exact
        y, sums = gpu_kernels.convolve(x, layer.weight, layer, reference, normalised=(scale, offset), relu=True)
        a, b = gpu_kernels.scale_and_offset(sums, reference, y[0, :, 0].numel(), norm)
    layer.double()
    entering = (x * scale[:, None, :, None, None] + offset[:, None, :, None, None]).relu().double()
    wanted = torch.stack([layer(slot) for slot in entering])
    assert_near(y, wanted)
    norm.double()
    assert_near(y * a[:, None, :, None, None] + b[:, None, :, None, None], torch.stack([norm(slot) for slot in wanted]))
    assert_near(reference, wanted[0].mean((0, 2, 3)))


@torch.no_grad()
def test_a_change_that_enters_and_is_kept():
    layer = nn.Conv2d(1, 16, 3, padding=1).to(DEVICE)
    change = torch.randn(2, 5, 1, 4, 4, device=DEVICE)
    kept = torch.randn(5, 16, 4, 4, device=DEVICE).contiguous(memory_format=torch.channels_last)
    y, _ = gpu_kernels.convolve(change, layer.weight, layer, torch.zeros(16, device=DEVICE), kept=kept)
    moved = F.conv2d(change.flatten(0, 1).double(), layer.weight.double(), padding=1).view_as(y)
    assert_near(y, kept + moved)
    for choice, wanted in enumerate([kept.clone(), *y.clone()]):
        now = kept.clone(memory_format=torch.channels_last)
        gpu_kernels.keep(now, y, torch.tensor([choice], device=DEVICE))
        assert torch.equal(now, wanted)


@torch.no_grad()
def test_pooling_behind_a_batch_norm():
    x = torch.randn(2, 3, 5, 4, 6, device=DEVICE)
    scale, offset = torch.randn(2, 2, 5, device=DEVICE)
    found = gpu_kernels.average(x, (scale, offset), True, (2, 3))
    entering = (x * scale[:, None, :, None, None] + offset[:, None, :, None, None]).relu().double()
    assert_near(found, F.avg_pool2d(entering.flatten(0, 1), (2, 3)).view_as(found))


@torch.no_grad()
def test_a_step_of_one_weight_and_the_batch_norm_of_its_channel():
    x, moves = torch.randn(3, 4, 6 * 5 + 1, device=DEVICE), torch.tensor([0, 0.5, -0.5], device=DEVICE)
    x[:, :, -1] = 0  # the padding
    z = torch.randn(4, 2, 6, 5, device=DEVICE)
    reach = torch.randint(0, 31, (9, 30), device=DEVICE)
    norm, reference = nn.BatchNorm2d(2).to(DEVICE), torch.zeros(2, device=DEVICE)
    norm.weight.normal_()
    norm.bias.normal_()
    index = torch.tensor([1, 2, 7], device=DEVICE)
    y, sums = gpu_kernels.step(z, x, reach, index, moves, reference)
    change = x[2][:, reach[7]].view(4, 6, 5).double()
    wanted = torch.stack([z[:, 1] + move * change for move in moves])[:, :, None]
    assert_near(y, wanted)
    scale, offset = gpu_kernels.scale_and_offset(sums, reference, 4 * 30, norm, index[:1])
    normal = F.batch_norm(wanted[1], None, None, norm.weight[1:].double(), norm.bias[1:].double(), True)
    assert_near(y[1] * scale[1] + offset[1], normal)
    assert_near(gpu_kernels.step(z, None, reach, index, moves, reference)[0][1], z[:, 1:2].double() + 0.5)


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter subtracts infinities
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "losses",
    [[1, 0.5, 0.7], [0.5, 0.5, 0.5], [1, 0.7, 0.7], [1, math.nan, 0.9], [math.nan, math.inf, -math.inf], [2.0, 1.0]],
    ids=str,
)
def test_the_choice_is_that_of_choose(losses, known):
    slots, penalties = len(losses), torch.zeros(4, 3, dtype=torch.float64, device=DEVICE)
    penalties[2, :slots] = torch.tensor([0.25, 0.0, 0.5])[:slots]
    current, accepted = torch.tensor([[losses[0]], [0.125]], dtype=torch.float64, device=DEVICE)
    at, chosen = torch.tensor([2], device=DEVICE), torch.zeros(4, dtype=torch.long, device=DEVICE)
    found = torch.full((4, 3), math.nan, dtype=torch.float64, device=DEVICE)
    given = torch.tensor(losses, dtype=torch.float64, device=DEVICE)
    choice = gpu_kernels.decide(given[int(known) :], penalties, current, accepted, at, found, chosen, slots)
    total = given + penalties[2, :slots] + 0.125
    torch.testing.assert_close(found[2, :slots], total, equal_nan=True, rtol=0, atol=0)
    assert choice.item() == chosen[2].item() == choose(total).item()
    assert at.item() == 3
    if known:
        torch.testing.assert_close(current[0], given[choice.item()], equal_nan=True, rtol=0, atol=0)
        assert accepted.item() == 0.125 + float(penalties[2, choice] - penalties[2, 0])
