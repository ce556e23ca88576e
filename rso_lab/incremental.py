"""The fast evaluator: a change travels through the network as a change, exactly.

One weight reaches one output channel of its layer. Behind the layer the change stays in a *span* of channels, through
batch norm, activation, pooling, flatten and addition, until a layer mixes the channels. There it *enters*: convolved
with the weights of its own channels, and added to the output that was kept. From there on all channels are computed.
When a candidate is chosen, what it computed becomes what is kept.

A batch norm cannot put out its first number before it has seen the whole mini-batch. So the path behind a layer is cut
into *stages*, a new one at each batch norm, and within a stage the mini-batch runs in pieces that stay in the
processor's cache.
"""

import math
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

from rso_lab.data import Data
from rso_lab.fused import Chain, Kernels, chain_length, fits, fuse, gamma_and_beta, step, takes_step
from rso_lab.graph import (
    Array,
    Layer,
    Moments,
    Network,
    Values,
    in_float32,
    measure,
    merge_shared,
    pieces,
    scale_and_offset,
)
from rso_lab.paths import Change, Part, Path, Span, enters, find_path, first_input
from rso_lab.ranks import ALONE, Ranks
from rso_lab.rso import CANDIDATES, CachedEvaluator, Choice, LossFunction, Proposal
from rso_lab.visits import Index
from rso_lab.workers import Workers, single_threaded, workers

PIECE_BYTES = 2**20  # of a piece's largest activation: half of a usual second-level cache
COMPILED = 2**16  # numbers that a candidate's run writes from which on the compiled kernels pay
THREADED = 2**18  # numbers that a candidate's run writes from which on threads pay


