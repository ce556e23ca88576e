"""Running a search: steps to look inside, records to follow it, and `fit`."""

import contextlib
import copy
import math
import os
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from tqdm.auto import tqdm

from rso_lab.checkpoint import Checkpoints, State, identify
from rso_lab.counts import StepCosts, forward_cost
from rso_lab.data import Data, usable_device, usable_seed
from rso_lab.descent import Stepper, Task, batches_of, descend
from rso_lab.fused import kernels
from rso_lab.graph import Network
from rso_lab.history import History, Record, machine, versions
from rso_lab.incremental import IncrementalEvaluator
from rso_lab.judge import measured, refuse_unfit
from rso_lab.on_device import OnDeviceEvaluator
from rso_lab.parallel import layer_search
from rso_lab.ranks import ALONE, Ranks
from rso_lab.relatives import ES, GA, ESStepper, GAStepper, Masks, MasksStepper, Subspace, SubspaceStepper
from rso_lab.rso import (
    CANDIDATES,
    RSO,
    CachedEvaluator,
    Evaluator,
    LossFunction,
    PlainEvaluator,
    Step,
    batch_size_in,
    initial_sigmas,
    search,
    search_cycle,
    searched_layers,
)
from rso_lab.sgd import SGD, SGDStepper

Descent = SGD | Subspace | ES | GA | Masks  # what trains by steps of one mini-batch each
Method = RSO | Descent
STEPPERS: dict[type, Callable[[Any, Task], Stepper]] = {
    SGD: SGDStepper,
    Subspace: SubspaceStepper,
    ES: ESStepper,
    GA: GAStepper,
    Masks: MasksStepper,
}


def _incremental(network: Network, data: Data, loss: LossFunction, ranks: Ranks = ALONE) -> Evaluator:
    """With compiled kernels on the CPU, where there are some; else in plain torch operations."""
    compiled = data.x_train.device.type == "cpu" and kernels is not None
    return (IncrementalEvaluator if compiled else OnDeviceEvaluator)(network, data, loss, ranks)


EVALUATORS: dict[str, Callable[..., Evaluator]] = {
    "auto": _incremental,
    "plain": PlainEvaluator,
    "cached": CachedEvaluator,
    "incremental": _incremental,
}


def fit(
    model: nn.Module,
    data: Data,
    method: Method,
    *,
    seed: int,
    evaluator: str = "auto",
    device: str | torch.device | None = None,
    loss: LossFunction = F.cross_entropy,
    metric: LossFunction | None = None,
    checkpoint: str | os.PathLike | None = None,
    resume: bool = False,
    ranks: Ranks = ALONE,
) -> History:
    """Train `model` in place on `data`, as it comes, with the settings `method`; a progress bar shows how far it is.

    RSO measures sigma_d on the weights that it comes with: `models.he_init_` gives them the paper's spread.

    `seed` is below 2**32: torch's generator on the CPU keeps no more of it. Methods with noise have another generator
    for it, so that all methods but RSO see the same mini-batches at the same seed.

    `evaluator` is "plain", "cached", "incremental" or "auto", the fastest on the device; it is RSO's. `device` is where
    the data are unless given; `loss(outputs, targets)` gives one number for what the network puts out and targets
    (B, ...), for RSO, ES and GA differentiable or not. Where the targets are labels, accuracy is that of outputs
    (B, classes), or of the logit of class 1 of two, (B, 1) or (B,): of the first tensor where there are several. With
    other targets or outputs, `metric(outputs, targets)` is the number to look at: it is taken, as accuracy is, of all
    test and of all training images after each cycle.

    Then the model is in eval mode and its batch norms hold the training set's statistics, also after an interrupt or an
    error. A frozen one (it comes in eval mode, its gamma and beta with requires_grad=False) keeps what it has.

    `checkpoint` is a folder in which the state is kept after layer sweeps, for other methods than RSO after epochs.
    With `resume`, the run goes on from there, whatever the model's weights are, and ends in the weights that it would
    have reached undisturbed (with another number of ranks that share each mini-batch: up to rounding).

    `ranks`: the processes that share the search, from `ranks.joined()`. With a `parallel` setting each searches a part
    of a convolution's weights, otherwise each has a part of every mini-batch. Of Subspace each has a part of the
    directions, of ES and GA one of the members: the weights are one process's, bit for bit, where each has as many
    threads. Rank 0 shows progress and writes.

    Raises ValueError or TypeError for what cannot be searched, before anything is drawn, and for checkpoints of
    another run; FloatingPointError when the loss is not finite; RanksError when another rank has ended.
    """
    options: dict[str, Any] = {"evaluator": evaluator, "device": device, "loss": loss, "metric": metric}
    options |= {"checkpoint": checkpoint, "resume": resume, "ranks": ranks}
    growing = histories(model, data, method, seed=seed, **options)
    return deque(growing, maxlen=1).pop()


