"""RSO, random search optimization: Algorithm 1 of Tripathi & Singh (2020), and where its lines are.

 1     X <- (X - mean) / deviation            data.load
 2-5   w_j <- N(0, sqrt(2 / |w_i|))           models.he_init_
 6     sigma_d <- deviation of W_d            initial_sigmas
 8     for c = 1 to C                         search
 9-10  for each layer from the last on        search_cycle (the orders are in visits)
11     for each of its weights w_j            one_by_one
12     x, l ~ X, L;  dw_j ~ N(0, sigma_d)     draw_batch, propose
13-14  W <- argmin of F(x, l, .) over         evaluator.search: losses, choose; apply
       W + dW_j, W, W - dW_j
15-19  d <- d - 1, end, return W              search_cycle, search
"""

import itertools
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, Field, dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, cast, get_args, get_origin

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from rso_lab.data import Data
from rso_lab.graph import Layer, Network, Values
from rso_lab.ranks import ALONE, Ranks
from rso_lab.visits import Index, Visit, sweeps

Choice = Literal["keep", "plus", "minus"]
CANDIDATES: tuple[Choice, ...] = get_args(Choice)  # w, w + delta, w - delta: the order of the three in a tensor
LossFunction = Callable[[Any, Tensor], Any]  # (outputs, targets (B, ...)) -> one number, for a mini-batch
Decide = Callable[[Tensor], Tensor]  # the three losses (3,) -> the place () of the chosen one
Settings = TypeVar("Settings")
BELOW_1 = math.nextafter(1, 0)


def explained(text: str, *, least: float | None = None, most: float = sys.float_info.max, **default: Any) -> Any:
    """A setting and its meaning; of a number also its range, from 1 where it is whole, else above 0, unless told."""
    return field(metadata={"help": text, "least": least, "most": most}, **default)


def with_meanings(kind: type[Settings]) -> type[Settings]:
    """The class, the meaning of each of its settings in its docstring."""
    meanings = [f"{setting.name}: {setting.metadata['help']}" for setting in fields(cast(Any, kind))]
    kind.__doc__ = "\n    ".join([str(kind.__doc__), *meanings])
    return kind


@with_meanings
@dataclass(frozen=True)
class RSO:
    """The settings of the search; sections (§) are the paper's.

    A proposal's sigma is sigma_d * sigma_scale * annealing, and a tenth of that at the layer and network level.
    Raises ValueError, naming the setting, its value and what is allowed.
    """

    cycles: int = explained("how many times every weight is visited")
    batch_size: int = explained("images in a mini-batch (§4.1: 5000)")
    _: KW_ONLY
    level: Literal["weight", "layer", "network"] = explained("what one proposal changes (§4.2)", default="weight")
    order: Literal["neuron", "input"] = explained(
        "within a layer: the weights of one output neuron first, or those of one input channel (§4.3)", default="neuron"
    )
    layer_order: Literal["output_first", "input_first"] = explained(
        "which end is searched first (§3)", default="output_first"
    )
    parallel: Literal[None, "neuron", "layer"] = explained(
        "search the neurons, or all weights, of a convolution against its state before, then merge (§4.6)", default=None
    )
    distribution: Literal["gaussian", "uniform", "template"] = explained(
        "of the changes: N(0, sigma), U(-2 sigma, 2 sigma), or one of -sigma, 0, sigma (§3)", default="gaussian"
    )
    sigma_scale: float = explained("sigma in the first cycle, in units of sigma_d (§4.1)", default=1.0)
    # For layers that begin with zeros: of 0.1 to 3, 1 and 3 are best on held-out images, results/sigma_floor.json.
    sigma_floor: float = explained(
        "sigma_d is at least so many times sqrt(2 / inputs of a neuron)", least=0, default=0.0
    )
    sigma_end: float = explained("sigma in the last cycle, as a share of the first's (§4.1)", default=0.1)
    batch_every: Literal["weight", "neuron", "layer"] = explained(
        "how long a mini-batch is held (paper: weight); above the weight level, always one proposal", default="weight"
    )
    batch_growth: float = explained("each cycle's mini-batches have so many times the images of the last", default=1.0)
    opposite: bool = explained("try w - delta too (§3)", default=True)
    weight_decay: float = explained(
        "times |W|^2 / 2 of convolutions and linear layers, added to the losses (§4.4)", least=0, default=0.0
    )
    batch_norm: bool = explained("search gamma and beta of the batch norms too (§4.1)", default=True)
    # The paper is silent on it. Best of 0.03 to 3 on held-out training images: results/batch_norm_sigma.json.
    batch_norm_sigma: float = explained("sigma_d of gamma and beta, and of others that start at 1", default=1.0)

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        refuse_what_cannot_be(self)
        if self.parallel is not None and self.level != "weight":
            raise ValueError(f"parallel is {self.parallel!r}: expected None at the level {self.level!r}")


