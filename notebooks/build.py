"""Build the lessons: each source (py:percent) into a learner's version and a complete version, executed.

    make notebooks

The learner's version has stubs in place of solutions, each solution folded below its cell, and no output. The complete
version has the solutions and the output of every cell.
"""

import html
import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbgrader.preprocessors import ClearSolutions
from traitlets.config import Config

HERE = Path(__file__).parent
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
WIDGET = "application/vnd.jupyter.widget-view+json"


def sources() -> list[Path]:
    """Every lesson's source, in order."""
    return sorted((HERE / "source").glob("*.py"))


def complete(source: Path) -> NotebookNode:
    """The lesson with its solutions, not yet executed."""
    notebook = _read(source)
    for cell in notebook.cells:
        lines = cell.source.splitlines()
        cell.source = "\n".join(line for line in lines if line.strip() not in (BEGIN, END))
    return _plain(notebook)


def learner(source: Path) -> NotebookNode:
    """The lesson with stubs, and each solution folded into a cell below its stub."""
    notebook = _read(source)
    stub = Config(ClearSolutions={"code_stub": {"python": "..."}})
    stubs, _ = ClearSolutions(config=stub).preprocess(_read(source), {})
    cells = []
    for with_solution, cell in zip(notebook.cells, stubs.cells, strict=True):
        cells.append(cell)
        if BEGIN in with_solution.source:
            cells.append(_folded(with_solution))
    stubs.cells = cells
    return _plain(stubs)


def execute(notebook: NotebookNode) -> NotebookNode:
    """Run every cell, and keep output that can be seen where nothing runs: pictures in place of widgets."""
    NotebookClient(notebook, timeout=300, store_widget_state=False, resources={"metadata": {"path": HERE}}).execute()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            data = output.get("data", {})
            if data.keys() & {"image/png", "text/html"}:
                data.pop(WIDGET, None)
            if "image/png" in data:
                words = re.search(r'<img [^>]*alt="([^"]*)"', data.pop("text/html", ""))
                if words:
                    output.metadata["image/png"] = {"alt": html.unescape(words[1])}
        cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    return _plain(notebook)


def _read(source: Path) -> NotebookNode:
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{source.stem}-{number:02}"  # jupytext's own are random
    return notebook


def _folded(cell: NotebookNode) -> NotebookNode:
    lines = [line for line in cell.source.splitlines() if line.strip() not in (BEGIN, END)]
    text = "\n".join(["<details><summary>Solution</summary>", "", "```python", *lines, "```", "", "</details>"])
    return nbformat.v4.new_markdown_cell(text, id=f"{cell.id}-solution")


def _plain(notebook: NotebookNode) -> NotebookNode:
    """Without what only the tools need."""
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python", "file_extension": ".py"},
    )
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
    return notebook


def main() -> None:
    """Build all lessons, or those named on the command line."""
    for source in sources():
        if len(sys.argv) == 1 or source.stem in sys.argv[1:]:
            print(f"building {source.stem}", flush=True)
            nbformat.write(learner(source), HERE / f"{source.stem}.ipynb")
            nbformat.write(execute(complete(source)), HERE / "complete" / f"{source.stem}.ipynb")


if __name__ == "__main__":
    main()
