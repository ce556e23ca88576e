"""Widgets without a browser: every control is moved, and figures are checked by what they hold."""

import base64
import html

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F

import rso_lab as rso
from rso_lab import plots, widgets
from rso_lab.quizzes import QUIZZES
from rso_lab.widgets import Microscope
from rso_lab.widgets.family import projected


@pytest.fixture
def microscope(digits):
    torch.manual_seed(0)
    return Microscope(rso.models.build("one_conv", digits), digits, "conv1.weight", (3, 0, 1, 0))


def current_loss(microscope, digits):
    network = microscope.evaluator.network.module
    with torch.no_grad():
        return F.cross_entropy(network(digits.x_train), digits.y_train).item()


def dots(microscope):
    """The drawn candidates by label: (weight, loss)."""
    lines = {line.get_label().split(":")[0]: line.get_xydata()[0] for line in microscope.axes.lines[1:4]}
    return {name: tuple(point) for name, point in lines.items()}


def test_the_slider_moves_the_dots_and_leaves_the_weight(microscope, digits):
    weight = microscope.weight.item()
    pictures = []
    for delta in (microscope.delta.max / 5, microscope.delta.max):
        microscope.delta.value = delta
        shown = dots(microscope)
        assert shown["w - δ"][0] == pytest.approx(weight - delta)
        assert shown["w + δ"][0] == pytest.approx(weight + delta)
        assert shown["w"] == pytest.approx((weight, current_loss(microscope, digits)))
        assert microscope.weight.item() == weight
        pictures.append(microscope.image.value)
    assert pictures[0] != pictures[1]
    assert 'alt="Loss along weight conv1.weight[3, 0, 1, 0]' in pictures[1]


def test_the_button_keeps_the_best_until_nothing_helps(microscope, digits):
    for _ in range(20):
        shown = dots(microscope)
        before = current_loss(microscope, digits)
        microscope.keep_best.click()
        best = min(shown.values(), key=lambda point: point[1])
        assert microscope.weight.item() == pytest.approx(best[0], rel=1e-6)
        assert current_loss(microscope, digits) == pytest.approx(best[1], rel=1e-5)
        assert microscope.curve_weights[0] < microscope.weight.item() < microscope.curve_weights[-1]
        if best == shown["w"]:
            assert microscope.said.value.startswith("Kept: neither side is lower.")
            break
        assert microscope.said.value == f"The loss fell from {before:.4f} to {best[1]:.4f}."
        assert microscope.before[-1] == pytest.approx(shown["w"])
    else:
        raise AssertionError("it never came to rest")


def test_on_a_staircase_a_larger_step_is_advised():
    """Where no answer turns, all three losses are equal."""
    few = rso.load("digits", train_limit=20)

    def error(outputs, targets):
        return (outputs.argmax(dim=1) != targets).float().mean()

    seen = Microscope(rso.models.build("one_conv", few), few, "conv1.weight", (3, 0, 1, 0), loss=error)
    seen.delta.value = seen.delta.min
    assert len({loss for _, loss in seen.candidates().values()}) == 1
    seen.keep_best.click()
    assert seen.said.value.endswith("try a larger δ.")


def test_the_curve_is_the_loss(microscope, digits):
    model = microscope.evaluator.network.module
    for at in (0, 17, 60):
        with torch.no_grad():
            before = microscope.weight.clone()
            microscope.weight.fill_(microscope.curve_weights[at])
            loss = F.cross_entropy(model(digits.x_train), digits.y_train).item()
            assert microscope.curve_losses[at] == pytest.approx(loss)
            microscope.weight.copy_(before)


def test_batch_norms_behind_the_weight_use_the_mini_batch(digits64):
    model = reference.small_network()
    seen = Microscope(model, digits64, "4.weight", (0, 0, 1, 1))
    with torch.no_grad():
        outputs = reference.outputs(model, digits64.x_train, digits64.x_train, first=4)
        assert seen.curve_losses[30] == pytest.approx(F.cross_entropy(outputs, digits64.y_train).item(), rel=1e-10)


