"""The book: README, lessons and docs as web pages that need no network. Sphinx reads this; `make book` runs it.

The source folder is the repository's root, so that links in the pages are the same here and on the disk.
"""

import shutil
from pathlib import Path

import nbformat
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

project = html_title = "rso_lab"
author = copyright = "The rso_lab developers"
extensions = ["myst_nb"]
root_doc = "README"
lessons = "notebooks/complete/*"
guides = ["docs/glossary", "docs/your_own", "docs/teachers", "docs/classroom"]
behind = ["docs/evaluator", "docs/claims", "docs/choices", "docs/ranks", "data/README", "CONTRIBUTING"]
include_patterns = [f"{root_doc}.md", f"{lessons}.ipynb", *(f"{page}.md" for page in guides + behind)]
exclude_patterns = [".*", "book"]

nb_execution_mode = "off"  # the output is what the notebooks were committed with
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"  # fonts of the reader's own system
html_static_path = ["book.css"]
html_css_files = ["book.css"]
html_math_renderer = "mathml"  # what browsers draw themselves
html_copy_source = False


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """README heads the book: the other pages hang below it."""
    if docname == root_doc:
        for caption, pages in (("Lessons", [lessons]), ("Beside them", guides), ("Behind them", behind)):
            source[0] += "\n".join(["\n```{toctree}", ":hidden:", ":glob:", f":caption: {caption}", *pages, "```\n"])


def dress(app: Sphinx, doctree: nodes.document) -> None:
    """A lesson's page: its pictures in words, its solutions folded, and the notebook to play with."""
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    notebook = nbformat.read(path, as_version=4)
    learners = nbformat.read(path.parent.parent / path.name, as_version=4)
    solutions = {cell.id.removesuffix("-solution") for cell in learners.cells if cell.id.endswith("-solution")}
    for shown in doctree.findall(nodes.container):
        if shown.get("nb_element") != "cell_code":
            continue
        cell = notebook.cells[shown["cell_index"]]
        if cell.id in solutions:
            shown.attributes.update(hide_mode="input", prompt_show="Solution", prompt_hide="Solution")
        pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        for image, output in zip(shown.findall(nodes.image), pictures, strict=True):
            image["alt"] = output.metadata["image/png"]["alt"]
    link = addnodes.download_reference("", "", nodes.Text("open its notebook"), reftarget=f"/notebooks/{path.name}")
    link["refdoc"] = app.env.docname
    hint = nodes.paragraph("", "To read, with all its output. To play, ", link, nodes.Text(" in JupyterLab: "))
    hint += [nodes.literal("", "make lab"), nodes.Text(".")]
    doctree.next_node(nodes.title).parent.insert(1, hint)


def formula(translator: HTML5Translator, node: nodes.Element) -> None:
    """A formula in MathML."""
    translator.body.append(tex2mathml(node.astext(), isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def add_index(app: Sphinx, exception: Exception | None) -> None:
    """The page that a browser opens first."""
    if exception is None:
        shutil.copy(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", add_contents)
    app.connect("doctree-read", dress, priority=400)  # before pictures and downloads are collected
    app.connect("build-finished", add_index)
    app.add_html_math_renderer("mathml", inline_renderers=(formula, None), block_renderers=(formula, None))
