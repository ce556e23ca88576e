"""Where people run the kit: other processes and threads, installations, files, terminals and streams."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

import rso_lab as rso
from rso_lab.__main__ import main

BEGUN = """
import os, sys, torch
torch.set_num_threads(2)
import rso_lab as rso
from rso_lab.__main__ import main
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
from rso_lab import __main__, train
train.steps = lambda *_, **__: iter([None])  # compiling takes half a minute
sys.exit(__main__.main(["doctor"]))
"""


def test_without_a_place_for_compiled_loops_they_are_compiled_anew():
    ended = run_python(NO_PLACE)
    assert ended.returncode == 0
    assert "note   numba finds no folder" in ended.stdout
    assert "to mend it: name a folder" in ended.stdout
    assert ended.stderr.count("NUMBA_CACHE_DIR") == 1


def test_a_numba_that_cannot_be_imported_or_is_switched_off(tmp_path):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise SystemError('built for another numpy')")
    ending = "\nfrom rso_lab.fused import kernels\nprint(kernels)"
    assert run_python(BEGUN + ending, PYTHONPATH=f"{tmp_path}{os.pathsep}{os.getcwd()}").stdout == "None\n"
    assert run_python(BEGUN + ending, NUMBA_DISABLE_JIT="1").stdout == "None\n"


TRAIN = ["train", "--cycles", "1", "--batch-size", "50", "--batch-every", "layer"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("option", ["--out", "--weights"])
def test_a_file_never_takes_the_place_of_what_is_no_plain_file(tmp_path, option, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/null", tmp_path):
        assert main([*TRAIN, option, str(path)]) == 1
        out, err = capsys.readouterr()
        assert "no plain file" in err
        assert "cycle" not in out
    assert pipe.is_fifo()


def test_a_link_leads_to_its_file(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    for content in ("old", None):  # None: a link to what is not there yet
        if content:
            real.write_text(content)
            link.symlink_to(real.name)
        else:
            real.unlink()
        assert main([*TRAIN, "--out", str(link)]) == 0
        assert link.is_symlink()
        assert len(rso.History.load(real).cycles) == 1
    assert sorted(tmp_path.iterdir()) == [link, real]


@pytest.mark.parametrize(
    "options",
    [
        ["--out", 300 * "x"],
        ["--weights", "nul\0"],
        ["--checkpoint", 300 * "x"],
        ["--checkpoint", "file/in/the/way"],
        ["--out", "same", "--checkpoint", "same"],
        ["--out", "folder/run.json", "--checkpoint", "folder"],
        ["--weights", "folder", "--checkpoint", "folder/below"],
    ],
)
def test_names_that_cannot_be_are_refused_before_training(tmp_path, monkeypatch, options, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main([*TRAIN, *options]) in (1, 2)
    out, err = capsys.readouterr()
    assert "cycle 1" not in out
    assert options[1][:3] in err
    assert os.listdir() == ["file"]


def test_a_name_as_long_as_may_be(tmp_path):
    assert main([*TRAIN, "--out", str(tmp_path / (255 * "x"))]) == 0


STREAMS = f"""
import io, os, sys
import rso_lab as rso
from rso_lab.__main__ import main
data = rso.load("digits", train_limit=60, test_limit=9)
pipe = io.TextIOWrapper
def gone():
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w")
codes, console = [], sys.__stdout__
for out, err in ((None, None), (pipe(io.BytesIO(), "ascii"), pipe(io.BytesIO(), "cp437")), (gone(), gone())):
    for command in (["train", "--help"], ["experiments"], {TRAIN}):
        sys.stdout, sys.stderr = out, err
        codes.append(main(command))
    sys.stdout, sys.stderr = (out, err) if out is None else (console, console)
    rso.fit(rso.models.build("one_conv", data), data, rso.RSO(1, 20, level="network"), seed=0)
print(codes, file=console)
"""


def test_any_stream_will_do():
    ended = run_python(STREAMS)
    assert ended.stdout.splitlines()[-1] == "[0, 0, 0, 0, 0, 0, 141, 0, 0]"
