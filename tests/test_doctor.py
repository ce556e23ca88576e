"""The doctor finds every kind of fault, made by real means where possible, and prints the command that mends it."""

import json
import os
import subprocess
import sys
from importlib import metadata

import jupyter_core.paths
import pytest
import torch

from rso_lab import doctor
from rso_lab.__main__ import main

INSTALL = f'"{sys.executable}" -m pip install'
BLOCKER = """\
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(autouse=True)
def _empty_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RSO_LAB_DATA", str(tmp_path / "sets"))


def run_doctor(folder, **files):
    """Run it with these files in front of everything that is installed. Returns the exit code and what it printed."""
    for name, text in files.items():
        path = folder / "in front" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    # Started elsewhere, because what is in the working folder comes first of all.
    environment = os.environ | {"PYTHONPATH": str(folder / "in front"), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "rso_lab", "doctor"]
    options = {"cwd": folder, "env": environment, "capture_output": True, "encoding": "utf-8"}
    ended = subprocess.run(command, **options, timeout=120, check=False)
    assert ended.stderr == ""
    return ended.returncode, ended.stdout


def assert_fault(ended, text, fix):
    code, out = ended
    assert code == 1
    lines = out.splitlines()
    assert f"fault  {text}" in lines
    assert lines[lines.index(f"fault  {text}") + 1] == f"       to mend it: {fix}"
    assert lines[-1].endswith(" to mend")


def test_where_all_is_well(tmp_path):
    code, out = run_doctor(tmp_path)
    assert code == 0
    assert "fault" not in out
    assert f"ok     torch {metadata.version('torch')}" in out
    assert "ok     digits: inside scikit-learn" in out
    for name in ("mnist", "cifar10"):
        assert f"note   {name}: not here yet; fetch it with: python -m rso_lab data {name}" in out
    if not torch.cuda.is_available():
        assert "note   no CUDA device: the lessons run on the CPU" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_there_is_nothing_to_compare(capsys):
    assert main(["doctor", "--gpu"]) == 1
    assert capsys.readouterr().out == "no CUDA device: there is nothing to compare\n"


def test_a_record_agrees_where_no_choice_is_wrong():
    record = json.loads((doctor.ROOT / "results" / "gpu_stage_a.json").read_text())
    assert doctor.agrees(record)
    assert not doctor.agrees(record | {"float32": record["float32"] | {"wrong": 1}})
    assert not doctor.agrees(record | {"different_in_float64": {"mlp": 2}})


def test_torch_that_cannot_be_imported(tmp_path):
    error = "raise OSError('libcudart.so: cannot open shared object file')"
    ended = run_doctor(tmp_path, **{"torch/__init__.py": error})
    reason = "(OSError: libcudart.so: cannot open shared object file)"
    fix = f"{INSTALL} --force-reinstall torch torchvision"
    assert_fault(ended, f"torch {metadata.version('torch')} cannot be imported {reason}", fix)


def test_torchvision_built_for_another_torch(tmp_path):
    error = "raise RuntimeError('operator torchvision::nms does not exist')"
    ended = run_doctor(tmp_path, **{"torchvision/__init__.py": error})
    reason = "(RuntimeError: operator torchvision::nms does not exist)"
    fix = f"{INSTALL} --force-reinstall torch torchvision"
    assert_fault(ended, f"torchvision {metadata.version('torchvision')} cannot be imported {reason}", fix)
    assert f"ok     torch {metadata.version('torch')}" in ended[1]
    assert ended[1].endswith("\n1 to mend\n")


def test_no_torch_at_all(tmp_path):
    ended = run_doctor(tmp_path, **{"sitecustomize.py": BLOCKER})
    reason = "(ModuleNotFoundError: No module named 'torch')"
    fix = f"{INSTALL} --force-reinstall torch torchvision"
    assert_fault(ended, f"torch {metadata.version('torch')} cannot be imported {reason}", fix)


def test_an_old_version_and_a_package_that_is_not_installed(tmp_path):
    """Metadata in front of the real: of an old numpy, and of a kit that wants a package that nobody has."""
    head = "Metadata-Version: 2.1\nName: {}\nVersion: {}\n"
    wants = "Requires-Dist: numpy>=1.26\nRequires-Dist: torch-of-tomorrow<9,>=8\n"
    files = {
        "numpy-1.20.0.dist-info/METADATA": head.format("numpy", "1.20.0"),
        "rso_lab-0.1.0.dist-info/METADATA": head.format("rso-lab", "0.1.0") + wants,
    }
    ended = run_doctor(tmp_path, **files)
    assert_fault(ended, "numpy 1.20.0 is installed, but >=1.26 is needed", f'{INSTALL} --upgrade "numpy>=1.26"')
    fix = f'{INSTALL} --upgrade "torch-of-tomorrow<9,>=8"'
    assert_fault(ended, "torch-of-tomorrow is not installed in this environment", fix)


def test_widgets_without_their_jupyterlab_extension(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jupyter_core.paths, "SYSTEM_JUPYTER_PATH", [])
    monkeypatch.setattr(jupyter_core.paths, "ENV_JUPYTER_PATH", [str(tmp_path)])
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("JUPYTER_PATH", raising=False)
    ended = main(["doctor"]), capsys.readouterr().out
    fix = f"{INSTALL} --force-reinstall jupyterlab_widgets, then start JupyterLab again from this environment"
    assert_fault(ended, "ipywidgets has no JupyterLab extension in this environment", fix)


def test_a_data_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "sets"
    monkeypatch.setenv("RSO_LAB_DATA", str(folder))
    ended = main(["doctor"]), capsys.readouterr().out
    fix = f'chmod u+w "{folder}", or name another folder in the environment variable RSO_LAB_DATA'
    assert_fault(ended, f"{folder} cannot be written to (Not a directory): data sets cannot be fetched", fix)


def test_a_read_only_folder_will_do_where_nothing_is_left_to_fetch(tmp_path, monkeypatch, capsys):
    (tmp_path / "sets").mkdir()
    for name in ("mnist", "cifar10"):
        (tmp_path / "sets" / f"{name}.npz").touch()
    (tmp_path / "sets").chmod(0o500)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("mnist", "cifar10"):
        assert f"ok     {name}: {tmp_path / 'sets' / name}.npz" in out
    assert "written" not in out


def test_the_short_form_is_one_line_where_all_is_well(capsys):
    doctor.check()
    out = capsys.readouterr().out
    assert out.startswith(f"Ready: Python {sys.version.split()[0]}, torch {torch.__version__}, ")
    assert out.count("\n") == 1


def test_the_short_form_shows_faults_only(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RSO_LAB_DATA", str(tmp_path / "file" / "sets"))
    doctor.check()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fault  ")
    assert lines[1].startswith("       to mend it: ")
    assert len(lines) == 2
