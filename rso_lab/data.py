"""Data sets as normalised tensors: digits (inside scikit-learn), MNIST and CIFAR-10."""

import os
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

NAMES = ("digits", "mnist", "cifar10")
SHAPES = {"mnist": (28, 28), "cifar10": (32, 32, 3)}  # of one image in the files
# The last file that torchvision unpacks, so that a download cut short does not pass for a data set.
TORCHVISION_FILES = {"mnist": "MNIST/raw/t10k-labels-idx1-ubyte", "cifar10": "cifar-10-batches-py/data_batch_1"}

NORMALISE = "normalise the images first, for example x = (x - x_train.mean()) / x_train.std() with both as floats"

LARGEST = 2**30  # bytes of a data set, far more than any of them has

SEEDS = 2**32  # that there are: torch's generator on the CPU keeps 32 bits of a seed

Arrays = tuple[NDArray, NDArray, NDArray, NDArray]  # x_train, y_train, x_test, y_test


@dataclass(frozen=True)
class Data:
    """Images and labels, or other inputs and targets, split into a training and a test set.

    `x_*` have shape (N, ...): images (N, channels, height, width), ids of tokens (N, length). `y_*` are labels (N,) in
    0 .. classes - 1, or targets (N, ...) of another kind, and then `classes` is None.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int | None

    @classmethod
    def from_arrays(
        cls, x_train: ArrayLike, y_train: ArrayLike, x_test: ArrayLike, y_test: ArrayLike, *, name: str = "arrays"
    ) -> "Data":
        """Your own arrays or tensors, as they are: x (N, ...) floats that you normalised, or whole numbers to look up.

        y: labels, integers (N,) from 0; or targets (N, ...) of any kind, for a loss of your own: floats, or sequences
        of integers. Raises ValueError where the four do not fit together or hold what is not finite.
        """
        x = {"x_train": _tensor("x_train", x_train), "x_test": _tensor("x_test", x_test)}
        y = {"y_train": _tensor("y_train", y_train), "y_test": _tensor("y_test", y_test)}
        y = {key: values.long() if _is_integer(values) else values for key, values in y.items()}
        if y["y_train"].dim() > 1 and x["x_test"].dim() == 1:
            raise ValueError(
                "y_train has the shape of images and x_test that of labels: the order is x_train, y_train, x_test, "
                "y_test (train_test_split gives x_train, x_test, y_train, y_test)"
            )
        to_look_up = all(map(_is_integer, x.values()))
        for key, values in x.items():
            if not values.is_floating_point() and not to_look_up:
                raise ValueError(f"{key} holds {values.dtype} values: {NORMALISE}")
            if values.dim() < 2 or len(values) == 0:
                raise ValueError(f"{key} has shape {tuple(values.shape)}: expected (N, channels, height, width)")
        x = {key: values.long() if to_look_up else values for key, values in x.items()}
        for key, values in (x | y).items():
            if not torch.isfinite(values).all():
                raise ValueError(f"{key} holds NaN or infinite values: remove or replace them")
        for key, values in y.items():
            _refuse_targets(key, values, len(x[key.replace("y", "x")]), y["y_test" if key == "y_train" else "y_train"])
        x_train, x_test, y_train, y_test = (*x.values(), *y.values())
        for key, train, test in (("x", x_train, x_test), ("y", y_train, y_test)):
            if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
                raise ValueError(
                    f"{key}_train has shape {tuple(train.shape)} and dtype {train.dtype}, {key}_test "
                    f"{tuple(test.shape)} and {test.dtype}: all but the number of images must be the same"
                )
        labels = _is_integer(y_train) and y_train.dim() == 1
        classes = int(torch.maximum(y_train.max(), y_test.max())) + 1 if labels else None
        return cls(name, x_train, y_train, x_test, y_test, classes)

    @classmethod
    def from_dataset(cls, train: Any, test: Any, *, name: str = "data set") -> "Data":
        """Map-style data sets of pairs (x, y), as torch and torchvision have them: each item is read once, and kept.

        Of a DataLoader its data set. A transform that draws at random draws once. Progress bars show how far it is.
        Raises TypeError for items of another kind, ValueError where they differ in shape or do not fit the memory, and
        what `from_arrays` raises.
        """
        arrays = [part for key, dataset in (("train", train), ("test", test)) for part in _read_dataset(key, dataset)]
        return cls.from_arrays(*arrays, name=name)

    def to(self, device: str | torch.device) -> "Data":
        """The same data on another device."""
        tensors = {key: getattr(self, key).to(device) for key in ("x_train", "y_train", "x_test", "y_test")}
        return replace(self, **tensors)


def _read_dataset(key: str, dataset: Any) -> tuple[Tensor, Tensor]:
    """All of its items, x (N, ...) and y (N, ...)."""
    dataset = dataset.dataset if isinstance(dataset, DataLoader) else dataset
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or isinstance(dataset, tuple | dict):
        raise TypeError(
            f"{key} is a {type(dataset).__name__}: expected a data set with a length and items (x, y); "
            "Data.from_arrays takes arrays"
        )
    count = len(dataset)
    if count == 0:
        raise ValueError(f"{key} has no items")
    stored: list[Tensor] = []
    for i in tqdm(range(count), desc=f"reading {key}", disable=None if sys.stderr is not None else True):
        parts = _item(f"item {i} of {key}", dataset[i])
        if not stored:
            size, free = count * sum(part.nbytes for part in parts), psutil.virtual_memory().available
            if size > free:
                raise ValueError(
                    f"{key} takes {size:,} bytes, and {free:,} are free: torch.utils.data.Subset takes a part"
                )
            stored = [part.new_empty((count, *part.shape)) for part in parts]
        for room, part in zip(stored, parts, strict=True):
            if part.shape != room.shape[1:] or part.dtype != room.dtype:
                raise ValueError(
                    f"item {i} of {key} has shape {tuple(part.shape)} and dtype {part.dtype}, and item 0 "
                    f"{tuple(room.shape[1:])} and {room.dtype}: let a transform make all alike"
                )
            room[i] = part
    return stored[0], stored[1]


def _item(name: str, item: Any) -> list[Tensor]:
    """Its two parts as tensors."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise TypeError(f"{name} is a {type(item).__name__}: expected a pair, an image and its label")
    if hasattr(item[0], "getpixel"):
        raise TypeError(f"{name} is a picture: give the data set transform=torchvision.transforms.ToTensor()")
    return [_tensor(name, part) for part in item]


