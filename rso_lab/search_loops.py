"""Searches weight after weight without coming back to Python, where each layer takes what the one before puts out.

Compiled by numba, as `kernels`, whose loops do the arithmetic. A linear layer is a convolution that puts out one pixel;
channels that are missing to a multiple of VECTOR are 0. The candidates are the places 0, 1 and 2: `CANDIDATES` of
`rso`. Images are (N, H, W, C), planes of one channel (N, 1, H, W).
"""

import math
from typing import NamedTuple

import numpy as np

from rso_lab import kernels
from rso_lab.kernels import compiled

# A convolution: what comes before it (`kind` of kernels.convolve; MEAN or more: the mean over all pixels, which a
# convolution of one pixel takes); where in `Way.norms` the batch norm before it lies, and in `Way.numbers` its weights
# and its bias; rows and columns of its kernel; the shape that it puts out; stride and padding.
FIELDS = [
    "kind",
    "norm",
    "norm_end",
    "weight",
    "bias",
    "bias_end",
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
LINK = np.dtype([(name, np.int64) for name in FIELDS])
MEAN = kernels.MEAN


class Way(NamedTuple):
    """What lies behind a searched layer, as long as this layer is searched."""

    stride: tuple[int, int]  # of the searched layer
    first: tuple[int, int]  # row and column that the first element of its kernel takes for the first output
    dilation: tuple[int, int]
    group: tuple[int, int]  # channels that come in and go out of one of its groups
    norm: np.ndarray  # gamma, beta and eps of the batch norm behind it, or nothing
    kind: int  # of what lies between it and the layer that the change enters, as in LINK
    weights: np.ndarray  # (C, rows, columns, 1, C') of that layer, by the channel that comes in
    enter_stride: tuple[int, int]
    enter_padding: tuple[int, int]
    links: np.ndarray  # (L,) of LINK: the convolutions behind that layer
    numbers: np.ndarray
    norms: np.ndarray  # gamma, beta and eps of each batch norm
    classes: int


class State(NamedTuple):
    """A mini-batch: what the network puts out for it as it is, and what the candidates last tried put out."""

    inputs: np.ndarray  # (C, M, H, W): what the searched layer takes, by channel
    rows: np.ndarray  # (N,) of M: the mini-batch; (0,): all of them
    z: np.ndarray  # (N, C, H', W'): what the searched layer puts out; of `channel`, `planes` has it
    channel: np.ndarray  # (1,): whose planes are there; -1: none
    place: np.ndarray  # (3,): where in the following the candidates are
    planes: np.ndarray  # (3, N, 1, H', W'): the channel
    ready: np.ndarray  # (3, N, 1, H'', W''): the channel behind batch norm, ReLU and pooling
    entered: np.ndarray  # (3, N, H, W, C'): what the layer puts out that the change enters
    outputs: np.ndarray  # (3, N, 1, 1, C'): of the network
    rooms: np.ndarray  # (3, 2, ...): for what the layers in between put out, in turn
    targets: np.ndarray  # (N,)


@compiled
def cross_entropy(outputs: np.ndarray, targets: np.ndarray, classes: int) -> float:
    """The mean over outputs (N, 1, 1, C'), of which the first `classes` count."""
    total = 0.0
    for n in range(len(targets)):
        z = outputs[n, 0, 0, :classes]
        largest, exponentials = _exponentials(z, classes - 1, z[classes - 1])
        total += math.log(exponentials) + (largest - z[targets[n]])
    return total / len(targets)


@compiled
def _input(state: State, channel: int, room: np.ndarray) -> np.ndarray:
    """What weights multiply (N, H, W): a channel that comes in, for the rows of the mini-batch."""
    if len(state.rows) == 0:
        return state.inputs[channel]
    for n in range(len(state.rows)):
        kernels.copy(state.inputs[channel, state.rows[n]], room[n])
    return room


@compiled
def _run_links(way: Way, state: State, place: int, mean: np.ndarray, squares: np.ndarray) -> None:
    """From what was entered in this place, and its moments, to the network's outputs."""
    current = state.entered[place]
    count = len(current)
    for number in range(len(way.links)):
        link = way.links[number]
        inputs = current.shape[3]
        norm = way.norms[link.norm : link.norm_end]
        scale64, offset64 = kernels.normalised(mean, squares, current.size // inputs, norm)
        scale, offset, kind = scale64.astype(current.dtype), offset64.astype(current.dtype), link.kind
        if kind >= MEAN:
            means = np.empty((count, 1, 1, inputs), current.dtype)
            kernels.pool(current, scale, offset, kind - MEAN, means.reshape(count, inputs))
            current, kind = means, 0
            scale, offset = np.ones_like(scale), np.zeros_like(offset)
        w = way.numbers[link.weight : link.bias].reshape(link.rows, link.columns, inputs, link.channels)
        bias = way.numbers[link.bias : link.bias_end]
        if number == len(way.links) - 1:
            target = state.outputs[place]
        else:
            size = count * link.height * link.width * link.channels
            target = state.rooms[place, number % 2, :size].reshape(count, link.height, link.width, link.channels)
        by, padding = (link.down, link.right), (link.top, link.left)
        mean, squares = kernels.convolve(current, scale, offset, kind, w, bias, by, padding, target)
        current = target


@compiled
def _change_channel(way: Way, state: State, channel: int) -> None:
    """Have in place 0 of `planes` and `ready` what the searched layer puts out in this channel."""
    place, before = state.place[0], state.channel[0]
    plane = state.planes[place]
    for n in range(len(plane)):
        if before >= 0:
            kernels.copy(plane[n, 0], state.z[n, before])
        kernels.copy(state.z[n, channel], plane[n, 0])
    state.channel[0] = channel
    # as a candidate that changes nothing, so that the numbers are the same down to the last bit
    nothing = np.zeros((len(plane), 1, 1), plane.dtype)
    mean, squares = kernels.step(plane, nothing, 0.0, way.stride, way.first, state.planes[state.place[1]])
    scale, offset = _scale_and_offset(way, mean, squares, plane.size, channel)
    kernels.prepare_planes(plane, scale, offset, way.kind, state.ready[place])


@compiled
def _scale_and_offset(way: Way, mean: np.ndarray, squares: np.ndarray, count: int, channel: int) -> tuple[float, float]:
    """Of one channel, in the batch norm behind the searched layer."""
    channels = len(way.norm) // 2
    norm = way.norm
    if channels > 0:
        norm = np.array([way.norm[channel], way.norm[channels + channel], way.norm[-1]])
    scale, offset = kernels.normalised(mean, squares, count, norm)
    return scale[0], offset[0]


@compiled
def search(
    way: Way,
    state: State,
    index: np.ndarray,
    values: np.ndarray,
    tried: tuple[int, int],
    penalties: np.ndarray,
    begin: bool,
    decide: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Lines 13-14 for weights (P,), one after another: the losses (P, 3), NaN where not tried, and the choices (P,).

    index (P, 4): output channel, input channel and kernel element of each weight; input channel -1: it multiplies 1.
    values (P, 3): of each candidate. tried: the first candidate, and the one after the last. penalties (P, 3), or
    nothing: see `Evaluator.search`. begin: first run what lies behind the layer that changes enter, as the network is.
    decide: whether the chosen candidates are kept; otherwise nothing is, and the choices are 0.
    """
    if begin:
        mean, squares = kernels.moments(state.entered[state.place[0]])
        _run_links(way, state, state.place[0], mean, squares)
    count, _, height, width = state.z.shape
    room = np.empty((count, *state.inputs.shape[2:]), state.z.dtype)
    ones = np.ones((count, height, width), state.z.dtype)
    losses, choices = np.full((len(index), 3), np.nan), np.zeros(len(index), np.int64)
    current = cross_entropy(state.outputs[state.place[0]], state.targets, way.classes)
    accepted = 0.0  # what the accepted changes have added to the penalty
    for p in range(len(index)):
        i, j, a, b = index[p]
        if i != state.channel[0]:
            _change_channel(way, state, i)
        if j < 0:
            x, stride, first = ones, (1, 1), (0, 0)
        else:
            inputs, out = way.group
            x, stride = _input(state, i // out * inputs + j, room), way.stride
            first = (way.first[0] + a * way.dilation[0], way.first[1] + b * way.dilation[1])
        losses[p, 0] = current
        for k in range(tried[0], tried[1]):
            delta = values[p, k] - values[p, 0]
            losses[p, k] = current
            if delta == 0:
                continue
            old, new = state.place[0], state.place[k]
            plane = state.planes[new]
            mean, squares = kernels.step(state.planes[old], x, delta, stride, first, plane)
            scale, offset = _scale_and_offset(way, mean, squares, plane.size, i)
            mean, squares = kernels.enter(
                plane,
                scale,
                offset,
                way.kind,
                state.ready[old],
                state.ready[new],
                way.weights[i],
                way.enter_stride,
                way.enter_padding,
                state.entered[old],
                state.entered[new],
            )
            _run_links(way, state, new, mean, squares)
            losses[p, k] = cross_entropy(state.outputs[new], state.targets, way.classes)
        if decide:
            found = losses[p].copy()
            if len(penalties) > 0:
                losses[p] += penalties[p] + accepted
            choice = _choose(losses[p])
            if choice > 0:
                keep(state, choice)
                current = found[choice]
                if len(penalties) > 0:
                    accepted += penalties[p, choice] - penalties[p, 0]
            choices[p] = choice
    return losses, choices


@compiled
def _choose(losses: np.ndarray) -> int:
    """As `rso.choose`."""
    best = 0
    for k in range(1, 3):
        better = losses[k] < losses[best] or not math.isfinite(losses[best])
        if math.isfinite(losses[k]) and better:
            best = k
    return best


@compiled
def keep(state: State, k: int) -> None:
    """What candidate k put out is what the network puts out."""
    state.place[0], state.place[k] = state.place[k], state.place[0]


class LastState(NamedTuple):
    """A mini-batch where the searched layer is linear, and what it puts out are the network's outputs."""

    inputs: np.ndarray  # (F, M): what the layer takes, by feature
    rows: np.ndarray  # (N,) of M: the mini-batch; (0,): all of them
    outputs: np.ndarray  # (N, C)
    targets: np.ndarray  # (N,)


@compiled
def search_last(
    state: LastState, index: np.ndarray, values: np.ndarray, tried: tuple[int, int], penalties: np.ndarray, decide: bool
) -> tuple[np.ndarray, np.ndarray]:
    """As `search`. A weight moves one output, so the sum of exponentials changes by one term."""
    z, targets = state.outputs, state.targets
    count = len(z)
    last = z.shape[1] - 1
    largest, sums = np.empty(count), np.empty(count)
    for n in range(count):
        largest[n], sums[n] = _exponentials(z[n], last, z[n, last])
    current = 0.0
    for n in range(count):
        current += (math.log(sums[n]) + (largest[n] - z[n, targets[n]])) / count
    x = np.empty(count, z.dtype)
    losses, choices = np.full((len(index), 3), np.nan), np.zeros(len(index), np.int64)
    accepted = 0.0  # what the accepted changes have added to the penalty
    for p in range(len(index)):
        i, j = index[p, 0], index[p, 1]
        take_feature(state, j, x)
        losses[p, 0] = current
        for k in range(tried[0], tried[1]):
            delta = z.dtype.type(values[p, k] - values[p, 0])
            total = 0.0
            for n in range(count):
                moved = z[n, i] + delta * x[n]
                most, exponentials = _with_one_moved(z[n], i, moved, largest[n], sums[n])
                target = moved if targets[n] == i else z[n, targets[n]]
                total += (math.log(exponentials) + (most - target)) / count
            losses[p, k] = total
        if decide:
            found = losses[p].copy()
            if len(penalties) > 0:
                losses[p] += penalties[p] + accepted
            choice = choices[p] = _choose(losses[p])
            if choice > 0:
                delta = z.dtype.type(values[p, choice] - values[p, 0])
                for n in range(count):
                    moved = z[n, i] + delta * x[n]
                    largest[n], sums[n] = _with_one_moved(z[n], i, moved, largest[n], sums[n])
                    z[n, i] = moved
                current = found[choice]
                if len(penalties) > 0:
                    accepted += penalties[p, choice] - penalties[p, 0]
    return losses, choices


@compiled
def take_feature(state: LastState, feature: int, x: np.ndarray) -> None:
    """What weights multiply, for the rows of the mini-batch, into x (N,); feature -1: ones."""
    for n in range(len(x)):
        row = n if len(state.rows) == 0 else state.rows[n]
        x[n] = 1 if feature < 0 else state.inputs[feature, row]


@compiled
def _exponentials(z: np.ndarray, c: int, moved: float) -> tuple[float, float]:
    """The largest of z (C,), with `moved` in place c, and the sum of the exponentials of what each is below it."""
    largest = np.float64(moved)
    for other in range(len(z)):
        if other != c:
            largest = max(largest, np.float64(z[other]))
    total = 0.0
    for other in range(len(z)):
        total += math.exp((moved if other == c else z[other]) - largest)
    return largest, total


@compiled
def _with_one_moved(z: np.ndarray, c: int, moved: float, largest: float, total: float) -> tuple[float, float]:
    """`_exponentials`, given them for z as it is."""
    before = math.exp(z[c] - largest)
    if moved > largest:
        return np.float64(moved), (total - before) * math.exp(largest - moved) + 1
    changed = total + (math.exp(moved - largest) - before)  # exactly `total` where nothing moves
    if changed < 1e-3 * total:  # few of its digits are left
        return _exponentials(z, c, moved)
    return largest, changed
