"""Any path behind a searched layer: what of it is kept, and how a change runs along it.

A batch norm cannot put out its first number before it has seen the whole mini-batch. So the path behind a layer is cut
into *stages*, a new one at each batch norm, and within a stage the mini-batch runs in pieces that stay in the
processor's cache.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from rso_lab.fused import Kernels, fits, fuse, gamma_and_beta, step, takes_step
from rso_lab.graph import Array, Moments, Network, Values, measure, merge_shared, pieces, scale_and_offset
from rso_lab.linear import Columns
from rso_lab.paths import Change, Part, Path, Span, enters, first_input
from rso_lab.rso import Choice
from rso_lab.visits import Index
from rso_lab.workers import Workers

PIECE_BYTES = 2**20  # of a piece's largest activation: half of a usual second-level cache
COMPILED = 2**16  # numbers that a candidate's run writes from which on the compiled kernels pay


class Staged:
    """A mini-batch of `size` rows on a path: what is kept of it, and what the candidates compute."""

    def __init__(self, network: Network, path: Path, examples: Values, workers: Workers, size: int):
        self.network, self.path, self.examples, self.workers, self.size = network, path, examples, workers, size
        self.kept: Values = {}  # what nodes put out with the network as it is
        self.changed: dict[Choice, Values] = {"minus": {}, "plus": {}}  # what those behind a change put out
        self.feeding_norms = {part.source for part in path.parts if part.kind == "norm"}
        everything, moving = path.parts, [part for part in path.parts if part.node in path.affected]
        self.numbers = size * sum(self.width(part.node, True) for part in moving)
        self.kernels: Any = Kernels() if path.in_pieces and self.numbers > COMPILED and fits(examples) else None
        if self.kernels:
            everything, moving = fuse(everything, path, examples, False), fuse(moving, path, examples, True)
        self.everything, self.moving = _stages(everything), _stages(moving)
        self.parts_of_stage = {parts[0].stage: parts for parts in self.moving}

    @torch.no_grad()
    def begin(self, given: Values, x: Tensor | Columns, targets: Tensor) -> Tensor:
        """The outputs of the network as it is, given what enters the path, and x, what the searched layer takes."""
        self.x = x
        self.kept.update(given)
        self.given = given
        self.in_pieces = self.path.in_pieces and all(len(value) == self.size for value in given.values())
        self.gamma_beta = {part.node: gamma_and_beta(part.module) for part in self.path.parts if part.kind == "norm"}
        self.pieces = {
            (parts[0].stage, changed): self.cut(parts, changed)
            for parts in self.everything
            for changed in (False, True)
        }
        self.planes: dict[int, Values] = {}  # what is kept of a channel by itself
        self.taken: dict[int, Tensor] = {}
        if self.kernels:
            self.kernels.weights.pop((self.path.origin.node, None), None)  # which have changed since
        run = Run(self, {}, self.kept, None)
        run_stages([run], self.everything, self.workers.count)
        self.moments = run.moments
        return self.kept[self.path.output]

    def prepare(self, name: str, index: Index) -> None:
        """Have ready, each in one stretch of memory, what a weight's channel put out and what the weight multiplies.

        The channel is computed once more, alone as the candidates compute it: so a change that dies out leaves exactly
        what is kept, down to the last bit.
        """
        origin = self.path.origin
        if name == "weight":
            self.take(index)
        channel = index[0]
        if channel in self.planes:
            return
        spans, values = self.path.spans[channel], self.changed["plus"]
        plane = self.kept[origin.node][:, channel : channel + 1].clone(memory_format=torch.contiguous_format)
        planes = self.planes[channel] = {origin.node: plane}
        alone = {part.node for part in self.path.alone if spans[part.node] is not None}
        again = alone & self.path.kept - {origin.node}
        if again:
            parts = [
                part
                for stage in self.moving
                for part in stage
                if part.node in alone or (part.kind == "enter" and part.source in alone)
            ]
            run_stages([Run(self, spans, values, Change("bias", (channel,), 0.0))], _stages(parts), 1)
            planes |= {node: values.pop(node) for node in again}

    def take(self, index: Index) -> Tensor:
        """What a weight multiplies (B, ...): its input channel, for gamma its normalised channel."""
        origin = self.path.origin
        i, j = (*index, *index)[:2]
        if isinstance(origin.module, nn.Conv2d):
            j = _input_channel(origin.module, i, j)
        if j not in self.taken:
            taken = self.x[:, j].contiguous()
            if origin.kind == "norm":
                mean, variance = (float(moment[j]) for moment in self.moments[origin.source])
                taken = (taken - mean).mul_((variance + origin.module.eps) ** -0.5)
            if isinstance(origin.module, nn.Linear):
                self.taken.clear()  # there are many
            self.taken[j] = taken
        return self.taken[j]

    def run_changed(self, changes: dict[Choice, Change]) -> list[Tensor]:
        """The outputs after each change, one of each candidate."""
        if not changes:
            return []
        runs = [
            Run(self, self.path.spans[change.index[0]], self.changed[candidate], change)
            for candidate, change in changes.items()
        ]
        alone = self.network.ranks.count == 1  # else the candidates go together
        run_stages(runs, self.moving, self.workers.count // 2 if alone else self.workers.count)
        return [run.values[self.path.output] for run in runs]

    def keep(self, candidate: Choice, change: Change) -> None:
        """What this candidate computed is what the network puts out now."""
        changed, planes = self.changed[candidate], self.planes[change.index[0]]
        for node, span in self.path.spans[change.index[0]].items():
            if node in planes:
                planes[node], changed[node] = changed[node], planes[node]
                if node in self.path.filled_up:
                    self.kept[node][:, span] = planes[node]
            elif node in self.path.kept and span is None:
                self.kept[node], changed[node] = changed[node], self.kept[node]
            elif node in self.path.kept:
                self.kept[node][:, span] = changed[node]

    def cut(self, parts: list[Part], changed: bool) -> list[slice]:
        """The rows of the mini-batch, in as few pieces as leave the largest activation of a stage in the cache.

        For a change, or for the network as it is; the same ones where a batch norm follows, whose statistics depend on
        them in their last bits. To the kernels they hardly matter: these go image by image.
        """
        if not self.in_pieces:
            return [slice(0, self.size)]
        moving = self.parts_of_stage.get(parts[0].stage, [])
        changed = changed or any(part.node in self.feeding_norms for part in moving)
        parts = moving if changed else parts
        largest = max((self.width(part.node, changed) * self.itemsize(part.node) for part in parts), default=1)
        by_kernels = all(part.kind in ("convolve", "enter", "pool") for part in parts)
        return pieces(self.size, max(1, PIECE_BYTES * (16 if by_kernels else 1) // max(1, largest)))

    @np.errstate(over="ignore", invalid="ignore")
    def affine(self, part: Part, span: Span, mean: Array, variance: Array) -> tuple[Array, Array]:
        """Scale and offset (C,) that make a batch norm, float64."""
        gamma, beta = (numbers if span is None else numbers[span] for numbers in self.gamma_beta[part.node])
        make = self.kernels.affine if self.kernels else scale_and_offset
        return make(mean, variance, gamma, beta, part.module.eps)

    def width(self, node: fx.Node, changed: bool) -> int:
        """How many numbers a node puts out for a row, all of them or those behind a change."""
        value = self.examples.get(node)
        if not isinstance(value, Tensor) or value.dim() == 0:
            return 0
        span = self.path.spans[0].get(node) if changed else None
        return value[:1].numel() if span is None else value[:1, span].numel()

    def itemsize(self, node: fx.Node) -> int:
        """Bytes of a number that a node puts out."""
        value = self.examples.get(node)
        return value.element_size() if isinstance(value, Tensor) else 0


@dataclass
class Run:
    """One run along the path: of the network as it is, or of what a change affects."""

    staged: Staged
    spans: dict[fx.Node, Span]  # where the change is in the affected nodes; {} for the network as it is
    values: Values  # what outlives its stage
    change: Change | None
    moments: dict[fx.Node, tuple[Array, Array]] = field(default_factory=dict)  # mean and variance, for batch norms
    affine: dict[fx.Node, tuple[Array, Array]] = field(default_factory=dict)  # scale and offset, of batch norms

    def pass_stage(self, parts: list[Part], team: int) -> list[dict[fx.Node, Moments]]:
        """Run a stage on so many threads. Returns each piece's moments of what the next batch norms take."""
        for norm in (part for whole in parts for part in (*whole.prologue, whole)):
            if norm.kind == "norm" and norm.source in self.moments:
                self.affine[norm.node] = self.staged.affine(norm, self.spans.get(norm.node), *self.moments[norm.source])
        pieces = self.staged.pieces[parts[0].stage, bool(self.spans)]
        self.direct = len(pieces) == 1 and self.staged.kernels is None
        if not self.direct:
            self.make_room(parts)
        return self.staged.workers.run([partial(self.run_piece, parts, piece) for piece in pieces], team)

    def make_room(self, parts: list[Part]) -> None:
        """Have a place for all rows of what outlives the stage."""
        path = self.staged.path
        for part in (inner for whole in parts for inner in (*whole.prologue, whole)):
            node = part.node
            if not self.outlives(node):
                continue
            example, span = self.staged.examples[node], self.spans.get(node)
            channels = example.shape[1] if span is None else span.stop - span.start
            if node not in self.values or self.values[node].shape[1] != channels:
                shape = (self.staged.size, channels, *example.shape[2:])
                by_channel = (node in path.split and part.kind != "convolve") or len(shape) != 4
                layout = torch.contiguous_format if by_channel else torch.channels_last
                self.values[node] = torch.empty(shape, dtype=example.dtype, device=example.device, memory_format=layout)

    def run_piece(self, parts: list[Part], piece: slice) -> dict[fx.Node, Moments]:
        """Run the parts of a stage for some rows. Returns the moments of what batch norms take."""
        now: Values = {}
        moments: dict[fx.Node, Moments] = {}
        for part in parts:
            node = part.node
            if part.kind == "given" and node not in self.staged.given:
                continue  # a layer's inputs, where its outputs are given
            fused = self.fused(part, piece, now) if self.staged.kernels else None
            if fused is not None:
                now[node], moments[node] = fused
                continue
            value = now[node] = self.compute(part, piece, now)
            if self.outlives(node):
                if self.direct:
                    self.values[node] = value
                else:
                    self.values[node][piece] = value
            if node in self.staged.feeding_norms:
                moments[node] = measure(value)
        return {node: moments[node] for node in moments if node in self.staged.feeding_norms}

    def compute(self, part: Part, piece: slice, now: Values) -> Any:
        """What a node puts out for some rows, in its span."""
        node, module = part.node, part.module
        if self.is_given(node):
            return self.rows(self.staged.given[node], piece)
        if part is self.staged.path.origin and self.change is not None:
            return self.stepped(self.change, piece)
        span = self.spans.get(node)
        if part.kind == "mix":
            if enters(part, self.spans):
                return self.entered(part, piece, now)
            x = self.fetch(part.source, None, piece, now)
            if x.dim() != 4:
                return module(x)
            x = module(x.contiguous(memory_format=torch.channels_last))
            return x.contiguous(memory_format=torch.channels_last)  # the max pooling of others is slow
        if part.kind == "norm":
            x = self.fetch(part.source, span, piece, now)
            shape = (-1, *[1] * (x.dim() - 2))
            scale, offset = (torch.from_numpy(numbers).to(x.dtype).view(shape) for numbers in self.affine[node])
            return torch.addcmul(offset, x, scale)
        if part.kind == "flatten":
            return self.fetch(part.source, self.spans.get(part.source), piece, now).flatten(1)
        if part.kind == "channelwise" and module is not None:
            x = self.fetch(part.source, span, piece, now)
            return module(x.clone() if self.staged.network.changes_its_input(node) else x)
        return self.called(node, lambda n: self.fetch(n, span, piece, now))

    def called(self, node: fx.Node, fetch: Callable[[fx.Node], Any]) -> Any:
        """What torch's own call puts out."""
        writes = self.staged.network.changes_its_input(node)

        def argument(n: fx.Node) -> Any:
            value = fetch(n)
            if writes:
                return value.clone()
            return value.contiguous() if isinstance(value, Tensor) and not self.staged.in_pieces else value

        arguments = map_arg(node.args, argument), map_arg(node.kwargs, argument)
        if node.op == "output":
            return arguments[0][0]
        return getattr(self.staged.network, node.op)(node.target, *arguments)

    def stepped(self, change: Change, piece: slice) -> Tensor:
        """What the searched layer puts out in the channel of a weight that makes this step."""
        origin = self.staged.path.origin
        z = self.before(origin.node, piece).clone()
        if change.parameter == "bias":
            return z.add_(change.step)
        x = self.rows(self.staged.take(change.index), piece)
        if not isinstance(origin.module, nn.Conv2d):
            z[:, 0].add_(x, alpha=change.step)
            return z
        (rows, from_rows), (columns, from_columns) = (
            _reach(origin.module, axis, k, x.shape[1 + axis], z.shape[2 + axis])
            for axis, k in enumerate(change.index[2:])
        )
        z[:, 0, rows, columns].add_(x[:, from_rows, from_columns], alpha=change.step)
        return z

    def before(self, node: fx.Node, piece: slice) -> Tensor:
        """What is kept of the span in which a node's output changes."""
        assert self.change is not None
        value = self.staged.planes[self.change.index[0]].get(node)
        return self.rows(self.staged.kept[node][:, self.spans[node]] if value is None else value, piece)

    def entered(self, part: Part, piece: slice, now: Values) -> Tensor:
        """What a layer puts out that mixes the change of some channels into its outputs."""
        span: Any = self.spans[part.source]
        out = self.spans[part.node]
        change = self.fetch(part.source, span, piece, now) - self.before(part.source, piece)
        kept = self.rows(self.staged.kept[part.node], piece)
        layer = part.module
        if isinstance(layer, nn.Linear):
            return torch.addmm(kept, change, layer.weight[:, span].T)
        weight, inputs = layer.weight, span
        if out is not None:  # within a group
            kept, weight = kept[:, out], weight[out]
            inputs = slice(span.start % weight.shape[1], (span.stop - 1) % weight.shape[1] + 1)
        return kept + F.conv2d(change, weight[:, inputs], None, layer.stride, layer.padding, layer.dilation)

    def fused(self, part: Part, piece: slice, now: Values) -> tuple[Tensor, Any] | None:
        """What a part that the kernels take puts out, with its moments; None for the other parts."""
        kernels, path = self.staged.kernels, self.staged.path
        if part is path.origin and self.change is not None and takes_step(part, self.change):
            z, out = self.before(part.node, piece), self.values[part.node][piece]
            i, j, a, b = self.change.index if self.change.step else (self.change.index[0], 0, 0, 0)  # no step: any one
            x = self.rows(self.staged.take((i, j)), piece)
            return out, step(z, x, self.change.step, part.module, (a, b), out)
        if part.kind not in ("convolve", "enter", "pool"):
            return None
        first = (*part.prologue, part)[0]
        affine = self.affine.get(first.node)
        x = self.fetch(first.source, self.spans.get(first.source), piece, now)
        if part.kind == "pool":
            return kernels.pool(part, x, affine), None
        out = self.values[part.node][piece] if self.outlives(part.node) else self.empty(part.node, piece)
        if part.kind == "convolve":
            return out, kernels.convolve(part, x, affine, out)
        source = part.source
        span = self.spans[source]
        assert span is not None
        after = self.values[source][piece] if part.prologue else x
        kept, channel = self.staged.kept[part.node][piece], span.start
        return out, kernels.enter(part, x, affine, self.before(source, piece), channel, after, kept, out)

    def fetch(self, node: fx.Node, wanted: Span, piece: slice, now: Values) -> Any:
        """What a node put out for some rows, in the wanted span."""
        if node not in self.spans and self.spans:
            value = self.rows(self.staged.kept[node], piece)
            return value if wanted is None else value[:, wanted]
        value = now[node] if node in now else self.rows(self.values[node], piece)
        span = self.spans.get(node)
        if span == wanted:
            return value
        full = self.rows(self.staged.kept[node], piece).clone()
        full[:, span] = value
        return full

    def empty(self, node: fx.Node, piece: slice) -> Tensor:
        """Room for some rows of what a convolution puts out."""
        example = self.staged.examples[node]
        shape = (piece.stop - piece.start, *example.shape[1:])
        return torch.empty(shape, dtype=example.dtype, memory_format=torch.channels_last)

    def rows(self, value: Any, piece: slice) -> Any:
        """Some rows of what is there for the whole mini-batch."""
        return value if piece.stop - piece.start == self.staged.size else value[piece]

    def is_given(self, node: fx.Node) -> bool:
        """Whether the node's values entered with the mini-batch."""
        return not self.spans and (node in self.staged.given or node in self.staged.path.given)

    def outlives(self, node: fx.Node) -> bool:
        """Whether a node's values are needed after its stage."""
        return node in self.staged.path.stored and not self.is_given(node)


