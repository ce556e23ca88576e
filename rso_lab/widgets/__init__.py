"""Things to play with in a notebook. Each shows a plain picture where widgets cannot run."""

from rso_lab.widgets.grid import Grid
from rso_lab.widgets.microscope import Microscope
from rso_lab.widgets.quiz import Quiz
from rso_lab.widgets.recorded import Recorded
from rso_lab.widgets.sliders import Batches, Initialisation, Order, Steps
from rso_lab.widgets.training import Monitor, Race, watch

__all__ = [
    "Batches",
    "Grid",
    "Initialisation",
    "Microscope",
    "Monitor",
    "Order",
    "Quiz",
    "Race",
    "Recorded",
    "Steps",
    "watch",
]
