"""Experiments: what is compared, what is stored, and that nothing stored is lost or mistaken."""

import json
from pathlib import Path

import pytest

import rso_lab as rso
from rso_lab.__main__ import main
from rso_lab.experiments import EXPERIMENTS, SIZES, Size, begin, perform, read, report


@pytest.fixture
def tiny(monkeypatch):
    """One cycle of the smallest network."""
    monkeypatch.setitem(SIZES, "class", Size("digits", "one_conv", rso.RSO(1, 50, batch_every="neuron")))


@pytest.fixture
def done(tiny, tmp_path):
    """A folder with a whole experiment of two seeds."""
    list(perform("annealing", "class", 2, tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_ways_differ_in_one_setting_only(name):
    base = SIZES["class"].base
    default, *others = EXPERIMENTS[name].methods(base).values()
    assert name in ("levels", "hold") or default == base  # for these two the mini-batch changes with each weight
    for other in others:
        changed = {key for key in vars(base) if getattr(default, key) != getattr(other, key)}
        assert 1 <= len(changed) <= (2 if name == "order" else 1)


def test_every_run_is_the_training_that_its_name_says(done):
    result = read(done / "annealing_class.json")
    assert [(run["method"], run["seed"]) for run in result["runs"]] == [
        (label, seed) for seed in (0, 1) for label in ("to a tenth", "none")
    ]
    data = rso.load("digits")
    model = rso.models.build("one_conv", data, seed=1)
    history = rso.fit(model, data, rso.RSO(1, 50, batch_every="neuron", sigma_end=1.0), seed=1)
    cycles = result["runs"][3]["cycles"]
    assert [cycle["test_accuracy"] for cycle in cycles] == [record.test_accuracy for record in history.cycles]
    assert result["settings"]["methods"]["none"]["sigma_end"] == 1.0
    assert result["seeds"] == [0, 1]
    assert result["command"] == "python -m rso_lab experiment annealing --size class --seeds 2"


def test_it_goes_on_with_the_runs_that_are_missing(tiny, tmp_path):
    runs = perform("annealing", "class", 1, tmp_path)
    assert next(runs).startswith("to a tenth, seed 0: ")
    runs.close()
    first = read(tmp_path / "annealing_class.json")["runs"]
    assert len(first) == 1
    assert [line.partition(":")[0] for line in perform("annealing", "class", 1, tmp_path)] == ["none, seed 0"]
    result = read(tmp_path / "annealing_class.json")
    assert result["runs"][:1] == first
    assert list(perform("annealing", "class", 1, tmp_path)) == []
    assert len(list(perform("annealing", "class", 2, tmp_path))) == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "annealing_class.json"]


def other_settings(result):
    result["settings"]["methods"]["none"]["cycles"] = 7


def no_runs(result):
    del result["runs"]


def a_run_without_cycles(result):
    result["runs"][0]["cycles"] = []


@pytest.mark.parametrize(
    ("damage", "message"),
    [(other_settings, "other settings"), (no_runs, "damaged"), (a_run_without_cycles, "damaged"), (None, "damaged")],
)
def test_a_file_that_is_not_this_experiments_is_left_alone(done, damage, message):
    path = done / "annealing_class.json"
    text = path.read_text("utf-8")
    if damage is None:
        path.write_text(text[: len(text) // 2], "utf-8")
    else:
        result = json.loads(text)
        damage(result)
        path.write_text(json.dumps(result), "utf-8")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message) as caught:
        list(perform("annealing", "class", 2, done))
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("name", "size"), [("speed", "class"), ("levels", "huge")])
def test_what_is_not_known_is_refused_with_what_is(name, size, tmp_path):
    with pytest.raises(ValueError, match=r"choose from .*(levels|class)"):
        list(perform(name, size, 1, tmp_path))


def test_the_report_has_mean_and_range_over_seeds(done):
    shares = [
        run["cycles"][-1]["test_accuracy"]
        for run in json.loads((done / "annealing_class.json").read_text("utf-8"))["runs"]
        if run["method"] == "none"
    ]
    row = report(done).splitlines()[2]
    assert f"none: {sum(shares) / 2:.1%} ({min(shares):.1%} to {max(shares):.1%}, 2 seeds)" in row
    assert row.startswith(f"| {EXPERIMENTS['annealing'].question} | {EXPERIMENTS['annealing'].paper} | ")
    assert "digits, one_conv, 1 cycle" in row
    assert row.endswith("`python -m rso_lab experiment annealing --size class --seeds 2` |")


def test_a_report_is_of_what_was_run(done, monkeypatch):
    with pytest.raises(ValueError, match="has no results"):
        report(done / "nowhere")
    (done / "hold_class.json").write_bytes((done / "annealing_class.json").read_bytes())
    with pytest.raises(ValueError, match=r"hold_class\.json was made with other settings"):
        report(done)
    (done / "hold_class.json").unlink()
    monkeypatch.setitem(SIZES, "class", Size("digits", "mlp", rso.RSO(1, 50, batch_every="neuron")))
    with pytest.raises(ValueError, match="other settings"):
        report(done)


def test_the_commands(tiny, tmp_path, capsys):
    assert main(["experiments"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed and experiment.question in listed for name, experiment in EXPERIMENTS.items())
    assert main(["experiment", "opposite", "--seeds", "1", "--folder", str(tmp_path)]) == 0
    assert "w + d only, seed 0: " in capsys.readouterr().out
    assert main(["report", "--folder", str(tmp_path)]) == 0
    assert "w + d only: " in capsys.readouterr().out
    assert main(["experiment", "speed"]) == 2
    assert "levels" in capsys.readouterr().err
    assert main(["experiment", "levels", "--seeds", "0"]) == 2
    assert main(["experiment", "levels", "--folder", str(tmp_path / "nowhere")]) == 1
    (tmp_path / "opposite_class.json").write_text("{", "utf-8")
    assert main(["report", "--folder", str(tmp_path)]) == 1
    assert "opposite_class.json" in capsys.readouterr().err


def test_the_recorded_ones_are_of_the_settings_that_the_code_has():
    for path in (Path(__file__).parent.parent / "results").glob("*_class.json"):
        name = path.stem.removesuffix("_class")
        assert read(path)["settings"] == begin(name, "class")["settings"]
        assert len(read(path)["runs"]) == 3 * len(EXPERIMENTS[name].methods(SIZES["class"].base))