def refuse_what_cannot_be(settings: Any) -> None:
    """Raise ValueError for a setting that is not of its type or in its range: name, value and what is allowed."""
    as_python(settings)
    for setting in fields(settings):
        value, kind, least, most = getattr(settings, setting.name), setting.type, *_range(setting)
        if get_origin(kind) is Literal:
            allowed, fits = " or ".join(map(repr, get_args(kind))), value in get_args(kind)
        elif kind is bool:
            allowed, fits = "True or False", isinstance(value, bool)
        elif kind is int:
            allowed, fits = f"a whole number, at least {least}", is_whole(value) and value >= least
        elif kind is float or kind == float | None:
            above = "0 or more" if least == 0 else "more than 0"
            allowed = f"a finite number, {above}" if most > 1 else f"a number, {above}, at most 1"
            allowed = "a number from 0 to below 1" if most < 1 else allowed
            fits = is_number(value) and least <= value <= most
            if kind is not float:
                allowed, fits = f"None or {allowed}", fits or value is None
        else:  # the class judges it
            continue
        if not fits:
            raise ValueError(f"{setting.name} is {value!r}: expected {allowed}")


def _range(setting: Field) -> tuple[float, float]:
    """The least and the most that a number may be."""
    least, most = setting.metadata["least"], setting.metadata["most"]
    return (1 if setting.type is int else math.ulp(0)) if least is None else least, most


def as_python(settings: Any) -> None:
    """Make Python's numbers of numpy's, in frozen settings and their tuples: JSON has those alone."""
    for setting in fields(settings):
        value = getattr(settings, setting.name)
        if isinstance(value, tuple):
            object.__setattr__(settings, setting.name, tuple(map(_as_python, value)))
        else:
            object.__setattr__(settings, setting.name, _as_python(value))


def _as_python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def is_whole(value: Any) -> bool:
    """Whether it is a Python integer (as JSON has them), and not True or False."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a Python integer or float, and not True or False."""
    return isinstance(value, int | float) and not isinstance(value, bool)


class Losses(NamedTuple):
    """The loss of the three candidates on one mini-batch; NaN for one that is not tried."""

    minus: float
    keep: float
    plus: float


@dataclass(frozen=True)
class Proposal:
    """Weights that may change, the changes, and the values that the candidates give them; all by parameter name."""

    weights: dict[str, Tensor]  # views of the network's parameters, of the shape that the proposal covers
    index: Index  # of the one weight within its parameter; () where the proposal covers whole tensors
    delta: dict[str, Tensor]  # as drawn, on the CPU
    sigma: dict[str, float]
    candidates: dict[str, Tensor]  # (3, ...): CANDIDATES


