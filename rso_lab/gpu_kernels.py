"""Convolution, pooling and choice on a GPU, as Triton kernels, for what `on_device` would spend its time on.

torch's own operations each read all activations and write them again. `convolve` applies batch norm and ReLU while it
reads, and sums up for the next batch norm while it writes. Products are of float32's precision, unless told otherwise:
three TF32 products for each of them, on the matrix units (Triton's "tf32x3").

Activations (S, B, C, H, W) lie in memory with their channels last.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

PRECISION = "tf32x3"  # of products; "ieee" and "tf32" are Triton's others
BLOCK = 128  # pixels that a program computes
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
    at = (slot * tl.num_programs(0) + tile) * 2 * outputs
    tl.store(sums + at + out, tl.sum(apart, 0), mask=out < outputs)
    tl.store(sums + at + outputs + out, tl.sum(apart * apart, 0), mask=out < outputs)


@triton.jit
def _scale(
    sums, reference, gamma, beta, scale, offset, eps, count,
    slots: tl.constexpr, channels: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channel = tl.arange(0, CHANNELS)
    known = channel < channels
    about = tl.load(reference + channel, mask=known, other=0.0).to(tl.float64)
    g, b = tl.load(gamma + channel, mask=known, other=0.0), tl.load(beta + channel, mask=known, other=0.0)
    for back in tl.static_range(slots):
        slot = slots - 1 - back
        first = tl.load(sums + slot * 2 * channels + channel, mask=known, other=0.0) / count
        second = tl.load(sums + (slot * 2 + 1) * channels + channel, mask=known, other=0.0) / count
        variance = second - first * first
        variance = tl.where(variance < 0, 0.0, variance)
        a = g.to(tl.float64) / tl.sqrt(variance + eps)
        a = tl.where(variance - variance == 0, a, float("nan"))  # not finite: of no loss that could win
        mean = about + first
        tl.store(scale + slot * channels + channel, a.to(tl.float32), mask=known)
        tl.store(offset + slot * channels + channel, (b.to(tl.float64) - mean * a).to(tl.float32), mask=known)
    tl.store(reference + channel, mean.to(tl.float32), mask=known)


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


def convolve(
    x: Tensor, weight: Tensor, layer: nn.Conv2d, reference: Tensor, *,
    normalised: tuple[Tensor, Tensor] | None = None, relu: bool = False, kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Take x (S, B, C, H, W) through a convolution of the layer, its weight replaced by `weight` (K, C, h, w).

    `normalised`: scale and offset (S, C) of a batch norm that x goes through first, and `relu`, a ReLU behind it.
    `kept` (B, K, H', W') takes the bias's place: what is added to the result. `reference` (K,): about its means.
    Returns y (S, B, K, H', W') and, for `scale_and_offset`, the sums over rows and pixels of y - reference and of its
    square (S, 2, K), float64.
    """
    (slots, rows, inputs, height, width), outputs = x.shape, len(weight)
    assert not isinstance(layer.padding, str)
    sizes = zip(x.shape[3:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
    out_height, out_width = ((size + 2 * pad - apart * (k - 1) - 1) // step + 1 for size, k, step, pad, apart in sizes)
    y = x.new_empty(slots, rows, out_height, out_width, outputs)
    pixels = rows * out_height * out_width
    tiles = triton.cdiv(pixels, BLOCK)
    sums = x.new_empty(slots, tiles, 2, outputs)
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
    return y.permute(0, 1, 4, 2, 3), sums.sum(1, dtype=torch.float64)


def scale_and_offset(sums: Tensor, reference: Tensor, count: int, norm: Any) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies `count` numbers of a channel with, and adds (S, C each), given `convolve`'s sums.

    `reference` becomes the means of the first slot.
    """
    scale, offset = reference.new_empty(2, len(sums), sums.shape[2]).unbind()
    channels = sums.shape[2]
    _scale[(1,)](
        sums, reference, norm.weight, norm.bias, scale, offset, norm.eps, count, len(sums), channels, _power(channels)
    )
    return scale, offset


def average(x: Tensor, normalised: tuple[Tensor, Tensor], relu: bool, window: tuple[int, int]) -> Tensor:
    """Normalise x (S, B, C, H, W) as `convolve` does, and average it in windows that do not overlap."""
    slots, rows, channels, height, width = x.shape
    out_height, out_width = height // window[0], width // window[1]
    y = x.new_empty(slots, rows, out_height, out_width, channels)
    _average[(triton.cdiv(rows * out_height * out_width, BLOCK), slots)](
        x, *normalised, y, rows, height, width, out_height, out_width, *x.stride(),
        channels, _power(channels), *window, relu, BLOCK,
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
