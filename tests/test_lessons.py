"""Checks of answers: solutions pass, stubs and each named mistake do not."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import rso_lab as rso
from rso_lab import lessons
from rso_lab.experiments import RESULTS, read


def solution(minus, keep, plus):
    if keep <= min(minus, plus):
        return "keep"
    return "plus" if plus <= minus else "minus"


NAMES = ("minus", "keep", "plus")
MISTAKES = {
    "highest": (lambda m, k, p: NAMES[(m, k, p).index(max(m, k, p))], "You take the highest loss."),
    "first of equals": (lambda m, k, p: NAMES[(m, k, p).index(min(m, k, p))], "Ask about keep first."),
    "first minus": (lambda m, k, p: "minus" if m < k else "plus" if p < k else "keep", "Compare both."),
    "first plus": (lambda m, k, p: "plus" if p < k else "minus" if m < k else "keep", "Compare both."),
    "exchanged": (lambda m, k, p: {"minus": "plus", "plus": "minus"}.get(solution(m, k, p), "keep"), "exchanged"),
    "never minus": (lambda m, k, p: "plus" if p < k else "keep", "w - δ has the lowest loss"),
    "lower than both": (
        lambda m, k, p: "minus" if m < min(k, p) else "plus" if p < min(k, m) else "keep",
        "the right one is 'minus' or 'plus'",
    ),
    "plus on a tie": (lambda m, k, p: "plus" if p <= min(m, k) else solution(m, k, p), "gains nothing"),
    "a number": (lambda m, k, p: min(m, k, p), "in quotes"),
    "other names": (lambda m, k, p: "w", 'one of "minus", "keep" and "plus"'),
    "an error": (lambda m, k, p: 1 / 0, "stopped with ZeroDivisionError"),
    "one argument": (lambda losses: "keep", "stopped with TypeError"),
    "nothing on a tie": (lambda m, k, p: solution(m, k, p) if m != k else None, "all three are equal"),
}


def minus_where_either_will_do(minus, keep, plus):
    return "minus" if minus == plus < keep else solution(minus, keep, plus)


@pytest.mark.parametrize("answer", [solution, minus_where_either_will_do])
def test_the_solution_passes(answer, capsys):
    assert lessons.check_choose(answer)
    assert capsys.readouterr().out.startswith("Right")


@pytest.mark.parametrize("stub", [lambda m, k, p: None, lambda m, k, p: ...])
def test_a_stub_is_not_done_yet(stub, capsys):
    lessons.check_choose(stub)
    assert capsys.readouterr().out.startswith("Not done yet")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_named(mistake, capsys):
    answer, named = MISTAKES[mistake]
    lessons.check_choose(answer)
    out = capsys.readouterr().out
    assert out.startswith("Not yet")
    assert named in out


def test_a_learners_choose_trains_as_the_package_does(digits, capsys):
    lessons.train_with(solution, digits)
    model = rso.models.build("one_conv", digits)
    history = rso.fit(model, digits, rso.RSO(1, len(digits.x_train)), seed=0)
    assert f"every time: {history.cycles[-1].test_accuracy:.1%} of" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [lambda m, k, p: None, lambda m, k, p: "plus"])
def test_a_wrong_choose_does_not_train(wrong, digits, capsys):
    lessons.train_with(wrong, digits)
    assert capsys.readouterr().out.startswith("Not")


@pytest.mark.parametrize(
    ("prediction", "verdict"),
    [
        (0.5, "17 percentage points more"),
        (0.9, "23 percentage points less"),
        (0.67, "spot on"),
        (1, "33 percentage points"),
    ],
)
def test_predictions_are_shown_beside_what_was_measured(prediction, verdict, capsys):
    lessons.compare(prediction, 0.669, "right")
    out = capsys.readouterr().out
    assert out.startswith("right: measured 67%, your prediction ")
    assert verdict in out


def test_no_prediction_is_no_fault(capsys):
    lessons.compare(..., 0.669, "right")
    assert capsys.readouterr().out == "right: measured 67%. You made no prediction this time.\n"


@pytest.mark.parametrize("prediction", [67, -0.1, "half", None, float("nan")])
def test_a_prediction_that_is_no_share_is_asked_for_again(prediction, capsys):
    lessons.compare(prediction, 0.669, "right")
    assert "between 0 and 1" in capsys.readouterr().out


def test_the_ledger_grows_from_lesson_to_lesson(digits, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    histories = [rso.fit(rso.models.build("one_conv", digits), digits, rso.RSO(n, 20), seed=0) for n in (1, 2)]
    lessons.ledger("02", histories[0])
    lessons.ledger("00", histories[1])
    lessons.ledger("02", histories[0])
    _, *rows = capsys.readouterr().out.split("lesson")[-1].splitlines()
    assert [row.split()[0] for row in rows] == ["00", "02"]
    for row, history in zip(rows, reversed(histories), strict=True):
        last = history.cycles[-1]
        assert f" digits, {len(history.cycles)} x 20 " in row
        assert f" {last.test_accuracy:.1%} " in row
        assert f" {690 * 3 * len(history.cycles):,} " in row
        assert f" {last.multiply_adds / 1e9:.1f} billion" in row
        assert row.endswith(f" {last.seconds:.1f} s")


def test_a_rival_has_a_line_of_its_own_below(digits, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    methods = rso.RSO(1, 20), rso.SGD(2, 50, 0.1, warm_up=1)
    histories = [rso.fit(rso.models.build("one_conv", digits), digits, method, seed=0) for method in methods]
    lessons.ledger("08", *histories)
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading.startswith("lesson")
    assert first.startswith("08      digits, 1 x 20 ")
    assert second.startswith("08 SGD  digits, 2 x 50 ")
    assert f" {histories[1].cycles[-1].test_accuracy:.1%} " in second
    lessons.ledger("02", histories[0])
    assert len(capsys.readouterr().out.splitlines()) == 2  # those of later lessons are left out


def test_a_run_stands_beside_the_paper(digits):
    history = rso.fit(rso.models.build("one_conv", digits), digits, rso.RSO(2, 20), seed=0)
    lines = {line.get_label(): line.get_ydata() for line in lessons.beside_the_paper(history).lines}
    assert lines["yours"].tolist() == [record.test_accuracy for record in history.cycles]
    assert lines["paper: MNIST, 50 cycles, 99.12 %"][0] == 0.9912
    assert lines["paper: MNIST, 5 cycles, 98.0 %"][0] == 0.98
    (run,) = read(RESULTS / "mnist_evening.json")["runs"]
    recorded = lines["recorded: MNIST, the paper's network"]
    assert recorded.tolist() == [cycle["test_accuracy"] for cycle in run["cycles"]]


@pytest.mark.parametrize("content", ["", "[1]", "{", '"02"', "null"])
def test_a_ledger_that_is_not_ours_is_begun_anew(content, digits, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ledger.json").write_text(content)
    history = rso.fit(rso.models.build("one_conv", digits), digits, rso.RSO(1, 20), seed=0)
    lessons.ledger("02", history)
    assert len(capsys.readouterr().out.splitlines()) == 2


SIGMAS = {
    "variance": (lambda w: 2 / w[0].numel(), "its square root"),
    "no relu": (lambda w: (1 / w[0].numel()) ** 0.5, "Without the 2"),
    "fan-out": (lambda w: (2 / w.shape[0]) ** 0.5, "divide by the outputs"),
    "all weights": (lambda w: (2 / w.numel()) ** 0.5, "divide by all weights"),
    "root of the lower half": (lambda w: 2 / w[0].numel() ** 0.5, "of the whole fraction"),
    "always 3 x 3": (lambda w: (2 / (w.shape[1] * 9)) ** 0.5, "Not every layer has 3 x 3 places"),
    "channels only": (lambda w: (2 / w.shape[1]) ** 0.5, "also sums over the kernel's places"),
    "measured": (lambda w: float(w.std()), "from its shape alone"),
    "text": (lambda w: "0.1", "your answer was '0.1'"),
    "no count": (lambda w: (2 / w[0]) ** 0.5, "numbers, and one is wanted"),
    "four dimensions": (lambda w: (2 / (w.shape[1] * w.shape[2] * w.shape[3])) ** 0.5, "suits both"),
    "a root": (lambda w: sqrt(2 / w[0].numel()), "**0.5 is a root"),  # noqa: F821
    "an error": (lambda w: w.nothing, "stopped with AttributeError"),
}
NORMALISED = {
    "mean only": (lambda x: x - x.mean(), "Divide by the deviation, too."),
    "deviation only": (lambda x: x / x.std(), "Subtract the mean first."),
    "variance": (lambda x: (x - x.mean()) / x.var(), "divide by the variance"),
    "each image": (
        lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True),
        "Each image by its own mean",
    ),
    "each pixel": (lambda x: (x - x.mean(0)) / (x.std(0) + 1e-8), "Each pixel by its own mean"),
    "brackets": (lambda x: x - x.mean() / x.std(), "Python divides first"),
    "no call": (lambda x: (x - x.mean()) / x.std, "Are brackets missing"),
    "a number": (lambda x: x.mean(), "same shape"),
    "an error": (lambda x: x / None, "stopped with TypeError"),
}
ERRORS = {
    "n": (lambda d, n: d.std() / n, "square root only"),
    "one image": (lambda d, n: d.std(), "varies less"),
    "variance": (lambda d, n: d.var() / n, "the square of it"),
    "root of all": (lambda d, n: (d.std() / n) ** 0.5, "of n alone"),
    "text": (lambda d, n: "small", "your answer was 'small'"),
    "half of n": (lambda d, n: d.std() / n**1 / 2, "Write n**0.5."),
    "all images": (lambda d, n: d.std() / len(d) ** 0.5, "not the number of all images"),
    "times": (lambda d, n: d.std() * n**0.5, "varies less: divide"),
    "mean": (lambda d, n: d.mean() / n**0.5, ".std() in place of .mean()"),
    "the first n": (lambda d, n: d[:n].std() / n**0.5, "not of the first n"),
    "no spread": (lambda d, n: d / n**0.5, "300 numbers, and one is wanted"),
    "no brackets": (lambda d, n: d.std, "Are brackets missing"),
    "one argument": (lambda d: d.std(), "stopped with TypeError"),
}


def two_loops(outputs, inputs, order):
    if order == "neuron":
        return [(i, j) for i in range(outputs) for j in range(inputs)]
    return [(i, j) for j in range(inputs) for i in range(outputs)]


VISITS = {
    "exchanged": (lambda m, n, o: two_loops(m, n, "input" if o == "neuron" else "neuron"), "the other order"),
    "always neuron": (lambda m, n, o: two_loops(m, n, "neuron"), "the other order"),
    "pairs": (lambda m, n, o: [(j, i) for i, j in two_loops(m, n, o)], "The output comes first"),
    "too few": (lambda m, n, o: two_loops(m, n, o)[1:], "exactly once"),
    "a number": (lambda m, n, o: 6, "collect the pairs in a list"),
    "one pair": (lambda m, n, o: (0, 0), "collect the pairs in a list"),
    "no range": (lambda m, n, o: [(i, 0) for i in m], "range(outputs) counts up"),
    "no quotes": (lambda m, n, o: neuron, "Text stands in quotes"),  # noqa: F821
}
COSINES = {
    "no lengths": (lambda a, b: (a * b).sum(), "Divide by the lengths of both."),
    "counts": (lambda a, b: (a * b).sum() / (len(a) * len(b)), "len(a) counts the numbers"),
    "one length": (lambda a, b: (a * b).sum() / a.norm(), "the other one, too"),
    "squares": (lambda a, b: (a * b).sum() / (a.norm() * b.norm()) ** 2, "not their squares"),
    "mean": (lambda a, b: (a * b).mean() / (a.norm() * b.norm()), "not their mean"),
    "text": (lambda a, b: "1", "your answer was '1'"),
    "no brackets": (lambda a, b: (a * b).sum() / a.norm() * b.norm(), "brackets around their product"),
    "sums first": (lambda a, b: a.sum() * b.sum() / (a.norm() * b.norm()), "First multiply matching numbers"),
    "sum of lengths": (lambda a, b: (a * b).sum() / (a.norm() + b.norm()), "not their sum"),
    "angle": (lambda a, b: F.cosine_similarity(a, b, dim=0).acos(), "leave acos out"),
    "no sign": (lambda a, b: F.cosine_similarity(a, b, dim=0).abs(), "Without abs"),
    "no sum": (lambda a, b: a * b / (a.norm() * b.norm()), "20 numbers, and one is wanted"),
    "a method": (lambda a, b: a.norm, "Are brackets missing"),
    "one argument": (lambda a: a, "stopped with TypeError"),
}
CHECKS = {
    "cosine": (lessons.check_cosine, lambda a, b: (a * b).sum() / (a.norm() * b.norm()), COSINES),
    "visits": (lessons.check_visits, two_loops, VISITS),
    "standard_error": (lessons.check_standard_error, lambda d, n: d.std() / n**0.5, ERRORS),
    "he_sigma": (lessons.check_he_sigma, lambda w: (2 / w[0].numel()) ** 0.5, SIGMAS),
    "normalise": (lessons.check_normalise, lambda x: (x - x.mean()) / x.std(), NORMALISED),
}


@pytest.mark.parametrize("name", CHECKS)
def test_an_exercise_is_judged_right(name, capsys):
    check, solution, _ = CHECKS[name]
    assert check(solution)
    assert capsys.readouterr().out.startswith("Right")
    assert not check(lambda *tensors: ...)
    assert capsys.readouterr().out.startswith("Not done yet")


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (lessons.check_he_sigma, lambda w: np.sqrt(2 / w[0].numel())),
        (lessons.check_he_sigma, lambda w: torch.tensor(2.0 / w[0].numel()).sqrt()),
        (lessons.check_normalise, lambda x: ((x - x.mean()) / x.std()).double()),
        (lessons.check_standard_error, lambda d, n: np.float64(d.double().std() / n**0.5)),
    ],
)
def test_a_right_answer_may_be_of_another_type(check, answer):
    assert check(answer)


@pytest.mark.parametrize(
    ("check", "answer", "advice"),
    [(check, *mistake) for check, _, named in CHECKS.values() for mistake in named.values()],
)
def test_a_mistake_is_named(check, answer, advice, capsys):
    assert not check(answer)
    said = capsys.readouterr().out
    assert said.startswith("Not yet")
    assert advice in said


def test_random_networks_are_those_of_their_seeds(digits):
    found = lessons.random_networks(digits, 3)
    model = rso.models.build("one_conv", digits, seed=2)
    assert found[2] == (model(digits.x_test).argmax(dim=1) == digits.y_test).double().mean().item()


def not_put_back(loss, weights, index, delta):
    w = weights[index].item()
    keep = loss()
    weights[index] = w - delta
    minus = loss()
    weights[index] = w + delta
    return minus, keep, loss()


def a_view_in_order(loss, weights, index, delta):
    w = weights[index]
    weights[index] = w - delta
    minus = loss()
    weights[index] = w
    keep = loss()
    weights[index] = w + delta
    plus = loss()
    weights[index] = w
    return minus, keep, plus


def a_view(loss, weights, index, delta):
    w = weights[index]
    keep = loss()
    weights[index] = w - delta
    minus = loss()
    weights[index] = w + delta
    plus = loss()
    weights[index] = w
    return minus, keep, plus


def drifts(loss, weights, index, delta):
    keep = loss()
    weights[index] -= delta
    minus = loss()
    weights[index] += 2 * delta
    plus = loss()
    weights[index] -= delta
    return minus, keep, plus


def taken_back(loss, weights, index, delta):
    keep = loss()
    weights[index] -= delta
    minus = loss()
    weights[index] += delta
    plus = loss()
    return minus, keep, plus


def another_order(loss, weights, index, delta):
    minus, keep, plus = lessons.evaluate(loss, weights, index, delta)
    return keep, plus, minus


def of_two_numbers(loss, weights, index, delta):
    i, j = index
    return lessons.evaluate(loss, weights, (i, j), delta)


def a_slice(loss, weights, index, delta):
    i, j, *_ = index
    w = weights[i, j].clone()
    losses = []
    for step in (-delta, 0, delta):
        weights[i, j] = w + step
        losses.append(loss())
    weights[i, j] = w
    return losses


EVALUATES = {
    "two numbers": (of_two_numbers, "`weights[index]`, however long it is"),
    "a slice": (a_slice, "fits one kind of layer"),
    "not put back": (not_put_back, "put it back"),
    "a view": (a_view, "print w before and after"),
    "taken back": (taken_back, "only taken the minus step back"),
    "no brackets": (lambda loss, weights, index, delta: (loss, loss, loss), "Write loss(), with brackets."),
    "drifts": (drifts, "not exactly"),
    "another order": (another_order, "The order is minus, keep, plus."),
    "one loss": (lambda loss, weights, index, delta: (loss(), loss(), loss()), "call loss() anew"),
    "a view, in the order asked for": (a_view_in_order, "print w before and after"),
    "a number": (lambda loss, weights, index, delta: loss(), "Return three losses"),
    "an error": (lambda loss, weights, index, delta: loss(weights), "Set weights[index] first"),
}


def apply(weights, index, delta, choice):
    weights[index] += {"minus": -delta, "keep": 0, "plus": delta}[choice]


def all_weights(weights, index, delta, choice):
    weights += {"minus": -delta, "keep": 0, "plus": delta}[choice]


APPLIES = {
    "exchanged": (
        lambda w, i, d, c: apply(w, i, -d, c),
        "With 'minus', the weight 0.1 and delta 0.25 it should be -0.15",
    ),
    "all weights": (all_weights, "3 other weights changed"),
    "two numbers": (lambda w, i, d, c: apply(w, (i[0], i[1]), d, c), "however long it is"),
    "always": (lambda w, i, d, c: apply(w, i, d, "plus"), "should be -0.15"),
    "never minus": (lambda w, i, d, c: apply(w, i, d, "plus") if c == "plus" else None, "With 'minus'"),
    "an error": (lambda w, i, d, c: w[i, d], "stopped with"),
    "returned": (lambda w, i, d, c: w[i] + d, "Do not return the new value"),
}


@pytest.mark.parametrize(
    ("check", "answer", "advice"),
    [(lessons.check_evaluate, *named) for named in EVALUATES.values()]
    + [(lessons.check_apply, *named) for named in APPLIES.values()],
)
def test_a_mistake_in_a_verb_is_named(check, answer, advice, capsys):
    assert not check(answer)
    said = capsys.readouterr().out
    assert said.startswith(("Not yet", "Not done yet", "Nearly"))
    assert advice in said


def test_the_verbs_are_judged_right(capsys):
    assert lessons.check_evaluate(lessons.evaluate)
    assert lessons.check_apply(apply)
    assert capsys.readouterr().out.count("Right") == 2
    assert not lessons.check_evaluate(lambda *given: None)
    assert not lessons.check_apply(lambda *given: None)
    assert capsys.readouterr().out.count("Not done yet") == 2


def test_a_cycle_by_hand_decides_as_the_package(digits, capsys):
    lessons.train_by_hand(lessons.evaluate, solution, apply, digits)
    assert "690 of your 690 decisions were the package's." in capsys.readouterr().out
    lessons.train_by_hand(a_view, solution, apply, digits)
    assert "decisions" not in capsys.readouterr().out


def test_symptoms_tell_the_bugs_apart(digits, capsys):
    def nothing(layers):
        for weight in layers:
            weight = weight + 1

    kept = {}
    for name, options in {
        "right": {"evaluate": lessons.evaluate},
        "a view": {"evaluate": a_view},
        "other images": {"evaluate": lessons.evaluate, "same_images": False},
        "nothing": {"evaluate": lessons.evaluate, "initialise": nothing},
    }.items():
        lessons.symptoms(digits, batch_size=60, **options)
        kept[name] = int(capsys.readouterr().out.partition("weights kept: ")[2].partition("%")[0])
    assert kept["right"] < kept["other images"] < kept["a view"] < kept["nothing"]
    assert kept["nothing"] > 95


def test_common_images_cancel_the_luck_of_the_draw(digits):
    found = {name: torch.tensor(values) for name, values in lessons.loss_differences(digits, 20, 50).items()}
    assert found["other images"].std() > 10 * found["the same images"].std()
    model = rso.models.build("one_conv", digits)
    delta, before = model.fc.weight.std(correction=0).item(), model.fc.weight[3, 5].item()
    means = []
    for step in (0, delta, -delta):
        with torch.no_grad():
            model.fc.weight[3, 5] = before + step
            means.append(F.cross_entropy(model(digits.x_train), digits.y_train).item())
    assert found["the same images"].mean().item() == pytest.approx(min(means[1:]) - means[0], abs=0.01)


def test_accepted_changes_go_downhill(digits):
    accepted, downhill = lessons.signs(digits, 100)
    method = rso.RSO(1, 100)
    steps = rso.steps(rso.models.build("one_conv", digits), digits, method, seed=0)
    assert accepted == sum(step.choice != "keep" for step in steps)
    assert downhill >= 0.99 * accepted


@pytest.mark.parametrize(("size", "every"), [(8, 1), (12, 2)])
def test_accepted_changes_are_measured_on_all_images(digits, size, every):
    larger = torch.nn.Upsample(size=size)
    data = rso.Data.from_arrays(larger(digits.x_train), digits.y_train, larger(digits.x_test), digits.y_test)
    of_batch, of_all = lessons.accepted_changes(data, 20, cycles=2)
    assert len(of_all) < 1000
    model = rso.models.build("one_conv", data)
    expected, before = [], None
    for number, step in enumerate(rso.steps(model, data, rso.RSO(2, 20, sigma_end=1.0), seed=0)):
        with torch.no_grad():
            loss = F.cross_entropy(model(data.x_train), data.y_train).item()
        if step.cycle == 2 and step.choice != "keep" and number % every == 0:
            expected.append(loss - before)
        before = loss
    assert of_all == pytest.approx(expected, abs=1e-6)
    assert len(of_batch) == len(of_all)
    assert max(of_batch) < 0
    assert max(of_all) > 0


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_goes_by_the_name_of_the_exercise(name, capsys):
    check, solution, _ = CHECKS[name]
    check(solution)
    expected = capsys.readouterr().out
    solution.__name__ = name
    assert lessons.check(solution) is None  # what a notebook would show
    assert capsys.readouterr().out == expected


def test_another_name_is_refused():
    def sigma(weight): ...

    with pytest.raises(ValueError, match="'sigma' is the name of no exercise: choose from normalise, he_sigma"):
        lessons.check(sigma)


def test_runs_are_compared_seed_by_seed(capsys):
    lessons.paired("order", "neuron first, output layer first", "input first, output layer first")
    said = capsys.readouterr().out
    runs = rso.experiments.read(rso.experiments.RESULTS / "order_class.json")["runs"]
    last = {(run["method"], run["seed"]): run["cycles"][-1]["test_accuracy"] for run in runs}
    for seed in range(3):
        lead = last["neuron first, output layer first", seed] - last["input first, output layer first", seed]
        assert f"{100 * lead:+.1f}" in said
    assert "no difference" in said


def test_gains_are_those_of_the_better_direction(digits):
    proposals = lessons.RandomProposals(digits)
    model = rso.models.build("one_conv", digits)
    changes = proposals.changes(690, 0.1, 3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, proposals.model.get_parameter(name))  # put back
    generator = torch.Generator().manual_seed(0)
    start = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    for change in changes:
        which = torch.randperm(690, generator=generator)
        delta = torch.zeros(690)
        delta[which] = torch.randn(690, generator=generator) * 0.1 * proposals.spread[which]
        losses = []
        for weights in (start, start + delta, start - delta):
            torch.nn.utils.vector_to_parameters(weights, model.parameters())
            with torch.no_grad():
                losses.append(F.cross_entropy(model(digits.x_train), digits.y_train).item())
        assert change == pytest.approx(min(losses[1:]) - losses[0], abs=1e-6)


def test_the_more_weights_move_the_less_each_may(digits):
    sizes = (0.03, 0.1, 0.3, 1)
    table = lessons.gain_table(digits, (1, 690), sizes, count=10)
    assert table.shape == (4, 2)
    assert (table >= 0).all()
    assert table[:, 0].argmax() > table[:, 1].argmax()


def test_promises_are_means(capsys):
    lessons.promises([-0.5, -0.25], [0.5, -0.25])
    assert capsys.readouterr().out == "promised by the mini-batch: -0.3750 a change; for all images it was +0.1250\n"


def test_a_difference_is_believed_well_above_its_spread(capsys):
    first = "neuron first, output layer first"
    pairs = {
        "a difference": ("proposals", "the usual way", "w + δ only", "class"),
        "perhaps a difference: more seeds would tell": ("order", first, "neuron first, input layer first", "evening"),
        "no difference to speak of": ("order", first, "neuron first, input layer first", "class"),
    }
    for verdict, (name, one, other, size) in pairs.items():
        lessons.paired(name, one, other, size)
        said = capsys.readouterr().out
        leads = [float(lead) for lead in re.findall(r"[+-]\d+\.\d", said)[:3]]
        beyond = float(abs(np.mean(leads)) / np.std(leads, ddof=1))
        assert said.strip().endswith(f": {verdict}")
        assert (beyond > 1) + (beyond > 2.5) == 2 - list(pairs).index(verdict)
