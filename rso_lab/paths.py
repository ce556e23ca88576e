"""What a change of one channel meets behind its layer: where it stays in its channel, where it enters all of them."""

import operator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from rso_lab.graph import Layer, Network, Values
from rso_lab.rso import Proposal
from rso_lab.visits import Index

Span = slice | None  # of channels or features, dimension 1; None: all of them
Kind = Literal[
    "given", "mix", "norm", "channelwise", "flatten", "rowwise", "other", "output", "convolve", "enter", "pool"
]

_ACTIVATIONS = (
    "ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Sigmoid Tanh Hardtanh Hardswish Hardsigmoid Softplus LogSigmoid "
    "Softsign Softshrink Hardshrink Tanhshrink Threshold Identity"
)
_FUNCTIONS = (
    "relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid softplus "
    "logsigmoid softsign softshrink hardshrink tanhshrink threshold dropout abs neg sign square sqrt exp sin cos clamp "
    "add sub mul div truediv gt lt ge le"
)
_METHODS = set(_FUNCTIONS.split()) | {"float", "double"}
_POINTWISE = {getattr(nn, name) for name in _ACTIVATIONS.split()} | {
    getattr(home, name) for home in (torch, F, operator) for name in _FUNCTIONS.split() if hasattr(home, name)
}
_POOLS = {  # and the rank that their input must have for dimension 1 to be the channels
    pool: n + 2
    for n in (1, 2)
    for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg")
    for pool in (getattr(nn, f"{kind}Pool{n}d"), getattr(F, f"{kind.replace('ve', 've_').lower()}_pool{n}d"))
}


@dataclass(frozen=True)
class Change:
    """Of one weight of the searched layer: `parameter[index] + step`."""

    parameter: str  # "weight" or "bias"
    index: Index
    step: float


def change_of(proposal: Proposal, candidate: int) -> Change:
    """What a candidate (its place in CANDIDATES) does to the one weight of a proposal."""
    ((name, values),) = proposal.candidates.items()
    keep, moved = values[[0, candidate]].tolist()
    return Change(name.rpartition(".")[2], proposal.index, moved - keep)  # exact: of what the weight would become


@dataclass(frozen=True)
class Part:
    """A node of the path."""

    node: fx.Node
    kind: Kind
    stage: int
    module: Any  # that it calls, or None
    prologue: tuple["Part", ...] = ()  # parts before it that are computed with it: batch norm, ReLU, pooling

    @property
    def source(self) -> fx.Node:
        """The node whose output it takes, where that is one."""
        return self.node.all_input_nodes[0]


@dataclass(frozen=True)
class Path:
    """What is computed behind a searched layer, the layer included."""

    origin: Part
    parts: list[Part]  # by stage, and within a stage in execution order; first what is given
    given: set[fx.Node]  # what enters it
    affected: set[fx.Node]  # by a change in the layer
    output: fx.Node
    spans: list[dict[fx.Node, Span]]  # for each channel of the layer, where its change is in each affected node
    alone: list[Part]  # the layer, and what takes nothing of the change but its span
    kept: set[fx.Node]  # whose values a candidate needs beside its own
    filled_up: set[fx.Node]  # those of which a candidate needs the other channels, too
    split: set[fx.Node]  # whose span is less than all channels, for one channel of the layer at least
    stored: set[fx.Node]  # whose values outlive their stage
    in_pieces: bool  # whether rows pass through it independently, batch norms aside


def find_path(network: Network, layer: Layer, examples: Values) -> Path | None:
    """The path behind a convolution, linear layer or batch norm; None where changes cannot be followed.

    `examples` holds what every node puts out for a few rows.
    """
    start = network.nodes[layer.position]
    output = network.nodes[-1]
    if layer.shared or not isinstance(examples[output], Tensor):
        return None  # a change in several places, or several outputs
    used = _ancestors(output)
    behind = [node for node in network.nodes[layer.position :] if node in used]
    if start not in used or any(network.changes_its_input(node) for node in network.nodes if node not in used):
        return None  # what is written into a tensor reaches the output by a way that the graph does not show
    constants = [n for node in behind for n in node.all_input_nodes if n.op == "get_attr"]
    given = network.frontier(layer.position)
    parts = [Part(node, "given", 0, None) for node in given]
    stages = dict.fromkeys(given, 0)
    affected = {start}
    for node in dict.fromkeys([*constants, *behind]):
        kind = kind_of(node, network, examples)
        if network.changes_its_input(node) and not _alone(node, kind, parts):
            return None
        stages[node] = max((stages.get(n, 0) for n in node.all_input_nodes), default=0) + (kind == "norm")
        parts.append(Part(node, kind, stages[node], _module(node, network)))
        if affected.intersection(node.all_input_nodes):
            affected.add(node)
    origin = next(part for part in parts if part.node is start)
    if origin.kind not in ("mix", "norm"):
        return None
    parts.sort(key=lambda part: part.stage)
    moving = [part for part in parts if part.node in affected and part is not origin]
    spans = [_spans(channel, origin, moving, examples) for channel in range(examples[start].shape[1])]
    alone = [origin]
    for part in moving:
        if part.kind in ("norm", "channelwise", "flatten"):
            inside = {other.node for other in alone}
            if all(n in inside or n not in affected for n in part.node.all_input_nodes):
                alone.append(part)
    kept, split, filled_up = {start}, {start}, set()
    for of_channel in spans:
        split |= {node for node, span in of_channel.items() if span is not None}
        for part in moving:
            needed = _needed(part, of_channel)
            kept |= needed
            filled_up |= set() if enters(part, of_channel) else needed & affected
    later = {n for part in parts for n in part.node.all_input_nodes if stages.get(n, part.stage) < part.stage}
    in_pieces = all(part.kind != "other" for part in parts)
    return Path(
        origin,
        parts,
        set(given),
        affected,
        output,
        spans,
        alone,
        kept - set(given),
        filled_up,
        split,
        kept | later | {output},
        in_pieces,
    )