def _is_integer(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def _refuse_targets(key: str, y: Tensor, count: int, other: Tensor) -> None:
    """Raise ValueError for targets that do not fit to so many images, or are labels in a form that losses misread.

    `other`: those of the other part of the data set.
    """
    shape = f"{key} has shape {tuple(y.shape)}: expected ({count},), one label for each image"
    is_label = _is_integer(y) or (_is_integer(other) and other.dim() == 1)  # or meant to be one
    if y.shape[:1] != (count,):
        raise ValueError(shape)
    if y.dtype == torch.bool:
        raise ValueError(f"{key} holds torch.bool values: labels are integers from 0 to classes - 1, targets floats")
    if is_label and y.shape == (count, 1):
        raise ValueError(f"{shape}; take the column out, y[:, 0], or pass targets that are no labels as floats")
    if is_label and y.dim() == 2 and _is_one_hot(y):
        raise ValueError(f"{shape}; of one-hot rows make labels, y.argmax(1), or pass targets of your own as floats")
    if is_label and not _is_integer(y):
        raise ValueError(f"{key} holds {y.dtype} values: labels are integers from 0 to classes - 1")
    if y.dim() == 1 and _is_integer(y) and (lowest := int(y.min())) < 0:
        raise ValueError(
            f"{key} holds the label {lowest}: labels are integers from 0 to classes - 1; pass other targets as floats"
        )


def _is_one_hot(y: Tensor) -> bool:
    """Whether each row of y (N, classes) has a 1 and else zeros."""
    return bool(((y == 0) | (y == 1)).all() & (y.sum(1) == 1).all())


def _tensor(name: str, values: ArrayLike) -> Tensor:
    """The argument as a tensor; of an array that torch cannot take as it is, a copy."""
    dtype = getattr(values, "dtype", None)
    if getattr(dtype, "kind", "") in "OSU" and dtype is not None and not isinstance(values, Tensor):
        raise ValueError(f"{name} holds strings or objects: make numbers of them, {name}.astype(int) for labels")
    if isinstance(values, np.ndarray):
        own = values.dtype.isnative and values.flags.writeable and all(stride >= 0 for stride in values.strides)
        values = values if own else np.array(values, dtype=values.dtype.newbyteorder("="), order="C")
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is no array of numbers ({error}): make one of it with numpy.array") from None


def load(
    name: str = "digits",
    *,
    root: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
    train_limit: int | None = None,
    test_limit: int | None = None,
) -> Data:
    """The data set `name` ("digits", "mnist" or "cifar10"), normalised per channel by its whole training set.

    Files are looked for in `root`, then in $RSO_LAB_DATA, then in data/; what is nowhere is downloaded. The limits take
    the first rows, after normalising. Raises ValueError for a damaged file, FileNotFoundError where there is no data.
    """
    if name not in NAMES:
        raise ValueError(f"data set {name!r} is not known: choose from {', '.join(NAMES)}")
    for setting, limit in (("train_limit", train_limit), ("test_limit", test_limit)):
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | np.integer) or limit < 1):
            raise ValueError(f"{setting} is {limit!r}: expected a whole number, at least 1")
    device = usable_device(device)
    x_train, y_train, x_test, y_test = _digits() if name == "digits" else _stored(name, root)
    mean, deviation = _mean_and_deviation(x_train)
    return Data(
        name,
        *_tensors(x_train[:train_limit], y_train[:train_limit], mean, deviation),
        *_tensors(x_test[:test_limit], y_test[:test_limit], mean, deviation),
        classes=10,
    ).to(device)


