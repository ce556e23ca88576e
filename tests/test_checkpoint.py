"""Checkpoints: a search that was cut off ends where it would have ended, and what is not its own is refused."""

import copy
import hashlib
import io
import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import reference
import torch

import rso_lab as rso
from rso_lab import checkpoint
from rso_lab.__main__ import main

METHOD = rso.RSO(2, 40)
SETTINGS = [
    {},
    {"layer_order": "input_first", "batch_every": "neuron"},
    {"level": "layer"},
    {"parallel": "neuron", "batch_every": "layer"},
]


@pytest.fixture(autouse=True)
def _written_at_once(monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)


def small_network(seed=None):
    model = reference.small_network(torch.float32)
    return model if seed is None else rso.models.he_init_(model, seed)


def without_times(history):
    return [replace(record, seconds=0.0) for record in history.cycles]


def cut_off(digits, folder, after=3, method=METHOD, **options):
    """Search until so many records have come."""
    run = rso.run(small_network(), digits, method, seed=3, checkpoint=folder, **options)
    assert len(list(itertools.islice(run, after))) == after
    run.close()


def resume(digits, folder, method=METHOD, seed=3, model=None, **options):
    model = model or small_network(seed=8)  # what its weights are does not matter
    return model, rso.fit(model, digits, method, seed=seed, checkpoint=folder, resume=True, **options)


@pytest.fixture
def undisturbed(digits):
    model = small_network()
    return model, rso.fit(model, digits, METHOD, seed=3)


def is_the_same(resumed, undisturbed):
    weights, expected = (model.state_dict() for model, _ in (resumed, undisturbed))
    return all(torch.equal(expected[name], weights[name]) for name in expected) and without_times(
        resumed[1]
    ) == without_times(undisturbed[1])


@pytest.mark.parametrize(
    ("settings", "evaluator"),
    [(SETTINGS[0], "plain"), (SETTINGS[1], "cached"), *((settings, "incremental") for settings in SETTINGS)],
    ids=str,
)
def test_it_ends_as_if_it_had_not_been_cut_off(digits, tmp_path, settings, evaluator):
    method = rso.RSO(2, 40, **settings)
    model = small_network()
    expected = model, rso.fit(model, digits, method, seed=3, evaluator=evaluator)
    for after in (1,) if "level" in settings else (3, 10):
        folder = tmp_path / str(after)
        cut_off(digits, folder, after, method, evaluator=evaluator)
        assert is_the_same(resume(digits, folder, method, evaluator=evaluator), expected)


def test_an_interrupt_within_a_sweep_loses_that_sweep_only(digits, tmp_path, monkeypatch, undisturbed):
    monkeypatch.setattr(checkpoint, "EVERY", 1e9)  # written for the interrupt
    calls = itertools.count()

    def cross_entropy(outputs, targets):
        if next(calls) == 560:
            raise KeyboardInterrupt
        return torch.nn.functional.cross_entropy(outputs, targets)

    with pytest.raises(KeyboardInterrupt):
        rso.fit(small_network(), digits, METHOD, seed=3, checkpoint=tmp_path, loss=cross_entropy)
    records = list(
        rso.run(small_network(), digits, METHOD, seed=3, checkpoint=tmp_path, resume=True, loss=cross_entropy)
    )
    assert (records[0].cycle, records[0].layer) == (1, "5")  # "9" and "4" were done
    assert records[-1].test_accuracy == undisturbed[1].cycles[-1].test_accuracy


def test_a_finished_run_gives_its_history_again(digits, tmp_path):
    model = small_network()
    history = rso.fit(model, digits, METHOD, seed=3, checkpoint=tmp_path)
    again = resume(digits, tmp_path)
    assert again[1].cycles == history.cycles
    assert is_the_same(again, (model, history))


