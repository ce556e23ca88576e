"""What a search costs, counted: multiply-adds of convolutions and linear layers (§4.7)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rso_lab.descent import THERE_AND_BACK
from rso_lab.graph import Network
from rso_lab.paths import find_path, multiply_adds
from rso_lab.rso import RSO, Step, searched_layers


class Cost(NamedTuple):
    """Multiply-adds for one image of a mini-batch."""

    candidate: int  # for the loss with a changed weight
    batch: int  # for the loss of the network as it is, where that is computed once for a mini-batch


@torch.no_grad()
def forward_cost(network: Network, example: Tensor) -> int:
    """Multiply-adds of one image's forward pass through the whole network; example (B, C, H, W)."""
    examples = {network.input: example[:2]}
    examples |= network.propagate(examples, keep=network.nodes[1:])
    called = [(node, network.fetch_attr(str(node.target))) for node in network.nodes if node.op == "call_module"]
    return sum(
        examples[node][0].numel() * module.weight[0].numel()
        for node, module in called
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
    )


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


class StepCosts:
    """Multiply-adds of a search, step by step.

    Network, example (B, C, H, W), settings and evaluator as for `layer_costs`.
    """

    def __init__(self, network: Network, example: Tensor, settings: RSO, evaluator: str):
        self.costs = layer_costs(network, example, settings, evaluator)
        self.evaluations = 3 if settings.opposite else 2
        apart = settings.parallel == "neuron"
        self.searched_apart = {layer.name for layer in network.layers if apart and layer.is_convolution}
        self.batch: Tensor | None = None
        self.begun: set[int | None] = set()  # for which of the neurons searched apart the mini-batch has been run

    def of(self, step: Step) -> int:
        """Of the next step. Where the mini-batch is the one before's, the network has been run on it as it is.

        Neurons that are searched apart begin from the same network, each anew.
        """
        if step.batch is not self.batch:
            self.batch, self.begun = step.batch, set()
        neuron = step.index[0] if step.layer in self.searched_apart else None
        cost = self.costs[step.layer]
        candidates = self.evaluations - 1 if cost.batch else self.evaluations
        multiply_adds = cost.candidate * candidates + (0 if neuron in self.begun else cost.batch)
        self.begun.add(neuron)
        return len(step.batch) * multiply_adds


def descent_cost(network: Network, example: Tensor, batch_size: int) -> int:
    """Multiply-adds of an iteration of SGD; example (B, C, H, W)."""
    return THERE_AND_BACK * forward_cost(network, example) * batch_size