def steps(model: nn.Module, data: Data, method: RSO, *, seed: int, **options: Any) -> Iterator[Step]:
    """Train, and yield every step when its choice is made. Options and errors as for `fit`, without checkpoints."""
    if {"checkpoint", "resume"} & options.keys():
        raise TypeError("steps() keeps no checkpoints: use run() or fit()")
    if not isinstance(method, RSO):
        raise TypeError(f"method is a {type(method).__name__}: expected settings such as rso_lab.RSO(...)")
    job = prepare(model, data, method, seed, **options)
    assert isinstance(job.method, RSO)
    assert job.evaluator is not None
    way = layer_search(job.method.parallel, job.ranks)
    found = search(job.sigmas, job.network, job.data, job.method, job.evaluator, job.generator, way)
    return _undisturbed(found, job)


def _undisturbed(events: Iterator[Any], job: "Job") -> Iterator[Any]:
    """The events. Whatever the caller has set meanwhile, each module goes on in the mode, train or eval, it was in."""
    with contextlib.closing(events):  # type: ignore[type-var]
        _refuse_autocast(job.method, job.data)
        modules = list(job.network.module.modules())
        for event in events:
            modes = [module.training for module in modules]
            yield event
            for module, training in zip(modules, modes, strict=True):
                if module.training != training:  # to set it takes long
                    module.training = training
            _refuse_autocast(job.method, job.data)


def _refuse_autocast(method: Method, data: Data) -> None:
    if isinstance(method, RSO) and torch.is_autocast_enabled(data.x_train.device.type):
        raise ValueError("torch.autocast is on: RSO compares losses that its rounding would change; leave it for RSO")


def run(model: nn.Module, data: Data, method: Method, *, seed: int, **options: Any) -> Iterator[Record]:
    """Train, and yield a record after each layer sweep and each cycle; for other methods than RSO, after each epoch.

    Options and errors as for `fit`; a run that is resumed yields what comes after the checkpoint.
    """
    job = prepare(model, data, method, seed, **options)
    return _undisturbed((event for event in _events(job) if isinstance(event, Record)), job)


def histories(
    model: nn.Module, data: Data, method: Method, *, seed: int, command: str = "", **options: Any
) -> Iterator[History]:
    """Train, and yield the history so far after each cycle, with a progress bar. Options and errors as for `fit`."""
    job = prepare(model, data, method, seed, **options)
    return _undisturbed(_grow(job, command), job)


@dataclass
class _Progress:
    """How far a run is."""

    cycle: int = 1  # that is under way; but for RSO the epoch
    sweeps: int = 0  # that are done of this cycle; RSO's
    choices: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))  # of these sweeps
    evaluations: int = 0
    multiply_adds: int = 0
    seconds: float = 0.0
    records: list[Record] = field(default_factory=list)  # of the cycles that are done


