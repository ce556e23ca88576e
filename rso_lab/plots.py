"""Figures. Each function draws on matplotlib Axes and returns them: line styles and markers as well as colours."""

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter, ScalarFormatter
from numpy.typing import NDArray
from torch import Tensor, nn

from rso_lab.data import NAMES, Data
from rso_lab.history import History, replacing
from rso_lab.models import Block

# Okabe & Ito's colours, which stay apart for every kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#666666"
_STYLES = [(BLUE, "o-"), (ORANGE, "s--"), (GREEN, "^:"), (GREY, "d-.")]


WORK = {  # of a worker: colour, hatch, what it is
    "alone": (GREY, "", "each for itself"),
    "shared": (BLUE, "", "its part"),
    "waits": ("white", "///", "waits for the slowest"),
    "exchanges": (ORANGE, "..", "exchanges numbers"),
}

AXES = {  # what accuracy can be drawn against: fields of a Record
    "cycle": "cycle (every weight visited once more)",
    "updates": "times that all weights were up for a change",
    "evaluations": "evaluations of the loss",
    "multiply_adds": "multiply-adds",
    "seconds": "seconds",
}
SPENT = tuple(axis for axis in AXES if axis != "cycle")  # what can be counted for every way to train


def accuracy(histories: History | Sequence[History], ax: Axes | None = None, against: str = "cycle") -> Axes:
    """Accuracy on the test images after each cycle, one line a run, against one of AXES.

    Of runs without it, their metric, or where they have none the loss.
    """
    if against not in AXES:
        raise ValueError(f"against is {against!r}: expected {' or '.join(map(repr, AXES))}")
    if isinstance(histories, History):
        histories = [histories]
    if ax is None:
        ax = plt.subplots(figsize=(6, 3.2), layout="constrained")[1]
    judged, unit = _judged(histories)
    for history, (colour, style) in zip(histories, _STYLES * len(histories), strict=False):
        places = [getattr(record, against) for record in history.cycles]
        shares = np.array([getattr(record, judged) for record in history.cycles], dtype=float)
        name = f"{history.settings['method']}, {history.settings['data']}, seed {history.seed}"
        label = name if len(histories) > 1 else "the network"
        ax.plot(places, shares, style, color=colour, label=label, **_marks(history))
    if all(history.settings["data"] in NAMES for history in histories):  # all of ten classes
        ax.axhline(0.1, color=GREY, linewidth=1, linestyle=":", label="guessing")
    ax.set(xlabel=_unit(against, histories), ylabel=unit)
    if against in ("cycle", "updates"):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if against != "cycle" and len(histories) > 1:  # methods differ by powers of ten
        _in_powers(ax)
    if judged == "test_accuracy":
        ax.set(ylim=(0, 1))
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(alpha=0.3)
    _legend(ax, histories, loc="lower right" if judged == "test_accuracy" else "best")
    return ax


def _judged(histories: Sequence[History]) -> tuple[str, str]:
    """By which field of their records runs are judged, and what it is."""
    records = [record for history in histories for record in history.cycles]
    if all(record.test_accuracy is not None for record in records):
        return "test_accuracy", "test images right"
    if all(record.test_metric is not None for record in records):
        return "test_metric", " and ".join(dict.fromkeys(h.settings["metric"] for h in histories)) + ", test set"
    return "loss", "loss, training set"