@dataclass(frozen=True)
class Step:
    """What happened at one proposal. Above the weight level, `delta` and `sigma` are by parameter name.

    On a GPU the search runs ahead of Python: to look at a step's losses or choice is to wait for it.
    """

    cycle: int
    layer: str | None  # dotted module name; None at the network level
    name: str | None  # dotted parameter name; None above the weight level
    index: Index  # of the weight within its parameter
    delta: float | dict[str, Tensor]
    sigma: float | dict[str, float]
    batch: Tensor  # (batch_size,) rows of x_train, on the CPU
    candidate_losses: Tensor  # (3,)
    chosen: Tensor  # (): the place in CANDIDATES

    @property
    def losses(self) -> Losses:
        """The loss of each candidate."""
        return Losses(**dict(zip(CANDIDATES, self.candidate_losses.tolist(), strict=True)))

    @property
    def choice(self) -> Choice:
        """The candidate that was taken."""
        return CANDIDATES[int(self.chosen)]


class Evaluator(Protocol):
    """Computes the three losses. Every evaluator gives the same ones, up to rounding."""

    name: str

    def begin_sweep(self, layer: Layer | None, rows: int) -> None:
        """This layer is searched next, and what comes before it rests; None: all layers are searched.

        `rows`: how many the mini-batches of the sweep will have in all.
        """

    def begin_batch(self, rows: Tensor) -> None:
        """These rows (B,) of the training set are the mini-batch from here on."""

    def search(
        self, proposals: list[Proposal], opposite: bool, penalties: Tensor | None, decide: Decide
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Lines 13-14 for one proposal after another, each in the network as the ones before have left it.

        Yields, for so many of them as it searches at a time, the candidates' losses (p, 3), float64, NaN for one not
        tried, and the places (p,) of the chosen candidates. Before it goes on, the caller gives the weights these
        values. No weight may be proposed twice. `penalties` (P, 3): what weight decay adds to each loss, as if no
        other proposal were accepted.
        """

    def losses(self, proposals: list[Proposal], opposite: bool) -> Tensor:
        """The candidates' losses (P, 3), float64, NaN for one not tried, each as if no other were proposed.

        Every weight is put back to what it was.
        """

    def commit(self, proposal: Proposal, choice: Tensor) -> None:
        """The weights now have the values of this candidate, of the one proposal that was evaluated last."""


def search(
    sigmas: dict[str, float],
    network: Network,
    data: Data,
    settings: RSO,
    evaluator: Evaluator,
    generator: torch.Generator,
    search_layer: "SearchLayer",
) -> Iterator[Step]:
    """Algorithm 1 from line 8 on, one step a proposal. The network holds the chosen weights when a step is yielded."""
    for cycle in range(1, settings.cycles + 1):  # line 8
        yield from search_cycle(cycle, sigmas, network, data, settings, evaluator, generator, search_layer)


@torch.no_grad()
def search_cycle(
    cycle: int,
    sigmas: dict[str, float],
    network: Network,
    data: Data,
    settings: RSO,
    evaluator: Evaluator,
    generator: torch.Generator,
    search_layer: "SearchLayer",
    first_sweep: int = 0,
) -> Iterator[Step]:
    """Lines 9-17: each weight once, from a sweep on. Then the batch norms hold the training set's statistics."""
    settings = replace(settings, batch_size=batch_size_in(cycle, settings))
    in_turn = sweeps(searched_layers(network, settings), settings.level, settings.order, settings.layer_order)
    try:
        for layer, visits in itertools.islice(in_turn, first_sweep, None):  # lines 9, 10, 16
            start = 1 if layer is None else layer.position
            network.refresh_statistics(data.x_train, before=start)
            sweep = Sweep(cycle, layer, list(visits), sigmas, network.module, len(data.x_train), settings, evaluator)
            evaluator.begin_sweep(layer, sweep.rows)
            network.stale |= {name for name, position in network.batch_norms.items() if position >= start}
            yield from search_layer(sweep, generator)
    finally:
        network.refresh_statistics(data.x_train)


@dataclass(frozen=True)
class Turn:
    """A visit, with all that is drawn for it."""

    visit: Visit
    rows: Tensor  # (batch_size,) of the training set, on the CPU
    proposal: Proposal


@dataclass(frozen=True)
class Sweep:
    """What it takes to search a layer."""

    cycle: int
    layer: Layer | None  # None above the weight level: all of them
    visits: list[Visit]
    sigmas: dict[str, float]
    model: nn.Module
    size: int  # of the training set
    settings: RSO
    evaluator: Evaluator

    @property
    def is_convolution(self) -> bool:
        """Whether the layer is one."""
        return self.layer is not None and self.layer.is_convolution

    @property
    def held(self) -> list[list[Visit]]:
        """The visits, in groups that share a mini-batch."""
        groups = [self.visits[:1]]
        for before, visit in itertools.pairwise(self.visits):
            if changes_batch(before, visit, self.settings):
                groups.append([])
            groups[-1].append(visit)
        return groups

    @property
    def rows(self) -> int:
        """How many the mini-batches have in all; where the neurons are searched apart, each begins them anew."""
        apart = self.settings.parallel == "neuron" and self.is_convolution
        begun = sum(len({visit.index[0] for visit in visits}) if apart else 1 for visits in self.held)
        return begun * self.settings.batch_size

    def groups(self, generator: torch.Generator) -> Iterator[list[Turn]]:
        """Line 12 for each visit, in order, in groups that share a mini-batch.

        A weight is visited once: its proposal holds until its turn comes.
        """
        settings = self.settings
        scale = settings.sigma_scale * annealing(self.cycle, settings) * (1 if settings.level == "weight" else 0.1)
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for visits in self.held:
            rows = draw_batch(self.size, settings.batch_size, generator)
            proposals = propose_all(visits, parameters, self.sigmas, scale, settings.distribution, generator)
            yield [Turn(visit, rows, proposal) for visit, proposal in zip(visits, proposals, strict=True)]

    def search(self, turns: list[Turn], decide: Decide) -> Iterator[tuple[Tensor, Tensor]]:
        """Lines 13-14 on the mini-batch of these turns: see `Evaluator.search`."""
        proposals = [turn.proposal for turn in turns]
        self.evaluator.begin_batch(turns[0].rows)
        return self.evaluator.search(proposals, self.settings.opposite, self.penalties(proposals), decide)

    def losses(self, proposals: list[Proposal]) -> Tensor:
        """The candidates' losses (P, 3), each as if no other were proposed, weight decay included (line 13)."""
        losses, penalties = self.evaluator.losses(proposals, self.settings.opposite), self.penalties(proposals)
        return losses if penalties is None else losses + penalties

    def penalties(self, proposals: list[Proposal]) -> Tensor | None:
        """What weight decay adds to the candidates' losses (P, 3); None where it is 0."""
        decay = self.settings.weight_decay
        return decay / 2 * square_norms(proposals, self.model) if decay else None

    def step(self, turn: Turn, losses: Tensor, choice: Tensor) -> Step:
        """What happened at a turn."""
        visit, delta, sigma = turn.visit, turn.proposal.delta, turn.proposal.sigma
        if self.settings.level != "weight":
            return Step(self.cycle, visit.layer, None, (), delta, sigma, turn.rows, losses, choice)
        (name,) = visit.names
        return Step(
            self.cycle, visit.layer, name, visit.index, delta[name].item(), sigma[name], turn.rows, losses, choice
        )

    def refuse_not_finite(self, losses: list[Tensor], layers: list[str | None]) -> None:
        """Read losses of the network in force. Raises FloatingPointError for one that is not finite."""
        for loss, layer in zip(torch.stack(losses).tolist(), layers, strict=True):
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} in cycle {self.cycle}, layer {layer!r}")


