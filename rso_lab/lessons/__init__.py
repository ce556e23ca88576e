"""What the lessons call: their first cell, checks of a learner's answers that name the likely mistake, the ledger."""

from collections.abc import Callable
from typing import Any

from rso_lab.lessons.against_sgd import (
    bill,
    check_sgd_step,
    descend_with,
    price_of_a_gradient,
    recorded,
    spent_by_the_paper,
    spent_to,
)
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

__all__ = [
    "RandomProposals",
    "accepted_changes",
    "begin",
    "beside_the_paper",
    "bill",
    "bug_b",
    "check",
    "compare",
    "descend_with",
    "evaluate",
    "gain_table",
    "ledger",
    "loss_differences",
    "paired",
    "price_of_a_gradient",
    "promises",
    "random_networks",
    "recorded",
    "signs",
    "spent_by_the_paper",
    "spent_to",
    "symptoms",
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
    "sgd_step": check_sgd_step,
    "standard_error": check_standard_error,
}


def check(answer: Callable) -> None:
    """Check a learner's function, which has the name of an exercise, and print what to change."""
    name = getattr(answer, "__name__", "?")
    if name not in _CHECKS:
        raise ValueError(f"{name!r} is the name of no exercise: choose from {', '.join(_CHECKS)}")
    _CHECKS[name](answer)
