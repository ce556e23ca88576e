"""Experiments: what is compared, what is stored, and that nothing stored is lost or mistaken."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rso_lab as rso
from rso_lab.__main__ import main
from rso_lab.experiments import (
    EXPERIMENTS,
    FALL,
    NONZERO,
    Size,
    Way,
    _of,
    _put,
    begin,
    best,
    held_out,
    moved,
    perform,
    read,
)
from rso_lab.report import report

RESULTS = Path(__file__).parent.parent / "results"
TINY = Size("digits", "one_conv", rso.RSO(2, 50, batch_every="neuron"), rso.SGD(2, 100, 0.1, warm_up=1))


@pytest.fixture
def tiny(monkeypatch):
    """The smallest network."""
    for name, experiment in EXPERIMENTS.items():
        monkeypatch.setitem(EXPERIMENTS, name, replace(experiment, sizes={"class": TINY}))


@pytest.fixture
def done(tiny, tmp_path):
    """A folder with a whole experiment of two seeds."""
    list(perform("updates", "class", 2, tmp_path))
    return tmp_path


ONE_SETTING = {"levels", "proposals", "parallel"}  # in which the ways differ from the first


@pytest.mark.parametrize(("name", "size"), [(n, s) for n in EXPERIMENTS for s in EXPERIMENTS[n].sizes])
def test_the_ways_differ_in_what_they_say_only(name, size):
    experiment = EXPERIMENTS[name]
    of_size = experiment.sizes[size]
    ways = experiment.ways(of_size)
    default, *others = ways.values()
    for other in others if name in ONE_SETTING else ():
        changed = {key for key in vars(default.method) if getattr(default.method, key) != getattr(other.method, key)}
        assert len(changed - {"cycles"}) <= 1
        assert changed
        assert replace(other, method=default.method) == default
    of_any_size = {label for other in experiment.sizes.values() for label in experiment.ways(other)}
    for claim in experiment.claims:
        assert set(claim.labels) <= of_any_size
    assert len({json.dumps(settings) for settings in begin(name, size)["settings"]["ways"].values()}) == len(ways)


def test_a_growing_batch_costs_what_the_constant_one_does():
    for size in EXPERIMENTS["batch"].sizes.values():
        ways = EXPERIMENTS["batch"].ways(size)
        constant, growing = ways["held for a neuron"].method, ways["doubled each cycle"].method
        images = sum(growing.batch_size * 2**cycle for cycle in range(growing.cycles))
        assert images == pytest.approx(constant.batch_size * constant.cycles, rel=0.02)


def test_every_run_is_the_training_that_its_name_says(done):
    result = read(done / "updates_class.json")
    assert [(run["method"], run["seed"]) for run in result["runs"]] == [
        (label, seed) for seed in (0, 1) for label in ("RSO", "SGD")
    ]
    data = rso.load("digits")
    for run, method in ((result["runs"][2], TINY.rso), (result["runs"][3], TINY.sgd)):
        model = rso.models.build("one_conv", data, seed=1)
        start = copy.deepcopy(model)
        history = rso.fit(model, data, method, seed=1)
        assert [cycle["test_accuracy"] for cycle in run["cycles"]] == [r.test_accuracy for r in history.cycles]
        assert run["moved"] == moved(*([m.conv1.weight, m.fc.weight] for m in (start, model)))
    assert result["settings"]["ways"]["SGD"]["learning_rate"] == 0.1
    assert result["seeds"] == [0, 1]
    assert result["command"] == "python -m rso_lab experiment updates --size class --seeds 2"


def test_how_far_weights_moved():
    assert moved([torch.tensor([3.0]), torch.tensor([[4.0]])], [torch.tensor([3.0]), torch.tensor([[5.0]])]) == 0.2


def test_how_far_the_accuracy_falls_at_most():
    def after(*accuracies):
        return FALL.of({"cycles": [{"test_accuracy": accuracy} for accuracy in accuracies]})

    assert after(0.5, 0.75, 0.5, 1.0) == 0.25
    assert after(0.5, 0.75) == 0
    assert after(0.5) == 0


def test_how_many_weights_are_not_zero(tiny, tmp_path, monkeypatch):
    def ways(size):
        return {"a tenth": Way(rso.Masks(2, 100, 0.1, density=0.1, mask_rate=0.0))}

    monkeypatch.setitem(EXPERIMENTS, "order", replace(EXPERIMENTS["order"], ways=ways))
    list(perform("order", "class", 1, tmp_path))
    (run,) = read(tmp_path / "order_class.json")["runs"]
    model = rso.models.build("one_conv", rso.load("digits"), seed=0)
    expected = round(0.1 * model.conv1.weight.numel()) + model.fc.weight.numel()
    assert [cycle["nonzero"] for cycle in run["cycles"]] == [expected, expected]
    run["cycles"][0]["nonzero"] = 7000
    assert NONZERO.of(run) == 7000


def test_the_scale_of_the_first_weights(tiny, tmp_path):
    list(perform("initialisation", "class", 1, tmp_path))
    runs = {run["method"]: run for run in read(tmp_path / "initialisation_class.json")["runs"]}
    data = rso.load("digits")
    model = rso.models.build("one_conv", data, seed=0)
    with torch.no_grad():
        model.conv1.weight.mul_(10)
        model.fc.weight.mul_(10)
    history = rso.fit(model, data, TINY.rso, seed=0)
    last = runs["RSO, ten times He's weights"]["cycles"][-1]
    assert last["test_accuracy"] == history.cycles[-1].test_accuracy


def test_it_goes_on_where_it_was_interrupted(tiny, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    whole.mkdir()
    list(perform("parallel", "class", 1, whole))
    expected = read(whole / "parallel_class.json")["runs"]

    folder = tmp_path / "cut"
    folder.mkdir()
    cycles = 0

    def put(*arguments):
        nonlocal cycles
        _put(*arguments)
        cycles += 1
        if cycles == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rso_lab.experiments._put", put)
        with pytest.raises(KeyboardInterrupt):
            list(perform("parallel", "class", 1, folder))
    path = folder / "parallel_class.json"
    assert [len(run["cycles"]) for run in read(path)["runs"]] == [2, 1]
    assert "after 1 of 2 cycles" in report(folder)
    assert (folder / "checkpoints").exists()
    lines = list(perform("parallel", "class", 1, folder))
    assert [line.partition(":")[0] for line in lines] == ["neurons apart, seed 0", "weights apart, seed 0"]
    runs = read(path)["runs"]

    def without_times(runs):
        return [[{**cycle, "seconds": 0} for cycle in run["cycles"]] for run in runs]

    assert without_times(runs) == without_times(expected)
    assert list((folder / "checkpoints").iterdir()) == []
    assert list(perform("parallel", "class", 1, folder)) == []


@pytest.fixture
def two_methods(tiny, monkeypatch):
    """An experiment whose one way trains by a method, then by another, then by the first."""
    first = rso.Subspace(1, 100, 1.0, dimensions=5)

    def ways(size):
        return {"all": Way(replace(size.sgd, epochs=1), before=(first, size.sgd, first))}

    monkeypatch.setitem(EXPERIMENTS, "order", replace(EXPERIMENTS["order"], ways=ways))
    return ways(TINY)["all"]


COUNTED = ("updates", "evaluations", "multiply_adds")


def test_one_method_goes_on_where_another_ended(two_methods, tmp_path):
    list(perform("order", "class", 1, tmp_path))
    result = read(tmp_path / "order_class.json")
    (run,) = result["runs"]
    data = rso.load("digits")
    model = rso.models.build("one_conv", data, seed=0)
    methods = [*two_methods.before, two_methods.method]
    histories = [rso.fit(model, data, method, seed=1000 * stage) for stage, method in enumerate(methods)]
    records = [record for history in histories for record in history.cycles]
    assert [cycle["test_accuracy"] for cycle in run["cycles"]] == [record.test_accuracy for record in records]
    assert [cycle["cycle"] for cycle in run["cycles"]] == [1, 2, 3, 4, 5]
    for key in COUNTED:
        assert run["cycles"][-1][key] == sum(getattr(history.cycles[-1], key) for history in histories)
    assert run["seconds"] == run["cycles"][-1]["seconds"] > run["cycles"][1]["seconds"]
    assert result["settings"]["ways"]["all"]["before"][2]["dimensions"] == 5
    assert list(perform("order", "class", 1, tmp_path)) == []


@pytest.mark.parametrize("cycles", [1, 2, 3, 4])
def test_it_goes_on_in_the_method_that_was_interrupted(two_methods, tmp_path, monkeypatch, cycles):
    folders = tmp_path / "whole", tmp_path / "cut"
    for folder in folders:
        folder.mkdir()
    list(perform("order", "class", 1, folders[0]))
    puts = []

    def put(*arguments):
        _put(*arguments)
        puts.append(arguments)
        if len(puts) == cycles:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rso_lab.experiments._put", put)
        with pytest.raises(KeyboardInterrupt):
            list(perform("order", "class", 1, folders[1]))
    list(perform("order", "class", 1, folders[1]))
    whole, cut = (read(folder / "order_class.json")["runs"][0] for folder in folders)
    assert len(cut["cycles"]) == 5
    for before, after in zip(whole["cycles"], cut["cycles"], strict=True):
        assert {**after, "seconds": 0} == {**before, "seconds": 0}
    assert list((folders[1] / "checkpoints").iterdir()) == []


def cut_off_after_a_cycle(folder):
    """The first run of `updates`, of which one of two cycles is recorded."""
    lines = perform("updates", "class", 1, folder)
    next(lines)
    lines.close()
    path = folder / "updates_class.json"
    result = json.loads(path.read_text("utf-8"))
    (run,) = result["runs"]
    del run["cycles"][1:]
    run |= {"machine": "another", "versions": {"python": "2.7"}}
    path.write_text(json.dumps(result), "utf-8")
    return path


def test_what_is_recorded_stays_until_there_is_more(tiny, tmp_path):
    path = cut_off_after_a_cycle(tmp_path)
    recorded = read(path)["runs"]
    lines = perform("updates", "class", 1, tmp_path)
    assert next(lines) == "RSO, seed 0: begun anew, for want of a checkpoint of cycle 1"
    assert read(path)["runs"] == recorded
    next(lines)
    assert [(len(run["cycles"]), run["before"]) for run in read(path)["runs"]] == [(2, [])]


def test_a_run_that_goes_on_says_what_its_first_cycles_were_made_by(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # the checkpoint stays
        path = cut_off_after_a_cycle(tmp_path)
    next(perform("updates", "class", 1, tmp_path))
    (whole,) = read(path)["runs"]
    assert whole["before"] == [{"cycles": 1, "machine": "another", "versions": {"python": "2.7"}}]
    assert len(whole["cycles"]) == 2
    assert ", 2 machines |" in report(tmp_path)


def test_a_run_that_fails_is_an_answer(tiny, tmp_path, monkeypatch):
    def diverges(size):
        return {"fast": EXPERIMENTS["updates"].ways(replace(size, sgd=replace(size.sgd, learning_rate=1e30)))["SGD"]}

    monkeypatch.setitem(EXPERIMENTS, "order", replace(EXPERIMENTS["order"], ways=diverges))
    (line,) = perform("order", "class", 1, tmp_path)
    assert line.startswith("fast, seed 0: the loss is ")
    assert "fast: 1 run failed" in report(tmp_path)
    assert list(perform("order", "class", 1, tmp_path)) == []


def test_the_grid_search_sees_no_test_image():
    data = rso.load("digits")
    searched = held_out(data)
    assert torch.equal(torch.cat([searched.x_train, searched.x_test]), data.x_train)
    assert torch.equal(torch.cat([searched.y_train, searched.y_test]), data.y_train)
    assert len(searched.x_test) == pytest.approx(len(data.x_train) / 6, abs=1)
    few = EXPERIMENTS["grid"].prepare(data)
    assert torch.equal(few.x_test, searched.x_test)
    assert torch.equal(held_out(data, most=100).x_train, data.x_train[:100])


@pytest.mark.parametrize("size", ["class", "evening"])
def test_the_rival_is_the_best_of_its_grid(size):
    path = RESULTS / f"grid_{size}.json"
    if not path.exists():
        pytest.skip("not recorded")
    result = read(path)
    settings = result["settings"]["ways"][best(result)]
    rival = EXPERIMENTS["updates"].sizes[size].sgd
    assert (settings["batch_size"], settings["learning_rate"]) == (rival.batch_size, rival.learning_rate)


def other_settings(result):
    result["settings"]["ways"]["RSO"]["cycles"] = 7


def no_runs(result):
    del result["runs"]


def empty(result):
    result["runs"] = []


def no_time(result):
    del result["seconds"]


def a_number_of_seeds(result):
    result["seeds"] = 3


def a_run_without_cycles(result):
    result["runs"][0]["cycles"] = []


@pytest.mark.parametrize(
    ("damage", "message"),
    [(other_settings, "other settings")]
    + [(damage, "damaged") for damage in (no_runs, empty, no_time, a_number_of_seeds, a_run_without_cycles, None)],
)
def test_a_file_that_is_not_this_experiments_is_left_alone(done, damage, message):
    path = done / "updates_class.json"
    text = path.read_text("utf-8")
    if damage is None:
        path.write_text(text[: len(text) // 2], "utf-8")
    else:
        result = json.loads(text)
        damage(result)
        path.write_text(json.dumps(result), "utf-8")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message) as caught:
        list(perform("updates", "class", 2, done))
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("name", "size"), [("speed", "class"), ("levels", "huge")])
def test_what_is_not_known_is_refused_with_what_is(name, size, tmp_path):
    with pytest.raises(ValueError, match=r"choose from .*(levels|class)"):
        list(perform(name, size, 1, tmp_path))


def test_the_report_has_mean_and_range_over_seeds(done):
    runs = json.loads((done / "updates_class.json").read_text("utf-8"))["runs"]
    shares = [run["cycles"][-1]["test_accuracy"] for run in runs if run["method"] == "RSO"]
    *_, row = report(done).splitlines()
    assert f"RSO: {sum(shares) / 2:.1%} ({min(shares):.1%} to {max(shares):.1%}, 2 seeds)" in row
    claim = EXPERIMENTS["updates"].claims[1]
    assert row.startswith(f"| {claim.question} | {claim.paper} | ")
    assert "| digits, one_conv, 2 cycles, 2 epochs |" in row
    assert row.endswith("`python -m rso_lab experiment updates --size class --seeds 2` |")


def test_the_report_has_the_length_of_each_way_once(tiny, tmp_path, monkeypatch):
    def ways(size):
        evolution = {f"ES of {epochs}": Way(rso.ES(epochs, 100, 0.1, samples=1)) for epochs in (3, 1)}
        return evolution | {"GA": Way(rso.GA(3, 100, population=2, parents=2)), "longer, 2 epochs": Way(size.sgd)}

    monkeypatch.setitem(EXPERIMENTS, "order", replace(EXPERIMENTS["order"], ways=ways))
    list(perform("order", "class", 1, tmp_path))
    assert "| digits, one_conv, 3 epochs, 1 epoch |" in report(tmp_path)


def test_the_best_way_of_many():
    def run(method, accuracy, failed=""):
        return {"method": method, "failed": failed, "cycles": [{"test_accuracy": accuracy}]}

    runs = [run("a", 0.6), run("a", 0.6), run("b", 0.9), run("b", 0.4), run("c", 0.99), run("c", 0.99, "failed")]
    assert best({"runs": runs}) == "b"
    assert best({"runs": runs[:2] + runs[4:]}) == "a"


def test_a_report_is_of_what_was_run(done):
    with pytest.raises(ValueError, match="has no results"):
        report(done / "nowhere")
    (done / "parallel_class.json").write_bytes((done / "updates_class.json").read_bytes())
    with pytest.raises(ValueError, match=r"parallel_class\.json was made with other settings"):
        report(done)


def test_the_commands(tiny, tmp_path, capsys):
    assert main(["experiment", "updates", "--seeds", "1", "--folder", str(tmp_path)]) == 0
    assert "SGD, seed 0: " in capsys.readouterr().out
    assert main(["experiments", "--folder", str(tmp_path)]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed and experiment.question in listed for name, experiment in EXPERIMENTS.items())
    assert "class: 0 min, seeds: 1" in listed
    assert "class: not recorded" in listed
    assert main(["report", "--folder", str(tmp_path)]) == 0
    assert "SGD: " in capsys.readouterr().out
    assert (tmp_path / "updates_class.png").read_bytes().startswith(b"\x89PNG")
    assert main(["experiment", "speed"]) == 2
    assert "levels" in capsys.readouterr().err
    assert main(["experiment", "levels", "--size", "huge"]) == 2
    assert "class" in capsys.readouterr().err
    assert main(["experiment", "levels", "--seeds", "0"]) == 2
    assert main(["experiment", "levels", "--folder", str(tmp_path / "nowhere")]) == 1
    (tmp_path / "updates_class.json").write_text("{", "utf-8")
    assert main(["report", "--folder", str(tmp_path)]) == 1
    assert "updates_class.json" in capsys.readouterr().err


def test_the_recorded_ones_are_of_the_settings_that_the_code_has():
    for name, experiment in EXPERIMENTS.items():
        for size in experiment.sizes:
            path = RESULTS / f"{name}_{size}.json"
            if path.exists():
                _of(path, name, size)  # raises for others
            if size == "class" and path.exists():
                assert len(read(path)["runs"]) == 3 * len(experiment.ways(experiment.sizes[size])), path
