"""RSO's relatives: ways to train that do without the gradient, or without most of it; a module a kind."""

from rso_lab.relatives.evolution import ES, GA, ESStepper, GAStepper
from rso_lab.relatives.masks import Masks, MasksStepper
from rso_lab.relatives.subspace import Subspace, SubspaceStepper

__all__ = ["ES", "GA", "ESStepper", "GAStepper", "Masks", "MasksStepper", "Subspace", "SubspaceStepper"]
