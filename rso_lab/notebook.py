"""What the widgets are made of: pictures with words, reactions in the notebook's loop, work in its background."""

import asyncio
import base64
import contextlib
import gc
import html
import io
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from types import FrameType
from typing import Any, ClassVar

import anywidget
import ipywidgets as ipw
import matplotlib.pyplot as plt
from IPython.core.getipython import get_ipython
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rso_lab import plots

Reaction = Callable[[], None]


class Keys(anywidget.AnyWidget):
    """Leaves the keys pressed in a menu or in radio buttons to these: JupyterLab would go to another cell."""

    _esm = """
    const theirs = ".jupyter-widgets select, .jupyter-widgets input[type=radio]";
    function keep(event) {
      const together = event.ctrlKey || event.metaKey || event.shiftKey; // such as those that run a cell
      if (!together && event.target.matches(theirs)) event.stopPropagation();
    }
    export default {
      initialize() {
        document.body.addEventListener("keydown", keep); // JupyterLab listens at the document, one further
        return () => document.body.removeEventListener("keydown", keep);
      },
    };
    """


class Controls(ipw.VBox):
    """Controls below each other, for mouse and keyboard."""

    guard: ClassVar[Keys | None] = None  # one is enough for all

    def __init__(self, children: Sequence[ipw.Widget] = ()):
        Controls.guard = Controls.guard or Keys()
        super().__init__(children)


class Pictured(Controls):
    """Controls and a figure; the figure as a plain picture where widgets cannot run."""

    figure: Figure

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        bundle = super()._repr_mimebundle_(**kwargs)
        picture = base64.b64encode(_png(self.figure)).decode()
        return {**bundle, "image/png": picture}, {"image/png": {"alt": plots.describe(self.figure)}}


def image(figure: Figure, alt: str) -> str:
    """The figure as an HTML image, with words for those who do not see it."""
    return described(figure, alt)["text/html"]


def described(figure: Figure, alt: str) -> dict[str, str]:
    """The figure as a notebook shows it: an HTML image with words, and a plain one where HTML is not shown."""
    data = base64.b64encode(_png(figure)).decode()
    words = f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}" style="max-width: 100%">'
    return {"text/html": words, "image/png": data}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def describe_figures() -> None:
    """Have this notebook show figures with words beside them, and Axes, which plots return, as their figures."""
    shell = get_ipython()
    if shell is None or shell.display_formatter is None:  # no notebook
        return

    def with_words(figure: Figure) -> str:
        return image(figure, plots.describe(figure))

    def figure_of(ax: Axes) -> Figure:
        figure = ax.get_figure(root=True)
        assert figure is not None
        plt.close(figure)  # else it is shown once more at the end of the cell
        return figure

    formatters = shell.display_formatter.formatters
    formatters["text/html"].for_type(Figure, with_words)
    formatters["text/html"].for_type(Axes, lambda ax: with_words(figure_of(ax)))
    formatters["image/png"].for_type(Axes, lambda ax: _png(figure_of(ax)))


def poster() -> Callable[[Reaction], Any]:
    """What runs a widget's reaction: in the event loop of the notebook, for clicks may arrive in another thread."""
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:  # no notebook
        return lambda reaction: reaction()


SLICE = 0.02  # seconds of work before clicks are answered
REST = 0.002  # seconds in which they are: with none at all, a click waits five times as long
DRAWING = 1 / 5  # of the time at most


