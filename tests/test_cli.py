"""The command line: what it writes, and its exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted."""

import json
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import MISSING, fields
from typing import get_args, get_origin

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from tqdm.auto import tqdm

import rso_lab as rso
from rso_lab.__main__ import main

QUICK = ["train", "--cycles", "1", "--batch-size", "50"]  # one_conv on digits


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RSO_LAB_DATA", str(tmp_path / "sets"))


def cycles(path):
    """The recorded cycles without the times."""
    recorded = json.loads(path.read_text(encoding="utf-8"))["cycles"]
    return [{key: value for key, value in cycle.items() if key != "seconds"} for cycle in recorded]


def python_m_rso_lab(*arguments):
    command = [sys.executable, "-W", "error", "-m", "rso_lab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)


@pytest.mark.parametrize("model", ["one_conv", "depth3"])  # without and with batch norms
def test_train_writes_the_history_and_weights_that_give_its_accuracy(model, tmp_path, capsys):
    arguments = [
        *QUICK,
        "--batch-size",
        "10",
        "--model",
        model,
        "--seed",
        "4",
        "--out",
        "run.json",
        "--weights",
        "net.pt",
    ]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "cycle 1: test accuracy" in out
    assert "python -m rso_lab plot run.json" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pt", "run.json"]

    content = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert content["command"] == shlex.join(["python", "-m", "rso_lab", *arguments])
    assert (content["seed"], content["settings"]["cycles"], content["settings"]["batch_size"]) == (4, 1, 10)
    data = rso.load("digits")
    network = rso.models.build(model, data)
    network.load_state_dict(torch.load("net.pt", weights_only=True))
    with torch.no_grad():
        right = (network.eval()(data.x_test).argmax(dim=1) == data.y_test).sum().item()
    assert content["cycles"][-1]["test_accuracy"] == right / 360

    fitted = rso.fit(rso.models.build(model, data, seed=4), data, rso.RSO(1, 10), seed=4)
    assert fitted.cycles[0].test_accuracy == right / 360


def test_the_recorded_command_gives_the_same_again(tmp_path):
    assert main([*QUICK, "--order", "input", "--sigma-scale", "0.5", "--out", "a run.json"]) == 0
    path = tmp_path / "a run.json"
    first, command = cycles(path), json.loads(path.read_text(encoding="utf-8"))["command"]
    path.unlink()
    arguments = shlex.split(command)
    assert arguments[:3] == ["python", "-m", "rso_lab"]
    assert main(arguments[3:]) == 0
    assert cycles(path) == first


def another_value(setting):
    """A value that is not the default, and the flag that asks for it."""
    flag = f"--{setting.name.replace('_', '-')}"
    if get_origin(setting.type) is not None:
        value = next(value for value in get_args(setting.type) if value not in (None, setting.default))
    elif setting.type is bool:
        return not setting.default, [flag.replace("--", "--no-") if setting.default else flag]
    else:
        value = 2 if setting.default is MISSING else (setting.default or 1.0) / 4
        value = max(2, int(value)) if setting.type is int else value
    return value, [flag, str(value)]


@pytest.mark.parametrize("setting", fields(rso.RSO), ids=lambda setting: setting.name)
def test_every_setting_is_a_flag_that_reaches_the_run(setting, tmp_path):
    value, flag = another_value(setting)
    assert main([*QUICK, "--batch-size", "5", *flag, "--out", "run.json"]) == 0
    settings = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["settings"]
    given = {"cycles": 1, "batch_size": 5, setting.name: value}
    expected = {field.name: given.get(field.name, field.default) for field in fields(rso.RSO)}
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize("kind", [rso.SGD, rso.Subspace, rso.ES, rso.GA, rso.Masks])
def test_every_setting_of_the_other_methods_is_a_flag_that_reaches_the_run(kind, tmp_path, capsys):
    method = kind.__name__.lower()
    given = {"epochs": (1, ["--epochs", "1"]), "batch_size": (700, ["--batch-size", "700"])}
    given |= {"drops": ([0.5, 0.625], ["--drops", "0.5", "0.625"]), "mask_rate": (0.5, ["--mask-rate", "0.5"])}
    expected, flags = {}, []
    for setting in fields(kind):
        expected[setting.name], flag = given.get(setting.name) or another_value(setting)
        flags += flag
    assert main(["train", "--method", method, *flags, "--out", "run.json"]) == 0
    assert "epoch 1: test accuracy" in capsys.readouterr().out
    settings = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["settings"]
    assert {name: settings[name] for name in ("method", *expected)} == {"method": kind.__name__, **expected}
    assert main(["train", "--method", method, "--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"\n  --{setting.name.replace('_', '-')}[ ,\n]", text) for setting in fields(kind))
    assert "\n  --cycles" not in text


def test_help_is_in_groups_most_used_first(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(
        f"python -m rso_lab {command}" in overview for command in ("doctor", "demo", "train", "cost", "plot", "data")
    )
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    groups = ["what to train", "what to keep", "how to search", "how to compute it"]
    where = [text.index(f"\n{group}:") for group in groups]
    assert where == sorted(where)
    flags = ["--dataset", "--model", "--seed", "--evaluator", "--out", "--weights"]
    for flag in [*flags, *(f"--{setting.name.replace('_', '-')}" for setting in fields(rso.RSO))]:
        assert re.search(rf"\n  {flag}[ ,\n]", text), flag


WRONG_USE = [
    ([], "COMMAND"),
    (["fly"], "fly"),
    (["doctor", "now"], "now"),
    (["plot"], "RUN.json"),
    (["data", "imagenet"], "imagenet"),
    (["train", "--dataset", "imagenet"], "imagenet"),
    (["train", "--model", "resnet"], "resnet"),
    (["train", "--method", "magic"], "magic"),
    (["train", "--method", "ga", "--parents", "1"], "parents is 1"),
    (["train", "--method", "sgd", "--level", "layer"], "--level"),
    (["train", "--method", "es", "--evaluator", "plain"], "evaluator is 'plain'"),
    (["train", "--evaluator", "oracle"], "oracle"),
    (["train", "--device", "toaster"], "toaster"),
    (["train", "--learning-rate", "1"], "--learning-rate"),
    (["train", "--cycles", "0"], "cycles is 0"),
    (["train", "--cycles", "2.5"], "--cycles"),
    (["train", "--batch-size", "1438"], "batch_size is 1438"),
    (["train", "--seed", "-1"], "seed is -1"),
    (["train", "--seed", str(2**64)], f"seed is {2**64}"),
    (["train", "--sigma-scale", "nan"], "sigma_scale is nan"),
    (["train", "--sigma-end", "0"], "sigma_end is 0.0"),
    (["train", "--level", "neuron"], "--level"),
    (["train", "--out", "run.json", "--weights", "there/../run.json"], "--out and --weights name the same file"),
]


@pytest.mark.parametrize(("arguments", "named"), WRONG_USE, ids=lambda value: " ".join(value) if value else "nothing")
def test_wrong_use_is_named_and_exits_with_2(arguments, named, capsys):
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert named in error.splitlines()[-1]
    assert out == ""


def failure(capsys):
    """What a failed command said: one line."""
    out, error = capsys.readouterr()
    assert error.startswith("rso_lab: ")
    assert error.count("\n") == 1
    return out, error


@pytest.mark.parametrize("arguments", [["train", "--dataset", "mnist"], ["data", "mnist"]])
def test_a_damaged_data_set_exits_with_1(arguments, tmp_path, capsys):
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "mnist.npz").write_bytes(b"PK\x03\x04 cut")
    assert main(arguments) == 1
    out, error = failure(capsys)
    assert str(tmp_path / "sets" / "mnist.npz") in error
    assert "delete it and fetch it again" in error
    assert out == ""


@pytest.mark.parametrize("flag", ["--out", "--weights"])
@pytest.mark.parametrize("name", ["missing/file", "folder", "a file/file"])
def test_results_that_cannot_be_written_are_refused_before_training(flag, name, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a file").write_text("in the way")
    assert main([*QUICK, flag, name]) == 1
    out, error = failure(capsys)
    assert name in error
    assert "name a file in a folder that can" in error
    assert "cycle" not in out


@pytest.mark.parametrize("flag", ["--out", "--weights"])
def test_a_full_disk_exits_with_1_and_leaves_no_half_file(flag, tmp_path, capsys):
    """A limit on the size of files stands for a full disk."""
    resource = pytest.importorskip("resource", reason="needs a system that limits the size of files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        code = main([*QUICK, flag, "result"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    _, error = failure(capsys)
    assert "File too large" in error
    assert "make room" in error
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_exits_with_1(capsys):
    assert main([*QUICK, "--weight-decay", "1e308"]) == 1
    _, error = failure(capsys)
    assert "the loss is inf in cycle 1, layer 'fc'" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_exits_with_1(capsys):
    assert main([*QUICK, "--device", "cuda"]) == 1
    _, error = failure(capsys)
    assert "device 'cuda' was asked for" in error
    assert "use 'cpu'" in error


def test_ctrl_c_exits_with_130_and_keeps_the_cycles_that_are_done(tmp_path, capsys, monkeypatch):
    """The signal comes in the middle of the third cycle."""
    updates = iter(range(690 * 4))
    update = tqdm.update

    def update_or_interrupt(bar, amount):
        if next(updates) == 690 * 2 + 300:
            signal.raise_signal(signal.SIGINT)
        return update(bar, amount)

    monkeypatch.setattr(tqdm, "update", update_or_interrupt)
    arguments = ["train", "--cycles", "4", "--batch-size", "20", "--out", "run.json"]
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    assert main(arguments) == 130
    signal.signal(signal.SIGINT, heard)
    out, error = capsys.readouterr()
    assert "cycle 2" in out
    assert "cycle 3" not in out
    assert error == "rso_lab: interrupted\n"
    done = rso.History.load("run.json")
    assert [record.cycle for record in done.cycles] == [1, 2]
    assert list(tmp_path.iterdir()) == [tmp_path / "run.json"]

    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0
    assert cycles(tmp_path / "run.json")[1]["test_accuracy"] == done.cycles[1].test_accuracy


def test_plot_writes_a_picture(tmp_path, capsys):
    assert main([*QUICK, "--out", "run.json"]) == 0
    assert main([*QUICK, "--seed", "1", "--out", "other.json"]) == 0
    assert main(["plot", "run.json"]) == 0
    assert main(["plot", "run.json", "other.json", "--out", "both.png"]) == 0
    assert capsys.readouterr().out.endswith("Wrote run.png\nWrote both.png\n")
    one, both = (plt.imread(tmp_path / name) for name in ("run.png", "both.png"))
    assert one.std() > 0
    assert (one != both).any()


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        ('{"cycles": [', [], "run.json is not a saved history, or damaged"),
        ('{"settings": {}}', [], "run.json is not a saved history, or damaged"),
        (None, [], "run.json"),
    ],
)
def test_plot_refuses_a_damaged_file(content, arguments, said, tmp_path, capsys):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert main(["plot", "run.json", *arguments]) == 1
    _, error = failure(capsys)
    assert said in error
    assert not (tmp_path / "run.png").exists()


def test_cost_tells_what_training_counts(tmp_path, capsys):
    assert main(["cost", "--cycles", "2", "--batch-size", "20", "--batch-every", "layer"]) == 0
    told = capsys.readouterr().out
    assert main(["train", "--cycles", "2", "--batch-size", "20", "--batch-every", "layer", "--out", "run.json"]) == 0
    first = rso.History.load("run.json").cycles[0]
    assert re.search(rf"one cycle +{re.escape(format(first.multiply_adds, '.2e'))} ", told)
    assert re.search(r"^2 cycles, incremental: about .* on this machine$", told, re.MULTILINE)
    assert main(["cost", "--batch-size", "5000"]) == 2
    assert "batch_size is 5000: expected at most 1437" in capsys.readouterr().err


def test_plot_of_a_run_that_is_not_there_is_a_sentence(tmp_path, capsys):
    for path, reason in ((tmp_path / "none.json", "No such file or directory"), (tmp_path, "Is a directory")):
        assert main(["plot", str(path)]) == 1
        said = f"rso_lab: {path} cannot be read ({reason}): name what train --out wrote\n"
        assert capsys.readouterr().err == said


@pytest.mark.parametrize(("out", "said"), [("missing/run.png", "missing/run.png"), ("run.docx", "docx")])
def test_plot_refuses_a_picture_that_cannot_be_written(out, said, capsys):
    assert main([*QUICK, "--out", "run.json"]) == 0
    capsys.readouterr()
    assert main(["plot", "run.json", "--out", out]) == 1
    _, error = failure(capsys)
    assert said in error


def test_data_says_what_is_where(tmp_path, capsys):
    assert main(["data", "digits"]) == 0
    assert "digits is here, inside scikit-learn: 1437 training and 360 test images of shape (1, 8, 8)" in (
        capsys.readouterr().out
    )
    (tmp_path / "sets").mkdir()
    x, y = np.arange(4 * 784, dtype=np.uint8).reshape(4, 28, 28), np.arange(4)
    np.savez(tmp_path / "sets" / "mnist.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    assert main(["data", "mnist"]) == 0
    out = capsys.readouterr().out
    assert f"mnist is here, in {tmp_path / 'sets' / 'mnist.npz'}: 4 training and 2 test images" in out


def test_demo_draws_digits_and_writes_a_picture(tmp_path, capsys):
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    assert out.count("this is a ") == 5
    assert "cycle 10: test accuracy" in out
    assert plt.imread(tmp_path / "demo.png").std() > 0


def test_as_a_program():
    ended = python_m_rso_lab("--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("usage: python -m rso_lab")
    assert python_m_rso_lab("train", "--cycles", "0").returncode == 2
