"""The pages around the lessons: the book that is made of them, the glossary, the teacher's guide, the lists."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("lists", ROOT / "docs" / "lists.py")
lists = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lists)

LESSONS = {lesson.number: ROOT / lesson.path for lesson in lists.lessons()}
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text("utf-8")
TERMS = dict(re.findall(r"^\* \*\*(.+?)\*\* \(\[?(\d\d)\b", GLOSSARY, re.MULTILINE))
GUIDE = (ROOT / "docs" / "teachers.md").read_text("utf-8")
BUTTON = {"Start", "Pause", "Stop", "Reset", "Back"}


def words(path):
    """What a lesson says, without line breaks."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return " ".join(" ".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown").split())


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The pages of the book by their paths in it, parsed."""
    folder = tmp_path_factory.mktemp("book")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ".", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = (path for path in folder.rglob("*.html") if "_static" not in path.parts)
    return {path: BeautifulSoup(path.read_text("utf-8"), "html.parser") for path in pages}


@pytest.fixture(scope="module")
def lesson_pages(book):
    return {path.name[:2]: page for path, page in book.items() if path.parts[-3:-1] == ("notebooks", "complete")}


def test_every_lesson_and_page_is_there_and_hangs_below_the_first(book, lesson_pages):
    assert lesson_pages.keys() == LESSONS.keys()
    (first,) = (path for path in book if path.name == "index.html")
    there = {path.relative_to(first.parent).as_posix() for path in book}
    assert {"docs/glossary.html", "docs/teachers.html", "docs/classroom.html", "docs/ranks.html"} <= there
    contents = {link["href"] for link in book[first].select(".sidebar-tree a")}
    assert there - contents == {"index.html", "README.html", "search.html", "genindex.html"}


def test_every_link_and_picture_leads_somewhere(book):
    ids = {path: {tag["id"] for tag in page.find_all(id=True)} for path, page in book.items()}
    for path, page in book.items():
        targets = [tag["href"] for tag in page.find_all(["a", "link"], href=True)]
        targets += [tag["src"] for tag in page.find_all(src=True)]
        for target in targets:
            parts = urlsplit(target)
            if parts.scheme in ("http", "https", "data"):
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert file.is_file(), (path.name, target)
            if parts.fragment and file in ids:
                assert unquote(parts.fragment) in ids[file], (path.name, target)


def test_nothing_comes_from_the_network(book):
    for path, page in book.items():
        loaded = [tag["src"] for tag in page.find_all(src=True)] + [tag["href"] for tag in page.find_all("link")]
        loaded += re.findall(r"url\(([^)]*)\)|@import\s+\S+", str(page))
        assert not [target for target in loaded if re.match(r"\W?(https?:)?//", target)], path.name
    (first,) = (path for path in book if path.name == "index.html")
    for style in (first.parent / "_static").rglob("*.css"):
        assert not re.search(r"(@import|url\()\W*(https?:)?//", style.read_text("utf-8")), style.name


def test_every_picture_is_told_in_words(book, lesson_pages):
    for path, page in book.items():
        for image in page.find_all("img"):
            assert image.get("alt", "").strip(), (path.name, image["src"])
            assert not image["alt"].endswith(".png"), (path.name, image["alt"])
    for number, page in lesson_pages.items():
        cells = json.loads(LESSONS[number].read_text("utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        told = [output["metadata"]["image/png"]["alt"] for output in outputs if "image/png" in output.get("data", {})]
        assert [image["alt"] for image in page.select(".cell_output img")] == told


def test_solutions_and_hints_are_folded(lesson_pages):
    for number, page in lesson_pages.items():
        learners = json.loads((ROOT / "notebooks" / LESSONS[number].name).read_text("utf-8"))["cells"]
        told = ["".join(cell["source"]) for cell in learners if cell["id"].endswith("-solution")]
        solutions = [re.search(r"```python\n(.*?)\n```", text, re.DOTALL)[1] for text in told]
        assert solutions
        code = {tag.get_text().strip(): tag for tag in page.select("div.cell_input pre")}
        for solution in solutions:
            around = code[solution.strip()].find_parent("details")
            assert around.select_one("summary .collapsed").get_text() == "Solution"
            assert not around.has_attr("open")
        assert sum(summary.get_text() == "Hint 1" for summary in page.find_all("summary")) >= 1
        assert [link for link in page.select("article a.download") if link["href"].endswith(LESSONS[number].name)]


def test_formulas_need_no_script(lesson_pages):
    assert lesson_pages["01"].find("math").find("msqrt").find("mtext").get_text() == "fan-in"


@pytest.mark.parametrize("page", lists.PAGES)
def test_lists_are_those_of_the_lessons_and_the_results(page):
    text = (ROOT / page).read_text("utf-8")
    assert lists.updated(page, text) == text, "run: python docs/lists.py"
    assert len(re.findall("<!-- (?:end of )?lessons -->", text)) == (2 if page in lists.TABLES else 0)
    assert len(re.findall("<!-- (?:end of )?claims -->", text)) == (2 if page in lists.CLAIMS else 0)


@pytest.mark.parametrize("lesson", lists.lessons(), ids=lambda lesson: lesson.number)
def test_what_a_lesson_says_about_itself_is_read(lesson):
    text = words(ROOT / lesson.path)
    assert f"# {lesson.number} · {lesson.name}" in text
    assert f"**{lesson.minutes} minutes" in text
    assert f"**{lesson.message}" in text
    assert ("Short of time?" in text) == bool(lesson.skipped)
    assert ("can be left out" in text) == bool(lesson.optional)
    assert 15 <= lesson.minutes <= 40


def introduced(text):
    """The terms in bold: short, and not the beginning of a paragraph such as **Bug A.**"""
    found = re.findall(r"\*\*([a-z][\w'-]*(?: \w[\w'-]*)*|[A-Z]\w*(?:'s \w+)?)\*\*", text)
    return {term for term in found if len(term.split()) <= 3} - BUTTON


def of_one(term):
    return term.lower().removesuffix("s")


@pytest.mark.parametrize("number", LESSONS)
def test_terms_of_a_lesson_are_in_the_glossary(number):
    notation = re.findall(r"^\| (\w+)", GLOSSARY, re.MULTILINE)
    known = {of_one(term) for term in [*TERMS, *notation]}
    missing = {term for term in introduced(words(LESSONS[number])) if of_one(term) not in known}
    assert not missing, "docs/glossary.md should say what they are"


@pytest.mark.parametrize("term", TERMS)
def test_a_term_stands_in_the_lesson_that_the_glossary_names(term):
    number = TERMS[term]
    if number in LESSONS:
        stem = re.escape(of_one(term))
        assert re.search(rf"\b{stem}", words(LESSONS[number]), re.IGNORECASE)
    bold = [lesson for lesson in LESSONS if of_one(term) in map(of_one, introduced(words(LESSONS[lesson])))]
    assert number <= min(bold, default=number)


def test_the_glossary_is_in_order_and_says_each_once():
    terms = [term.lower() for term in re.findall(r"^\* \*\*(.+?)\*\*", GLOSSARY, re.MULTILINE)]
    assert terms == sorted(terms)
    assert len(terms) == len(set(terms)) == len(TERMS)


def test_the_guide_has_notes_on_every_lesson():
    for number in LESSONS:
        notes = re.search(rf"### Lesson {number}\n(.*?)(?=\n### |\Z)", GUIDE, re.DOTALL)[1]
        for part in ("Goal", "Before", "After", "Stumbles"):
            assert f"* **{part}:** " in notes


@pytest.mark.parametrize(("plan", "minutes"), [("50 minutes", 50), ("3 hours", 180)])
def test_the_plans_add_up(plan, minutes):
    table = GUIDE.split(f"**{plan}.**")[1].split("\n\n")[1]
    clock = 0
    for start, takes, what in re.findall(r"^\| (\d:\d\d) \| (\d+) \| (.*) \|$", table, re.MULTILINE):
        assert start == f"{clock // 60}:{clock % 60:02}"
        clock += int(takes)
        found = re.match(r"lesson (\d\d)(?:, sections? (\d)(?:( and | to )(\d))?)?", what)
        if found and found[2] is None:
            assert int(takes) == next(lesson.minutes for lesson in lists.lessons() if lesson.number == found[1])
        elif found:
            first, last = int(found[2]), int(found[4] or found[2])
            chosen = range(first, last + 1) if found[3] == " to " else {first, last}
            sections = dict(re.findall(r"## (\d) · [^#]*?\((\d+) minutes?\)", words(LESSONS[found[1]])))
            assert int(takes) == sum(int(sections[str(section)]) for section in chosen)
    assert clock == minutes