class IncrementalEvaluator(CachedEvaluator):
    """Computes only what a change can change, and keeps what it can for the next proposal on the same mini-batch.

    Layers whose changes cannot be followed, and proposals of more than one weight, are left to the activation cache.
    """

    name = "incremental"

    def __init__(self, network: Network, data: Data, loss: LossFunction, ranks: Ranks = ALONE):
        super().__init__(network, data, loss, ranks)
        self.workers = workers()
        torch.empty(31 * 2**18)  # freed at once: from here on glibc keeps what is freed, instead of new pages each time
        x = data.x_train[:2]
        with torch.no_grad():
            self.examples = {network.input: x, **network.propagate({network.input: x}, keep=network.nodes[1:])}

    @in_float32
    def begin_sweep(self, layer: Layer | None, rows: int) -> None:
        """Fill the activation cache where it pays, and find the path behind the layer."""
        self.passing: Passing | LastLinear | None = None  # its memory is needed now
        super().begin_sweep(layer, rows)
        self.path = None if layer is None else find_path(self.network, layer, self.examples)
        self.whole: WholeLinear | None = None
        if self.path and isinstance(self.path.origin.module, nn.Linear) and len(self.cache) == 1:
            readers = set(self.path.origin.source.users).intersection(self.network.nodes[self.position :])
            if readers == {self.path.origin.node}:
                self.whole = WholeLinear(self.path.origin.module, self.cache.pop(self.path.origin.source))

    def begin_batch(self, rows: Tensor) -> None:
        """Run the path with the network as it is, for what is kept and for the current loss."""
        if self.path is None:
            super().begin_batch(rows)
        else:
            rows = self.ranks.own(rows)
            self.begin_path(rows, {} if self.whole else self.entering(rows))

    @single_threaded
    @in_float32
    def begin_path(self, rows: Tensor, given: Values) -> None:
        """The same, given what enters the path."""
        assert self.path is not None
        self.targets = self.data.y_train[rows]
        if self.passing is None or self.passing.size != len(rows):
            last = self.whole and self.path.affected == {self.path.origin.node, self.path.output}
            made = LastLinear if last else Passing
            self.passing = made(self.network, self.path, self.examples, self.workers, len(rows))
        if self.whole:
            outputs = self.passing.begin({self.path.origin.node: self.whole.outputs(rows)}, self.whole.inputs(rows))
        else:
            outputs = self.passing.begin(given, given[self.path.origin.source])
        self.current = self.mean_loss(outputs)  # of this rank's images
        self.found: dict[Choice, float] = {}  # the candidates', of this rank's images

    def gather(self, values: Tensor, rows: Tensor, out: Tensor) -> None:
        """As the cached evaluator, each worker a share."""
        shares = pieces(len(rows), -(-len(rows) // self.workers.count) if out.numel() > THREADED else len(rows))
        self.workers.run([partial(torch.index_select, values, 0, rows[share], out=out[share]) for share in shares])

    @single_threaded
    @in_float32
    def losses(self, proposals: list[Proposal], opposite: bool) -> Tensor:
        """The current loss is known; a candidate's takes what its change can change."""
        if self.passing is None or self.path is None:
            return super().losses(proposals, opposite)
        if len(proposals) > 1 and not isinstance(self.path.origin.module, nn.Conv2d):  # settled for one weight only
            return torch.cat([self.losses([proposal], opposite) for proposal in proposals])
        for proposal in proposals:
            self.passing.settle(next(iter(proposal.weights)).rpartition(".")[2], proposal.index)
        tried = CANDIDATES[1:] if opposite else CANDIDATES[1:2]
        if self.ranks.count > 1:  # together: what ranks tell each other has an order, and takes long
            found = self.changed_losses(proposals, tried)
        else:
            tasks = [partial(self.changed_losses, proposals, (candidate,)) for candidate in tried]
            apart = len(proposals) * self.passing.numbers > THREADED
            found = [losses for (losses,) in self.workers.run(tasks, len(tasks) if apart else 1)]
        keep, untried = [self.current] * len(proposals), [math.nan] * len(proposals)
        own = torch.tensor([keep, *found, untried][:3], dtype=torch.float64)
        return self.ranks.mean(own, len(self.targets)).T

    def changed_losses(self, proposals: list[Proposal], tried: tuple[Choice, ...]) -> list[list[float]]:
        """This rank's losses (candidates, P) with each weight at a candidate's value, the others as they are."""
        assert self.passing is not None
        losses: dict[Choice, list[float]] = {candidate: [] for candidate in tried}
        for proposal in proposals:
            changes = {candidate: _change(proposal, candidate) for candidate in tried}
            moving = {candidate: change for candidate, change in changes.items() if change.step != 0}
            outputs = dict(zip(moving, self.passing.run_changed(moving), strict=True))
            for candidate in tried:
                losses[candidate].append(self.mean_loss(outputs[candidate]) if candidate in moving else self.current)
        self.found |= {candidate: found[-1] for candidate, found in losses.items()}
        return list(losses.values())

    @single_threaded
    def commit(self, proposal: Proposal, choice: Tensor) -> None:
        """What the chosen candidate computed is kept."""
        candidate = CANDIDATES[int(choice)]
        if self.passing is None or candidate == "keep":
            return
        change = _change(proposal, candidate)
        if change.step == 0:
            return
        self.passing.keep(candidate, change)
        self.current = self.found[candidate]
        if self.whole:
            self.whole.commit(change)

    def mean_loss(self, outputs: Tensor) -> float:
        """The loss function's, for the outputs (B, classes)."""
        if self.loss_function is F.cross_entropy:  # several times as fast with the classes first
            return float(F.cross_entropy(outputs.T.contiguous()[None], self.targets[None]))
        return float(self.loss_function(outputs.clone(memory_format=torch.contiguous_format), self.targets))


def _change(proposal: Proposal, candidate: Choice) -> Change:
    ((name, values),) = proposal.candidates.items()
    keep, *others = values.tolist()
    step = others[CANDIDATES.index(candidate) - 1] - keep  # exact: of what the weight would become
    return Change(name.rpartition(".")[2], proposal.index, step)


class WholeLinear:
    """What a searched linear layer takes and puts out for the whole training set.

    A weight touches a row of each, so that a new mini-batch costs no more than picking its columns.
    """

    def __init__(self, layer: nn.Linear, x: Tensor):
        self.x = x.T.contiguous()  # (in_features, N)
        self.z = layer.weight @ self.x  # (out_features, N)
        if layer.bias is not None:
            self.z += layer.bias[:, None]

    def outputs(self, rows: Tensor) -> Tensor:
        """For these rows (B, out_features)."""
        return self.z.index_select(1, rows).T

    def inputs(self, rows: Tensor) -> "Columns":
        """For these rows, by feature."""
        return Columns(self.x, rows)

    def commit(self, change: Change) -> None:
        """The weight now has this change."""
        row = self.z[change.index[0]]
        if change.parameter == "bias":
            row += change.step
        else:
            row.add_(self.x[change.index[1]], alpha=change.step)


@dataclass(frozen=True)
class Columns:
    """Columns of x (F, N) seen as a tensor (B, F), of which one feature at a time is looked at."""

    x: Tensor
    rows: Tensor

    def __getitem__(self, where: tuple[slice, int]) -> Tensor:
        """One feature (B,), of all rows."""
        return self.x[where[1]].index_select(0, self.rows)


class Passing:
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
        count = chain_length(moving) if self.kernels else 0
        self.chain = Chain(moving[:count], examples) if count else None
        self.behind_chain = _stages(moving[count:])
        self.parts_of_stage = {parts[0].stage: parts for parts in self.moving}

    @torch.no_grad()
    def begin(self, given: Values, x: "Tensor | Columns") -> Tensor:
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
        self.unbroken = all(len(self.pieces[parts[0].stage, True]) == 1 for parts in self.moving)
        self.planes: dict[int, Values] = {}  # what is kept of a channel by itself
        self.taken: dict[int, Tensor] = {}
        if self.kernels:
            self.kernels.weights.pop((self.path.origin.node, None), None)  # which have changed since
        run = Run(self, {}, self.kept, None)
        go([run], self.everything, self.workers.count)
        self.moments = run.moments
        return self.kept[self.path.output]

    def settle(self, name: str, index: Index) -> None:
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
            go([Run(self, spans, values, Change("bias", (channel,), 0.0))], _stages(parts), 1)
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
        alone = self.network.ranks.count == 1  # the chain has its batch norms' statistics for itself
        if self.chain and self.unbroken and alone and all(takes_step(self.path.origin, c) for c in changes.values()):
            for run in runs:
                run.take_chain(self.chain)
            go(runs, self.behind_chain, 1)
        else:
            go(runs, self.moving, self.workers.count // 2 if alone else self.workers.count)
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


class LastLinear:
    """In place of Passing, where the searched layer is linear and its outputs are the network's: nothing follows."""

    def __init__(self, network: Network, path: Path, examples: Values, workers: Workers, size: int):
        self.origin, self.size, self.numbers = path.origin.node, size, 0

    def begin(self, given: Values, x: "Tensor | Columns") -> Tensor:
        """As Passing."""
        self.x, self.outputs = x, given[self.origin]
        return self.outputs

    def settle(self, name: str, index: Index) -> None:
        """Fetch what the weight multiplies: for a bias, ones."""
        self.taken = self.x[:, index[1]] if name == "weight" else torch.ones((), dtype=self.outputs.dtype)

    def run_changed(self, changes: dict[Choice, Change]) -> list[Tensor]:
        """As Passing."""
        found = []
        for change in changes.values():
            outputs = self.outputs.clone()
            outputs[:, change.index[0]].add_(self.taken, alpha=change.step)
            found.append(outputs)
        return found

    def keep(self, candidate: Choice, change: Change) -> None:
        """As Passing."""
        self.outputs[:, change.index[0]].add_(self.taken, alpha=change.step)


@dataclass
class Run:
    """One run along the path: of the network as it is, or of what a change affects."""

    passing: Passing
    spans: dict[fx.Node, Span]  # where the change is in the affected nodes; {} for the network as it is
    values: Values  # what outlives its stage
    change: Change | None
    moments: dict[fx.Node, tuple[Array, Array]] = field(default_factory=dict)  # mean and variance, for batch norms
    affine: dict[fx.Node, tuple[Array, Array]] = field(default_factory=dict)  # scale and offset, of batch norms

    def pass_stage(self, parts: list[Part], team: int) -> list[dict[fx.Node, Moments]]:
        """Run a stage on so many threads. Returns each piece's moments of what the next batch norms take."""
        for norm in (part for whole in parts for part in (*whole.prologue, whole)):
            if norm.kind == "norm" and norm.source in self.moments:
                self.affine[norm.node] = self.passing.affine(
                    norm, self.spans.get(norm.node), *self.moments[norm.source]
                )
        pieces = self.passing.pieces[parts[0].stage, bool(self.spans)]
        self.direct = len(pieces) == 1 and self.passing.kernels is None
        if not self.direct:
            self.make_room(parts)
        return self.passing.workers.run([partial(self.run_piece, parts, piece) for piece in pieces], team)

    def take_chain(self, chain: Chain) -> None:
        """Run the first parts behind the change in one call."""
        assert self.change is not None
        self.make_room([chain.origin, chain.enter])
        node, source = chain.enter.node, chain.enter.source
        channel = self.change.index[0]
        self.values[chain.pool.node] = chain.run(
            self.before(chain.origin.node, slice(0, self.passing.size)),
            self.passing.take(self.change.index),
            self.change,
            self.values[chain.origin.node],
            self.before(source, slice(0, self.passing.size)),
            self.values[source],
            self.passing.kernels.entering_weight(chain.enter, channel),
            self.passing.kept[node],
            self.values[node],
        )

    def make_room(self, parts: list[Part]) -> None:
        """Have a place for all rows of what outlives the stage."""
        path = self.passing.path
        for part in (inner for whole in parts for inner in (*whole.prologue, whole)):
            node = part.node
            if not self.outlives(node):
                continue
            example, span = self.passing.examples[node], self.spans.get(node)
            channels = example.shape[1] if span is None else span.stop - span.start
            if node not in self.values or self.values[node].shape[1] != channels:
                shape = (self.passing.size, channels, *example.shape[2:])
                by_channel = (node in path.split and part.kind != "convolve") or len(shape) != 4
                layout = torch.contiguous_format if by_channel else torch.channels_last
                self.values[node] = torch.empty(shape, dtype=example.dtype, device=example.device, memory_format=layout)

    def run_piece(self, parts: list[Part], piece: slice) -> dict[fx.Node, Moments]:
        """Run the parts of a stage for some rows. Returns the moments of what batch norms take."""
        now: Values = {}
        moments: dict[fx.Node, Moments] = {}
        for part in parts:
            node = part.node
            if part.kind == "given" and node not in self.passing.given:
                continue  # a layer's inputs, where its outputs are given
            fused = self.fused(part, piece, now) if self.passing.kernels else None
            if fused is not None:
                now[node], moments[node] = fused
                continue
            value = now[node] = self.compute(part, piece, now)
            if self.outlives(node):
                if self.direct:
                    self.values[node] = value
                else:
                    self.values[node][piece] = value
            if node in self.passing.feeding_norms:
                moments[node] = measure(value)
        return {node: moments[node] for node in moments if node in self.passing.feeding_norms}

    def compute(self, part: Part, piece: slice, now: Values) -> Any:
        """What a node puts out for some rows, in its span."""
        node, module = part.node, part.module
        if self.is_given(node):
            return self.rows(self.passing.given[node], piece)
        if part is self.passing.path.origin and self.change is not None:
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
            return module(x.clone() if self.passing.network.changes_its_input(node) else x)
        return self.called(node, lambda n: self.fetch(n, span, piece, now))

    def called(self, node: fx.Node, fetch: Callable[[fx.Node], Any]) -> Any:
        """What torch's own call puts out."""
        writes = self.passing.network.changes_its_input(node)

        def argument(n: fx.Node) -> Any:
            value = fetch(n)
            if writes:
                return value.clone()
            return value.contiguous() if isinstance(value, Tensor) and not self.passing.in_pieces else value

        arguments = map_arg(node.args, argument), map_arg(node.kwargs, argument)
        if node.op == "output":
            return arguments[0][0]
        return getattr(self.passing.network, node.op)(node.target, *arguments)

    def stepped(self, change: Change, piece: slice) -> Tensor:
        """What the searched layer puts out in the channel of a weight that makes this step."""
        origin = self.passing.path.origin
        z = self.before(origin.node, piece).clone()
        if change.parameter == "bias":
            return z.add_(change.step)
        x = self.rows(self.passing.take(change.index), piece)
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
        value = self.passing.planes[self.change.index[0]].get(node)
        return self.rows(self.passing.kept[node][:, self.spans[node]] if value is None else value, piece)

    def entered(self, part: Part, piece: slice, now: Values) -> Tensor:
        """What a layer puts out that mixes the change of some channels into its outputs."""
        span: Any = self.spans[part.source]
        out = self.spans[part.node]
        change = self.fetch(part.source, span, piece, now) - self.before(part.source, piece)
        kept = self.rows(self.passing.kept[part.node], piece)
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
        kernels, path = self.passing.kernels, self.passing.path
        if part is path.origin and self.change is not None and takes_step(part, self.change):
            z, out = self.before(part.node, piece), self.values[part.node][piece]
            i, j, a, b = self.change.index if self.change.step else (self.change.index[0], 0, 0, 0)  # no step: any one
            x = self.rows(self.passing.take((i, j)), piece)
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
        kept, channel = self.passing.kept[part.node][piece], span.start
        return out, kernels.enter(part, x, affine, self.before(source, piece), channel, after, kept, out)

    def fetch(self, node: fx.Node, wanted: Span, piece: slice, now: Values) -> Any:
        """What a node put out for some rows, in the wanted span."""
        if node not in self.spans and self.spans:
            value = self.rows(self.passing.kept[node], piece)
            return value if wanted is None else value[:, wanted]
        value = now[node] if node in now else self.rows(self.values[node], piece)
        span = self.spans.get(node)
        if span == wanted:
            return value
        full = self.rows(self.passing.kept[node], piece).clone()
        full[:, span] = value
        return full

    def empty(self, node: fx.Node, piece: slice) -> Tensor:
        """Room for some rows of what a convolution puts out."""
        example = self.passing.examples[node]
        shape = (piece.stop - piece.start, *example.shape[1:])
        return torch.empty(shape, dtype=example.dtype, memory_format=torch.channels_last)

    def rows(self, value: Any, piece: slice) -> Any:
        """Some rows of what is there for the whole mini-batch."""
        return value if piece.stop - piece.start == self.passing.size else value[piece]

    def is_given(self, node: fx.Node) -> bool:
        """Whether the node's values entered with the mini-batch."""
        return not self.spans and (node in self.passing.given or node in self.passing.path.given)

    def outlives(self, node: fx.Node) -> bool:
        """Whether a node's values are needed after its stage."""
        return node in self.passing.path.stored and not self.is_given(node)


@torch.no_grad()
def go(runs: list[Run], stages: list[list[Part]], team: int) -> None:
    """Pass stage after stage, all runs the same ones: after each, ranks tell each other about all of them at once."""
    for parts in stages:
        found = [run.pass_stage(parts, team) for run in runs]
        for node in found[0][0]:
            several = [[moments[node] for moments in pieces] for pieces in found]
            for run, merged in zip(runs, merge_shared(several, runs[0].passing.network.ranks), strict=True):
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