@dataclass(frozen=True)
class Job:
    """Everything that a run needs, checked."""

    network: Network
    sigmas: dict[str, float]  # sigma_d of each parameter, as the model came; RSO's
    data: Data
    method: Method
    seed: int
    evaluator: Evaluator | None  # RSO's
    generator: torch.Generator
    loss: LossFunction
    metric: LossFunction | None = None
    stepper: Stepper | None = None  # the other methods'
    checkpoints: Checkpoints | None = None
    ranks: Ranks = ALONE
    progress: _Progress = field(default_factory=_Progress)

    @property
    def settings(self) -> dict[str, Any]:
        """What a history says of the run."""
        if isinstance(self.method, RSO):
            parameters = sum(layer.size for layer in searched_layers(self.network, self.method))
        else:
            parameters = sum(p.numel() for p in self.network.module.parameters() if p.requires_grad)
        return {
            "method": type(self.method).__name__,
            **asdict(self.method),
            "data": self.data.name,
            "train_images": len(self.data.x_train),
            "test_images": len(self.data.x_test),
            "parameters": parameters,
            "evaluator": self.computed_by,
            "loss": _name_of(self.loss),
            **({"metric": _name_of(self.metric)} if self.metric else {}),
        }

    @property
    def computed_by(self) -> str:
        """What gives the losses: RSO's evaluator, or how the others come by their step."""
        if isinstance(self.method, RSO):
            assert self.evaluator is not None
            return self.evaluator.name
        return "backpropagation" if self.method.uses_gradient else "forward passes"

    def keep_checkpoint(self) -> None:
        """This is a point at which the run can be resumed."""
        if self.checkpoints:
            state = self.state(self.checkpoints.identity)  # which ranks may have to put together
            if self.ranks.rank == 0:
                self.checkpoints.keep(state)

    def state(self, identity: dict[str, Any]) -> State:
        """All that the run goes on from."""
        progress = self.progress
        return State(
            identity=identity,
            weights={name: value.detach().clone() for name, value in self.network.module.state_dict().items()},
            stale=sorted(self.network.stale),
            sigmas=self.sigmas,
            descent=copy.deepcopy(self.stepper.state_dict()) if self.stepper else {},
            generator=self.generator.get_state(),
            cycle=progress.cycle,
            sweeps=progress.sweeps,
            choices={name: dict(counts) for name, counts in progress.choices.items()},
            evaluations=progress.evaluations,
            multiply_adds=progress.multiply_adds,
            seconds=progress.seconds,
            records=[asdict(record) for record in progress.records],
        )

    def go_on_from(self, state: State) -> None:
        """Take over everything from a state. Raises an error of some kind for one that is not of this run."""
        last = self.method.cycles if isinstance(self.method, RSO) else self.method.epochs
        counted = [counts for counts in state.choices.values() if min(counts.values(), default=0) > 0]
        if not (
            state.sigmas.keys() == self.sigmas.keys()
            and set(state.stale) <= set(self.network.batch_norms)
            and 1 <= state.cycle == len(state.records) + 1 <= last + 1
            and state.choices.keys() <= {"all", *(layer.name for layer in self.network.layers)}
            and len(counted) == len(state.choices)
            and set().union(*counted) <= set(CANDIDATES)
            and min(state.sweeps, state.evaluations, state.multiply_adds, state.seconds) >= 0
        ):
            raise ValueError("its parts do not go together")
        self.network.module.load_state_dict(state.weights)
        self.network.stale.clear()
        self.network.stale |= set(state.stale)
        self.sigmas.update(state.sigmas)
        if self.stepper:
            self.stepper.load_state_dict(state.descent)
        self.generator.set_state(state.generator)
        progress = self.progress
        progress.cycle, progress.sweeps = state.cycle, state.sweeps
        progress.choices.clear()
        progress.choices.update({name: Counter(counts) for name, counts in state.choices.items()})
        progress.evaluations, progress.multiply_adds = state.evaluations, state.multiply_adds
        progress.seconds = state.seconds
        progress.records[:] = [Record(**record) for record in state.records]


