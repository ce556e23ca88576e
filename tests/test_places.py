"""Where people run the kit: other processes and threads, installations, files, terminals and streams."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

import rso_lab as rso

BEGUN = """
import os, sys, torch
torch.set_num_threads(2)
import rso_lab as rso
data = rso.load("digits", train_limit=200, test_limit=20)
settings = rso.RSO(1, 100, batch_every="layer", layer_order="input_first")
search = rso.steps(rso.models.build("one_conv", data), data, settings, seed=0)
next(search)
"""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=60
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process forks here")
@pytest.mark.parametrize(
    "child",
    [
        "next(rso.steps(rso.models.build('one_conv', data), data, settings, seed=0))",  # a run of its own
        "next(search)",  # the parent's, with the threads that it had
        "torch.randn(999, 999) @ torch.randn(999, 999)",
    ],
)
def test_a_process_that_has_trained_may_fork(child):
    ending = f"""
if (pid := os.fork()) == 0:
    {child}
    os._exit(7)
next(search)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run_python(BEGUN + ending).stdout == "7\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process forks here")
def test_a_fork_waits_for_the_tracing_of_another_thread():
    traces, forked = threading.Event(), threading.Event()

    class Slow(nn.Linear):
        def forward(self, x):
            traces.set()
            forked.wait(0.5)
            return super().forward(x.flatten(1))

    data = rso.Data.from_arrays(torch.randn(8, 6), torch.arange(8) % 3, torch.randn(8, 6), torch.arange(8) % 3)
    thread = threading.Thread(target=lambda: next(rso.steps(Slow(6, 3), data, rso.RSO(1, 4), seed=0)))
    thread.start()
    traces.wait()
    if (pid := os.fork()) == 0:
        os._exit(int(nn.Module.__call__.__name__ != "_wrapped_call_impl" or hasattr(nn.Module.__call__, "__wrapped__")))
    forked.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_tracing_leaves_other_threads_alone(digits):
    found = []
    other = rso.models.build("one_conv", digits)

    class Interrupted(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            thread = threading.Thread(target=lambda: found.append(other(digits.x_test)))
            thread.start()
            thread.join()
            return self.head(x.flatten(1))

    next(rso.steps(Interrupted(), digits, rso.RSO(1, 20), seed=0))
    expected = other(digits.x_test)
    assert len(found) > 2
    assert all(torch.equal(outputs, expected) for outputs in found)


def test_two_threads_train_at_once(digits):
    def losses() -> list[float]:
        model = rso.models.build("one_conv", digits)
        return [step.losses.keep for step in rso.steps(model, digits, rso.RSO(1, 20), seed=0, evaluator="plain")]

    found: list[list[float]] = []
    threads = [threading.Thread(target=lambda: found.append(losses())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [losses()] * 2


NO_PLACE = """
import sys
import numba.core.caching as caching
for kind in (caching.CacheImpl, caching.CompileResultCacheImpl, caching.CodeLibraryCacheImpl):
    kind._locator_classes = []
from rso_lab import __main__, doctor
sys.exit(__main__.main(["doctor"]))
"""


def test_without_a_place_for_compiled_loops_they_are_compiled_anew():
    ended = run_python(NO_PLACE)
    assert ended.returncode == 0
    assert "note   numba finds no folder" in ended.stdout
    assert (
        "to mend it: name a folder that can be written to in the environment variable NUMBA_CACHE_DIR" in ended.stdout
    )
    assert ended.stderr.count("NUMBA_CACHE_DIR") == 1


def test_a_numba_that_cannot_be_imported_or_is_switched_off(tmp_path):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise SystemError('built for another numpy')")
    ending = "\nfrom rso_lab.fused import kernels\nprint(kernels)"
    assert run_python(BEGUN + ending, PYTHONPATH=f"{tmp_path}{os.pathsep}{os.getcwd()}").stdout == "None\n"
    assert run_python(BEGUN + ending, NUMBA_DISABLE_JIT="1").stdout == "None\n"
