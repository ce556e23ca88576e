"""What every lesson ends with: the ledger, predictions and the paper beside what was measured."""

import contextlib
import json
from pathlib import Path

from matplotlib.axes import Axes

from rso_lab import experiments, plots
from rso_lab.history import History, replacing


def compare(prediction: object, measured: float, what: str) -> None:
    """Print a learner's prediction, a share, beside what was measured."""
    if prediction is ...:
        print(f"{what}: measured {measured:.0%}. You made no prediction this time.")
        return
    if isinstance(prediction, bool) or not isinstance(prediction, int | float) or not 0 <= prediction <= 1:
        print(f"{what}: measured {measured:.0%}. Your prediction is {prediction!r}: write a number between 0 and 1.")
        return
    points = round(100 * (measured - prediction))
    more = f"{abs(points)} percentage points {'more' if points > 0 else 'less'} than you thought"
    print(f"{what}: measured {measured:.0%}, your prediction {prediction:.0%}, {more if points else 'spot on'}.")


def yours(prediction: object) -> str:
    """A learner's prediction, to be printed beside what was measured."""
    return "you made no prediction this time" if prediction is ... else f"your prediction: {prediction}"


LEDGER = Path("ledger.json")  # in the folder that the lessons run in: a learner's own


def ledger(lesson: str, history: History, *rivals: History) -> None:
    """Print what a run reached, and at what price, below the runs of other lessons: it is written into LEDGER.

    rivals: runs with other methods, whose lines have the method's name, too.
    """
    try:
        rows = json.loads(LEDGER.read_text(encoding="utf-8"))
        lines = {name: str(line) for name, line in rows.items()}
    except (OSError, ValueError, AttributeError):  # the first, or not ours
        lines = {}
    runs = {lesson: history} | {f"{lesson} {rival.settings['method']}": rival for rival in rivals}
    for name, run in runs.items():
        last = run.cycles[-1]
        images = f"{run.settings['data']}, {len(run.cycles)} x {run.settings['batch_size']}"
        spent = f"{last.evaluations:>11,} {last.multiply_adds / 1e9:>9,.1f} billion {last.seconds:>6.1f} s"
        lines[name] = f"{images:<20} {run.settings['parameters']:>7,} {last.test_accuracy:>8.1%} {spent}"
    shown = sorted(name for name in lines if name <= max(runs))
    width = max(8, *(len(name) + 1 for name in shown))
    print(f"{'lesson':{width}}{'data, cycles x batch':<20} weights accuracy evaluations     multiply-adds     time")
    for name in shown:
        print(f"{name:{width}}{lines[name]}")
    with contextlib.suppress(OSError), replacing(LEDGER) as file:  # a folder that is not ours to write to
        file.write_text(json.dumps(lines), encoding="utf-8")


def beside_the_paper(history: History) -> Axes:
    """A run, the recorded one of the paper's network on MNIST, and the paper's own figures (§4.1, §4.5)."""
    (recorded,) = experiments.curves(experiments.read(experiments.RESULTS / "mnist_evening.json")).values()
    runs = {"yours": [history], "recorded: MNIST, the paper's network": recorded}
    ax = plots.comparison(runs, reference=experiments.PAPER)
    ax.plot(5, 0.98, "*", color="black", markersize=10, label="paper: MNIST, 5 cycles, 98.0 %")
    ax.set_title("")
    ax.legend(loc="lower right", fontsize="small")
    return ax