def prepare(
    model: nn.Module,
    data: Data,
    method: Method,
    seed: int,
    evaluator: str = "auto",
    device: str | torch.device | None = None,
    loss: LossFunction = F.cross_entropy,
    metric: LossFunction | None = None,
    checkpoint: str | os.PathLike | None = None,
    resume: bool = False,
    ranks: Ranks = ALONE,
) -> Job:
    """Everything checked, and nothing drawn yet. Arguments and errors as for `fit`."""
    if not isinstance(data, Data):
        raise TypeError(
            f"data is a {type(data).__name__}: expected rso_lab.Data, from load, "
            "Data.from_arrays(x_train, y_train, x_test, y_test) or, of data sets, Data.from_dataset(train, test)"
        )
    if not isinstance(method, Method):
        raise TypeError(f"method is a {type(method).__name__}: expected settings such as rso_lab.RSO(...)")
    seed = usable_seed(seed)
    for what, function in (("loss", loss), ("metric", metric)):
        if isinstance(function, type):
            raise TypeError(f"{what} is the class {function.__name__}: pass an instance of it, {function.__name__}()")
    if evaluator not in tuple(EVALUATORS):
        raise ValueError(f"evaluator is {evaluator!r}: expected {' or '.join(map(repr, EVALUATORS))}")
    kind = type(method).__name__
    if not isinstance(method, RSO) and evaluator != "auto":
        raise ValueError(f"evaluator is {evaluator!r}: expected 'auto' for {kind}, which has none")
    if resume and checkpoint is None:
        raise ValueError("resume is True without a checkpoint: name the folder that it is in")
    largest: float = method.batch_size
    if isinstance(method, RSO):
        with contextlib.suppress(OverflowError):
            largest = math.inf
            largest = max(batch_size_in(cycle, method) for cycle in (1, method.cycles))
    if largest > len(data.x_train):
        raise ValueError(f"batch_size is {largest}: expected at most {len(data.x_train)}, the data set")
    data = data.to(usable_device(data.x_train.device if device is None else device))
    _refuse_autocast(method, data)
    if ranks.count > 1:
        _refuse_unshareable(method, data, loss, ranks)
    if isinstance(model, nn.Module):
        model.to(data.x_train.device)
    smallest = batch_size_in(method.cycles, method) if isinstance(method, RSO) else method.batch_size
    network = Network(model, data.x_train[: min(2, smallest, method.batch_size)])
    if ranks.count > 1 and network.mixes_rows and isinstance(method, RSO) and method.parallel is None:
        raise ValueError(f"what {type(model).__name__} says of an image depends on those beside it: ranks share those")
    if not (searched_layers(network, method) if isinstance(method, RSO) else network.layers):
        raise ValueError(f"{type(model).__name__} has no parameters that it uses and these settings search")
    if any(layer.name == "all" for layer in network.layers):
        raise ValueError("a layer is named 'all', which in a record is the whole network: give it another name")
    if isinstance(method, RSO) and method.weight_decay:
        _refuse_undecayable(network.module)
    refuse_unfit(network, data, loss, metric, None if isinstance(method, RSO) or not method.uses_gradient else kind)
    generator = torch.Generator().manual_seed(seed)
    given = [*model.state_dict().values(), data.x_train, data.y_train]
    if isinstance(method, RSO):
        sigmas = initial_sigmas(network, method)
        of_batch = ALONE if method.parallel else ranks  # who shares each mini-batch
        made = EVALUATORS[evaluator](network, data, loss, of_batch)
        job = Job(network, sigmas, data, method, seed, made, generator, loss, metric, ranks=ranks)
    else:
        stepper = stepper_for(method, network, data, seed, loss, ranks)
        job = Job(network, {}, data, method, seed, None, generator, loss, metric, stepper, ranks=ranks)
    ranks.refuse_to_disagree(given, "network, data or settings", (seed, method, job.computed_by))
    if checkpoint is None:
        return job
    checkpoints = Checkpoints(checkpoint, identify(job.settings, seed, model, data))
    _resume(job, checkpoints, resume)
    return replace(job, checkpoints=checkpoints)


def _name_of(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def stepper_for(
    method: Descent, network: Network, data: Data, seed: int, loss: LossFunction, ranks: Ranks = ALONE
) -> Stepper:
    """The method, ready to train the network. Raises ValueError for what it cannot train."""
    forward = forward_cost(network, data.x_train) * method.batch_size
    return STEPPERS[type(method)](method, Task(network, loss, seed, batches_of(data, method), forward, ranks))


def _refuse_undecayable(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd | nn.Linear) and "weight" not in dict(module.named_parameters(recurse=False)):
            raise ValueError(f"weight_decay is not 0, and {name!r} computes its weight from others (pruning, say)")


def _refuse_unshareable(method: Method, data: Data, loss: LossFunction, ranks: Ranks) -> None:
    """Raise ValueError for what cannot be shared between ranks."""
    if isinstance(method, SGD | Masks):
        raise ValueError(f"{type(method).__name__} runs in one process: start it without torchrun")
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.count)), torch.cuda.device_count()
    if data.x_train.device.type == "cuda" and here > gpus:
        raise ValueError(f"{here} ranks on this machine, and {gpus} GPU: NCCL wants one for each")
    if not isinstance(method, RSO):
        return
    smallest = min(batch_size_in(cycle, method) for cycle in (1, method.cycles))
    if method.parallel is None and smallest < ranks.count:
        raise ValueError(f"batch_size is {smallest}: expected at least {ranks.count}, an image for each rank")
    if method.parallel is None and loss is not F.cross_entropy:
        raise ValueError("the loss of a mini-batch that ranks share has to be the mean over its images: cross_entropy")


