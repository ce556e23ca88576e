"""RSO as a torch optimizer: for a training loop of your own, and for networks that torch.fx cannot trace."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rso_lab.data import usable_seed
from rso_lab.rso import RSO, annealing, apply, as_loss, candidate_losses, choose, is_number, layer_sigma, propose
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

        optimizer = RSOptimizer(model.named_parameters(), seed=0)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)  # of sigma
        for epoch in range(10):
            for x, y in loader:
                optimizer.step(lambda: F.cross_entropy(model(x), y))
            scheduler.step()

    The closure returns the loss of *one* mini-batch, the same for its three calls; gradients are not needed. Layers are
    visited from the last named one on, batch norms among them, over and over. Sigma is a layer's sigma_d times its
    group's "lr", which torch's schedulers change; it begins as `sigma_scale`, and a group of parameters may have its
    own: [{"params": model.head.named_parameters(prefix="head"), "lr": 0.1}, ...]. Over `cycles` it is annealed, too
    (with one it stays as it is). `state_dict` has what it takes to go on: the place in the order of visits, too.

    What batch norms count while the closure runs is the loop's own affair. A step is as slow as the plain evaluator's:
    `fit` knows more of the network. Further keywords are settings of `RSO`: order, layer_order, distribution,
    sigma_scale, sigma_end, sigma_floor, opposite, batch_norm_sigma.
    Raises ValueError for settings that cannot be, TypeError for parameters without names, FloatingPointError where the
    current loss is not finite.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]] | Iterable[dict[str, Any]],
        *,
        seed: int,
        cycles: int = 1,
        **settings: Any,
    ):
        unknown = set(settings) - _SETTINGS
        if unknown:
            raise ValueError(f"settings {sorted(unknown)} are not known here: choose from {sorted(_SETTINGS)}")
        self.settings = RSO(cycles, batch_size=1, **settings)
        self.generator = torch.Generator().manual_seed(usable_seed(seed))
        self.named_parameters: dict[str, nn.Parameter] = {}  # that are searched
        self.layers: dict[str, dict[str, nn.Parameter]] = {}
        self.sigmas: dict[str, float] = {}
        self.rates: dict[str, dict[str, Any]] = {}  # of each layer the group, whose "lr" is times sigma
        self.cycle, self.done = 1, 0  # the cycle under way, and how many of its steps are
        given = list(named_parameters)
        groups: list[Any] = given if given and isinstance(given[0], dict) else [{"params": given}]
        super().__init__(groups, defaults={"lr": self.settings.sigma_scale})
        if not self.named_parameters:
            raise ValueError("there are no parameters to search (with requires_grad=True)")
        self.visits = self._visits()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Search these, too, from the next cycle on: {"params": named parameters, "lr": times sigma}."""
        everything: dict[str, nn.Parameter] = {}
        for pair in param_group["params"]:
            if not isinstance(pair, tuple):
                raise TypeError(f"a {type(pair).__name__} without a name: expected model.named_parameters()")
            name, parameter = pair
            if name in self.named_parameters:
                raise ValueError(f"two groups have a {name!r}: give whole names, as named_parameters(prefix=...) does")
            everything[name] = parameter
        searched = {name: parameter for name, parameter in everything.items() if parameter.requires_grad}
        super().add_param_group(param_group | {"params": list(searched.items())})
        group = self.param_groups[-1]
        if not is_number(group["lr"]) or not 0 <= group["lr"] < math.inf:
            raise ValueError(
                f"lr is {group['lr']!r}: expected a finite number, 0 or more, which sigma is multiplied by"
            )
        layers: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in searched.items():
            layers.setdefault(name.rpartition(".")[0], {})[name] = parameter
        for layer, parameters in layers.items():
            own = {
                name.rpartition(".")[2]: parameter  # those that rest, too: a bias takes its weight's sigma
                for name, parameter in everything.items()
                if name.rpartition(".")[0] == layer
            }
            self.sigmas |= dict.fromkeys(parameters, layer_sigma(layer, own, self.settings))
            place = f"{len(self.param_groups)} {layer}"  # a layer may have parts in several groups
            self.layers[place], self.rates[place] = parameters, group
        self.named_parameters |= searched

    def _visits(self) -> Iterator[tuple[float, Visit]]:
        """The share of sigma and the weight of each step from `cycle` and `done` on, without end."""
        while True:
            places = list(self.layers)
            if self.settings.layer_order == "output_first":
                places.reverse()
            visits = ((place, visit) for place in places for visit in self._visits_of(place))
            for place, visit in itertools.islice(visits, self.done, None):
                self.done += 1
                scale = annealing(min(self.cycle, self.settings.cycles), self.settings)
                yield scale * self.rates[place]["lr"], visit
            self.cycle, self.done = self.cycle + 1, 0

    def _visits_of(self, place: str) -> Iterator[Visit]:
        return weight_visits(place.partition(" ")[2], self.layers[place], self.settings.order)

    def state_dict(self) -> dict[str, Any]:
        """As torch's, and the search's own: the generator, sigma_d of each parameter and how far it is."""
        search = {
            "generator": self.generator.get_state(),
            "sigmas": dict(self.sigmas),
            "cycle": self.cycle,
            "done": self.done,
        }
        return super().state_dict() | {"search": search}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; the model's weights are loaded by itself. Raises ValueError for one of other parameters."""
        search = state_dict.get("search", {})
        if search.get("sigmas", {}).keys() != self.sigmas.keys():
            raise ValueError("the state is not of an RSOptimizer with these parameters")
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "search"})
        groups = {place: int(place.partition(" ")[0]) - 1 for place in self.layers}
        self.rates = {place: self.param_groups[number] for place, number in groups.items()}  # torch makes new ones
        self.generator.set_state(search["generator"])
        self.sigmas = dict(search["sigmas"])
        self.cycle, self.done = search["cycle"], search["done"]
        self.visits = self._visits()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be copied or pickled: the place in the order of visits cannot be."""
        raise TypeError("an RSOptimizer cannot be copied or pickled: load its state_dict into a new one")

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
