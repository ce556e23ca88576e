"""What of a path the compiled kernels take over, and how they are called. Without numba, nothing: torch does it all."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from rso_lab.graph import Array, Moments, Values
from rso_lab.paths import Change, Part, Path, enters, first_input

try:
    from rso_lab import kernels
except Exception:  # numba is missing, is switched off, or fails in one of many ways
    kernels = None  # type: ignore[assignment]


def fuse(parts: list[Part], path: Path, examples: Values, behind_change: bool) -> list[Part]:
    """The parts, those that the kernels take with their prologues in one. `behind_change`: of what a change affects."""
    if kernels is None:
        return parts
    fused = [_fused(part, parts, path, examples, behind_change) for part in parts]
    inside = {part.node for whole in fused for part in whole.prologue}
    return [part for part in fused if part.node not in inside]


def fits(examples: Values) -> bool:
    """Whether the kernels know these numbers."""
    return kernels is not None and all(
        x.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"
        for x in examples.values()
        if isinstance(x, Tensor) and x.is_floating_point()
    )


def _fused(part: Part, parts: list[Part], path: Path, examples: Values, behind_change: bool) -> Part:
    if part.kind not in ("mix", "channelwise") or (part is path.origin and behind_change):
        return part
    channels = examples[part.source].shape[1]
    splits = part.source in path.split
    if part.kind == "channelwise":
        if not _is_global_mean(part.module) or splits or channels % kernels.VECTOR:
            return part
        prologue = _prologue(part, parts, path, pooling=False)
        return replace(part, kind="pool", prologue=prologue)
    module = part.module
    known = isinstance(module, nn.Conv2d) and module.groups == 1 and set(module.dilation) == {1}
    if not known or isinstance(module.padding, str) or module.out_channels % kernels.VECTOR:
        return part
    if splits and behind_change:
        entering = [spans[part.source] for spans in path.spans if enters(part, spans)]
        always = len(entering) == len(path.spans) and all(span.stop - span.start == 1 for span in entering if span)
        return replace(part, kind="enter", prologue=_prologue(part, parts, path)) if always else part
    if channels % kernels.VECTOR:
        return part
    return replace(
        part, kind="convolve", prologue=() if splits or part is path.origin else _prologue(part, parts, path)
    )


def _prologue(part: Part, parts: list[Part], path: Path, pooling: bool = True) -> tuple[Part, ...]:
    """Batch norm, ReLU and 2x2 pooling right before a part, as far as nothing else takes what they put out."""
    found: list[Part] = []
    before = {other.node: other for other in parts if other.stage == part.stage and other is not path.origin}
    node = part.source
    kinds = [is_pool_2x2] if pooling else []
    for fits_kind in (*kinds, is_relu, _is_batch_norm):
        other = before.get(node)
        entered = part.kind == "mix" and node is part.source and node in path.split
        if other is None or not fits_kind(other) or len(node.users) > 1 or (node in path.stored and not entered):
            continue
        found.insert(0, other)
        node = other.source
    return tuple(found)


def is_pool_2x2(part: Part) -> bool:
    """Whether a part is a pooling of 2x2 pixels, each in one of them."""
    module: Any = part.module
    if isinstance(module, nn.AvgPool2d):
        exact = module.divisor_override is None
    elif isinstance(module, nn.MaxPool2d):
        exact = module.dilation in (1, (1, 1)) and not module.return_indices
    else:
        return False
    twos = all(value in (2, (2, 2)) for value in (module.kernel_size, module.stride))
    return exact and twos and module.padding in (0, (0, 0)) and not module.ceil_mode


def is_relu(part: Part) -> bool:
    """Whether a part is a ReLU."""
    return isinstance(part.module, nn.ReLU) or part.node.target in (torch.relu, nn.functional.relu)


def _is_batch_norm(part: Part) -> bool:
    return part.kind == "norm"


def _is_global_mean(module: Any) -> bool:
    return isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))


class Kernels:
    """Calls the kernels for a path; keeps the weights as they take them."""

    def __init__(self) -> None:
        self.weights: dict[tuple[fx.Node, int | None], Any] = {}

    def convolve(self, part: Part, x: Tensor, affine: tuple[Array, Array] | None, out: Tensor) -> Moments:
        """Prologue and convolution of x (B, C, H, W), into out. Returns the moments of out."""
        module: Any = part.module
        if (part.node, None) not in self.weights:
            self.weights[part.node, None] = _weight_and_bias(module)
        weight, bias = self.weights[part.node, None]
        x_last = _last(x)
        moments = kernels.convolve(
            x_last, *self._affine(affine, x_last), _code(part), weight, bias, module.stride, module.padding, _last(out)
        )
        return _moments(moments, out)

    def enter(
        self,
        part: Part,
        x: Tensor,
        affine: tuple[Array, Array] | None,
        before: Tensor,
        channel: int,
        after: Tensor,
        kept: Tensor,
        out: Tensor,
    ) -> Moments:
        """The prologue of one channel x (B, 1, H, W), into `after`, and what its change does to the convolution."""
        module: Any = part.module
        scale, offset = (1.0, 0.0) if affine is None else (float(a[0]) for a in affine)
        moments = kernels.enter(
            x.numpy(),
            scale,
            offset,
            _code(part),
            before.numpy(),
            after.numpy(),
            self.entering_weight(part, channel),
            module.stride,
            module.padding,
            _last(kept),
            _last(out),
        )
        return _moments(moments, out)

    def entering_weight(self, part: Part, channel: int) -> Array:
        """A convolution's weights for one of its input channels (kernel rows, columns, 1, C')."""
        if (part.node, channel) not in self.weights:
            weight = part.module.weight.detach()[:, channel : channel + 1]
            self.weights[part.node, channel] = weight.permute(2, 3, 1, 0).contiguous().numpy()
        return self.weights[part.node, channel]

    def pool(self, part: Part, x: Tensor, affine: tuple[Array, Array] | None) -> Tensor:
        """Batch norm, ReLU and the mean over all pixels of x (B, C, H, W): (B, C, 1, 1)."""
        out = x.new_empty(x.shape[:2])
        x_last = _last(x)
        kernels.pool(x_last, *self._affine(affine, x_last), _code(part), out.numpy())
        return out[:, :, None, None]

    def affine(self, mean: Array, variance: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array]:
        """Scale and offset (C,) of a batch norm, with the last bits of the compiled loops."""
        return kernels.scale_and_offset(mean, variance, gamma, beta, eps)

    def _affine(self, affine: tuple[Array, Array] | None, x: Array) -> tuple[Array, Array]:
        scale, offset = affine or (np.ones(x.shape[3]), np.zeros(x.shape[3]))
        return scale.astype(x.dtype), offset.astype(x.dtype)


def gamma_and_beta(norm: Any) -> tuple[Array, Array]:
    """Of a batch norm (C,), float64."""
    if not norm.affine:
        return np.ones(norm.num_features), np.zeros(norm.num_features)
    gamma, beta = (parameter.detach().double().numpy() for parameter in (norm.weight, norm.bias))
    return gamma, beta


def _weight_and_bias(layer: Any) -> tuple[Array, Array]:
    """Of a convolution: (kernel rows, columns, C, C') and (C',)."""
    bias = torch.zeros_like(layer.weight[:, 0, 0, 0]) if layer.bias is None else layer.bias
    return layer.weight.detach().permute(2, 3, 1, 0).contiguous().numpy(), bias.detach().numpy()


def takes_step(origin: Part, change: Change) -> bool:
    """Whether a kernel computes what the searched layer puts out after this change."""
    return isinstance(origin.module, nn.Conv2d) and (change.parameter == "weight" or change.step == 0)


def step(z: Tensor, x: Tensor, delta: float, layer: Any, place: tuple[int, int], out: Tensor) -> Moments:
    """Z + delta * x, each where weight element `place` reaches it, into out (B, 1, H', W'); and the moments of that.

    z (B, 1, H', W'): what a channel put out; x (B, H, W): what the weight multiplies.
    """
    first = (first_input(layer, 0, place[0]), first_input(layer, 1, place[1]))
    return _moments(kernels.step(z.numpy(), x.numpy(), delta, layer.stride, first, out.numpy()), out)


def _last(x: Tensor) -> Any:
    return x.permute(0, 2, 3, 1).contiguous().numpy()


def _moments(found: tuple[Array, Array], out: Tensor) -> Moments:
    return *found, out.numel() // out.shape[1]


def _code(part: Part) -> int:
    """The prologue's number, as the kernels have it."""
    pools = [other.module for other in part.prologue if is_pool_2x2(other)]
    kind = 0 if not pools else 2 if isinstance(pools[0], nn.AvgPool2d) else 4
    return kind + any(is_relu(other) for other in part.prologue)