def _resume(job: Job, checkpoints: Checkpoints, wanted: bool) -> None:
    """Go on from the newest checkpoint, if there is one. Raises ValueError for one of another run or not wanted."""
    if checkpoints.exist() and not wanted:
        raise ValueError(
            f"{checkpoints.folder} holds the checkpoint of a run: resume it, or name another folder to begin anew"
        )
    if not wanted:
        return
    state, complaints, refusal = job.ranks.first(_read_state(checkpoints) if job.ranks.rank == 0 else (None, [], ""))
    if refusal:
        raise ValueError(refusal)
    said = [f"{complaint}; it is left out" for complaint in complaints]
    if state is None:
        said.append(f"{checkpoints.folder} has no checkpoint: the run starts from the beginning")
    else:
        before = job.state({})
        try:
            job.go_on_from(state)
        except Exception as error:  # torch lets through whatever it meets in the states of others
            job.go_on_from(before)
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{checkpoints.folder} holds a state that is not of this run ({reason})") from error
    for line in said if job.ranks.rank == 0 else ():
        print(line)


def _read_state(checkpoints: Checkpoints) -> tuple[State | None, list[str], str]:
    """The newest state, what is wrong with the files, and why it is refused, if it is."""
    try:
        return *checkpoints.read(), ""
    except ValueError as error:
        return None, [], str(error)


def _events(job: Job) -> Iterator[Step | Record]:
    """Every step; after a layer sweep and after a cycle, its record."""
    try:
        if isinstance(job.method, RSO):
            while job.progress.cycle <= job.method.cycles:
                yield from _cycle(job, job.method)
        else:
            yield from _epochs(job, job.method)
    finally:
        if job.checkpoints and job.ranks.rank == 0:
            job.checkpoints.write()


def _epochs(job: Job, method: Descent) -> Iterator[Record]:
    """What is left of the epochs."""
    assert job.stepper is not None
    stepper, progress, network = job.stepper, job.progress, job.network
    begun = time.perf_counter() - progress.seconds
    batches = batches_of(job.data, method)
    try:
        for steps_made in descend(network, job.data, method, stepper, job.generator, progress.cycle - 1):
            if steps_made % batches:
                continue
            network.stale = set(network.batch_norms)
            network.refresh_statistics(job.data.x_train)
            weights = list(network.module.parameters())
            job.ranks.refuse_to_disagree(weights, f"the weights after epoch {progress.cycle}")
            ended = Record(
                cycle=progress.cycle,
                layer=None,
                **measured(job.network, job.data, job.loss, job.metric),
                kept={},
                accepted={},
                updates=steps_made // stepper.period,
                evaluations=steps_made * stepper.evaluations,
                multiply_adds=steps_made * stepper.multiply_adds,
                seconds=time.perf_counter() - begun,
                evaluator=job.computed_by,
            )
            progress.records.append(ended)
            progress.cycle, progress.seconds = progress.cycle + 1, ended.seconds
            progress.evaluations, progress.multiply_adds = ended.evaluations, ended.multiply_adds
            job.keep_checkpoint()
            yield ended
            begun = time.perf_counter() - progress.seconds  # what was done with the record is no part of it
    finally:
        network.stale = set(network.batch_norms)
        network.refresh_statistics(job.data.x_train)


