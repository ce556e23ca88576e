"""Train neural networks without gradients, one weight at a time: RSO (Tripathi & Singh 2020), made to be read."""

from rso_lab import models
from rso_lab.data import Data, load
from rso_lab.history import History, Record
from rso_lab.rso import RSO, Step
from rso_lab.train import fit, histories, run, steps

__all__ = ["RSO", "Data", "History", "Record", "Step", "fit", "histories", "load", "models", "run", "steps"]