SearchLayer = Callable[[Sweep, torch.Generator], Iterator[Step]]


def one_by_one(sweep: Sweep, generator: torch.Generator, decide: Decide | None = None) -> Iterator[Step]:
    """Lines 11-14: each weight in the network as the weights before it have left it.

    `decide` takes the place of `choose`.
    """
    unread: list[Tensor] = []  # losses of the network in force
    layers: list[str | None] = []
    for turns in sweep.groups(generator):
        waiting = iter(turns)
        for losses, choices in sweep.search(turns, decide or choose):
            searched = list(itertools.islice(waiting, len(losses)))
            unread += losses[:, 0]
            layers += [turn.visit.layer for turn in searched]
            last = searched[-1].visit is sweep.visits[-1]
            if losses.is_cpu or last:  # a GPU need not wait for Python at each weight
                sweep.refuse_not_finite(unread, layers)
                unread, layers = [], []
            for turn, tried, choice in zip(searched, losses, choices, strict=True):
                apply(turn.proposal, choice)
                yield sweep.step(turn, tried, choice)


def searched_layers(network: Network, settings: RSO) -> list[Layer]:
    """The layers of the network that these settings search, in execution order."""
    return [layer for layer in network.layers if settings.batch_norm or not layer.is_batch_norm]


def initial_sigmas(network: Network, settings: RSO) -> dict[str, float]:
    """sigma_d for each searched parameter; biases share that of their layer's weights."""
    sigmas: dict[str, float] = {}
    for layer in searched_layers(network, settings):
        called = network.nodes[layer.position].op == "call_module"  # else its children are layers of their own
        sigma = layer_sigma(layer.name, dict(layer.module.named_parameters(recurse=called)), settings)
        sigmas |= dict.fromkeys(layer.parameters, sigma)
    return sigmas


