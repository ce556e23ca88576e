"""Is everything in place? Imports nothing but the standard library at first, to run where packages are missing."""

import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

INSTALL = f'"{sys.executable}" -m pip install'
ROOT = Path(__file__).parents[1]


class Finding(NamedTuple):
    """One thing looked at; a fault comes with the command that mends it."""

    kind: Literal["ok", "note", "fault"]
    text: str
    fix: str = ""


def examine() -> list[Finding]:
    """Look at Python, the packages, the widgets' extension, the device, the kernels, the data sets and their folder."""
    findings = [*_python(), *_packages()]
    if any(finding.kind == "fault" for finding in findings):
        return findings  # the rest needs the packages
    return [*findings, *_extension(), *_device(), *_kernels(), *_data_sets(), *_data_folder()]


def report() -> int:
    """Print every finding. Returns 1 if there is a fault, else 0: the exit code."""
    findings = examine()
    for finding in findings:
        _print(finding)
    faults = sum(finding.kind == "fault" for finding in findings)
    print(f"\n{faults} to mend" if faults else "\nAll is in place. Next: make lab, or python -m rso_lab train --help")
    return int(faults > 0)


def check() -> None:
    """The short form, for the first cell of a lesson: one line if all is well, else what is wrong and the fix."""
    findings = examine()
    faults = [finding for finding in findings if finding.kind == "fault"]
    for fault in faults:
        _print(fault)
    if not faults:
        torch = importlib.import_module("torch")
        cpu = f"CPU, threads: {torch.get_num_threads()}"
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
        print(f"Ready: Python {platform.python_version()}, torch {torch.__version__}, {device}.")


def compare_on_gpu() -> int:
    """Compare the fast evaluator on the GPU with the plain one on the CPU. Returns the exit code: 0 if they agree."""
    import torch

    from rso_lab.data import find

    script = ROOT / "benchmarks" / "gpu.py"
    if not torch.cuda.is_available():
        print("no CUDA device: there is nothing to compare")
        return 1
    if not script.exists():
        print(f"{script} is not there: install rso_lab from its source, with pip install -e .")
        return 1
    data = [] if find("mnist") else ["--small"]
    return subprocess.call([sys.executable, str(script), "--stages", "a", "--out", str(ROOT / "gpu"), *data])


def agrees(record: dict[str, Any]) -> bool:
    """Whether a record of `benchmarks/gpu.py --stages a` shows no choice that the plain evaluator would not make."""
    return record["float32"]["wrong"] == 0 and not any(record["different_in_float64"].values())


def _print(finding: Finding) -> None:
    print(f"{finding.kind:5}  {finding.text}")
    if finding.fix:
        print(f"       to mend it: {finding.fix}")


def _python() -> Iterator[Finding]:
    text = f"Python {platform.python_version()} ({sys.executable})"
    if sys.version_info < (3, 10):
        yield Finding("fault", f"{text}: 3.10 or newer is needed", "install a newer Python, delete .venv, make lab")
    else:
        yield Finding("ok", text)


def _packages() -> Iterator[Finding]:
    """Each package that pyproject.toml asks for: there, of a version in the range, and importable."""
    try:
        from packaging.requirements import Requirement

        requirements = [Requirement(line) for line in metadata.requires("rso-lab") or ()]
    except (ImportError, metadata.PackageNotFoundError) as error:
        yield Finding("fault", f"rso_lab is not installed in this environment ({error})", f"{INSTALL} -e . packaging")
        return
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement.name, str(requirement.specifier))


