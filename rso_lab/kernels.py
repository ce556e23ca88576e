"""Loops over one image after another, for what torch does badly: all that lies between two batch norms, at once.

Compiled by numba. An image stays in the first-level cache from the batch norm over ReLU and pooling to the convolution
and to the moments that the next batch norm needs; torch would write and read a whole piece at each of them. The inner
loops are put together in LLVM's own terms, VECTOR channels at a time: what numba makes of plain ones is several times
as slow. Images are (H, W, C), contiguous; sets of them (N, H, W, C).
"""

import warnings
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from rso_lab import graph

# Channels that are computed at once: what one register holds.
VECTOR = 16 if llvm.get_host_cpu_features().get("avx512f") else 8
_compiled = njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
if config.DISABLE_JIT:  # type: ignore[attr-defined]
    raise ImportError("numba is switched off: NUMBA_DISABLE_JIT is set")
NO_PLACE = "numba finds no folder to keep compiled loops in, and compiles them in every process (half a minute)"
PLACE = "name a folder that can be written to in the environment variable NUMBA_CACHE_DIR"
try:
    _compiled(graph.scale_and_offset)
    kept = True
except RuntimeError:
    warnings.warn(f"{NO_PLACE}: {PLACE}", stacklevel=2)
    kept = False
    _compiled = njit(nogil=True, fastmath={"contract"}, error_model="numpy")
_INDEX = ir.IntType(64)
FIELDS = [
    "kind",
    "norm",
    "norm_end",
    "weight",
    "bias",
    "rows",
    "columns",
    "height",
    "width",
    "channels",
    "down",
    "right",
    "top",
    "left",
]
# A convolution of a chain: its prologue; where in the chain's numbers the norm before it, its weights and its bias lie;
# rows and columns of its kernel; the shape that it puts out; stride and padding.
LINK = np.dtype([(name, np.int64) for name in FIELDS])


class _Vectors:
    """Writes LLVM instructions on VECTOR numbers of arrays, for an intrinsic whose arguments are arrays and indices."""

    def __init__(self, context: Any, builder: ir.IRBuilder, signature: Any, args: Any):
        self.builder = builder
        self.number = context.get_value_type(signature.args[0].dtype)
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


def _tile(rows: int, pixels: int) -> Callable:
    """A function that convolves for rows x pixels of an image's outputs, VECTOR channels of each.

    The sums stay in registers. `start` is what they start from: the bias, or what was there.
    """

    @intrinsic
    def put(
        typing: Any, out: Any, at_out: Any, start: Any, at_start: Any, x: Any, at_x: Any, w: Any, at_w: Any, sizes: Any
    ) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            v = _Vectors(context, builder, signature, args)
            out, at_out, start, at_start, x, at_x, w, at_w, packed = v.args
            (
                (kernel_rows, kernel_columns, channels, x_row, x_down, x_right),
                (w_row, w_channel),
                (out_row, out_pixel, start_row, start_pixel),
            ) = (cgutils.unpack_tuple(builder, sizes) for sizes in cgutils.unpack_tuple(builder, packed))
            places = [(r, p) for r in range(rows) for p in range(pixels)]
            starts = [v.index(at_start, (r, start_row), (p, start_pixel)) for r, p in places]
            sums = [cgutils.alloca_once_value(builder, v.load(start, at)) for at in starts]

            def add_up(channels: Any, x_right: Any) -> None:
                with (
                    cgutils.for_range(builder, kernel_rows) as i,
                    cgutils.for_range(builder, kernel_columns) as j,
                    cgutils.for_range(builder, channels) as c,
                ):
                    weights = v.load(
                        w, v.index(at_w, (i.index, w_row), (v.index((j.index, channels), c.index), w_channel))
                    )
                    first = v.index(at_x, (i.index, x_row), (j.index, channels), c.index)
                    for (r, p), total in zip(places, sums, strict=True):
                        value = builder.load(builder.gep(x, [v.index(first, (r, x_down), (p, x_right))]))
                        builder.store(v.multiply_add(v.everywhere(value), weights, builder.load(total)), total)

            vector = ir.Constant(_INDEX, VECTOR)
            usual = builder.and_(*(builder.icmp_signed("==", number, vector) for number in (channels, x_right)))
            with builder.if_else(usual) as (then, otherwise):
                with then:  # with the distances known, the processor has no addresses to compute
                    add_up(vector, vector)
                with otherwise:
                    add_up(channels, x_right)
            for (r, p), total in zip(places, sums, strict=True):
                v.store(builder.load(total), out, v.index(at_out, (r, out_row), (p, out_pixel)))
            return context.get_dummy_value()

        return types.void(out, at_out, start, at_start, x, at_x, w, at_w, sizes), generate

    return put


