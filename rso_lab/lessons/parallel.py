"""Lesson 07: moves that were chosen apart, what is left of them when they are merged, and what workers gain."""

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from rso_lab import counts, experiments, rso
from rso_lab.data import Data
from rso_lab.graph import Network
from rso_lab.history import History
from rso_lab.lessons.answers import advise, ask
from rso_lab.models import build
from rso_lab.train import histories, steps

Place = tuple[str, rso.Index]  # a parameter's dotted name, and where in it

PAIRS: dict[str, tuple[Place, Place]] = {  # of one_conv's weights
    "one filter, neighbours": (("conv1.weight", (3, 0, 0, 0)), ("conv1.weight", (3, 0, 1, 0))),
    "one filter, its corners": (("conv1.weight", (1, 0, 0, 0)), ("conv1.weight", (1, 0, 0, 2))),
    "two filters": (("conv1.weight", (2, 0, 1, 2)), ("conv1.weight", (3, 0, 2, 0))),
    "one output neuron": (("fc.weight", (0, 3)), ("fc.weight", (0, 12))),
    "two layers": (("conv1.weight", (3, 0, 2, 0)), ("fc.weight", (0, 60))),
}


class TwoWeights:
    """The loss of one_conv with random weights over two of them; on 500 images. Moves are in units of sigma_d."""

    def __init__(self, data: Data, one: Place, other: Place):
        self.model = build("one_conv", data)
        self.x, self.y = data.x_train[:500], data.y_train[:500]
        sigmas = rso.initial_sigmas(Network(self.model, self.x[:2]), rso.RSO(1, 1))
        self.weights = [self.model.get_parameter(name).detach()[index] for name, index in (one, other)]
        self.start = [weight.item() for weight in self.weights]
        self.sigmas = [sigmas[name] for name, _ in (one, other)]

    @torch.no_grad()
    def loss(self, *moves: float) -> float:
        """The loss with the two weights moved by so much from where they are; they are put back."""
        try:
            for weight, start, sigma, move in zip(self.weights, self.start, self.sigmas, moves, strict=True):
                weight.fill_(start + move * sigma)
            return F.cross_entropy(self.model(self.x), self.y).item()
        finally:
            for weight, start in zip(self.weights, self.start, strict=True):
                weight.fill_(start)

    def surface(self, places: NDArray) -> NDArray:
        """The loss (other, one) with each of them moved to each of the places (n,)."""
        return np.array([[self.loss(one, other) for one in places] for other in places])

    def best_moves(self, size: float) -> tuple[float, float]:
        """What each weight would do by itself, the other resting: the best of 0, size and -size."""

        def best(losses: list[float]) -> float:
            return (0.0, size, -size)[int(rso.choose(torch.tensor(losses, dtype=torch.float64)))]

        moves = (0.0, size, -size)
        return best([self.loss(move, 0.0) for move in moves]), best([self.loss(0.0, move) for move in moves])


def _merged(before: Tensor, found: list[Tensor]) -> Tensor:
    merged = before.clone()
    for neuron, weights in enumerate(found):
        merged[neuron] = weights[neuron]
    return merged


def _columns(before: Tensor, found: list[Tensor]) -> Tensor:
    merged = before.clone()
    for number, weights in enumerate(found[: before.shape[1]]):
        merged[:, number] = weights[:, number]
    return merged


_MERGE_MISTAKES: list[tuple[Callable[..., Any], str]] = [
    (
        lambda bf: sum(bf[1]) / len(bf[1]),
        "You take the mean. Neuron i was searched by worker i alone: take that one's.",
    ),
    (lambda bf: sum(bf[1]), "You add up whole tensors: each has the old weights in it, too, so they count many times."),
    (lambda bf: bf[0] + sum(bf[1]), "You add whole tensors to the old weights. Set each neuron to what was found."),
    (lambda bf: bf[1][-1], "That is what the last worker has. It knows nothing of what the others found."),
    (lambda bf: bf[1][0], "That is what the first worker has. Is the return within the loop?"),
    (lambda bf: bf[0], "Those are the weights before the sweep: nothing of what was found is in them."),
    (
        lambda bf: torch.stack(bf[1]).amax(0),
        "You take the larger weight. Better is what lowers the loss, not what is larger.",
    ),
    (
        lambda bf: torch.stack([old + worker[i] for i, (old, worker) in enumerate(zip(*bf, strict=False))]),
        "The old neuron is in `merged` already: = in place of +=.",
    ),
    (lambda bf: _columns(*bf), "You take input channels, weights[:, i]. A neuron is weights[i]."),
]


