"""Lesson 08: the race against SGD, a step of SGD, the grid search, and the bills."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

import rso_lab as rso
from rso_lab import lessons, plots, widgets
from rso_lab.experiments import RESULTS, held_out, read
from rso_lab.lessons.against_sgd import _MISTAKES, check_sgd_step, grid_table

METHODS = {
    "RSO": rso.RSO(1, 20),
    "held": rso.RSO(1, 20, batch_every="neuron"),
    "network": rso.RSO(1, 20, level="network"),
    "SGD": rso.SGD(40, 50, 0.1),
}
AXES = ("updates", "evaluations", "multiply_adds", "seconds")


@pytest.fixture
def race(digits):
    return widgets.Race(rso.models.build("one_conv", digits), digits, METHODS, against="updates")


@pytest.fixture(scope="module")
def over(digits):
    """A race that is over."""
    race = widgets.Race(rso.models.build("one_conv", digits), digits, METHODS, against="updates")
    race.finish()
    return race


def test_the_race_ends_in_the_weights_and_the_bill_of_fit(over, digits):
    race, model = over, rso.models.build("one_conv", digits)
    for label, method in METHODS.items():
        other = copy.deepcopy(model)
        last = rso.fit(other, held_out(digits), method, seed=0).cycles[-1]
        search = race.searches[label]
        for one, two in zip(search.model.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, two)
        for axis in ("updates", "evaluations", "multiply_adds"):
            assert search.measured[axis][-1] == getattr(last, axis) == getattr(search, axis), (label, axis)
        assert search.accuracies[-1] == pytest.approx(last.test_accuracy)
        assert search.seconds > 0
        assert sorted(search.measured["seconds"]) == search.measured["seconds"]
    assert race.searches["SGD"].updates == 40 * 2


@pytest.mark.parametrize("axis", ["updates", "evaluations", "multiply_adds"])
def test_who_has_spent_least_of_what_is_counted_is_next(race, axis):
    race.against.value = axis
    race.start()
    race.drawn = math.inf  # no picture is due meanwhile: a call of pump would draw in place of a step
    for _ in range(150):
        before = {label: getattr(search, axis) for label, search in race.searches.items()}
        race.pump(0)
        (moved,) = (label for label, search in race.searches.items() if getattr(search, axis) != before[label])
        assert before[moved] == min(before.values())
    race.stop()


def test_the_switch_changes_the_axis_and_nothing_else(over):
    race = over
    accuracies = {label: list(search.accuracies) for label, search in race.searches.items()}
    pictures = set()
    for axis in AXES:
        race.against.value = axis
        ax = race.figure.axes[0]
        assert ax.get_xlabel() == plots.AXES[axis]
        assert ax.get_xscale() == "log"
        for line, (label, search) in zip(ax.lines, race.searches.items(), strict=False):
            assert line.get_label() == label
            assert list(line.get_xdata(orig=True)) == search.measured[axis]
            assert list(line.get_ydata()) == accuracies[label]
        pictures.add(race.image.value)
    assert len(pictures) == len(AXES)


def test_who_waits_takes_part_when_it_is_ticked(digits):
    methods = {
        "SGD": rso.SGD(2, 50, 0.1, warm_up=1),
        "ES": rso.ES(1, 100, 0.01, samples=2),
        "RBD": rso.Subspace(1, 50, 1.0, dimensions=5),
    }
    model = rso.models.build("one_conv", digits)
    race = widgets.Race(model, digits, methods, waiting=("ES", "RBD"))
    assert list(race.running) == ["SGD"]
    race.taking_part["ES"].value = True
    race.finish()
    batches = len(held_out(digits).x_train) // 100
    assert [search.evaluations for search in race.searches.values()] == [2 * (2 * batches), 4 * batches, 0]
    fitted = copy.deepcopy(model)
    rso.fit(fitted, held_out(digits), methods["ES"], seed=0)
    for one, two in zip(race.searches["ES"].model.parameters(), fitted.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_fifth_line_does_not_look_like_the_first():
    ax = plots.learning({str(number): ([0, 1], [0, 1]) for number in range(5)}, None, "")
    looks = [(line.get_color(), line.get_linestyle(), line.get_linewidth()) for line in ax.lines]
    assert len(set(looks)) == len(looks)


def test_a_method_can_be_left_out_before_the_start(race):
    race.taking_part["network"].value = False
    race.taking_part["held"].value = False
    race.finish()
    assert [line.get_label() for line in race.figure.axes[0].lines[:2]] == ["RSO", "SGD"]
    assert race.searches["network"].evaluations == race.searches["held"].proposals == 0
    assert race.searches["RSO"].evaluations == 3 * 690
    assert all(box.disabled for box in race.taking_part.values())
    assert "network" not in race.said.value
    race.reset()
    assert not any(box.disabled for box in race.taking_part.values())
    assert [getattr(search, axis) for search in race.searches.values() for axis in AXES] == [0] * 16
    for box in race.taking_part.values():
        box.value = False
    race.finish()
    assert race.state == "done"


def test_descent_yields_each_iteration_and_keeps_the_statistics_of_the_mini_batch(digits):
    """With batch norms, in a race, too: as fit does, which the tests of SGD compare with a loop by hand."""
    model = rso.models.build("paper_cnn", digits)
    race = widgets.Race(model, digits, {"SGD": rso.SGD(2, 50, 0.1, warm_up=1)})
    race.start()
    for number in (1, 2, 3):
        race.pump(0)
        assert race.searches["SGD"].updates == number
        assert not any(module.training for module in race.searches["SGD"].model.modules())
    race.finish()
    rso.fit(model, held_out(digits), rso.SGD(2, 50, 0.1, warm_up=1), seed=0)
    for one, two in zip(race.searches["SGD"].model.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.allclose(one.double(), two.double(), atol=1e-6) or one.dtype == torch.long


def solution(weight, gradient, velocity, rate, momentum):
    velocity = momentum * velocity + gradient
    return weight - rate * velocity, velocity


def in_place(weight, gradient, velocity, rate, momentum):
    velocity *= momentum
    velocity += gradient
    weight -= rate * velocity
    return weight, velocity


@pytest.mark.parametrize("answer", [solution, in_place, lambda *given: list(solution(*given))])
def test_a_right_step_passes(answer, capsys):
    assert check_sgd_step(answer)
    assert capsys.readouterr().out.startswith("Right")


@pytest.mark.parametrize(
    "stub", [lambda w, g, v, r, m: ..., lambda w, g, v, r, m: None, lambda w, g, v, r, m: (..., ...)]
)
def test_a_stub_is_not_done_yet(stub, capsys):
    assert not check_sgd_step(stub)
    assert capsys.readouterr().out.startswith("Not done yet")


def plus(w, g, v, r, m):
    v = m * v + g
    return w + r * v, v


def no_rate(w, g, v, r, m):
    v = m * v + g
    return w - v, v


def not_kept(w, g, v, r, m):
    return w - r * (m * v + g), v


def plain(w, g, v, r, m):
    return w - r * g, m * v + g


MISTAKES = {
    "plus": (plus, "subtract"),
    "no rate": (no_rate, "The rate is missing"),
    "not kept": (not_kept, "Return the new one"),
    "plain": (plain, "It follows the velocity"),
    "exchanged": (lambda *given: solution(*given)[::-1], "the weight is returned first"),
    "one": (lambda *given: solution(*given)[0], "two tensors are wanted"),
    "a number": (lambda *given: tuple(part.sum() for part in solution(*given)), "5 numbers each"),
    "an error": (lambda w, g, v, r, m: w.nothing, "stopped with AttributeError"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake, capsys):
    answer, named = MISTAKES[mistake]
    assert not check_sgd_step(answer)
    out = capsys.readouterr().out
    assert out.startswith("Not yet")
    assert named in out


@pytest.mark.parametrize(("mistake", "advice"), _MISTAKES)
def test_each_named_mistake_has_its_own_advice(mistake, advice, capsys):
    assert not check_sgd_step(mistake)
    assert capsys.readouterr().out.splitlines()[1] == advice


def test_a_learners_step_trains_as_torchs_does(digits, capsys):
    lessons.descend_with(solution, digits)
    model = rso.models.build("one_conv", digits)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    for rows in torch.randperm(120, generator=torch.Generator().manual_seed(0))[:100].split(50):
        optimizer.zero_grad()
        F.cross_entropy(model(digits.x_train[rows]), digits.y_train[rows]).backward()
        optimizer.step()
    right = (model(digits.x_test).argmax(dim=1) == digits.y_test).double().mean().item()
    assert f"After one epoch, 2 steps of yours: {right:.1%} of" in capsys.readouterr().out
    lessons.descend_with(plus, digits)
    assert "epoch" not in capsys.readouterr().out


def test_the_grid_is_the_recorded_search():
    seen = widgets.Grid()
    assert seen.best == (50, 0.1)  # as the report has it
    assert "60 runs, 11,700 steps" in seen.said.value
    ax = seen.figure.axes[0]
    assert "97.8%" in [text.get_text() for text in ax.texts]
    assert len(ax.texts) == 4 * 5
    assert "batch 5000, rate 0.5" in ax.get_title()
    seen.best_by.value = "updates"
    assert seen.best == (100, 0.1)
    seen.data.value = "evening"
    assert seen.best == (5000, 0.1)
    assert "20 runs" in seen.said.value
    assert "–" in [text.get_text() for text in seen.figure.axes[0].texts]
    assert "A dash: not all runs got to 90 %." in seen.said.value
    seen.best_by.value = "accuracy"
    assert seen.best == (100, 0.1)
    assert seen.said.value in seen.image.value


def test_updates_of_the_grid_are_means_where_all_seeds_got_there():
    table, sizes, rates = grid_table(read(RESULTS / "grid_class.json"), "updates")
    assert (sizes, rates) == ([50, 100, 250, 1000], [0.01, 0.1, 0.5, 1.0, 5.0])
    assert table[0, 1] == pytest.approx((46 + 69 + 138) / 3)
    assert math.isnan(table[2, 1])  # one of its three seeds did not


def test_the_frame_is_around_the_best_and_nan_is_a_dash():
    table = np.array([[0.1, 0.9, np.nan], [0.2, 0.3, 0.4]])
    ax = plots.grid(table, (10, 20), (0.1, 1, 5), (0, 1), "right", "{:.0%}", Figure().subplots())
    (frame,) = (patch for patch in ax.patches)
    x, y = frame.get_xy()
    assert x < 1 < x + frame.get_width()
    assert y < 0 < y + frame.get_height()
    assert [text.get_text() for text in ax.texts] == ["10%", "90%", "–", "20%", "30%", "40%"]
    assert ax.images[0].get_cmap().name == "cividis"
    assert plots.grid(table, (10, 20), (0.1, 1, 5), (0, 0), "", "{}", Figure().subplots()).images[
        0
    ].get_cmap().name == ("cividis_r")


def test_four_axes_show_the_same_runs():
    runs = lessons.recorded("updates", "class")
    figure = plots.four_axes(runs)
    assert [ax.get_xlabel() for ax in figure.axes] == [plots.AXES[axis] for axis in AXES]
    for ax, axis in zip(figure.axes, AXES, strict=True):
        line = next(line for line in ax.lines if line.get_label() == "SGD")
        assert list(line.get_xdata()) == [getattr(record, axis) for record in runs["SGD"][0].cycles]
        low, high = np.log10(ax.get_xlim())
        assert (low, high) == pytest.approx((round(low), round(high)))


def test_what_was_spent_is_the_first_record_that_is_good_enough(capsys):
    runs = lessons.recorded("updates", "class")
    spent = lessons.spent_to(runs, 0.9)
    assert spent["RSO"]["updates"] == 2
    assert spent["SGD"]["updates"] == pytest.approx((84 + 112 + 112) / 3)  # as the report: 103 (84 to 112)
    assert spent["RSO"]["evaluations"] == 2 * 3 * 3130
    lessons.bill(spent, {"updates": "RSO", "seconds": ...})
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.endswith("your verdict")
    assert [line.split()[0] for line in lines] == ["updates", "evaluations", "multiply-adds", "seconds"]
    assert "RSO, 51 times" in lines[0]
    assert lines[0].endswith("RSO")
    assert f"SGD, {18780 / (308 / 3):.0f} times" in lines[1]
    assert lines[1].endswith("-")
    assert lines[3].endswith("-")


def test_who_never_gets_there_has_spent_without_end(capsys):
    runs = lessons.recorded("updates", "class")
    lessons.bill(lessons.spent_to(runs, 0.98))
    for line in capsys.readouterr().out.splitlines()[1:]:
        assert line.split()[1:3] == ["never", "never"]  # one seed of SGD, and all of RSO
        assert line.endswith("neither")
    lessons.bill(lessons.spent_to({"RSO": runs["RSO"], "SGD": runs["SGD"][:1]}, 0.98))
    for line in capsys.readouterr().out.splitlines()[1:]:
        assert line.endswith("   SGD")


def test_the_papers_own_bill(capsys):
    """Its 12,026 weights, three losses each, 50 cycles; 36.0e9 / 12,026 multiply-adds for a forward pass."""
    spent = lessons.spent_by_the_paper()
    assert spent["RSO"]["evaluations"] == 50 * 3 * 12_026
    assert spent["RSO"]["seconds"] / spent["SGD"]["seconds"] == 72
    lessons.bill(spent)
    assert capsys.readouterr().out.splitlines()[-1].split() == ["seconds", "36,000", "500", "SGD,", "72", "times"]
    width, pixels = 16, (784, 784, 196, 196, 49, 49)
    forward = 784 * 9 * width + sum(9 * width**2 * size for size in pixels[1:]) + 10 * width
    assert spent["SGD"]["multiply_adds"] == 600 * 5000 * 3 * forward
    convolution = [9 * width * (1 if layer == 0 else width) * size for layer, size in enumerate(pixels)]
    behind = 10 * width
    cycle = (10 * width + 10) * behind  # weights of the last layer and what one of them runs again
    for layer in reversed(range(6)):
        cycle += 2 * width * behind  # gamma and beta
        behind += convolution[layer]
        cycle += 9 * width * (1 if layer == 0 else width) * behind
    assert spent["RSO"]["multiply_adds"] == 50 * 3 * 5000 * cycle


def test_the_price_of_a_gradient_is_said(digits, capsys):
    lessons.price_of_a_gradient(digits)
    out = capsys.readouterr().out
    assert "slopes of all 690 weights" in out
    assert "2,070 losses" in out