def _prologue(side: int, maximum: bool, relu: bool) -> Callable:
    """A function for batch norm, ReLU and pooling over side x side pixels: for VECTOR channels of a row."""

    @intrinsic
    def put(
        typing: Any, x: Any, at_x: Any, x_row: Any, scale: Any, offset: Any, out: Any, at_out: Any, sizes: Any
    ) -> Any:
        # sizes: pixels to put out, channels, the first of the channels
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            v = _Vectors(context, builder, signature, args)
            x, at_x, x_row, scale, offset, out, at_out, packed = v.args
            pixels, channels, channel = cgutils.unpack_tuple(builder, packed)
            a, b, zero = v.load(scale, channel), v.load(offset, channel), v.constant(0.0)
            with cgutils.for_range(builder, pixels) as i:
                first = v.index(at_x, channel, (v.index((side, i.index)), channels))
                total = None
                for r in range(side):
                    for p in range(side):
                        value = v.multiply_add(v.load(x, v.index(first, (r, x_row), (p, channels))), a, b)
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
                v.store(total, out, v.index(at_out, channel, (i.index, channels)))
            return context.get_dummy_value()

        return types.void(x, at_x, x_row, scale, offset, out, at_out, sizes), generate

    return put


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


_tile_1x14, _tile_2x14, _tile_1x7, _tile_2x7, _tile_4x7, _tile_1x4, _tile_4x4, _tile_2x2, _tile_1x1 = (
    _tile(*size) for size in ((1, 14), (2, 14), (1, 7), (2, 7), (4, 7), (1, 4), (4, 4), (2, 2), (1, 1))
)
_affine, _affine_relu = (_prologue(1, False, relu) for relu in (False, True))
_mean, _mean_relu = (_prologue(2, False, relu) for relu in (False, True))
_maximum, _maximum_relu = (_prologue(2, True, relu) for relu in (False, True))
_add_up, _add_up_squares = (_sum(power) for power in (1, 2))


@_compiled
def _convolve(x: np.ndarray, w: np.ndarray, stride: tuple[int, int], start: np.ndarray, out: np.ndarray) -> None:
    """Out (H', W', C') = start + the convolution of x (H, W, C), padded, with w (kernel rows, columns, C, C').

    start: (H', W', C') or (1, 1, C').
    """
    height, width, out_channels = out.shape
    channels = x.shape[2]
    x_row = x.shape[1] * channels
    down, right = stride[0] * x_row, stride[1] * channels
    start_pixel = 0 if start.shape[0] < height or start.shape[1] < width else out_channels
    sizes = (
        (w.shape[0], w.shape[1], channels, x_row, down, right),
        (w.shape[1] * channels * out_channels, out_channels),
        (width * out_channels, out_channels, width * start_pixel, start_pixel),
    )
    for channel in range(0, out_channels, VECTOR):
        row = 0
        while row < height:
            left = height - row
            rows = 1
            column = 0
            while column < width:
                at_out = (row * width + column) * out_channels + channel
                at_start = (row * width + column) * start_pixel + channel
                at_x = row * down + column * right
                if width % 14 == 0 and left > 1:
                    _tile_2x14(out, at_out, start, at_start, x, at_x, w, channel, sizes)
                    column, rows = column + 14, 2
                elif width % 14 == 0:
                    _tile_1x14(out, at_out, start, at_start, x, at_x, w, channel, sizes)
                    column += 14
                elif width % 7 == 0 and left > 3:
                    _tile_4x7(out, at_out, start, at_start, x, at_x, w, channel, sizes)
                    column, rows = column + 7, 4
                elif width % 7 == 0 and left > 1:
                    _tile_2x7(out, at_out, start, at_start, x, at_x, w, channel, sizes)
                    column, rows = column + 7, 2
                elif width % 7 == 0:
                    _tile_1x7(out, at_out, start, at_start, x, at_x, w, channel, sizes)
                    column += 7
                elif width % 4 == 0 and left > 3:
                    _tile_4x4(out, at_out, start, at_start, x, at_x, w, channel, sizes)
                    column, rows = column + 4, 4
                elif width % 4 == 0:
                    _tile_1x4(out, at_out, start, at_start, x, at_x, w, channel, sizes)
                    column += 4
                elif width % 2 == 0 and left > 1:
                    _tile_2x2(out, at_out, start, at_start, x, at_x, w, channel, sizes)
                    column, rows = column + 2, 2
                else:
                    _tile_1x1(out, at_out, start, at_start, x, at_x, w, channel, sizes)
                    column += 1
            row += rows


