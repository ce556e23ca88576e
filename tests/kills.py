"""Kill a training run again and again, at random moments, and resume it: python tests/kills.py 200.

Each run has to end in the weights and the history of one that was never disturbed. Forks: for Linux and macOS.
"""

import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

import rso_lab as rso
from rso_lab import checkpoint
from rso_lab.history import replacing

METHOD = rso.RSO(2, 50, batch_every="neuron")
DATA = rso.load("digits", train_limit=150, test_limit=60)


def train(folder: Path, end: Path) -> None:
    """Train, from the latest checkpoint if there is one; at the end, write weights and history."""
    torch.set_num_threads(1)
    checkpoint.EVERY = 0.0  # so that many kills hit a writing
    model = rso.models.build("two_conv", DATA)
    history = rso.fit(model, DATA, METHOD, seed=0, checkpoint=folder, resume=True)
    records = [(record.cycle, record.loss, record.test_accuracy, record.kept) for record in history.cycles]
    with replacing(end) as file:
        torch.save((model.state_dict(), records), file)


def process(*arguments: Path) -> multiprocessing.Process:
    """A process that trains, begun."""
    started = multiprocessing.get_context("fork").Process(target=train, args=arguments)
    started.start()
    return started


def soak(kills: int, seed: int = 0) -> tuple[int, int]:
    """How many runs were made, and how many of them ended as the undisturbed one; `kills` in all."""
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder, end = Path(name) / "state", Path(name) / "end.pt"
        begun = time.monotonic()
        process(folder, end).join()
        seconds = time.monotonic() - begun
        weights, records = torch.load(end)
        killed = runs = same = 0
        while killed < kills:
            shutil.rmtree(folder)
            end.unlink()
            while not end.exists():
                training = process(folder, end)
                training.join(moments.uniform(0, seconds) if killed < kills else None)
                if training.is_alive():
                    training.kill()
                    training.join()
                    killed += 1
                elif training.exitcode:
                    raise RuntimeError(f"the run ended by itself with {training.exitcode}")
            theirs, found = torch.load(end)
            runs += 1
            same += found == records and all(torch.equal(theirs[name], weights[name]) for name in weights)
    return runs, same


if __name__ == "__main__":
    kills = int(sys.argv[1])
    runs, same = soak(kills)
    print(f"{kills} kills of {runs} runs: {same} ended in the weights and the history of the undisturbed one")
    sys.exit(same < runs)
