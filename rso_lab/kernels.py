"""Loops over one image after another, for what torch does badly: all that lies between two batch norms, at once.

Compiled by numba. An image stays in the first-level cache from the batch norm over ReLU and pooling to the convolution
and to the moments that the next batch norm needs; torch would write and read a whole piece at each of them. The inner
loops are put together in LLVM's own terms, VECTOR channels at a time: what numba makes of plain ones is several times
as slow. Images are (H, W, C), contiguous; sets of them (N, H, W, C).

What a processor has only decides how many pixels are computed at once, never the order in which numbers are added: so
the results are the same on all that multiply and add in one instruction.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from rso_lab import graph

VECTOR = 16  # channels that are computed at once


def vector_numbers(features: str, triple: str) -> int:
    """How many times VECTOR numbers the vector registers hold. `features` and `triple`: as LLVM names a processor's."""
    has = set(features.split(","))
    registers = 32 if "+avx512f" in has or triple.startswith(("aarch64", "arm64")) else 16
    return registers * (16 if "+avx512f" in has else 8 if has & {"+avx", "+avx2"} else 4) // VECTOR


def tiles(room: int) -> tuple[tuple[int, int], ...]:
    """Lines and pixels that may be computed at once, VECTOR channels of each, the most pixels first.

    Their sums stay in registers that hold `room` times VECTOR numbers, beside VECTOR weights and a number of the image.
    """
    most = room - 2
    sizes = {min(most, 14), *(size for size in (8, 7, 4, 2, 1) if size < most)}
    return tuple((lines, size) for size in sorted(sizes, reverse=True) for lines in (1, 2) if lines * size <= most)


_TRIPLE, _, _FEATURES = cpu_target.target_context.codegen().magic_tuple()  # what numba compiles for
TILES = tiles(vector_numbers(_FEATURES, _TRIPLE))
_options: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
if config.DISABLE_JIT:  # type: ignore[attr-defined]
    raise ImportError("numba is switched off: NUMBA_DISABLE_JIT is set")
NO_PLACE = "numba finds no folder to keep compiled loops in, and compiles them in every process (half a minute)"
PLACE = "name a folder that can be written to in the environment variable NUMBA_CACHE_DIR"
try:
    njit(graph.scale_and_offset, cache=True, **_options)
    kept = True
except RuntimeError:
    warnings.warn(f"{NO_PLACE}: {PLACE}", stacklevel=2)
    kept = False


@functools.cache  # numba makes Python forget what it has warned of
def _tell_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def compiled(function: Callable) -> Any:
    """The function, to be compiled at its first call, and kept where there is a folder for it with room."""
    made: Any = njit(function, cache=kept, **_options)
    keep = made._cache.save_overload

    def keep_if_there_is_room(*compiled: Any) -> None:
        try:
            keep(*compiled)
        except OSError as error:
            _tell_once(f"numba cannot keep compiled loops ({error}): make room, or {PLACE}")

    made._cache.save_overload = keep_if_there_is_room
    return made


_INDEX = ir.IntType(64)
_written: Any = intrinsic  # of another type than numba says: a call leaves out the first argument, `typing`
MEAN = 6  # of the kinds of what comes before a convolution: the mean over all pixels; one more: with ReLU


