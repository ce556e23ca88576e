"""Figures show the numbers that they say."""

import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell

import rso_lab as rso
from rso_lab import notebook, plots


@pytest.fixture(scope="module")
def histories():
    """RSO and SGD on the same data."""
    data = rso.load("digits", train_limit=100, test_limit=50)
    methods = (rso.RSO(2, 30), rso.SGD(2, 30, 0.1, warm_up=1))
    return [rso.fit(rso.models.build("one_conv", data), data, method, seed=0) for method in methods]


@pytest.mark.parametrize("against", plots.AXES)
def test_accuracy_against_each_axis(histories, against):
    ax = plots.accuracy(histories, against=against)
    for line, history in zip(ax.lines, histories, strict=False):
        assert list(line.get_xdata()) == [getattr(record, against) for record in history.cycles]
        assert list(line.get_ydata()) == [record.test_accuracy for record in history.cycles]
    assert plots.AXES[against] in ax.get_xlabel() or ax.get_xlabel() == "cycle, and epoch of SGD"


def test_a_figure_says_who_has_epochs_and_who_uses_the_gradient(histories):
    searched, descended = histories
    evolved = replace(
        descended,
        settings={**descended.settings, "method": "ES"},
        cycles=[replace(record, evaluator="forward passes") for record in descended.cycles],
    )
    several = {
        "cycle, and epoch of SGD": (searched, descended),
        "cycle, and epoch of the others": (searched, descended, evolved),
        "epoch": (descended, evolved),
        plots.AXES["cycle"]: (searched,),
    }
    for label, some in several.items():
        for ax in (plots.accuracy(some), plots.comparison({str(place): [run] for place, run in enumerate(some)})):
            assert ax.get_xlabel() == label
            for line, history in zip(ax.lines, some, strict=False):
                assert (line.get_markerfacecolor() == "white") == (history is descended)
            said = ax.get_legend().get_title().get_text()
            assert said == ("hollow: uses the gradient" if descended in some else "")


def test_a_long_run_has_at_most_fifty_marks(histories):
    history = histories[0]
    long = replace(history, cycles=[replace(history.cycles[0], cycle=number) for number in range(682)])
    assert 682 / plots.accuracy(long).lines[0].get_markevery() <= 52


def test_an_axis_that_is_not_there_is_refused(histories):
    with pytest.raises(ValueError, match="against is 'days': expected 'cycle' or "):
        plots.accuracy(histories, against="days")


def test_a_comparison_shows_mean_and_range(histories):
    history = histories[0]
    worse = replace(history, cycles=[replace(record, test_accuracy=0.0) for record in history.cycles])
    ax = plots.comparison({"RSO": [history, worse], "SGD": [histories[1]]}, against="updates")
    shares = np.array([record.test_accuracy for record in history.cycles])
    assert list(ax.lines[0].get_xdata()) == [1, 2]
    assert ax.lines[0].get_ydata() == pytest.approx(shares / 2)
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0, shares.max())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["RSO", "SGD"]


def test_a_figure_is_told_in_words(histories):
    ax = plots.comparison({"RSO": [histories[0]], "SGD": [histories[1]]})
    words = plots.describe(ax.figure)
    first, last = (f"{histories[0].cycles[place].test_accuracy:.0%}"[:-1] for place in (0, -1))
    assert "mean and range over seeds: 1. test images right against cycle" in words
    assert re.search(rf"RSO: {first}[.0-9]*% to {last}[.0-9]*%", words)


def test_bars_are_told_in_words():
    words = plots.describe(plots.kept({"fc": 0.25, "conv1": 0.5}).figure)
    assert words == "weights kept. paper: about 10 %. fc: 25%, conv1: 50%"
    ax = plots.layer_costs({"plain": {"a": 8.0, "b": 1500.0}, "cached": {"b": 2.5}}, ["a", "b"])
    assert plots.describe(ax.figure) == "multiply-adds. plain: a: 8, b: 1.5e+03. cached: a: 0, b: 2.5"
    ax = plt.subplots()[1]
    plots.timeline([(0, 0, 2, "alone"), (0, 2, 1, "shared"), (0, 3, 4, "shared"), (1, 2, 6, "shared")], ax)
    words = "worker against seconds of a cycle. each for itself: 0: 2. its part: 0: 5, 1: 6"
    assert plots.describe(ax.figure) == words


def test_a_histogram_is_told_in_words():
    values = [0.0, 0.1, 0.5, 0.5, 0.5, 1.0]
    words = plots.describe(plots.differences({"one": values, "another": [0.2]}).figure)
    places = [
        float(number) for number in re.search(r"one: from (\S+) to (\S+), most at ([^ ,.]*[.][0-9]+)", words).groups()
    ]
    assert places == pytest.approx([0, 1, 0.5], abs=1 / 40)
    assert "another: from 0.2" in words


def test_heat_maps_are_told_in_words():
    table = np.array([[0.5, -0.25, 0.0], [0.125, 0.75, np.nan]])
    words = plots.describe(plots.gains(table[:, :2], [1, 10], [0.5, 1]).figure)
    assert words.endswith("against weights moved at once. mean gain of a proposal (loss): -0.25 to 0.75")
    words = plots.describe(plots.grid(table, [50, 100], [0.1, 1, 2], (1, 1), "updates", "{:.3f}").figure)
    assert words.endswith("50: 0.500, -0.250, 0.000. 100: 0.125, 0.750, –. updates: -0.25 to 0.75")
    words = plots.describe(plots.promises(table[:, :2], [1, 10], [0.5, 1]).figure)
    assert words.endswith("0.5: 50%, -25%. 1: 12%, 75%")


def test_boxes_are_told_in_words():
    networks = {name: rso.models.build(name, rso.load("digits")) for name in ("one_conv", "two_conv")}
    words = plots.describe(plots.architecture(networks).figure)
    for name, model in networks.items():
        widths = [len(weight) for weight in model.parameters() if weight.dim() > 1]
        assert f"{name}: {', '.join(map(str, widths))}" in words


def test_a_notebook_shows_figures_with_words():
    shell = InteractiveShell.instance()
    try:
        notebook.describe_figures()
    finally:
        InteractiveShell.clear_instance()
    ax = plots.signals([1.0, 4.0])
    bundle, _ = shell.display_formatter.format(ax)
    assert 'alt="size (root mean square) against layer (0: the images)' in bundle["text/html"]
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert not plt.fignum_exists(ax.figure.number)
    assert "<img" in shell.display_formatter.format(ax.figure)[0]["text/html"]
