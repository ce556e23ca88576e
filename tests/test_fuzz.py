"""Settings and files of any kind: each is taken, or refused with the error that the documentation names."""

import hashlib
import io
import itertools
import json
import struct
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rso_lab as rso
from rso_lab import checkpoint, experiments
from rso_lab.history import History

RESULTS = Path(__file__).parent.parent / "results"
QUICK = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)

odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**9, -(10**30), 2**63, 0.1, -0.0, 1e308, float("inf"), float("nan"), 1j]),
    st.sampled_from(["", "weight", "gaussian", "neuron", "auto", "../..", "\0"]),
    st.sampled_from([[], {}, (1,), b"1", np.int64(3), np.float32(0.5), torch.tensor(1)]),
)


@QUICK
@given(st.sampled_from([rso.RSO, rso.SGD]), st.data())
def test_settings(kind, data):
    names = [field.name for field in fields(kind)]
    chosen = {name: data.draw(odd, name) for name in data.draw(st.sets(st.sampled_from(names), max_size=3))}
    given_ones = {"cycles": 1, "batch_size": 10} if kind is rso.RSO else {"epochs": 10, "batch_size": 10}
    given_ones |= {} if kind is rso.RSO else {"learning_rate": 0.1}
    try:
        made = kind(**(given_ones | chosen))
    except (ValueError, TypeError) as error:
        assert any(name in str(error) for name in chosen)
    else:
        assert kind(**vars(made)) == made


def damage(content, data):
    """The content with some bits turned over, or its end missing, or something put into it."""
    way = data.draw(st.sampled_from(["bits", "end", "insert", "double"]))
    place = data.draw(st.integers(0, max(0, len(content) - 1)))
    if way == "end":
        return content[:place]
    if way == "insert":
        return content[:place] + data.draw(st.binary(max_size=20)) + content[place:]
    if way == "double":
        return content + content[place:]
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    return bytes(changed)


@pytest.fixture(scope="module")
def mnist_file():
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    images, labels = rng.integers(0, 256, (20, 28, 28), dtype=np.uint8), np.arange(20, dtype=np.uint8) % 10
    np.savez(file, x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    return file.getvalue()


@QUICK
@given(data=st.data())
def test_npz_files(mnist_file, data, tmp_path, monkeypatch):
    monkeypatch.setenv("RSO_LAB_DATA", str(tmp_path))
    (tmp_path / "mnist.npz").write_bytes(damage(mnist_file, data))
    try:
        loaded = rso.load("mnist")
    except ValueError as error:
        assert "mnist.npz" in str(error)
    else:
        assert loaded.x_train.shape[1:] == (1, 28, 28)
        assert torch.isfinite(loaded.x_train).all()


def test_an_npz_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RSO_LAB_DATA", str(tmp_path))
    header = np.lib.format.magic(1, 0)
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (2000000, 28, 28), }\n"
    with zipfile.ZipFile(tmp_path / "mnist.npz", "w", zipfile.ZIP_DEFLATED) as file, file.open("x_train.npy", "w") as x:
        x.write(header + struct.pack("<H", len(text)) + text)
        for _ in range(2000):
            x.write(bytes(28 * 28 * 1000))
    with pytest.raises(ValueError, match=r"mnist\.npz is damaged or not an npz file \(1,568,000,"):
        rso.load("mnist")


values = st.recursive(
    odd.filter(lambda v: isinstance(v, str | int | float | None)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


def spoil(content, data):
    """Put something of another kind somewhere into a JSON value."""
    parent, key, value = None, None, content
    while isinstance(value, dict | list) and value and (parent is None or data.draw(st.booleans())):
        key = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        parent, value = value, value[key]
    if data.draw(st.booleans()):
        parent[key] = data.draw(values)
    elif isinstance(parent, dict):
        del parent[key]
    return json.dumps(content).encode()


READERS = [(History.load, "mnist_one_conv"), (experiments.read, "order_class")]


@pytest.mark.parametrize(("read", "name"), READERS)
@QUICK
@given(data=st.data())
def test_run_and_result_files(read, name, data, tmp_path):
    content = (RESULTS / f"{name}.json").read_bytes()
    spoiled = spoil(json.loads(content), data) if data.draw(st.booleans()) else damage(content, data)
    path = tmp_path / "run.json"
    path.write_bytes(spoiled)
    try:
        found = read(path)
    except ValueError as error:
        assert "run.json" in str(error)
    else:
        some = [[found]] if isinstance(found, History) else experiments.curves(found).values()
        histories = itertools.chain.from_iterable(some)
        assert all(isinstance(record.test_accuracy, float) for history in histories for record in history.cycles)


@pytest.mark.parametrize("read", [read for read, _ in READERS])
@pytest.mark.parametrize("content", ["[" * 100_000, '{"runs": ' * 50_000, "1" * 10_000, "null", "[1]", '{"runs": [1]}'])
def test_deep_and_long_json_is_refused(read, content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json"):
        read(tmp_path / "run.json")


@pytest.fixture(scope="module")
def checkpoint_file(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("state")
    rso.fit(rso.models.build("mlp", digits), digits, rso.RSO(1, 10), seed=0, checkpoint=folder)
    return (folder / "latest.pt").read_bytes()


@QUICK
@given(data=st.data())
def test_checkpoints(checkpoint_file, digits, data, tmp_path):
    """Also where the checksum is right, as somebody's who wrote the file on purpose would be."""
    content = damage(checkpoint_file[32:], data)
    checksum = hashlib.sha256(content).digest() if data.draw(st.booleans()) else checkpoint_file[:32]
    (tmp_path / "latest.pt").write_bytes(checksum + content)
    checkpoints = checkpoint.Checkpoints(tmp_path, {})
    try:
        state, complaints = checkpoints.read()
    except ValueError as error:
        assert "of another run" in str(error)
    else:
        assert state is None
        assert "latest.pt" in complaints[0]
