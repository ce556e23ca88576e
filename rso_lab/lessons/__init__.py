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
from rso_lab.lessons.cost import (
    candidate_table,
    check_multiply_adds,
    check_update,
    company,
    cost_table,
    count_network,
    growth,
    measure_cycle,
    recorded_costs,
    speed,
)
from rso_lab.lessons.deeper import (
    check_days,
    colour_pictures,
    depth_results,
    depth_runs,
    duration,
    equal_guesses,
    kept_by_layer,
    layer_signals,
    network_price,
    network_prices,
    paper_days,
    paper_points,
)
from rso_lab.lessons.family import check_es_gradient, check_shadow, gradient_of, kept_pixels
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
from rso_lab.lessons.parallel import (
    SearchedApart,
    check_merge,
    clashing_pairs,
    kept_promises,
    on_processes,
    train_apart,
)
from rso_lab.lessons.start import begin, check_choose, train_with
from rso_lab.lessons.your_own import check_my_net, mine_or_ours, moved, three_losses

__all__ = [
    "RandomProposals",
    "SearchedApart",
    "accepted_changes",
    "begin",
    "beside_the_paper",
    "bill",
    "bug_b",
    "candidate_table",
    "check",
    "clashing_pairs",
    "colour_pictures",
    "company",
    "compare",
    "cost_table",
    "count_network",
    "depth_results",
    "depth_runs",
    "descend_with",
    "duration",
    "equal_guesses",
    "evaluate",
    "gain_table",
    "gradient_of",
    "growth",
    "kept_by_layer",
    "kept_pixels",
    "kept_promises",
    "layer_signals",
    "ledger",
    "loss_differences",
    "measure_cycle",
    "mine_or_ours",
    "moved",
    "network_price",
    "network_prices",
    "on_processes",
    "paired",
    "paper_days",
    "paper_points",
    "price_of_a_gradient",
    "promises",
    "random_networks",
    "recorded",
    "recorded_costs",
    "signs",
    "speed",
    "spent_by_the_paper",
    "spent_to",
    "symptoms",
    "three_losses",
    "train_apart",
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
    "multiply_adds": check_multiply_adds,
    "update": check_update,
    "days": check_days,
    "merge": check_merge,
    "my_net": check_my_net,
    "sgd_step": check_sgd_step,
    "shadow": check_shadow,
    "es_gradient": check_es_gradient,
}


def check(answer: Callable) -> None:
    """Check a learner's function, which has the name of an exercise, and print what to change."""
    name = getattr(answer, "__name__", "?")
    if name not in _CHECKS:
        raise ValueError(f"{name!r} is the name of no exercise: choose from {', '.join(_CHECKS)}")
    _CHECKS[name](answer)
