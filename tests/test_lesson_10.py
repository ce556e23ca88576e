"""Lesson 10: the canvas, a network of one's own, and losses without a slope."""

import base64
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rso_lab as rso
from rso_lab import experiments, lessons, plots, widgets
from rso_lab.widgets import drawing

MNIST = Path(os.environ.get("RSO_LAB_DATA", "")) / "mnist.npz"


@pytest.fixture
def seen():
    return widgets.DrawDigit(experiments.trained())


def grey(image):
    """An image that was normalised, as grey values from 0 to 1."""
    return image[0, 0] * drawing.MNIST_DEVIATION + drawing.MNIST_MEAN


@pytest.mark.skipif(not MNIST.is_file(), reason="RSO_LAB_DATA names no folder with mnist.npz")
def test_mnists_mean_and_deviation_are_those_of_the_file():
    with np.load(MNIST) as file:
        images = file["x_train"] / np.float32(255)
    assert images.mean(dtype=np.float64) == pytest.approx(drawing.MNIST_MEAN, abs=1e-6)
    assert images.std(dtype=np.float64) == pytest.approx(drawing.MNIST_DEVIATION, abs=1e-6)


@pytest.mark.skipif(not MNIST.is_file(), reason="RSO_LAB_DATA names no folder with mnist.npz")
def test_an_image_of_mnist_drawn_anew_is_that_image():
    """MNIST's own images, four times as large and shifted, land where they were."""
    data = rso.load("mnist", train_limit=1, test_limit=50)
    for image in data.x_test:
        was = grey(image[None]).clamp(0, 1)
        large = F.interpolate(was[None, None], scale_factor=4)[0, 0]
        large[large < 1e-3] = 0  # rounding of the normalised background
        again = grey(drawing.mnist_like(F.pad(large, (30, 5, 3, 44))))
        shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        errors = {shift: (again.roll(shift, (0, 1)) - was).abs().mean().item() for shift in shifts}
        assert min(errors, key=errors.__getitem__) == (0, 0)
        assert errors[0, 0] < 0.03  # of grey: other images differ by 0.1 to 0.2


@pytest.mark.parametrize(("height", "width"), [(60, 20), (20, 60), (100, 100), (7, 3), (1, 1)])
def test_the_longer_side_is_20_and_the_centre_of_mass_in_the_middle(height, width):
    picture = torch.zeros(120, 130)
    picture[5 : 5 + height, 11 : 11 + width] = 1
    found = drawing.mnist_like(picture)
    assert found.shape == (1, 1, 28, 28)
    ink = grey(found)
    on = (ink > 0.5).nonzero()
    extent = (on.amax(0) - on.amin(0) + 1).tolist()
    longest = max(height, width)
    assert extent == pytest.approx([20 * height / longest, 20 * width / longest], abs=1)
    middle = (ink.sum(1) @ torch.arange(28.0) / ink.sum(), ink.sum(0) @ torch.arange(28.0) / ink.sum())
    assert [m.item() for m in middle] == pytest.approx([14, 14], abs=0.501)  # whole pixels


def test_a_heavy_end_is_moved_to_the_middle_as_far_as_there_is_room():
    picture = torch.zeros(100, 100)
    picture[:80, 40:44] = 0.05
    picture[80:, 40:60] = 1
    ink = grey(drawing.mnist_like(picture))
    assert ink[0, :].max() > 0.01  # it reaches the upper edge, and is not cut
    assert ink.sum().item() == pytest.approx(picture.sum().item() / 25, rel=0.05)


def test_nothing_drawn_is_refused():
    with pytest.raises(ValueError, match="nothing is drawn"):
        drawing.mnist_like(torch.zeros(50, 50))


def test_ink_lies_on_the_strokes():
    image = drawing.ink([[[0.25, 0.5], [0.75, 0.5]], [[0.5, 0.1]]], size=100)
    rows, columns = (image > 0.5).nonzero().T
    assert image[50, 25:75].min() == 1
    stroke = (columns > 30) & (columns < 40)
    assert (rows[stroke].max() - rows[stroke].min() + 1).item() == pytest.approx(100 * drawing.PEN, abs=1)
    dot = rows < 30
    assert dot.sum().item() == pytest.approx(np.pi / 4 * (100 * drawing.PEN) ** 2, rel=0.1)
    assert columns.min().item() == pytest.approx(25 - 50 * drawing.PEN, abs=1)


