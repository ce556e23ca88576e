"""Where people run the kit: other processes and threads, installations, files, terminals and streams."""

import errno
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

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
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process forks here")
def test_a_process_that_has_trained_may_fork():
    ending = """
for child in (
    lambda: next(rso.steps(rso.models.build("one_conv", data), data, settings, seed=0)),  # a run of its own
    lambda: next(search),  # the parent's, with the threads that it had
    lambda: torch.randn(999, 999) @ torch.randn(999, 999),
):
    if (pid := os.fork()) == 0:
        child()
        os._exit(7)
    next(search)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run_python(BEGUN + ending).stdout == "7\n7\n7\n"


@pytest.mark.filterwarnings("ignore:.*use of fork")
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_loop_of_ones_own_takes_data_from_worker_processes(method, digits):
    next(rso.steps(rso.models.build("one_conv", digits), digits, rso.RSO(1, 20), seed=0))  # threads and locks are here
    pairs = TensorDataset(digits.x_train[:60], digits.y_train[:60])

    def losses(**workers) -> list[float]:
        model = rso.models.build("one_conv", digits)
        optimizer = rso.RSOptimizer(model.named_parameters(), seed=0)
        loader = DataLoader(pairs, 20, **workers)
        return [optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y)) for x, y in loader]

    found = losses(num_workers=1, multiprocessing_context=method)
    assert found == losses()
    assert len(found) == 3


def test_a_process_that_is_spawned_trains(digits):
    arguments = (nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 10)), digits, rso.RSO(1, 20))
    child = multiprocessing.get_context("spawn").Process(target=rso.fit, args=arguments, kwargs={"seed": 0})
    child.start()
    child.join()
    assert child.exitcode == 0


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
        search = rso.steps(model, digits, rso.RSO(1, 20), seed=0, evaluator="plain")
        return [step.losses.keep for step in itertools.islice(search, 100)]

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


def test_a_full_disk_keeps_no_compiled_loop_from_running(monkeypatch):
    caching = pytest.importorskip("numba.core.caching")
    from rso_lab import kernels

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    kernels._tell_once.cache_clear()
    doubled = kernels.compiled(lambda x: 2 * x)
    with pytest.warns(UserWarning, match="cannot keep compiled loops .*No space left.*: make room") as told:
        assert (doubled(21), doubled(0.5)) == (42, 1)
    assert len(told) == 1


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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_figures_and_experiments_go_to_plain_files_alone(tmp_path, digits, capsys):
    run, pipe, figure = tmp_path / "run.json", tmp_path / "pipe", tmp_path / "figure"
    rso.fit(nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 10)), digits, rso.RSO(1, 20), seed=0).save(run)
    os.mkfifo(pipe)
    before = sorted(os.listdir("/dev"))
    for place in (pipe, "/dev/null", tmp_path, "/dev/stdout"):
        assert main(["plot", str(run), "--out", str(place)]) == 1
        assert re.search("no plain file|where the messages go", capsys.readouterr().err)
    for place in (pipe, "/dev/null", run):
        assert main(["experiment", "levels", "--folder", str(place)]) == 1
        assert "cannot be written (Not a directory)" in capsys.readouterr().err
    assert main(["plot", str(run), "--out", str(figure)]) == 0
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == [figure, pipe, run]
    assert sorted(os.listdir("/dev")) == before


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
from torch import nn
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
    rso.fit(nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 10)), data, rso.RSO(1, 20), seed=0)
print(codes, file=console)
"""


def test_any_stream_will_do():
    ended = run_python(STREAMS)
    assert ended.stdout.splitlines()[-1] == "[0, 0, 0, 0, 0, 0, 141, 0, 0]"


def test_training_needs_neither_jupyter_nor_matplotlib(tmp_path):
    done = run_python(f"""
import sys
sys.modules.update(dict.fromkeys(["ipywidgets", "IPython", "jupyterlab", "matplotlib"]))  # their import fails
import rso_lab as rso
from rso_lab.__main__ import main
data = rso.load("digits", train_limit=50, test_limit=20)
rso.fit(rso.models.build("one_conv", data), data, rso.RSO(1, 10, level="layer"), seed=0)
sys.exit(main(["train", "--level", "layer", "--cycles", "1", "--out", {str(tmp_path / "run.json")!r}]))
""")
    assert done.returncode == 0, done.stderr
