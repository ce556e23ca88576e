"""Lessons in JupyterLab in a real browser: `make test-browser`. Screenshots are left in the folder `screenshots`."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no browser here: install chromium")
ROOT = Path(__file__).parent.parent
SCREENSHOTS = ROOT / "screenshots"
TOKEN = "for-this-test-only"


@contextlib.contextmanager
def jupyterlab(folder):
    """The address of a JupyterLab in this folder, with a copy of the lessons: it saves what it has open."""
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    options = [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, *options], cwd=folder, stderr=log)
    address = f"http://localhost:{port}"
    try:
        for _ in range(120):
            assert server.poll() is None, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/api?token={TOKEN}").close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def chromium():
    """A browser without a window."""
    with sync_playwright() as playwright:
        # A container's root may not use the sandbox; the only pages are the lessons.
        options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with jupyterlab(tmp_path_factory.mktemp("lab")) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with chromium() as launched:
        yield launched


class Lesson:
    """A lesson that is open in a browser."""

    def __init__(self, browser, lab, name):
        self.name, self.pictures = name, 0
        self.page = browser.new_page(viewport={"width": 1280, "height": 720})
        self.errors = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{lab}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb?token={TOKEN}")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
        expect(self.page.get_by_text("| Idle")).to_be_visible(timeout=60_000)  # else nothing is run

    def run_all(self):
        """Run every cell, and wait until none is waiting."""
        self.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        self.page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
        waiting = self.page.locator(".jp-InputPrompt", has_text="[*]")
        waiting.first.wait_for(timeout=60_000)
        expect(waiting).to_have_count(0, timeout=180_000)

    def run_cell(self, text):
        """Run the code cell that holds the text, and wait for its end."""
        cell = self.page.locator(".jp-CodeCell", has_text=text)
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        expect(cell.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\d+\]"), timeout=180_000)

    def touch(self, points):
        """Draw a line with a finger."""
        session = self.page.context.new_cdp_session(self.page)
        for kind, (x, y) in zip(["touchStart", *["touchMove"] * len(points)], points, strict=False):
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def is_without_errors(self):
        """Whether page and cells have run without an error."""
        failed = self.page.locator('[data-mime-type="application/vnd.jupyter.error"]')
        return not self.errors and failed.count() == 0

    def part(self, heading):
        """Go to the first widget below a heading, and return its controls and picture."""
        title = self.page.locator("h2", has_text=heading)
        title.scroll_into_view_if_needed()
        widget = self.page.locator(f'.jp-Cell:has(h2:has-text("{heading}")) ~ .jp-Cell .widget-vbox').first
        widget.scroll_into_view_if_needed()
        return widget

    def look(self, widget):
        """Keep a screenshot."""
        SCREENSHOTS.mkdir(exist_ok=True)
        self.pictures += 1
        widget.scroll_into_view_if_needed()
        self.page.screenshot(path=SCREENSHOTS / f"{self.name}_{self.pictures}.png")


@pytest.fixture
def lesson(request, browser, lab):
    opened = Lesson(browser, lab, request.param)
    yield opened
    opened.page.close()


def lesson_of(name):
    return pytest.mark.parametrize("lesson", [name], indirect=True, ids=[name])


@lesson_of("00_start_here")
def test_a_slider_and_a_button_by_mouse_and_by_keyboard(lesson):
    lesson.run_all()
    microscope = lesson.part("Play")
    picture = microscope.locator("img")
    before = picture.get_attribute("alt")
    handle = microscope.locator(".noUi-handle")
    box = handle.bounding_box()
    lesson.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    lesson.page.mouse.down()
    lesson.page.mouse.move(box["x"] + 80, box["y"] + box["height"] / 2, steps=5)
    lesson.page.mouse.up()
    expect(picture).not_to_have_attribute("alt", before)
    before = picture.get_attribute("alt")
    microscope.get_by_role("button", name="Keep the best").click()
    expect(microscope.locator(".widget-label", has_text=re.compile("The loss fell|Kept"))).to_be_visible()
    expect(picture).not_to_have_attribute("alt", before)
    lesson.look(microscope)

    before = picture.get_attribute("alt")
    handle.focus()
    for _ in range(8):  # back to a step that helps
        lesson.page.keyboard.press("ArrowLeft")
    expect(picture).not_to_have_attribute("alt", before)
    before = picture.get_attribute("alt")
    lesson.page.keyboard.press("Tab")  # from the handle over its number
    lesson.page.keyboard.press("Tab")
    expect(microscope.get_by_role("button", name="Keep the best")).to_be_focused()
    lesson.page.keyboard.press("Enter")
    expect(picture).not_to_have_attribute("alt", before)
    assert lesson.is_without_errors()


@lesson_of("02_one_weight")
def test_training_is_started_paused_stopped_and_reset(lesson):
    lesson.run_all()
    monitor = lesson.part("What share is kept")
    said = monitor.locator(".widget-label", has_text="held-out images right")
    lesson.look(monitor)
    monitor.get_by_role("button", name="Reset").click()  # Run All has brought it to its end
    expect(said).to_contain_text("0.0 of 10 cycles")
    monitor.get_by_role("button", name="Start").click()
    expect(said).not_to_contain_text("0.0 of 10 cycles")
    monitor.get_by_role("button", name="Pause").click()
    expect(monitor.get_by_role("button", name="Start")).to_be_enabled()
    lesson.page.wait_for_timeout(1500)  # the buttons answer first, then the picture
    rested = said.inner_text()
    lesson.page.wait_for_timeout(500)
    assert said.inner_text() == rested
    monitor.get_by_role("button", name="Start").click()
    expect(said).not_to_have_text(rested)
    monitor.get_by_role("button", name="Stop").click()
    expect(monitor.get_by_role("button", name="Start")).to_be_disabled()
    lesson.look(monitor)
    assert lesson.is_without_errors()


@lesson_of("03_how_much")
def test_a_race_is_run(lesson):
    lesson.run_all()
    race = lesson.part("The race")
    said = race.locator(".widget-label", has_text="network")
    lesson.look(race)
    race.get_by_role("button", name="Reset").click()
    expect(race.get_by_role("button", name="Stop")).to_be_disabled()
    before = said.inner_text()
    race.get_by_role("button", name="Start").click()
    expect(said).not_to_have_text(before, timeout=20_000)
    race.get_by_role("button", name="Stop").click()
    expect(race.get_by_role("button", name="Stop")).to_be_disabled()
    assert lesson.is_without_errors()


@lesson_of("11_family")
def test_a_shadow_and_a_cloud_by_mouse_and_by_keyboard(lesson):
    lesson.run_cell("lessons.begin()")
    for name, heading, button in (("Shadow", "A shadow", "Draw anew"), ("Cloud", "A cloud", "Go there")):
        lesson.run_cell(f"widgets.{name}")
        widget = lesson.part(heading)
        picture = widget.locator("img")
        before = picture.get_attribute("alt")
        widget.get_by_role("button", name=button).click()
        expect(picture).not_to_have_attribute("alt", before)
        before = picture.get_attribute("alt")
        widget.locator(".noUi-handle").first.focus()
        lesson.page.keyboard.press("ArrowRight")
        expect(picture).not_to_have_attribute("alt", before)
        lesson.look(widget)
    before = picture.get_attribute("alt")
    widget.locator("select").focus()
    lesson.page.keyboard.press("ArrowDown")
    expect(picture).not_to_have_attribute("alt", before)
    assert lesson.is_without_errors()


@lesson_of("10_your_own")
def test_a_digit_is_drawn_by_mouse_and_by_touch_and_chosen_by_keyboard(lesson):
    lesson.run_cell("lessons.begin()")
    lesson.run_cell("widgets.DrawDigit")
    drawing = lesson.part("Play")
    said, picture = drawing.locator(".widget-label", has_text="It says"), drawing.locator("img")
    box = drawing.locator("canvas").bounding_box()
    one, seven = (
        [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        for points in (
            [(0.58, 0.13), (0.5, 0.4), (0.46, 0.85)],
            [(0.27, 0.2), (0.5, 0.2), (0.73, 0.19), (0.6, 0.45), (0.5, 0.65), (0.44, 0.87)],
        )
    )
    expect(said).to_contain_text("It says 3")
    lesson.page.mouse.move(*one[0])
    lesson.page.mouse.down()
    for point in one[1:]:
        lesson.page.mouse.move(*point, steps=5)
    lesson.page.mouse.up()
    expect(said).to_contain_text("It says 1")  # and the example is gone
    lesson.look(drawing)

    drawing.get_by_role("button", name="Clear").click()
    expect(picture).to_have_count(0)
    lesson.touch(seven)
    expect(said).to_contain_text("It says 7")
    lesson.look(drawing)

    drawing.locator("select").focus()
    lesson.page.keyboard.press("ArrowDown")
    expect(said).to_contain_text("It says 0")
    expect(drawing.locator("select")).to_be_focused()
    assert lesson.is_without_errors()