def test_the_recorded_network_reads_the_examples(seen):
    right = 0
    for example in drawing.EXAMPLES:
        seen.examples.value = example
        right += seen.chances.index(max(seen.chances)) == int(example)
    assert right >= 9


def test_a_drawing_is_read_as_soon_as_the_pen_is_lifted(seen):
    before = seen.image.value
    seen.canvas.is_example = False  # what the script of the canvas sets
    seen.canvas.strokes = [[[0.5, 0.2], [0.5, 0.8]]]
    assert seen.said.value.startswith("It says 1, with")
    assert seen.examples.value == ""
    with torch.no_grad():
        outputs = experiments.trained()(drawing.mnist_like(drawing.ink(seen.canvas.strokes)))
    assert seen.chances == pytest.approx(outputs.softmax(1)[0].tolist())
    assert seen.image.value != before
    assert f"1: {seen.chances[1]:.0%}" in seen.image.value
    bars = seen.figure.axes[1].patches
    assert [bar.get_height() for bar in bars] == pytest.approx(seen.chances)


def test_it_begins_with_an_example(seen):
    """Drawn at once: in a notebook reactions come after the widget is shown."""
    assert seen.examples.value == "3"
    assert seen.said.value.startswith("It says 3")
    assert seen.figure.axes


def test_examples_and_clear_work_without_a_mouse(seen):
    seen.examples.value = "5"
    assert seen.canvas.strokes == drawing.strokes_of("5")
    assert seen.canvas.is_example
    assert seen.said.value.startswith("It says 5")
    seen.clear.click()
    assert (seen.canvas.strokes, seen.canvas.is_example, seen.examples.value) == ([], False, "")
    assert seen.said.value == "Draw a digit."
    assert seen.image.value == ""
    seen.examples.value = "5"  # the same once more
    assert seen.said.value.startswith("It says 5")


def test_the_canvas_falls_back_on_a_picture(seen):
    bundle, metadata = seen._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert f"It says 3, with {seen.chances[3]:.0%}" in metadata["image/png"]["alt"]


def test_the_script_of_the_canvas_needs_no_network():
    assert "http" not in drawing.Canvas._esm
    assert "import" not in drawing.Canvas._esm


def nets(*layers):
    return lambda: nn.Sequential(*layers)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(x.flatten(1)) if x.sum() > 0 else self.fc(-x.flatten(1))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(x.flatten(1)), x


def tied():
    model = nn.Sequential(FLAT, nn.Linear(64, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 10))
    model[4].weight = model[2].weight
    return model


