"""Which weights next: the order of the layers, the order within a layer, and how many weights a proposal covers."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rso_lab.graph import Layer

Index = tuple[int, ...]


@dataclass(frozen=True)
class Visit:
    """What one proposal covers: `parameter[index]` of each named parameter. The index () is the whole tensor."""

    layer: str | None  # None where the proposal covers several
    names: tuple[str, ...]
    index: Index
    group: Hashable  # visits of one group share a mini-batch where it is held for a neuron


def layer_sequence(layers: list[Layer], layer_order: str) -> list[Layer]:
    """The layers in the order of their sweeps, each batch norm right after the layer that it normalises."""
    searched = {layer.name for layer in layers}
    leaders = [layer for layer in layers if layer.normalises not in searched]
    if layer_order == "output_first":
        leaders.reverse()
    return [
        layer
        for leader in leaders
        for layer in (leader, *(follower for follower in layers if follower.normalises == leader.name))
    ]


def sweeps(
    layers: list[Layer], level: str, order: str, layer_order: str
) -> Iterator[tuple[Layer | None, Iterator[Visit]]]:
    """One cycle: as many visits as there are weights, as sweeps of one layer each at the weight level.

    At the other levels no layer rests while another is searched: one sweep, of None, is the whole cycle.
    """
    layers = layer_sequence(layers, layer_order)
    size = sum(layer.size for layer in layers)
    if level == "weight":
        for layer in layers:
            yield layer, weight_visits(layer.name, layer.parameters, order)
    elif level == "layer":
        turns = [Visit(layer.name, tuple(layer.parameters), (), group=0) for layer in layers]
        yield None, (replace(turns[i % len(turns)], group=i) for i in range(size))
    else:
        names = tuple(name for layer in layers for name in layer.parameters)
        yield None, (Visit(None, names, (), group=i) for i in range(size))


def weight_visits(layer: str, named_parameters: Mapping[str, Tensor], order: str) -> Iterator[Visit]:
    """Every weight of a layer once, given its parameters by dotted name.

    "neuron": weight[i], then bias[i], for each output neuron i. "input": the weights that read input channel j, for
    each j, and all biases last. A batch norm goes channel by channel in both; parameters that are not laid out like
    this are visited one tensor after the other, row by row.
    """
    parameters = {name.removeprefix(f"{layer}."): (name, p.shape) for name, p in named_parameters.items()}
    weight, shape = parameters.pop("weight", ("", torch.Size()))
    bias, bias_shape = parameters.pop("bias", ("", shape[:1]))

    def visit(name: str, index: Index, group: Hashable) -> Visit:
        return Visit(layer, (name,), index, group)

    if not shape or parameters or bias_shape != shape[:1]:
        for name, parameter in named_parameters.items():
            for index in np.ndindex(parameter.shape):
                yield visit(name, index, group=(name, *index[:1]))
    elif order == "input" and len(shape) > 1:
        for j in range(shape[1]):
            for i in range(shape[0]):
                for kernel in np.ndindex(shape[2:]):
                    yield visit(weight, (i, j, *kernel), group=j)
        if bias:
            for i in range(shape[0]):
                yield visit(bias, (i,), group="biases")
    else:
        for i in range(shape[0]):
            for index in np.ndindex(shape[1:]):
                yield visit(weight, (i, *index), group=i)
            if bias:
                yield visit(bias, (i,), group=i)
