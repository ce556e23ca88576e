"""Lesson 06: counts by hand, the update against torch's convolution, and every control of its widgets."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rso_lab as rso
from rso_lab import plots, widgets
from rso_lab.counts import layer_costs
from rso_lab.graph import Network
from rso_lab.lessons import check, cost
from rso_lab.rso import searched_layers

COUNTS = {
    "parameters": (lambda o, i, k, h, w: o * i * k**2, "Those are the weights"),
    "no inputs": (lambda o, i, k, h, w: o * k**2 * h * w, "all input channels, too"),
    "kernel": (lambda o, i, k, h, w: o * i * k * h * w, "its square"),
    "no kernel": (lambda o, i, k, h, w: o * i * h * w, "And the places of the kernel?"),
    "no outputs": (lambda o, i, k, h, w: i * k**2 * h * w, "That is one output channel"),
    "what comes out": (lambda o, i, k, h, w: o * h * w, "How many products does each take?"),
    "one number": (lambda o, i, k, h, w: i * k**2, "How many come out?"),
    "height": (lambda o, i, k, h, w: o * i * k**2 * h, "height x width places"),
    "square": (lambda o, i, k, h, w: o * i * k**2 * h**2, "need not be square"),
    "twice": (lambda o, i, k, h, w: 2 * o * i * k**2 * h * w, "count as one here"),
    "no margin": (lambda o, i, k, h, w: o * i * k**2 * (h - k + 1) * (w - k + 1), "a margin of zeros"),
    "always 3 x 3": (lambda o, i, k, h, w: o * i * 9 * h * w, "use `kernel`"),
    "text": (lambda o, i, k, h, w: "many", "your answer was 'many'"),
    "an error": (lambda o, i, k: o, "stopped with TypeError"),
}


def shifted(z, padded, index, delta, channels=None):
    """By hand: each number that the weight reaches, one after the other."""
    i, j, a, b = index
    new = z.clone()
    for row in range(z.shape[2]):
        for column in range(z.shape[3]):
            new[:, i if channels is None else channels, row, column] += delta * padded[:, j, row + a, column + b].view(
                -1, *[1] * (channels is not None)
            )
    return new


def in_place(z, padded, index, delta):
    z.copy_(shifted(z, padded, index, delta))
    return z


def spoils_the_input(z, padded, index, delta):
    return shifted(z, padded.mul_(delta), index, 1.0)


def replaced(z, padded, index, delta):
    new = z.clone()
    new[:, index[0]] = 0
    return shifted(new, padded, index, delta)


UPDATES = {
    "nothing": (lambda z, p, n, d: z.clone(), "What is added, and to which channel?"),
    "the middle": (lambda z, p, n, d: shifted(z, p, (*n[:2], 1, 1), d), "from row a and column b on"),
    "no shift": (lambda z, p, n, d: shifted(z, p, (*n[:2], 0, 0), d), "You always begin at row 0"),
    "exchanged places": (lambda z, p, n, d: shifted(z, p, (n[0], n[1], n[3], n[2]), d), "a is for the rows"),
    "other side": (lambda z, p, n, d: shifted(z, p, (n[0], n[1], 2 - n[2], 2 - n[3]), d), "to the other side"),
    "exchanged channels": (lambda z, p, n, d: shifted(z, p, (n[1], n[0], *n[2:]), d), "i is the output channel"),
    "no delta": (lambda z, p, n, d: shifted(z, p, n, 1.0), "And delta?"),
    "minus": (lambda z, p, n, d: shifted(z, p, n, -d), "The sign"),
    "replaced": (replaced, "+= in place of ="),
    "all channels": (lambda z, p, n, d: shifted(z, p, n, d, slice(None)), "One weight touches one channel"),
    "one channel": (lambda z, p, n, d: shifted(z, p, n, d)[:, n[0]], "Return all channels"),
    "in place": (in_place, "z itself has changed"),
    "input in place": (spoils_the_input, "`padded` itself has changed"),
    "a number": (lambda z, p, n, d: 1.0, "a tensor of the shape of z"),
    "an error": (lambda z, p, n, d: z + p, "stopped with RuntimeError"),
}
EXERCISES = {
    "multiply_adds": (cost.check_multiply_adds, lambda o, i, k, h, w: o * h * w * i * k**2, COUNTS),
    "update": (cost.check_update, shifted, UPDATES),
}


@pytest.mark.parametrize("name", EXERCISES)
def test_an_exercise_is_judged_right(name, capsys):
    judge, solution, _ = EXERCISES[name]
    assert judge(solution)
    right = capsys.readouterr().out
    assert right.startswith("Right")
    for stub in (lambda *given: None, lambda *given: ...):
        assert not judge(stub)
        assert capsys.readouterr().out.startswith("Not done yet")

    def named(*given):
        return solution(*given)

    named.__name__ = name
    check(named)
    assert capsys.readouterr().out == right


def test_an_update_may_be_in_float64():
    assert cost.check_update(lambda z, padded, index, delta: shifted(z.double(), padded, index, delta))


def test_the_stub_of_the_update_is_told_what_is_missing(capsys):
    """The learner's version returns a copy of z as long as nothing is added."""
    assert not cost.check_update(lambda z, padded, index, delta: z.clone())
    assert capsys.readouterr().out.startswith("Not done yet")