def check_merge(answer: Callable[[Tensor, list[Tensor]], Tensor]) -> bool:
    """Check a learner's `merge(before, found)`: says what to change; returns whether it is right."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(3, 4, 3, 3, generator=generator)
    found = [before.clone() for _ in range(3)]
    for neuron, weights in enumerate(found):
        weights[neuron] += 0.5 * torch.randn(4, 3, 3, generator=generator)
    given_before, given_found = before.clone(), [weights.clone() for weights in found]
    given = ask("merge", answer, given_before, given_found, wanted="the merged tensor")
    if given is None:
        return False
    if not isinstance(given, Tensor):
        print(f"Not yet: a tensor is wanted, your answer was of the type {type(given).__name__}.")
        return False
    if given.shape != before.shape:
        print(f"Not yet: the merged tensor has the shape {tuple(before.shape)}, yours has {tuple(given.shape)}.")
        return False
    given, right = given.to(before.dtype), _merged(before, found)
    if not torch.allclose(given, right, atol=1e-6):
        wrong = [i for i in range(3) if not torch.allclose(given[i], right[i], atol=1e-6)]
        print(f"Not yet. Of 3 neurons, these are not as their workers left them: {', '.join(map(str, wrong))}.")
        advise([given], [(before, found)], _MERGE_MISTAKES)
        return False
    if not torch.equal(given_before, before):
        print(
            "Not yet: the values are right, but `before` was changed. Others may still read it: begin with a clone()."
        )
        return False
    if not all(torch.equal(mine, theirs) for mine, theirs in zip(given_found, found, strict=True)):
        print("Not yet: the values are right, but you changed what a worker found. Begin with before.clone().")
        return False
    print("Right: each neuron is as its own worker left it.")
    return True


class SearchedApart:
    """The second convolution of two_conv after some cycles of training: moves chosen apart, and what they gain merged.

    Its weights are searched on 500 images, in units of the first sigma_d. The network stays as it is.
    """

    def __init__(self, data: Data, cycles: int = 1):
        self.data = Data.from_arrays(data.x_train[:500], data.y_train[:500], data.x_test, data.y_test)
        self.model = build("two_conv", data)
        sigma = self._spread()
        if cycles:
            method = rso.RSO(cycles, min(250, len(data.x_train)), batch_every="neuron", sigma_end=1.0)
            for _ in histories(self.model, data, method, seed=0):  # a bar moves meanwhile
                pass
        self.unit = sigma / self._spread()  # a search measures sigma_d anew
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith("conv2."))
        self.state = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.before = self._loss()

    def choose(self, apart: str, step: float) -> list[rso.Step]:
        """A sweep with the weights ("layer") or neurons ("neuron") apart, sigma being `step` times sigma_d."""
        rows = len(self.data.x_train)
        method = rso.RSO(1, rows, parallel=apart, sigma_scale=step * self.unit, batch_every="layer")  # type: ignore[arg-type]
        found = list(steps(self.model, self.data, method, seed=0))
        self._put_back()
        return found

    @torch.no_grad()
    def gain(self, merged: Sequence[rso.Step]) -> float:
        """By how much the loss falls when these moves are made together."""
        for step in merged:
            sign = {"keep": 0, "plus": 1, "minus": -1}[step.choice]
            self.model.get_parameter(str(step.name))[step.index] += sign * float(step.delta)  # type: ignore[arg-type]
        try:
            return self.before - self._loss()
        finally:
            self._put_back()

    @torch.no_grad()
    def _loss(self) -> float:
        return F.cross_entropy(self.model(self.data.x_train), self.data.y_train).item()

    def _put_back(self) -> None:
        self.model.load_state_dict(self.state)

    def _spread(self) -> float:
        return self.model.get_parameter("conv2.weight").detach().std(correction=0).item()


def promised(found: Sequence[rso.Step]) -> float:
    """The sum of what each of these steps gained by itself."""
    return sum(step.losses.keep - getattr(step.losses, step.choice) for step in found)


def kept_promises(
    searched: SearchedApart, numbers: Sequence[int], sizes: Sequence[float], apart: str = "layer", count: int = 10
) -> NDArray:
    """The share (sizes, numbers) of the promised gain that is left when so many weights, or neurons, are merged.

    They are drawn `count` times at random. 1: all of it, 0: nothing, below: the loss rises.
    """
    generator = np.random.default_rng(0)
    rows = []
    for size in tqdm(sizes, desc="step sizes"):
        parts: dict[Any, list[rso.Step]] = {}
        for place, step in enumerate(searched.choose(apart, size)):
            parts.setdefault(step.index[0] if apart == "neuron" else place, []).append(step)
        pieces = list(parts.values())
        row = []
        for number in numbers:
            got = wanted = 0.0
            for _ in range(count if number < len(pieces) else 1):
                drawn = generator.choice(len(pieces), min(number, len(pieces)), replace=False)
                merged = [step for place in drawn for step in pieces[place]]
                got += searched.gain(merged)
                wanted += promised(merged)
            row.append(got / wanted)
        rows.append(row)
    return np.array(rows)


def clashing_pairs(searched: SearchedApart, count: int = 200) -> float:
    """The share of random pairs of weights whose moves gain less together than the better of them alone; step 1."""
    generator = np.random.default_rng(0)
    found = searched.choose("layer", 1.0)
    clashes = harm = 0
    for _ in tqdm(range(count), desc="pairs"):
        pair = [found[place] for place in generator.choice(len(found), 2, replace=False)]
        together = searched.gain(pair)
        clashes += together < max(promised([step]) for step in pair) - 1e-6  # rounding apart
        harm += together < 0
    print(f"{count} pairs: {clashes} gain less than the better one alone, {harm} of them raise the loss")
    return clashes / count


def train_apart(data: Data, parallel: str | None, cycles: int = 2) -> History:
    """Train two_conv with its convolutions searched one by one, or with their neurons or weights apart; a bar moves."""
    method = rso.RSO(cycles, min(250, len(data.x_train)), batch_every="neuron", parallel=parallel)  # type: ignore[arg-type]
    *_, history = histories(build("two_conv", data), data, method, seed=0)
    return history


@dataclass(frozen=True)
class Work:
    """A cycle of the paper's network on digits, as it was measured with one worker and with two (docs/ranks.md)."""

    apart: dict[int, float]  # seconds with so many workers, neurons apart
    together: dict[int, float]  # with each mini-batch shared
    layers: dict[str, float]  # share of the convolutions' multiply-adds, in the order of the search
    neurons: int  # of each convolution
    exchanges: dict[
        str, int
    ]  # of numbers, with each mini-batch shared: while a convolution and its batch norm are searched

    @property
    def share(self) -> float:
        """The share of the work that workers divide: halved, it took away what the second worker saved."""
        return 2 * (self.apart[1] - self.apart[2]) / self.apart[1]

    @property
    def exchange(self) -> float:
        """Seconds that an exchange took: what half of the images did not explain."""
        return (self.together[2] - self.together[1] / 2) / sum(self.exchanges.values())


