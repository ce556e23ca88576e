"""The grid search for SGD's settings, as recorded."""

import ipywidgets as ipw
import numpy as np
from matplotlib.figure import Figure

from rso_lab import plots
from rso_lab.experiments import RESULTS, read
from rso_lab.lessons.against_sgd import grid_table
from rso_lab.notebook import Pictured, image, poster


class Grid(Pictured):
    """The recorded grid search for SGD's settings as a heat map: choose the data, and what is to be best."""

    def __init__(self) -> None:
        self.figure = Figure(figsize=(7, 2.7), layout="constrained")
        self.data = ipw.Dropdown(options={"digits": "class", "MNIST": "evening"}, description="data")
        self.best_by = ipw.Dropdown(
            options={"accuracy at the end": "accuracy", "updates to 90 % right": "updates"}, description="best by"
        )
        self.said = ipw.Label()
        self.image = ipw.HTML()
        self.post = poster()
        for control in (self.data, self.best_by):
            control.observe(lambda change: self.post(self.draw), names="value")
        self.draw()
        controls = ipw.HBox([self.data, self.best_by, self.said], layout=ipw.Layout(flex_flow="row wrap"))
        super().__init__([controls, self.image])

    def draw(self) -> None:
        """Show the search that is chosen."""
        result = read(RESULTS / f"grid_{self.data.value}.json")
        table, sizes, rates = grid_table(result, self.best_by.value)
        by_accuracy = self.best_by.value == "accuracy"
        place = np.nanargmax(table) if by_accuracy else np.nanargmin(table)
        row, column = (int(number) for number in np.unravel_index(place, table.shape))
        self.best = sizes[row], rates[column]
        self.figure.clear()
        ax = self.figure.subplots()
        if by_accuracy:
            plots.grid(table, sizes, rates, (row, column), "held-out images right", "{:.1%}", ax)
        else:
            plots.grid(table, sizes, rates, (row, column), "updates to 90 % right", "{:.0f}", ax)
        ax.set_title("paper, MNIST: batch 5000, rate 0.5", fontsize="small")
        steps = sum(run["cycles"][-1]["updates"] for run in result["runs"] if run["cycles"])
        self.said.value = (
            f"Best: batch {sizes[row]}, rate {rates[column]}. "
            f"{len(result['runs'])} runs, {steps:,} steps, {result['seconds']:.0f} s."
        )
        if not by_accuracy:
            self.said.value += " A dash: not all runs got to 90 %."
        self.image.value = image(self.figure, self.said.value)
