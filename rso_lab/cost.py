"""What a search costs, counted: multiply-adds of convolutions and linear layers (§4.7)."""

from typing import NamedTuple

import torch
from torch import Tensor

from rso_lab.graph import Network
from rso_lab.paths import find_path, multiply_adds
from rso_lab.rso import RSO, searched_layers


class Cost(NamedTuple):
    """Multiply-adds for one image of a mini-batch."""

    candidate: int  # for the loss with a changed weight
    batch: int  # for the loss of the network as it is, where that is computed once for a mini-batch


@torch.no_grad()
def forward_cost(network: Network, example: Tensor) -> int:
    """Multiply-adds of one image's forward pass through the whole network; example (B, C, H, W)."""
    examples = {network.input: example[:2]}
    examples |= network.propagate(examples, keep=network.nodes[1:])
    path = find_path(network, network.layers[0], examples)
    return 0 if path is None else sum(multiply_adds(part, None, examples) for part in path.parts)


@torch.no_grad()
def layer_costs(network: Network, example: Tensor, settings: RSO, evaluator: str) -> dict[str | None, Cost]:
    """For a proposal in each layer, None being all layers, with "plain", "cached" or "incremental"; example (B, ...).

    Plain runs the whole network for a candidate, cached what is behind the searched layer's input, and incremental what
    the weight can change: counted for the layer's first channel. Filling the cache is left out, as in the paper.
    """
    whole = forward_cost(network, example)
    costs: dict[str | None, Cost] = {None: Cost(whole, 0)}
    examples = {network.input: example[:2]}
    examples |= network.propagate(examples, keep=network.nodes[1:])
    for layer in searched_layers(network, settings):
        path = find_path(network, layer, examples)
        if evaluator == "plain" or settings.level != "weight" or path is None:
            costs[layer.name] = Cost(whole, 0)
            continue
        behind = sum(multiply_adds(part, None, examples) for part in path.parts)
        changed = [multiply_adds(part, path.spans[0], examples) for part in path.parts if part.node in path.affected]
        costs[layer.name] = Cost(behind, 0) if evaluator == "cached" else Cost(sum(changed), behind)
    return costs


def step_cost(cost: Cost, evaluations: int, batch: Tensor, before: Tensor | None) -> int:
    """Multiply-adds of a proposal with so many evaluations on the images `batch` (B,), after one on those of `before`.

    The network as it is has been run already where the two are the same tensor.
    """
    candidates = evaluations - 1 if cost.batch else evaluations
    return len(batch) * (cost.candidate * candidates + (0 if batch is before else cost.batch))


def descent_cost(network: Network, example: Tensor, batch_size: int) -> int:
    """Multiply-adds of an iteration of SGD: the way back through a layer takes two products for the forward pass's one.

    example (B, C, H, W).
    """
    return 3 * forward_cost(network, example) * batch_size
