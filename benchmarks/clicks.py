"""How long a click waits for its answer while a network trains: a training monitor and a race, in a real browser.

    python benchmarks/clicks.py     (three minutes; needs `make test-browser` to have been run, for chromium's driver)

Prints, for each button, the median and the longest of the milliseconds from the click until the browser has the
buttons' new state, then one line of JSON. Alone on the machine, please.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from rso_lab.history import machine, versions

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from browser import Lesson, chromium, jupyterlab  # type: ignore[import-not-found]

ROUNDS = 24
PLACES = (
    ("02_one_weight", "rso.widgets.Monitor", "What share is kept"),
    ("03_how_much", "rso.widgets.Race", "The race"),
)
CLICK = """(widget, [pressed, watched, usable]) => new Promise((answered, failed) => {
  const named = name => [...widget.querySelectorAll("button")].find(button => button.textContent.trim() === name);
  const begun = performance.now();
  const seen = new MutationObserver(() => {
    if (named(watched).disabled === usable) return;
    seen.disconnect();
    answered(performance.now() - begun);
  });
  seen.observe(named(watched), {attributes: true});
  setTimeout(() => failed("no answer in 20 s"), 20000);
  named(pressed).click();
})"""


def clicks(lesson: Lesson, heading: str) -> dict[str, list[float]]:
    """Milliseconds of each answer, for each button; pauses in between vary, so that clicks meet all kinds of work."""
    widget = lesson.part(heading)
    took: dict[str, list[float]] = {}
    for number in range(ROUNDS):
        for pressed, watched, usable, wait in (
            ("Start", "Pause", True, 1200 + 10 * number),
            ("Pause", "Pause", False, 300),
            ("Start", "Pause", True, 700 + 10 * number),
            ("Stop", "Stop", False, 300),
            ("Reset", "Reset", False, 300),
        ):
            took.setdefault(pressed, []).append(widget.evaluate(CLICK, [pressed, watched, usable]))
            lesson.page.wait_for_timeout(wait)
    return took


def main() -> None:
    """Measure, and print."""
    begun, measured = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as folder, jupyterlab(Path(folder)) as lab, chromium() as browser:
        for name, cell, heading in PLACES:
            lesson = Lesson(browser, lab, name)
            lesson.run_cell("lessons.begin()")
            lesson.run_cell(cell)
            measured[cell] = clicks(lesson, heading)
            lesson.page.close()
            for button, took in measured[cell].items():
                print(
                    f"{cell:20} {button:6} {len(took):3} clicks: median {statistics.median(took):4.0f} ms, "
                    f"longest {max(took):4.0f} ms",
                    flush=True,
                )
    about = {
        "command": "python benchmarks/clicks.py",
        "seeds": [0],
        "settings": {"lessons": [name for name, *_ in PLACES]},
    }
    about |= {"machine": machine(torch.device("cpu")), "versions": versions()}
    print(json.dumps({**about, "seconds": time.perf_counter() - begun, "milliseconds": measured}))


if __name__ == "__main__":
    main()
