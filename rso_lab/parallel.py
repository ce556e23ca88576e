"""Searching many weights of a convolution against one state of the network (§4.6), so that they need no order.

What is merged depends on what was drawn, and not on who computed which part of it.
"""

from collections import defaultdict
from collections.abc import Iterator

import torch

from rso_lab.rso import SearchLayer, Step, Sweep, Turn, apply, choose, one_by_one, put_back


def layer_search(parallel: str | None) -> SearchLayer:
    """How layers are searched: convolutions with their "neuron"s or all weights of a "layer" apart, others in turn."""
    if parallel is None:
        return one_by_one
    apart = {"neuron": neurons_apart, "layer": weights_apart}[parallel]

    def search(sweep: Sweep, generator: torch.Generator) -> Iterator[Step]:
        return (apart if sweep.is_convolution else one_by_one)(sweep, generator)

    return search


def weights_apart(sweep: Sweep, generator: torch.Generator) -> Iterator[Step]:
    """Each weight against the layer as it was before the sweep; the choices are merged at its end."""
    on_batch: list[list[Turn]] = []
    for turn in sweep.turns(generator):
        if turn.is_new:
            on_batch.append([])
        on_batch[-1].append(turn)
    turns, steps = [], []
    for some in on_batch:
        sweep.evaluator.begin_batch(some[0].rows)
        losses = sweep.losses([turn.proposal for turn in some])
        turns += some
        steps += [sweep.step(turn, tried, choose(tried)) for turn, tried in zip(some, losses, strict=True)]
    yield from _merge(sweep, turns, steps)


def neurons_apart(sweep: Sweep, generator: torch.Generator) -> Iterator[Step]:
    """The weights of each output neuron in turn, the other neurons as they were before the sweep; merged at its end."""
    turns = list(sweep.turns(generator))
    of_neuron: dict[int, list[int]] = defaultdict(list)
    for number, turn in enumerate(turns):
        of_neuron[turn.visit.index[0]].append(number)
    steps: dict[int, Step] = {}
    for numbers in of_neuron.values():
        rows = None
        try:
            for number in numbers:
                turn = turns[number]
                if turn.rows is not rows:
                    rows = turn.rows
                    sweep.evaluator.begin_batch(rows)
                (losses,) = sweep.losses([turn.proposal])
                choice = choose(losses)
                apply(turn.proposal, choice)
                sweep.evaluator.commit(turn.proposal, choice)
                steps[number] = sweep.step(turn, losses, choice)
        finally:
            for number in numbers:
                put_back(turns[number].proposal)
    yield from _merge(sweep, turns, [steps[number] for number in range(len(turns))])


def _merge(sweep: Sweep, turns: list[Turn], steps: list[Step]) -> Iterator[Step]:
    """Give every weight its chosen value; the steps, in the order of the visits."""
    sweep.refuse_not_finite([step.candidate_losses[0] for step in steps], [step.layer for step in steps])
    for turn, step in zip(turns, steps, strict=True):
        apply(turn.proposal, step.chosen)
    yield from steps