def layer_sigma(layer: str, parameters: dict[str, nn.Parameter], settings: RSO) -> float:
    """sigma_d: the population deviation of all elements of a layer's weight tensor (line 6).

    Of all its matrices where none is called "weight"; `batch_norm_sigma` for batch norms and others that start at 1.
    Not less than `sigma_floor` says.
    """
    weight = parameters.get("weight")
    matrices = [weight] if weight is not None else [p for p in parameters.values() if p.dim() >= 2]
    if not matrices or matrices[0].dim() < 2 or bool((matrices[0] == 1).all()):
        return settings.batch_norm_sigma
    measured = float(torch.cat([p.detach().double().cpu().flatten() for p in matrices]).std(correction=0))
    sigma = max(measured, settings.sigma_floor * (2 / matrices[0][0].numel()) ** 0.5)
    if sigma == 0:
        remedy = "initialise them (rso_lab.models.he_init_ can), or set sigma_floor, to 1 for example"
        warnings.warn(f"all weights of layer {layer!r} are equal: sigma_d is 0, and they stay: {remedy}", stacklevel=2)
    return sigma


def annealing(cycle: int, settings: RSO) -> float:
    """The share of sigma left in this cycle: from 1 in the first, linearly, to `sigma_end` in the last (§4.1)."""
    if settings.cycles == 1:
        return 1.0
    return 1 - (1 - settings.sigma_end) * (cycle - 1) / (settings.cycles - 1)


def batch_size_in(cycle: int, settings: RSO) -> int:
    """Images in a mini-batch of this cycle."""
    return max(1, round(settings.batch_size * float(settings.batch_growth) ** (cycle - 1)))


def changes_batch(held: Visit, visit: Visit, settings: RSO) -> bool:
    """Whether this visit draws a new mini-batch, or goes on with that of the visit before."""
    if settings.batch_every == "weight" or settings.level != "weight":
        return True
    return settings.batch_every == "neuron" and visit.group != held.group


def draw_batch(n: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """Rows (batch_size,) of a training set of n, without replacement.

    By numpy, seeded from the generator: torch would shuffle all n for it.
    """
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).choice(n, batch_size, replace=False, shuffle=False))


def propose(
    visit: Visit,
    parameters: dict[str, nn.Parameter],
    sigmas: dict[str, float],
    scale: float,
    distribution: str,
    generator: torch.Generator,
) -> Proposal:
    """Draw a change for each weight that the visit covers, in float64, rounded to the weight's dtype."""
    weights = {name: parameters[name].detach()[visit.index] for name in visit.names}
    sigma = {name: sigmas[name] * scale for name in weights}
    delta = {
        name: (sigma[name] * draw(distribution, weight.shape, generator)).to(weight.dtype)
        for name, weight in weights.items()
    }
    moves = {name: delta[name].to(weight.device, non_blocking=True) for name, weight in weights.items()}
    candidates = {name: torch.stack([w, w + moves[name], w - moves[name]]) for name, w in weights.items()}
    return Proposal(weights, visit.index, delta, sigma, candidates)


