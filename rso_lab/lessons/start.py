"""Lesson 00: the first cell of every lesson, and the choice among three losses."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from rso_lab import doctor, notebook, rso
from rso_lab.data import Data
from rso_lab.graph import Network
from rso_lab.lessons.answers import stopped
from rso_lab.models import build

Choose = Callable[[float, float, float], object]  # (minus, keep, plus) -> the name of the candidate to take

NAMES = ("minus", "keep", "plus")


# Losses at w - δ, w and w + δ, and what they should teach.
_CASES = [
    ((0.9, 0.5, 0.7), "both changes raise the loss, so the weight is kept"),
    ((0.7, 0.5, 0.4), "w + δ has the lowest loss"),
    ((0.4, 0.5, 0.7), "w - δ has the lowest loss"),
    ((0.3, 0.5, 0.4), "both changes lower the loss, and w - δ lowers it most"),
    ((0.4, 0.5, 0.3), "both changes lower the loss, and w + δ lowers it most"),
    ((0.4, 0.5, 0.4), "both changes lower the loss by as much, so either will do, and w will not"),
    ((0.5, 0.5, 0.5), "all three are equal: a change that gains nothing is not made"),
    ((0.5, 0.5, 0.7), "w - δ is no better than w: a change that gains nothing is not made"),
    ((0.7, 0.5, 0.5), "w + δ is no better than w: a change that gains nothing is not made"),
]


# What learners write instead, and what to tell them.
_FIRST_THAT_HELPS = "You take the first change that helps. Compare both."

_MISTAKES: list[tuple[Choose, str]] = [
    (lambda m, k, p: NAMES[(m, k, p).index(max(m, k, p))], "You take the highest loss. The lowest is the best."),
    (lambda m, k, p: NAMES[(m, k, p).index(min(m, k, p))], "On a tie your min takes the first. Ask about keep first."),
    (lambda m, k, p: "minus" if m < k else "plus" if p < k else "keep", _FIRST_THAT_HELPS),
    (lambda m, k, p: "plus" if p < k else "minus" if m < k else "keep", _FIRST_THAT_HELPS),
    (lambda m, k, p: "keep" if k <= min(m, p) else "minus" if p < m else "plus", "minus and plus look exchanged."),
]


def begin() -> None:
    """Check the set-up, have figures described in words, and compute on one thread.

    The lessons' small networks gain little from a second one, and lose much where a browser keeps the cores busy.
    """
    torch.set_num_threads(1)
    notebook.describe_figures()
    doctor.check()


def check_choose(answer: Choose) -> bool:
    """Check a learner's `choose(minus, keep, plus)`; prints what to change, and returns whether it is right."""
    try:
        answers = [answer(*losses) for losses, _ in _CASES]
    except Exception as error:
        stopped("choose", error)
        return False
    if all(given is None or given is ... for given in answers):
        print('Not done yet: choose returns nothing. It should return "minus", "keep" or "plus".')
        return False
    for (losses, why), given in zip(_CASES, answers, strict=True):
        best = [name for name, loss in zip(NAMES, losses, strict=True) if loss == min(losses)]
        right = ["keep"] if "keep" in best else best
        if not isinstance(given, str) or given not in right:
            print(f"Not yet. With the losses {losses[0]} at w - δ, {losses[1]} at w and {losses[2]} at w + δ: {why}.")
            print(f"Your answer was {given!r}, the right one is {' or '.join(map(repr, right))}.")
            if isinstance(given, float):
                print("That is a loss: return the name of its candidate, in quotes.")
            elif not isinstance(given, str) or given not in NAMES:
                print('It has to be one of "minus", "keep" and "plus".')
            clear = [case for case, (losses, _) in enumerate(_CASES) if losses[0] != losses[2]]
            for mistake, advice in _MISTAKES:
                if all(str(answers[case]) == mistake(*_CASES[case][0]) for case in clear):
                    print(advice)
                    break
            return False
    print("Right: your choose takes the best of the three.")
    return True


@torch.no_grad()
def train_with(answer: Choose, data: Data) -> None:
    """Train one_conv for a cycle with a learner's `choose` in place of the package's, and print how well it reads."""
    if not check_choose(answer):
        return
    network = Network(build("one_conv", data), data.x_train[:2])
    settings = rso.RSO(cycles=1, batch_size=min(1000, len(data.x_train)))
    evaluator = rso.CachedEvaluator(network, data, F.cross_entropy)
    sigmas = rso.initial_sigmas(network, settings)
    generator = torch.Generator().manual_seed(0)

    def decide(losses: torch.Tensor) -> torch.Tensor:
        keep, plus, minus = losses.tolist()
        return torch.tensor(rso.CANDIDATES.index(answer(minus, keep, plus)))

    search_layer = partial(rso.one_by_one, decide=decide)
    search = rso.search_cycle(1, sigmas, network, data, settings, evaluator, generator, search_layer)
    for _ in tqdm(search, total=sum(layer.size for layer in network.layers), desc="your cycle", unit=" weights"):
        pass
    right = (network.outputs(data.x_test).argmax(dim=1) == data.y_test).double().mean().item()
    print(f"After one cycle in which your choose decided every time: {right:.1%} of the test images right.")