FLAT = nn.Flatten()
MISTAKES = {
    "the class": (lambda: Two, "Brackets behind it make a network: Two()"),
    "a list": (lambda: [nn.Linear(64, 10)], "returns list, and what is wanted is a network"),
    "no weights": (nets(FLAT), "has no weights"),
    "an error": (lambda: nn.Linear(64), "stopped with TypeError"),
    "no flatten": (nets(nn.Linear(64, 10)), "gets (1, 8, 8): put nn.Flatten() before it"),
    "all images in a row": (nets(nn.Flatten(0), nn.Linear(64, 10)), "with nothing between its brackets"),
    "flatten of MNIST": (nets(FLAT, nn.Linear(784, 10)), "nn.Linear(784, ...) gets 64 numbers"),
    "after a convolution": (
        nets(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), FLAT, nn.Linear(256, 10)),
        "nn.Linear(256, ...) gets 64 numbers",
    ),
    "flatten too early": (nets(FLAT, nn.Conv2d(1, 4, 3)), "put nn.Flatten() behind it"),
    "three colours": (nets(nn.Conv2d(3, 4, 3), FLAT, nn.Linear(144, 10)), "gets 1 channels: let it begin with that"),
    "one output": (nets(FLAT, nn.Linear(64, 1)), "shape (1,), and ten are wanted"),
    "no classes": (nets(FLAT, nn.Linear(64, 32), nn.ReLU()), "shape (32,), and ten are wanted"),
    "softmax": (nets(FLAT, nn.Linear(64, 10), nn.Softmax(1)), "Leave that out: the loss, cross-entropy, has it"),
    "sigmoid": (nets(FLAT, nn.Linear(64, 10), nn.Sigmoid()), "never negative"),
    "ReLU at the end": (nets(FLAT, nn.Linear(64, 10), nn.ReLU()), "Leave out the activation behind the last layer"),
    "a tuple": (Two, "puts out a tuple"),
    "dropout": (nets(FLAT, nn.Dropout(0.5), nn.Linear(64, 10)), "module '1' drops activations out"),
    "a branch": (Branches, "cannot trace Branches"),
    "too large": (nets(FLAT, nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), "4,810 weights"),
    "stopped within": (nets(FLAT, nn.Linear(64, 10), nn.Unflatten(1, (3, 4))), "It stopped in or behind Linear"),
    "no layer reached": (nets(nn.Unflatten(1, (3, 4)), nn.Linear(4, 10)), "It stopped with"),
}
RIGHT = {
    "tied": tied,
    "one layer": nets(FLAT, nn.Linear(64, 10)),
    "the solution": nets(FLAT, nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)),
    "a convolution": nets(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), FLAT, nn.Linear(64, 10)),
    "log_softmax, which does no harm": nets(FLAT, nn.Linear(64, 10), nn.LogSoftmax(1)),
    "batch norm": nets(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), FLAT, nn.Linear(144, 10)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_network_that_fits_passes(name, capsys):
    assert lessons.check_my_net(RIGHT[name])
    model = RIGHT[name]()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"It has {count:,} weights, so a cycle takes {3 * count:,} losses" in capsys.readouterr().out


@pytest.mark.parametrize("stub", [None, ...])
def test_a_stub_is_not_done_yet(stub, capsys):
    assert not lessons.check_my_net(lambda: stub)
    assert capsys.readouterr().out.startswith("Not done yet")


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(name, capsys):
    answer, advice = MISTAKES[name]
    assert not lessons.check_my_net(answer)
    said = capsys.readouterr().out
    assert said.startswith("Not yet")
    assert advice in said


def test_a_network_of_ours_steps_in_until_the_learners_fits(capsys):
    def my_net():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 10))

    lessons.check(my_net)
    mine = lessons.mine_or_ours(my_net)
    assert mine[1].out_features == 7
    assert mine[1].weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.1)
    assert mine[1].bias.abs().max() == 0
    capsys.readouterr()
    ours = lessons.mine_or_ours(lambda: ...)
    assert "here is one of ours" in capsys.readouterr().out
    assert lessons.check_my_net(lambda: ours)


def steps_network():
    """As the lesson's, with a module that the package does not know."""

    class Step(nn.Module):
        def forward(self, x):
            return torch.sign(x)

    with torch.random.fork_rng():
        model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 8), Step(), nn.Linear(8, 10))
    return rso.models.he_init_(model)


class Coarse(nn.Linear):
    def forward(self, x):
        return F.linear(x, 0.3 * torch.round(self.weight / 0.3).clamp(-1, 1), self.bias)


def coarse_network():
    with torch.random.fork_rng():
        model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), Coarse(16, 8), nn.ReLU(), Coarse(8, 10))
    return rso.models.he_init_(model)


@pytest.mark.parametrize("make", [steps_network, coarse_network])
def test_every_evaluator_searches_a_staircase_alike(make, digits64):
    found = {}
    for evaluator in ("plain", "cached", "incremental"):
        model = make().double()
        rso.fit(model, digits64, rso.RSO(1, 60), seed=0, evaluator=evaluator)
        found[evaluator] = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert torch.equal(found["plain"], found["cached"])
    assert torch.equal(found["plain"], found["incremental"])
    assert not torch.equal(found["plain"], torch.cat([p.detach().flatten() for p in make().double().parameters()]))


