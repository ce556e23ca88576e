"""Histories: what a run leaves behind, written whole or not at all, and read with care."""

import json
import platform

import pytest
import torch

import rso_lab as rso
from rso_lab.history import replacing

CYCLE = {"cycle", "test_accuracy", "train_accuracy", "loss", "kept", "accepted", "evaluations", "seconds"}


@pytest.fixture(scope="module")
def run():
    """A real run of two cycles: the data, the trained network and the history."""
    data = rso.load("digits", train_limit=60, test_limit=30)
    model = rso.models.one_conv(image_size=(8, 8))
    history = rso.fit(model, data, rso.RSO(cycles=2, batch_size=20, sigma_end=0.5), seed=3)
    return data, model, history


@pytest.fixture
def saved(run, tmp_path):
    run[2].save(tmp_path / "run.json")
    return tmp_path / "run.json"


def test_what_is_saved_is_what_is_loaded(run, saved):
    assert rso.History.load(saved) == run[2]
    assert list(saved.parent.iterdir()) == [saved]


def test_the_layout_of_the_file(run, saved):
    _, model, history = run
    content = json.loads(saved.read_text(encoding="utf-8"))
    assert content.keys() >= {"settings", "seed", "versions", "machine", "command", "cycles", "seeds", "seconds"}
    assert (content["seed"], content["seeds"]) == (3, [3])
    assert content["command"] == ""  # it was Python, not the command line
    assert content["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert content["versions"]["python"] == platform.python_version()
    assert platform.system() in content["machine"]
    settings = content["settings"]
    assert settings["method"] == "RSO"
    assert (settings["cycles"], settings["batch_size"], settings["sigma_end"]) == (2, 20, 0.5)
    assert settings["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert (settings["data"], settings["train_images"], settings["test_images"]) == ("digits", 60, 30)
    assert (settings["evaluator"], settings["loss"]) == (history.cycles[0].evaluator, "cross_entropy")

    cycles = content["cycles"]
    assert [cycle["cycle"] for cycle in cycles] == [1, 2]
    assert all(cycle.keys() >= CYCLE for cycle in cycles)
    assert [cycle["evaluations"] for cycle in cycles] == [3 * settings["parameters"], 6 * settings["parameters"]]
    assert 0 < cycles[0]["seconds"] < cycles[1]["seconds"] == content["seconds"]


def test_the_last_cycle_tells_of_the_network_that_is_left(run, saved):
    data, model, _ = run
    last = json.loads(saved.read_text(encoding="utf-8"))["cycles"][-1]
    with torch.no_grad():
        for key in ("train", "test"):
            x, y = getattr(data, f"x_{key}"), getattr(data, f"y_{key}")
            assert last[f"{key}_accuracy"] == (model(x).argmax(dim=1) == y).double().mean().item()
        loss = torch.nn.functional.cross_entropy(model(data.x_train), data.y_train).item()
    assert last["loss"] == pytest.approx(loss, rel=1e-5)


def test_kept_and_accepted_are_the_shares_of_the_choices(run, saved):
    data, _, _ = run
    sizes = {"conv1": 40, "fc": 650}
    choices = {1: [], 2: []}
    method = rso.RSO(cycles=2, batch_size=20, sigma_end=0.5)
    for step in rso.steps(rso.models.one_conv(image_size=(8, 8)), data, method, seed=3):
        choices[step.cycle].append((step.layer, step.choice))
    for cycle in json.loads(saved.read_text(encoding="utf-8"))["cycles"]:
        assert cycle["kept"].keys() == cycle["accepted"].keys() == {"all", *sizes}
        for layer in ("all", *sizes):
            mine = [choice for name, choice in choices[cycle["cycle"]] if layer in ("all", name)]
            assert len(mine) == sizes.get(layer, 690)
            assert cycle["kept"][layer] == mine.count("keep") / len(mine)
            assert cycle["accepted"][layer] == 1 - cycle["kept"][layer]


def without(key):
    def damage(content):
        del content[key]

    return damage


def in_cycle(**values):
    return lambda content: content["cycles"][0].update(values)


WRONG = {
    **{f"without {key}": without(key) for key in ("settings", "seed", "versions", "machine", "command", "cycles")},
    "cycles a number": lambda content: content.update(cycles=3),
    "cycles of numbers": lambda content: content.update(cycles=[1, 2]),
    "settings a list": lambda content: content.update(settings=[]),
    "settings without data": lambda content: content["settings"].pop("data"),
    "a cycle without loss": lambda content: content["cycles"][1].pop("loss"),
    "a cycle with more": in_cycle(learning_rate=0.1),
    "a cycle called one": in_cycle(cycle="one"),
    "accuracy NaN": in_cycle(test_accuracy=float("nan")),
    "accuracy in words": in_cycle(test_accuracy="good"),
    "accuracy missing": in_cycle(test_accuracy=None),
}


@pytest.mark.parametrize("damage", WRONG.values(), ids=WRONG)
def test_json_of_something_else_is_refused_by_name(saved, damage):
    content = json.loads(saved.read_text(encoding="utf-8"))
    damage(content)
    saved.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="is not a saved history, or damaged") as caught:
        rso.History.load(saved)
    assert str(saved) in str(caught.value)


DAMAGED = {
    "empty": lambda whole: b"",
    "cut": lambda whole: whole[:-20],
    "binary": lambda whole: b"\x80\x02" + whole,
    "a list": lambda whole: b"[]",
    "a number": lambda whole: b"7",
    "deep": lambda whole: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_by_name(saved, damage):
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(ValueError, match="is not a saved history, or damaged") as caught:
        rso.History.load(saved)
    assert str(saved) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        rso.History.load(tmp_path / "run.json")


def test_a_save_that_fails_leaves_the_old_file_whole(run, saved):
    """The disk gives out halfway: a limit on the size of files stands for a full one."""
    resource = pytest.importorskip("resource", reason="needs a system that limits the size of files")
    old = saved.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            run[2].save(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]


def test_a_save_that_is_interrupted_leaves_the_old_file_whole(saved):
    old = saved.read_bytes()

    def save():
        with replacing(saved) as temporary:  # as History.save does
            temporary.write_bytes(old[:100])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save()
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]


def test_a_save_into_a_folder_that_is_not_there(run, tmp_path):
    with pytest.raises(FileNotFoundError):
        run[2].save(tmp_path / "missing" / "run.json")
    assert list(tmp_path.iterdir()) == []
