"""Lesson 04: the order of visits, and runs compared seed by seed."""

import statistics
from collections.abc import Callable

from rso_lab import experiments
from rso_lab.lessons.answers import ask


def check_visits(answer: Callable[[int, int, str], list]) -> bool:
    """Check a learner's `visits(outputs, inputs, order)`: says what to change; returns whether it is right."""
    right = {
        "neuron": [(i, j) for i in range(2) for j in range(3)],
        "input": [(i, j) for j in range(3) for i in range(2)],
    }
    for order, wanted in right.items():
        given = ask("visits", answer, 2, 3, order, wanted="a list of pairs (i, j)")
        if given is None:
            return False
        try:
            given = [tuple(place) for place in given]
        except TypeError:
            print(f"Not yet: a list of pairs is wanted, and you returned {given!r}. `return` ends a function at once:")
            print("collect the pairs in a list, and return it after the loops.")
            return False
        if given == wanted:
            continue
        print(f"Not yet. For 2 outputs, 3 inputs and {order!r} it is {wanted}, yours is {given}.")
        if given == right["input" if order == "neuron" else "neuron"]:
            print("That is the other order. The outer loop is over what stays the same for longest.")
        elif given == [(j, i) for i, j in wanted]:
            print("The output comes first in each pair: (i, j).")
        elif sorted(given) != sorted(wanted):
            print("Each weight has its turn exactly once: 6 pairs.")
        return False
    print("Right: every weight once, in the order that was asked for.")
    return True


def paired(name: str, one: str, other: str, size: str = "class") -> None:
    """Print by how many points of accuracy one way of a recorded experiment leads another, seed by seed.

    With three seeds the mean of no difference is within 2.5 standard deviations 19 times of 20: Student's t,
    4.30 / sqrt(3).
    """
    result = experiments.read(experiments.RESULTS / f"{name}_{size}.json")
    last = {(run["method"], run["seed"]): run["cycles"][-1]["test_accuracy"] for run in result["runs"]}
    points = [100 * (last[one, seed] - last[other, seed]) for seed in result["seeds"]]
    told = ", ".join(f"{lead:+.1f}" for lead in points)
    print(f"{one!r} leads {other!r} by {told} points, seed by seed.")
    mean, spread = statistics.mean(points), statistics.stdev(points)
    verdict = "no difference to speak of"
    if abs(mean) > spread:
        verdict = "a difference" if abs(mean) > 2.5 * spread else "perhaps a difference: more seeds would tell"
    print(f"mean {mean:+.1f}, standard deviation {spread:.1f}: {verdict}")