@pytest.mark.parametrize("make", [steps_network, coarse_network])
def test_only_the_search_moves_what_has_no_slope(make, digits, capsys):
    layer = next(name for name, parameter in make().named_parameters() if parameter.dim() > 1)
    far = {}
    for name, method in {"SGD": rso.SGD(2, 20, 0.1, weight_decay=0, warm_up=0), "RSO": rso.RSO(1, 60)}.items():
        model = make()
        start = {key: value.clone() for key, value in model.state_dict().items()}
        rso.fit(model, digits, method, seed=0)
        far[name] = (model.state_dict()[layer] - start[layer]).norm() / start[layer].norm()
        assert f"{layer} moved by {far[name]:.0%}" in lessons.moved(start, model)
    assert far["SGD"] == 0
    assert far["RSO"] > 0.1


def test_the_microscope_shows_stairs_and_no_slope(digits):
    few = rso.load("digits", train_limit=20)
    seen = widgets.Microscope(steps_network(), few, "2.weight", (4, 9), gradient=True, points=401)
    assert seen.slope() == 0
    levels = np.unique(seen.curve_losses)
    assert 2 < len(levels) <= 21  # a stair where the sign of the neuron turns for one of the 20 images
    labels = [text.get_text() for text in seen.axes.get_legend().get_texts()]
    assert "the gradient is 0: no arrow" in labels
    assert not any("downhill" in label for label in labels)
    seen.delta.value = seen.delta.min
    assert len({loss for _, loss in seen.candidates().values()}) == 1  # all three on one stair
    (ring,) = [line for line in seen.axes.lines if line.get_label() == "lowest of the three"]
    assert ring.get_xdata() == [seen.weight.item()]  # a tie keeps the weight
    seen.keep_best.click()
    assert seen.said.value.startswith("Kept")


def error(outputs, targets):
    return (outputs.argmax(1) != targets).double().mean()


def test_the_microscope_takes_any_loss(digits):
    model = rso.models.build("one_conv", digits)
    seen = widgets.Microscope(model, digits, "conv1.weight", (3, 0, 1, 0), points=11, loss=error)
    mistakes = seen.curve_losses * len(digits.x_train)
    assert len(seen.curve_losses) == 11
    assert mistakes == pytest.approx(mistakes.round(), abs=1e-9)
    with torch.no_grad():
        assert seen.candidates()["keep"][1] == error(model(digits.x_train), digits.y_train)


def test_the_legend_lies_above_stairs_that_go_down_and_up():
    values, losses = np.arange(8.0), np.array([0.9, 0.9, 0.9, 0.8, 0.8, 0.9, 0.9, 0.9])
    ax = plots.loss_along_weight(values, losses, {"minus": (1, 0.9), "keep": (3.2, 0.8), "plus": (6, 0.9)})
    ax.figure.draw_without_rendering()
    frame = ax.get_legend().get_window_extent().transformed(ax.transData.inverted())
    assert frame.y0 > 0.9


def test_ties_are_counted_as_the_steps_tell_them(digits):
    method = rso.RSO(1, 30)
    found = lessons.three_losses(rso.models.build("one_conv", digits), digits, method, error)
    steps = list(rso.steps(rso.models.build("one_conv", digits), digits, method, seed=0, loss=error))
    kept = sum(step.choice == "keep" for step in steps) / len(steps)
    assert found["a change is accepted"] == pytest.approx(1 - kept)
    assert sum(found.values()) == pytest.approx(1)
    ties = [len({step.losses.minus, step.losses.keep, step.losses.plus}) == 1 for step in steps]
    assert found["all three equal"] == pytest.approx(sum(ties) / len(ties))
    smooth = lessons.three_losses(rso.models.build("one_conv", digits), digits, method, F.cross_entropy)
    assert found["all three equal"] > 0.3 > smooth["all three equal"]


def test_bars_and_picture_are_drawn():
    figure, axes = plots.plt.subplots(1, 2)
    plots.chances([0.1, 0.7, 0.2], axes[0])
    assert [bar.get_height() for bar in axes[0].patches] == [0.1, 0.7, 0.2]
    colours = [bar.get_facecolor() for bar in axes[0].patches]
    assert colours[0] == colours[2] != colours[1]
    plots.digit(torch.eye(3), axes[1])
    assert np.array_equal(axes[1].images[0].get_array(), np.eye(3))
    plots.plt.close(figure)