def _cycle(job: Job, method: RSO) -> Iterator[Step | Record]:
    """What is left of the cycle that is under way."""
    assert job.evaluator is not None
    evaluator = job.evaluator.name
    progress = job.progress
    begun = time.perf_counter() - progress.seconds

    def record(layer: str | None, choices: dict[str, Counter], **measured: Any) -> Record:
        kept = {name: counts["keep"] / counts.total() for name, counts in choices.items()}
        return Record(
            cycle=progress.cycle,
            layer=layer,
            kept=kept,
            accepted={name: 1 - share for name, share in kept.items()},
            updates=progress.cycle,
            evaluations=progress.evaluations,
            multiply_adds=progress.multiply_adds,
            seconds=time.perf_counter() - begun,
            evaluator=evaluator,
            **measured,
        )

    costs = StepCosts(job.network, job.data.x_train, method, evaluator)
    sizes = {layer.name: layer.size for layer in job.network.layers}
    unread: list[tuple[str | None, Tensor, Tensor]] = []
    cycle_steps = search_cycle(
        progress.cycle,
        job.sigmas,
        job.network,
        job.data,
        method,
        job.evaluator,
        job.generator,
        layer_search(method.parallel, job.ranks),
        progress.sweeps,
    )
    with contextlib.closing(cycle_steps):  # type: ignore[type-var]  # also while a traceback still holds it
        for step in cycle_steps:
            unread.append((step.layer, step.chosen, step.candidate_losses))
            progress.evaluations += costs.evaluations
            progress.multiply_adds += costs.of(step)
            yield step
            if method.level == "weight" and step.layer is not None and len(unread) == sizes[step.layer]:
                loss = _read(unread, progress.choices)
                job.ranks.refuse_to_disagree(list(job.network.module.parameters()), f"the weights after {step.layer}")
                swept = dict.fromkeys(("all", step.layer), progress.choices[step.layer])
                after = record(step.layer, swept, loss=loss, test_accuracy=None, train_accuracy=None)
                progress.sweeps, progress.seconds = progress.sweeps + 1, after.seconds
                job.keep_checkpoint()
                yield after
                begun = time.perf_counter() - progress.seconds  # what was done with the record is no part of it
    if unread:
        _read(unread, progress.choices)
    job.ranks.refuse_to_disagree(list(job.network.module.parameters()), f"the weights after cycle {progress.cycle}")
    ended = record(None, progress.choices, **measured(job.network, job.data, job.loss, job.metric))
    progress.records.append(ended)
    progress.cycle, progress.sweeps = progress.cycle + 1, 0
    progress.seconds = ended.seconds
    progress.choices.clear()
    job.keep_checkpoint()
    yield ended


def _read(unread: list[tuple[str | None, Tensor, Tensor]], choices: dict[str, Counter]) -> float:
    """Count the choices of some steps (layer, place of the chosen candidate, the losses), and forget the steps.

    Returns the mean loss of the chosen candidates. Reads from the device once.
    """
    chosen = torch.stack([place for _, place, _ in unread])
    losses = torch.stack([losses for *_, losses in unread]).gather(1, chosen[:, None])[:, 0]
    places, chosen_losses = torch.stack([chosen.double(), losses]).tolist()
    for (layer, *_), place in zip(unread, places, strict=True):
        for name in ("all",) if layer is None else ("all", layer):
            choices[name][CANDIDATES[int(place)]] += 1
    unread.clear()
    return sum(chosen_losses) / len(chosen_losses)


def _grow(job: Job, command: str) -> Iterator[History]:
    method = job.method
    settings = job.settings
    if isinstance(method, RSO):
        at_each = 3 if method.opposite else 2
        total = at_each * settings["parameters"] * method.cycles
    else:
        assert job.stepper is not None
        total = method.epochs * batches_of(job.data, method) * job.stepper.evaluations
    here = machine(job.data.x_train.device) + (f", ranks: {job.ranks.count}" if job.ranks.count > 1 else "")
    history = History(settings, job.seed, versions(), here, command)
    history.cycles += job.progress.records
    latest = {"loss": "-"}
    # disable=None: no bar where the output is no terminal. Without a console there is no sys.stderr.
    with tqdm(
        total=total,
        initial=job.progress.evaluations,
        unit=" evaluations",
        unit_scale=True,
        disable=None if job.ranks.rank == 0 and sys.stderr is not None else True,
        dynamic_ncols=True,
    ) as bar:
        if history.cycles:
            yield history
        for event in _events(job):
            if isinstance(event, Step):
                assert isinstance(method, RSO)
                bar.set_description(f"cycle {event.cycle}/{method.cycles} {event.layer or ''}", refresh=False)
                bar.update(at_each)
                continue
            if not isinstance(method, RSO):
                bar.update(event.evaluations - bar.n)
            latest["loss"] = f"{event.loss:.3f}"
            if event.layer is None:
                if event.test_accuracy is not None:
                    latest["accuracy"] = f"{event.test_accuracy:.1%}"
                if event.test_metric is not None:
                    latest["metric"] = f"{event.test_metric:.3g}"
                history.cycles.append(event)
            bar.set_postfix(latest, refresh=False)
            if event.layer is None:
                yield history
