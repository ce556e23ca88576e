"""What a run will take, before it begins: multiply-adds, counted, and seconds on this machine, from a short trial."""

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from rso_lab.counts import layer_costs
from rso_lab.data import Data
from rso_lab.descent import batches_of, descend
from rso_lab.judge import measured
from rso_lab.rso import RSO, Sweep, one_by_one, search_cycle, searched_layers
from rso_lab.train import Job, Method, prepare
from rso_lab.visits import sweeps

TRIAL = 0.3  # seconds that a layer is tried for


@dataclass(frozen=True)
class Part:
    """A layer sweep, or what else a cycle consists of."""

    name: str
    proposals: int
    multiply_adds: int
    seconds: float


@dataclass(frozen=True)
class Cost:
    """Of a cycle, or epoch, on this machine; `str` makes a table of it."""

    unit: str  # "cycle" or "epoch"
    count: int  # that the run will have
    evaluator: str
    parts: list[Part]

    @property
    def multiply_adds(self) -> int:
        """Of a cycle."""
        return sum(part.multiply_adds for part in self.parts)

    @property
    def seconds(self) -> float:
        """Of a cycle, estimated."""
        return sum(part.seconds for part in self.parts)

    def __str__(self) -> str:
        width = max(len(part.name) for part in self.parts)
        lines = [f"{'':{width}}  proposals  multiply-adds     seconds"]
        for part in [*self.parts, Part(f"one {self.unit}", 0, self.multiply_adds, self.seconds)]:
            proposals = f"{part.proposals:,}" if part.proposals else ""
            lines.append(f"{part.name:{width}}  {proposals:>9}  {part.multiply_adds:>13.2e}  {part.seconds:>10,.1f}")
        whole = _spoken(self.count * self.seconds)
        return "\n".join([*lines, f"{self.count} {self.unit}s, {self.evaluator}: about {whole} on this machine"])


def cost(model: nn.Module, data: Data, method: Method, **options: Any) -> Cost:
    """Multiply-adds and estimated seconds of a cycle (of other methods than RSO an epoch), layer by layer.

    A copy of the model is searched for a moment in each layer; the model and torch's generator stay as they are. A
    `parallel` search is tried one weight after another. Options and errors as for `fit`, without checkpoints.
    """
    job = prepare(copy.deepcopy(model), data, method, seed=0, **options)
    parts = _sweeps(job, job.method) if isinstance(job.method, RSO) else [_epoch(job)]

    def judge() -> None:
        job.network.stale = set(job.network.batch_norms)
        job.network.refresh_statistics(job.data.x_train)
        measured(job.network, job.data, job.loss, job.metric)

    parts.append(Part("statistics, accuracy", 0, 0, _seconds(judge)))
    if isinstance(job.method, RSO):
        return Cost("cycle", job.method.cycles, job.computed_by, parts)
    return Cost("epoch", job.method.epochs, job.computed_by, parts)


def _sweeps(job: Job, settings: RSO) -> list[Part]:
    assert job.evaluator is not None
    network, size = job.network, len(job.data.x_train)
    network.refresh_statistics(job.data.x_train)
    costs = layer_costs(network, job.data.x_train, settings, job.evaluator.name)
    parts = []
    for number, (layer, visits) in enumerate(
        sweeps(searched_layers(network, settings), settings.level, settings.order, settings.layer_order)
    ):
        sweep = Sweep(1, layer, list(visits), job.sigmas, network.module, size, settings, job.evaluator)
        cost, tried = costs[layer.name if layer else None], 3 if settings.opposite else 2
        proposals = len(sweep.visits) * settings.batch_size * (tried - 1 if cost.batch else tried)
        counted = proposals * cost.candidate + sweep.rows * cost.batch
        seconds = _try_sweep(job, settings, number, len(sweep.visits), len(sweep.held))
        parts.append(Part(layer.name if layer else "all layers", len(sweep.visits), counted, seconds))
    return parts


def _try_sweep(job: Job, settings: RSO, number: int, proposals: int, batches: int) -> float:
    """Seconds of a sweep with so many proposals and mini-batches, from its first ones."""
    assert job.evaluator is not None
    steps = search_cycle(
        1, job.sigmas, job.network, job.data, settings, job.evaluator, job.generator, one_by_one, first_sweep=number
    )
    first = 0.0
    batch: Tensor | None = None
    beginning: list[float] = []  # seconds of the others that begin a mini-batch, and of those that go on with one
    going: list[float] = []
    begun = last = time.perf_counter()
    for step in itertools.islice(steps, proposals):
        step.chosen.item()  # a GPU's is there now
        now = time.perf_counter()
        if batch is None:
            first = now - last
        else:
            (going if step.batch is batch else beginning).append(now - last)
        batch, last = step.batch, now
        if now - begun > TRIAL + first and len(beginning) + len(going) > 1:
            break
    if batches > 1 and not beginning:  # the first mini-batch lasts longer than the trial
        rows = batch
        assert rows is not None
        beginning = [_seconds(partial(job.evaluator.begin_batch, rows)) + _mean(going)]
    steps.close()  # type: ignore[attr-defined]
    return first + (batches - 1) * _mean(beginning) + (proposals - batches) * _mean(going)


def _epoch(job: Job) -> Part:
    assert job.stepper is not None
    assert not isinstance(job.method, RSO)
    batches, times = batches_of(job.data, job.method), []
    begun = last = time.perf_counter()
    for _ in descend(job.network, job.data, job.method, job.stepper, job.generator):
        times.append(time.perf_counter() - last)
        last = time.perf_counter()
        if last - begun > 3 * TRIAL and len(times) > 2:
            break
    mean = _mean(times[1:] or times)  # the first makes room
    return Part("steps", batches * job.stepper.evaluations, batches * job.stepper.multiply_adds, batches * mean)


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _mean(times: list[float]) -> float:
    return sum(times) / len(times) if times else 0.0


def _spoken(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"
