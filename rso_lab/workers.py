"""Threads side by side, each with one thread of torch's own.

torch's own threads wait for each other after every operation; where anything else runs on the machine, small operations
then take many times as long. Whole tasks side by side need not wait.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any

import torch


class Workers:
    """A number of threads that run tasks. See `workers`."""

    def __init__(self, count: int):
        self.count = count
        if count > 1:
            barrier = threading.Barrier(count)

            def begin() -> None:
                torch.set_num_threads(1)  # of this thread, and of those that begin after it
                torch.get_num_threads()  # has torch read it now: it would take what is set at the first operation
                barrier.wait()

            threads = torch.get_num_threads()
            self.pool = ThreadPoolExecutor(count, initializer=begin)
            list(self.pool.map(lambda _: None, range(count)))
            torch.set_num_threads(threads)

    def run(self, tasks: Sequence[Callable[[], Any]], team: int | None = None) -> list[Any]:
        """What the tasks give, in their order, without gradients; run by `team` of the threads (None: all)."""
        team = min(self.count if team is None else team, len(tasks), self.count)
        if team <= 1:
            return [task() for task in tasks]
        shares = [tasks[len(tasks) * i // team : len(tasks) * (i + 1) // team] for i in range(team)]
        here = shares.pop(0) if torch.get_num_threads() == 1 else []  # a thread like a worker takes a share itself
        others = [self.pool.submit(_run_all, share) for share in shares]
        results = [task() for task in here]
        for other in others:
            results += other.result()
        return results


@torch.no_grad()
def _run_all(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    return [task() for task in tasks]


_made: dict[int, Workers] = {}


def _begin_anew() -> None:
    """A forked process has none of its parent's threads, neither these nor torch's own, which it would wait for."""
    for made in _made.values():
        made.count = 1
    _made.clear()
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def workers() -> Workers:
    """As many as torch has threads: set OMP_NUM_THREADS or torch.set_num_threads for another number."""
    count = torch.get_num_threads()
    if count not in _made:
        _made[count] = Workers(count)
    return _made[count]


def single_threaded(function: Callable) -> Callable:
    """Leave the other cores to the workers: torch's own threads would spin there for a while after each operation."""

    @wraps(function)
    def alone(*args: Any, **kwargs: Any) -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*args, **kwargs)
        except SystemError as error:  # what numba makes of an interrupt that meets a kernel, once or twice
            cause: BaseException | None = error
            while isinstance(cause, SystemError):
                cause = cause.__cause__
            raise cause if isinstance(cause, KeyboardInterrupt) else error from None
        finally:
            torch.set_num_threads(threads)

    return alone