def propose_all(
    visits: list[Visit],
    parameters: dict[str, nn.Parameter],
    sigmas: dict[str, float],
    scale: float,
    distribution: str,
    generator: torch.Generator,
) -> list[Proposal]:
    """`propose` for each visit; for several of one weight each with few calls of torch."""
    if len(visits) == 1:
        return [propose(visits[0], parameters, sigmas, scale, distribution, generator)]
    names = [visit.names[0] for visit in visits]
    weights = [parameters[name].detach()[visit.index] for name, visit in zip(names, visits, strict=True)]
    sigma = [sigmas[name] * scale for name in names]
    drawn = torch.stack([s * draw(distribution, torch.Size(), generator) for s in sigma]).to(weights[0].dtype)
    w, move = torch.stack(weights), drawn.to(weights[0].device, non_blocking=True)
    candidates = torch.stack([w, w + move, w - move], dim=1)
    return [
        Proposal({name: weight}, visit.index, {name: delta}, {name: s}, {name: values})
        for name, weight, visit, delta, s, values in zip(names, weights, visits, drawn, sigma, candidates, strict=True)
    ]


def draw(distribution: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Changes in units of sigma, float64 (§3)."""
    if distribution == "gaussian":
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    if distribution == "uniform":
        return 4 * torch.rand(shape, generator=generator, dtype=torch.float64) - 2
    return torch.randint(-1, 2, shape, generator=generator, dtype=torch.float64)


def candidate_losses(proposal: Proposal, loss: Callable[[], Tensor], opposite: bool) -> Tensor:
    """`loss()` with the weights at w, w + delta and w - delta (3,), float64. They are put back, whatever happens."""
    device = next(iter(proposal.weights.values())).device
    losses = torch.full((3,), math.nan, dtype=torch.float64, device=device)
    places = torch.arange(3, device=device).unbind()
    try:
        for place in places if opposite else places[:2]:
            apply(proposal, place)
            losses.index_copy_(0, place[None], loss()[None])
    finally:
        put_back(proposal)
    return losses


def as_loss(number: Any, device: torch.device) -> Tensor:
    """What a loss function gave, as a tensor (), float64. Raises ValueError where that is not one number."""
    loss = torch.as_tensor(number, dtype=torch.float64, device=device)
    if loss.numel() != 1:
        raise ValueError(f'it gives {loss.numel()} numbers: take their mean, reduction="mean" in torch\'s losses')
    return loss.reshape(())


def square_norms(proposals: list[Proposal], model: nn.Module) -> Tensor:
    """|W|^2 for each candidate (P, 3), float64; W: the weights of convolutions and linear layers (§4.4)."""
    decayed = {  # by their place in memory, each once: they may have several names
        module.weight.data_ptr(): module.weight.detach().double()
        for module in model.modules()
        if isinstance(module, _ConvNd | nn.Linear)
    }
    (values, *_) = proposals[0].candidates.values()
    norms = sum((weight.square().sum() for weight in decayed.values()), values.new_zeros((), dtype=torch.float64))
    found = norms.expand(len(proposals), 3).clone()
    for norm, proposal in zip(found, proposals, strict=True):
        for name, values in proposal.candidates.items():
            if proposal.weights[name].untyped_storage().data_ptr() in decayed:
                squares = values.double().square().reshape(3, -1).sum(1)
                norm += squares - squares[0]
    return found


def choose(losses: Tensor) -> Tensor:
    """The place () of the lowest loss in losses (3,); `keep` wins ties, and what is not finite never wins."""
    return losses.nan_to_num(math.inf, math.inf, math.inf).argmin()  # the first of equals


def apply(proposal: Proposal, choice: Tensor) -> None:
    """Give the weights the values of this candidate: they are set, never added to, so that nothing drifts."""
    for name, weight in proposal.weights.items():
        weight.copy_(proposal.candidates[name].index_select(0, choice).view_as(weight))


def put_back(proposal: Proposal) -> None:
    """Give the weights the values that they had."""
    for name, weight in proposal.weights.items():
        weight.copy_(proposal.candidates[name][0])


CACHE = 2 * 2**30  # bytes of activations that are cached at most: the largest are near the input, and save the least


class PlainEvaluator:
    """Three forward passes through the whole network for each proposal: the reference.

    Where several ranks share each mini-batch, a rank runs its own images, and all have the losses over all of them.
    """

    name = "plain"
    start = 1  # the node from which the network is run

    def __init__(self, network: Network, data: Data, loss: LossFunction, ranks: Ranks = ALONE):
        self.network, self.data, self.loss_function, self.ranks = network, data, loss, ranks
        network.ranks = ranks

    def begin_sweep(self, layer: Layer | None, rows: int) -> None:
        """Batch norms before the layer rest: they use the training set's statistics."""
        self.position = 1 if layer is None else layer.position

    def begin_batch(self, rows: Tensor) -> None:
        """Fetch the mini-batch, this rank's part of it."""
        rows = self.ranks.own(rows).to(self.data.x_train.device, non_blocking=True)
        self.targets = self.data.y_train[rows]
        self.values = self.entering(rows)

    def entering(self, rows: Tensor) -> Values:
        """What enters at node `start`, for these rows."""
        return {self.network.input: self.data.x_train[rows]}

    def search(
        self, proposals: list[Proposal], opposite: bool, penalties: Tensor | None, decide: Decide
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The definition: one proposal at a time."""
        accepted: Tensor | float = 0.0  # what the accepted changes have added to the penalty
        for number, proposal in enumerate(proposals):
            losses = self.losses([proposal], opposite)
            if penalties is not None:
                losses = losses + penalties[number] + accepted
            choice = decide(losses[0])
            if penalties is not None:
                accepted = accepted + penalties[number].gather(0, choice.view(1))[0] - penalties[number, 0]
            yield losses, choice.view(1)
            self.commit(proposal, choice)

    def losses(self, proposals: list[Proposal], opposite: bool) -> Tensor:
        """Run the network with each candidate's weights."""
        losses = torch.stack([candidate_losses(proposal, self.loss, opposite) for proposal in proposals])
        return self.ranks.mean(losses, len(self.targets))

    def commit(self, proposal: Proposal, choice: Tensor) -> None:
        """Nothing: the network is read anew for each loss."""

    def loss(self) -> Tensor:
        """The mini-batch's loss () with the weights as they are, float64."""
        values = self.network.propagate(self.values, self.start, batch_statistics_from=self.position)
        return as_loss(self.loss_function(values[self.network.nodes[-1]], self.targets), self.targets.device)


class CachedEvaluator(PlainEvaluator):
    """Computes what enters the searched layer once a sweep, for the whole training set, and starts there (§4.7).

    Where the mini-batches of the sweep have fewer rows than twice the training set, for each of them: storing what
    enters and fetching it again would cost as much.
    """

    name = "cached"

    def __init__(self, network: Network, data: Data, loss: LossFunction, ranks: Ranks = ALONE):
        super().__init__(network, data, loss, ranks)
        self.cache: Values = {}
        self.entered: Values = {}

    def begin_sweep(self, layer: Layer | None, rows: int) -> None:
        """Fill the activation cache, or leave it empty where it does not pay, or would not fit the memory.

        From the one before, where that ends earlier in the network: nothing before its layer has changed since.
        """
        before, begin = self.cache, self.start
        super().begin_sweep(layer, rows)
        self.start = self.position
        self.frontier = self.network.frontier(self.start)
        self.cache, self.entered = {}, {}
        x = self.data.x_train
        self.few: Values = {}
        if rows < 2 * len(x) or not self._are_apart() or not self._fits():
            return
        if not before or self.start < begin:
            before, begin = {self.network.input: x}, 1
        rooms = [value.new_empty((len(x), *value.shape[1:]), device="meta") for value in self.few.values()]
        used = list(before.values()) if begin > 1 else []
        if [(r.shape, r.dtype) for r in rooms] == [(u.shape, u.dtype) for u in used]:
            rooms = used  # piece by piece in place of the old ones
        else:
            rooms = [torch.empty_like(room, device=x.device) for room in rooms]
        self.cache = dict(zip(self.frontier, rooms, strict=True))
        self._run_to(self.cache, before, begin)

    def _are_apart(self) -> bool:
        """Whether what enters for a row is the same whatever the other rows are, judged by the first 16."""
        if not self.few:
            x = self.data.x_train[:16]
            found = self.run_up_to_layer(x)
            self.few = {node: found[node] for node in self.frontier}
            aliased = self.network.writes_in_place and len(self.frontier) > 1  # views, which pieces would take apart
            per_row = all(_is_per_row(value, len(x)) for value in self.few.values())
            # Two halves: activations that depend on the images beside them differ in one of them at least.
            halves = (slice(first, None, 2) for first in range(min(2, len(x))))
            self.apart = per_row and not aliased and all(self._agrees(x[half], half) for half in halves)
        return self.apart

    def _agrees(self, x: Tensor, rows: slice) -> bool:
        """Whether some of the first rows give the same when they are run without the others."""
        values = self.run_up_to_layer(x)
        return all(_are_close(value[rows], values[node]) for node, value in self.few.items())

    def entering(self, rows: Tensor) -> Values:
        """What enters the searched layer, for these rows."""
        if not self.cache and (self.network.is_one_piece(len(rows)) or not self._are_apart()):
            return self.run_up_to_layer(self.data.x_train[rows])
        for node, value in self.few.items():
            shape = (len(rows), *value.shape[1:])
            if node not in self.entered or self.entered[node].shape != shape:
                self.entered[node] = value.new_empty(shape)
        if self.cache:
            for node, values in self.cache.items():
                self.gather(values, rows, self.entered[node])
        else:
            self._run_to(self.entered, {self.network.input: self.data.x_train[rows]}, 1)
        return dict(self.entered)

    def _run_to(self, rooms: Values, given: Values, begin: int) -> None:
        """From node `begin` on, given what enters there, up to the searched layer: piece by piece, into `rooms`."""
        places = {room.untyped_storage().data_ptr() for room in rooms.values()}

        def store(values: Values, piece: slice) -> None:
            found = [values[node] for node in rooms]
            # What lies in a room still (passed on as it was) would be overwritten before it is copied.
            found = [value.clone() if value.untyped_storage().data_ptr() in places else value for value in found]
            for room, value in zip(rooms.values(), found, strict=True):
                room[piece] = value

        self.network.in_pieces(given, store, start=begin, stop=self.start, keep=self.frontier)

    def gather(self, values: Tensor, rows: Tensor, out: Tensor) -> None:
        """Put these rows (B,) of values (N, ...) into out (B, ...)."""
        torch.index_select(values, 0, rows, out=out)

    def run_up_to_layer(self, x: Tensor) -> Values:
        """What the frontier puts out for x (B, ...)."""
        return self.network.propagate({self.network.input: x}, stop=self.start, keep=self.frontier)

    def _fits(self) -> bool:
        """Judged by the machine's memory, not by what is free of it just now: without a cache the last bits differ."""
        device = self.data.x_train.device
        memory = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else psutil.virtual_memory().total
        whole = sum(value[0].nbytes for value in self.few.values()) * len(self.data.x_train)
        return whole < min(memory / 4, CACHE)


def _are_close(value: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, up to rounding."""
    tolerance = torch.finfo(value.dtype).eps ** 0.5 if value.is_floating_point() else 0
    return torch.allclose(value, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def _is_per_row(value: Any, count: int) -> bool:
    """Whether a node puts out one entry for each of `count` rows."""
    return isinstance(value, Tensor) and value.shape[:1] == (count,)
