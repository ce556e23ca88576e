"""The search along a path on which each layer takes what the one before puts out, by compiled loops.

`find_segments` tells whether a path is of this kind. Then `Straight` has what `search_loops.search` takes: the weights
behind the searched layer, and what the network puts out for a mini-batch.
"""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from rso_lab.fused import fits, gamma_and_beta, is_pool_2x2, is_relu, kernels
from rso_lab.graph import Array, Network, Values, measure
from rso_lab.linear import Columns
from rso_lab.paths import Part, Path, change_of, first_input, multiply_adds
from rso_lab.rso import Proposal

if kernels is not None:
    from rso_lab import search_loops

ONE_PIECE = 2**24  # bytes of the largest activation up to which a mini-batch is searched in one piece
AT_ONCE = 2**28  # multiply-adds that are searched before the caller has the choices: some tenths of a second


def are_compiled() -> bool:
    """Whether numba has kept the compiled loops of an earlier process."""
    folder = search_loops.search.stats.cache_path
    return bool(folder) and any(FilePath(folder).glob("search_loops.search-*.nbi"))


@dataclass(frozen=True)
class Segment:
    """A convolution or linear layer of a path, and what lies between it and the one before."""

    norm: nn.Module | None
    kind: int  # of kernels.convolve
    layer: Part
    inputs: tuple[int, int, int]  # channels, height and width of what the layer takes: a linear one, before it is flat
    outputs: tuple[int, int, int]


def find_segments(path: Path, examples: Values) -> list[Segment] | None:
    """What lies behind the searched layer; None where the path branches, or has a part that the loops do not know.

    Empty where the searched layer is linear and puts out the network's outputs.
    """
    if not fits(examples) or len(path.given) != 1 or (path.origin.kind == "mix" and not _is_plain(path.origin, True)):
        return None
    segments: list[Segment] = []
    between: list[Part] = []
    before = path.origin.node
    for part in path.parts:
        if part.node not in path.affected or part is path.origin:
            continue
        if part.node.all_input_nodes != [before] or len(before.users) != 1:
            return None
        if part.kind == "output":
            break
        before = part.node
        if part.kind != "mix":
            between.append(part)
            continue
        segment = _segment(between, part, examples)
        if segment is None:
            return None
        segments.append(segment)
        between = []
    last = segments[-1].layer.module if segments else path.origin.module
    return segments if not between and isinstance(last, nn.Linear) and path.output.args == (before,) else None


def _is_plain(layer: Part, searched: bool) -> bool:
    """Whether the loops know this convolution or linear layer; where it is `searched`, also one of groups."""
    module = layer.module
    if isinstance(module, nn.Linear):
        return True
    return searched or (module.groups == 1 and set(module.dilation) == {1} and not isinstance(module.padding, str))


def _segment(between: list[Part], layer: Part, examples: Values) -> Segment | None:
    """The layer, if the loops know it, and batch norm, ReLU, pooling and flatten in this order are all before it."""
    norm, kind, places = None, 0, [-1]
    shape = examples[layer.source].shape[1:]
    for part in between:
        if isinstance(part.module, nn.Identity | _DropoutNd):
            continue
        if part.kind == "norm":
            places.append(0)
            norm = part.module
        elif is_relu(part):
            places.append(1)
            kind += 1
        elif is_pool_2x2(part):
            places.append(2)
            kind += 2 if isinstance(part.module, nn.AvgPool2d) else 4
        elif isinstance(part.module, nn.AdaptiveAvgPool2d) and part.module.output_size in (1, (1, 1)):
            places.append(2)
            kind += kernels.MEAN
        elif part.kind == "flatten":
            places.append(3)
            shape = examples[part.source].shape[1:]
        else:
            return None
    in_order = all(a < b for a, b in itertools.pairwise(places))
    if not in_order or not _is_plain(layer, False):
        return None
    return Segment(norm, kind, layer, _image(shape), _image(examples[layer.node].shape[1:]))


def _image(shape: torch.Size) -> tuple[int, int, int]:
    """Channels, height and width; features are channels of one pixel."""
    channels, height, width = (*shape, 1, 1)[:3]
    return channels, height, width


