"""Lesson 07: moves that clash, the merge, workers and processes."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import rso_lab as rso
from rso_lab import lessons, plots, widgets
from rso_lab.lessons import parallel
from rso_lab.lessons.parallel import PAIRS, SearchedApart, TwoWeights, length, measured_work, promised


def merge(before, found):
    merged = before.clone()
    for i, weights in enumerate(found):
        merged[i] = weights[i]
    return merged


def in_place(before, found):
    for i, weights in enumerate(found):
        before[i] = weights[i]
    return before


def in_a_workers(before, found):
    for i, weights in enumerate(found):
        found[0][i] = weights[i]
    return found[0]


def by_input(before, found):
    merged = before.clone()
    for i, weights in enumerate(found):
        merged[:, i] = weights[:, i]
    return merged


def whole_tensors(before, found):
    merged = before.clone()
    for i, weights in enumerate(found):
        merged[i] = weights
    return merged


MISTAKES = {
    "mean": (lambda before, found: sum(found) / len(found), "You take the mean"),
    "mean of a stack": (lambda before, found: torch.stack(found).mean(0), "You take the mean"),
    "sum": (lambda before, found: sum(found), "You add up whole tensors"),
    "added": (lambda before, found: before + sum(found), "add whole tensors to the old weights"),
    "added to the old": (
        lambda before, found: torch.stack([old + found[i][i] for i, old in enumerate(before)]),
        "= in place of +=",
    ),
    "last": (lambda before, found: found[-1], "what the last worker has"),
    "first": (lambda before, found: found[0], "what the first worker has"),
    "old": (lambda before, found: before.clone(), "before the sweep"),
    "larger": (lambda before, found: torch.stack(found).max(0).values, "You take the larger weight"),
    "columns": (by_input, "You take input channels"),
    "in place": (in_place, "`before` was changed"),
    "in a worker's": (in_a_workers, "changed what a worker found"),
    "a list": (lambda before, found: [w[i] for i, w in enumerate(found)], "of the type list"),
    "by inputs": (
        lambda before, found: torch.stack([found[i][i] for i in range(before.shape[1])]),
        "stopped with IndexError",
    ),
    "stacked": (lambda before, found: torch.stack(found), "yours has (3, 3, 4, 3, 3)"),
    "whole tensors": (whole_tensors, "stopped with RuntimeError"),
}


def stacked(before, found):
    return torch.stack([weights[i] for i, weights in enumerate(found)])


def by_differences(before, found):
    return before + sum(weights - before for weights in found)


def in_float64(before, found):
    return merge(before, found).double()


@pytest.mark.parametrize("solution", [merge, stacked, by_differences, in_float64])
def test_the_solution_passes_in_any_form(solution, capsys):
    solution.__name__ = "merge"
    lessons.check(solution)
    assert capsys.readouterr().out.startswith("Right")


@pytest.mark.parametrize("stub", [lambda before, found: None, lambda before, found: ...])
def test_a_stub_is_not_done_yet(stub, capsys):
    assert not parallel.check_merge(stub)
    assert capsys.readouterr().out.startswith("Not done yet")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_named(mistake, capsys):
    answer, named = MISTAKES[mistake]
    assert not parallel.check_merge(answer)
    out = capsys.readouterr().out
    assert out.startswith("Not yet")
    assert named in out


def test_a_learners_merge_is_the_packages(digits):
    model = rso.models.build("two_conv", digits)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("conv2."))  # the others rest
    before = model.conv2.weight.detach().clone()
    found = [before.clone() for _ in before]
    for step in rso.steps(model, digits, rso.RSO(1, 30, parallel="neuron", batch_every="layer"), seed=0):
        if step.name == "conv2.weight":
            found[step.index[0]][step.index] += {"minus": -1, "keep": 0, "plus": 1}[step.choice] * step.delta
    assert torch.equal(merge(before, found), model.conv2.weight)
    assert not torch.equal(before, model.conv2.weight)


def loss_of(model, data):
    with torch.no_grad():
        return F.cross_entropy(model(data.x_train), data.y_train).item()


def test_moves_of_two_weights_are_chosen_with_the_other_at_rest(digits):
    one, other = PAIRS["two layers"]
    weights = TwoWeights(digits, one, other)
    model = rso.models.build("one_conv", digits)
    sigmas = [model.get_parameter(name).detach().std(correction=0).item() for name, _ in (one, other)]
    moves = weights.best_moves(0.5)
    for (name, index), sigma, move in zip((one, other), sigmas, moves, strict=True):
        losses = {}
        for tried in (0.0, 0.5, -0.5):
            moved = rso.models.build("one_conv", digits)
            with torch.no_grad():
                moved.get_parameter(name)[index] += tried * sigma
            losses[tried] = loss_of(moved, digits)
        assert move == min(losses, key=losses.get)
    with torch.no_grad():
        for (name, index), sigma, move in zip((one, other), sigmas, (1.5, -0.5), strict=True):
            model.get_parameter(name)[index] += move * sigma
    places = np.array([-0.5, 1.5])
    assert weights.surface(places)[0, 1] == pytest.approx(loss_of(model, digits), rel=1e-5)
    for name, parameter in rso.models.build("one_conv", digits).named_parameters():
        assert torch.equal(parameter, weights.model.get_parameter(name))  # put back


@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair_is_one_of_weights_that_both_help(pair, digits):
    weights = TwoWeights(digits, *PAIRS[pair])
    assert all(weights.best_moves(0.5))


def test_two_neighbours_clash_with_long_moves_only():
    seen = widgets.Clash(rso.load("digits"))
    seen.size.value = 0.3
    assert "gains nearly add up" in seen.said.value
    seen.size.value = 2
    assert "a clash: together they raise the loss" in seen.said.value
    assert seen.gains[2] < 0 < min(seen.gains[:2])
    ends = {line.get_label(): line.get_xydata()[0].tolist() for line in seen.axes.lines}
    one, other = seen.moves
    assert ends["the first alone"] == [one, 0]
    assert ends["the second alone"] == [0, other]
    assert ends["both, merged"] == [one, other]
    assert abs(one) == abs(other) == 2
    picture = seen.image.value
    seen.pair.value = "two filters"
    assert seen.image.value != picture
    assert "two filters, moves of 2.0" in seen.image.value
    assert seen._repr_mimebundle_()[0]["image/png"]


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((0.1, 0.2, -0.01), "raise the loss"),
        ((0.1, 0.2, 0.15), "less than one of them alone"),
        ((0.1, 0.2, 0.25), "a part of the gain is lost"),
        ((0.1, 0.2, 0.29), "nearly add up"),
        ((0.1, 0.2, 0.4), "help each other"),
        ((0.1, 0.0, 0.1), "one of them rests"),
        ((0.0, 0.0, 0.0), "both rest"),
    ],
)
def test_gains_are_told(gains, verdict):
    assert verdict in widgets.workers.told(*gains)


@pytest.fixture(scope="module")
def searched(digits):
    return SearchedApart(digits, cycles=0)


def test_what_was_chosen_apart_is_measured_together(searched, digits):
    model = rso.models.build("two_conv", digits)
    before = loss_of(model, digits)
    found = searched.choose("layer", 0.5)
    assert len(found) == 2320
    assert all(step.sigma == pytest.approx(0.5 * model.conv2.weight.std(correction=0).item()) for step in found)
    moved = found[:5]
    with torch.no_grad():
        for step in moved:
            losses = {}
            weight = model.get_parameter(step.name)
            old = weight[step.index].item()
            for choice, sign in (("keep", 0), ("plus", 1), ("minus", -1)):
                weight[step.index] = old + sign * step.delta
                losses[choice] = loss_of(model, digits)
            weight[step.index] = old
            assert step.losses._asdict() == pytest.approx(losses, abs=1e-5)
        for step in moved:
            model.get_parameter(step.name)[step.index] += {"keep": 0, "plus": 1, "minus": -1}[step.choice] * step.delta
    assert searched.gain(moved) == pytest.approx(before - loss_of(model, digits), abs=1e-5)
    assert promised(moved) == pytest.approx(sum(step.losses.keep - min(step.losses) for step in moved))
    assert searched.gain([]) == 0  # the network is as it was


def test_a_search_after_training_has_the_first_sigma(digits):
    trained = SearchedApart(digits, cycles=1)
    (step, *_) = trained.choose("layer", 1.0)
    first = rso.models.build("two_conv", digits).conv2.weight.std(correction=0).item()
    assert step.sigma == pytest.approx(first, rel=1e-5)
    assert trained.model.conv2.weight.std(correction=0).item() != pytest.approx(first, rel=1e-2)


def test_promises_are_kept_by_small_steps_and_by_few(searched, capsys):
    table = lessons.kept_promises(searched, (1, 2320), (1, 0.01), count=3)
    assert table[:, 0] == pytest.approx(1, abs=2e-2)
    assert table[0, 1] < 0.5 < table[1, 1] < 1
    neurons = lessons.kept_promises(searched, (1, 16), (1,), apart="neuron", count=3)
    assert neurons[0, 0] == pytest.approx(1, abs=2e-2)
    assert table[0, 1] < neurons[0, 1] < 1
    ax = plots.promises(table, (1, 2320), (1, 0.01))
    assert [text.get_text() for text in ax.texts] == [f"{share:.0%}" for share in table.flat]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2,320"]


def test_pairs_that_clash_are_counted(searched, capsys):
    share = lessons.clashing_pairs(searched, count=25)
    assert f"25 pairs: {round(25 * share)} gain less" in capsys.readouterr().out
    assert 0 <= share < 0.5


def test_training_apart_is_the_packages(digits):
    history = lessons.train_apart(digits, "neuron", cycles=1)
    assert history.settings["parallel"] == "neuron"
    model = rso.models.build("two_conv", digits)
    fitted = rso.fit(model, digits, rso.RSO(1, 120, batch_every="neuron", parallel="neuron"), seed=0)
    assert history.cycles[0].test_accuracy == fitted.cycles[0].test_accuracy


def test_what_a_weight_sees_is_counted():
    titles = [ax.get_title() for ax in plots.states(neuron=2, weight=4, shape=(4, 9)).axes]
    assert titles == ["one by one: 22 are new", "neurons apart: 4 are new", "weights apart: 0 are new"]


RANKS = json.loads((rso.experiments.RESULTS / "ranks.json").read_text())
MEASURED = {(run["parallel"], run["ranks"]): run["seconds"] for run in RANKS["runs"]}


def test_the_model_says_what_was_measured():
    work = measured_work()
    for workers in (1, 2):
        apart = parallel.neurons_shared(work, workers, work.share)
        assert length(apart) == pytest.approx(MEASURED["neuron", workers])
        together = parallel.batches_shared(work, workers, work.exchange)
        assert length(together) == pytest.approx(MEASURED[None, workers])


def test_exchanges_are_counted_as_the_search_makes_them():
    """For a weight's losses one, and one for each batch norm behind it: test_ranks counts them in a search."""
    behind = {"fc": 0} | {f"{kind}{i}": 6 - i + (kind == "conv") for i in range(1, 7) for kind in ("conv", "bn")}
    sizes = (
        {"fc": 170} | {f"bn{i}": 32 for i in range(1, 7)} | {f"conv{i}": 2304 if i > 1 else 144 for i in range(1, 7)}
    )
    expected = {f"conv{i}": sum(sizes[n] * (1 + behind[n]) for n in (f"conv{i}", f"bn{i}")) for i in range(1, 7)}
    expected["conv6"] += 170
    assert measured_work().exchanges == expected
    assert list(measured_work().layers) == [f"conv{i}" for i in range(6, 0, -1)]