def enters(part: Part, spans: dict[fx.Node, Span]) -> bool:
    """Whether this layer mixes a change of some channels into its outputs."""
    if part.kind != "mix" or spans.get(part.source) is None:
        return False
    return getattr(part.module, "groups", 1) == 1 or spans[part.node] is not None


def multiply_adds(part: Part, spans: dict[fx.Node, Span] | None, examples: Values) -> int:
    """Of a convolution or linear layer, for one image: all of it, or, given the spans, what a change needs (§4.7).

    A change of one weight costs its own layer one multiplication for each output that it reaches.
    """
    if part.kind != "mix":
        return 0
    weight, value = part.module.weight, examples[part.node]
    everything = value[0].numel() * weight[0].numel()
    if spans is None:
        return everything
    if part.source not in spans:
        return value[0, 0].numel()
    out, span = spans[part.node], spans[part.source]
    share = 1.0 if out is None else (out.stop - out.start) / value.shape[1]
    if enters(part, spans) and span is not None:
        share *= (span.stop - span.start) / weight.shape[1]
    return round(everything * share)


def kind_of(node: fx.Node, network: Network, examples: Values) -> Kind:
    """How a node treats the channels of what it takes."""
    if node.op == "output":
        return "output"
    module = _module(node, network)
    if module is not None and (module._forward_hooks or module._forward_pre_hooks):
        return "other"  # pruning, weight norm, or a hook of the user's: it computes what the module alone does not
    inputs = [examples[n] for n in node.all_input_nodes]
    value = examples[node]
    if not inputs or not all(isinstance(x, Tensor) and x.dim() >= 2 and len(x) == len(value) for x in (value, *inputs)):
        return "other"
    x = inputs[0]
    alone = len(inputs) == 1
    if isinstance(module, _BatchNorm):
        return "norm" if node.target in network.batch_norms else "rowwise"
    if type(module) is nn.Conv2d and module.padding_mode == "zeros" and x.dim() == 4:
        return "mix"
    if type(module) is nn.Linear and x.dim() == 2:
        return "mix"
    called = type(module) if module is not None else node.target
    if alone and _POOLS.get(called) == x.dim():
        return "channelwise"
    known = called in _POINTWISE or isinstance(module, _DropoutNd) or (node.op == "call_method" and called in _METHODS)
    if known and all(other.shape == value.shape for other in inputs):
        return "channelwise"
    flattens = type(module) is nn.Flatten or called in (torch.flatten, "flatten", "view", "reshape", torch.reshape)
    if flattens and value.shape == (len(x), x[0].numel()):
        return "flatten"
    if called is F.pad and len(node.args) == 2 and len(node.args[1]) < 2 * x.dim():  # type: ignore[arg-type]
        return "rowwise"  # of no known channels, but each row by itself
    return "other"


def _spans(channel: int, origin: Part, moving: list[Part], examples: Values) -> dict[fx.Node, Span]:
    spans: dict[fx.Node, Span] = {}
    for part in [origin, *moving]:
        span = slice(channel, channel + 1) if part is origin else _span_behind(part, spans, examples)
        covers_all = span is None or span.stop - span.start == examples[part.node].shape[1]
        spans[part.node] = None if covers_all else span
    return spans


def _span_behind(part: Part, spans: dict[fx.Node, Span], examples: Values) -> Span:
    incoming = [spans[n] for n in part.node.all_input_nodes if n in spans]
    span = incoming[0]
    if span is None or any(other != span for other in incoming):
        return None
    if part.kind in ("norm", "channelwise"):
        return span
    if part.kind == "flatten":
        size = examples[part.source][0, 0].numel()
        return slice(span.start * size, span.stop * size)
    if part.kind == "mix" and isinstance(part.module, nn.Conv2d):
        inputs, outputs = part.module.weight.shape[1], part.module.out_channels // part.module.groups
        group = span.start // inputs
        if (span.stop - 1) // inputs == group:
            return slice(group * outputs, (group + 1) * outputs)
    return None


def _needed(part: Part, spans: dict[fx.Node, Span]) -> set[fx.Node]:
    """Whose kept values it takes to compute this part's candidate."""
    if enters(part, spans):
        return {part.node, part.source}
    span = spans[part.node]
    return {n for n in part.node.all_input_nodes if n not in spans or (spans[n] is not None and span is None)}


def _alone(node: fx.Node, kind: Kind, before: list[Part]) -> bool:
    """Whether a node that writes into its input could as well leave it: it is new, and nothing else sees it."""
    source = node.all_input_nodes[0]
    new = source.target in (operator.add, torch.add) or any(
        part.node is source and part.kind in ("mix", "norm") for part in before
    )
    return kind == "channelwise" and new and len(source.users) == 1


def _module(node: fx.Node, network: Network) -> nn.Module | None:
    return network.fetch_attr(str(node.target)) if node.op == "call_module" else None


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, todo = {node}, [node]
    while todo:
        new = set(todo.pop().all_input_nodes) - found
        found |= new
        todo.extend(new)
    return found


def first_input(layer: nn.Conv2d, axis: int, k: int) -> int:
    """The row or column of its input that kernel element k multiplies for the first output; negative in the padding."""
    if layer.padding == "same":
        padding = layer.dilation[axis] * (layer.kernel_size[axis] - 1) // 2
    else:
        padding = 0 if layer.padding == "valid" else int(layer.padding[axis])
    return k * layer.dilation[axis] - padding