@cache
def measured_work() -> Work:
    """From results/ranks.json; the layers' shares are counted."""
    recorded = json.loads((experiments.RESULTS / "ranks.json").read_text(encoding="utf-8"))["runs"]
    seconds = {(run["parallel"], run["ranks"]): run["seconds"] for run in recorded}
    settings = rso.RSO(1, 1000)
    x = torch.zeros(2, 1, 8, 8)
    network = Network(build("paper_cnn", Data.from_arrays(x, torch.tensor([0, 9]), x, torch.tensor([0, 9]))), x)
    costs = counts.layer_costs(network, x, settings, "incremental")
    layers = rso.searched_layers(network, settings)
    convolutions = [layer for layer in reversed(layers) if isinstance(layer.module, torch.nn.Conv2d)]
    work = {layer.name: layer.size * costs[layer.name].candidate for layer in convolutions}
    exchanges = dict.fromkeys(work, 0)
    for layer in layers:
        behind = sum(position > layer.position for position in network.batch_norms.values())
        place = layer.normalises or layer.name
        # The linear layer comes first: its few are counted with the convolution searched after it.
        exchanges[place if place in work else next(iter(work))] += layer.size * (1 + behind)
    return Work(
        apart={ranks: seconds["neuron", ranks] for ranks in (1, 2)},
        together={ranks: seconds[None, ranks] for ranks in (1, 2)},
        layers={name: multiply_adds / sum(work.values()) for name, multiply_adds in work.items()},
        neurons=16,
        exchanges=exchanges,
    )


