"""What a fresh machine is told in one place is what it is told in the others."""

import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on

ROOT = Path(__file__).parent.parent
DOCS = ("glossary", "teachers", "classroom", "ranks")
PAGES = ["README.md", "CONTRIBUTING.md", "data/README.md", *(f"docs/{name}.md" for name in DOCS)]
CONDA_NAMES = {"torch": "pytorch"}


def requirements():
    """What a developer installs: dev has the book's, and that has to be said in pip's way."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    book, *dev = project["optional-dependencies"]["dev"]
    assert book == "rso-lab[book]"
    return project, [*project["dependencies"], *dev, *project["optional-dependencies"]["book"]]


def test_environment_yml_has_the_ranges_of_pyproject_toml():
    project, lines = requirements()
    wanted = {}
    for requirement in map(Requirement, lines):
        wanted[CONDA_NAMES.get(requirement.name, requirement.name)] = requirement.specifier
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    python, *packages, by_pip = environment["dependencies"]
    kind, version = python.split(" =")  # as Binder reads it: one version, without an operator of pip's
    assert kind == "python"
    assert version in SpecifierSet(project["requires-python"])
    assert by_pip == {"pip": ["-e ."]}  # the kit itself: Binder runs nothing else
    found = {}
    for line in packages:
        requirement = Requirement(line)
        found[requirement.name] = requirement.specifier
    assert not found.pop("pip")
    assert found == wanted
    assert environment["channels"] == ["conda-forge", "nodefaults"]


def test_ranges_are_ranges():
    for requirement in map(Requirement, requirements()[1]):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert ">=" in operators
        assert not operators & {"==", "===", "~="}, requirement


def test_the_commands_of_the_readme_exist():
    text = (ROOT / "README.md").read_text("utf-8") + (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^    |`)make ([a-z-]+)\b", text, re.MULTILINE))
    assert {"lab", "test", "demo", "book"} <= named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text("utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), target


def test_the_tree_in_contributing_is_the_tree():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    modules = set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))
    there = {path.stem for path in (ROOT / "rso_lab").glob("*.py")} - {"__init__"}
    there |= {path.parent.name for path in (ROOT / "rso_lab").glob("*/__init__.py")}
    assert modules == there
