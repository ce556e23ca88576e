"""RSO as a torch optimizer: for a training loop of your own, and for networks that torch.fx cannot trace."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rso_lab.data import usable_seed
from rso_lab.rso import RSO, annealing, apply, as_loss, candidate_losses, choose, layer_sigma, propose
from rso_lab.visits import Visit, weight_visits

_SETTINGS = {
    "order",
    "layer_order",
    "distribution",
    "sigma_scale",
    "sigma_end",
    "sigma_floor",
    "opposite",
    "batch_norm_sigma",
}


class RSOptimizer(torch.optim.Optimizer):
    """Each step searches one weight: it calls the closure for w, w + delta and w - delta and keeps the best.

        optimizer = RSOptimizer(model.named_parameters(), seed=0, cycles=5)
        for x, y in mini_batches:
            loss = optimizer.step(lambda: F.cross_entropy(model(x), y))

    The closure returns the loss of *one* mini-batch, the same for its three calls; gradients are not needed. Layers are
    visited from the last named one on, batch norms among them, over and over; sigma is annealed over `cycles` (with one
    it stays as it is). What batch norms count while the closure runs is the loop's own affair, as are checkpoints. A
    step is as slow as the plain evaluator's: `fit` knows more of the network. Further keywords are settings of `RSO`:
    order, layer_order, distribution, sigma_scale, sigma_end, sigma_floor, opposite, batch_norm_sigma.
    Raises ValueError for settings that cannot be, TypeError for parameters without names, FloatingPointError where the
    current loss is not finite.
    """

    def __init__(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], *, seed: int, cycles: int = 1, **settings: Any
    ):
        unknown = set(settings) - _SETTINGS
        if unknown:
            raise ValueError(f"settings {sorted(unknown)} are not known here: choose from {sorted(_SETTINGS)}")
        everything: dict[str, nn.Parameter] = {}
        for pair in named_parameters:
            if not isinstance(pair, tuple):
                raise TypeError(f"a {type(pair).__name__} without a name: expected model.named_parameters()")
            name, parameter = pair
            everything[name] = parameter
        self.named_parameters = {name: p for name, p in everything.items() if p.requires_grad}
        super().__init__(list(self.named_parameters.items()), defaults={})
        self.settings = RSO(cycles, batch_size=1, **settings)
        self.generator = torch.Generator().manual_seed(usable_seed(seed))
        self.layers: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in self.named_parameters.items():
            self.layers.setdefault(name.rpartition(".")[0], {})[name] = parameter
        self.sigmas: dict[str, float] = {}
        for layer, parameters in self.layers.items():
            own = {
                name.rpartition(".")[2]: parameter  # those that rest, too: a bias takes its weight's sigma
                for name, parameter in everything.items()
                if name.rpartition(".")[0] == layer
            }
            sigma = layer_sigma(layer, own, self.settings)
            self.sigmas |= dict.fromkeys(parameters, sigma)
        self.visits = self._visits()

    def _visits(self) -> Iterator[tuple[float, Visit]]:
        """The share of sigma and the weight of each step, without end."""
        layers = list(self.layers.items())
        if self.settings.layer_order == "output_first":
            layers.reverse()
        cycle = 1
        while True:
            scale = self.settings.sigma_scale * annealing(min(cycle, self.settings.cycles), self.settings)
            for layer, parameters in layers:
                for visit in weight_visits(layer, parameters, self.settings.order):
                    yield scale, visit
            cycle += 1

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be copied or pickled: the place in the order of visits cannot be."""
        raise TypeError("an RSOptimizer cannot be copied or pickled: make a new one from model.named_parameters()")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> float:  # type: ignore[override]
        """Search the next weight; returns the loss of the candidate that was chosen."""
        scale, visit = next(self.visits)
        proposal = propose(visit, self.named_parameters, self.sigmas, scale, self.settings.distribution, self.generator)
        device = self.named_parameters[visit.names[0]].device
        losses = candidate_losses(proposal, lambda: _loss_of(closure, device), self.settings.opposite)
        if not math.isfinite(losses[0]):
            raise FloatingPointError(f"the loss is {losses[0]} at {visit.names[0]}{list(visit.index)}")
        choice = choose(losses)
        apply(proposal, choice)
        return float(losses[choice])


def _loss_of(closure: Callable[[], Any], device: torch.device) -> Tensor:
    try:
        loss = closure()
    except RuntimeError as error:
        if "does not require grad" in str(error):
            raise RuntimeError("the closure calls backward(): RSO needs no gradients, leave it out") from error
        raise
    try:
        return as_loss(loss, device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"the closure returns {type(loss).__name__}: expected the loss, one number") from error
