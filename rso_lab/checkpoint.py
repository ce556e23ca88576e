"""Checkpoints: the state of a run between two layer sweeps, or epochs, from which it goes on bit for bit."""

import contextlib
import hashlib
import io
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin

import torch
from torch import Tensor, nn

from rso_lab.data import Data
from rso_lab.history import Record, replacing

EVERY = 5.0  # seconds between two writings at least


@dataclass(frozen=True)
class State:
    """All that a run goes on from, as torch.load(weights_only=True) reads it."""

    identity: dict[str, Any]  # what has to be the same, see `identify`
    weights: dict[str, Tensor]  # the network's state dict
    stale: list[str]  # batch norms whose statistics are out of date
    sigmas: dict[str, float]  # sigma_d of each parameter; RSO's
    descent: dict[str, Any]  # the state dict of the stepper; the other methods'
    generator: Tensor  # its state
    cycle: int  # the one that is next, or under way
    sweeps: int  # how many of it are done
    choices: dict[str, dict[str, int]]  # of these sweeps, counted: "all", and by layer
    evaluations: int
    multiply_adds: int
    seconds: float
    records: list[dict[str, Any]]  # of the cycles that are done


def identify(settings: dict[str, Any], seed: int, network: nn.Module, data: Data) -> dict[str, Any]:
    """What is compared before a run is resumed.

    Not compared: a loss beyond its name, a network beyond the shapes of its weights, packages and machine.
    """
    arrays = hashlib.sha256()
    for array in (data.x_train, data.y_train, data.x_test, data.y_test):
        arrays.update(array.cpu().contiguous().view(torch.uint8).numpy().data)  # numpy has no bfloat16
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    return {**settings, "seed": seed, "sha256 of the data": arrays.hexdigest(), "shapes of the network": shapes}


class Checkpoints:
    """A folder with the latest checkpoint of a run and the one before. One is whole, whenever the process ends."""

    def __init__(self, folder: str | os.PathLike, identity: dict[str, Any]):
        self.folder, self.identity = Path(folder), identity
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file: name a folder for the checkpoints")
        self.latest, self.previous = self.folder / "latest.pt", self.folder / "previous.pt"
        self.unwritten: State | None = None
        self.written_at = -EVERY

    def exist(self) -> bool:
        """Whether there is one, damaged or not."""
        return self.latest.exists() or self.previous.exists()

    def keep(self, state: State) -> None:
        """This is the state now; it is written unless another was a moment ago."""
        self.unwritten = state
        if time.monotonic() - self.written_at >= EVERY:
            self.write()

    def write(self) -> None:
        """Write the state that was kept last, if it is not written yet: its SHA-256, and what torch.save makes."""
        if self.unwritten is None:
            return
        content = io.BytesIO()
        torch.save(asdict(self.unwritten), content)
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / f"new.{os.getpid()}.pt"  # another process may write here, too
        with replacing(new) as temporary:
            temporary.write_bytes(hashlib.sha256(content.getbuffer()).digest() + content.getbuffer())
        if _is_whole(self.latest):
            with contextlib.suppress(FileNotFoundError):  # where the other was faster
                os.replace(self.latest, self.previous)
        os.replace(new, self.latest)
        self.unwritten, self.written_at = None, time.monotonic()

    def read(self) -> tuple[State | None, list[str]]:
        """The newest state that is whole, None where there is none, and what is wrong with the files.

        Raises ValueError, naming the difference, where it is another run's.
        """
        complaints = []
        for path in (self.latest, self.previous):
            try:
                state = _load(path)
            except FileNotFoundError:
                continue
            except ValueError as error:
                complaints.append(str(error))
                continue
            for key in {**self.identity, **state.identity}:
                there, here = state.identity.get(key), self.identity.get(key)
                if there != here:
                    raise ValueError(f"{path} is of another run, {key}: {there!r} there, {here!r} here")
            return state, complaints
        return None, complaints


def _load(path: Path) -> State:
    """Execute nothing. Raises ValueError for a file that is not a whole checkpoint."""
    whole = path.read_bytes()
    checksum, content = whole[:32], whole[32:]
    if hashlib.sha256(content).digest() != checksum:
        raise ValueError(f"{path} is damaged: its checksum is another")
    try:
        values = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        state = State(**{field.name: values[field.name] for field in fields(State)})
        parts: list[Any] = [state, *(Record(**record) for record in state.records)]
        for part in parts:
            for field in fields(part):
                if not _is_a(getattr(part, field.name), field.type):
                    raise TypeError(f"{field.name} of another kind")
        return state
    except Exception as error:  # torch lets through whatever it meets in what somebody else has written
        raise ValueError(f"{path} holds something else than a checkpoint ({type(error).__name__})") from None


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind, as annotations write it."""
    inner = get_args(kind)
    if kind is Any or not inner:
        return kind is Any or (isinstance(value, (int, float) if kind is float else kind) and value is not True)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is_a(k, inner[0]) and _is_a(v, inner[1]) for k, v in value.items())
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(v, inner[0]) for v in value)
    return any(_is_a(value, one) for one in inner)  # a union


def _is_whole(path: Path) -> bool:
    try:
        return bool(_load(path))
    except (FileNotFoundError, ValueError):
        return False