def comparison(
    runs: dict[str, list[History]],
    ax: Axes | None = None,
    against: str = "cycle",
    reference: tuple[str, float] | None = None,
) -> Axes:
    """Accuracy of several ways to train, by name: the mean over their seeds as a line, lowest to highest as a band.

    reference: an accuracy to compare with, and what it is.
    """
    if ax is None:
        ax = plt.subplots(figsize=(7, 4), layout="constrained")[1]
    looks = zip(runs.items(), itertools.cycle(_STYLES), strict=False)
    for number, ((label, histories), (colour, style)) in enumerate(looks):
        length = min(len(history.cycles) for history in histories)
        places = [getattr(record, against) for record in histories[0].cycles[:length]]
        shares = np.array([[record.test_accuracy for record in history.cycles[:length]] for history in histories])
        width = 1 + number // len(_STYLES)  # a fifth way has the first colour again
        look = {"color": colour, "linewidth": width, **_marks(histories[0])}
        ax.plot(places, shares.mean(axis=0), style, label=label, **look)
        ax.fill_between(places, shares.min(axis=0), shares.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    if reference is not None:
        ax.axhline(reference[1], color="black", linewidth=1, linestyle=(0, (6, 3)), label=reference[0])
    seeds = max(len(histories) for histories in runs.values())
    everyone = [*itertools.chain(*runs.values())]
    unit = _unit(against, everyone)
    ax.set(xlabel=unit, ylabel="test images right", ylim=(0, 1), title=f"mean and range over seeds: {seeds}")
    if against == "cycle":
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    else:
        _in_powers(ax)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(alpha=0.3)
    _legend(ax, everyone, loc="best", fontsize="small")
    return ax


def _unit(against: str, histories: Iterable[History]) -> str:
    """What is counted along x."""
    methods = {history.settings["method"] for history in histories}
    others = methods - {"RSO"}
    if against != "cycle" or not others:
        return AXES[against]
    if "RSO" not in methods:
        return "epoch"
    return f"cycle, and epoch of {'the others' if len(others) > 1 else others.pop()}"


def _uses_gradient(history: History) -> bool:
    return any(record.evaluator == "backpropagation" for record in history.cycles)


def _marks(history: History) -> dict[str, Any]:
    """At most fifty, hollow where the gradient is used."""
    hollow = {"markerfacecolor": "white"} if _uses_gradient(history) else {}
    return {"markersize": 4, "markevery": 1 + len(history.cycles) // 50, **hollow}


def _legend(ax: Axes, histories: Iterable[History], **where: Any) -> None:
    """It says what hollow marks are, where there are both kinds."""
    both = len(set(map(_uses_gradient, histories))) == 2
    ax.legend(title="hollow: uses the gradient" if both else None, title_fontsize="small", **where)


def _in_powers(ax: Axes) -> None:
    """Powers of ten along x, with 2 and 5 between them."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(np.inf, np.inf)))
    ax.xaxis.set_minor_formatter(NullFormatter())


def four_axes(runs: dict[str, list[History]]) -> Figure:
    """The same runs against each of SPENT: means over their seeds, lowest to highest as bands."""
    figure = Figure(figsize=(8.4, 5), layout="constrained")
    for ax, axis in zip(figure.subplots(2, 2).flat, SPENT, strict=True):
        decades(comparison(runs, ax, axis)).set_title("")
    return figure


def decades(ax: Axes) -> Axes:
    """Powers of ten along x, from a whole one to a whole one; what is at 0 is left out."""
    if ax.dataLim.x1 > 0:
        first = np.floor(np.log10(ax.dataLim.minposx))
        last = max(np.ceil(np.log10(ax.dataLim.x1)), first + 1)
        ax.set_xscale("log", nonpositive="mask")
        ax.set_xlim(10**first, 10**last)
    return ax


def learning(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    ax: Axes | None,
    xlabel: str,
    ylabel: str = "test images right",
) -> Axes:
    """Accuracy while networks train, by name: (how far, accuracy there)."""
    if ax is None:
        ax = plt.subplots(figsize=(6, 3.2), layout="constrained")[1]
    looks = zip(lines.items(), itertools.cycle(_STYLES), strict=False)
    for number, ((label, (places, shares)), (colour, style)) in enumerate(looks):
        width = 1.5 * (1 + number // len(_STYLES))  # a fifth has the first colour again
        ax.plot(places, shares, style, color=colour, markersize=3, linewidth=width, label=label)
    ax.axhline(0.1, color=GREY, linewidth=1, linestyle=":", label="guessing")
    ax.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 1))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right", fontsize="small")
    return ax


def kept(layers: dict[str, float], ax: Axes | None = None) -> Axes:
    """The share of the weights that were kept, a bar for each layer, with the paper's as a line."""
    if ax is None:
        ax = plt.subplots(figsize=(6, 3.2), layout="constrained")[1]
    ax.barh(list(layers), list(layers.values()), color=BLUE, alpha=0.7)
    if not layers:
        ax.set_yticks([])
        ax.text(0.5, 0.5, "no layer is done yet", ha="center", fontsize="small", transform=ax.transAxes)
    ax.axvline(0.1, color=ORANGE, linestyle="--", label="paper: about 10 %")
    ax.set(xlabel="weights kept", xlim=(0, 1))
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize="small", frameon=False)
    return ax


def filters(weight: Tensor, shape: Sequence[int], ax: Axes) -> Axes:
    """What the first 16 neurons of a network's first layer look for, as pictures: the mean over the colours.

    weight: of a convolution (outputs, colours, H, W), or of a linear layer (outputs, pixels) on images of this shape
    (colours, H, W).
    """
    if weight.dim() == 2:
        weight = weight.reshape(len(weight), *shape)
    pictures = weight.detach()[:16].mean(dim=1).cpu().numpy()
    columns = math.ceil(len(pictures) ** 0.5)
    rows = math.ceil(len(pictures) / columns)
    height, width = pictures.shape[1:]
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for number, picture in enumerate(pictures):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        sheet[top : top + height, left : left + width] = picture
    widest = abs(pictures).max()
    ax.imshow(sheet, cmap="PuOr", vmin=-widest, vmax=widest)
    ax.set(xlabel="filters of the first layer", xticks=[], yticks=[])
    return ax


def loss_along_weight(
    weights: NDArray,
    losses: NDArray,
    candidates: dict[str, tuple[float, float]],
    before: Sequence[tuple[float, float]] = (),
    ax: Axes | None = None,
    slope: float | None = None,
) -> Axes:
    """The loss along one weight, with a dot (weight, loss) for each candidate: "minus", "keep" and "plus".

    `before`: where the weight has been, drawn as faint dots. `slope`: of the curve at the weight, drawn as an arrow
    downhill, the longer the steeper; where it is 0, it is said.
    """
    if ax is None:
        ax = plt.subplots(figsize=(6, 3.2), layout="constrained")[1]
    ax.plot(weights, losses, color=GREY, label="loss, all other weights fixed")
    looks = {"minus": (ORANGE, "v", "w - δ"), "keep": (BLUE, "o", "w"), "plus": (GREEN, "^", "w + δ")}
    for candidate, (weight, loss) in candidates.items():
        colour, marker, label = looks[candidate]
        ax.plot(weight, loss, marker, color=colour, markersize=9, label=f"{label}: {loss:.4f}", zorder=3)
    lowest = min(loss for _, loss in candidates.values())
    best = next(candidates[name] for name in ("keep", "minus", "plus") if candidates[name][1] == lowest)  # a tie keeps
    ax.plot(*best, "o", markersize=18, markerfacecolor="none", markeredgecolor="black", label="lowest of the three")
    if slope == 0:
        ax.plot([], [], color="black", linewidth=2, label="the gradient is 0: no arrow")
    elif slope is not None:
        weight, loss = candidates["keep"]
        steepest = np.abs(np.gradient(losses, weights)).max()
        run = -slope / steepest * np.ptp(weights) / 4
        ends = [weight, weight + run], [loss, loss + slope * run]
        ax.plot(*ends, color="black", linewidth=2, label="downhill: minus the gradient", zorder=4)
        ax.plot(ends[0][1], ends[1][1], "k<" if run < 0 else "k>", markersize=7, zorder=4)
    if before:
        ax.plot(*zip(*before, strict=True), "o", color=BLUE, alpha=0.3, markersize=6, label="w before")
    ax.set(xlabel="value of the weight", ylabel="loss (lower is better)")
    ax.grid(alpha=0.3)
    # Stairs go up or down: there is no bowl to put it into. Where they do both, it gets a place above them.
    if slope is None and np.mean(np.diff(losses) == 0) > 0.5:
        bottom, top = ax.get_ylim()
        ax.set_ylim(top=top + 0.5 * (top - bottom))
    ax.legend(loc="best" if slope == 0 else "upper center", fontsize="small", ncols=2)
    return ax


def signals(spreads: Sequence[float], ax: Axes | None = None) -> Axes:
    """How large activations are, layer by layer: `spreads[0]` of the images, then after each layer."""
    if ax is None:
        ax = plt.subplots(figsize=(6, 3.2), layout="constrained")[1]
    ax.axhline(spreads[0], color=GREY, linewidth=1, linestyle=":", label="of the images")
    ax.plot(range(len(spreads)), spreads, "o-", color=BLUE, markersize=5, label="after each layer")
    ax.set(xlabel="layer (0: the images)", ylabel="size (root mean square)", yscale="log")
    ax.set_ylim(min(0.01, *spreads), max(100, *spreads))  # so that what is nearly level looks so
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    ax.legend(loc="best", fontsize="small")
    return ax


def differences(groups: dict[str, Sequence[float]], ax: Axes | None = None) -> Axes:
    """Histograms of differences of losses, by name, with a line at none."""
    if ax is None:
        ax = plt.subplots(figsize=(6, 3.2), layout="constrained")[1]
    everything = np.concatenate([np.asarray(values) for values in groups.values()])
    width = (np.ptp(everything) or 1.0) / 40
    first, last = np.floor(everything.min() / width), np.ceil(everything.max() / width)
    bins = (np.arange(first, last + 1) * width).tolist()  # none of them on both sides of zero
    for (label, values), colour, hatch in zip(groups.items(), (BLUE, ORANGE, GREEN), ("", "//", ".."), strict=False):
        ax.hist(values, bins=bins, color=colour, alpha=0.6, label=label, hatch=hatch)
    ax.axvline(0, color="black", linewidth=1)
    ax.set(xlabel="loss with the change minus loss without", ylabel="how often")
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def quadrants(of_batch: Sequence[float], of_all: Sequence[float], ax: Axes | None = None) -> Axes:
    """What accepted changes do: to the loss of their mini-batch, and to that of all training images."""
    if ax is None:
        ax = plt.subplots(figsize=(4.5, 3.6), layout="constrained")[1]
    batch, whole = np.asarray(of_batch), np.asarray(of_all)
    for raises, colour, marker, label in ((False, BLUE, "o", "lower the whole loss"), (True, ORANGE, "^", "raise it")):
        some = (whole > 0) == raises
        share = some.mean() if len(some) else 0.0
        ax.plot(batch[some], whole[some], marker, color=colour, markersize=4, alpha=0.6, label=f"{label}: {share:.0%}")
    ax.axhline(0, color="black", linewidth=1)
    ax.set(xlabel="change of the mini-batch's loss", ylabel="change of all images' loss")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small", loc="best")
    return ax


def gains(table: NDArray, moved: Sequence[int], steps: Sequence[float], ax: Axes | None = None) -> Axes:
    """Mean gain of a proposal, table (steps, moved), over the number of weights moved and the step, a heat map."""
    if ax is None:
        ax = plt.subplots(figsize=(6.5, 3.6), layout="constrained")[1]
    picture = ax.imshow(table, cmap="cividis", aspect="auto", origin="lower")
    ax.set_xticks(range(len(moved)), [str(number) for number in moved])
    ax.set_yticks(range(len(steps)), [f"{step:g}" for step in steps])
    for column in range(len(moved)):
        best = int(table[:, column].argmax())
        ax.plot(column, best, "o", color="white", markeredgecolor="black", markersize=9)
    ax.set(xlabel="weights moved at once", ylabel="step of each, in sigma_d")
    ax.get_figure(root=True).colorbar(picture, label="mean gain of a proposal (loss)")  # type: ignore[union-attr]
    return ax


def grid(
    table: NDArray,
    batch_sizes: Sequence[int],
    rates: Sequence[float],
    best: tuple[int, int],
    label: str,
    form: str,
    ax: Axes | None = None,
) -> Axes:
    """A grid search, table (batch sizes, rates), as a heat map with its numbers; a frame marks the best.

    nan, what not all runs have reached, is a dash. label: what the numbers are; form: how they are written.
    """
    if ax is None:
        ax = plt.subplots(figsize=(7, 3), layout="constrained")[1]
    bright_is_high = table[best] == np.nanmax(table)  # and good, in either case
    picture = ax.imshow(table, cmap="cividis" if bright_is_high else "cividis_r", aspect="auto")
    middle = (np.nanmin(table) + np.nanmax(table)) / 2
    for (row, column), value in np.ndenumerate(table):
        text = "–" if np.isnan(value) else form.format(value)
        colour = "black" if np.isnan(value) or (value > middle) == bright_is_high else "white"
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize="small")
    corner = best[1] - 0.47, best[0] - 0.45
    ax.add_patch(Rectangle(corner, 0.94, 0.9, fill=False, edgecolor=ORANGE, linewidth=3))
    ax.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    ax.set_yticks(range(len(batch_sizes)), [str(number) for number in batch_sizes])
    ax.set(xlabel="learning rate", ylabel="images in a mini-batch")
    scale = PercentFormatter(1) if form.endswith("%}") else None  # as the numbers
    ax.get_figure(root=True).colorbar(picture, label=label, format=scale)  # type: ignore[union-attr]
    return ax