def test_it_falls_back_on_a_picture(microscope):
    bundle, metadata = microscope._repr_mimebundle_()
    assert "lowest of the three" in metadata["image/png"]["alt"]
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert "application/vnd.jupyter.widget-view+json" in bundle


@pytest.mark.parametrize(
    ("parameter", "index", "message"),
    [
        ("fc.wait", (0, 0), r"'fc.wait' is not known: choose from conv1\.weight"),
        ("conv1.weight", (4, 0, 1, 0), r"index is \(4, 0, 1, 0\): conv1.weight has shape \(4, 1, 3, 3\)"),
        ("conv1.weight", (0, 0), r"index is \(0, 0\)"),
    ],
)
def test_an_unknown_weight_is_refused_with_those_there_are(digits, parameter, index, message):
    with pytest.raises(ValueError, match=message):
        Microscope(rso.models.build("one_conv", digits), digits, parameter, index)


def test_watch_returns_the_history_and_draws_it(digits):
    model = rso.models.build("mlp", digits)
    history = rso.widgets.watch(rso.histories(model, digits, rso.RSO(2, 20), seed=0))
    assert [record.cycle for record in history.cycles] == [1, 2]
    ax = plots.accuracy(history)
    shares = [record.test_accuracy for record in history.cycles]
    assert np.array_equal(ax.lines[0].get_xydata(), np.array([[1, shares[0]], [2, shares[1]]]))
    assert ax.get_xlabel()
    assert ax.get_ylabel()


def test_a_stopped_watch_returns_what_there_is(digits):
    def stopped(histories, after):
        for history in histories:
            yield history
            if len(history.cycles) == after:
                raise KeyboardInterrupt

    def run():
        return rso.histories(rso.models.build("one_conv", digits), digits, rso.RSO(3, 20), seed=0)

    assert len(rso.widgets.watch(stopped(run(), 2)).cycles) == 2


def test_answers_are_the_models(digits):
    model = rso.models.build("one_conv", digits)
    figure = plots.answers(model, digits, count=5)
    with torch.no_grad():
        answers = model(digits.x_test).argmax(dim=1)
    right = (answers == digits.y_test).tolist()
    for ax, answer, label, ok in zip(figure.axes, answers, digits.y_test, right, strict=False):
        assert ax.get_title() == f"says {answer}\n" + ("right" if ok else f"is {label}")
    assert figure.get_suptitle() == f"{sum(right)} of all 60 test images right: {sum(right) / 60:.1%}"


def test_initialisation_shows_what_the_scale_does(digits):
    seen = widgets.Initialisation(digits, depth=4)
    he, picture = seen.spreads, seen.image.value
    assert len(he) == 5
    assert he[0] == pytest.approx(digits.x_train.square().mean().sqrt().item())
    seen.scale.value = 2
    assert seen.spreads == pytest.approx([size * 2**layer for layer, size in enumerate(he)], rel=1e-4)
    assert seen.image.value != picture
    seen.he.click()
    assert seen.scale.value == 1
    assert seen.spreads == pytest.approx(he)
    assert base64.b64decode(seen._repr_mimebundle_()[0]["image/png"]).startswith(b"\x89PNG")


def test_recorded_runs_can_be_chosen():
    seen = widgets.Recorded("order")
    assert seen.choice.value == "order (class)"
    assert len(seen.axes.lines) == 5
    assert seen.axes.get_xlabel() == plots.AXES["cycle"]
    seen.choice.value = "updates (class)"
    assert [text.get_text() for text in seen.axes.get_legend().get_texts()][:2] == ["RSO", "SGD"]
    assert seen.axes.get_xlabel() == "cycle, and epoch of SGD"
    seen.against.value = "seconds"
    assert seen.axes.get_xlabel() == "seconds"
    assert "updates" in seen.axes.get_title()
    assert "SGD" in seen.image.value
    assert not any("_" in label for label, _ in seen.against.options.items())
    seen.against.value = "multiply_adds"
    assert seen.axes.get_xlabel() == "multiply-adds"


