"""Data sets: the same numbers from every source, and damaged files refused by name."""

import io
import os
import pickle
import struct
import urllib.request
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, FakeData
from torchvision.transforms import ToTensor

import rso_lab as rso
from rso_lab.data import find

KEYS = ("x_train", "y_train", "x_test", "y_test")
IDX_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
CIFAR_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
REAL = Path(os.environ.get("RSO_LAB_DATA", "")).resolve()


@pytest.fixture(autouse=True)
def _nothing_here(tmp_path_factory, monkeypatch):
    """Run as if the kit were installed elsewhere, with an empty data folder and without network."""

    def no_network(*_, **__):
        raise URLError("no network")

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr("rso_lab.data.__file__", str(elsewhere / "rso_lab" / "data.py"))
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("RSO_LAB_DATA", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", no_network)


def arrays(name, seed=0, n_train=50, n_test=20):
    """Random images in the Keras layout, each channel darker than the one before."""
    draw = np.random.default_rng(seed)
    shape = {"mnist": (28, 28), "cifar10": (32, 32, 3)}[name]
    darker = np.array(1) if name == "mnist" else np.array([1, 2, 4])
    x_train, x_test = (draw.integers(0, 256, (n, *shape)) // darker for n in (n_train, n_test))
    y_train, y_test = (np.arange(n) % 10 for n in (n_train, n_test))
    return dict(zip(KEYS, (a.astype(np.uint8) for a in (x_train, y_train, x_test, y_test)), strict=True))


def write_npz(folder, name, **changes):
    """Write the npz file, with some arrays changed, or left out where they are None."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {key: value for key, value in (arrays(name) | changes).items() if value is not None}
    np.savez_compressed(folder / f"{name}.npz", **content)
    return folder / f"{name}.npz"


def write_idx(root, content):
    """MNIST as torchvision unpacks it."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for file, key in zip(IDX_FILES, KEYS, strict=True):
        array = content[key]
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"{file}-ubyte").write_bytes(header + array.tobytes())
    return folder


def write_batches(root, content, monkeypatch):
    """CIFAR-10 as torchvision unpacks it: channels first in rows of 3072, the training set in five files."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    x = np.concatenate([content["x_train"], content["x_test"]]).transpose(0, 3, 1, 2).reshape(-1, 3072)
    y = np.concatenate([content["y_train"], content["y_test"]])
    ends = np.cumsum([len(content["x_train"]) // 5] * 5)
    for file, rows, labels in zip(CIFAR_FILES, np.split(x, ends), np.split(y, ends), strict=True):
        (folder / file).write_bytes(pickle.dumps({"data": rows, "labels": labels.tolist()}, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, protocol=2))
    # The checksums are torchvision's, of the real files. None: any content will do.
    monkeypatch.setattr(CIFAR10, "train_list", [[file, None] for file in CIFAR_FILES[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": None})
    return folder


def normalised(x, x_train):
    """What data.load must give, in float64 from the raw images."""
    axes = (0, 1, 2)
    x, x_train = ((a if a.ndim == 4 else a[..., None]).astype(np.float64) for a in (x, x_train))
    return ((x - x_train.mean(axes)) / x_train.std(axes)).transpose(0, 3, 1, 2)


def assert_is(data, content):
    """The four tensors are those of the raw arrays."""
    for key in ("x_train", "x_test"):
        x = getattr(data, key)
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        np.testing.assert_allclose(x.numpy(), normalised(content[key], content["x_train"]), rtol=1e-5, atol=1e-6)
        y = getattr(data, key.replace("x", "y", 1))
        assert y.dtype == torch.int64
        np.testing.assert_array_equal(y.numpy(), content[key.replace("x", "y", 1)].reshape(-1))


def assert_equal(one, other):
    for key in KEYS:
        assert torch.equal(getattr(one, key), getattr(other, key))


# What is read


def test_digits_are_all_of_scikit_learns_split_stratified_and_always_alike():
    data = rso.load("digits")
    assert (data.name, data.classes) == ("digits", 10)
    assert data.x_train.shape == (1437, 1, 8, 8)
    assert data.x_test.shape == (360, 1, 8, 8)
    np.random.seed(1)
    torch.manual_seed(1)
    assert_equal(data, rso.load())

    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8)
    in_rows = {image.tobytes(): row for row, image in enumerate(x)}
    assert len(in_rows) == 1797
    raw = {}
    for key, n in (("train", 1437), ("test", 360)):
        images = getattr(data, f"x_{key}").numpy()[:, 0].astype(np.float64)
        # Grey values are whole numbers, so that undoing the normalisation finds each image's row.
        scale = 16 / (images.max() - images.min())
        rows = [in_rows[image.tobytes()] for image in np.round((images - images.min()) * scale) + 0.0]
        np.testing.assert_array_equal(y[rows], getattr(data, f"y_{key}").numpy())
        assert abs(np.bincount(y[rows]) - np.bincount(y) * n / 1797).max() < 1  # stratified
        raw[key] = rows
    assert sorted(raw["train"] + raw["test"]) == list(range(1797))
    assert_is(
        data,
        {"x_train": x[raw["train"]], "y_train": y[raw["train"]], "x_test": x[raw["test"]], "y_test": y[raw["test"]]},
    )


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_npz_files_in_the_keras_layout(name, tmp_path):
    write_npz(tmp_path, name)
    data = rso.load(name, root=tmp_path)
    assert (data.name, data.classes) == (name, 10)
    assert_is(data, arrays(name))


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_real_data_sets(name):
    if not (REAL / f"{name}.npz").exists():
        pytest.skip(f"RSO_LAB_DATA names no folder with the real {name}.npz")
    with np.load(REAL / f"{name}.npz") as file:
        content = {key: file[key] for key in KEYS}
    data = rso.load(name, root=REAL, train_limit=1000)
    assert len(data.x_test) == 10000
    x_train = content["x_train"].reshape(len(content["x_train"]), *data.x_train.shape[2:], -1)
    mean, deviation = zip(
        *((x_train[..., c].mean(), x_train[..., c].std()) for c in range(x_train.shape[-1])), strict=True
    )
    for key in ("x_train", "x_test"):
        x = (content[key][:1000].reshape(1000, *x_train.shape[1:]) - np.array(mean)) / np.array(deviation)
        np.testing.assert_allclose(getattr(data, key)[:1000].numpy(), x.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(data.y_test.numpy(), content["y_test"].reshape(-1))


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_limits_take_the_first_rows_after_normalising_with_the_whole_training_set(name, tmp_path):
    if name != "digits":
        write_npz(tmp_path, name)
    whole = rso.load(name, root=tmp_path)
    few = rso.load(name, root=tmp_path, train_limit=7, test_limit=3)
    assert torch.equal(few.x_train, whole.x_train[:7])
    assert torch.equal(few.y_train, whole.y_train[:7])
    assert torch.equal(few.x_test, whole.x_test[:3])
    assert torch.equal(few.y_test, whole.y_test[:3])
    assert few.classes == 10


def test_torchvisions_mnist_folder_reads_as_the_npz_does(tmp_path):
    write_idx(tmp_path / "folder", arrays("mnist"))
    write_npz(tmp_path / "npz", "mnist")
    assert_equal(rso.load("mnist", root=tmp_path / "folder"), rso.load("mnist", root=tmp_path / "npz"))


def test_torchvisions_cifar10_folder_reads_as_the_npz_does(tmp_path, monkeypatch):
    write_batches(tmp_path / "folder", arrays("cifar10"), monkeypatch)
    write_npz(tmp_path / "npz", "cifar10")
    assert_equal(rso.load("cifar10", root=tmp_path / "folder"), rso.load("cifar10", root=tmp_path / "npz"))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64, ">i4"])
@pytest.mark.parametrize("columns", [(), (1,)])
def test_keras_labels_of_any_integers_and_with_a_column_of_their_own(tmp_path, dtype, columns):
    content = arrays("cifar10")
    labels = {key: content[key].astype(dtype).reshape(-1, *columns) for key in ("y_train", "y_test")}
    write_npz(tmp_path, "cifar10", **labels)
    assert_is(rso.load("cifar10", root=tmp_path), content)


def test_looks_in_root_then_in_the_variable_then_in_data(tmp_path, monkeypatch):
    root, variable, kit = tmp_path / "root", tmp_path / "variable", Path.cwd() / "data"
    monkeypatch.setenv("RSO_LAB_DATA", str(variable))
    for place, count in ((kit, 11), (variable, 12), (root, 13)):  # the later ones are looked at first
        write_npz(place, "mnist", **arrays("mnist", n_train=count))
        assert find("mnist", root) == place / "mnist.npz"
        assert len(rso.load("mnist", root=root).x_train) == count
    monkeypatch.delenv("RSO_LAB_DATA")
    assert len(rso.load("mnist").x_train) == 11


# What is damaged


def flip(path, at, bits=0xFF):
    content = bytearray(path.read_bytes())
    content[at] ^= bits
    path.write_bytes(content)


def in_compressed_data(path, key):
    """Where in the file the compressed bytes of this array are."""
    with zipfile.ZipFile(path) as file:
        info = file.getinfo(f"{key}.npy")
    return info.header_offset + 30 + len(info.filename) + 20 + info.compress_size // 2


def truncate(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def encrypted(path):
    """The flag in the table of contents says that the first array needs a password."""
    flip(path, path.read_bytes().index(b"PK\x01\x02") + 8, bits=1)


def plain_npy(path):
    buffer = io.BytesIO()
    np.save(buffer, arrays("mnist")["x_train"])
    path.write_bytes(buffer.getvalue())


def not_arrays(path):
    with zipfile.ZipFile(path, "w") as file:
        for key in KEYS:
            file.writestr(key, "not an array")


DAMAGES = {
    "empty": truncate(0),
    **{f"truncated to {share:.1%}": truncate(share) for share in (0.001, 0.3, 0.9, 0.999)},
    "cut by one byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    **{f"flipped in {key}": lambda path, key=key: flip(path, in_compressed_data(path, key)) for key in KEYS},
    "encrypted": encrypted,
    "text": lambda path: path.write_text("<html>404 not found</html>"),
    "one npy": plain_npy,
    "no arrays": not_arrays,
    "a pickle": lambda path: path.write_bytes(pickle.dumps(arrays("mnist"))),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_npz_is_refused_by_name_with_the_remedy(tmp_path, damage):
    path = write_npz(tmp_path, "mnist")
    damage(path)
    with pytest.raises(ValueError, match=r"damaged or not an npz|expected uint8") as caught:
        rso.load("mnist", root=tmp_path)
    assert str(path) in str(caught.value)
    assert "fetch it again: python -m rso_lab data mnist" in str(caught.value)


def test_no_single_flipped_byte_gets_through(tmp_path):
    path = write_npz(tmp_path, "mnist", **arrays("mnist", n_train=2, n_test=1))
    good, content = rso.load("mnist", root=tmp_path), path.read_bytes()
    refused = 0
    for at in range(0, len(content), 5):
        flip(path, at)
        try:
            assert_equal(rso.load("mnist", root=tmp_path), good)  # dates and the like do not matter
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
        path.write_bytes(content)
    assert refused > len(content) / 5 / 2


X, Y = arrays("mnist")["x_train"], arrays("mnist")["y_train"]
MISLABELLED = {
    "x_train missing": ({"x_train": None}, "x_train"),
    "y_test missing": ({"y_test": None}, "y_test"),
    "x_train of floats": ({"x_train": X / 255}, "x_train holds float64 values, expected uint8"),
    "x_test of another size": ({"x_test": X[:20, :27]}, r"x_test has shape \(20, 27, 28\), expected \(N, 28, 28\)"),
    "x_test in colour": ({"x_test": np.repeat(X[:20, ..., None], 3, 3)}, "x_test has shape"),
    "no images": ({"x_test": X[:0], "y_test": Y[:0]}, "x_test has shape"),
    "a label short": ({"y_train": Y[:-1]}, r"y_train has shape \(49,\), expected \(50,\)"),
    "one-hot labels": ({"y_train": np.eye(10, dtype=np.uint8)[Y]}, r"y_train has shape \(50, 10\)"),
    "labels of ten": ({"y_train": np.where(Y == 3, 10, Y)}, "y_train holds labels"),
    "labels below zero": ({"y_test": np.arange(20) % 10 - 1}, "y_test holds labels"),
    "labels of floats": ({"y_train": Y.astype(float)}, "y_train holds labels"),
    "CIFAR-10's images": (arrays("cifar10"), "x_train has shape"),
}


@pytest.mark.parametrize(("changes", "message"), MISLABELLED.values(), ids=MISLABELLED)
def test_an_npz_of_something_else_is_refused_by_name_with_the_remedy(tmp_path, changes, message):
    path = write_npz(tmp_path, "mnist", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        rso.load("mnist", root=tmp_path)
    assert str(path) in str(caught.value)
    assert "python -m rso_lab data mnist" in str(caught.value)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_in_an_npz_is_not_executed(tmp_path):
    path = write_npz(tmp_path, "mnist", y_train=np.array([Trap(tmp_path / "sprung")] * 50))
    with pytest.raises(ValueError, match="damaged") as caught:
        rso.load("mnist", root=tmp_path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_that_is_not_cifar10s_is_not_executed(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (*CIFAR_FILES, "batches.meta"):
        (folder / file).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ValueError, match="damaged or incomplete") as caught:
        rso.load("cifar10", root=tmp_path)
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("file", [f"{file}-ubyte" for file in IDX_FILES])
@pytest.mark.parametrize("length", [0, 3, 9, -1])
def test_a_truncated_mnist_folder_is_refused_by_name_with_the_remedy(tmp_path, file, length):
    folder = write_idx(tmp_path, arrays("mnist"))
    (folder / file).write_bytes((folder / file).read_bytes()[:length])
    with pytest.raises(ValueError, match="damaged or incomplete") as caught:
        rso.load("mnist", root=tmp_path)
    assert str(tmp_path / "MNIST") in str(caught.value)
    assert "python -m rso_lab data mnist" in str(caught.value)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-50]), Path.unlink])
@pytest.mark.parametrize("file", ["data_batch_2", "test_batch", "batches.meta"])
def test_a_damaged_cifar10_folder_is_refused_by_name_with_the_remedy(tmp_path, monkeypatch, file, damage):
    folder = write_batches(tmp_path, arrays("cifar10"), monkeypatch)
    damage(folder / file)
    with pytest.raises(ValueError, match="damaged or incomplete") as caught:
        rso.load("cifar10", root=tmp_path)
    assert str(folder) in str(caught.value)
    assert "python -m rso_lab data cifar10" in str(caught.value)


# What is not there


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_without_network_one_sentence_says_which_file_to_put_where(tmp_path, name, capsys):
    with pytest.raises(FileNotFoundError) as caught:
        rso.load(name, root=tmp_path)
    message = str(caught.value)
    assert f"put {name}.npz" in message
    assert str(tmp_path) in message
    assert "RSO_LAB_DATA" in message
    assert "\n" not in message
    assert "downloading it into" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):  # what the attempt left behind does not count as the data set
        rso.load(name, root=tmp_path)
    write_npz(tmp_path, name)
    assert_is(rso.load(name, root=tmp_path), arrays(name))


def test_a_download_cut_short_does_not_pass_for_the_data_set(tmp_path, monkeypatch):
    mnist = write_idx(tmp_path, arrays("mnist"))
    (mnist / f"{IDX_FILES[-1]}-ubyte").unlink()  # torchvision unpacks it last
    cifar10 = write_batches(tmp_path, arrays("cifar10"), monkeypatch)
    (cifar10 / "data_batch_1").unlink()  # the archive's last one
    for name in ("mnist", "cifar10"):
        with pytest.raises(FileNotFoundError, match="could not be downloaded"):
            rso.load(name, root=tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileNotFoundError, match=r"put mnist\.npz") as caught:
        rso.load("mnist", root=tmp_path / "file" / "data")
    assert str(tmp_path / "file" / "data") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FileNotFoundError, match=r"put mnist\.npz") as caught:
        rso.load("mnist", root=tmp_path)
    assert "ermission" in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "MNIST"},
        {"train_limit": 0},
        {"test_limit": -1},
        {"train_limit": 2.5},
        {"train_limit": True},
        {"device": "gpu"},
        {"device": "meta"},
    ],
    ids=str,
)
def test_wrong_options_are_named_with_their_value(options):
    with pytest.raises(ValueError, match=r"choose from|expected") as caught:
        rso.load(**options)
    (value,) = options.values()
    assert repr(value) in str(caught.value)


# From arrays


def good_arrays():
    x = torch.linspace(-1, 1, 6 * 4, dtype=torch.float64).view(6, 1, 2, 2)
    return {
        "x_train": x,
        "y_train": torch.tensor([0, 1, 2, 0, 1, 2]),
        "x_test": x[:3],
        "y_test": torch.tensor([3, 1, 0]),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(
    "convert", [lambda tensor: tensor, lambda tensor: tensor.numpy(), lambda tensor: tensor.tolist()]
)
def test_from_arrays_takes_them_as_they_are(dtype, convert):
    content = good_arrays() | {key: good_arrays()[key].to(dtype) for key in ("x_train", "x_test")}
    data = rso.Data.from_arrays(**{key: convert(value) for key, value in content.items()})
    listed = isinstance(convert(torch.zeros(1)), list)  # Python's floats are float32 to torch
    assert data.x_train.dtype == data.x_test.dtype == (torch.float32 if listed else dtype)
    assert data.y_train.dtype == data.y_test.dtype == torch.int64
    for key in KEYS:
        torch.testing.assert_close(getattr(data, key), content[key], check_dtype=False)
    assert data.classes == 4  # the test set's label 3 counts


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint64, np.int8, np.int32])
def test_from_arrays_takes_labels_of_any_integers(dtype):
    data = rso.Data.from_arrays(**good_arrays() | {"y_train": np.array([0, 1, 2, 0, 1, 2], dtype=dtype)})
    assert torch.equal(data.y_train, good_arrays()["y_train"])


X6, Y6 = good_arrays()["x_train"], good_arrays()["y_train"]
UNFIT = {
    "integers": (
        {"x_train": (X6 * 100).to(torch.uint8)},
        r"x_train holds torch.uint8 values: normalise .* x_train.std\(\)",
    ),
    "test integers": ({"x_test": np.ones((3, 1, 2, 2), dtype=int)}, "x_test holds torch.int64 values: normalise"),
    "NaN": ({"x_train": torch.where(X6 == -1, torch.nan, X6)}, "x_train holds NaN or infinite values"),
    "infinite": ({"x_test": X6[:3] / 0}, "x_test holds NaN or infinite values"),
    "negative labels": ({"y_train": Y6 - 1}, "y_train holds the label -1"),
    "float labels": ({"y_train": Y6.float()}, "y_train holds torch.float32 values"),
    "bool labels": ({"y_test": Y6[:3] > 0}, "y_test holds torch.bool values"),
    "one-hot labels": ({"y_train": torch.eye(3)[Y6]}, r"y_train has shape \(6, 3\): expected \(6,\)"),
    "a column of labels": ({"y_test": Y6[:3, None]}, r"y_test has shape \(3, 1\): expected \(3,\)"),
    "fewer labels": ({"y_train": Y6[:5]}, r"y_train has shape \(5,\): expected \(6,\)"),
    "fewer images": ({"x_test": X6[:2]}, r"y_test has shape \(3,\): expected \(2,\)"),
    "no images": ({"x_test": X6[:0], "y_test": Y6[:0]}, r"x_test has shape \(0, 1, 2, 2\)"),
    "no dimensions": ({"x_train": X6[:, 0, 0, 0]}, r"x_train has shape \(6,\)"),
    "other size": ({"x_test": X6[:3, ..., :1]}, "x_train has shape .* x_test"),
    "other dtype": ({"x_test": X6[:3].float()}, "float64, x_test .* torch.float32"),
}


@pytest.mark.parametrize(("changes", "message"), UNFIT.values(), ids=UNFIT)
def test_from_arrays_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        rso.Data.from_arrays(**good_arrays() | changes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\n<!doctype html><html>403</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x1f\x8b\x08" + bytes(99), "gzip"),
        (b"\x80\x04\x95" + bytes(99), "a pickle"),
        (b"\x93NUMPY" + bytes(99), "npy"),
        (b"", "empty"),
        (b"hello", "begins otherwise"),
        (None, "Python objects"),
    ],
)
def test_a_file_that_is_something_else_is_called_so(tmp_path, content, said):
    path = tmp_path / "mnist.npz"
    if content is None:
        np.savez(path, x_train=np.array([{}], dtype=object))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        rso.load("mnist", root=tmp_path)
    assert "allow_pickle" not in str(caught.value)
    assert "unsafe" not in str(caught.value)


def test_a_folder_named_beside_the_mark_is_found(tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "t10k-labels-idx1-ubyte").touch()
    (tmp_path / "mnist.npz").touch()
    folders = (f'"{tmp_path}"', f"'{tmp_path}' ", f"{tmp_path}\n", tmp_path / "mnist.npz", raw, raw.parent, f"{raw}/")
    for folder in folders:
        monkeypatch.setenv("RSO_LAB_DATA", str(folder))
        assert find("mnist") == tmp_path / "mnist.npz"


def test_a_link_that_leads_nowhere_is_no_case_for_a_download(tmp_path):
    (tmp_path / "cifar10.npz").symlink_to("/no/such/drive/cifar10.npz")
    with pytest.raises(FileNotFoundError, match="is a link to /no/such/drive"):
        rso.load("cifar10", root=tmp_path)


def test_arrays_that_torch_does_not_take_as_they_are():
    good = good_arrays()
    x = np.asarray(good["x_train"])
    read_only = x.copy()
    read_only.flags.writeable = False
    for like in (read_only, x[::-1].copy()[::-1], x.astype(x.dtype.newbyteorder(">")), np.asfortranarray(x)):
        found = rso.Data.from_arrays(**good | {"x_train": like})
        assert np.array_equal(found.x_train.numpy(), x)
    for labels in (["a"] * 6, np.array(["1"] * 6), np.array([1] * 6, dtype=object), np.array([b"1"] * 6)):
        with pytest.raises(ValueError, match="y_train"):
            rso.Data.from_arrays(**good | {"y_train": labels})
    with pytest.raises(ValueError, match="train_test_split gives"):
        rso.Data.from_arrays(good["x_train"], good["x_test"], good["y_train"], good["y_test"])


# From data sets


class Squares(torch.utils.data.Dataset):
    """Images that are made when they are asked for."""

    def __init__(self, count, make=lambda i: (torch.full((1, 2, 2), float(i)), i % 3)):
        self.count, self.make = count, make

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.make(i)


KINDS = {
    "tensors": (torch.utils.data.TensorDataset(X6, Y6), X6, Y6),
    "made on demand": (Squares(6), torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 2, 2), torch.arange(6) % 3),
    "a part": (torch.utils.data.Subset(Squares(9), [2, 1, 5]), torch.tensor([2.0, 1, 5]).view(3, 1, 1, 1), [2, 1, 2]),
    "arrays of numpy": (
        Squares(3, lambda i: (np.full((2,), i / 2), np.int64(i))),
        [[0, 0], [0.5, 0.5], [1, 1]],
        [0, 1, 2],
    ),
    "numbers to predict": (Squares(2, lambda i: (torch.ones(3), i / 2)), torch.ones(2, 3), [0.0, 0.5]),
    "words": (Squares(3, lambda i: (torch.tensor([i, 7]), torch.tensor(i))), [[0, 7], [1, 7], [2, 7]], [0, 1, 2]),
    "pairs in a list": ([(torch.zeros(2), 0), (torch.ones(2), 1)], [[0, 0], [1, 1]], [0, 1]),
}


@pytest.mark.parametrize(("dataset", "x", "y"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("loads", [False, True])
def test_a_data_set_is_read_item_by_item(dataset, x, y, loads):
    given = torch.utils.data.DataLoader(dataset, batch_size=2, shuffle=True) if loads else dataset
    data = rso.Data.from_dataset(given, dataset)
    for found_x, found_y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        torch.testing.assert_close(found_x, torch.as_tensor(x).expand_as(found_x), check_dtype=False)
        torch.testing.assert_close(found_y, torch.as_tensor(y), check_dtype=False)


def test_a_data_set_of_pictures_says_which_transform_it_needs():
    pictures = FakeData(size=5, image_size=(3, 4, 4), num_classes=3)
    with pytest.raises(TypeError, match=r"item 0 of train is a picture: .* transform=torchvision.transforms.ToTensor"):
        rso.Data.from_dataset(pictures, pictures)
    pictures.transform = ToTensor()
    data = rso.Data.from_dataset(pictures, pictures, name="fake")
    assert data.name == "fake"
    assert torch.equal(data.x_train, torch.stack([x for x, _ in pictures]))


WITHOUT = {
    "arrays": (X6, TypeError, "item 0 of train is a Tensor: expected a pair"),
    "a pair of arrays": ((X6, Y6), TypeError, r"train is a tuple: expected a data set .*Data\.from_arrays"),
    "a stream": (iter([1]), TypeError, "train is a list_iterator: expected a data set with a length"),
    "dictionaries": (Squares(2, lambda i: {"x": 1}), TypeError, "item 0 of train is a dict: expected a pair"),
    "images alone": (Squares(2, lambda i: X6[i]), TypeError, "item 0 of train is a Tensor: expected a pair"),
    "three parts": (Squares(2, lambda i: (1, 2, 3)), TypeError, "item 0 of train is a tuple: expected a pair"),
    "strings": (Squares(2, lambda i: ("a", 1)), ValueError, "item 0 of train is no array of numbers"),
    "sizes that differ": (
        Squares(3, lambda i: (torch.zeros(2 + i // 2), 0)),
        ValueError,
        r"item 2 of train has shape \(3,\) and dtype .* item 0 \(2,\)",
    ),
    "nothing": (Squares(0), ValueError, "train has no items"),
    "more than there is memory": (
        Squares(2**50),
        ValueError,
        r"train takes 27,021,597,764,222,976 bytes, and .* are free: torch\.utils\.data\.Subset",
    ),
}


@pytest.mark.parametrize(("dataset", "error", "said"), WITHOUT.values(), ids=WITHOUT)
def test_a_data_set_that_cannot_be_read_is_explained(dataset, error, said):
    with pytest.raises(error, match=said):
        rso.Data.from_dataset(dataset, Squares(3))
