"""The incremental evaluator in plain torch operations, for tensors of any device.

A change travels as in `incremental`. But here the whole mini-batch goes at once, the candidates stand side by side in a
first dimension (S, B, ...), and which weight moves, and how far, is read from tensors of the device. So the operations
are the same for every weight of a layer, nothing waits for the host, and a GPU gets them as one CUDA graph, which is
recorded once for a layer and replayed for each weight.

S: the network as it is, plus, minus. Where the change is still in its channels the network as it is goes along, so that
a change which dies out is exactly 0. Where it has entered all channels, the loss of the network as it is is known.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from rso_lab.data import Data
from rso_lab.fused import is_relu
from rso_lab.graph import Layer, Network, Values, in_float32
from rso_lab.paths import Part, Path, Span, enters, find_path, first_input
from rso_lab.ranks import ALONE, Ranks
from rso_lab.rso import CachedEvaluator, Decide, LossFunction, Proposal, as_loss, choose

try:
    from rso_lab import gpu_kernels
except ImportError:  # Triton is missing
    gpu_kernels = None  # type: ignore[assignment]

AT_ONCE = 256  # proposals that a GPU searches before the caller has the choices: some tenths of a second


class OnDeviceEvaluator(CachedEvaluator):
    """Computes only what a change can change, where the data are.

    Layers whose changes cannot be followed, proposals of more than one weight, and mini-batches that ranks share are
    left to the activation cache. `use_graphs`: whether a GPU gets CUDA graphs.
    """

    name = "incremental"
    use_graphs = True

    def __init__(self, network: Network, data: Data, loss: LossFunction, ranks: Ranks = ALONE):
        super().__init__(network, data, loss, ranks)
        self.followed: Followed | None = None
        x = data.x_train[:2]
        with torch.no_grad():
            self.examples = {network.input: x, **network.propagate({network.input: x}, keep=network.nodes[1:])}

    def begin_sweep(self, layer: Layer | None, rows: int) -> None:
        """Fill the activation cache where it pays, and find the path behind the layer."""
        self._forget()
        super().begin_sweep(layer, rows)
        followable = layer is not None and self.ranks.count == 1
        path = find_path(self.network, layer, self.examples) if followable and layer else None
        self.path = path if path and _are_alike(path.spans) else None

    def begin_batch(self, rows: Tensor) -> None:
        """Run the path with the network as it is, for what is kept."""
        super().begin_batch(rows)
        if self.path is None:
            return
        if self.followed is None or self.followed.size != len(rows):
            self._forget()
            self.followed = Followed(self.network, self.path, self.examples, len(rows), self.loss_function)
            self.followed.use_graphs = self.use_graphs and self.targets.is_cuda
        self.followed.begin(self.values, self.targets)

    def _forget(self) -> None:
        """Free what was followed. torch frees the memory of a graph that is gone only when told, outside of graphs."""
        if self.followed is None:
            return
        self.followed = None
        if self.data.x_train.is_cuda:
            torch.cuda.empty_cache()

    def search(
        self, proposals: list[Proposal], opposite: bool, penalties: Tensor | None, decide: Decide
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """On the device: choices are read when the caller wants them."""
        if self.path is None or self.followed is None or decide is not choose:
            yield from super().search(proposals, opposite, penalties, decide)
            return
        self.followed.take(proposals, opposite, penalties)
        at_once = 1 if self.targets.is_cpu else AT_ONCE
        for first in range(0, len(proposals), at_once):
            yield self.followed.search(slice(first, min(first + at_once, len(proposals))))

    def losses(self, proposals: list[Proposal], opposite: bool) -> Tensor:
        """The current loss is known; a candidate's takes what its change can change."""
        if self.path is None or self.followed is None:
            return super().losses(proposals, opposite)
        self.followed.take(proposals, opposite, None)
        return self.followed.losses()

    def commit(self, proposal: Proposal, choice: Tensor) -> None:
        """What the chosen candidate computed is kept."""
        if self.path is not None and self.followed is not None:
            self.followed.commit(choice.view(1))


def _are_alike(spans: list[dict[fx.Node, Span]]) -> bool:
    """Whether a change of any channel covers as many channels in the same nodes."""
    widths = [{node: span and span.stop - span.start for node, span in of.items()} for of in spans]
    return all(other == widths[0] for other in widths)