class Live(Pictured):
    """Work that goes on in the background of a notebook, with buttons to start, pause, stop and reset it.

    A subclass has `work`, a generator that may be left wherever it yields, `draw`, which shows how far it is, and
    `restore`, which makes everything as it was. One of them is at work at a time: a new one, and one that starts, stops
    the one before. `choices` are controls of its own, below the buttons.
    """

    latest: ClassVar["Live | None"] = None  # that has been started

    def __init__(self, figure: Figure, *choices: ipw.Widget):
        self.figure = figure
        self.state = "ready"  # then "running", "paused", "stopped" or "done"
        self.working: Generator[None] | None = None
        self.task: asyncio.Task | None = None
        self.interrupted = False
        self.drawn = self.drawing = 0.0  # when, and how long it took
        self.post = poster()
        self.buttons = {
            name: ipw.Button(description=name.capitalize(), tooltip=tooltip, layout=ipw.Layout(width="90px"))
            for name, tooltip in (
                ("start", "Begin, or go on"),
                ("pause", "Rest; Start goes on"),
                ("stop", "End it here"),
                ("reset", "Back to the beginning"),
            )
        }
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self.post(getattr(self, name)))
        self.said = ipw.Label(layout=ipw.Layout(width="100%"))  # a line of its own, however long: the picture stays
        self.image = ipw.HTML()
        self.show()
        controls = ipw.HBox([*self.buttons.values(), self.said], layout=ipw.Layout(flex_flow="row wrap"))
        super().__init__([controls, *choices, self.image])

    @staticmethod
    def stop_latest() -> None:
        """Stop the one that is at work, if there is one."""
        if Live.latest is not None:
            Live.latest.stop()

    def work(self) -> Generator[None]:
        """All of it, in steps of at most a tenth of a second."""
        raise NotImplementedError

    def draw(self) -> str:
        """Draw the figure as things are; returns that in words."""
        raise NotImplementedError

    def restore(self) -> None:
        """Make everything as it was before the work."""
        raise NotImplementedError

    def settle(self) -> None:
        """Make the results fit for use, now that the work rests."""

    def start(self) -> None:
        """Begin, or go on, in the background of the notebook; outside of one, `pump` does the work."""
        if self.state not in ("ready", "paused"):
            return
        if Live.latest is not self:
            self.stop_latest()
        Live.latest = self
        self.working = self.working or self.work()
        self.state, self.interrupted = "running", False
        gc.freeze()  # a collection that goes through all that torch and matplotlib have made keeps a click waiting
        self._enable()
        if self.task is None or self.task.done():
            with contextlib.suppress(RuntimeError):  # no notebook
                loop = asyncio.get_running_loop()
                self.task = loop.create_task(self._drive())

    def pause(self) -> None:
        """Rest: `start` goes on from here."""
        if self.state == "running":
            self.state = "paused"
            self._enable()  # the answer to the click, before the picture
            gc.unfreeze()
            self.settle()
            self.show()

    def stop(self) -> None:
        """End the work here."""
        if self.state in ("running", "paused"):
            self._end("stopped")
            self.show()

    def reset(self) -> None:
        """Make everything as it was before the work, ready to start again."""
        if self.state in ("running", "paused"):
            self._end("stopped")
        self.state, self.working = "ready", None
        self._enable()
        self.restore()
        self.show()

    def finish(self) -> Figure:
        """Work until all is done, in this cell, and return the figure; an interrupt stops it there."""
        self.start()
        try:
            while self.pump(SLICE):
                pass
        except KeyboardInterrupt:
            self.stop()
            self.show()
            print("Stopped.")
        return self.figure

    def pump(self, seconds: float) -> bool:
        """Work for so long, at least one step, or draw when it is time; returns whether there is more to do."""
        if self.state != "running":
            return False
        assert self.working is not None
        until = time.perf_counter() + seconds
        try:
            if time.perf_counter() > self.drawn + self.drawing / DRAWING:
                self.show()
                return True
            for _ in self.working:
                if self.interrupted or time.perf_counter() >= until:
                    break
            else:
                self._end("done")
                self.show()
        except BaseException as error:
            self._end("stopped")
            self.said.value = f"Stopped by {type(error).__name__}. {error}"
            raise
        return self.state == "running"

    def show(self) -> None:
        """Draw, and say how things are."""
        begun = time.perf_counter()
        words = self.draw()
        self.image.value = image(self.figure, words)
        self.said.value = words
        self._enable()
        self.drawn = time.perf_counter()
        self.drawing = self.drawn - begun

    async def _drive(self) -> None:
        """Slice after slice, with a rest between; an interrupt between cells pauses it."""
        try:
            self._listen()
            while self.pump(SLICE):
                await asyncio.sleep(REST)
                if self.interrupted:
                    self.pause()
                self._listen()
        except KeyboardInterrupt:  # of a cell that was waiting meanwhile; the event loop would not survive it
            pass
        finally:
            self.pause()  # where it was cancelled
            if signal.getsignal(signal.SIGINT) is Live._interrupt:
                signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _listen(self) -> None:
        """Have interrupts: between cells a kernel ignores them."""
        alone = threading.current_thread() is threading.main_thread()  # others may not
        if alone and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, Live._interrupt)

    @staticmethod
    def _interrupt(number: int, frame: FrameType | None) -> None:
        if Live.latest is not None:
            Live.latest.interrupted = True

    def _end(self, state: str) -> None:
        assert self.working is not None
        self.state = state
        self.working.close()
        self.settle()
        self._enable()
        gc.unfreeze()

    def _enable(self) -> None:
        usable = {
            "start": self.state in ("ready", "paused"),
            "pause": self.state == "running",
            "stop": self.state in ("running", "paused"),
            "reset": self.state != "ready",
        }
        for name, button in self.buttons.items():
            button.disabled = not usable[name]