def visited(turns: NDArray, now: int, ax: Axes | None = None) -> Axes:
    """The weights of a layer, `turns` (outputs, inputs, ...) being when each is visited, and which have been by now."""
    if ax is None:
        ax = plt.subplots(figsize=(6, 2.4), layout="constrained")[1]
    outputs, inputs = turns.shape[:2]
    places = turns.reshape(outputs, -1)
    shades = np.where(places < now, 0.55, 0.0) + np.where(places == now, 1.0, 0.0)
    ax.imshow(shades, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    width = places.shape[1] // inputs
    for channel in range(1, inputs):
        ax.axvline(channel * width - 0.5, color="black", linewidth=1)
    for neuron in range(1, outputs):
        ax.axhline(neuron - 0.5, color=GREY, linewidth=0.5)
    ax.set(xlabel="input channel (each with the places of its kernel)", ylabel="output neuron")
    ax.set_xticks([(channel + 0.5) * width - 0.5 for channel in range(inputs)], [str(c) for c in range(inputs)])
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def ripple(changes: Mapping[str, NDArray], ax: Axes | None = None) -> Axes:
    """How far a change has changed what each layer puts out, by layer (channels, H, W): a sheet of its channels each.

    Grey is exactly unchanged; the darker, the nearer to the layer's largest change.
    """
    if ax is None:
        ax = plt.subplots(figsize=(7, 1.4), layout="constrained")[1]
    shades = plt.get_cmap("YlOrRd").with_extremes(under="#dddddd", bad="white")
    for place, change in enumerate(changes.values()):
        columns = math.ceil(len(change) ** 0.5)
        rows = math.ceil(len(change) / columns)
        sheet = np.full((rows * columns, *change.shape[1:]), np.nan)
        sheet[: len(change)] = np.abs(change) / (np.abs(change).max() or 1)
        pixel = np.ones((1, *(max(1, 48 // size) for size in change.shape[1:])))  # for frames of the same width
        framed = np.pad(np.kron(sheet, pixel), ((0, 0), (3, 3), (3, 3)), constant_values=np.nan)
        whole = np.block([[framed[row * columns + column] for column in range(columns)] for row in range(rows)])
        extent = (place - 0.42, place + 0.42, 0, 1)
        ax.imshow(whole, cmap=shades, vmin=1e-12, vmax=1, extent=extent, aspect="auto", interpolation="nearest")
    ax.set(xlim=(-0.5, len(changes) - 0.5), yticks=[])
    ax.set_xticks(range(len(changes)), list(changes))
    for side in ("left", "right", "top", "bottom"):
        ax.spines[side].set_visible(False)
    ax.tick_params(length=0)
    return ax


def layer_costs(costs: Mapping[str, Mapping[str, float]], layers: Sequence[str], ax: Axes | None = None) -> Axes:
    """Multiply-adds by evaluator and layer: a group of bars for each layer, one of them an evaluator's."""
    if ax is None:
        ax = plt.subplots(figsize=(7, 2.4), layout="constrained")[1]
    looks = zip(costs.items(), (GREY, ORANGE, BLUE), ("", "//", ".."), strict=False)
    for number, ((evaluator, of_layers), colour, hatch) in enumerate(looks):
        places = [place + 0.28 * (number - 1) for place in range(len(layers))]
        heights = [of_layers.get(layer, 0) for layer in layers]
        ax.bar(places, heights, 0.28, color=colour, alpha=0.75, hatch=hatch, label=evaluator, edgecolor="white")
    ax.set(xlim=(-0.5, len(layers) - 0.5), ylabel="multiply-adds")
    ax.set_xticks(range(len(layers)), list(layers))
    ax.grid(alpha=0.3, axis="y")
    ax.legend(fontsize="small", loc="upper right", ncols=len(costs))
    return ax


def growth(lines: Mapping[str, Sequence[tuple[float, float]]], per_second: float, ax: Axes | None = None) -> Axes:
    """Multiply-adds of a cycle over the number of weights, by evaluator; how long that takes at so many a second."""
    if ax is None:
        ax = plt.subplots(figsize=(7, 3.4), layout="constrained")[1]
    for (label, points), (colour, style) in zip(lines.items(), itertools.cycle(_STYLES), strict=False):
        ax.plot(*zip(*points, strict=True), style, color=colour, markersize=4, label=label)
    for name, seconds in (("a second", 1), ("an hour", 3600), ("a day", 86400), ("a year", 365 * 86400)):
        ax.axhline(seconds * per_second, color="black", linewidth=0.8, linestyle=(0, (6, 3)))
        ax.text(1, seconds * per_second, f" {name}", transform=ax.get_yaxis_transform(), va="center", fontsize="small")
    ax.set(xscale="log", yscale="log", xlabel="weights of the network", ylabel="multiply-adds of a cycle")
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", fontsize="small")
    return ax


TIMES = {  # in days
    "1 s": 1 / 86400,
    "10 s": 1 / 8640,
    "1 min": 1 / 1440,
    "10 min": 1 / 144,
    "1 h": 1 / 24,
    "1 day": 1.0,
    "10 days": 10.0,
    "100 days": 100.0,
    "1000 days": 1000.0,
}


def bills(
    runs: Mapping[str, History],
    points: Mapping[str, tuple[float, float]],
    plan: tuple[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Accuracy against days: runs by name ("network, method"), points (days, accuracy), and the days of a plan."""
    if ax is None:
        ax = plt.subplots(figsize=(7, 3.8), layout="constrained")[1]
    looks = dict(zip(dict.fromkeys(label.partition(",")[0] for label in sorted(runs, key=len)), _STYLES, strict=False))
    for label, history in sorted(runs.items(), key=lambda run: (len(run[0]), run[0])):
        (colour, style), is_sgd = looks[label.partition(",")[0]], history.settings["method"] == "SGD"
        days = [record.seconds * TIMES["1 s"] for record in history.cycles]
        reached = np.array([record.test_accuracy for record in history.cycles])
        ax.plot(
            days,
            reached,
            style[0],
            linestyle="--" if is_sgd else "-",
            color=colour,
            markersize=4,
            markerfacecolor="white" if is_sgd else colour,
            label=label,
        )
    for (label, place), marker in zip(points.items(), "P*X", strict=False):
        ax.plot(*place, marker, color="black", markersize=8, label=label)
    if plan is not None:
        ax.axvline(plan[1], color="black", linestyle=":", linewidth=2, label=plan[0])
    ax.axhline(0.1, color=GREY, linewidth=1, linestyle=":", label="guessing")
    ax.set(xscale="log", xlabel="time", ylabel="test images right", ylim=(0, 1))
    ends = ax.get_xlim()
    ax.set_xticks(list(TIMES.values()), list(TIMES), fontsize="x-small")
    ax.set_xticks([], minor=True)
    ax.set_xlim(*ends)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", fontsize="x-small", bbox_to_anchor=(1, 1))
    return ax


def architecture(models: Mapping[str, nn.Module], ax: Axes | None = None) -> Axes:
    """The convolutions and linear layers of networks, from the images to the answer: a row of boxes for each.

    In a box the channels that it puts out; an arc is the shortcut of a residual block, a bar halves the pictures.
    """
    if ax is None:
        ax = plt.subplots(figsize=(7, 2.8), layout="constrained")[1]
    longest = 0
    for row, model in enumerate(models.values()):
        place, down = 0, -1.3 * row
        for module in model.modules():
            if isinstance(module, Block):
                begin, end = (place - 0.7, down + 0.3), (place + 1.3, down + 0.3)
                arc = {"arrowstyle": "->", "connectionstyle": "arc3,rad=-0.3", "color": ORANGE, "linewidth": 1.5}
                ax.annotate("", end, begin, arrowprops=arc)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                is_linear = isinstance(module, nn.Linear)
                colour = GREEN if is_linear else BLUE
                ax.add_patch(Rectangle((place, down - 0.3), 0.6, 0.6, color=colour, alpha=0.7))
                width = module.out_features if is_linear else module.out_channels
                ax.text(place + 0.3, down, str(width), ha="center", va="center", color="white")
                place += 1
            elif isinstance(module, nn.AvgPool2d):
                ax.plot([place - 0.2] * 2, [down - 0.4, down + 0.4], color=GREY, linewidth=2)
        longest = max(longest, place)
    ax.set(xlim=(-0.9, longest), ylim=(-1.3 * (len(models) - 1) - 0.6, 0.9), xticks=[])
    ax.set_yticks([-1.3 * row for row in range(len(models))], list(models))
    ax.set_xlabel("blue: convolution, green: linear layer, each with its channels\narc: shortcut, bar: pictures halved")
    return ax


def layer_signals(signals: Mapping[str, Mapping[str, tuple[float, float]]]) -> Figure:
    """What a weight's change does to the loss, and its luck, layer by layer: networks by name side by side."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    all_axes = figure.subplots(1, len(signals), sharey=True, squeeze=False)[0]
    for ax, (name, layers) in zip(all_axes, signals.items(), strict=True):
        for values, (colour, style), label in zip(
            zip(*layers.values(), strict=True), _STYLES, ("change of the loss", "luck of 250 images"), strict=False
        ):
            ax.plot(range(len(layers)), values, style, color=colour, markersize=5, label=label)
        ax.set_xticks(range(len(layers)), list(layers), rotation=60, ha="right", fontsize="x-small")
        ax.set(title=name, xlabel="layer", yscale="log")
        ax.grid(alpha=0.3)
    all_axes[0].set_ylabel("loss")
    all_axes[0].legend(fontsize="small")
    return figure


def clash(
    places: NDArray, losses: NDArray, moves: tuple[float, float], names: tuple[str, str], ax: Axes | None = None
) -> Axes:
    """The loss (other, one) over the moves (n,) of two weights, in sigma_d, with each one's own move and their sum."""
    if ax is None:
        ax = plt.subplots(figsize=(5, 3.4), layout="constrained")[1]
    levels = losses.min() + np.ptp(losses) * np.linspace(0.03, 0.97, 12) ** 2  # closer to each other in the valley
    lines = ax.contour(places, places, losses, levels=levels, cmap="cividis")
    ax.clabel(lines, fontsize="x-small", fmt="%.2f")
    one, other = moves
    arrows = (
        (one, 0.0, BLUE, "o", "-", "the first alone"),
        (0.0, other, ORANGE, "s", "-", "the second alone"),
        (one, other, "black", "D", "--", "both, merged"),
    )
    for x, y, colour, marker, line, label in arrows:
        if (x, y) != (0, 0):
            style = {"arrowstyle": "->", "color": colour, "linewidth": 2.5, "linestyle": line}
            ax.annotate("", (x, y), (0, 0), arrowprops=style)
        ax.plot(x, y, marker, color=colour, markersize=7, label=label, zorder=3)
    ax.plot(0, 0, "o", color="white", markeredgecolor="black", markersize=8, label="before", zorder=4)
    ax.set(xlabel="move of the first weight, in sigma_d", ylabel="of the second, in sigma_d", aspect="equal")
    ax.set_title(f"the loss; first: {names[0]}, second: {names[1]}", fontsize="small")
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small", frameon=False)
    return ax


def shadow(cosine: float, expected: float, ax: Axes) -> Axes:
    """A gradient as an arrow of length 1 above the directions that are looked along, and its shadow on them."""
    ax.axhline(0, color=GREY, linewidth=1)
    high = max(0.0, 1 - cosine**2) ** 0.5
    for end, colour, label in (((cosine, high), BLUE, "gradient"), ((cosine, 0.0), ORANGE, "its shadow")):
        ax.annotate("", end, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 3, "shrinkB": 0})
        ax.plot(*end, color=colour, linewidth=3, label=label)
    ax.plot([cosine, cosine], [high, 0], color=GREY, linestyle=":", linewidth=1)
    ax.plot(expected, 0, "|", color="black", markersize=14, label="sqrt(d / D)")
    ax.set(xlim=(-0.05, 1.1), ylim=(-0.15, 1.1), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    ax.set(xlabel="along the directions", ylabel="at a right angle to them")
    ax.legend(loc="upper right", fontsize="small")
    return ax


def cosines(draws: Sequence[tuple[int, float]], total: tuple[int, float], weights: int, ax: Axes) -> Axes:
    """Cosines of shadows with their gradient, draw by draw: (directions, cosine); and of the sum of the last ones."""
    numbers = np.geomspace(1, weights, 50)
    ax.plot(numbers, np.sqrt(numbers / weights), color="black", linestyle="--", linewidth=1, label="sqrt(d / D)")
    ax.plot(*zip(*draws, strict=True), "o", color=ORANGE, markersize=4, alpha=0.6, label="shadows so far")
    ax.plot(*total, "D", color=BLUE, markersize=7, label="added up")
    ax.set(xscale="log", ylim=(0, 1.05), xlabel=f"directions d, of D = {weights:,} weights", ylabel="cosine")
    powers = [10**power for power in range(len(str(weights)))]
    ax.set_xticks(powers, [f"{number:,}" for number in powers])  # plain: formulas take long to set
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", fontsize="small")
    return ax


def hills(along: NDArray, aside: NDArray, losses: NDArray, trained: NDArray, ax: Axes) -> Axes:
    """The loss (aside, along) over a plane of the weights, with random ones at its origin and trained ones."""
    levels = np.geomspace(losses.min(), losses.max(), 18)[1:-1]
    ax.contour(along, aside, losses, levels=levels, cmap="cividis", linewidths=1)
    ax.plot(0, 0, "s", color="white", markeredgecolor="black", markersize=7, label="random weights")
    ax.plot(*trained, "*", color="black", markersize=12, label="where SGD got")
    ax.set(xlabel="towards where SGD got", ylabel="at a right angle", aspect="equal")
    ax.set(xlim=(along[0], along[-1]), ylim=(aside[0], aside[-1]))
    return ax


def cloud(
    centre: NDArray, members: NDArray, ranks: NDArray, vote: NDArray, downhill: NDArray, ax: Axes
) -> list[Artist]:
    """Members (n, 2) around a centre, the lower the rank (n,) of their loss the darker, their vote, and downhill.

    Returns the artists, to take them away again.
    """
    look: dict[str, Any] = {
        "c": ranks,
        "cmap": "Oranges_r",
        "s": 26,
        "edgecolors": GREY,
        "linewidths": 0.5,
        "zorder": 3,
    }
    artists: list[Artist] = [ax.scatter(*members.T, label="members, dark: low loss", **look)]
    for move, colour, width, label in ((downhill, BLUE, 6, "downhill"), (vote, "black", 2.5, "their vote")):
        end, alpha = centre + move, 0.6 if colour == BLUE else 1
        arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": width, "alpha": alpha, "shrinkA": 0, "shrinkB": 0}
        artists.append(ax.annotate("", tuple(end), tuple(centre), arrowprops=arrow, zorder=4))
        artists += ax.plot(*end, color=colour, linewidth=width, alpha=alpha, label=label)
    artists += ax.plot(*centre, "o", color="white", markeredgecolor="black", markersize=8, label="centre", zorder=5)
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small", frameon=False)
    return artists


def pixels(differ: NDArray, counts: Mapping[str, NDArray]) -> Figure:
    """How many weights read each pixel (H, W), by name: dots on a map of how much the pixels differ."""
    figure = Figure(figsize=(3.2 * len(counts) + 0.8, 3), layout="constrained")
    axes = figure.subplots(1, len(counts), squeeze=False)[0]
    for ax, (name, read) in zip(axes, counts.items(), strict=True):
        shown = ax.imshow(differ, cmap="Blues", vmin=0)
        rows, columns = read.nonzero()
        ax.scatter(columns, rows, s=45 * read[rows, columns], color=ORANGE, edgecolors="black")
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"{name}: {read.sum()} weights", fontsize="medium")
    figure.colorbar(shown, ax=axes, label="how much a pixel differs")
    return figure


def states(neuron: int = 2, weight: int = 4, shape: tuple[int, int] = (4, 9)) -> Figure:
    """What the weight at (neuron, weight) of a convolution sees when its turn comes, in the three ways to search.

    shape: neurons, weights of each.
    """
    turns = np.arange(shape[0] * shape[1]).reshape(shape)
    own = np.zeros(shape, dtype=bool)
    own[neuron] = True
    earlier = turns < turns[neuron, weight]
    ways = {"one by one": earlier, "neurons apart": earlier & own, "weights apart": np.zeros(shape, dtype=bool)}
    figure = Figure(figsize=(7.6, 2.3), layout="constrained")
    for (name, new), ax in zip(ways.items(), figure.subplots(1, 3, sharey=True), strict=True):
        shades = np.where(new, 0.45, 0.0)
        shades[neuron, weight] = 1.0
        ax.pcolormesh(shades, cmap="Blues", vmin=0, vmax=1, edgecolors=GREY, linewidth=0.5)
        for row, column in np.argwhere(new):
            ax.text(column + 0.5, row + 0.5, "n", ha="center", va="center", fontsize="x-small")
        ax.text(weight + 0.5, neuron + 0.5, "?", ha="center", va="center", color="white")
        ax.set(title=f"{name}: {new.sum()} are new", xlabel="weight of the neuron", xticks=[])
        ax.set_yticks(np.arange(shape[0]) + 0.5, [str(number) for number in range(shape[0])])
    figure.axes[0].set_ylabel("output neuron")
    figure.axes[0].invert_yaxis()
    figure.suptitle("? is searched, n: already has its new value, empty: as before the sweep", fontsize="medium")
    return figure


def promises(
    table: NDArray, numbers: Sequence[int], sizes: Sequence[float], what: str = "weights", ax: Axes | None = None
) -> Axes:
    """What is left of the promised gain, table (sizes, numbers), over the number merged and the step, as a heat map."""
    if ax is None:
        ax = plt.subplots(figsize=(6.5, 0.9 + 0.45 * len(sizes)), layout="constrained")[1]
    ax.imshow(np.clip(table, -1, 1), cmap="PuOr", vmin=-1.6, vmax=1.6, aspect="auto")
    for (row, column), share in np.ndenumerate(table):
        ax.text(column, row, f"{share:.0%}", ha="center", va="center")
    ax.set_xticks(range(len(numbers)), [f"{number:,}" for number in numbers])
    ax.set_yticks(range(len(sizes)), [f"{size:g}" for size in sizes])
    ax.set(xlabel=f"{what} merged", ylabel="step, in sigma_d", title="left of the promised gain (below 0 %: harm)")
    return ax


def timeline(bars: Sequence[tuple[int, float, float, str]], ax: Axes) -> Axes:
    """What workers do when: bars (worker, begin, length, kind), times in seconds, kinds those of WORK."""
    workers = 1 + max(worker for worker, *_ in bars)
    for kind, (colour, hatch, label) in WORK.items():
        some = [(worker, begin, length) for worker, begin, length, of in bars if of == kind]
        if some:
            rows, begins, lengths = zip(*some, strict=True)
            drawn = ax.barh(rows, lengths, left=begins, height=0.8, label=label, color=colour, linewidth=0.5)
            for bar in drawn:
                bar.set(edgecolor=GREY if kind == "waits" else "white", hatch=hatch)
    ax.set(xlabel="seconds of a cycle", ylabel="worker", ylim=(workers - 0.5, -0.5))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize="small", frameon=False)
    return ax


def speedups(ideal: Sequence[int], gained: Sequence[float], now: int, measured: float, ax: Axes) -> Axes:
    """How many times as fast 1, 2, ... workers are, with a dot at the number `now`, and a cross at what two reached."""
    ax.plot(ideal, ideal, ":", color=GREY, label="ideal")
    ax.plot(ideal, gained, "-", color=BLUE, label="by the model")
    ax.plot(now, gained[now - 1], "o", color=BLUE, markersize=9)
    ax.plot(2, measured, "x", color="black", markersize=9, markeredgewidth=2, label=f"measured, 2: {measured:.2f}")
    ax.set(xlabel="workers", ylabel="times as fast", ylim=(0, max(max(ideal) / 2, 1.05 * max(gained))))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", fontsize="small")  # nothing is faster than ideal
    return ax


def shares(values: Sequence[float], mark: tuple[float, str] | None = None, ax: Axes | None = None) -> Axes:
    """A histogram of accuracies, with a labelled line at one of them."""
    if ax is None:
        ax = plt.subplots(figsize=(6, 3.2), layout="constrained")[1]
    ax.hist(values, bins=20, color=BLUE, alpha=0.7)
    if mark is not None:
        ax.axvline(mark[0], color=ORANGE, linestyle="--", label=f"{mark[1]}: {mark[0]:.1%}")
        ax.legend()
    ax.set(xlabel="test images right", ylabel="networks")
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(alpha=0.3)
    return ax


def digit(picture: Tensor, ax: Axes) -> Axes:
    """An image (H, W) as a network gets to see it."""
    ax.imshow(picture.numpy(), cmap="gray_r")
    ax.set(xlabel="what it sees", xticks=[], yticks=[])
    return ax


def chances(values: Sequence[float], ax: Axes) -> Axes:
    """The probability of each answer, a bar for each, the largest in another colour."""
    best = max(values)
    colours = [BLUE if value == best else GREY for value in values]
    ax.bar(range(len(values)), values, color=colours, alpha=0.8)
    ax.set(xlabel="answer", ylabel="probability", ylim=(0, 1), xticks=range(len(values)))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(alpha=0.3, axis="y")
    return ax


@torch.no_grad()
def answers(model: nn.Module, data: Data, count: int = 8) -> Figure:
    """The first test images with the model's answer to each, and its accuracy on all of them."""
    training = model.training
    given = model.eval()(data.x_test).argmax(dim=1)
    model.train(training)
    shown = data.x_test[:count].mean(dim=1).cpu().numpy()
    figure = Figure(figsize=(7, 1.7), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, image, answer, label in zip(axes, shown, given, data.y_test, strict=False):
        ax.imshow(image, cmap="gray_r")
        ax.axis("off")
        if answer == label:
            ax.set_title(f"says {answer}\nright", fontsize="small", color=BLUE)
        else:
            ax.set_title(f"says {answer}\nis {label}", fontsize="small", color=GREY)
    right = int((given == data.y_test).sum())
    figure.suptitle(f"{right} of all {len(given)} test images right: {right / len(given):.1%}", fontsize="medium")
    return figure


CIFAR = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def colour_pictures(data: Data) -> Figure:
    """CIFAR-10's first eight test pictures, and what they show."""
    figure = Figure(figsize=(5.5, 1.1), layout="constrained")
    for ax, x, label in zip(figure.subplots(1, 8), data.x_test.cpu(), data.y_test.tolist(), strict=False):
        ax.imshow(((x - x.min()) / (x.max() - x.min())).permute(1, 2, 0).numpy())
        ax.set_title(CIFAR[label], fontsize="small")
        ax.axis("off")
    return figure


def describe(figure: Figure) -> str:
    """The figure in words, for those who do not see it: its axes, lines, bars and heat maps, in a few numbers each."""
    scales = {image.colorbar.ax for ax in figure.axes for image in ax.images if image.colorbar}
    told = [figure.get_suptitle()]
    for ax in figure.axes:
        if ax not in scales:  # what a colour bar says is said of its image
            names = [name.replace("\n", " ") for name in (ax.get_ylabel(), ax.get_xlabel()) if name]
            told += [ax.get_title().replace("\n", ", "), " against ".join(names)]
            told += [*_lines_told(ax), *_bars_told(ax), *_table_told(ax)]
            told += [f"{image.colorbar.ax.get_ylabel()}: {_range(image)}" for image in ax.images if image.colorbar]
    return ". ".join(part for part in told if part)


def _lines_told(ax: Axes) -> list[str]:
    """Where each line begins and ends; of one that goes straight up, such as the paper's value, its name."""
    told = []
    form = ax.yaxis.get_major_formatter().format_data_short
    for line in ax.lines:
        places, heights = (np.asarray(numbers) for numbers in line.get_data(orig=False))
        label = str(line.get_label())
        if not len(places) or label.startswith("_"):  # as matplotlib calls what has no name
            continue
        is_mark = len(places) == 2 and places[0] == places[1]
        ends = [form(float(height)).strip() for height in heights[[0, -1]]]
        told.append(label if is_mark else f"{label}: {' to '.join(dict.fromkeys(ends))}")
    return told


def _bars_told(ax: Axes) -> list[str]:
    """How long each bar is, those at the same place together; of more than 16 where they are and which is longest."""
    told = []
    for group in ax.containers:
        if not isinstance(group, BarContainer) or not group.patches:
            continue
        upright = group.orientation == "vertical"
        along, across = (ax.yaxis, ax.xaxis) if upright else (ax.xaxis, ax.yaxis)
        lengths: dict[str, float] = {}
        for bar in group.patches:
            place = bar.get_x() + bar.get_width() / 2 if upright else bar.get_y() + bar.get_height() / 2
            name = _tick(across, place) if _has_names(across) else _number(across, place)
            lengths[name] = lengths.get(name, 0) + (bar.get_height() if upright else bar.get_width())
        if len(lengths) > 16:  # a histogram
            names = [name for name, length in lengths.items() if length]
            words = f"from {names[0]} to {names[-1]}, most at {max(lengths, key=lengths.__getitem__)}"
        else:
            pairs = ((name, _number(along, length)) for name, length in lengths.items())
            words = ", ".join(": ".join(filter(None, pair)) for pair in pairs)
        labels = (str(named.get_label()) for named in (group, group.patches[0]))  # a histogram's is the bar's
        told.append(": ".join([*(label for label in labels if label and not label.startswith("_")), words]))
    return told


def _table_told(ax: Axes) -> list[str]:
    """What is written into the rows of a table, or of boxes, that have names."""
    rows: dict[str, list[str]] = {}
    for text in ax.texts:
        if text.get_transform() == ax.transData and _has_names(ax.yaxis):
            rows.setdefault(_tick(ax.yaxis, text.get_position()[1]), []).append(text.get_text())
    return [f"{row}: {', '.join(words)}" for row, words in rows.items()]


def _has_names(axis: Axis) -> bool:
    return not isinstance(axis.get_major_formatter(), ScalarFormatter | PercentFormatter | LogFormatter)


def _tick(axis: Axis, place: float) -> str:
    """The name of the tick that is nearest; nothing where there is none."""
    places = list(axis.get_major_locator()())
    names = axis.get_major_formatter().format_ticks(places)
    return min(zip(places, names, strict=True), key=lambda tick: abs(tick[0] - place))[1] if places else ""


def _number(axis: Axis, value: float) -> str:
    """In the axis' unit."""
    form = axis.get_major_formatter()
    return form(value) if isinstance(form, PercentFormatter) else f"{value:.3g}"


def _range(image: AxesImage) -> str:
    """The lowest and the highest number of a heat map, in the unit of its colour bar."""
    numbers = np.ma.filled(np.ma.asarray(image.get_array()).astype(float), np.nan)
    axis = image.colorbar.ax.yaxis  # type: ignore[union-attr]
    return f"{_number(axis, np.nanmin(numbers))} to {_number(axis, np.nanmax(numbers))}"


def save(ax: Axes, path: str | os.PathLike) -> None:
    """Write the figure that `ax` is part of; the ending of `path` says whether png, svg or pdf: png without one.

    Raises ValueError for another ending, OSError for a device or a pipe.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    with replacing(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:] or "png", dpi=150)