@_compiled
def _convolve_together(
    x: np.ndarray, w: np.ndarray, stride: tuple[int, int], padding: tuple[int, int], start: np.ndarray, out: np.ndarray
) -> None:
    """As _convolve, for small images x (N, H, W, C), without their padding: one pixel of many images at a time.

    out (N, H', W', C'); start: (N, H', W', C') or (1, 1, 1, C').
    """
    count, height, width, out_channels = out.shape
    rows, columns, channels = x.shape[1:]
    x_image, out_image = rows * columns * channels, height * width * out_channels
    start_image = 0 if len(start) < count else start[0].size
    start_pixel = 0 if start.shape[1] < height or start.shape[2] < width else out_channels
    w_row = w.shape[1] * channels * out_channels
    for row in range(height):
        above = row * stride[0] - padding[0]
        for column in range(width):
            before = column * stride[1] - padding[1]
            i, j = max(0, -above), max(0, -before)
            taps = (max(0, min(w.shape[0], rows - above) - i), max(0, min(w.shape[1], columns - before) - j))
            sizes = (
                (*taps, channels, columns * channels, 0, x_image),
                (w_row, out_channels),
                (0, out_image, 0, start_image),
            )
            for channel in range(0, out_channels, VECTOR):
                at_w = i * w_row + j * channels * out_channels + channel
                n = 0
                while n < count:
                    at_out = n * out_image + (row * width + column) * out_channels + channel
                    at_start = n * start_image + (row * width + column) * start_pixel + channel
                    at_x = n * x_image + ((above + i) * columns + before + j) * channels
                    if count - n >= 14:
                        _tile_1x14(out, at_out, start, at_start, x, at_x, w, at_w, sizes)
                        n += 14
                    elif count - n >= 4:
                        _tile_1x4(out, at_out, start, at_start, x, at_x, w, at_w, sizes)
                        n += 4
                    else:
                        _tile_1x1(out, at_out, start, at_start, x, at_x, w, at_w, sizes)
                        n += 1


