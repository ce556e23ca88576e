"""Several processes that share a search, started by torchrun: which one this is, and what they tell each other."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor


class RanksError(RuntimeError):
    """The ranks cannot go on together."""


T = TypeVar("T")
Shared = TypeVar("Shared", Tensor, list)


@dataclass(frozen=True)
class Ranks:
    """This process is `rank` of `count`: the only one, unless there are more."""

    rank: int = 0
    count: int = 1

    def own(self, items: Shared) -> Shared:
        """This rank's share: every item is one rank's."""
        return items[self.rank :: self.count]

    def gather(self, numbers: Tensor) -> list[Tensor]:
        """What every rank has in place of these numbers, in their order. Raises RanksError where one has ended."""
        if self.count == 1:
            return [numbers]
        found = [torch.empty_like(numbers) for _ in range(self.count)]
        with _one_may_have_ended():
            dist.all_gather(found, numbers.contiguous())
        return found

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over the ranks, added in their order: all have the same, to the last bit."""
        total, *others = self.gather(numbers)
        for other in others:
            total = total + other
        return total

    def mean(self, means: Tensor, count: int) -> Tensor:
        """Means (...), float64, over this rank's `count` images, put together to those over all ranks' images."""
        if self.count == 1:
            return means
        sums = self.sum(torch.cat([means.flatten() * count, means.new_tensor([count])]))
        return (sums[:-1] / sums[-1]).view_as(means)

    def first(self, value: T) -> T:
        """What rank 0 has in place of this value."""
        if self.count == 1:
            return value
        box: list[Any] = [value]
        with _one_may_have_ended():
            dist.broadcast_object_list(box)
        return box[0]

    def refuse_to_disagree(self, tensors: Sequence[Tensor], about: str, settings: object = None) -> None:
        """Raise RanksError where the ranks' tensors differ in a bit, or what `settings` prints as."""
        if self.count == 1:
            return
        digest = hashlib.sha256(repr(settings).encode())
        for tensor in tensors:
            as_bytes = tensor.detach().cpu().reshape(-1).view(torch.uint8)  # numpy has no bfloat16
            digest.update(as_bytes.numpy().tobytes())
        mine = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
        if any(not torch.equal(other, mine) for other in self.gather(mine)):
            raise RanksError(f"the ranks disagree about {about}: are their processors and packages the same?")


ALONE = Ranks()


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun has started with this one, if it has.

    What is on the CPU goes over gloo, what is on a GPU over NCCL; then "cuda" is this process's own GPU.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched():
        yield ALONE
        return
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _one_may_have_ended() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RanksError(f"another rank has ended, or does not answer ({error})") from error
