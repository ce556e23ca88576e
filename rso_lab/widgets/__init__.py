"""Things to play with in a notebook. Each shows a plain picture where widgets cannot run."""

from rso_lab.widgets.cost import Cost, Ripple
from rso_lab.widgets.deeper import Bill
from rso_lab.widgets.drawing import DrawDigit
from rso_lab.widgets.family import Cloud, Shadow
from rso_lab.widgets.grid import Grid
from rso_lab.widgets.microscope import Microscope
from rso_lab.widgets.quiz import Quiz
from rso_lab.widgets.recorded import Recorded
from rso_lab.widgets.sliders import Batches, Initialisation, Order, Steps
from rso_lab.widgets.training import Monitor, Race, watch
from rso_lab.widgets.workers import Clash, Workers

__all__ = [
    "Batches",
    "Bill",
    "Clash",
    "Cloud",
    "Cost",
    "DrawDigit",
    "Grid",
    "Initialisation",
    "Microscope",
    "Monitor",
    "Order",
    "Quiz",
    "Race",
    "Recorded",
    "Ripple",
    "Shadow",
    "Steps",
    "Workers",
    "watch",
]