@pytest.mark.parametrize("workers", [1, 3, 7, 16])
def test_nothing_is_lost_and_nobody_does_two_things_at_a_time(workers):
    work = measured_work()
    for bars in (parallel.neurons_shared(work, workers, 0.7), parallel.batches_shared(work, workers, 1e-3)):
        for worker in range(workers):
            mine = sorted((bar for bar in bars if bar.worker == worker), key=lambda bar: bar.begin)
            assert mine[0].begin == 0
            for bar, following in itertools.pairwise(mine):
                assert bar.begin + bar.length == pytest.approx(following.begin)
            assert mine[-1].begin + mine[-1].length == pytest.approx(length(bars))
    shared = sum(bar.length for bar in parallel.neurons_shared(work, workers, 0.7) if bar.kind == "shared")
    assert shared == pytest.approx(0.7 * MEASURED["neuron", 1])


def test_workers_follow_amdahls_law():
    seen = widgets.Workers()
    seen.share.value = 0.75
    for workers in (1, 2, 4, 8, 16):  # none of which leaves a worker without a neuron
        seen.workers.value = workers
        times = 1 / (0.25 + 0.75 / workers)
        assert f"{times:.2f} times as fast; ideal: {workers}." in seen.said.value
        assert "more than 4.0 times" in seen.said.value
        assert (seen.axes[0].get_ylim()[0] + 0.5) == workers
        assert seen.axes[1].lines[2].get_xydata()[0].tolist() == pytest.approx([workers, times])
    seen.share.value = 1
    assert "16.00 times" in seen.said.value
    assert seen.axes[1].get_ylim()[1] > 16
    seen.measured.click()
    assert seen.share.value == pytest.approx(2 * (1 - MEASURED["neuron", 2] / MEASURED["neuron", 1]))