def _package(name: str, wanted: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    fix = f'{INSTALL} --upgrade "{name}{wanted}"'
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding("fault", f"{name} is not installed in this environment", fix)
    if not SpecifierSet(wanted).contains(found, prereleases=True):
        return Finding("fault", f"{name} {found} is installed, but {wanted} is needed", fix)
    if name == "jupyterlab":
        return Finding("ok", f"{name} {found}")  # the server's business, and a second and a half to import
    try:
        importlib.import_module({"scikit-learn": "sklearn"}.get(name, name))
    except Exception as error:  # a torchvision built for another torch raises RuntimeError, a missing library OSError
        again = "torch torchvision" if name.startswith("torch") else f'"{name}{wanted}"'
        text = f"{name} {found} cannot be imported ({type(error).__name__}: {error})"
        return Finding("fault", text, f"{INSTALL} --force-reinstall {again}")
    return Finding("ok", f"{name} {found}")


def _extension() -> Iterator[Finding]:
    """The part of ipywidgets that runs in JupyterLab: without it, widgets show as text."""
    from jupyter_core.paths import jupyter_path

    folders = [Path(path) / "@jupyter-widgets" / "jupyterlab-manager" for path in jupyter_path("labextensions")]
    if any((folder / "package.json").exists() for folder in folders):
        yield Finding("ok", "the widgets' JupyterLab extension")
    else:
        fix = f"{INSTALL} --force-reinstall jupyterlab_widgets, then start JupyterLab again from this environment"
        yield Finding("fault", "ipywidgets has no JupyterLab extension in this environment", fix)


def _device() -> Iterator[Finding]:
    import torch

    threads = f"CPU with {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        yield Finding(
            "ok", f"CUDA: {name}, {torch.cuda.get_device_properties().total_memory / 2**30:.0f} GB; {threads}"
        )
        paths = [path for path in (ROOT / "gpu/stage-a.json", ROOT / "results/gpu_stage_a.json") if path.exists()]
        records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        if any(name in record["machine"] and agrees(record) for record in records):
            yield Finding("ok", "the fast evaluator agrees with the plain one on such a card")
        else:
            yield Finding("note", "no record that the fast evaluator agrees on such a card: try doctor --gpu")
    else:
        yield Finding("note", f"no CUDA device: the lessons run on the {threads}")


def _kernels() -> Iterator[Finding]:
    """The fast evaluator's loops: compiled here the first time, and not behind a click."""
    from rso_lab.data import load
    from rso_lab.fused import kernels
    from rso_lab.models import build
    from rso_lab.rso import RSO
    from rso_lab.straight import are_compiled
    from rso_lab.train import steps

    data = load("digits")
    if kernels is not None and not are_compiled():
        print("Compiling the fast evaluator's loops, once: this takes about half a minute ...", flush=True)
    try:
        for order in ("input_first", "output_first"):  # loops for the layers before the last one, and for that
            next(steps(build("paper_cnn", data), data, RSO(1, 100, layer_order=order), seed=0))
    except Exception as error:
        text = f"the fast evaluator's loops cannot be compiled ({type(error).__name__}: {error})"
        yield Finding("fault", text, f"{INSTALL} --force-reinstall numba")
    else:
        if kernels is None:
            yield Finding("note", "numba compiles nothing here (is NUMBA_DISABLE_JIT set?): torch does it, more slowly")
        elif not kernels.kept:
            yield Finding("note", kernels.NO_PLACE, kernels.PLACE)
        else:
            yield Finding("ok", "the fast evaluator's loops are compiled")


def _data_sets() -> Iterator[Finding]:
    from rso_lab.data import find

    yield Finding("ok", "digits: inside scikit-learn, needs no file")
    for name in ("mnist", "cifar10"):
        path = find(name)
        if path is None:
            yield Finding("note", f"{name}: not here yet; fetch it with: python -m rso_lab data {name}")
        else:
            yield Finding("ok", f"{name}: {path}")


def _data_folder() -> Iterator[Finding]:
    """The folder that downloads go to."""
    from rso_lab.data import find, places

    if find("mnist") and find("cifar10"):
        return  # nothing is left to fetch: they may lie on a read-only stick
    folder = places()[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fix = "make it writable, or name another folder in the environment variable RSO_LAB_DATA"
        if os.name == "posix":
            fix = f'chmod u+w "{folder}", or name another folder in the environment variable RSO_LAB_DATA'
        yield Finding("fault", f"{folder} cannot be written to ({error.strerror}): data sets cannot be fetched", fix)
    else:
        yield Finding("ok", f"{folder} can be written to")
