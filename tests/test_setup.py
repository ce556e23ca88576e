"""What a fresh machine is told in one place is what it is told in the others."""

import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"torch": "pytorch"}


def test_environment_yml_has_the_ranges_of_pyproject_toml():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = [f"python{project['requires-python']}", *project["dependencies"], *project["optional-dependencies"]["dev"]]
    wanted = {}
    for requirement in map(Requirement, lines):
        wanted[CONDA_NAMES.get(requirement.name, requirement.name)] = requirement.specifier
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    found = {}
    for line in environment["dependencies"]:
        requirement = Requirement(line)
        found[requirement.name] = requirement.specifier
    assert not found.pop("pip")
    assert found == wanted
    assert environment["channels"] == ["conda-forge", "nodefaults"]


def test_ranges_are_ranges():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for requirement in map(Requirement, project["dependencies"] + project["optional-dependencies"]["dev"]):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert ">=" in operators
        assert not operators & {"==", "===", "~="}, requirement


def test_the_commands_of_the_readme_exist():
    text = (ROOT / "README.md").read_text("utf-8") + (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^    |`)make ([a-z-]+)\b", text, re.MULTILINE))
    assert {"lab", "test", "demo"} <= named <= targets


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "data/README.md"])
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