class _Vectors:
    """Writes LLVM instructions on VECTOR numbers of arrays, for an intrinsic whose arguments are arrays and indices."""

    def __init__(self, context: Any, builder: ir.IRBuilder, signature: Any, args: Any):
        builder.function.attributes.add("noinline")  # else its loops are compiled anew wherever they are called from
        self.builder = builder
        self.number = context.get_value_type(
            next(kind.dtype for kind in signature.args if isinstance(kind, types.Array))
        )
        self.vector = ir.VectorType(self.number, VECTOR)
        self.bytes = context.get_abi_sizeof(self.number)
        self.args = [
            context.make_array(kind)(context, builder, arg).data if isinstance(kind, types.Array) else arg
            for kind, arg in zip(signature.args, args, strict=True)
        ]

    def index(self, *terms: Any) -> Any:
        """The sum of indices; a pair is a product."""
        total = ir.Constant(_INDEX, 0)
        for term in terms:
            if isinstance(term, tuple):
                a, b = (ir.Constant(_INDEX, factor) if isinstance(factor, int) else factor for factor in term)
                term = self.builder.mul(a, b)
            total = self.builder.add(total, term)
        return total

    def load(self, data: Any, at: Any) -> Any:
        """The vector that begins there."""
        value = self.builder.load(self.builder.bitcast(self.builder.gep(data, [at]), self.vector.as_pointer()))
        value.align = self.bytes
        return value

    def store(self, value: Any, data: Any, at: Any) -> None:
        """Write the vector there."""
        place = self.builder.bitcast(self.builder.gep(data, [at]), self.vector.as_pointer())
        self.builder.store(value, place).align = self.bytes

    def everywhere(self, number: Any) -> Any:
        """A vector of this one number."""
        nothing = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), None))

    def constant(self, number: float) -> Any:
        """A vector of this one number."""
        return ir.Constant(self.vector, [ir.Constant(self.number, number)] * VECTOR)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """A * b + c, contracted: one instruction where the processor has one."""
        return self.builder.fadd(self.builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


@_written
def _tile(
    typing: Any,
    lines: Any,
    pixels: Any,
    out: Any,
    at_out: Any,
    start: Any,
    at_start: Any,
    x: Any,
    at_x: Any,
    w: Any,
    at_w: Any,
    sizes: Any,
) -> Any:
    """Convolve for some pixels of a line or two, one of TILES, VECTOR channels of each.

    `start` is what the sums start from. sizes: rows and columns of the kernel, blocks of channels and channels in one;
    how far it is in x from row to row, from column to column, from block to block, and from pixel to pixel; in w
    from row to row and from channel to channel; in out, in start and in x from line to line; in out and in start from
    pixel to pixel.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        v = _Vectors(context, builder, signature, args)
        lines, pixels, out, at_out, start, at_start, x, at_x, w, at_w, packed = v.args
        (
            (rows, columns, blocks, depth),
            (x_row, x_column, x_block, x_pixel),
            (w_row, w_channel),
            (out_line, start_line, x_line),
            (out_pixel, start_pixel),
        ) = (cgutils.unpack_tuple(builder, sizes) for sizes in cgutils.unpack_tuple(builder, packed))

        def put(height: int, width: int, x_pixel: Any) -> None:
            places = [(r, p) for r in range(height) for p in range(width)]
            starts = [v.load(start, v.index(at_start, (r, start_line), (p, start_pixel))) for r, p in places]
            sums = [cgutils.alloca_once_value(builder, value) for value in starts]
            with (
                cgutils.for_range(builder, rows) as i,
                cgutils.for_range(builder, columns) as j,
                cgutils.for_range(builder, blocks) as b,
                cgutils.for_range(builder, depth) as c,
            ):
                channel = v.index((v.index((j.index, blocks), b.index), depth), c.index)
                weights = v.load(w, v.index(at_w, (i.index, w_row), (channel, w_channel)))
                first = v.index(at_x, (i.index, x_row), (j.index, x_column), (b.index, x_block), c.index)
                for (r, p), total in zip(places, sums, strict=True):
                    value = builder.load(builder.gep(x, [v.index(first, (r, x_line), (p, x_pixel))]))
                    builder.store(v.multiply_add(v.everywhere(value), weights, builder.load(total)), total)
            for (r, p), total in zip(places, sums, strict=True):
                v.store(builder.load(total), out, v.index(at_out, (r, out_line), (p, out_pixel)))

        def known(number: Any, value: int) -> Any:
            return builder.icmp_signed("==", number, ir.Constant(_INDEX, value))

        usual = known(x_pixel, VECTOR), known(x_pixel, 1)
        for height, width in TILES:
            with builder.if_then(builder.and_(known(lines, height), known(pixels, width))):
                # with the distance known, the processor has no addresses to compute
                with builder.if_then(usual[0]):
                    put(height, width, ir.Constant(_INDEX, VECTOR))
                if height == 1:
                    with builder.if_then(usual[1]):
                        put(1, width, ir.Constant(_INDEX, 1))
                    with builder.if_then(builder.not_(builder.or_(*usual))):
                        put(1, width, x_pixel)
        return context.get_dummy_value()

    return types.void(lines, pixels, out, at_out, start, at_start, x, at_x, w, at_w, sizes), generate


@_written
def _prologue(
    typing: Any, kind: Any, x: Any, at_x: Any, scale: Any, offset: Any, channel: Any, out: Any, at_out: Any, sizes: Any
) -> Any:
    """Batch norm, ReLU and pooling (`kind`, see _prepare) for VECTOR channels, from `channel` on, of a row of pixels.

    sizes: pixels to put out; how far it is in x from row to row and from pixel to pixel, in out from pixel to pixel.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        v = _Vectors(context, builder, signature, args)
        kind, x, at_x, scale, offset, channel, out, at_out, packed = v.args
        pixels, x_row, x_pixel, out_pixel = cgutils.unpack_tuple(builder, packed)
        a, b, zero = v.load(scale, channel), v.load(offset, channel), v.constant(0.0)

        def put(side: int, maximum: bool, relu: bool) -> None:
            with cgutils.for_range(builder, pixels) as i:
                first = v.index(at_x, (v.index((side, i.index)), x_pixel))
                total = None
                for r in range(side):
                    for p in range(side):
                        value = v.multiply_add(v.load(x, v.index(first, (r, x_row), (p, x_pixel))), a, b)
                        if relu:  # a NaN is not below 0
                            value = builder.select(builder.fcmp_ordered("<", value, zero), zero, value)
                        if total is None:
                            total = value
                        elif maximum:  # a NaN stays
                            larger = builder.fcmp_ordered(">", value, total)
                            larger = builder.or_(larger, builder.fcmp_unordered("uno", value, value))
                            total = builder.select(larger, value, total)
                        else:
                            total = builder.fadd(total, value)
                if side > 1 and not maximum:
                    total = builder.fmul(total, v.constant(1 / side**2))
                v.store(total, out, v.index(at_out, (i.index, out_pixel)))

        for number in range(6):
            with builder.if_then(builder.icmp_signed("==", kind, ir.Constant(_INDEX, number))):
                put(1 if number < 2 else 2, number >= 4, number % 2 == 1)
        return context.get_dummy_value()

    return types.void(kind, x, at_x, scale, offset, channel, out, at_out, sizes), generate


def _sum(power: int) -> Callable:
    """A function that adds up (x - centre)**power over pixels, VECTOR channels of each, into `total`."""

    @intrinsic
    def add_up(typing: Any, x: Any, at_x: Any, pixels: Any, x_pixel: Any, centre: Any, total: Any, at_c: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            v = _Vectors(context, builder, signature, args)
            x, at_x, pixels, x_pixel, centre, total, at_c = v.args
            middle = v.load(centre, at_c)
            four = ir.Constant(_INDEX, 4)
            sums = [cgutils.alloca_once_value(builder, v.constant(0.0)) for _ in range(4)]

            def add(at: Any, place: Any) -> None:
                value = v.load(x, at)
                if power == 2:
                    value = builder.fsub(value, middle)
                    builder.store(v.multiply_add(value, value, builder.load(place)), place)
                else:
                    builder.store(builder.fadd(value, builder.load(place)), place)

            with cgutils.for_range(builder, builder.sdiv(pixels, four)) as i:
                for k, place in enumerate(sums):  # four at a time: an addition takes several ticks
                    add(v.index(at_x, (v.index((4, i.index), ir.Constant(_INDEX, k)), x_pixel)), place)
            rest = builder.srem(pixels, four)
            with cgutils.for_range(builder, rest) as i:
                last = builder.sub(pixels, v.index(i.index, ir.Constant(_INDEX, 1)))
                add(v.index(at_x, (last, x_pixel)), sums[0])
            ab, cd = (builder.fadd(builder.load(sums[k]), builder.load(sums[k + 1])) for k in (0, 2))
            v.store(builder.fadd(ab, cd), total, at_c)
            return context.get_dummy_value()

        return types.void(x, at_x, pixels, x_pixel, centre, total, at_c), generate

    return add_up


_add_up, _add_up_squares = (_sum(power) for power in (1, 2))


@compiled
def _lines(
    lines: int,
    pixels: int,
    channels: int,
    out: np.ndarray,
    at_out: int,
    start: np.ndarray,
    at_start: int,
    x: np.ndarray,
    at_x: int,
    w: np.ndarray,
    at_w: int,
    sizes: tuple,
) -> None:
    """Convolve for lines of pixels, tile by tile. sizes: of a tile.

    The tiles of a line are as even as they can be. The last one computes some pixels again where they do not add up.
    """
    x_pixel, (out_line, start_line, x_line), (out_pixel, start_pixel) = sizes[1][3], sizes[3], sizes[4]
    first = 0
    while first < pixels:
        left = pixels - first
        share = left if left <= TILES[0][1] else min(TILES[0][1], (left + 1) // 2)
        size, most = 0, 1
        for height, some in TILES:
            if some <= pixels and (some >= share or size in (0, some)):
                size, most = some, height
        first = min(first, pixels - size)
        line = 0
        while line < lines:
            height = most if x_pixel == VECTOR and lines - line >= most else 1
            for channel in range(0, channels, VECTOR):
                at = at_out + line * out_line + first * out_pixel + channel
                from_start = at_start + line * start_line + first * start_pixel + channel
                from_x = at_x + line * x_line + first * x_pixel
                _tile(height, size, out, at, start, from_start, x, from_x, w, at_w + channel, sizes)
            line += height
        first += size


@compiled
def _convolve(
    x: np.ndarray,
    shape: tuple[int, int, int, int],
    together: bool,
    w: np.ndarray,
    stride: tuple[int, int],
    padding: tuple[int, int],
    start: np.ndarray,
    out: np.ndarray,
) -> None:
    """Out (N, H', W', C') = start + the convolution of x with w (kernel rows, columns, C, C').

    x: flat; images of `shape`, padding included, as `_distances` lays them out; `together`: one pixel of all images
    is computed after the other, the `padding` left out. start: (N, H', W', C') or (1, 1, 1, C').
    """
    count, height, width, out_channels = out.shape
    x_image, x_row, x_column, x_block = _distances(shape, together)
    out_image, out_row = height * width * out_channels, width * out_channels
    start_pixel = 0 if start.size == out_channels < out.size else out_channels
    start_image, start_row = height * width * start_pixel, width * start_pixel
    depth = min(VECTOR, shape[3])
    w_row, w_column = w.shape[1] * shape[3] * out_channels, shape[3] * out_channels
    if together:
        images, rows, columns, lines, pixels = 1, height, width, 1, count
        x_by, by = (x_row, x_column, x_block, x_image), (out_image, start_image)
    else:
        images, rows, columns, lines, pixels = count, 1, 1, height, width
        x_by, by = (x_row, x_column, x_block, stride[1] * x_column), (out_channels, start_pixel)
    for n in range(images):
        for row in range(rows):
            above = row * stride[0] - padding[0]
            i = max(0, -above)
            for column in range(columns):
                before = column * stride[1] - padding[1]
                j = max(0, -before)
                taps = (
                    max(0, min(w.shape[0], shape[1] - above) - i),
                    max(0, min(w.shape[1], shape[2] - before) - j),
                    shape[3] // depth,
                    depth,
                )
                _lines(
                    lines,
                    pixels,
                    out_channels,
                    out,
                    n * out_image + row * out_row + column * out_channels,
                    start,
                    n * start_image + row * start_row + column * start_pixel,
                    x,
                    n * x_image + (above + i) * x_row + (before + j) * x_column,
                    w,
                    i * w_row + j * w_column,
                    (taps, x_by, (w_row, out_channels), (out_row, start_row, stride[0] * x_row), by),
                )


@compiled
def _prepare(
    x: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray,
    kind: int,
    out: np.ndarray,
    by: tuple[int, int, int],
) -> None:
    """Batch norm, ReLU and pooling of x (H, W, C), C a multiple of VECTOR.

    `kind`: 0 no pooling, 2 means of 2x2, 4 maxima of 2x2; one more with ReLU. by: how far it is in out from row to row,
    from pixel to pixel, and from VECTOR channels to the next.
    """
    height, width, channels = x.shape
    side = 1 if kind < 2 else 2
    sizes = (width // side, width * channels, channels, by[1])
    for row in range(height // side):
        for block in range(channels // VECTOR):
            channel = block * VECTOR
            at_x = side * row * width * channels + channel
            _prologue(kind, x, at_x, scale, offset, channel, out, row * by[0] + block * by[2], sizes)


@compiled
def _distances(shape: tuple[int, int, int, int], together: bool) -> tuple[int, int, int, int]:
    """How far it is from image to image, row to row, pixel to pixel and VECTOR channels to the next, for `_convolve`.

    VECTOR channels, or the one that there is, lie side by side; images that are convolved `together` inside pixels.
    """
    count, height, width, channels = shape
    depth = min(VECTOR, channels)
    if together:
        return depth, width * count * depth, count * depth, height * width * count * depth
    return height * width * channels, width * depth, depth, height * width * depth


@compiled
def _add_moments(x: np.ndarray, done: int, mean: np.ndarray, squares: np.ndarray, room: np.ndarray) -> None:
    """Merge the moments of some images x (N, H, W, C) with `mean` and `squares` (C,) of `done` others (Chan et al.)."""
    count, channels = len(x), x.shape[3]
    image = x.shape[1] * x.shape[2]
    pixels = count * image
    for c in range(0, channels, VECTOR):
        _add_up(x, c, pixels, channels, room[0], room[0], c)
    for c in range(channels):
        room[0, c] /= pixels
    for c in range(0, channels, VECTOR):
        _add_up_squares(x, c, pixels, channels, room[0], room[1], c)
    for c in range(channels):
        gap = room[0, c] - mean[c]
        mean[c] += gap * (count / (done + count))
        squares[c] += room[1, c] + gap * gap * (pixels * done / (done + count))


@compiled
def copy(x: np.ndarray, out: np.ndarray) -> None:
    """Copy an image (H, W). numba compiles `out[:] = x` for seconds."""
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            out[row, column] = x[row, column]


@compiled
def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of x (N, H, W, C), per channel: mean, and sum of squares about it, as `convolve` and `enter` return them."""
    mean, squares = np.zeros(x.shape[3]), np.zeros(x.shape[3])
    room = np.zeros((2, x.shape[3]), x.dtype)
    some = _at_once(x)
    for first in range(0, len(x), some):
        _add_moments(x[first : first + some], first, mean, squares, room)
    return mean, squares


@compiled
def _at_once(x: np.ndarray) -> int:
    """How many images of x (N, ...) have their moments taken at once: as many as stay in the first-level cache."""
    some = max(1, 4096 // (x.size // len(x)))
    return some - some % 14 if some > 14 else some  # as many as may be computed at once


@compiled
def _is_small(x: np.ndarray) -> bool:
    """Whether images (N, H, W, C) are convolved together: what their padding costs is more than what is close by."""
    return x.shape[1] * x.shape[2] <= 16


@compiled
def convolve(
    x: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray,
    kind: int,
    w: np.ndarray,
    bias: np.ndarray,
    stride: tuple[int, int],
    padding: tuple[int, int],
    out: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Batch norm (scale, offset (C,)), ReLU, pooling (`kind`, see _prepare) and convolution of x (N, H, W, C).

    Into out (N, H', W', C'). w: (kernel rows, columns, C, C'); C and C' multiples of VECTOR. Returns the moments of out
    per channel: mean, and sum of squares about it, float64.
    """
    side = 1 if kind < 2 else 2
    some = _at_once(out)
    together = _is_small(out)
    (top, left), padding = ((0, 0), padding) if together else (padding, (0, 0))
    shape = (some, x.shape[1] // side + 2 * top, x.shape[2] // side + 2 * left, x.shape[3])
    by = _distances(shape, together)
    ready = np.zeros(shape, x.dtype).reshape(-1)
    mean, squares = np.zeros(out.shape[3]), np.zeros(out.shape[3])
    room = np.zeros((2, out.shape[3]), x.dtype)
    for first in range(0, len(x), some):
        last = min(first + some, len(x))
        for n in range(first, last):
            at = (n - first) * by[0] + top * by[1] + left * by[2]
            _prepare(x[n], scale, offset, kind, ready[at:], by[1:])
        _convolve(ready, shape, together, w, stride, padding, bias.reshape(1, 1, 1, -1), out[first:last])
        _add_moments(out[first:last], first, mean, squares, room)
    return mean, squares


@compiled
def enter(
    x: np.ndarray,
    scale: float,
    offset: float,
    kind: int,
    before: np.ndarray,
    after: np.ndarray,
    w: np.ndarray,
    stride: tuple[int, int],
    padding: tuple[int, int],
    kept: np.ndarray,
    out: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Batch norm, ReLU, pooling of one channel x (N, 1, H, W), into `after`; what a convolution makes of its change.

    before: what was there; w (kernel rows, columns, 1, C'); kept (N, H', W', C'): what the
    convolution put out before; `out`: what it puts out now. Returns the moments of `out`, as `convolve`.
    """
    height, width = after.shape[2:]
    some = _at_once(out)
    together = _is_small(out)
    (top, left), padding = ((0, 0), padding) if together else (padding, (0, 0))
    shape = (some, height + 2 * top, width + 2 * left, x.shape[1])  # 1: a constant would have all compiled anew
    by = _distances(shape, together)
    change = np.zeros(shape, x.dtype).reshape(-1)
    mean, squares = np.zeros(out.shape[3]), np.zeros(out.shape[3])
    room = np.zeros((2, out.shape[3]), x.dtype)
    for first in range(0, len(x), some):
        last = min(first + some, len(x))
        prepare_planes(x[first:last], scale, offset, kind, after[first:last])
        for n in range(first, last):
            for row in range(height):
                at = (n - first) * by[0] + (top + row) * by[1] + left * by[2]
                for column in range(width):
                    change[at + column * by[2]] = after[n, 0, row, column] - before[n, 0, row, column]
        _convolve(change, shape, together, w, stride, padding, kept[first:last], out[first:last])
        _add_moments(out[first:last], first, mean, squares, room)
    return mean, squares


@compiled
def prepare_planes(x: np.ndarray, scale: float, offset: float, kind: int, out: np.ndarray) -> None:
    """Batch norm, ReLU and pooling of one channel x (N, 1, H, W), into out (N, 1, H', W')."""
    apart = 2 <= kind < MEAN and x.shape[2] % 2 == 1  # else images lie below each other: pooling does not mix them
    some = 1 if apart else min(len(x), _at_once(x))
    room = np.zeros((some * x.shape[2], x.shape[3]), x.dtype)
    for first in range(0, len(x), some):
        ours = x[first : first + some].reshape(-1, x.shape[3])
        theirs = out[first : first + some].reshape(-1, out.shape[3])
        _prepare_plane(ours, x.dtype.type(scale), x.dtype.type(offset), kind, room[: len(ours)], theirs)


@compiled
def _prepare_plane(x: np.ndarray, scale: float, offset: float, kind: int, room: np.ndarray, out: np.ndarray) -> None:
    """The same of planes (H, W) below each other."""
    lowest = x.dtype.type(0 if kind % 2 == 1 else -np.inf)
    normal = out if kind < 2 else room
    flat, normal_flat = x.reshape(-1), normal.reshape(-1)
    for k in range(len(flat)):
        value = flat[k] * scale + offset
        normal_flat[k] = lowest if value < lowest else value  # a NaN is not below 0
    if kind >= MEAN:
        size = len(flat) // out.size
        for n in range(len(out)):
            total = 0.0
            for k in range(n * size, (n + 1) * size):
                total += normal_flat[k]
            out[n, 0] = total / size
    elif kind >= 2:
        for row in range(out.shape[0]):
            for column in range(out.shape[1]):
                a, b = normal[2 * row, 2 * column], normal[2 * row, 2 * column + 1]
                c, d = normal[2 * row + 1, 2 * column], normal[2 * row + 1, 2 * column + 1]
                if kind < 4:
                    out[row, column] = (a + b + c + d) * x.dtype.type(0.25)
                else:  # a NaN stays
                    ab = a if a >= b or a != a else b
                    cd = c if c >= d or c != c else d
                    out[row, column] = ab if ab >= cd or ab != ab else cd


@compiled
def pool(x: np.ndarray, scale: np.ndarray, offset: np.ndarray, kind: int, out: np.ndarray) -> None:
    """Batch norm, ReLU (kind 1) and the mean over all pixels of x (N, H, W, C), into out (N, C)."""
    ready = np.zeros(x[0].size, x.dtype)
    pixels = x.shape[1] * x.shape[2]
    by = (x.shape[2] * x.shape[3], x.shape[3], min(x.shape[3], VECTOR))
    for n in range(len(x)):
        _prepare(x[n], scale, offset, kind, ready, by)
        for c in range(0, x.shape[3], VECTOR):
            _add_up(ready, c, pixels, x.shape[3], scale, out[n], c)
        for c in range(x.shape[3]):
            out[n, c] /= pixels


scale_and_offset = compiled(graph.scale_and_offset)  # other last bits than numpy's: b - m * s as one instruction


@compiled
def normalised(mean: np.ndarray, squares: np.ndarray, count: int, norm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset (C,) of a batch norm, from the moments of what it takes; norm: gamma, beta, eps, or nothing."""
    channels = len(mean)
    if len(norm) == 0:
        return np.ones(channels), np.zeros(channels)
    return scale_and_offset(mean, squares / count, norm[:channels], norm[channels:-1], norm[-1])


@compiled
def _flat_moments(flat: np.ndarray, room: np.ndarray) -> tuple[float, float]:
    """Mean of some numbers, and sum of squares about it."""
    lines = len(flat) // VECTOR
    _add_up(flat, 0, lines, VECTOR, room[0], room[0], 0)
    mean = room[0].sum()
    for k in range(lines * VECTOR, len(flat)):
        mean += flat[k]
    mean /= flat.dtype.type(len(flat))
    for k in range(VECTOR):
        room[0, k] = mean
    _add_up_squares(flat, 0, lines, VECTOR, room[0], room[1], 0)
    squares = room[1].sum()
    for k in range(lines * VECTOR, len(flat)):
        squares += (flat[k] - mean) ** 2
    return mean, squares


@compiled
def step(
    z: np.ndarray,
    x: np.ndarray,
    delta: float,
    stride: tuple[int, int],
    first: tuple[int, int],
    out: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """What a convolution puts out in one channel when one of its weights moves by delta.

    z (N, 1, H', W'): what it put out; x (N, H, W): the channel that the weight multiplies; `first`: row and column of x
    that it takes for output (0, 0), negative in the padding. Into out (N, 1, H', W'). Returns its moments.
    """
    delta = z.dtype.type(delta)
    height, width = z.shape[2:]
    rows, columns = x.shape[1:]
    mean, squares = 0.0, 0.0
    room = np.zeros((2, VECTOR), z.dtype)
    left = max(0, -(first[1] // stride[1]))
    right = max(left, min(width, (columns - 1 - first[1]) // stride[1] + 1))
    top = max(0, -(first[0] // stride[0]))
    bottom = max(top, min(height, (rows - 1 - first[0]) // stride[0] + 1))
    shift = first[0] * width + first[1]
    some = _at_once(z)
    for n in range(0, len(z), some):
        count = min(some, len(z) - n)
        taken = x[n : n + count]
        flat, before = out[n : n + count].reshape(-1), z[n : n + count].reshape(-1)
        alike = stride == (1, 1) and (rows, columns) == (height, width)
        begin = min(len(flat), max(0, -shift)) if alike else len(flat)
        end = max(begin, min(len(flat), len(flat) - shift)) if alike else len(flat)
        for k in range(begin):
            flat[k] = before[k]
        if alike:  # one long loop, then what it took across an edge
            x_flat = taken.reshape(-1)
            for k in range(begin, end):
                flat[k] = before[k] + delta * x_flat[k + shift]
        for k in range(end, len(flat)):
            flat[k] = before[k]
        for i in range(count):
            for row in range(height):
                at = (i * height + row) * width
                inside = top <= row < bottom
                if alike:
                    for k in range(at, at + (left if inside else width)):
                        flat[k] = before[k]
                    for k in range(at + right, at + width):
                        flat[k] = before[k]
                elif inside:
                    for column in range(left, right):
                        moved = delta * taken[i, row * stride[0] + first[0], column * stride[1] + first[1]]
                        flat[at + column] += moved
        middle, spread = _flat_moments(flat, room)
        gap = middle - mean
        mean += gap * (count / (n + count))
        squares += spread + gap * gap * (len(flat) * n / (n + count))
    return np.array([mean]), np.array([squares])
