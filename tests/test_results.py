"""Recorded results say where they come from, and the README's figures are theirs."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

import rso_lab as rso
from rso_lab.relatives.masks import MASK_RATES
from rso_lab.report import report, summary

ROOT = Path(__file__).parent.parent
RESULTS = sorted((ROOT / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_each_result_says_how_it_was_made(path):
    result = json.loads(path.read_text("utf-8"))
    assert {"command", "seeds", "settings", "versions", "machine", "seconds"} <= set(result)
    assert isinstance(result["seeds"], list)
    assert {"python", "torch"} <= set(result["versions"])
    assert result["command"].startswith("python ")
    assert result["seconds"] > 0


@pytest.mark.parametrize("name", ["mnist_one_conv", "mnist_paper_cnn", "digits_paper_cnn"])
def test_the_figures_of_the_readme_are_those_recorded(name):
    history = rso.History.load(ROOT / "results" / f"{name}.json")
    last = history.cycles[-1]
    row = f"| `{history.command.partition(' --out')[0]}` | {last.test_accuracy:.2%} | {last.seconds:.0f} s |"
    assert row in (ROOT / "README.md").read_text("utf-8")


def test_the_run_on_a_gpu_in_the_readme_is_the_recorded_one():
    history = rso.History.load(ROOT / "results" / "gpu_paper.json")
    after, last = {record.cycle: record.test_accuracy for record in history.cycles}, history.cycles[-1]
    text = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert (
        f"{after[5]:.2%} after 5 cycles, {last.test_accuracy:.2%} after {last.cycle}, in {last.seconds:.0f} s" in text
    )
    agreement = json.loads((ROOT / "results" / "gpu_stage_a.json").read_text("utf-8"))
    assert set(agreement["different_in_float64"].values()) == {0}
    assert agreement["float32"]["different"] == 0
    assert agreement["waits_for"] == "nothing"


def test_the_default_sigma_of_batch_norms_is_the_best_that_was_measured():
    records = json.loads((ROOT / "results" / "batch_norm_sigma.json").read_text("utf-8"))["records"]
    for model in {record["model"] for record in records}:
        accuracies = {}
        for record in records:
            if record["model"] == model:
                accuracies.setdefault(record["settings"]["batch_norm_sigma"], []).append(record["accuracy"])
        means = {sigma: sum(values) / len(values) for sigma, values in accuracies.items()}
        assert max(means, key=means.get) == rso.RSO(1, 1).batch_norm_sigma, means


def test_the_floor_of_sigma_that_is_advised_is_the_best_that_was_measured():
    accuracies = {}
    for record in json.loads((ROOT / "results" / "sigma_floor.json").read_text("utf-8"))["records"]:
        accuracies.setdefault(record["settings"]["sigma_floor"], []).append(record["accuracy"])
    del accuracies[0.0]  # a last layer that begins as the others do
    assert max(accuracies, key=lambda floor: sum(accuracies[floor])) == 1.0


def test_the_rates_of_the_relatives_are_the_best_that_were_measured():
    accuracies, settings = {}, {}
    for record in json.loads((ROOT / "results" / "relatives_rates.json").read_text("utf-8"))["records"]:
        experiment, way, tried = record["way"].split(": ")
        sums = accuracies.setdefault((experiment, way), {})
        sums[tried] = sums.get(tried, 0) + record["accuracy"]
        settings[record["way"]] = record["settings"]
    for (name, way), sums in accuracies.items():
        experiment = rso.experiments.EXPERIMENTS[name]
        method = experiment.ways(experiment.sizes["class"])[way].method
        best = settings[f"{name}: {way}: {max(sums, key=sums.get)}"]
        taken = json.loads(json.dumps(asdict(method)))
        for one in (best, taken):
            if one.get("mask_rate", 0) is None:
                one["mask_rate"] = MASK_RATES[one["sampling"]]
        assert best == taken, (name, way)


def test_the_table_of_peers_in_the_readme_is_the_recorded_one():
    methods = json.loads((ROOT / "results" / "peers.json").read_text("utf-8"))["methods"]
    assert set(methods) == {"rso", "snes", "es", "ga", "differences", "rbd", "adam"}
    for name, record in methods.items():
        reached = {point["mark"]: f"{point['test_accuracy']:.1%}" for point in record["curve"]}
        row = f"| {name} | " + " | ".join(reached.get(mark, "") for mark in (30, 120, 300, 600)) + " |"
        assert row in (ROOT / "README.md").read_text("utf-8")


def test_the_tables_of_experiments_are_the_report():
    assert report(ROOT / "results") in (ROOT / "docs" / "claims.md").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    assert summary(ROOT / "results") in readme
    rows = [line for line in readme.splitlines() if "python -m rso_lab experiment " in line and line.startswith("|")]
    assert all(row in report(ROOT / "results") for row in rows)
    assert len(rows) == len(rso.experiments.EXPERIMENTS)


def test_the_tables_of_the_docs_are_the_recorded_ones():
    ranks = json.loads((ROOT / "results" / "ranks.json").read_text("utf-8"))
    text = (ROOT / "docs" / "ranks.md").read_text("utf-8")
    for run in ranks["runs"]:
        figures = f"{run['ranks']} | {run['seconds']:.1f} s | {run['test_accuracy']:.1%} | `{run['weights']}`"
        assert f"| {run['parallel'] or '(none)'} | {figures} |" in text
    assert f"{ranks['latency_us']} microseconds" in text
    seconds = {(run["parallel"], run["ranks"]): round(run["seconds"], 1) for run in ranks["runs"]}
    shared = 2 * (seconds["neuron", 1] - seconds["neuron", 2])
    alone = seconds["neuron", 1] - shared
    assert f"= {shared:.1f} s and B = {alone:.1f} s: four ranks would take {shared / 4 + alone:.1f} s" in text
    exchange = 1000 * (seconds[None, 2] - seconds[None, 1] / 2) / 47_930
    assert f"= {exchange:.1f} milliseconds" in text
    assert f"from {2 * 6 * exchange:.0f} milliseconds a weight on" in text
    evaluators = json.loads((ROOT / "results" / "evaluators.json").read_text("utf-8"))["models"]["paper_cnn"]
    minutes = {column: f"{seconds / 60:.0f}" for column, seconds in evaluators["cycle_seconds"].items()}
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert "{incremental} minutes, where the activation cache of the paper takes {cached}".format(**minutes) in readme
    assert "forward passes {tuned} tuned, and {plain} as one writes them".format(**minutes) in readme
    text = (ROOT / "docs" / "classroom.md").read_text("utf-8")
    for row in json.loads((ROOT / "results" / "learners.json").read_text("utf-8"))["learners"]:
        figures = f"{row['seconds']:.0f} s | {row['slowest_cell']:.0f} s | {row['megabytes']:.0f} MB"
        assert f"| {row['learners']} | {figures} |" in text
    clicks = json.loads((ROOT / "results" / "clicks.json").read_text("utf-8"))["milliseconds"]
    waited = [milliseconds for widget in clicks.values() for took in widget.values() for milliseconds in took]
    assert f"within {np.ceil(max(waited) / 10) / 100} seconds ({len(waited)} clicks" in text


@torch.no_grad()
def test_the_shipped_network_reads_as_well_as_its_run_did():
    folder = Path(os.environ.get("RSO_LAB_DATA", ""))
    if not (folder / "mnist.npz").exists():
        pytest.skip("RSO_LAB_DATA names no folder with the real mnist.npz")
    mnist = rso.load("mnist", root=folder)
    (run,) = json.loads((ROOT / "results" / "mnist_evening.json").read_text("utf-8"))["runs"]
    model = rso.experiments.trained()
    right = (model(mnist.x_test).argmax(dim=1) == mnist.y_test).double().mean().item()
    assert right == pytest.approx(run["cycles"][-1]["test_accuracy"], abs=3e-4)  # three images: rounding


def _run(name: str, method: str) -> dict:
    """Of the first seed."""
    runs = rso.experiments.read(ROOT / "results" / f"{name}.json")["runs"]
    return next(run for run in runs if (run["method"], run["seed"]) == (method, 0))


def _last(name: str, method: str, cycle: int = -1) -> str:
    return f"{100 * _run(name, method)['cycles'][cycle]['test_accuracy']:.1f} %"


def _updates_to_90(batch_size: int) -> int:
    runs = rso.experiments.read(ROOT / "results" / "grid_evening.json")["runs"]
    cycles = (cycle for run in runs if run["method"].startswith(f"batch {batch_size},") for cycle in run["cycles"])
    return min(cycle["updates"] for cycle in cycles if cycle["test_accuracy"] >= 0.9)


def _peer(name: str, mark: int = 600) -> str:
    curve = json.loads((ROOT / "results" / "peers.json").read_text("utf-8"))["methods"][name]["curve"]
    (accuracy,) = (point["test_accuracy"] for point in curve if point["mark"] == mark)
    return f"{100 * accuracy:.1f} %"


LEVELS = [
    "{}, {} and {}".format(*(_last("levels_evening", level, cycle) for level in ("weight", "layer", "network")))
    for cycle in (0, 1)
]


@pytest.mark.parametrize(
    ("lesson", "quote"),
    [
        ("03_how_much", f"first cycle they read {LEVELS[0]}, after"),
        ("03_how_much", f"after the second {LEVELS[1]}, with the same number of evaluations"),
        (
            "05_batches",
            "5000 images read {}, {}, {} and {}.".format(
                *(_last("batch_evening", way) for way in ("batch 32", "batch 100", "held for a neuron", "batch 5000"))
            ),
        ),
        (
            "09_deeper",
            "RSO reads {}, {} and {} with".format(
                *(_last("depth_evening", f"{net}, RSO", 2) for net in ("depth3", "depth5", "depth10"))
            ),
        ),
        ("09_deeper", f"the run took {_run('depth_evening', 'depth3, RSO')['seconds'] / 60:.0f} minutes"),
        (
            "09_deeper",
            "at {:.0f} and {:.0f} %".format(
                *(float(_last("depth_evening", f"{net}, RSO")[:4]) for net in ("depth3", "depth5"))
            ),
        ),
        ("00_start_here", f"ended at {_last('mnist_evening', 'RSO')}"),
        ("08_against_sgd", f"RSO ended at {_last('updates_evening', 'RSO')}"),
        ("08_against_sgd", f"with mini-batches of 5000 and a good rate at most {_updates_to_90(5000)} updates"),
        ("08_against_sgd", f"updates, of 1000 at most {_updates_to_90(1000)}."),
        ("08_against_sgd", f"RSO reads {_peer('rso')}."),
        (
            "08_against_sgd",
            f"reads {_peer('snes')} (EvoTorch's) and {_peer('es')} (this kit's,",
        ),
        ("08_against_sgd", f"reads {_peer('rbd')}; with the whole of it"),
        ("08_against_sgd", f"it is {_peer('adam', 30)} after 30 seconds"),
    ],
)
def test_what_lessons_quote_is_recorded(lesson, quote):
    source = (ROOT / "notebooks" / "source" / f"{lesson}.py").read_text("utf-8")
    assert quote in source.replace("\n# ", " ")


def test_what_remarks_quote_is_recorded():
    said = (ROOT / "docs" / "claims.md").read_text("utf-8")
    runs = rso.experiments.read(ROOT / "results" / "julia_evening.json")["runs"]
    kept = [100 * rso.experiments.KEPT.of(run) for run in runs]
    assert f"with a new mini-batch for each weight, it is {min(kept):.0f} to {max(kept):.0f} %" in said
    assert f"with batches of 5000, {_updates_to_90(5000)} are enough" in said
    accuracies = {}
    for run in rso.experiments.read(ROOT / "results" / "masks_class.json")["runs"]:
        accuracies.setdefault(run["method"], []).append(100 * run["cycles"][-1]["test_accuracy"])
    mean = {way: np.mean(of) for way, of in accuracies.items()}
    fixed = [f"2 %, {kind}, fixed" for kind in ("random", "largest")]
    leads = [mean[learned] - mean[way] for learned in ("2 %, scores", "2 %, Bernoulli") for way in fixed]
    assert f"of 2 % learned ones are {min(leads):.0f} to {max(leads):.0f} points ahead" in said
    assert round(max(mean[f"{way}, 60 epochs"] - mean[way] for way in fixed)) == 1


def test_the_figures_for_a_teachers_talk_are_recorded():
    spent = rso.lessons.spent_to(rso.lessons.recorded("updates", "class"), 0.9)
    guide = " ".join((ROOT / "docs" / "teachers.md").read_text("utf-8").split())
    by_rso, by_sgd = spent["RSO"], spent["SGD"]
    assert f"updates all weights {by_rso['updates']:.0f} times, SGD {by_sgd['updates']:.0f} times" in guide
    slower = by_rso["seconds"] / by_sgd["seconds"]
    assert f"takes RSO {by_rso['evaluations']:,.0f} losses and {slower:.0f} times the seconds" in guide


def test_when_a_peer_was_looked_at_is_recorded():
    first, *_ = (
        point
        for point in json.loads((ROOT / "results" / "peers.json").read_text("utf-8"))["methods"]["rso"]["curve"]
        if point["mark"] == 30
    )
    assert f"for the first time after {first['seconds']:.0f} seconds" in (ROOT / "README.md").read_text("utf-8")
