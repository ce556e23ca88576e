"""Searching with many workers: two moves that clash, and who does what when."""

import ipywidgets as ipw
import numpy as np
from matplotlib.figure import Figure

from rso_lab import plots
from rso_lab.data import Data
from rso_lab.lessons.parallel import PAIRS, TwoWeights, batches_shared, length, measured_work, neurons_shared
from rso_lab.notebook import Pictured, image, poster


class Clash(Pictured):
    """The loss over two weights of one_conv, with the move that each of them would make by itself, and their sum.

    A menu chooses the pair, a slider the size of the moves.
    """

    def __init__(self, data: Data):
        self.data = data
        self.surfaces: dict[str, tuple[TwoWeights, np.ndarray]] = {}
        self.places = np.linspace(-3.2, 3.2, 25)
        self.figure = Figure(figsize=(7, 3.6), layout="constrained")
        self.axes = self.figure.subplots()
        self.pair = ipw.Dropdown(options=list(PAIRS), description="pair")
        self.size = ipw.FloatSlider(1, min=0.1, max=2.5, step=0.1, description="size", readout_format=".1f")
        self.size.continuous_update, self.size.layout.min_width = False, "300px"
        self.said = ipw.HTML()
        self.image = ipw.HTML()
        self.post = poster()
        for control in (self.pair, self.size):
            control.observe(lambda change: self.post(self.draw), names="value")
        self.draw()
        controls = ipw.HBox([self.pair, self.size], layout=ipw.Layout(flex_flow="row wrap"))
        super().__init__([controls, self.said, self.image])

    def draw(self) -> None:
        """Let each weight choose its move against the network as it is, and show what they do together."""
        label = self.pair.value
        if label not in self.surfaces:
            weights = TwoWeights(self.data, *PAIRS[label])
            self.surfaces[label] = weights, weights.surface(self.places)
        weights, losses = self.surfaces[label]
        self.moves = weights.best_moves(self.size.value)
        one, other = self.moves
        before = weights.loss(0, 0)
        self.gains = [before - weights.loss(*moves) for moves in ((one, 0), (0, other), (one, other))]
        self.axes.clear()
        names = tuple(f"{name}{list(index)}" for name, index in PAIRS[label])
        plots.clash(self.places, losses, self.moves, (names[0], names[1]), self.axes)
        self.said.value = told(*self.gains)
        self.image.value = image(self.figure, f"{label}, moves of {self.size.value:.1f} sigma_d. {self.said.value}")


def told(first: float, second: float, both: float) -> str:
    """What two moves gain alone and together, in words."""
    promised = first + second
    if not (first and second):
        verdict = "one of them rests: no move of this size helps it" if promised else "both rest: no such move helps"
    elif both < 0:
        verdict = "a clash: together they raise the loss"
    elif both < max(first, second):
        verdict = "a clash: together they gain less than one of them alone"
    elif both < 0.9 * promised:
        verdict = "a part of the gain is lost"
    elif both > 1.1 * promised:
        verdict = "they help each other"
    else:
        verdict = "the gains nearly add up"
    numbers = f"the first alone gains {first:.3f}, the second {second:.3f}, promised {promised:.3f}; both {both:.3f}"
    return f"{numbers}: {verdict}."


class Workers(Pictured):
    """A cycle of the paper's network on digits, shared between workers: who does what when, and what that gains.

    A menu chooses what they share; sliders set their number, the share of the work that is shared, and how long an
    exchange takes. A model, with constants that were measured with one worker and with two.
    """

    MOST = 16

    def __init__(self) -> None:
        self.work = measured_work()
        self.figure = Figure(figsize=(7.4, 2.35), layout="constrained")
        self.axes = self.figure.subplots(1, 2, width_ratios=(1.7, 1))
        self.shared = ipw.Dropdown(options=["neurons of a layer", "every mini-batch"], description="shared")
        self.shared.layout.width = "270px"
        self.workers = ipw.IntSlider(3, 1, self.MOST, description="workers")
        self.share = ipw.FloatSlider(
            self.work.share, min=0, max=1, step=0.01, description="share", readout_format=".0%"
        )
        self.exchange = ipw.FloatLogSlider(1e6 * self.work.exchange, min=0, max=4, step=0.25, readout_format=".0f")
        self.exchange.description, self.exchange.style.description_width = "exchange, µs", "initial"
        for slider in (self.workers, self.share, self.exchange):
            slider.continuous_update, slider.layout.min_width = False, "300px"
        self.measured = ipw.Button(description="As measured", tooltip="Share and exchange as they were measured")
        self.measured.layout.width = "110px"
        self.said = ipw.HTML()
        self.image = ipw.HTML()
        self.post = poster()
        for control in (self.shared, self.workers, self.share, self.exchange):
            control.observe(lambda change: self.post(self.draw), names="value")
        self.measured.on_click(lambda button: self.post(self.as_measured))
        self.draw()
        controls = [self.shared, self.measured, self.workers, self.share, self.exchange]
        super().__init__([ipw.HBox(controls, layout=ipw.Layout(flex_flow="row wrap")), self.said, self.image])

    def as_measured(self) -> None:
        """Set share and exchange to what was measured."""
        self.share.value, self.exchange.value = self.work.share, 1e6 * self.work.exchange

    def bars(self, workers: int) -> list:
        """What so many workers do, as the sliders say."""
        if self.shared.value == "neurons of a layer":
            return neurons_shared(self.work, workers, self.share.value)
        return batches_shared(self.work, workers, self.exchange.value / 1e6)

    def draw(self) -> None:
        """Show who does what, and how many times as fast they are."""
        apart = self.shared.value == "neurons of a layer"
        self.share.layout.display, self.exchange.layout.display = (None, "none") if apart else ("none", None)
        count = self.workers.value
        bars = self.bars(count)
        self.seconds = [length(self.bars(number)) for number in range(1, self.MOST + 1)]
        one, now = self.seconds[0], self.seconds[count - 1]
        for ax in self.axes:
            ax.clear()
        plots.timeline([(bar.worker, bar.begin, bar.length, bar.kind) for bar in bars], self.axes[0])
        gained = [one / seconds for seconds in self.seconds]
        measured = self.work.apart if apart else self.work.together
        plots.speedups(range(1, self.MOST + 1), gained, count, measured[1] / measured[2], self.axes[1])
        plural = "worker" if count == 1 else "workers"
        words = f"{count} {plural}: {now:.1f} s instead of {one:.1f} s, {one / now:.2f} times as fast; ideal: {count}."
        if apart and self.share.value < 1:
            words += f" However many workers: never more than {1 / (1 - self.share.value):.1f} times."
        if not apart and count > 1:
            words += f" {sum(self.work.exchanges.values()):,} exchanges take {now - one / count:.1f} s of it."
        self.said.value = words
        self.image.value = image(self.figure, words)
