"""What `on_device` would spend its time on, on a GPU: Triton kernels from a weight's step to the choice.

torch's own operations each read all activations and write them again, and each costs some microseconds. `convolve`
applies batch norm and ReLU while it reads, and sums up for the next batch norm while it writes. Products are of
float32's precision, unless told otherwise: three TF32 products for each, on the matrix units (Triton's "tf32x3").

Activations (S, B, C, H, W) lie in memory with their channels last.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

PRECISION = "tf32x3"  # of products; "ieee" and "tf32" are Triton's others
BLOCK = 64  # pixels that a program convolves
WARPS = 4


@triton.jit
def _read(
    x, scale, offset, row, down, right, inside, channels, x_row, x_channel, x_down, x_right, height, width,
    inputs: tl.constexpr, NORM: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Activations (pixels, channels), normalised where NORM says so, 0 outside the image."""
    inside = inside & (down >= 0) & (down < height) & (right >= 0) & (right < width)
    known = inside[:, None] & (channels < inputs)[None, :]
    at = row * x_row + down * x_down + right * x_right
    value = tl.load(x + at[:, None] + channels[None, :] * x_channel, mask=known, other=0.0)
    if NORM:
        a = tl.load(scale + channels, mask=channels < inputs, other=0.0)
        b = tl.load(offset + channels, mask=channels < inputs, other=0.0)
        value = value * a[None, :] + b[None, :]
    if RELU:
        value = tl.where(value < 0, 0.0, value)  # not a number stays not a number
    return tl.where(known, value, 0.0)


