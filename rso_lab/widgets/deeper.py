"""The bill of a plan to train one of the paper's three deeper networks."""

import ipywidgets as ipw
from matplotlib.figure import Figure

from rso_lab import plots
from rso_lab.experiments import DEPTHS
from rso_lab.lessons import deeper
from rso_lab.notebook import Pictured, image, poster


class Bill(Pictured):
    """What a plan to train on pictures in colour would take, beside what the recorded runs reached. No run is made.

    Two menus and two sliders make the plan: network, how losses are computed, images in a mini-batch and cycles.
    """

    def __init__(self) -> None:
        self.runs, self.points = deeper.depth_runs(), deeper.paper_points()
        self.figure = Figure(figsize=(8, 2.8), layout="constrained")
        self.axes = self.figure.subplots()
        wide = ipw.Layout(min_width="300px")
        self.depth = ipw.Dropdown(options=DEPTHS, description="network", layout=wide)
        self.how = ipw.Dropdown(options=deeper.HOW, description="losses", layout=wide)
        self.images = ipw.SelectionSlider(
            options=(50, 100, 250, 500, 1000, 2500, 5000),
            value=250,
            description="images",
            continuous_update=False,
            layout=wide,
        )
        self.cycles = ipw.SelectionSlider(
            options=(1, 2, 5, 10, 20, 50, 100, 300, 500),
            value=5,
            description="cycles",
            continuous_update=False,
            layout=wide,
        )
        self.said = ipw.Label()
        self.image = ipw.HTML()
        self.post = poster()
        controls = (self.depth, self.how, self.images, self.cycles)
        for control in controls:
            control.observe(lambda change: self.post(self.draw), names="value")
        self.draw()
        super().__init__([ipw.HBox([*controls, self.said], layout=ipw.Layout(flex_flow="row wrap")), self.image])

    def draw(self) -> None:
        """Show where the plan is on the axis of time."""
        self.days = deeper.plan_days(self.depth.value, self.how.value, self.images.value, self.cycles.value)
        self.axes.clear()
        plots.bills(self.runs, self.points, ("your plan", self.days), self.axes)
        self.axes.set_xlim(plots.TIMES["1 s"] / 3, 5 * plots.TIMES["1000 days"])  # the same for all plans
        self.said.value = f"Your plan: {self.depth.value} takes {deeper.duration(self.days)}."
        self.image.value = image(self.figure, self.said.value)