@pytest.mark.parametrize("harm", ["truncate", "change", "empty", "remove"])
def test_a_damaged_file_falls_back_to_the_one_before(digits, tmp_path, capsys, undisturbed, harm):
    cut_off(digits, tmp_path)
    latest = tmp_path / "latest.pt"
    content = bytearray(latest.read_bytes())
    if harm == "remove":
        latest.unlink()
    else:
        content[len(content) // 2] ^= 1
        latest.write_bytes({"truncate": content[:-9], "change": content, "empty": b""}[harm])
    assert is_the_same(resume(digits, tmp_path), undisturbed)
    assert ("is damaged" in capsys.readouterr().out) == (harm != "remove")


def test_with_both_damaged_it_starts_from_the_beginning_and_says_so(digits, tmp_path, capsys, undisturbed):
    cut_off(digits, tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(b"x" * 100)
    assert is_the_same(resume(digits, tmp_path, model=small_network()), undisturbed)
    printed = capsys.readouterr().out
    assert printed.count("is damaged") == 2
    assert "starts from the beginning" in printed


def test_a_full_disk_leaves_what_is_there(digits, tmp_path, monkeypatch, undisturbed):
    cut_off(digits, tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            resume(digits, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.pt", "previous.pt"]
    assert is_the_same(resume(digits, tmp_path), undisturbed)


class Hostile:
    """Its pickle writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_in_a_file_is_executed(digits, tmp_path, capsys):
    folder, witness = tmp_path / "run", tmp_path / "witness"
    folder.mkdir()
    for name, save in (("latest.pt", torch.save), ("previous.pt", partial(pickle.dump, protocol=2))):
        content = io.BytesIO()
        save({"weights": Hostile(witness)}, content)
        (folder / name).write_bytes(hashlib.sha256(content.getvalue()).digest() + content.getvalue())
    resume(digits, folder)
    assert not witness.exists()
    assert capsys.readouterr().out.count("holds something else than a checkpoint") == 2


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"method": rso.RSO(3, 40)}, "cycles: 2 there, 3 here"),
        ({"seed": 4}, "seed: 3 there, 4 here"),
        ({"evaluator": "plain"}, "evaluator: 'incremental' there, 'plain' here"),
        ({"model": rso.models.one_conv(image_size=(8, 8))}, "parameters: "),
    ],
    ids=str,
)
def test_another_run_is_refused_naming_the_difference(digits, tmp_path, other, named):
    cut_off(digits, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=named):
        resume(digits, tmp_path, **other)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_other_data_are_refused(digits, tmp_path):
    cut_off(digits, tmp_path)
    x = digits.x_train.clone()
    x[5, 0, 3, 3] += 1
    others = rso.Data.from_arrays(x, digits.y_train, digits.x_test, digits.y_test, name=digits.name)
    with pytest.raises(ValueError, match="sha256 of the data"):
        resume(others, tmp_path)


def test_progress_is_not_overwritten_by_a_run_that_does_not_resume(digits, tmp_path):
    cut_off(digits, tmp_path)
    with pytest.raises(ValueError, match="resume it, or name another folder"):
        rso.fit(small_network(), digits, METHOD, seed=3, checkpoint=tmp_path)


def test_sgd_ends_as_if_it_had_not_been_cut_off(digits, tmp_path, monkeypatch):
    """Cut off where the rate grows, between the drops, and within an epoch; and resumed once more when it is done."""
    method = rso.SGD(8, 30, 0.1, warm_up=2)
    model = small_network()
    expected = model, rso.fit(model, digits, method, seed=3)
    calls = itertools.count()

    def cross_entropy(outputs, targets):
        if next(calls) == 21:  # 1 to see that it gives a number, then 4 an epoch, and 2 to measure after it
            raise KeyboardInterrupt
        return torch.nn.functional.cross_entropy(outputs, targets)

    for after in (1, 5):
        folder = tmp_path / str(after)
        cut_off(digits, folder, after, method)
        assert is_the_same(resume(digits, folder, method), expected)
        assert is_the_same(resume(digits, folder, method), expected)
    monkeypatch.setattr(checkpoint, "EVERY", 1e9)  # written for the interrupt, when another epoch is under way
    folder = tmp_path / "within"
    with pytest.raises(KeyboardInterrupt):
        rso.fit(small_network(), digits, method, seed=3, checkpoint=folder, loss=cross_entropy)
    resumed = resume(digits, folder, method, loss=cross_entropy)
    assert is_the_same(resumed, expected)


def test_what_cannot_be_is_refused(digits):
    with pytest.raises(ValueError, match="without a checkpoint"):
        rso.fit(small_network(), digits, METHOD, seed=0, resume=True)
    with pytest.raises(TypeError, match="keeps no checkpoints"):
        rso.steps(small_network(), digits, METHOD, seed=0, checkpoint="x")


TRAIN = ["train", "--model", "one_conv", "--cycles", "3", "--batch-size", "200", "--batch-every", "neuron"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_command_goes_on_after_a_signal(tmp_path, capsys, sent):
    files = {
        name: ["--out", str(tmp_path / f"{name}.json"), "--weights", str(tmp_path / f"{name}.pt")] for name in "ab"
    }
    assert main([*TRAIN, *files["a"]]) == 0
    arguments = [*TRAIN, *files["b"], "--checkpoint", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "rso_lab", *arguments], env=environment)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "latest.pt").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(sent)
    assert process.wait() in ((-9,) if sent == signal.SIGKILL else (130, 0))
    assert main([*arguments, "--resume"]) == 0
    expected, weights = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in "ab")
    assert all(torch.equal(expected[name], weights[name]) for name in expected)
    histories = [rso.History.load(tmp_path / f"{name}.json") for name in "ab"]
    assert without_times(histories[0]) == without_times(histories[1])
    assert main(arguments) == 2
    assert "resume it" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_at_random_moments_it_ends_in_the_same_weights():
    command = [sys.executable, Path(__file__).with_name("kills.py"), "3"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.splitlines()[-1].startswith("3 kills of ")


def write_again_and_again(folder, seconds, generator):
    checkpoints = checkpoint.Checkpoints(folder, {"seed": 0})
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        checkpoints.unwritten = checkpoint.State(
            {"seed": 0}, {"w": torch.full((1000,), 1.0)}, [], {}, {}, generator, 1, 0, {}, 0, 0, 0.0, []
        )
        checkpoints.write()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_two_that_write_the_same_checkpoint_leave_a_whole_one(tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path, 2.0, torch.Generator().get_state())
    writers = [context.Process(target=write_again_and_again, args=arguments) for _ in range(2)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        _, complaints = checkpoint.Checkpoints(tmp_path, {"seed": 0}).read()
        assert complaints == []
        reads += 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert reads > 100
    state, _ = checkpoint.Checkpoints(tmp_path, {"seed": 0}).read()
    assert state.weights["w"].sum() == 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.pt", "previous.pt"]


def test_a_file_in_the_place_of_the_folder_is_named_before_training(digits, tmp_path):
    path = tmp_path / "run.json"
    path.write_text("{}")
    model = rso.models.build("one_conv", digits)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"run\.json is a file: name a folder"):
        rso.fit(model, digits, rso.RSO(1, 20), seed=0, checkpoint=path)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_bfloat16_goes_on_as_if_it_had_not_been_cut_off(digits, tmp_path):
    small = rso.Data.from_arrays(digits.x_train.bfloat16(), digits.y_train, digits.x_test.bfloat16(), digits.y_test)
    whole, halves = (rso.models.build("one_conv", small) for _ in range(2))
    rso.fit(whole, small, rso.RSO(2, 20), seed=0)
    for _ in zip(range(2), rso.run(halves, small, rso.RSO(2, 20), seed=0, checkpoint=tmp_path), strict=False):
        pass
    rso.fit(halves, small, rso.RSO(2, 20), seed=0, checkpoint=tmp_path, resume=True)
    assert all(torch.equal(value, halves.state_dict()[name]) for name, value in whole.state_dict().items())


WRONG = {  # fields of a state, and what somebody has put there
    "weights": ({}, {"9.weight": torch.zeros(3)}, None, "all"),
    "stale": (["nothing"], [1], None),
    "sigmas": ({}, {"9.weight": "wide"}, [0.1]),
    "descent": ([], None),
    "generator": (torch.zeros(3), torch.zeros(5056), "state", torch.zeros(5056, dtype=torch.uint8)),
    "cycle": (0, 2, 99, "two", 1.5, True, -1),
    "sweeps": (-1, "one", None),
    "choices": ({"all": {}}, {"all": {"up": 3}}, {"other": {"keep": 1}}, {"all": {"keep": -2}}, {"all": 3}),
    "evaluations": (-1, "many", None),
    "multiply_adds": (-1, "many", 0.5),
    "seconds": (-1.0, "long"),
    "records": ([{}], [{"cycle": 1}], [1], "none", [dict.fromkeys(["cycle", "layer"], 1)]),
    "identity": ([], "mine"),
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_wrong_fields_are_refused_before_anything_is_touched(digits, tmp_path, capsys, field, value):
    """With the right checksum, as somebody's who wrote the file on purpose."""
    cut_off(digits, tmp_path, 2)
    (tmp_path / "previous.pt").unlink(missing_ok=True)
    state = torch.load(io.BytesIO((tmp_path / "latest.pt").read_bytes()[32:]), weights_only=True)
    content = io.BytesIO()
    torch.save(state | {field: value}, content)
    (tmp_path / "latest.pt").write_bytes(hashlib.sha256(content.getbuffer()).digest() + content.getbuffer())
    model = small_network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    refused = ""
    try:
        rso.run(model, digits, METHOD, seed=3, checkpoint=tmp_path, resume=True).close()
    except ValueError as error:
        refused = str(error)
    assert "holds a state that is not of this run" in refused or "holds something else" in capsys.readouterr().out
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