@triton.jit
def _convolve(
    x, scale, offset, kept, weight, bias, reference, y, sums, rows, height, width, out_height, out_width,
    x_slot, x_row, x_channel, x_down, x_right, kept_row, kept_channel, kept_down, kept_right,
    inputs: tl.constexpr, outputs: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    KERNEL_DOWN: tl.constexpr, KERNEL_RIGHT: tl.constexpr, STRIDE_DOWN: tl.constexpr, STRIDE_RIGHT: tl.constexpr,
    PAD_DOWN: tl.constexpr, PAD_RIGHT: tl.constexpr, APART_DOWN: tl.constexpr, APART_RIGHT: tl.constexpr,
    NORM: tl.constexpr, RELU: tl.constexpr, KEPT: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tile, slot = tl.program_id(0), tl.program_id(1)
    pixel = tile * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < rows * out_height * out_width
    right = pixel % out_width
    down = pixel // out_width % out_height
    row = (pixel // (out_width * out_height)).to(tl.int64)
    out = tl.arange(0, OUT)
    x += slot.to(tl.int64) * x_slot
    result = tl.zeros((BLOCK, OUT), tl.float32)
    for first in tl.static_range(0, inputs, IN):
        channels = first + tl.arange(0, IN)
        for i in tl.static_range(KERNEL_DOWN):
            for j in tl.static_range(KERNEL_RIGHT):
                value = _read(
                    x, scale + slot * inputs, offset + slot * inputs, row,
                    down * STRIDE_DOWN - PAD_DOWN + i * APART_DOWN,
                    right * STRIDE_RIGHT - PAD_RIGHT + j * APART_RIGHT,
                    inside, channels, x_row, x_channel, x_down, x_right, height, width, inputs, NORM, RELU,
                )  # fmt: skip
                place = ((i * KERNEL_RIGHT + j) * inputs + channels[:, None]) * outputs + out[None, :]
                known = (channels < inputs)[:, None] & (out < outputs)[None, :]
                w = tl.load(weight + place, mask=known, other=0.0)
                if IN == 1:
                    result += value * w
                else:
                    result = tl.dot(value, w, result, input_precision=PRECISION)
    known = inside[:, None] & (out < outputs)[None, :]
    if BIAS:
        result += tl.load(bias + out, mask=out < outputs, other=0.0)[None, :]
    if KEPT:
        at = row * kept_row + down * kept_down + right * kept_right
        result += tl.load(kept + at[:, None] + out[None, :] * kept_channel, mask=known, other=0.0)
    start = slot.to(tl.int64) * rows * out_height * out_width
    tl.store(y + (start + pixel)[:, None] * outputs + out[None, :], result, mask=known)
    apart = tl.where(known, result - tl.load(reference + out, mask=out < outputs, other=0.0)[None, :], 0.0)
    tiles = tl.num_programs(0)
    at = (slot * outputs + out) * 2 * tiles + tile
    tl.store(sums + at, tl.sum(apart, 0), mask=out < outputs)
    tl.store(sums + at + tiles, tl.sum(apart * apart, 0), mask=out < outputs)


@triton.jit
def _step(
    z, x, reach, index, moves, reference, y, sums, rows, pixels, z_row, z_channel, z_pixel, x_channel, x_row,
    slots: tl.constexpr, TIMES_X: tl.constexpr, REACH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tile, tiles = tl.program_id(0), tl.num_programs(0)
    at = tile * BLOCK + tl.arange(0, BLOCK)
    inside = at < rows * pixels
    pixel, row = at % pixels, (at // pixels).to(tl.int64)
    channel = tl.load(index)
    before = tl.load(z + row * z_row + channel * z_channel + pixel * z_pixel, mask=inside, other=0.0)
    about = tl.load(reference + channel)
    if REACH:
        pixel = tl.load(reach + tl.load(index + 2) * pixels + pixel)
    if TIMES_X:
        change = tl.load(x + tl.load(index + 1) * x_channel + row * x_row + pixel, mask=inside, other=0.0)
    for slot in tl.static_range(slots):
        move = tl.load(moves + slot)
        if TIMES_X:
            result = before + change * move
        else:
            result = before + move
        tl.store(y + slot * rows.to(tl.int64) * pixels + at, result, mask=inside)
        apart = tl.where(inside, result - about, 0.0)
        tl.store(sums + 2 * slot * tiles + tile, tl.sum(apart, 0))
        tl.store(sums + (2 * slot + 1) * tiles + tile, tl.sum(apart * apart, 0))


@triton.jit
def _scale(
    sums, reference, gamma, beta, first_channel, scale, offset, eps, count, tiles,
    slots: tl.constexpr, channels: tl.constexpr, SOME: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0)
    at = channel
    if SOME:
        at += tl.load(first_channel)
    about = tl.load(reference + at).to(tl.float64)
    g, b = tl.load(gamma + at).to(tl.float64), tl.load(beta + at).to(tl.float64)
    for back in tl.static_range(slots):
        slot = slots - 1 - back
        first, second = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
        for begin in range(0, tiles, BLOCK):
            tile = begin + tl.arange(0, BLOCK)
            place = sums + (slot * channels + channel) * 2 * tiles + tile
            first += tl.load(place, mask=tile < tiles, other=0.0).to(tl.float64)
            second += tl.load(place + tiles, mask=tile < tiles, other=0.0).to(tl.float64)
        mean = tl.sum(first, 0) / count
        variance = tl.sum(second, 0) / count - mean * mean
        variance = tl.where(variance < 0, 0.0, variance)
        a = g / tl.sqrt(variance + eps)
        a = tl.where(variance - variance == 0, a, float("nan"))  # not finite: of no loss that could win
        mean += about
        tl.store(scale + slot * channels + channel, a.to(tl.float32))
        tl.store(offset + slot * channels + channel, (b - mean * a).to(tl.float32))
    tl.store(reference + at, mean.to(tl.float32))


@triton.jit
def _average(
    x, scale, offset, y, rows, height, width, out_height, out_width, x_slot, x_row, x_channel, x_down, x_right,
    channels: tl.constexpr, CHANNELS: tl.constexpr, DOWN: tl.constexpr, RIGHT: tl.constexpr, RELU: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    tile, slot = tl.program_id(0), tl.program_id(1)
    pixel = tile * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < rows * out_height * out_width
    right = pixel % out_width * RIGHT
    down = pixel // out_width % out_height * DOWN
    row = (pixel // (out_width * out_height)).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    x += slot.to(tl.int64) * x_slot
    result = tl.zeros((BLOCK, CHANNELS), tl.float32)
    for place in range(DOWN * RIGHT):
        result += _read(
            x, scale + slot * channels, offset + slot * channels, row, down + place // RIGHT, right + place % RIGHT,
            inside, channel, x_row, x_channel, x_down, x_right, height, width, channels, True, RELU,
        )  # fmt: skip
    start = slot.to(tl.int64) * rows * out_height * out_width
    at = (start + pixel)[:, None] * channels + channel[None, :]
    tl.store(y + at, result / (DOWN * RIGHT), mask=inside[:, None] & (channel < channels)[None, :])


@triton.jit
def _keep(kept, tried, choice, size, BLOCK: tl.constexpr):
    chosen = tl.load(choice)
    if chosen > 0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(kept + at, tl.load(tried + (chosen - 1) * size + at, mask=at < size), mask=at < size)


@triton.jit
def _decide(
    losses, penalties, current, accepted, at, found, chosen, choice, slots: tl.constexpr, KNOWN: tl.constexpr
):  # fmt: skip
    here, before = tl.load(at), tl.load(accepted)
    keep = tl.load(penalties + 3 * here)
    best, which = tl.full((), float("inf"), tl.float64), tl.full((), 0, tl.int64)
    loss_of_best, penalty_of_best = best, keep
    for slot in tl.static_range(slots):
        if slot < KNOWN:
            loss = tl.load(current)
        else:
            loss = tl.load(losses + slot - KNOWN)
        penalty = tl.load(penalties + 3 * here + slot)
        total = loss + (penalty + before)
        tl.store(found + 3 * here + slot, total)
        better = (total - total == 0) & (total < best)
        if slot == 0:
            loss_of_best = loss  # where no loss is finite
        best = tl.where(better, total, best)
        which = tl.where(better, slot, which)
        loss_of_best = tl.where(better, loss, loss_of_best)
        penalty_of_best = tl.where(better, penalty, penalty_of_best)
    tl.store(chosen + here, which)
    tl.store(choice, which)
    tl.store(at, here + 1)
    if KNOWN:
        tl.store(current, loss_of_best)
        tl.store(accepted, before + penalty_of_best - keep)


def step(
    z: Tensor, x: Tensor | None, reach: Tensor | None, index: Tensor, moves: Tensor, reference: Tensor
) -> tuple[Tensor, Tensor]:
    """One channel of z (B, K, ...), plus each of the moves (S,) times what the weight multiplies.

    `index` (3,): the channel of z, that of x (C, B, pixels of x), and the weight's place in its kernel, of which
    `reach` (places, pixels of z) says which pixel of x goes to each pixel of z. Without x: times 1.
    Returns y (S, B, 1, ...) and the sums for `scale_and_offset`, about `reference` (K,).
    """
    (rows, _), pixels, slots = z.shape[:2], z[0, 0].numel(), len(moves)
    y = z.new_empty(slots, rows, 1, *z.shape[2:])
    tiles = triton.cdiv(rows * pixels, 1024)
    sums = z.new_empty(slots, 1, 2, tiles)
    beside = z if x is None else x
    _step[(tiles,)](
        z, beside, index if reach is None else reach, index, moves, reference, y, sums, rows, pixels,
        z.stride(0), z.stride(1), z.stride(-1) if z.dim() > 2 else 0, beside.stride(0), beside.stride(1),
        slots, x is not None, reach is not None and x is not None, 1024,
    )  # fmt: skip
    return y, sums


def decide(
    losses: Tensor, penalties: Tensor, current: Tensor, accepted: Tensor, at: Tensor, found: Tensor, chosen: Tensor,
    slots: int,
) -> Tensor:  # fmt: skip
    """`choose` for the proposal `at` (1,), and the accounts: its losses into found (P, 3), its choice into chosen (P,).

    losses: of the candidates, without that of the network as it is where `current` (1,) knows it. Then the chosen one's
    becomes current, and what it adds to the penalty is added to `accepted` (1,). `at` goes on. Returns the choice (1,).
    """
    choice = torch.empty_like(at)
    _decide[(1,)](losses, penalties, current, accepted, at, found, chosen, choice, slots, slots - len(losses))
    return choice


def convolve(
    x: Tensor, weight: Tensor, layer: nn.Conv2d, reference: Tensor, *,
    normalised: tuple[Tensor, Tensor] | None = None, relu: bool = False, kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Take x (S, B, C, H, W) through a convolution of the layer, its weight replaced by `weight` (K, C, h, w).

    `normalised`: scale and offset (S, C) of a batch norm that x goes through first, and `relu`, a ReLU behind it.
    `kept` (B, K, H', W') takes the bias's place: what is added to the result. `reference` (K,): about its means.
    Returns y (S, B, K, H', W') and, for `scale_and_offset`, the sums over rows and pixels of y - reference and of its
    square, tile by tile (S, K, 2, tiles).
    """
    (slots, rows, inputs, height, width), outputs = x.shape, len(weight)
    assert not isinstance(layer.padding, str)
    sizes = zip(x.shape[3:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
    out_height, out_width = ((size + 2 * pad - apart * (k - 1) - 1) // step + 1 for size, k, step, pad, apart in sizes)
    y = x.new_empty(slots, rows, out_height, out_width, outputs)
    pixels = rows * out_height * out_width
    tiles = triton.cdiv(pixels, BLOCK)
    sums = x.new_empty(slots, outputs, 2, tiles)
    scale, offset = normalised or (x, x)  # x: some pointer
    beside = x if kept is None else kept
    _convolve[(tiles, slots)](
        x, scale, offset, beside, weight.permute(2, 3, 1, 0).contiguous(), x if layer.bias is None else layer.bias,
        reference, y, sums, rows, height, width, out_height, out_width, *x.stride(), *beside.stride()[-4:],
        inputs, outputs, min(16, _power(inputs)) if inputs > 1 else 1, max(16, _power(outputs)),
        *layer.kernel_size, *layer.stride, *layer.padding, *layer.dilation,
        normalised is not None, relu, kept is not None, kept is None and layer.bias is not None, PRECISION, BLOCK,
        num_warps=WARPS,
    )  # fmt: skip
    return y.permute(0, 1, 4, 2, 3), sums


def scale_and_offset(
    sums: Tensor, reference: Tensor, count: int, norm: Any, channel: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies `count` numbers of a channel with, and adds (S, C each), given the sums.

    `channel` (1,): the only one that the sums are of. `reference` becomes the means of the first slot.
    """
    slots, channels, _, tiles = sums.shape
    scale, offset = reference.new_empty(2, slots, channels).unbind()
    _scale[(channels,)](
        sums, reference, norm.weight, norm.bias, sums if channel is None else channel, scale, offset, norm.eps, count,
        tiles, slots, channels, channel is not None, 1024,
    )  # fmt: skip
    return scale, offset


def average(x: Tensor, normalised: tuple[Tensor, Tensor], relu: bool, window: tuple[int, int]) -> Tensor:
    """Normalise x (S, B, C, H, W) as `convolve` does, and average it in windows that do not overlap."""
    slots, rows, channels, height, width = x.shape
    out_height, out_width = height // window[0], width // window[1]
    y = x.new_empty(slots, rows, out_height, out_width, channels)
    block = max(1, 512 // _power(channels))
    _average[(triton.cdiv(rows * out_height * out_width, block), slots)](
        x, *normalised, y, rows, height, width, out_height, out_width, *x.stride(),
        channels, _power(channels), *window, relu, block,
    )  # fmt: skip
    return y.permute(0, 1, 4, 2, 3)


def keep(kept: Tensor, tried: Tensor, choice: Tensor) -> None:
    """Copy into kept (B, ...) that of tried (2, B, ...), in memory like it, which choice (1,) says: 0 is what it is."""
    _keep[(triton.cdiv(kept.numel(), 4096),)](kept, tried, choice, kept.numel(), 4096)


def alike(kept: Tensor, tried: Tensor) -> bool:
    """Whether two tensors lie in memory alike, without gaps."""
    return kept.stride() == tried.stride() and any(
        kept.is_contiguous(memory_format=layout) for layout in (torch.contiguous_format, torch.channels_last)
    )


def takes(layer: Any) -> bool:
    """Whether `convolve` can do what the layer does."""
    plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    return plain and not isinstance(layer.padding, str) and layer.out_channels <= 128


def _power(number: int) -> int:
    return int(triton.next_power_of_2(number))