@dataclass(frozen=True)
class Bar:
    """What a worker does for a while."""

    worker: int
    begin: float  # seconds
    length: float  # seconds
    kind: str  # "alone": every worker does it, "shared": its part, "waits", "exchanges"
    layer: str


def neurons_shared(work: Work, workers: int, share: float) -> list[Bar]:
    """A cycle in which workers share a convolution's neurons, `share` of the work being the convolutions'.

    Neurons are dealt out whole. What every worker does for itself is drawn in equal parts, one before each convolution.
    """
    total = work.apart[1]
    bars, now = [], 0.0
    for layer, part in work.layers.items():
        alone = total * (1 - share) / len(work.layers)
        each = total * share * part / work.neurons
        longest = math.ceil(work.neurons / workers) * each
        for worker in range(workers):
            mine = len(range(worker, work.neurons, workers)) * each
            bars.append(Bar(worker, now, alone, "alone", layer))
            bars.append(Bar(worker, now + alone, mine, "shared", layer))
            if longest - mine > 1e-9:
                bars.append(Bar(worker, now + alone + mine, longest - mine, "waits", layer))
        now += alone + longest
    return bars


def batches_shared(work: Work, workers: int, exchange: float) -> list[Bar]:
    """A cycle in which each worker has a slice of every mini-batch, an exchange taking so many seconds.

    There is one exchange, or several, for each weight: they are drawn in one piece for each convolution.
    """
    bars, now = [], 0.0
    for layer, part in work.layers.items():
        busy = work.together[1] * part / workers
        talk = work.exchanges[layer] * exchange if workers > 1 else 0.0
        for worker in range(workers):
            bars.append(Bar(worker, now, busy, "shared", layer))
            if talk:
                bars.append(Bar(worker, now + busy, talk, "exchanges", layer))
        now += busy + talk
    return bars


def length(bars: Sequence[Bar]) -> float:
    """Seconds until the last one is done."""
    return max(bar.begin + bar.length for bar in bars)


def on_processes(counts: Sequence[int] = (1, 2), cycles: int = 2) -> None:
    """Train one_conv on digits, neurons apart, on so many processes that torchrun starts; print seconds and checksums.

    A clock runs meanwhile: each process first imports torch, for some seconds. Where none can be started, says why.
    """
    found = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            out, weights = Path(folder) / "run.json", Path(folder) / "weights.pt"
            options = ["--cycles", str(cycles), "--batch-size", "200", "--parallel", "neuron"]
            options += ["--out", str(out), "--weights", str(weights)]
            begun = time.perf_counter()
            said = _torchrun(count, options, Path(folder) / "said.txt")
            if said is not None:
                print(f"torchrun --nproc-per-node {count} did not start or end well. Its last lines:\n{said}")
                return
            last = History.load(out).cycles[-1]
            found.append(_checksum(torch.load(weights, weights_only=True)))
        name = "1 process:  " if count == 1 else f"{count} processes:"
        times = f"{last.seconds:4.1f} s of search, {time.perf_counter() - begun:4.1f} s in all"
        print(f"{name} {last.test_accuracy:.1%} right, {times}, checksum of the weights {found[-1]}")
    same = len(set(found)) == 1
    print("The same weights, bit for bit." if same else "The weights differ: something is wrong with these processes.")


def _torchrun(count: int, options: list[str], output: Path) -> str | None:
    """Have so many processes train one_conv, a clock running; the end of what they said, if it went wrong."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    run += ["-m", "rso_lab", "train", "--dataset", "digits", "--model", "one_conv", *options]
    package = Path(rso.__file__).parents[1]  # where this package is, for a checkout that is not installed
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    clock = tqdm(desc=f"torchrun --nproc-per-node {count}", bar_format="{desc}: {elapsed}")
    with (
        clock,
        output.open("w") as file,
        subprocess.Popen(run, env=environment, stdout=file, stderr=subprocess.STDOUT) as process,
    ):
        try:
            for _ in _until_ended(process):
                clock.refresh()
        finally:
            process.terminate()  # where this cell was interrupted; torchrun ends the others
    if process.returncode == 0:
        return None
    return "\n".join(output.read_text(errors="replace").splitlines()[-3:])


def _until_ended(process: subprocess.Popen) -> Iterator[None]:
    while process.poll() is None:
        yield
        time.sleep(0.2)


def _checksum(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for value in weights.values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:8]
