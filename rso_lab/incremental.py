"""The fast evaluator: a change travels through the network as a change, exactly.

One weight reaches one output channel of its layer. Behind the layer the change stays in a *span* of channels, through
batch norm, activation, pooling, flatten and addition, until a layer mixes the channels. There it *enters*: convolved
with the weights of its own channels, and added to the output that was kept. From there on all channels are computed.
When a candidate is chosen, what it computed becomes what is kept.

Where each layer takes what the one before puts out, and the mini-batch is not large, compiled loops search weight after
weight (`straight`). Any other path is run in stages (`stages`).
"""

import math
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rso_lab.data import Data
from rso_lab.graph import Layer, Network, Values, in_float32, pieces
from rso_lab.linear import Columns, WholeLinear
from rso_lab.paths import Path, change_of, find_path
from rso_lab.ranks import ALONE, Ranks
from rso_lab.rso import CANDIDATES, CachedEvaluator, Choice, Decide, LossFunction, Proposal, choose
from rso_lab.stages import Staged
from rso_lab.straight import LastLinear, Straight, find_segments, is_one_piece
from rso_lab.workers import single_threaded, workers

THREADED = 2**18  # numbers that a candidate's run writes from which on threads pay


class IncrementalEvaluator(CachedEvaluator):
    """Computes only what a change can change, and keeps what it can for the next proposal on the same mini-batch.

    Layers whose changes cannot be followed, and proposals of more than one weight, are left to the activation cache.
    """

    name = "incremental"

    def __init__(self, network: Network, data: Data, loss: LossFunction, ranks: Ranks = ALONE):
        super().__init__(network, data, loss, ranks)
        self.workers = workers()
        torch.empty(31 * 2**18)  # freed at once: from here on glibc keeps what is freed, instead of new pages each time
        x = data.x_train[:2]
        with torch.no_grad():
            self.examples = {network.input: x, **network.propagate({network.input: x}, keep=network.nodes[1:])}

    @in_float32
    def begin_sweep(self, layer: Layer | None, rows: int) -> None:
        """Fill the activation cache where it pays, and find the path behind the layer."""
        self.followed: Staged | Straight | LastLinear | None = None  # its memory is needed now
        super().begin_sweep(layer, rows)
        self.path = None if layer is None else find_path(self.network, layer, self.examples)
        self.segments = find_segments(self.path, self.examples) if self.path else None
        self.whole: WholeLinear | None = None
        if self.path and isinstance(self.path.origin.module, nn.Linear) and len(self.cache) == 1:
            readers = set(self.path.origin.source.users).intersection(self.network.nodes[self.position :])
            if readers == {self.path.origin.node}:
                self.whole = WholeLinear(self.path.origin.module, self.cache.pop(self.path.origin.source))

    def begin_batch(self, rows: Tensor) -> None:
        """Run the path with the network as it is, for what is kept and for the current loss."""
        if self.path is None:
            super().begin_batch(rows)
        else:
            rows = self.ranks.own(rows)
            self.begin_path(rows, {} if self.whole else self.entering(rows))

    @single_threaded
    @in_float32
    @torch.no_grad()
    def begin_path(self, rows: Tensor, given: Values) -> None:
        """The same, given what enters the path."""
        assert self.path is not None
        self.targets = self.data.y_train[rows]
        if self.followed is None or self.followed.size != len(rows):
            self.followed = self.follow_path(self.path, len(rows))
        x: Tensor | Columns = self.whole.inputs(rows) if self.whole else given[self.path.origin.source]
        if self.whole:
            given = {self.path.origin.node: self.whole.outputs(rows)}
        classes = self.targets if self.built_in else torch.zeros(len(rows), dtype=torch.int64)
        outputs = self.followed.begin(given, x, classes)
        straight = isinstance(self.followed, Straight | LastLinear)
        self.current = math.nan if straight and self.built_in else self.mean_loss(outputs)  # of this rank's images
        self.found: dict[Choice, float] = {}  # the candidates', of this rank's images

    def follow_path(self, path: Path, size: int) -> Staged | Straight | LastLinear:
        """What follows changes on mini-batches of this size."""
        if self.segments == []:
            return LastLinear(path, size)
        if self.segments and self.ranks.count == 1 and is_one_piece(path, self.examples, self.segments, size):
            return Straight(self.network, path, self.examples, size, self.segments)
        return Staged(self.network, path, self.examples, self.workers, size)

    @property
    def built_in(self) -> bool:
        """Whether the compiled loops compute the loss."""
        return self.loss_function is F.cross_entropy and self.data.y_train.dtype == torch.int64

    def gather(self, values: Tensor, rows: Tensor, out: Tensor) -> None:
        """As the cached evaluator, each worker a share."""
        shares = pieces(len(rows), -(-len(rows) // self.workers.count) if out.numel() > THREADED else len(rows))
        self.workers.run([partial(torch.index_select, values, 0, rows[share], out=out[share]) for share in shares])

    def side_by_side(self, count: int) -> bool:
        """Whether the candidates of so many proposals are computed by a thread each."""
        assert self.followed is not None
        return count * self.followed.numbers > THREADED

    def search(
        self, proposals: list[Proposal], opposite: bool, penalties: Tensor | None, decide: Decide
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """In compiled loops, some tenths of a second at a time, where they know the path, the loss and the choice."""
        straight = self.followed
        alone = self.ranks.count == 1 and not (self.workers.count > 1 and self.side_by_side(1))
        if not (isinstance(straight, Straight | LastLinear) and alone and self.built_in and decide is choose):
            yield from super().search(proposals, opposite, penalties, decide)
            return
        accepted: Tensor | float = 0.0  # what the accepted changes have added to the penalty
        for first in range(0, len(proposals), straight.at_once):
            some = slice(first, first + straight.at_once)
            extra = None if penalties is None else penalties[some] + accepted
            losses, choices = self.search_some(proposals[some], opposite, extra)
            if penalties is not None:
                accepted = accepted + (penalties[some].gather(1, choices[:, None])[:, 0] - penalties[some, 0]).sum()
            yield losses, choices

    @single_threaded
    def search_some(self, proposals: list[Proposal], opposite: bool, penalties: Tensor | None) -> tuple[Tensor, Tensor]:
        """The losses (P, 3) of these proposals, one after another, and the choices (P,), which are kept."""
        assert isinstance(self.followed, Straight | LastLinear)
        found = self.followed.search(proposals, (1, 3 if opposite else 2), penalties, True)
        losses, choices = map(torch.from_numpy, found)
        if self.whole:
            for number in choices.nonzero().flatten().tolist():
                self.whole.commit(change_of(proposals[number], int(choices[number])))
        return losses, choices

    @single_threaded
    @in_float32
    def losses(self, proposals: list[Proposal], opposite: bool) -> Tensor:
        """The current loss is known; a candidate's takes what its change can change."""
        if self.followed is None or self.path is None:
            return super().losses(proposals, opposite)
        if isinstance(self.followed, Straight | LastLinear):
            own = self.straight_losses(self.followed, proposals, opposite)
            return self.ranks.mean(own.T, len(self.targets)).T
        if len(proposals) > 1 and not isinstance(self.path.origin.module, nn.Conv2d):  # settled for one weight only
            return torch.cat([self.losses([proposal], opposite) for proposal in proposals])
        for proposal in proposals:
            self.followed.prepare(next(iter(proposal.weights)).rpartition(".")[2], proposal.index)
        tried = CANDIDATES[1:] if opposite else CANDIDATES[1:2]
        if self.ranks.count > 1:  # together: what ranks tell each other has an order, and takes long
            found = self.changed_losses(self.followed, proposals, tried)
        else:
            tasks = [partial(self.changed_losses, self.followed, proposals, (candidate,)) for candidate in tried]
            team = len(tasks) if self.side_by_side(len(proposals)) else 1
            found = [losses for (losses,) in self.workers.run(tasks, team)]
        keep, untried = [self.current] * len(proposals), [math.nan] * len(proposals)
        own = torch.tensor([keep, *found, untried][:3], dtype=torch.float64)
        return self.ranks.mean(own, len(self.targets)).T

    def straight_losses(self, straight: Straight | LastLinear, proposals: list[Proposal], opposite: bool) -> Tensor:
        """This rank's losses (P, 3), NaN for one not tried; a loss of the user's gets the outputs."""
        tried = range(1, 3 if opposite else 2)
        apart = self.side_by_side(1)
        if self.built_in and not apart:
            losses, _ = straight.search(proposals, (1, tried.stop), None, False)
            return torch.from_numpy(losses)
        found = torch.full((len(proposals), 3), math.nan, dtype=torch.float64)
        for losses, proposal in zip(found, proposals, strict=True):
            current = straight.prepare(proposal)
            losses[0] = current if self.built_in else self.current
            tasks = [partial(self.loss_at, straight, proposal, candidate) for candidate in tried]
            tried_now = self.workers.run(tasks, len(tasks) if apart else 1)
            losses[1 : tried.stop] = torch.tensor(tried_now, dtype=torch.float64)
            self.found = dict(zip(CANDIDATES, losses.tolist(), strict=True))
        return found

    def loss_at(self, straight: Straight | LastLinear, proposal: Proposal, candidate: int) -> float:
        """This rank's loss with the weight at this candidate's value."""
        if not self.built_in:
            return self.mean_loss(straight.outputs_at(proposal, candidate))
        losses, _ = straight.search([proposal], (candidate, candidate + 1), None, False)
        return losses[0, candidate]

    def changed_losses(self, staged: Staged, proposals: list[Proposal], tried: tuple[Choice, ...]) -> list[list[float]]:
        """This rank's losses (candidates, P) with each weight at a candidate's value, the others as they are."""
        losses: dict[Choice, list[float]] = {candidate: [] for candidate in tried}
        for proposal in proposals:
            changes = {candidate: change_of(proposal, CANDIDATES.index(candidate)) for candidate in tried}
            moving = {candidate: change for candidate, change in changes.items() if change.step != 0}
            outputs = dict(zip(moving, staged.run_changed(moving), strict=True))
            for candidate in tried:
                losses[candidate].append(self.mean_loss(outputs[candidate]) if candidate in moving else self.current)
        self.found |= {candidate: found[-1] for candidate, found in losses.items()}
        return list(losses.values())

    @single_threaded
    def commit(self, proposal: Proposal, choice: Tensor) -> None:
        """What the chosen candidate computed is kept."""
        candidate = CANDIDATES[int(choice)]
        if self.followed is None or candidate == "keep":
            return
        change = change_of(proposal, int(choice))
        if change.step == 0:
            return
        if isinstance(self.followed, Staged):
            self.followed.keep(candidate, change)
        else:
            self.followed.keep(proposal, int(choice))
        self.current = self.found.get(candidate, math.nan)
        if self.whole:
            self.whole.commit(change)

    def mean_loss(self, outputs: Tensor) -> float:
        """The loss function's, for the outputs (B, classes)."""
        if self.loss_function is F.cross_entropy:  # several times as fast with the classes first
            return float(F.cross_entropy(outputs.T.contiguous()[None], self.targets[None]))
        return float(self.loss_function(outputs.clone(memory_format=torch.contiguous_format), self.targets))
