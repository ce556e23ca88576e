"""Recorded experiments, to choose from."""

from collections.abc import Sequence

import ipywidgets as ipw
import numpy as np
from matplotlib.figure import Figure

from rso_lab import plots
from rso_lab.experiments import EXPERIMENTS, RESULTS, curves, results
from rso_lab.notebook import Pictured, image, poster


class Recorded(Pictured):
    """Recorded experiments of the paper's claims: choose one, and see its curves. No run is made.

    name, size: of the experiment that is shown first; `ways`: the labels of those of its ways that are, in any size.
    """

    def __init__(
        self, name: str = "mnist", size: str = "class", *, against: str = "cycle", ways: Sequence[str] | None = None
    ):
        found = {
            f"{name} ({size})": (name, result)
            for name, size, result in results(RESULTS)
            if name != "grid"  # which has more ways than a figure has room for, and a widget of its own
        }
        first = f"{name} ({size})"
        self.found = found
        self.ways = {name: ways}
        self.figure = Figure(figsize=(7, 3.4), layout="constrained")
        self.axes = self.figure.subplots()
        self.choice = ipw.Dropdown(options=list(found), value=first, description="experiment")
        axes = {axis.replace("_", "-"): axis for axis in plots.AXES}
        self.against = ipw.Dropdown(options=axes, value=against, description="against")
        self.image = ipw.HTML()
        self.post = poster()
        for control in (self.choice, self.against):
            control.observe(lambda change: self.post(self.draw), names="value")
        self.draw()
        super().__init__([ipw.HBox([self.choice, self.against], layout=ipw.Layout(flex_flow="row wrap")), self.image])

    def draw(self) -> None:
        """Show the experiment that is chosen."""
        name, result = self.found[self.choice.value]
        runs = curves(result)
        runs = {label: runs[label] for label in self.ways.get(name) or runs if label in runs}
        last = {label: histories[0].cycles[-1].test_accuracy or 0.0 for label, histories in runs.items()}
        self.axes.clear()
        plots.comparison(runs, self.axes, self.against.value, EXPERIMENTS[name].reference)
        lowest = min(record.test_accuracy or 0.0 for one in runs.values() for run in one for record in run.cycles)
        self.axes.set(ylim=(np.floor(10 * lowest) / 10, 1))  # what differs is small
        self.axes.set_title(f"{self.choice.value}: {result['command']}", fontsize="small")
        self.axes.legend(loc="best", fontsize="small" if len(runs) <= 12 else "x-small")  # where it hides no curve
        told = ", ".join(f"{label} {share:.1%}" for label, share in last.items())
        self.image.value = image(self.figure, f"Recorded accuracy at the end, first seed: {told}.")