class Followed:
    """A mini-batch of `size` rows on a path: what is kept of it, and what the candidates compute."""

    use_graphs = False

    def __init__(self, network: Network, path: Path, examples: Values, size: int, loss: LossFunction):
        self.network, self.path, self.examples, self.size, self.loss_function = network, path, examples, size, loss
        self.spans = path.spans[0]  # those of the other channels are as wide
        parameter: Tensor = next(network.module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.starts = {
            node: torch.tensor([of[node].start for of in path.spans], device=self.device)  # type: ignore[union-attr]
            for node, span in self.spans.items()
            if span is not None
        }
        self.moving = [part for part in path.parts if part.node in path.affected]
        self.last_use: dict[fx.Node, Part] = {n: part for part in self.moving for n in part.node.all_input_nodes}
        entering = {part.node for part in self.moving if enters(part, self.spans)}
        self.replaced = {path.origin.node, *path.filled_up, *entering}  # by a choice
        beside = {n for part in self.moving if part is not path.origin for n in part.node.all_input_nodes}
        self.needed = self.replaced | (beside - path.affected)
        self.reach = _reach(path.origin, examples)
        self.compiled = gpu_kernels is not None and self.dtype == torch.float32 and self.device.type == "cuda"
        self.reference: dict[fx.Node, Tensor] = {}
        self.graphs: dict[str, Any] = {}
        self.kept: Values = {}
        self.entered: dict[str, Tensor] = {}
        self.slots, self.moves = 0, torch.empty(0, 0)

    @torch.no_grad()
    def begin(self, given: Values, targets: Tensor) -> None:
        """Run the network as it is, as far as it is needed, given what enters the path."""
        path, network = self.path, self.network
        position = network.nodes.index(path.origin.node)
        behind = [node for node in network.nodes if node in self.needed and node not in given]
        found: Values = {}
        for group in [[node] for node in behind] if network.writes_in_place else [behind]:  # before it is written over
            stop = 1 + network.nodes.index(group[-1])
            found |= network.propagate(given, position, stop, batch_statistics_from=position, keep=group)
        for node in self.needed:
            self._set(self.kept, node, found[node] if node in found else given[node])
        x = given[path.origin.source]
        if path.origin.kind == "norm":
            ones = torch.ones_like(path.origin.module.running_mean)
            x = normalised(x[None], ones, torch.zeros_like(ones), path.origin.module.eps)[0]
        x = x.flatten(2).transpose(0, 1) if x.dim() > 2 else x.T[:, :, None]
        if self.reach is not None:
            x = F.pad(x, (0, 1))  # what the padding holds
        self._set(self.entered, "x", x)
        self._set(self.entered, "targets", targets)

    def _set(self, place: dict, key: Any, value: Any) -> None:
        """Into the memory that graphs read, where there is some."""
        known = place.get(key)
        if isinstance(known, Tensor) and isinstance(value, Tensor) and known.shape == value.shape:
            known.copy_(value)
        elif isinstance(value, Tensor):
            channels_last = self.compiled and key in self.replaced and self.spans[key] is None and value.dim() == 4
            layout = torch.channels_last if channels_last else torch.contiguous_format
            place[key] = value.clone(memory_format=layout)
        else:
            place[key] = value

    @torch.no_grad()
    def take(self, proposals: list[Proposal], opposite: bool, penalties: Tensor | None) -> None:
        """Have everything about these proposals on the device, and the loss of the network as it is."""
        names = [next(iter(proposal.weights)) for proposal in proposals]
        self.kinds = ["weight" if name.rpartition(".")[2] == "weight" else "bias" for name in names]
        indices = [self._index(kind, proposal.index) for kind, proposal in zip(self.kinds, proposals, strict=True)]
        values = torch.stack([p.candidates[name] for p, name in zip(proposals, names, strict=True)])[:, : 2 + opposite]
        moves = (values.double() - values[:, :1].double()).to(self.dtype)  # exact: of what the weight would become
        count, slots = moves.shape
        self.many = count > 1
        fresh = self.slots != slots or len(self.moves) < count
        if fresh:
            self.graphs.clear()
            self.slots = slots
            self.moves = moves.new_zeros(count, slots)
            self.at = torch.zeros(1, dtype=torch.long, device=self.device)
            self.indices = torch.zeros(count, 3, dtype=torch.long, device=self.device)
            self.penalties = torch.zeros(count, 3, dtype=torch.float64, device=self.device)
            self.found = torch.full((count, 3), math.nan, dtype=torch.float64, device=self.device)
            self.chosen = torch.zeros(count, dtype=torch.long, device=self.device)
            self.current = torch.zeros(1, dtype=torch.float64, device=self.device)
            self.accepted = torch.zeros(1, dtype=torch.float64, device=self.device)
        host = torch.tensor(indices)
        self.indices[:count].copy_(host.pin_memory() if self.device.type == "cuda" else host, non_blocking=True)
        self.penalties[:count] = 0 if penalties is None else penalties
        self.moves.zero_()
        self.at.zero_()
        self.accepted.zero_()
        if fresh and self.compiled:
            self.run(self.kinds[0], self.many)  # for `reference`
        if self.many:
            self.play(f"{self.kinds[0]} current", functools.partial(self._measure, self.kinds[0]))
        self.moves[:count].copy_(moves)

    @torch.no_grad()
    def _measure(self, kind: str) -> None:
        """The loss of the network as it is: with a change of 0."""
        self.current.copy_(self.run(kind, self.many)[:1])

    def _index(self, kind: str, index: tuple[int, ...]) -> tuple[int, int, int]:
        """Of a weight: its output channel, the channel that it multiplies, and its place in the kernel."""
        origin, i = self.path.origin, index[0]
        if origin.kind == "norm" or kind == "bias":
            return i, i if origin.kind == "norm" else 0, 0
        if not isinstance(origin.module, nn.Conv2d):
            return i, index[1], 0
        layer = origin.module
        group = i // (layer.out_channels // layer.groups)
        return i, group * layer.weight.shape[1] + index[1], index[2] * layer.kernel_size[1] + index[3]

    def search(self, which: slice) -> tuple[Tensor, Tensor]:
        """These of the proposals, one after another. Returns losses (p, 3) and choices (p,)."""
        for kind in self.kinds[which]:
            self.step(kind)
        return self.found[which].clone(), self.chosen[which].clone()

    def losses(self) -> Tensor:
        """Of all proposals (P, 3), each as if no other were proposed."""
        for kind in self.kinds:
            self.try_one(kind)
            self.at.add_(1)
        self.at.sub_(1)  # for `commit`
        return self.found[: len(self.kinds)].clone()

    def step(self, kind: str) -> None:
        """Search the next proposal."""
        self.play(f"{kind} {self.many}", functools.partial(self._step, kind))

    def play(self, key: str, work: Callable[[], None]) -> None:
        """Do the work, by its CUDA graph from the second time on."""
        if not self.use_graphs or key not in self.graphs:
            work()  # once as it is: libraries prepare themselves
            self.graphs[key] = None
            return
        if self.graphs[key] is None:
            try:
                self.graphs[key] = captured(work)
            except RuntimeError as error:
                warnings.warn(f"CUDA graphs are off for {self.path.origin.node}: {error}", stacklevel=2)
                self.use_graphs = False
                work()
                return
        self.graphs[key].replay()

    @torch.no_grad()
    def _step(self, kind: str) -> None:
        if self.compiled:
            losses = self.run(kind, self.many)
            accounts = self.penalties, self.current, self.accepted, self.at, self.found, self.chosen
            choice = gpu_kernels.decide(losses, *accounts, self.slots)
            if self.many:
                self.keep(choice)
            return
        self.try_one(kind)
        choice = choose(self.found.index_select(0, self.at)[0]).view(1)
        self.chosen.index_copy_(0, self.at, choice)
        if self.many:
            self.commit(choice)
        self.at.add_(1)

    @torch.no_grad()
    def try_one(self, kind: str) -> None:
        """The candidates' losses of the next proposal."""
        losses = self.run(kind, self.many)
        if self.many:
            losses = torch.cat([self.current, losses])
        penalties = self.penalties.index_select(0, self.at)[0, : self.slots] + self.accepted
        row = F.pad(losses + penalties, (0, 3 - self.slots), value=math.nan)
        self.found.index_copy_(0, self.at, row[None])
        self.tried = losses

    @torch.no_grad()
    def commit(self, choice: Tensor) -> None:
        """Keep what the candidate `choice` (1,) has computed last, and its loss."""
        self.accepted += self.penalties.index_select(0, self.at).index_select(1, choice)[0]
        self.accepted -= self.penalties.index_select(0, self.at)[0, :1]
        self.current.copy_(self.tried.index_select(0, choice))
        self.keep(choice)

    def keep(self, choice: Tensor) -> None:
        """Keep what the candidate has computed last."""
        for node in self.replaced:
            kept, values = self.kept[node], _stacked(self.computed[node])
            if self.spans[node] is not None:  # all slots, some channels
                kept.index_copy_(1, self.channels(node), values.index_select(0, choice)[0])
            elif self.compiled and self.first and gpu_kernels.alike(kept, values[0]):
                gpu_kernels.keep(kept, values, choice)
            elif self.first == 0:
                kept.copy_(values.index_select(0, choice)[0])
            else:
                changed = values.index_select(0, (choice - 1).clamp_(min=0))[0]
                torch.where(choice == 0, kept, changed, out=kept)

    @in_float32
    def run(self, kind: str, without_current: bool) -> Tensor:
        """The losses of the next proposal's candidates (S,), float64, that of the network as it is left out or not."""
        self.first = int(without_current)
        self.index = self.indices.index_select(0, self.at)[0]
        self.channel, self.input, self.place = self.index.split(1)
        self.move = self.moves.index_select(0, self.at)[0]
        self.computed: dict[fx.Node, Any] = {}
        self.sums: dict[fx.Node, Tensor] = {}
        for part in self.moving:
            self.computed[part.node] = self.stepped(kind) if part is self.path.origin else self.compute(part)
            for node in part.node.all_input_nodes:
                if self.last_use.get(node) is part and node not in self.replaced:
                    self.computed.pop(node, None)
        outputs = _stacked(self.computed.pop(self.path.output))
        targets = self.entered["targets"]
        if self.loss_function is F.cross_entropy:
            each = F.cross_entropy(outputs.flatten(0, 1), targets.repeat(len(outputs)), reduction="none")
            return each.view(len(outputs), -1).mean(1).double()
        return torch.stack([as_loss(self.loss_function(output.clone(), targets), self.device) for output in outputs])

    def stepped(self, kind: str) -> Tensor:
        """What the searched layer puts out, in the channel of the weight, for every candidate."""
        z = self.kept[self.path.origin.node]
        inside = self.spans[self.path.origin.node] is not None
        if self.compiled and inside and z.is_contiguous():
            x = None if kind == "bias" else self.entered["x"]
            reference = self._reference(self.path.origin.node, z.shape[1])
            y, sums = gpu_kernels.step(z, x, self.reach, self.index, self.move, reference)
            self.sums[self.path.origin.node] = sums
            return y
        z = z.index_select(1, self.channel) if inside else z
        move = self.move if inside else self.move[self.first :]
        move = move.view(-1, *[1] * z.dim())
        if kind == "bias":
            return z + move
        x = self.entered["x"].index_select(0, self.input)
        if self.reach is not None:
            x = x.index_select(2, self.reach.index_select(0, self.place)[0])
        return torch.addcmul(z, x.view(z.shape), move)

    def compute(self, part: Part) -> Any:
        """What a node puts out for every candidate, (S, B, ...) or one value for each."""
        node, module, span = part.node, part.module, self.spans[part.node]
        if part.kind == "mix":
            if enters(part, self.spans):
                return self.entering(part)
            value = self.fetch(part.source, node)
            if self.compiled and gpu_kernels.takes(module):
                return self.convolve(node, module, value, module.weight)
            return self.per_row(module, value)
        if part.kind == "norm":
            if part.source in self.sums and module.affine:
                x, count = self.computed[part.source], self.size * self.examples[node][0, 0].numel()
                sums, reference = self.sums.pop(part.source), self.reference[part.source]
                channel = None if span is None else self.channels(node)
                return Normalised(x, *gpu_kernels.scale_and_offset(sums, reference, count, module, channel))
            gamma, beta = _gamma_and_beta(module)
            if span is not None:
                at = self.channels(node)
                gamma, beta = gamma.index_select(0, at), beta.index_select(0, at)
            return normalised(_stacked(self.fetch(part.source, node)), gamma, beta, module.eps)
        if part.kind == "flatten":
            return _stacked(self.fetch(part.source, node)).flatten(2)
        if part.kind == "channelwise":
            value = self.fetch(part.source, node)
            if isinstance(value, Normalised) and is_relu(part):
                return replace(value, relu=True)
            window = _window(part, self.examples) if isinstance(value, Normalised) else None
            if window is not None:
                return gpu_kernels.average(value.x, (value.scale, value.offset), value.relu, window)
            if module is not None:
                return self.per_row(module, value)
            arguments = map_arg(node.args, lambda n: _rows(self.fetch(n, node)))
            named = map_arg(node.kwargs, lambda n: _rows(self.fetch(n, node)))
            value = self.call(node, arguments, named)
            return value.view(-1, self.size, *value.shape[1:])
        slots = range(self.slots - self.first)
        values = {n: _plain(self.fetch(n, node)) for n in node.all_input_nodes}
        if node.op == "output":
            return values[node.all_input_nodes[0]]
        each = [{n: value[s] for n, value in values.items()} for s in slots]
        return [self.call(node, map_arg(node.args, of.get), map_arg(node.kwargs, of.get)) for of in each]

    def call(self, node: fx.Node, arguments: Any, named: Any) -> Any:
        """What torch's own call puts out."""
        if self.network.changes_its_input(node):
            arguments, named = (_copied(given) for given in (arguments, named))
        return getattr(self.network, node.op)(node.target, arguments, named)

    def per_row(self, module: nn.Module, value: Any) -> Tensor:
        """The module, for every candidate's rows."""
        x = _rows(value)
        out = module(x.clone() if getattr(module, "inplace", False) else x)
        return out.view(-1, self.size, *out.shape[1:])

    def entering(self, part: Part) -> Tensor:
        """What a layer puts out that mixes the change of some channels into its outputs."""
        value, layer = _stacked(self.computed[part.source]), part.module
        inputs, inside = self.channels(part.source), self.spans[part.node] is not None
        kept, weight = self.kept[part.node], layer.weight
        if inside:  # within a group
            outputs = self.channels(part.node)
            kept, weight, inputs = kept.index_select(1, outputs), weight[outputs], inputs % weight.shape[1]
        change = (value if inside else value[self.first :]) - value[:1]
        weight = weight.index_select(1, inputs)
        if isinstance(layer, nn.Linear):
            return kept + change @ weight.T
        if self.compiled and not inside and gpu_kernels.takes(layer):
            return self.convolve(part.node, layer, change, weight, kept)
        moved = F.conv2d(change.flatten(0, 1), weight, None, layer.stride, layer.padding, layer.dilation)
        return moved.view(len(change), self.size, *moved.shape[1:]).add_(kept)

    def convolve(self, node: fx.Node, layer: Any, value: Any, weight: Tensor, kept: Tensor | None = None) -> Tensor:
        """A convolution by the compiled kernel; the sums for a batch norm behind it wait in `sums`."""
        reference = self._reference(node, len(weight))
        lazy = isinstance(value, Normalised)
        y, sums = gpu_kernels.convolve(
            value.x if lazy else _stacked(value),
            weight,
            layer,
            reference,
            normalised=(value.scale, value.offset) if lazy else None,
            relu=lazy and value.relu,
            kept=kept,
        )
        self.sums[node] = sums
        return y

    def _reference(self, node: fx.Node, channels: int) -> Tensor:
        """What sums of a node's channels are taken about: their means, as known last."""
        return self.reference.setdefault(node, self.moves.new_zeros(channels))

    def fetch(self, node: fx.Node, taker: fx.Node) -> Any:
        """What a node puts out for every candidate, as far as `taker` takes it: some channels, or all."""
        inside = self.spans[taker] is not None
        if node not in self.spans:  # the same for all
            value = self.kept[node]
            if not isinstance(value, Tensor):
                return [value] * self.slots
            value = value.index_select(1, self.channels(taker)) if inside else value
            return value.expand(self.slots - (0 if inside else self.first), *value.shape)
        value = self.computed[node]
        if inside or self.spans[node] is None:
            return value
        value = _stacked(value)[self.first :]
        full = self.kept[node].repeat(len(value), *[1] * self.kept[node].dim())
        full = full.view(len(value), *self.kept[node].shape)
        return full.index_copy_(2, self.channels(node), value)

    def channels(self, node: fx.Node) -> Tensor:
        """The channels in which the change is, of what a node puts out."""
        span: Any = self.spans[node]
        start = self.starts[node].index_select(0, self.channel)
        return (
            start if span.stop - span.start == 1 else start + torch.arange(span.stop - span.start, device=self.device)
        )


@dataclass(frozen=True)
class Normalised:
    """x (S, B, C, ...), times a scale and plus an offset (S, C), through a ReLU or not: computed where it is read."""

    x: Tensor
    scale: Tensor
    offset: Tensor
    relu: bool = False

    def tensor(self) -> Tensor:
        """Its values."""
        scale, offset = (a.view(len(a), 1, -1, *[1] * (self.x.dim() - 3)) for a in (self.scale, self.offset))
        value = torch.addcmul(offset, self.x, scale)
        return value.relu_() if self.relu else value


def normalised(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """Batch norm of x (S, B, C, ...), by the statistics of each of the S by itself."""
    dims = [1, *range(3, x.dim())]
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    shape = (-1, *[1] * (x.dim() - 3))
    # A variance that is not finite: of numbers too large to be squared, and of no loss that could win.
    scale = gamma.view(shape).double() / (variance.double() + eps).sqrt()
    scale = torch.where(variance.isfinite(), scale, math.nan)
    offset = beta.view(shape).double() - mean.double() * scale
    return torch.addcmul(offset.to(x.dtype), x, scale.to(x.dtype))


def captured(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """The work as a CUDA graph: recorded, not done."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            work()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph


def _reach(origin: Part, examples: Values) -> Tensor | None:
    """Which pixel of its input a convolution's kernel element takes to each output (kernel places, H' * W').

    One behind the last pixel where it takes the padding; None for other layers.
    """
    layer = origin.module
    if not isinstance(layer, nn.Conv2d):
        return None
    (height, width), (rows, columns) = (examples[node].shape[2:] for node in (origin.source, origin.node))
    device = layer.weight.device
    taken = []
    for axis, (size, count) in enumerate(((height, rows), (width, columns))):
        first = torch.tensor([first_input(layer, axis, k) for k in range(layer.kernel_size[axis])], device=device)
        at = first[:, None] + layer.stride[axis] * torch.arange(count, device=device)
        taken.append(torch.where((at >= 0) & (at < size), at, -1))
    down, right = taken[0][:, None, :, None], taken[1][None, :, None, :]
    pixels = torch.where((down < 0) | (right < 0), height * width, down * width + right)
    return pixels.flatten(2).flatten(0, 1)


def _gamma_and_beta(norm: Any) -> tuple[Tensor, Tensor]:
    if not norm.affine:
        return torch.ones_like(norm.running_mean), torch.zeros_like(norm.running_mean)
    return norm.weight, norm.bias


def _window(part: Part, examples: Values) -> tuple[int, int] | None:
    """Of a pooling that averages whole windows which do not overlap: how high and wide they are."""
    pool = part.module
    if isinstance(pool, nn.AdaptiveAvgPool2d) and pool.output_size in (1, (1, 1)):
        height, width = examples[part.source].shape[2:]
        return height, width
    if not isinstance(pool, nn.AvgPool2d) or pool.padding not in (0, (0, 0)) or pool.divisor_override or pool.ceil_mode:
        return None
    size, step = (a if isinstance(a, tuple) else (a, a) for a in (pool.kernel_size, pool.stride))
    return size if size == step else None


def _plain(value: Any) -> Any:
    return value.tensor() if isinstance(value, Normalised) else value


def _stacked(value: Any) -> Tensor:
    """The values of all candidates in one tensor (S, B, ...)."""
    value = _plain(value)
    return value if isinstance(value, Tensor) else torch.stack(value)


def _rows(value: Any) -> Any:
    """All candidates' rows below each other (S * B, ...)."""
    return _stacked(value).flatten(0, 1)


def _copied(given: Any) -> Any:
    """The arguments, their tensors copied."""
    return torch.utils._pytree.tree_map(lambda a: a.clone() if isinstance(a, Tensor) else a, given)