@pytest.mark.parametrize(
    ("judge", "answer", "advice"),
    [(judge, *mistake) for judge, _, mistakes in EXERCISES.values() for mistake in mistakes.values()],
)
def test_a_mistake_is_named(judge, answer, advice, capsys):
    assert not judge(answer)
    said = capsys.readouterr().out
    assert said.startswith(("Not yet", "Not done yet", "Nearly"))
    assert advice in said


@pytest.mark.parametrize("index", [(0, 0, 0, 0), (3, 2, 2, 1), (1, 1, 4, 4)])
def test_a_change_of_one_weight_is_a_shifted_input_channel(index):
    """Against the whole convolution, in float64."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 7, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64)
    padded = F.pad(x, (2, 2, 2, 2))
    before = F.conv2d(padded, weight)
    kept = before.clone()
    weight[index] += 0.7
    assert torch.allclose(cost.moved(before, padded, index, 0.7), F.conv2d(padded, weight), atol=1e-12)
    assert torch.equal(before, kept)


def test_the_papers_network_is_counted_layer_by_layer(capsys):
    asked = []

    def count(outputs, inputs, kernel, height, width):
        asked.append((outputs, inputs, kernel, height, width))
        return outputs * inputs * kernel**2 * height * width

    cost.count_network(count)
    sizes = [(1, 28), (16, 28), (16, 14), (16, 14), (16, 7), (16, 7)]
    assert asked[1:] == [(16, inputs, 3, size, size) for inputs, size in sizes] + [(10, 16, 1, 1, 1)]
    _, _, head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["layer", "weights", "yours", "the", "package"]
    assert [row.split()[0] for row in rows] == [*(f"conv{i}" for i in range(1, 7)), "fc"]
    for row, question in zip(rows, asked[1:], strict=True):
        assert row.split()[2:] == [f"{np.prod(question) * question[2]:,}"] * 2
    assert last.split()[-1] == "3,048,352"
    cost.count_network(lambda *given: 1)
    assert "package" not in capsys.readouterr().out


def test_the_table_has_the_papers_ratio(capsys):
    totals = cost.candidate_table(rso.models.paper_cnn(), torch.zeros(2, 1, 28, 28))
    assert totals["plain"] / totals["cached"] == pytest.approx(3.0, abs=0.05)  # §4.7
    assert totals["plain"] == (12026 - 192) * 3_048_352  # without the batch norms
    rows = {row.split()[0]: row.split()[1:] for row in capsys.readouterr().out.splitlines()[1:]}
    behind = 14 * 14 * 9 * 16 * 16 + 2 * 7 * 7 * 9 * 16 * 16 + 160
    touched = 14 * 14 + 7 * 7 * 9 * 16 + 7 * 7 * 9 * 16 * 16 + 160  # one channel, one of its sixteen, all
    assert rows["conv4"] == ["2,304", "3,048,352", f"{behind:,}", "120,308"]
    conv5 = 7 * 7 * 9 * 16  # a channel of 7 x 7 enters conv5
    conv6 = 7 * 7 * 9 * 16 * 16
    assert touched == 14 * 14 + conv5 + conv6 + 160 == 120_308


@pytest.mark.parametrize("evaluator", cost.EVALUATORS)
def test_the_layers_of_a_candidate_add_up(evaluator):
    x = torch.zeros(2, 1, 28, 28)
    network = Network(rso.models.paper_cnn(), x)
    whole = layer_costs(network, x, cost.COUNTED, evaluator)
    examples = cost.examples_of(network, x)
    for layer in searched_layers(network, cost.COUNTED):
        assert sum(cost.candidate_costs(network, layer, evaluator, examples).values()) == whole[layer.name].candidate


@pytest.mark.parametrize(
    ("evaluator", "batch_every"),
    [
        ("plain", "weight"),
        ("cached", "neuron"),
        ("incremental", "weight"),
        ("incremental", "neuron"),
        ("incremental", "layer"),
    ],
)
def test_a_cycle_is_counted_as_a_run_counts_itself(evaluator, batch_every, digits):
    method = rso.RSO(1, 20, batch_every=batch_every)
    model = rso.models.build("one_conv", digits)
    counted = cost.cycle_costs(model, digits.x_train, method)[evaluator]
    *_, record = rso.run(model, digits, method, seed=0, evaluator=evaluator)
    assert sum(counted.values()) == record.multiply_adds


def test_measured_are_proposals_of_each_layer(digits, capsys):
    found = cost.measure_cycle(digits, 20, count=2)
    layers = 7
    assert {len(measured.choices) for measured in found.values()} == {2 * layers}
    assert all(measured.seconds > 0 for measured in found.values())
    method = rso.RSO(1, 20, batch_norm=False)
    counted = cost.cycle_costs(rso.models.build("paper_cnn", digits), digits.x_train, method)
    assert found["cached"].multiply_adds == sum(counted["cached"].values())
    assert found["incremental, images held"].multiply_adds < found["incremental"].multiply_adds
    capsys.readouterr()
    table = {
        "plain": cost.Measured(900, 6.0, ["plus", "keep"]),
        "cached": cost.Measured(300, 3.0, ["plus", "keep"]),
        "incremental": cost.Measured(90, 4.0, ["plus", "minus"]),
    }
    cost.cost_table(table)
    said = capsys.readouterr().out
    assert "1 / 3.0        3.0, 2.0 times as fast" in said
    assert "1 / 10.0       4.0, 1.5 times as fast" in said
    assert "cached: 2 of 2 decisions" in said
    assert "incremental: 1 of 2 decisions" in said


def test_the_evaluators_decide_alike(digits64):
    """Where near-ties cannot differ: the first proposals in a convolution, in float64."""
    model = rso.models.build("paper_cnn", digits64)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "conv5.weight")
    choices = {}
    for evaluator in cost.EVALUATORS:
        search = rso.steps(copy.deepcopy(model), digits64, rso.RSO(1, 20), seed=0, evaluator=evaluator)
        choices[evaluator] = [next(search).choice for _ in range(30)]
        search.close()
    assert choices["plain"] == choices["cached"] == choices["incremental"]
    assert len(Counter(choices["plain"])) > 1


def test_the_recorded_costs_are_those_of_the_file(capsys):
    cost.recorded_costs()
    said = capsys.readouterr().out.splitlines()
    runs = rso.experiments.read(rso.experiments.RESULTS / "caching_class.json")["runs"]
    for row in said[2:]:
        last = [run["cycles"][-1] for run in runs if run["method"] == row.split()[0]]
        assert len(last) == 3
        seconds = [record["seconds"] for record in last]
        assert f"{sum(seconds) / 3:.1f}, from {min(seconds):.1f} to {max(seconds):.1f}" in row
        assert f"{sum(record['multiply_adds'] for record in last) / 3e9:,.0f} billion" in row
    assert len(said) == 2 + 3


def test_cost_grows_with_the_square_of_the_weights():
    found = cost.growth((8, 16, 32), (1, 28, 28), batch_size=5000)
    assert found["plain"][1] == (11834, 3 * 5000 * 11834 * 3_048_352)
    for points in found.values():
        (few, cheap), (many, dear) = points[1:]
        assert np.log(dear / cheap) / np.log(many / few) == pytest.approx(2, abs=0.05)


def test_other_widths_and_depths_are_of_the_papers_kind():
    assert sum(p.numel() for p in rso.models.paper_cnn().parameters()) == 12026
    model = rso.models.paper_cnn(width=4, depth=2)
    assert sum(p.numel() for p in model.parameters()) == 36 + 144 + 2 * 8 + 50
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    pools = [type(module) for module in rso.models.paper_cnn(depth=4).modules() if "Pool" in type(module).__name__]
    assert pools == [nn.AvgPool2d, nn.AdaptiveAvgPool2d]


def test_the_company_counts_with_the_mini_batchs_statistics_only(digits):
    own, whole = cost.company(digits, others=50).values()
    model = rso.models.build("paper_cnn", digits).train()[:7]
    with torch.no_grad():
        one, other = (model(digits.x_train[rows])[0] for rows in (range(51), [0, *range(70, 120)]))
    assert own == pytest.approx(float((one - other).abs().max() / one.abs().max()), rel=1e-3)
    assert whole < 1e-5 < own


def test_speed_is_positive():
    assert cost.speed(rso.models.paper_cnn(), torch.zeros(3, 1, 28, 28), times=1) > 0


def changed_channels(seen):
    return {name: int(np.abs(c).reshape(len(c), -1).any(axis=1).sum()) for name, c in seen.changes.items()}


def test_the_network_lights_up_behind_the_change(digits):
    seen = widgets.Ripple(digits)
    first = {name: value.clone() for name, value in seen.network.module.state_dict().items()}
    for place, name in ((0, "conv1"), (2, "conv3"), (5, "conv6")):
        seen.layer.value = name
        after = [1, *[16] * (5 - place), 10]
        assert list(changed_channels(seen).values()) == [*[0] * place, *after]
        assert f"a weight of {name}, channel 5" in seen.axes[0].get_title()
        heights = [bar.get_height() for bar in seen.axes[1].patches]
        assert heights[7:14] == [*[0] * place, *heights[place:7]]  # cached: as plain from here on
        assert heights[14 + place] < heights[7 + place] / 100
        assert sum(heights[14:]) == sum(seen.costs["incremental"].values())
        assert f"{name} 1 of 16" in seen.image.value
    seen.channel.value = 15
    assert seen.changes["conv6"][15].any()
    seen.layer.value = "fc"
    assert seen.channel.value == seen.channel.max == 9
    assert changed_channels(seen)["fc"] == 1
    assert all(torch.equal(value, first[name]) for name, value in seen.network.module.state_dict().items())


def test_the_change_is_that_of_the_network(digits):
    """Against the module in training mode: for a weight of the first layer all batch norms use the mini-batch."""
    seen = widgets.Ripple(digits)
    seen.layer.value = "conv1"
    model = rso.models.build("paper_cnn", digits).train()
    with torch.no_grad():
        before = model(digits.x_train[:100])[0]
        model.conv1.weight[5, 0, 0, 0] += model.conv1.weight.std(correction=0)
        after = model(digits.x_train[:100])[0]
    assert np.allclose(seen.changes["fc"].ravel(), after - before, atol=1e-5)
    assert np.abs(seen.changes["fc"]).max() > 1e-3


def test_the_cost_of_a_cycle_follows_its_controls():
    seen = widgets.Cost((1, 28, 28))
    assert "cached 3.0 times fewer, incremental 6.2 times fewer" in seen.image.value
    assert sum(seen.costs["plain"].values()) == 3 * 5000 * 11834 * 3_048_352
    bars = [bar.get_height() for bar in seen.axes.patches]
    assert bars == [seen.costs[e][layer] for e in cost.EVALUATORS for layer in seen.costs["plain"]]
    seen.images.value = 50
    assert sum(seen.costs["plain"].values()) == 3 * 50 * 11834 * 3_048_352
    assert "incremental 6.2 times fewer" in seen.image.value
    before = copy.deepcopy(seen.costs)
    seen.held.value = "neuron"
    assert seen.costs["cached"] == before["cached"]
    assert sum(seen.costs["incremental"].values()) < sum(before["incremental"].values()) / 3
    seen.depth.value = 3
    assert list(seen.costs["plain"]) == ["conv1", "conv2", "conv3", "fc"]
    assert [label.get_text() for label in seen.axes.get_xticklabels()] == list(seen.costs["plain"])
    seen.width.value = 4
    forward = 4 * 9 * 784 + 16 * 9 * 784 + 16 * 9 * 196 + 40
    assert seen.costs["plain"]["conv2"] == 3 * 50 * 144 * forward


def test_growth_has_lines_and_marks():
    ax = plots.growth({"plain": [(10, 1e3), (100, 1e5)]}, per_second=2.0)
    assert list(ax.lines[0].get_ydata()) == [1e3, 1e5]
    assert [text.get_text().strip() for text in ax.texts] == ["a second", "an hour", "a day", "a year"]
    assert [line.get_ydata()[0] for line in ax.lines[1:]] == [2.0, 7200.0, 2 * 86400, 2 * 365 * 86400]
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_unchanged_is_grey_and_changed_is_not():
    change = np.zeros((5, 2, 2))
    change[1] = -1e-6
    ax = plots.ripple({"conv": change})
    (picture,) = ax.images
    shown = {tuple(colour) for colour in picture.cmap(picture.norm(picture.get_array())).reshape(-1, 4).round(3)}
    assert len(shown) == 3  # grey, the changed one, and white frames
    sheet = picture.get_array()
    assert (sheet == 1).sum() == 48 * 48  # the largest change of the layer
    assert (sheet == 0).sum() == 4 * 48 * 48


def test_the_text_says_what_is_counted_and_recorded():
    source = (rso.experiments.RESULTS.parent / "notebooks" / "source" / "06_cost.py").read_text("utf-8")
    data = rso.load("digits")
    network = Network(rso.models.build("paper_cnn", data), data.x_train[:2])
    costs = layer_costs(network, data.x_train, cost.COUNTED, "incremental")
    assert costs["fc"].candidate == 1
    assert round(costs["conv1"].candidate, -4) == 100_000
    assert "from one product\n# for a weight of `fc` to about 100,000 for one of `conv1`" in source
    end = rso.fit(rso.models.build("one_conv", data), data, rso.RSO(10, 1000), seed=0).cycles[-1]
    assert f"{end.multiply_adds / 1e9:.1f} billion there" in source

    runs = rso.experiments.read(rso.experiments.RESULTS / "caching_class.json")["runs"]

    def ratio(what):
        spent = Counter()
        for run in runs:
            spent[run["method"]] += run["cycles"][-1][what]
        return spent["incremental"] / spent["cached"]

    assert ratio("multiply_adds") == pytest.approx(1 / 2, abs=0.05)
    assert ratio("seconds") == pytest.approx(1 - 1 / 6, abs=0.03)
    assert "takes half the multiply-adds of *cached*, and only a sixth less time" in source