def _padded(channels: int) -> int:
    return -(-channels // kernels.VECTOR) * kernels.VECTOR


def _weight_and_bias(segment: Segment, padded_inputs: bool) -> tuple[Array, Array]:
    """(rows, columns, C, C') and (C',), C' padded, and C too if told; a linear layer's kernel covers all its input."""
    module = segment.layer.module
    channels, height, width = segment.inputs
    weight = module.weight.detach()
    if isinstance(module, nn.Linear):
        weight = weight.view(-1, channels, height, width)
    out, inputs, rows, columns = weight.shape
    room = weight.new_zeros(rows, columns, _padded(inputs) if padded_inputs else inputs, _padded(out))
    room[:, :, :inputs, :out] = weight.permute(2, 3, 1, 0)
    bias = weight.new_zeros(_padded(out))
    if module.bias is not None:
        bias[:out] = module.bias.detach()
    return room.numpy(), bias.numpy()


def _norm(module: Any, channels: int) -> Array:
    """Gamma and beta, padded to so many channels, and eps, of a batch norm, float64; of none, nothing."""
    if module is None:
        return np.zeros(0)
    gamma, beta = (np.pad(numbers, (0, channels - len(numbers))) for numbers in gamma_and_beta(module))
    return np.concatenate([gamma, beta, [module.eps]])


def _stride_and_padding(module: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    return ((1, 1), (0, 0)) if isinstance(module, nn.Linear) else (module.stride, module.padding)


class Geometry(NamedTuple):
    """Of the searched layer, as `search_loops.Way` has it."""

    stride: tuple[int, int] = (1, 1)
    first: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    group: tuple[int, int] = (0, 1)


def _geometry(module: Any) -> Geometry:
    if not isinstance(module, nn.Conv2d):
        return Geometry()
    group = module.in_channels // module.groups, module.out_channels // module.groups
    first = first_input(module, 0, 0), first_input(module, 1, 0)
    stride: Any = module.stride
    dilation: Any = module.dilation
    return Geometry(stride, first, dilation, group)


def _widths(path: Path, examples: Values, segments: list[Segment]) -> list[tuple[int, int]]:
    """Numbers for a row of what is put out from the searched layer on: those that a change reaches, and all of them."""
    z, entering = _image(examples[path.origin.node].shape[1:]), segments[0].inputs
    behind = [math.prod(segment.outputs[1:]) * _padded(segment.outputs[0]) for segment in segments]
    alone = [(math.prod(shape[1:]), math.prod(shape)) for shape in (z, entering)]
    return alone + [(width, width) for width in behind]


def is_one_piece(path: Path, examples: Values, segments: list[Segment], size: int) -> bool:
    """Whether what a mini-batch of this size needs is small enough to be there at once."""
    largest = max(width for _, width in _widths(path, examples, segments))
    return size * largest * examples[path.origin.node].element_size() <= ONE_PIECE


class Straight:
    """A mini-batch of `size` rows on such a path: what is kept of it, and what the candidates put out."""

    def __init__(self, network: Network, path: Path, examples: Values, size: int, segments: list[Segment]):
        self.network, self.path, self.size = network, path, size
        enter, *links = segments
        self.position = network.nodes.index(path.origin.node)
        self.enter = enter.layer.node
        of_z = _image(examples[path.origin.node].shape[1:])
        dtype = examples[path.origin.node].numpy().dtype
        weights, _ = _weight_and_bias(enter, False)
        stride, padding = _stride_and_padding(enter.layer.module)
        channels, height, width = enter.outputs
        self.way = search_loops.Way(
            *_geometry(path.origin.module),
            _norm(enter.norm, of_z[0]),
            enter.kind,
            np.ascontiguousarray(weights.transpose(2, 0, 1, 3)[:, :, :, None]),
            stride,
            padding,
            *_links(links, channels, dtype),
            segments[-1].outputs[0],
        )
        widths = _widths(path, examples, segments)
        self.numbers = size * sum(width for width, _ in widths)  # that a candidate's run writes
        work = [multiply_adds(part, path.spans[0], examples) for part in path.parts if part.node in path.affected]
        self.at_once = max(1, AT_ONCE // (size * sum(work) + 4 * self.numbers))
        entered = np.zeros((3, size, height, width, _padded(channels)), dtype)
        last = _padded(segments[-1].outputs[0])
        largest = max((math.prod(link.outputs[1:]) * _padded(link.outputs[0]) for link in links), default=0)
        self.state = search_loops.State(
            inputs=np.empty((0, 0, 0, 0), dtype),
            rows=np.empty(0, np.int64),
            z=np.empty((0, 0, 0, 0), dtype),
            channel=np.array([-1]),
            place=np.arange(3),
            planes=np.empty((3, size, 1, *of_z[1:]), dtype),
            ready=np.empty((3, size, 1, *enter.inputs[1:]), dtype),
            entered=entered,
            outputs=np.empty((3, size, 1, 1, last), dtype) if links else entered,
            rooms=np.empty((3, 2, size * largest), dtype),
            targets=np.empty(0, np.int64),
        )

    def begin(self, given: Values, x: Tensor | Columns, targets: Tensor) -> Tensor:
        """Outputs (B, classes) of the network as it is, given what enters the path, and x, which the layer takes."""
        origin = self.path.origin.node
        if origin not in given:
            given = self.network.propagate(
                given, self.position, self.position + 1, batch_statistics_from=self.position, keep=[origin]
            )
        z = given[origin].clone(memory_format=torch.contiguous_format)
        stop = self.network.nodes.index(self.enter) + 1
        found = self.network.propagate(
            {origin: z}, self.position + 1, stop, batch_statistics_from=self.position, keep=[self.enter]
        )
        inputs, rows = _by_channel(x, self.path.origin)
        self.state = self.state._replace(
            inputs=inputs, rows=rows, z=z.numpy().reshape(*z.shape, *(1,) * (4 - z.dim())), targets=targets.numpy()
        )
        self.state.channel[0] = -1
        entered = found[self.enter].numpy()
        entered = entered.reshape(*entered.shape, *(1,) * (4 - entered.ndim))
        self.state.entered[self.state.place[0]][..., : entered.shape[1]] = entered.transpose(0, 2, 3, 1)
        nothing = _read([], self.path.origin)
        search_loops.search(self.way, self.state, *nothing, (1, 1), _numbers(None), True, False)
        return self.outputs(0)

    def outputs(self, candidate: int) -> Tensor:
        """The network's outputs (B, classes) at a candidate last tried."""
        return torch.from_numpy(self.state.outputs[self.state.place[candidate], :, 0, 0, : self.way.classes])

    def search(
        self, proposals: list[Proposal], tried: tuple[int, int], penalties: Tensor | None, decide: bool
    ) -> tuple[Array, Array]:
        """See `search_loops.search`."""
        moves = _read(proposals, self.path.origin)
        return search_loops.search(self.way, self.state, *moves, tried, _numbers(penalties), False, decide)

    def prepare(self, proposal: Proposal) -> float:
        """Have ready what the candidates of this one begin with: then they can be tried side by side. The loss of w."""
        losses, _ = self.search([proposal], (1, 1), None, False)
        return losses[0, 0]

    def outputs_at(self, proposal: Proposal, candidate: int) -> Tensor:
        """The network's outputs (B, classes) with the weight at this candidate's value."""
        self.search([proposal], (candidate, candidate + 1), None, False)
        return self.outputs(candidate if change_of(proposal, candidate).step else 0)

    def keep(self, proposal: Proposal, candidate: int) -> None:
        """What this candidate, of the proposal tried last, put out is what the network puts out now."""
        search_loops.keep(self.state, candidate)


def _links(links: list[Segment], inputs: int, dtype: Any) -> tuple[Array, Array, Array]:
    """The convolutions behind the layer that changes enter, as `search_loops.Way` has them."""
    table = np.zeros(len(links), search_loops.LINK)
    numbers, norms = [np.zeros(0, dtype)], [np.zeros(0)]
    at = at_norm = 0
    for row, link in zip(table, links, strict=True):
        weight, bias = _weight_and_bias(link, True)
        norm = _norm(link.norm, _padded(inputs))
        _, height, width = link.outputs
        at_bias = at + weight.size
        rows, columns = weight.shape[:2]
        stride, padding = _stride_and_padding(link.layer.module)
        places = link.kind, at_norm, at_norm + len(norm), at, at_bias, at_bias + len(bias), rows, columns
        for name, number in zip(
            search_loops.FIELDS, (*places, height, width, len(bias), *stride, *padding), strict=True
        ):
            row[name] = number
        numbers += [weight.reshape(-1), bias]
        norms.append(norm)
        at, at_norm, inputs = at_bias + len(bias), at_norm + len(norm), link.outputs[0]
    return table, np.concatenate(numbers), np.concatenate(norms)


class LastLinear:
    """The same where the searched layer is linear, and what it puts out are the network's outputs."""

    numbers = 0  # that a candidate's run writes: few

    def __init__(self, path: Path, size: int):
        self.path, self.size = path, size
        self.at_once = max(1, AT_ONCE // (100 * size))  # an exponential takes as long as a hundred multiply-adds

    def begin(self, given: Values, x: Tensor | Columns, targets: Tensor) -> Tensor:
        """As Straight."""
        origin = self.path.origin
        z = given[origin.node] if origin.node in given else origin.module(x)
        self.z = z.clone(memory_format=torch.contiguous_format)
        inputs, rows = _by_channel(x, origin)
        self.state = search_loops.LastState(inputs[:, :, 0, 0], rows, self.z.numpy(), targets.numpy())
        return self.z

    def search(
        self, proposals: list[Proposal], tried: tuple[int, int], penalties: Tensor | None, decide: bool
    ) -> tuple[Array, Array]:
        """As Straight."""
        moves = _read(proposals, self.path.origin)
        return search_loops.search_last(self.state, *moves, tried, _numbers(penalties), decide)

    def prepare(self, proposal: Proposal) -> float:
        """As Straight; nothing is kept of a channel."""
        losses, _ = self.search([proposal], (1, 1), None, False)
        return losses[0, 0]

    def outputs_at(self, proposal: Proposal, candidate: int) -> Tensor:
        """As Straight."""
        z = self.z.clone()
        self._move(z, proposal, candidate)
        return z

    def keep(self, proposal: Proposal, candidate: int) -> None:
        """As Straight."""
        self._move(self.z, proposal, candidate)

    def _move(self, z: Tensor, proposal: Proposal, candidate: int) -> None:
        ((i, j, *_),) = _read([proposal], self.path.origin)[0]
        x = np.empty(len(z), self.state.outputs.dtype)
        search_loops.take_feature(self.state, j, x)
        z[:, i].add_(torch.from_numpy(x), alpha=change_of(proposal, candidate).step)


def _by_channel(x: Tensor | Columns, origin: Part) -> tuple[Array, Array]:
    """What weights of the layer multiply, by channel (C, M, H, W), and which rows (N,) of M; (0,): all of them."""
    if isinstance(x, Columns):
        return x.x.numpy()[:, :, None, None], x.rows.numpy()
    if origin.kind == "norm":  # gamma multiplies the channel normalised
        mean, squares, count = measure(x)
        shape = (1, -1, *(1,) * (x.dim() - 2))
        scale = torch.from_numpy((squares / count + origin.module.eps) ** -0.5).to(x.dtype)
        x = (x - torch.from_numpy(mean).to(x.dtype).view(shape)).mul_(scale.view(shape))
    found = x.transpose(0, 1).contiguous().numpy()
    return found.reshape(*found.shape, *(1,) * (4 - found.ndim)), np.empty(0, np.int64)


def _read(proposals: list[Proposal], origin: Part) -> tuple[Array, Array]:
    """Index (P, 4) and values (P, 3) as `search_loops.search` takes them."""
    index = np.zeros((len(proposals), 4), np.int64)
    for row, proposal in zip(index, proposals, strict=True):
        (name,) = proposal.candidates
        place = proposal.index
        if name.endswith("bias"):
            place = (place[0], -1)
        elif origin.kind == "norm":
            place = (place[0], place[0])
        row[: len(place)] = place
    values = [next(iter(proposal.candidates.values())) for proposal in proposals]
    return index, torch.stack(values).double().numpy() if values else np.zeros((0, 3))


def _numbers(penalties: Tensor | None) -> Array:
    return np.zeros((0, 3)) if penalties is None else penalties.numpy()