def test_exchanges_cost_workers_what_they_take():
    seen = widgets.Workers()
    assert (seen.share.layout.display, seen.exchange.layout.display) == (None, "none")
    seen.shared.value = "every mini-batch"
    assert (seen.share.layout.display, seen.exchange.layout.display) == ("none", None)
    seen.workers.value = 2
    picture = seen.image.value
    assert f"2 workers: {MEASURED[None, 2]:.1f} s instead of {MEASURED[None, 1]:.1f} s" in seen.said.value
    seen.exchange.value = 10
    assert f"47,930 exchanges take {47930 * 10e-6:.1f} s" in seen.said.value
    assert seen.image.value != picture
    seen.measured.click()
    assert seen.image.value == picture
    assert seen._repr_mimebundle_()[0]["image/png"]


def test_the_lesson_says_what_is_recorded():
    source = (rso.experiments.RESULTS.parent / "notebooks" / "source" / "07_parallel.py").read_text("utf-8")
    for seconds in (MEASURED["neuron", 1], MEASURED["neuron", 2], MEASURED[None, 1], MEASURED[None, 2]):
        assert f"{seconds:.1f} s" in source
    assert f"{MEASURED[None, 1] / 2 / 47930 * 1000:.2f} milliseconds" in source
    runs = rso.experiments.read(rso.experiments.RESULTS / "parallel_class.json")["runs"]
    for way in ("one by one", "neurons apart", "weights apart"):
        ends = [run["cycles"][-1]["test_accuracy"] for run in runs if run["method"] == f"{way}, 20 cycles"]
        assert f"{way} {np.mean(ends):.1%}".replace("%", " %") in source
    one_by_one = lessons.train_apart(rso.load("digits"), None, cycles=2).cycles[-1].test_accuracy
    said = float(re.search(r"One by one it reads about (\d+) %", source)[1]) / 100
    assert (
        abs(said - one_by_one) < 0.04
    )  # another processor sums in another order and decides a few near-ties otherwise


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_processes_end_in_the_same_weights(capsys):
    lessons.on_processes((2,), cycles=1)
    two, verdict = capsys.readouterr().out.splitlines()
    assert two.startswith("2 processes:")
    data = rso.load("digits")
    model = rso.models.build("one_conv", data)
    rso.fit(model, data, rso.RSO(1, 200, parallel="neuron"), seed=0)
    assert two.split()[-1] == parallel._checksum(model.state_dict())  # of this one process
    assert verdict == "The same weights, bit for bit."


def test_processes_that_do_not_start_are_no_riddle(capsys):
    lessons.on_processes((0,))
    assert capsys.readouterr().out.startswith("torchrun --nproc-per-node 0 did not start")
