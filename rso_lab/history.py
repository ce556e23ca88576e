"""What a run leaves behind: a record for each layer sweep and each cycle, and the history of a run as JSON."""

import contextlib
import errno
import functools
import io
import json
import math
import os
import platform
import stat
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Record:
    """One layer sweep, or one whole cycle (`layer` None; for other methods than RSO an epoch).

    Accuracies are shares, measured after a cycle only, and None where the targets are no labels.
    """

    cycle: int
    layer: str | None
    test_accuracy: float | None
    train_accuracy: float | None
    loss: float  # after a cycle: of all training images; after a sweep: mean of the chosen candidates'
    kept: dict[str, float]  # share of the proposals at which the weight was kept: "all", and by layer
    accepted: dict[str, float]  # share at which a change was accepted
    updates: int  # how often all weights were up for a change: RSO's cycles, others' iterations (§4.5); like all below,
    evaluations: int  # since the run began; three a proposal, two without the opposite direction; others: passes over
    # a mini-batch: SGD and Subspace one an iteration, ES one or two a sample, GA one a member, Masks two a pair
    multiply_adds: (
        int  # see counts.layer_costs; others: of a forward pass, three times with the way back, and of the noise
    )
    seconds: float
    evaluator: str
    nonzero: int | None = None  # weights of layers, without biases, that are not 0; after a cycle only
    test_metric: float | None = None  # the caller's own number, after a cycle
    train_metric: float | None = None


@dataclass
class History:
    """The cycles of one run, and what is needed to run it again."""

    settings: dict[str, Any]
    seed: int
    versions: dict[str, str]
    machine: str
    command: str
    cycles: list[Record] = field(default_factory=list)

    def save(self, path: str | os.PathLike) -> None:
        """Write JSON: the fields, and `seeds` and `seconds` as all recorded results have them."""
        cycles = [{key: value for key, value in asdict(record).items() if key != "layer"} for record in self.cycles]
        seconds = self.cycles[-1].seconds if self.cycles else 0.0
        content = {**vars(self), "seeds": [self.seed], "seconds": seconds, "cycles": cycles}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "History":
        """Read what `save` wrote. Raises ValueError, naming the file, where it is not that."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            values = {setting.name: content[setting.name] for setting in fields(cls)}
            cycles = records_of(values.pop("cycles"), of_labels=False)
            if not isinstance(values["settings"]["data"], str):
                raise ValueError("settings without the name of the data")
            return cls(**values, cycles=cycles)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is not a saved history, or damaged ({type(error).__name__}: {error})") from None


def records_of(cycles: list[dict[str, Any]], of_labels: bool = True) -> list[Record]:
    """Records of cycles, as JSON has them. Raises ValueError or TypeError for what is none.

    `of_labels`: whether every cycle has an accuracy; otherwise every cycle has one, or none.
    """
    records = [Record(layer=None, **cycle) for cycle in cycles]
    of_labels = of_labels or any(record.test_accuracy is not None for record in records)
    for record in records:
        number = record.test_accuracy if of_labels else record.loss
        if not isinstance(record.cycle, int) or not isinstance(number, float) or not math.isfinite(number):
            raise ValueError("a cycle without number or accuracy")
    return records


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A file to write that takes the place of `path` when it is complete, and is gone when it is not.

    Where `path` is a link, of the file that it leads to. Raises OSError for a device or a pipe.
    """
    refuse_special(path)
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{os.getpid()}.{threading.get_native_id()}.part")  # as short as names have to be
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())  # else a power cut could leave an empty file in its place
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_special(path: str | os.PathLike) -> None:
    """Raise OSError for what exists and is no plain file: no other may take its place."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(errno.EINVAL, "it is a folder, a device or a pipe, and no plain file", str(path))


@functools.cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on; in a checkout, of the code by its commit."""
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "rso-lab")
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):  # run from a folder, say
            found[package] = version(package)
    here = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, no checkout
        git = functools.partial(subprocess.check_output, cwd=here, stderr=subprocess.DEVNULL, text=True)
        git(["git", "ls-files", "--error-unmatch", __file__])  # a checkout of this kit, and not around it
        changed = git(["git", "status", "--porcelain", "--untracked-files=no", "."]).strip()
        found["commit"] = git(["git", "rev-parse", "HEAD"]).strip() + (", changed" if changed else "")
    return found


def machine(device: torch.device) -> str:
    """Processor, cores and threads, and the GPU where one is used."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = next(iter(models), platform.processor() or platform.machine())
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"{platform.system()}, {processor}, {os.cpu_count()} cores, threads: {torch.get_num_threads()}{gpu}"


def save_weights(model: nn.Module, path: str | os.PathLike) -> None:
    """Write a state dict that torch.load(weights_only=True) reads, also where there is no GPU."""
    weights = io.BytesIO()  # torch.save's own writing of files hides what went wrong
    torch.save({name: value.cpu() for name, value in model.state_dict().items()}, weights)
    with replacing(path) as file:
        file.write_bytes(weights.getbuffer())