def usable_seed(seed: Any) -> int:
    """The seed as Python's int. Raises ValueError where it is none, or one that would give the draws of another."""
    number = seed.item() if isinstance(seed, np.integer) else seed
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < SEEDS:
        raise ValueError(f"seed is {seed!r}: expected a whole number from 0 to {SEEDS - 1}")
    return number


def usable_device(device: str | torch.device) -> torch.device:
    """The torch device named `device`. Raises RuntimeError where it is CUDA and there is none."""
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        kind = None
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}: expected 'cpu' or 'cuda'")
    device = torch.device(device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RuntimeError(
            f"device '{device}' was asked for, but torch {torch.__version__} finds no such GPU: use 'cpu'"
        )
    return device


def places(root: str | os.PathLike | None = None) -> list[Path]:
    """The folders where data sets are looked for, in this order."""
    kit = Path(__file__).resolve().parent.parent
    data = (kit if (kit / "pyproject.toml").exists() else Path.cwd()) / "data"
    return [_folder(place) for place in (root, os.environ.get("RSO_LAB_DATA"), data) if place]


def _folder(place: str | os.PathLike) -> Path:
    """The folder that is meant: without quotes and blanks around it, not a file in it, nor a part of torchvision's."""
    path = Path(place).expanduser()
    if not path.exists():
        path = Path(os.fspath(place).strip().strip("\"'").strip()).expanduser()
    if path.is_file():
        path = path.parent
    for entry in TORCHVISION_FILES.values():
        for above in list(path.parents)[:2]:
            if (above / entry).exists() and path in (above / entry).parents:
                return above
    return path


def find(name: str, root: str | os.PathLike | None = None) -> Path | None:
    """The npz file of "mnist" or "cifar10", or the last file of torchvision's folder; None where neither is."""
    candidates = [place / entry for place in places(root) for entry in (f"{name}.npz", TORCHVISION_FILES[name])]
    return next((path for path in candidates if path.exists()), None)


def _stored(name: str, root: str | os.PathLike | None) -> Arrays:
    path = find(name, root)
    for place in places(root) if path is None else ():
        link = place / f"{name}.npz"
        if link.is_symlink():
            raise FileNotFoundError(f"{link} is a link to {os.readlink(link)}, which is not there: mend or delete it")
    if path is None:
        return _download(name, places(root)[0], places(root))
    if path.suffix == ".npz":
        return _read_npz(path, name)
    return _read_folder(path.parents[TORCHVISION_FILES[name].count("/")], name)


def _read_npz(path: Path, name: str) -> Arrays:
    """The four arrays of a file in the Keras layout, checked."""
    remedy = f"delete it and fetch it again: python -m rso_lab data {name}"
    try:
        # Opened here, because np.load leaves a damaged file open.
        with path.open("rb") as stream:
            _refuse_other(stream.read(100))
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            _refuse_huge(file.zip)
            arrays = [np.asarray(file[key]) for key in ("x_train", "y_train", "x_test", "y_test")]
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]}; expected x_train, y_train, x_test, y_test; {remedy}") from None
    except PermissionError as error:
        raise PermissionError(f"{path} cannot be read ({error.strerror}): change its permissions") from None
    except ValueError as error:
        reason = "it holds Python objects, which could run code" if "allow_pickle" in str(error) else str(error)
        raise ValueError(f"{path} is damaged or not an npz file ({reason}): {remedy}") from None
    except Exception as error:  # numpy and zipfile let through whatever they meet in a damaged file
        raise ValueError(f"{path} is damaged or not an npz file ({error}): {remedy}") from None
    x_train, y_train, x_test, y_test = arrays
    try:
        return _check_images(x_train, y_train, x_test, y_test, SHAPES[name])
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {remedy}") from None


def _refuse_other(start: bytes) -> None:
    """Raise ValueError for a file that begins as no npz file does, saying what it is."""
    kinds = {
        b"<": "it is a web page",
        b"version https://git-lfs": "it is a git-lfs pointer, which git lfs pull replaces by the file",
        b"\x1f\x8b": "it is compressed by gzip",
        b"\x93NUMPY": "it is one array, an npy file",
        b"\x80": "it is a pickle",
    }
    for beginning, kind in kinds.items():
        if start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(beginning):
            raise ValueError(kind)
    if not start.startswith(b"PK"):
        raise ValueError("it begins otherwise" if start else "it is empty")


