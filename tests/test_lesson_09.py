"""Lesson 09: the bill, counted; its widget, its figures and the check of its exercise."""

import shutil

import pytest
import torch
from matplotlib.patches import Rectangle
from torch import nn

import rso_lab as rso
from rso_lab import experiments, lessons, plots, widgets
from rso_lab.lessons import deeper


def days(weights, picture, images, cycles, speed):
    return 3 * weights * picture * images * cycles / speed / 86400


MISTAKES = {
    "seconds": (lambda *plan: days(*plan) * 86400, "Those are seconds."),
    "minutes": (lambda *plan: days(*plan) * 1440, "Those are minutes."),
    "one 60": (lambda *plan: days(*plan) * 60, "One 60 is missing"),
    "hours": (lambda *plan: days(*plan) * 24, "Those are hours."),
    "24 for a day": (lambda *plan: days(*plan) * 86400 / 24, "not 24"),
    "multiplied": (lambda *plan: days(*plan) * 86400**2, "do not multiply"),
    "one loss": (lambda *plan: days(*plan) / 3, "three losses"),
    "two losses": (lambda *plan: days(*plan) * 2 / 3, "The loss at w counts"),
    "no images": (lambda w, p, i, c, s: days(w, p, 1, c, s), "`images`"),
    "no cycles": (lambda w, p, i, c, s: days(w, p, i, 1, s), "`cycles`"),
    "no weights": (lambda w, p, i, c, s: days(1, p, i, c, s), "`weights`"),
    "no picture": (lambda w, p, i, c, s: days(w, 1, i, c, s), "`picture`"),
    "times the speed": (lambda w, p, i, c, s: days(w, p, i, c, 1 / s), "The faster"),
    "multiply-adds": (lambda w, p, i, c, s: 3 * w * p * i * c, "How many seconds"),
    "a sum": (lambda w, p, i, c, s: (w + p + i + c) / s, "it is"),
    "an error": (lambda w, p, i, c, s: 1 / 0, "stopped with ZeroDivisionError"),
    "a word": (lambda *plan: "long", "a number is wanted"),
}


def test_the_solution_passes(capsys):
    lessons.check(days)
    assert capsys.readouterr().out.startswith("Right")


@pytest.mark.parametrize("nothing", [None, ...])
def test_a_stub_is_not_done_yet(nothing, capsys):
    assert not deeper.check_days(lambda *plan: nothing)
    assert capsys.readouterr().out.startswith("Not done yet")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_named(mistake, capsys):
    answer, named = MISTAKES[mistake]
    assert not deeper.check_days(answer)
    out = capsys.readouterr().out
    assert out.startswith("Not yet")
    assert named in out


def places(depth):
    """What each layer with weights puts out, by torch's own hooks: (weights, multiply-adds of one picture)."""
    model = getattr(rso.models, depth)()
    found = []

    def note(module, inputs, output):
        weights = sum(p.numel() for p in module.parameters())
        counted = isinstance(module, nn.Conv2d | nn.Linear)
        found.append((weights, module.weight.numel() * output[0, 0].numel() if counted else 0))

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    return found


@pytest.mark.parametrize("depth", experiments.DEPTHS)
def test_the_price_is_what_the_layers_add_up_to(depth):
    """§4.7: 3 |W| F, and with the cache 3 |W_d| F_d, from the searched layer on."""
    layers = places(depth)
    weights, picture = (sum(column) for column in zip(*layers, strict=True))
    price = deeper.network_price(depth)
    assert (price.weights, price.picture) == (weights, picture)
    assert price.cycle["plain"] == 3 * weights * picture
    cached = sum(3 * size * sum(cost for _, cost in layers[number:]) for number, (size, _) in enumerate(layers))
    assert price.cycle["cached"] == cached
    assert cached > price.cycle["incremental"] > price.cycle["incremental, held for a neuron"]


@pytest.mark.parametrize(("how", "hold"), [("incremental", "weight"), ("incremental, held for a neuron", "neuron")])
def test_a_run_costs_what_the_bill_says(how, hold):
    x, y = torch.randn(4, 3, 32, 32), torch.tensor([0, 9, 1, 2])
    data = rso.Data.from_arrays(x, y, x, y)
    *_, record = rso.run(rso.models.depth3(), data, rso.RSO(1, 2, batch_every=hold), seed=0)
    assert record.multiply_adds == 2 * deeper.network_price("depth3").cycle[how]


