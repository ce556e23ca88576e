"""The built lessons agree with their sources; nbval runs them (see pyproject.toml)."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
from nbconvert import exporters

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
_spec = importlib.util.spec_from_file_location("build", NOTEBOOKS / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)


@pytest.fixture(autouse=True)
def _several_pieces():
    """The lessons have theirs whole."""


LESSONS = pytest.mark.parametrize("source", build.sources(), ids=lambda source: source.stem)


def cells(notebook):
    return [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells]


@LESSONS
@pytest.mark.parametrize("version", ["learner", "complete"])
def test_built_and_source_agree(source, version):
    folder = NOTEBOOKS / "complete" if version == "complete" else NOTEBOOKS
    built = nbformat.read(folder / f"{source.stem}.ipynb", as_version=4)
    nbformat.validate(built)
    assert built.metadata == getattr(build, version)(source).metadata
    assert cells(built) == cells(getattr(build, version)(source)), "run: make notebooks"


def test_every_notebook_has_a_source():
    stems = {source.stem for source in build.sources()}
    assert stems
    for folder in (NOTEBOOKS, NOTEBOOKS / "complete"):
        assert {path.stem for path in folder.glob("*.ipynb")} == stems


@LESSONS
def test_the_learners_version_has_stubs_and_no_output(source):
    notebook = nbformat.read(NOTEBOOKS / f"{source.stem}.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    solutions = re.findall(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", source.read_text("utf-8"), re.DOTALL)
    assert solutions
    for solution in solutions:
        assert not any(solution.strip() in cell.source for cell in code)
        assert any("<summary>Solution</summary>" in c.source and solution.strip() in c.source for c in notebook.cells)
    assert not any("SOLUTION" in cell.source for cell in notebook.cells)


@LESSONS
def test_the_complete_version_shows_what_it_did(source):
    path = NOTEBOOKS / "complete" / f"{source.stem}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(build.WIDGET in output.get("data", {}) for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "widgets" not in notebook.metadata
    assert path.stat().st_size < 500_000


def test_a_lesson_is_converted_to_html_to_slides_and_to_a_script():
    notebook = nbformat.read(NOTEBOOKS / "complete" / "00_start_here.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    pictures = sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    for name in ("html", "slides"):
        page, found = exporters.get_exporter(name)().from_notebook_node(notebook)
        assert found["output_extension"].endswith(".html")
        assert page.count("<img") == pictures > 0
    script, found = exporters.get_exporter("script")().from_notebook_node(notebook)
    assert found["output_extension"] == ".py"
    compile(script, "00_start_here.py", "exec")
    assert all(cell.source.splitlines()[-1] in script for cell in code)


@LESSONS
def test_the_minutes_of_the_sections_add_up(source):
    text = source.read_text("utf-8")
    minutes = re.search(r"\*\*(\d+) minutes", text)[1]
    more = re.search(r"\((\d+) minutes more\)", text)
    sections = re.findall(r"^# ## \d+ · .*?(?:\((\d+) minutes?\))?$", text, re.MULTILINE)
    assert sum(map(int, sections)) == int(minutes) + int(more[1] if more else 0)
    assert 15 <= int(minutes) <= 40


@LESSONS
def test_sections_with_stubs_need_the_setup_cell_only(source, tmp_path, monkeypatch, capsys):
    """Each section of the learner's version runs right after the first code cell, without the sections between."""
    monkeypatch.chdir(tmp_path)  # the ledger is written there
    sections = [[]]
    for cell in build.learner(source).cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            sections.append([])
        if cell.cell_type == "code":
            quicker = re.sub(r"(cycles|count|epochs)=\d+", r"\1=1", cell.source.replace("%matplotlib inline", ""))
            sections[-1].append(quicker.replace("on_processes((1, 2)", "on_processes((1,)"))
    setup, *rest = (compile("\n".join(section), source.name, "exec") for section in sections)
    names = {}
    exec(setup, names)
    for section in rest:
        exec(section, dict(names))
    assert "Not done yet" in capsys.readouterr().out
