"""Train neural networks without gradients, one weight at a time: RSO (Tripathi & Singh 2020), made to be read."""

from importlib import import_module
from typing import Any

_HOMES = {
    "ES": "relatives",
    "GA": "relatives",
    "Masks": "relatives",
    "RSO": "rso",
    "RSOptimizer": "optim",
    "SGD": "sgd",
    "Step": "rso",
    "Subspace": "relatives",
    "Data": "data",
    "load": "data",
    "cost": "estimate",
    "History": "history",
    "Record": "history",
    "fit": "train",
    "histories": "train",
    "run": "train",
    "steps": "train",
}
_MODULES = ("doctor", "experiments", "lessons", "models", "plots", "widgets")

__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    """Import each name when it is first used, so that `doctor` runs, and says so, where torch is missing."""
    if name in _MODULES:
        return import_module(f"rso_lab.{name}")
    if name in _HOMES:
        return getattr(import_module(f"rso_lab.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'rso_lab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
