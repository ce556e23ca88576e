"""Searching many weights of a convolution against one state of the network (§4.6), so that they need no order.

What is merged depends on what was drawn, and not on which rank computed which part of it.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from rso_lab.ranks import ALONE, Ranks
from rso_lab.rso import SearchLayer, Step, Sweep, Turn, apply, choose, one_by_one, put_back


def layer_search(parallel: str | None, ranks: Ranks = ALONE) -> SearchLayer:
    """How layers are searched: convolutions with their "neuron"s or all weights of a "layer" apart, others in turn.

    What is searched apart is shared between the ranks; what is not, each does for itself.
    """
    if parallel is None:
        return one_by_one
    apart = {"neuron": neurons_apart, "layer": weights_apart}[parallel]

    def search(sweep: Sweep, generator: torch.Generator) -> Iterator[Step]:
        return apart(sweep, generator, ranks) if sweep.is_convolution else one_by_one(sweep, generator)

    return search


def weights_apart(sweep: Sweep, generator: torch.Generator, ranks: Ranks) -> Iterator[Step]:
    """Each weight against the layer as it was before the sweep; the choices are merged at its end."""
    groups = list(sweep.groups(generator))
    turns = [turn for group in groups for turn in group]
    ends = list(itertools.accumulate((len(group) for group in groups), initial=0))
    on_batch = [list(range(*ends_of_group)) for ends_of_group in itertools.pairwise(ends)]
    if len(on_batch) < ranks.count:
        on_batch = [numbers[first :: ranks.count] for numbers in on_batch for first in range(ranks.count)]
    losses = _zeros(turns)
    for numbers in filter(None, ranks.own(on_batch)):
        sweep.evaluator.begin_batch(turns[numbers[0]].rows)
        losses[numbers] = sweep.losses([turns[number].proposal for number in numbers])
    yield from _merge(sweep, turns, ranks.sum(losses))


def neurons_apart(sweep: Sweep, generator: torch.Generator, ranks: Ranks) -> Iterator[Step]:
    """The weights of each output neuron in turn, the other neurons as they were before the sweep; merged at its end."""
    turns = [turn for group in sweep.groups(generator) for turn in group]
    of_neuron: dict[int, list[int]] = defaultdict(list)
    for number, turn in enumerate(turns):
        of_neuron[turn.visit.index[0]].append(number)
    losses = _zeros(turns)
    for numbers in ranks.own(list(of_neuron.values())):
        rows = None
        try:
            for number in numbers:
                turn = turns[number]
                if turn.rows is not rows:
                    rows = turn.rows
                    sweep.evaluator.begin_batch(rows)
                (tried,) = sweep.losses([turn.proposal])
                choice = choose(tried)
                apply(turn.proposal, choice)
                sweep.evaluator.commit(turn.proposal, choice)
                losses[number] = tried
        finally:
            for number in numbers:
                put_back(turns[number].proposal)
    yield from _merge(sweep, turns, ranks.sum(losses))


def _zeros(turns: list[Turn]) -> Tensor:
    """Room for losses (turns, 3), of which each rank fills in its own."""
    (weight, *_) = turns[0].proposal.weights.values()
    return torch.zeros(len(turns), 3, dtype=torch.float64, device=weight.device)


def _merge(sweep: Sweep, turns: list[Turn], losses: Tensor) -> Iterator[Step]:
    """Give every weight its chosen value, by the losses (turns, 3); the steps, in the order of the visits."""
    steps = [sweep.step(turn, tried, choose(tried)) for turn, tried in zip(turns, losses, strict=True)]
    sweep.refuse_not_finite([step.candidate_losses[0] for step in steps], [step.layer for step in steps])
    for turn, step in zip(turns, steps, strict=True):
        apply(turn.proposal, step.chosen)
    yield from steps