def test_no_recorded_experiment_has_more_ways_than_its_figure_has_room_for():
    seen = widgets.Recorded()
    for experiment in seen.choice.options:
        seen.choice.value = experiment
        seen.figure.draw_without_rendering()
        legend = seen.axes.get_legend().get_window_extent()
        assert legend.height < seen.axes.get_window_extent().height, experiment


@pytest.mark.parametrize(("lesson", "number"), [(k, n) for k, v in QUIZZES.items() for n in range(1, len(v) + 1)])
def test_a_quiz_explains_each_answer(lesson, number):
    quiz = widgets.Quiz(lesson, number)
    question, answers = QUIZZES[lesson][number - 1]
    assert html.escape(question) in quiz.children[0].value
    assert quiz.choice.value is None
    assert set(quiz.choice.options) == set(answers)
    for place, (answer, explanation) in enumerate(answers.items()):
        quiz.choice.value = answer
        assert quiz.said.value == f"{'Not quite.' if place else 'Right.'} {html.escape(explanation)}"
        assert html.escape(explanation) in quiz._repr_mimebundle_()["text/html"]


def test_signals_and_shares_are_drawn():
    assert list(plots.signals([1.0, 0.5, 0.25]).lines[1].get_ydata()) == [1.0, 0.5, 0.25]
    ax = plots.shares([0.1, 0.1, 0.2], (0.2, "the best"))
    assert sum(bar.get_height() for bar in ax.patches) == 3
    assert ax.get_legend().get_texts()[0].get_text() == "the best: 20.0%"


def test_recorded_runs_show_the_ways_that_are_asked_for():
    seen = widgets.Recorded("proposals", ways=("the usual way", "w + δ only"))
    labels = [text.get_text() for text in seen.axes.get_legend().get_texts()]
    assert labels == ["the usual way", "w + δ only", "paper: MNIST, 50 cycles, 99.12 %"]
    lowest = min(line.get_ydata()[0] for line in seen.axes.lines[:2])
    assert lowest - 0.1 < seen.axes.get_ylim()[0] < lowest
    seen.choice.value = "order (class)"
    assert len(seen.axes.lines) == 5
    seen.choice.value = "proposals (class)"
    assert len(seen.axes.lines) == 3


def test_the_arrow_is_the_gradient(digits):
    model = rso.models.build("one_conv", digits)
    seen = Microscope(model, digits, "conv1.weight", (3, 0, 1, 0), gradient=True)
    step = 1e-3
    losses = [seen.loss_at(seen.weight.item() + move) for move in (-step, step)]
    assert seen.slope() == pytest.approx((losses[1] - losses[0]) / (2 * step), rel=1e-2)
    assert model.conv1.weight.grad is None
    (arrow,) = [line for line in seen.axes.lines if line.get_label() == "downhill: minus the gradient"]
    (x, ahead), (y, below) = arrow.get_data()
    assert (below - y) / (ahead - x) == pytest.approx(seen.slope())
    assert below < y
    assert Microscope(model, digits, "conv1.weight", (3, 0, 1, 0)).slope() is None


def test_larger_mini_batches_judge_better(digits):
    seen = widgets.Batches(digits)
    wrong = []
    for size in (5, 200):
        seen.size.value = size
        wrong.append((seen.means > 0).mean())
        assert f"{wrong[-1]:.0%} of the mini-batches" in seen.said.value
        assert seen.means.std() == pytest.approx(seen.differences.std() / size**0.5, rel=0.1)
    assert wrong[1] < wrong[0]
    assert seen.differences.mean() < 0


