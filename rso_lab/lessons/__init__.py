"""What the lessons call: their first cell, checks of a learner's answers that name the likely mistake, the ledger."""

from collections.abc import Callable
from typing import Any

from rso_lab.lessons.batches import accepted_changes, check_standard_error, promises
from rso_lab.lessons.closing import beside_the_paper, compare, ledger, yours
from rso_lab.lessons.how_much import RandomProposals, check_cosine, gain_table
from rso_lab.lessons.initialisation import check_he_sigma, check_normalise, random_networks
from rso_lab.lessons.one_weight import (
    bug_b,
    check_apply,
    check_evaluate,
    evaluate,
    loss_differences,
    signs,
    symptoms,
    train_by_hand,
)
from rso_lab.lessons.order import check_visits, paired
from rso_lab.lessons.start import begin, check_choose, train_with
from rso_lab.lessons.your_own import check_my_net, mine_or_ours, moved, three_losses

__all__ = [
    "RandomProposals",
    "accepted_changes",
    "begin",
    "beside_the_paper",
    "bug_b",
    "check",
    "compare",
    "evaluate",
    "gain_table",
    "ledger",
    "loss_differences",
    "mine_or_ours",
    "moved",
    "paired",
    "promises",
    "random_networks",
    "signs",
    "symptoms",
    "three_losses",
    "train_by_hand",
    "train_with",
    "yours",
]

_CHECKS: dict[str, Callable[[Any], bool]] = {
    "normalise": check_normalise,
    "he_sigma": check_he_sigma,
    "evaluate": check_evaluate,
    "choose": check_choose,
    "apply": check_apply,
    "cosine": check_cosine,
    "visits": check_visits,
    "standard_error": check_standard_error,
    "my_net": check_my_net,
}


def check(answer: Callable) -> None:
    """Check a learner's function, which has the name of an exercise, and print what to change."""
    name = getattr(answer, "__name__", "?")
    if name not in _CHECKS:
        raise ValueError(f"{name!r} is the name of no exercise: choose from {', '.join(_CHECKS)}")
    _CHECKS[name](answer)