def test_prices_are_printed_with_their_factors(capsys):
    lessons.network_prices()
    *_, last = capsys.readouterr().out.splitlines()
    assert " ".join(last.split()) == "depth10 27,378 x 17.3 7.0 million x 5.0 575.3 billion x 86.3"


def test_the_papers_days_are_those_of_its_text():
    """§4.5: 300 cycles of 52 minutes; 1700 iterations of 3000 of the 50,000 images at 29 seconds for all of them."""
    by_rso, by_sgd = lessons.paper_days()
    assert by_rso == pytest.approx(300 * 52 / 1440)
    assert by_sgd == pytest.approx(102 * 29 / 86400)
    points = lessons.paper_points()
    assert [accuracy for _, accuracy in points.values()] == [0.8198, 0.818, 0.818]
    counted = deeper.network_price("depth10").cycle["cached"] * 300 * 5000 / deeper.recorded_speed() / 86400
    assert points["the same, at this kit's speed"][0] == pytest.approx(counted)


@pytest.mark.parametrize(
    ("number", "words"), [(2.5, "2.5 days"), (0.5, "12.0 hours"), (1 / 96, "15.0 minutes"), (1e-6, "0.1 seconds")]
)
def test_days_are_told_in_the_unit_that_suits(number, words):
    assert lessons.duration(number) == words


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A folder of results of our own: the runs on digits, and from CIFAR-10 only what a test puts there."""
    shutil.copy(experiments.RESULTS / "depth_class.json", tmp_path)
    result = experiments.begin("depth", "evening")
    (run,) = (run for run in lessons_runs("class") if run["method"] == "depth3, RSO" and run["seed"] == 0)
    experiments._put(run, result, tmp_path / "depth_evening.json")
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    return tmp_path


def lessons_runs(size):
    return experiments.read(experiments.RESULTS / f"depth_{size}.json")["runs"]


def test_what_was_reached_is_told_however_far_it_got(recorded, capsys):
    lessons.depth_results()
    head, row, paper = capsys.readouterr().out.splitlines()
    assert row.split()[:6] == ["depth3,", "RSO", "2", "of", "5", "49.4%"]
    assert "82.94%" in paper
    assert "cycles" in head


def test_the_speed_is_that_of_the_deepest_run(recorded):
    (run,) = (run for run in lessons_runs("class") if run["method"] == "depth10, RSO" and run["seed"] == 0)
    last = run["cycles"][-1]
    assert deeper.recorded_speed() == pytest.approx(last["multiply_adds"] / last["seconds"])


def test_every_control_moves_the_bill():
    seen = widgets.Bill()
    before = seen.days, seen.image.value
    moves = [("images", 1000, 4), ("cycles", 20, 4), ("depth", "depth5", None), ("how", "cached", None)]
    for control, value, factor in moves:
        days, picture = before
        getattr(seen, control).value = value
        if factor:
            assert seen.days == pytest.approx(factor * days)
        assert seen.days != days
        assert seen.image.value != picture
        assert lessons.duration(seen.days) in seen.said.value
        (line,) = (line for line in seen.axes.lines if line.get_label() == "your plan")
        assert line.get_xdata()[0] == seen.days
        before = seen.days, seen.image.value
    speed = deeper.recorded_speed()
    assert seen.days == pytest.approx(deeper.network_price("depth5").cycle["cached"] * 1000 * 20 / speed / 86400)
    assert "depth5 takes" in seen.image.value


def test_the_lesson_says_what_the_bill_says():
    source = (experiments.RESULTS.parent / "notebooks" / "source" / "09_deeper.py").read_text("utf-8")
    seen = widgets.Bill()
    seen.how.value, seen.images.value, seen.cycles.value = deeper.HOW[-1], 250, 5
    seconds = 86400 * seen.days
    assert f"for *depth3* the bill says {seconds:.0f} seconds" in source


def test_the_smallest_and_the_largest_plan_are_in_the_picture():
    seen = widgets.Bill()
    for control, value in (("images", 50), ("cycles", 1), ("depth", "depth3")):
        getattr(seen, control).value = value
    low, high = seen.axes.get_xlim()
    assert low < seen.days
    for control, value in (("images", 5000), ("cycles", 500), ("depth", "depth10"), ("how", "plain")):
        getattr(seen, control).value = value
    assert seen.days < high


def test_the_figure_shows_accuracy_against_days():
    runs = lessons.depth_runs("class")
    ax = plots.bills(runs, {"the paper": (10.0, 0.818)}, ("a plan", 2.0))
    lines = {line.get_label(): line for line in ax.lines}
    assert set(runs) | {"the paper", "a plan", "guessing"} == set(lines)
    for label, history in runs.items():
        seconds = [record.seconds for record in history.cycles]
        assert list(lines[label].get_xdata()) == pytest.approx([number / 86400 for number in seconds])
        assert list(lines[label].get_ydata()) == [record.test_accuracy for record in history.cycles]
        assert lines[label].get_linestyle() == ("--" if "SGD" in label else "-")
    assert lines["depth3, RSO"].get_color() == lines["depth3, SGD"].get_color() != lines["depth5, SGD"].get_color()


def test_the_architecture_has_a_box_for_each_layer():
    ax = plots.architecture({depth: getattr(rso.models, depth)() for depth in experiments.DEPTHS})
    assert sum(isinstance(patch, Rectangle) for patch in ax.patches) == 3 + 5 + 10
    told = [text.get_text() for text in ax.texts]
    assert told.count("") == 1 + 4  # arcs
    assert [text for text in told if text][-10:] == ["8", "16", "16", "16", "16", "16", "16", "32", "32", "10"]


def test_equal_guesses_are_equal(digits):
    found = lessons.equal_guesses(digits, ("depth3", "depth5"), count=40, batch_size=20)
    assert [label.partition(",")[0] for label in found] == ["depth3", "depth5"]
    for made, right in found.values():
        assert made == [*range(0, 41, 4)]
        assert len(right) == len(made)
        assert all(0 <= share <= 1 for share in right)


def test_the_accuracy_is_that_of_the_network_as_torch_runs_it(digits):
    ((_, right),) = lessons.equal_guesses(digits, ["depth3"], count=1, batch_size=20).values()
    model = rso.models.build("depth3", digits).train()  # batch norms with these images' statistics
    answers = model(digits.x_test).argmax(dim=1)
    assert right[0] == pytest.approx((answers == digits.y_test).double().mean().item())


def test_signals_are_those_of_single_weights(digits):
    signals = lessons.layer_signals(digits, "depth3", count=3)
    assert list(signals) == ["conv1.conv", "conv2.conv", "fc"]
    model = rso.models.build("depth3", digits).train()
    generator = torch.Generator().manual_seed(0)
    weight = model.conv1.conv.weight.detach()
    step, loss = weight.std(correction=0), nn.CrossEntropyLoss()
    changes = []
    for place in torch.randint(weight.numel(), (3,), generator=generator).tolist():
        other = rso.models.build("depth3", digits).train()
        with torch.no_grad():
            other.conv1.conv.weight.view(-1)[place] += step
            x, y = digits.x_train, digits.y_train
            changes.append((loss(other(x), y) - loss(model(x), y)).abs().item())
    assert signals["conv1.conv"][0] == pytest.approx(sum(changes) / 3, rel=1e-3)
    figure = plots.layer_signals({"depth3": signals})
    change, luck = figure.axes[0].lines
    assert list(change.get_ydata()) == [value for value, _ in signals.values()]
    assert list(luck.get_ydata()) == [value for _, value in signals.values()]


def test_kept_shares_are_the_recorded_ones_from_the_images_on():
    shares = lessons.kept_by_layer()
    assert next(iter(shares)) == "conv1.conv"
    assert list(shares)[-1] == "fc"
    assert len(shares) == 10
    assert shares["fc"] == lessons.depth_runs("class")["depth10, RSO"].cycles[-1].kept["fc"]
    assert len(plots.kept(shares).patches) == 10


def test_pictures_in_colour_where_they_are(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("rso_lab.data.places", lambda root=None: [tmp_path])
    assert lessons.colour_pictures() is None
    assert "not on this computer" in capsys.readouterr().out
    x = torch.randn(8, 3, 32, 32)
    figure = plots.colour_pictures(rso.Data.from_arrays(x, torch.arange(8), x, torch.arange(8)))
    assert [ax.get_title() for ax in figure.axes][:3] == ["plane", "car", "bird"]
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (32, 32, 3)
    assert (shown.min(), shown.max()) == (0, 1)


def test_the_evening_runs_its_longest_last():
    ways = experiments.EXPERIMENTS["depth"].ways(experiments.EXPERIMENTS["depth"].sizes["evening"])
    assert len(ways) == 6
    assert list(ways)[-1] == "depth10, RSO"