def _refuse_huge(file: zipfile.ZipFile) -> None:
    """Raise ValueError for a file that unpacks to far more than any data set: a small one can fill the memory."""
    size = sum(entry.file_size for entry in file.infolist())
    if size > LARGEST:
        raise ValueError(f"{size:,} bytes unpacked: expected at most {LARGEST:,}")


def _check_images(
    x_train: NDArray, y_train: NDArray, x_test: NDArray, y_test: NDArray, shape: tuple[int, ...]
) -> Arrays:
    for key, x in (("x_train", x_train), ("x_test", x_test)):
        if x.dtype != np.uint8:
            raise ValueError(f"{key} holds {x.dtype} values, expected uint8")
        if x.shape[1:] != shape or len(x) == 0:
            raise ValueError(f"{key} has shape {x.shape}, expected (N, {', '.join(map(str, shape))})")
    labels = []
    for key, y, n in (("y_train", y_train, len(x_train)), ("y_test", y_test, len(x_test))):
        if y.shape not in ((n,), (n, 1)):
            raise ValueError(f"{key} has shape {y.shape}, expected ({n},)")
        if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() > 9:
            raise ValueError(f"{key} holds labels that are not whole numbers from 0 to 9")
        labels.append(y.reshape(n).astype(np.int64))
    return x_train, labels[0], x_test, labels[1]


def _read_folder(root: Path, name: str) -> Arrays:
    """A data set that torchvision stored in a folder of its own below `root`."""
    try:
        return _torchvision(name, root, download=False)
    except Exception as error:  # torchvision lets through whatever its parsers meet in a damaged file
        folder = root / TORCHVISION_FILES[name].split("/")[0]
        raise ValueError(
            f"{folder} is damaged or incomplete ({error}): delete it and fetch it again: python -m rso_lab data {name}"
        ) from None


def _download(name: str, folder: Path, looked: list[Path]) -> Arrays:
    print(f"{name} is not in {' or '.join(map(str, looked))}: downloading it into {folder}", flush=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _torchvision(name, folder, download=True)
    except Exception as error:  # no network shows as URLError, RuntimeError or ssl errors, a full disk as OSError
        reason = " ".join(str(error).split())  # torchvision's has a line for each server
        raise FileNotFoundError(
            f"{name} could not be downloaded into {folder} ({reason}): put {name}.npz (the Keras file, "
            "arrays x_train, y_train, x_test, y_test) into that folder, or name the folder that has it in RSO_LAB_DATA"
        ) from None


def _torchvision(name: str, folder: Path, download: bool) -> Arrays:
    import torchvision  # slow to import, and not needed for digits or npz

    dataset = {"mnist": torchvision.datasets.MNIST, "cifar10": torchvision.datasets.CIFAR10}[name]
    train, test = (dataset(str(folder), train=train, download=download) for train in (True, False))
    x_train, y_train, x_test, y_test = (
        np.asarray(part) for split in (train, test) for part in (split.data, split.targets)
    )
    return _check_images(x_train, y_train, x_test, y_test, SHAPES[name])


def _digits() -> Arrays:
    """The 1797 handwritten 8x8 digits of scikit-learn, grey values 0 to 16, split 1437/360."""
    from sklearn.datasets import load_digits  # slow to import
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8).astype(np.uint8)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=360, stratify=y, random_state=0)
    return x_train, y_train, x_test, y_test


def _mean_and_deviation(x: NDArray) -> tuple[NDArray, NDArray]:
    """Mean and standard deviation of each channel, exactly, from how often each of the 256 grey values occurs."""
    channels = x.reshape(-1, x.shape[3] if x.ndim == 4 else 1).T
    counts = np.stack([np.bincount(channel, minlength=256) for channel in channels]) / channels.shape[1]
    if counts.max() == 1:
        raise ValueError("all training images are of one and the same grey: there is nothing to normalise by")
    values = np.arange(256)
    mean = counts @ values
    return mean, np.sqrt(counts @ values**2 - mean**2)


def _tensors(x: NDArray, y: NDArray, mean: NDArray, deviation: NDArray) -> tuple[Tensor, Tensor]:
    """Normalised images (N, C, H, W) float32 and labels (N,) int64, from (N, H, W) or (N, H, W, C) uint8."""
    images = torch.from_numpy(x if x.ndim == 4 else x[..., None]).permute(0, 3, 1, 2)
    shift, scale = (torch.tensor(a, dtype=torch.float32).view(1, -1, 1, 1) for a in (mean, deviation))
    return images.float().contiguous().sub_(shift).div_(scale), torch.from_numpy(y).long()
