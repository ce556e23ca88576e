"""Several learners on one machine, as on a JupyterHub: each runs lesson 00 in a kernel of their own, all at once.

    python benchmarks/learners.py 1 4 8     (five minutes on two cores)

Prints, for each number of learners, how long the lesson took them, the slowest cell, and the memory of a kernel: the
largest share that it had (PSS: pages that several processes use are split between them). Then one line of JSON.
"""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import psutil
import torch
from nbclient import NotebookClient

from rso_lab.history import machine, versions

LESSON = Path(__file__).parent.parent / "notebooks" / "complete" / "00_start_here.ipynb"


def learn(_: int) -> tuple[float, float]:
    """Seconds that the lesson takes, and its slowest cell after the first, which imports everything."""
    notebook = nbformat.read(LESSON, as_version=4)
    client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": LESSON.parent}})
    cells = []
    begun = time.perf_counter()
    client.on_cell_start = lambda **_: cells.append(time.perf_counter())
    client.execute()
    ends = [*cells[1:], time.perf_counter()]
    return ends[-1] - begun, max(end - start for start, end in zip(cells[1:], ends[1:], strict=True))


def watch(stop: threading.Event, largest: dict[int, int]) -> None:
    """Note how much memory each kernel has at most."""
    while not stop.wait(0.5):
        for process in psutil.Process().children(recursive=True):
            try:
                memory = process.memory_full_info().pss
            except psutil.Error:  # it has ended
                continue
            largest[process.pid] = max(largest.get(process.pid, 0), memory)


def main() -> None:
    """Measure, and print."""
    measured = []
    print(f"{'learners':>8} {'lesson, seconds':>18} {'slowest cell':>13} {'a kernel, MB':>13}")
    for count in map(int, sys.argv[1:]):
        stop: threading.Event = threading.Event()
        largest: dict[int, int] = {}
        watching = threading.Thread(target=watch, args=(stop, largest))
        watching.start()
        with ThreadPoolExecutor(count) as learners:
            took = list(learners.map(learn, range(count)))
        stop.set()
        watching.join()
        seconds, cell = (max(column) for column in zip(*took, strict=True))
        megabytes = max(largest.values()) / 1e6
        print(f"{count:8} {seconds:18.1f} {cell:11.1f} s {megabytes:13.0f}", flush=True)
        measured.append({"learners": count, "seconds": seconds, "slowest_cell": cell, "megabytes": megabytes})
    command = " ".join(["python benchmarks/learners.py", *sys.argv[1:]])
    about = {"command": command, "seeds": [0], "settings": {"lesson": LESSON.stem}}
    about |= {"machine": machine(torch.device("cpu")), "versions": versions()}
    print(json.dumps({**about, "seconds": sum(row["seconds"] for row in measured), "learners": measured}))


if __name__ == "__main__":
    main()