def test_the_better_of_two_opposite_changes_is_shown(digits):
    better = set()
    for shift in range(10):  # of the labels
        data = rso.Data.from_arrays(digits.x_train, (digits.y_train + shift) % 10, digits.x_test, digits.y_test)
        losses = {}
        for step in (-0.3, 0, 0.3):
            model = rso.models.build("one_conv", data)
            with torch.no_grad():
                model.fc.weight[3, 5] += step * model.fc.weight.std(correction=0)
                losses[step] = F.cross_entropy(model(data.x_train), data.y_train).item()
        best = min((-0.3, 0.3), key=losses.get)
        assert widgets.Batches(data).differences.mean() == pytest.approx(losses[best] - losses[0], abs=1e-6)
        better.add(best)
    assert better == {-0.3, 0.3}


def test_lesson_05_says_how_often_a_judge_is_wrong():
    source = (rso.experiments.RESULTS.parent / "notebooks" / "source" / "05_batches.py").read_text("utf-8")
    assert "With 30 images about one judge in eight is wrong, from 90 on hardly any" in source
    seen = widgets.Batches(rso.load("digits"))
    assert seen.size.value == 30
    assert (seen.means > 0).mean() == pytest.approx(1 / 8, abs=0.01)
    seen.size.value = 90
    assert 0 < (seen.means > 0).mean() < 0.03


def test_the_quadrants_hold_all_changes():
    ax = plots.quadrants([-1.0, -2.0, -0.5, -1.5], [0.5, -0.5, -0.1, -0.2])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["lower the whole loss: 75%", "raise it: 25%"]
    assert list(ax.lines[1].get_xdata()) == [-1.0]


def test_differences_share_their_bins():
    ax = plots.differences({"one": [0.0, 1.0, 1.0], "other": [0.5, -1.0]})
    assert sum(bar.get_height() for bar in ax.patches) == 5
    assert ax.get_xlabel()


def test_a_layer_lights_up_in_the_order_that_is_chosen():
    seen = widgets.Order()
    seen.turn.value = 27
    assert seen.turns[1, 0, 0, 0] == 27
    assert "neuron first: output neuron 1, input channel 0" in seen.image.value
    shades = seen.axes.images[0].get_array()
    assert (shades[0] > 0).all()
    assert (shades[1] > 0).sum() == 1
    seen.order.value = "input"
    assert seen.turns[0, 1, 0, 0] == 36
    assert "input first: output neuron 3, input channel 0" in seen.image.value
    seen.play.value = 36
    assert seen.turn.value == 36
    assert "output neuron 0, input channel 1" in seen.image.value
    assert sorted(seen.turns.flatten()) == list(range(108))


def test_steps_shows_what_proposals_bring(digits):
    seen = widgets.Steps(digits)
    assert seen.changes == seen.proposals.changes(1, 1, 60)
    seen.moved.value = 690
    assert seen.changes == seen.proposals.changes(690, 1, 60)
    seen.step.value = 0.01
    assert seen.changes == seen.proposals.changes(690, 0.01, 60)
    assert "lower the loss" in seen.said.value
    assert seen.said.value.split("%")[0] in seen.image.value


def test_the_map_of_gains_marks_the_best_steps():
    ax = plots.gains(np.array([[0.1, 0.3], [0.2, 0.1]]), (1, 10), (0.1, 1))
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines] == [(0, 1), (1, 0)]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "10"]


def test_the_shadow_is_the_nearest_that_the_directions_reach():
    """Against least squares, in float64."""
    gradient = torch.randn(40, generator=torch.Generator().manual_seed(1)).double()
    directions = torch.randn(7, 40, generator=torch.Generator().manual_seed(2))
    found = projected(gradient.float(), 7, torch.Generator().manual_seed(2))
    nearest = torch.linalg.lstsq(directions.double().T, gradient[:, None]).solution
    assert torch.allclose(found.double(), directions.double().T @ nearest[:, 0], atol=1e-4)