@_compiled
def _prepare(
    x: np.ndarray, scale: np.ndarray, offset: np.ndarray, kind: int, top: int, left: int, out: np.ndarray
) -> None:
    """Batch norm, ReLU and pooling of x (H, W, C), C a multiple of VECTOR, into out from (top, left) on.

    `kind`: 0 no pooling, 2 means of 2x2, 4 maxima of 2x2; one more with ReLU.
    """
    height, width, channels = x.shape
    side = 1 if kind < 2 else 2
    x_row = width * channels
    for row in range(height // side):
        at_x = side * row * x_row
        at_out = ((top + row) * out.shape[1] + left) * channels
        for channel in range(0, channels, VECTOR):
            sizes = (width // side, channels, channel)
            if kind == 0:
                _affine(x, at_x, x_row, scale, offset, out, at_out, sizes)
            elif kind == 1:
                _affine_relu(x, at_x, x_row, scale, offset, out, at_out, sizes)
            elif kind == 2:
                _mean(x, at_x, x_row, scale, offset, out, at_out, sizes)
            elif kind == 3:
                _mean_relu(x, at_x, x_row, scale, offset, out, at_out, sizes)
            elif kind == 4:
                _maximum(x, at_x, x_row, scale, offset, out, at_out, sizes)
            else:
                _maximum_relu(x, at_x, x_row, scale, offset, out, at_out, sizes)


@_compiled
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


@_compiled
def _at_once(x: np.ndarray) -> int:
    """How many images of x (N, ...) have their moments taken at once: as many as stay in the first-level cache."""
    some = max(1, 4096 // (x.size // len(x)))
    return some - some % 14 if some > 14 else some  # as many as _convolve_together takes at once


@_compiled
def _is_small(x: np.ndarray) -> bool:
    """Whether images (N, H, W, C) are convolved together: what their padding costs is more than what is close by."""
    return x.shape[1] * x.shape[2] <= 16


@_compiled
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
    top, left = padding
    some = _at_once(out)
    together = _is_small(out)
    if together:
        top, left = 0, 0
    ready = np.zeros((some, x.shape[1] // side + 2 * top, x.shape[2] // side + 2 * left, x.shape[3]), x.dtype)
    mean, squares = np.zeros(out.shape[3]), np.zeros(out.shape[3])
    room = np.zeros((2, out.shape[3]), x.dtype)
    for first in range(0, len(x), some):
        last = min(first + some, len(x))
        for n in range(first, last):
            _prepare(x[n], scale, offset, kind, top, left, ready[n - first])
            if not together:
                _convolve(ready[n - first], w, stride, bias.reshape(1, 1, -1), out[n])
        if together:
            _convolve_together(ready[: last - first], w, stride, padding, bias.reshape(1, 1, 1, -1), out[first:last])
        _add_moments(out[first:last], first, mean, squares, room)
    return mean, squares


@_compiled
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
    top, left = padding
    height, width = after.shape[2:]
    some = _at_once(out)
    together = _is_small(out)
    if together:
        top, left = 0, 0
    change = np.zeros((some, height + 2 * top, width + 2 * left, 1), x.dtype)
    mean, squares = np.zeros(out.shape[3]), np.zeros(out.shape[3])
    tall = 1 if kind >= 2 and x.shape[2] % 2 == 1 else some  # images below each other, unless pooling would mix them
    room, plane = np.zeros((2, out.shape[3]), x.dtype), np.zeros((tall * x.shape[2], x.shape[3]), x.dtype)
    for first in range(0, len(x), some):
        last = min(first + some, len(x))
        for top_one in range(first, last, tall):
            ours = x[top_one : min(top_one + tall, last)].reshape(-1, x.shape[3])
            theirs = after[top_one : min(top_one + tall, last)].reshape(-1, width)
            _prepare_plane(ours, x.dtype.type(scale), x.dtype.type(offset), kind, plane[: len(ours)], theirs)
        for n in range(first, last):
            moved = change[n - first]
            for row in range(height):
                for column in range(width):
                    moved[top + row, left + column, 0] = after[n, 0, row, column] - before[n, 0, row, column]
            if not together:
                _convolve(moved, w, stride, kept[n], out[n])
        if together:
            _convolve_together(change[: last - first], w, stride, padding, kept[first:last], out[first:last])
        _add_moments(out[first:last], first, mean, squares, room)
    return mean, squares


@_compiled
def _prepare_plane(x: np.ndarray, scale: float, offset: float, kind: int, room: np.ndarray, out: np.ndarray) -> None:
    """Batch norm, ReLU and pooling of one channel x (H, W), into out."""
    lowest = x.dtype.type(0 if kind % 2 == 1 else -np.inf)
    normal = out if kind < 2 else room
    flat, normal_flat = x.reshape(-1), normal.reshape(-1)
    for k in range(len(flat)):
        value = flat[k] * scale + offset
        normal_flat[k] = lowest if value < lowest else value  # a NaN is not below 0
    if kind >= 2:
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


@_compiled
def pool(x: np.ndarray, scale: np.ndarray, offset: np.ndarray, kind: int, out: np.ndarray) -> None:
    """Batch norm, ReLU (kind 1) and the mean over all pixels of x (N, H, W, C), into out (N, C)."""
    ready = np.zeros(x.shape[1:], x.dtype)
    pixels = x.shape[1] * x.shape[2]
    for n in range(len(x)):
        _prepare(x[n], scale, offset, kind, 0, 0, ready)
        for c in range(0, x.shape[3], VECTOR):
            _add_up(ready, c, pixels, x.shape[3], scale, out[n], c)
        for c in range(x.shape[3]):
            out[n, c] /= pixels


scale_and_offset = _compiled(graph.scale_and_offset)  # other last bits than numpy's: b - m * s as one instruction


@_compiled
def _normalised(mean: np.ndarray, squares: np.ndarray, count: int, norm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset (C,) of a batch norm, from the moments of what it takes; norm: gamma, beta, eps, or nothing."""
    channels = len(mean)
    if len(norm) == 0:
        return np.ones(channels), np.zeros(channels)
    return scale_and_offset(mean, squares / count, norm[:channels], norm[channels:-1], norm[-1])


@_compiled
def chain(
    z: np.ndarray,
    x: np.ndarray,
    delta: float,
    stride: tuple[int, int],
    first: tuple[int, int],
    out: np.ndarray,
    norm: np.ndarray,
    kind: int,
    before: np.ndarray,
    after: np.ndarray,
    w: np.ndarray,
    enter_stride: tuple[int, int],
    enter_padding: tuple[int, int],
    kept: np.ndarray,
    entered: np.ndarray,
    links: np.ndarray,
    numbers: np.ndarray,
    norms: np.ndarray,
    rooms: np.ndarray,
    pooled: np.ndarray,
) -> None:
    """The way of a change in one call: `step`, `enter`, `convolve` for each of the links, and `pool`.

    norm: gamma, beta and eps of the batch norm before `enter`, or nothing. links (L,), LINK: the convolutions, and then
    the pool. numbers: their weights and biases; norms: gamma, beta and eps of the batch norms before them. rooms
    (2, ...): where the convolutions put out, in turn. The rest: as in those four.
    """
    mean, squares = step(z, x, delta, stride, first, out)
    scale, offset = _normalised(mean, squares, out.size, norm)
    mean, squares = enter(out, scale[0], offset[0], kind, before, after, w, enter_stride, enter_padding, kept, entered)
    current = entered
    count = len(x)
    for number in range(len(links)):
        link = links[number]
        inputs = current.shape[3]
        norm_before = norms[link.norm : link.norm_end]
        scale64, offset64 = _normalised(mean, squares, current.size // inputs, norm_before)
        scale_now, offset_now = scale64.astype(x.dtype), offset64.astype(x.dtype)
        if number == len(links) - 1:
            pool(current, scale_now, offset_now, link.kind, pooled)
        else:
            weight = numbers[link.weight : link.bias].reshape(link.rows, link.columns, inputs, link.channels)
            bias = numbers[link.bias : link.bias + link.channels]
            target = rooms[number % 2, : count * link.height * link.width * link.channels]
            images = target.reshape(count, link.height, link.width, link.channels)
            by, padding = (link.down, link.right), (link.top, link.left)
            mean, squares = convolve(current, scale_now, offset_now, link.kind, weight, bias, by, padding, images)
            current = images


@_compiled
def _flat_moments(flat: np.ndarray, room: np.ndarray) -> tuple[float, float]:
    """Mean of some numbers, and sum of squares about it."""
    lines = len(flat) // VECTOR
    _add_up(flat, 0, lines, VECTOR, room[0], room[0], 0)
    mean = room[0].sum()
    for k in range(lines * VECTOR, len(flat)):
        mean += flat[k]
    mean /= flat.dtype.type(len(flat))
    room[0, :] = mean
    _add_up_squares(flat, 0, lines, VECTOR, room[0], room[1], 0)
    squares = room[1].sum()
    for k in range(lines * VECTOR, len(flat)):
        squares += (flat[k] - mean) ** 2
    return mean, squares


@_compiled
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
        ours, before, taken = out[n : n + count, 0], z[n : n + count, 0], x[n : n + count]
        flat = out[n : n + count].reshape(-1)
        if stride == (1, 1) and (rows, columns) == (height, width):  # one long loop, then what it took across an edge
            z_flat, x_flat = z[n : n + count].reshape(-1), taken.reshape(-1)
            begin, end = min(len(flat), max(0, -shift)), max(0, min(len(flat), len(flat) - shift))
            flat[:begin] = z_flat[:begin]
            for k in range(begin, end):
                flat[k] = z_flat[k] + delta * x_flat[k + shift]
            flat[end:] = z_flat[end:]
            for i in range(count):
                ours[i, :top] = before[i, :top]
                ours[i, bottom:] = before[i, bottom:]
                for row in range(top, bottom):
                    for column in range(left):
                        ours[i, row, column] = before[i, row, column]
                    for column in range(right, width):
                        ours[i, row, column] = before[i, row, column]
        else:
            ours[:] = before
            for i in range(count):
                for row in range(top, bottom):
                    from_row = row * stride[0] + first[0]
                    for column in range(left, right):
                        ours[i, row, column] += delta * taken[i, from_row, column * stride[1] + first[1]]
        middle, spread = _flat_moments(flat, room)
        gap = middle - mean
        mean += gap * (count / (n + count))
        squares += spread + gap * gap * (len(flat) * n / (n + count))
    return np.array([mean]), np.array([squares])
