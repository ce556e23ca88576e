"""Write what README and docs say about each lesson and experiment, from the notebooks and results that are there.

    python docs/lists.py

Tables stand between `<!-- lessons -->` and `<!-- end of lessons -->`, or `claims` in place of `lessons`. In the
glossary, a lesson's number links to it.
"""

import re
from pathlib import Path
from typing import NamedTuple

import nbformat

from rso_lab.experiments import RESULTS
from rso_lab.report import report, summary

ROOT = Path(__file__).parent.parent


class Lesson(NamedTuple):
    """What a lesson says about itself."""

    number: str
    path: str  # of its complete version, from the root
    name: str
    minutes: int
    builds_on: str
    optional: str  # the sections that are not in the minutes, and how many more they take
    skipped: str  # where time is short, and the minutes that this saves
    message: str  # the one thing to go home with

    @classmethod
    def read(cls, path: Path) -> "Lesson":
        """From a notebook; raises AttributeError where it does not say one of them."""
        cells = nbformat.read(path, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        number, name = re.search(r"^# (\d\d) · (.+?)(?::|$)", text, re.MULTILINE).groups()
        minutes, builds_on = re.search(r"^\*\*(\d+) minutes\b[^*]*· (builds on [^*.]+)", text, re.MULTILINE).groups()
        sections = dict(re.findall(r"^## (\d+) · .*?\((\d+) minutes?\)$", text, re.MULTILINE))
        optional = re.search(r"Sections? ([\d and]+) \((\d+) minutes more\) can\s+be\s+left\s+out", text)
        skipped = re.search(r"Short\s+of\s+time\?\s+(?:Skip|Leave\s+out)\s+(?:section (\d)|([^.]+))\.", text)
        message = re.search(r"^## \d+ · What you take home.*?\*\*(.+?)[.:,]?\*\*", text, re.MULTILINE | re.DOTALL)
        return cls(
            number,
            path.relative_to(ROOT).as_posix(),
            name,
            int(minutes),
            builds_on.removeprefix("builds on "),
            f"{optional[1]} ({optional[2]} min)" if optional else "",
            (f"{skipped[1]} ({sections[skipped[1]]} min)" if skipped[1] else skipped[2]) if skipped else "",
            " ".join(message[1].split()),
        )


def lessons() -> list[Lesson]:
    """All of them, in order."""
    return [Lesson.read(path) for path in sorted((ROOT / "notebooks" / "complete").glob("*.ipynb"))]


def for_readers(lesson: Lesson) -> str:
    """A line of README's table."""
    return f"[{lesson.number} · {lesson.name}]({lesson.path}) | {lesson.minutes} | {lesson.message}"


def for_teachers(lesson: Lesson) -> str:
    """A line of the teacher's guide's table."""
    shown = f"[{lesson.number} · {lesson.name}](../{lesson.path})"
    return f"{shown} | {lesson.minutes} | {lesson.builds_on} | {lesson.optional} | {lesson.skipped}"


TABLES = {
    "README.md": ("lesson | minutes | the one thing to go home with", for_readers),
    "docs/teachers.md": (
        "lesson | minutes | builds on | optional sections, not in the minutes | short of time: skip section",
        for_teachers,
    ),
}


CLAIMS = {"README.md": summary, "docs/claims.md": report}
PAGES = ("README.md", "docs/teachers.md", "docs/claims.md", "docs/glossary.md")


def updated(page: str, text: str) -> str:
    """The text of a page, with its tables or its links made anew."""
    there = lessons()
    if page in CLAIMS:
        text = _between("claims", CLAIMS[page](RESULTS), text)
    if page in TABLES:
        heading, line = TABLES[page]
        rows = [heading, re.sub(r"[^|]+", " --- ", heading).strip(), *map(line, there)]
        text = _between("lessons", "\n".join(f"| {row} |" for row in rows), text)
    if page != "docs/glossary.md":
        return text
    paths = {lesson.number: lesson.path for lesson in there}

    def link(found: re.Match) -> str:
        number = found[1] or found[2]
        return f"([{number}](../{paths[number]}))" if number in paths else f"({number})"

    return re.sub(r"\((?:\[(\d\d)\]\([^)]*\)|(\d\d))\)", link, text)


def _between(what: str, table: str, text: str) -> str:
    """The text with this table between the marks of its kind."""
    found = re.compile(rf"(<!-- {what} -->\n).*?(<!-- end of {what} -->)", re.DOTALL)
    return found.sub(lambda around: f"{around[1]}\n{table}\n\n{around[2]}", text)


def main() -> None:
    """Update all pages."""
    for page in PAGES:
        path = ROOT / page
        path.write_text(updated(page, path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
