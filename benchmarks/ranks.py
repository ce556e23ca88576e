"""One rank and two beside each other, started by torchrun: seconds of a cycle, and the checksum of its weights.

    python benchmarks/ranks.py     (five minutes on two cores, with one thread a rank)

The paper's network on digits, mini-batches of 1000 held for a neuron. Prints a table, how long it takes two ranks to
tell each other a few numbers, and one line of JSON.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import rso_lab as rso
from rso_lab.history import machine, versions
from rso_lab.ranks import joined

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TRAIN = ["--model", "paper_cnn", "--cycles", "1", "--batch-size", "1000", "--batch-every", "neuron"]


def torchrun(count: int, *command: str) -> str:
    """What so many ranks of one thread each print."""
    ranks = [*TORCHRUN, f"--nproc-per-node={count}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*ranks, *command], env=environment, capture_output=True, text=True, check=True).stdout


def train(count: int, parallel: str | None) -> tuple[float, float, str]:
    """Seconds, accuracy and the weights' checksum after a cycle."""
    with tempfile.TemporaryDirectory() as folder:
        out, weights = Path(folder) / "run.json", Path(folder) / "weights.pt"
        apart = ["--parallel", parallel] if parallel else []
        torchrun(count, "-m", "rso_lab", "train", *TRAIN, *apart, "--out", str(out), "--weights", str(weights))
        (record,) = rso.History.load(out).cycles
        state = torch.load(weights, weights_only=True)
    digest = hashlib.sha256()
    for value in state.values():
        digest.update(value.numpy().tobytes())
    assert record.test_accuracy is not None
    return record.seconds, record.test_accuracy, digest.hexdigest()[:16]


def latency() -> None:
    """In each of the ranks: how long it takes to have a few numbers of all of them."""
    with joined() as ranks:
        numbers = torch.zeros(2, 33, dtype=torch.float64)  # of two candidates: mean, squares of 16 channels, a count
        for times in (100, 2000):  # the first do not count
            begun = time.perf_counter()
            for _ in range(times):
                ranks.gather(numbers)
            seconds = (time.perf_counter() - begun) / times
        if ranks.rank == 0:
            print(f"{1e6 * seconds:.0f}")


def main() -> None:
    """Run all, print the table and the line of JSON."""
    runs: list[dict[str, Any]] = []
    print(f"{'shared':20} {'ranks':>5} {'seconds':>8} {'accuracy':>9}  weights")
    for parallel, shared in ((None, "each mini-batch"), ("neuron", "neurons, apart"), ("layer", "weights, apart")):
        for count in (1, 2):
            seconds, accuracy, checksum = train(count, parallel)
            print(f"{shared:20} {count:5} {seconds:8.1f} {accuracy:9.1%}  {checksum}", flush=True)
            run = {"ranks": count, "seconds": seconds, "test_accuracy": accuracy, "weights": checksum}
            runs.append({"parallel": parallel, **run})
    microseconds = int(torchrun(2, __file__, "--latency"))
    print(f"two ranks tell each other 66 numbers in {microseconds} us")
    about = {"command": "python benchmarks/ranks.py", "seeds": [0], "settings": {"train": TRAIN}}
    about |= {"machine": machine(torch.device("cpu")), "versions": versions()}
    seconds = sum(run["seconds"] for run in runs)
    print(json.dumps({**about, "seconds": seconds, "latency_us": microseconds, "runs": runs}))


if __name__ == "__main__":
    latency() if sys.argv[1:] == ["--latency"] else main()