def test_shadows_are_as_long_as_chance_has_it_and_add_up(digits):
    seen = widgets.Shadow(digits)
    size = len(seen.gradient)
    assert size == 2410
    seen.directions.value = 30
    before, picture = seen.shadow, seen.image.value
    for _ in range(19):
        seen.anew.click()
    assert seen.times == 20
    assert not torch.equal(seen.shadow, before)
    assert seen.image.value != picture
    assert seen.said.value in seen.image.value
    cosines = [cosine for number, cosine in seen.draws if number == 30]
    assert np.mean(np.square(cosines)) == pytest.approx(30 / size, rel=0.2)
    (added,) = (line for line in seen.axes[1].lines if line.get_label() == "added up")
    together = added.get_ydata()[0]
    assert together == pytest.approx(F.cosine_similarity(seen.sum, seen.gradient, dim=0).item())
    assert together == pytest.approx((600 / (size + 600)) ** 0.5, rel=0.1)  # 20 draws: 600 directions
    assert f"20 draws added up: {together:.3f}." in seen.said.value
    (end,) = (line for line in seen.axes[0].lines if line.get_label() == "its shadow")
    assert end.get_data() == pytest.approx((cosines[-1], 0))
    seen.directions.value = size
    assert torch.equal(seen.shadow, seen.gradient)
    assert (seen.times, len(seen.draws)) == (1, 22)
    assert "Cosine 1.000, expected 1.000. 1 draw." in seen.said.value


@pytest.fixture(scope="module")
def cloud(digits):
    return widgets.Cloud(digits)


def test_the_members_vote_downhill(cloud):
    cloud.pairs.value, cloud.members.value, cloud.sigma.value = True, 100, 0.1
    cloud.home.click()
    agreed = []
    for _ in range(5):
        cloud.anew.click()
        agreed.append(cloud.cosine)
    assert min(agreed) > 0.9
    assert cloud.vote.norm().item() == pytest.approx(cloud.STEP)
    cloud.pairs.value = False  # losses as they are: chance
    alone = []
    for _ in range(10):
        cloud.anew.click()
        alone.append(cloud.cosine)
    assert np.mean(alone) < np.mean(agreed) - 0.2


@pytest.mark.parametrize("pairs", [True, False])
def test_the_vote_is_the_members_losses_times_their_noise(cloud, pairs):
    cloud.members.value, cloud.sigma.value, cloud.pairs.value = 10, 0.5, pairs
    cloud.anew.click()
    members = torch.from_numpy(cloud.artists[0].get_offsets().data).float()
    assert len(members) == 10
    away = (members - cloud.centre) / cloud.sigma.value
    if pairs:
        assert torch.allclose(away[:5], -away[5:], atol=1e-5)
    votes = -cloud.plane.losses(members) @ away  # each flees from its noise as much as its loss is high
    assert F.cosine_similarity(votes, cloud.vote, dim=0).item() == pytest.approx(1, abs=1e-4)
    ranks = cloud.artists[0].get_array()
    assert ranks.argmin() == cloud.plane.losses(members).argmin()


def test_the_centre_follows_the_votes_and_comes_back(cloud):
    cloud.pairs.value, cloud.members.value, cloud.sigma.value = True, 50, 0.5
    cloud.home.click()
    first, vote, picture = cloud.loss, cloud.vote, cloud.image.value
    cloud.there.click()
    assert torch.equal(cloud.centre, vote)
    for _ in range(7):
        cloud.there.click()
    assert cloud.loss < first / 2
    assert cloud.loss == pytest.approx(cloud.plane.losses(cloud.centre[None]).item())
    assert cloud.said.value in cloud.image.value
    assert cloud.image.value != picture
    labels = [line.get_label() for line in cloud.axes.lines]
    assert labels.count("centre") == labels.count("their vote") == 1  # those of the last generation are gone
    cloud.home.click()
    assert cloud.loss == pytest.approx(first)
    assert base64.b64decode(cloud._repr_mimebundle_()[0]["image/png"]).startswith(b"\x89PNG")
