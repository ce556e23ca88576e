"""Checks of a learner's answers: each names the likely mistake."""

from collections.abc import Callable

import torch

from rso_lab import doctor, rso
from rso_lab.history import History


def begin() -> None:
    """Check the set-up, and compute on one thread.

    The lessons' small networks gain little from a second one, and lose much where a browser keeps the cores busy.
    """
    torch.set_num_threads(1)
    doctor.check()


def check_choose(answer: Callable[[float, float, float], object]) -> None:
    """Check a learner's `choose(minus, keep, plus)`, which names the candidate to take."""
    cases = [
        ((0.9, 0.5, 0.7), "both changes raise the loss, so the weight is kept"),
        ((0.7, 0.5, 0.4), "w + δ has the lowest loss"),
        ((0.3, 0.5, 0.4), "both changes lower the loss, and w - δ lowers it most"),
        ((0.5, 0.5, 0.5), "all three are equal: a change that gains nothing is not made"),
        ((0.5, 0.5, 0.7), "w - δ is no better than w: a change that gains nothing is not made"),
    ]
    for losses, why in cases:
        chosen, right = answer(*losses), rso.choose(rso.Losses(*losses))
        if chosen in (None, ...):
            print('Not done yet: choose returns nothing. It should return "minus", "keep" or "plus".')
            return
        if chosen != right:
            minus, keep, plus = losses
            worst = max(("minus", minus), ("keep", keep), ("plus", plus), key=lambda pair: pair[1])[0]
            hint = " You may have taken the highest loss instead of the lowest." if chosen == worst != right else ""
            print(f"Not yet. With the losses {minus} at w - δ, {keep} at w and {plus} at w + δ: {why}.")
            print(f"Your answer was {chosen!r}, the right one is {right!r}.{hint}")
            return
    print("Right: your choose decides as the package does.")


def compare(prediction: float, measured: float, what: str) -> None:
    """Print a learner's prediction, a share, beside what was measured."""
    if isinstance(prediction, bool) or not isinstance(prediction, int | float) or not 0 <= prediction <= 1:
        print(
            f"Your prediction is {prediction!r}: write a share between 0 and 1, such as 0.5, and run both cells again."
        )
        return
    print(f"{what}:  your prediction {prediction:.0%},  measured {measured:.0%}")


def ledger(history: History) -> None:
    """Print what a run reached, and at what price."""
    last = history.cycles[-1]
    print(f"accuracy     {last.test_accuracy:.1%} of {history.settings['test_images']} test images")
    print(f"evaluations  {last.evaluations:,} losses, each over {history.settings['batch_size']} images")
    print(f"seconds      {last.seconds:.1f}")