@torch.no_grad()
def run_stages(runs: list[Run], stages: list[list[Part]], team: int) -> None:
    """Pass stage after stage, all runs the same ones: after each, ranks tell each other about all of them at once."""
    for parts in stages:
        found = [run.pass_stage(parts, team) for run in runs]
        for node in found[0][0]:
            several = [[moments[node] for moments in pieces] for pieces in found]
            for run, merged in zip(runs, merge_shared(several, runs[0].staged.network.ranks), strict=True):
                run.moments[node] = merged


def _stages(parts: list[Part]) -> list[list[Part]]:
    return [list(group) for _, group in groupby(parts, key=lambda part: part.stage)]


def _input_channel(layer: nn.Conv2d, i: int, j: int) -> int:
    """The input channel that weight[i, j] multiplies, in a grouped convolution too."""
    return i // (layer.out_channels // layer.groups) * layer.weight.shape[1] + j


def _reach(layer: nn.Conv2d, axis: int, k: int, size: int, out_size: int) -> tuple[slice, slice]:
    """Along an axis of an image: the outputs that kernel element k reaches, and the inputs that they take it to."""
    stride = layer.stride[axis]
    first = first_input(layer, axis, k)
    begin = max(0, -(first // stride))
    end = max(begin, min(out_size, (size - 1 - first) // stride + 1))
    inputs = slice(begin * stride + first, max(0, (end - 1) * stride + first + 1), stride)
    return slice(begin, end), inputs if end > begin else slice(0, 0)
