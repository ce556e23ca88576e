"""What torch.fx tells of a network: its layers in execution order, and how to run any part of it."""

import contextlib
import copy
import functools
import inspect
import itertools
import os
import threading
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from rso_lab.data import NORMALISE
from rso_lab.ranks import ALONE, Ranks
from rso_lab.workers import workers

PIECE = 100  # rows that are run at a time where it is a whole data set: bounds the memory, and fits the cache
PIECE_ON_GPU = 5000

CHECKPOINT = 2**30  # bytes that may be stored on the way, to go on from

Values = dict[fx.Node, Any]  # what nodes of the graph put out
Array = np.ndarray
Moments = tuple[Array, Array, int]  # mean per channel, sum of squares about it, and how many numbers that is of


@dataclass(frozen=True)
class Layer:
    """A module with parameters to search."""

    name: str  # dotted module name
    module: nn.Module
    parameters: dict[str, nn.Parameter]  # those that are searched, by dotted name within the network
    position: int  # of its node in the graph: a layer runs before those with larger ones
    normalises: str | None = None  # for a batch norm: the layer whose output it takes directly
    shared: bool = False  # whether one of the parameters is used in several places; `position` is the first of them

    @property
    def is_batch_norm(self) -> bool:
        """Whether the parameters are the gamma and beta of a batch norm."""
        return isinstance(self.module, _BatchNorm)

    @property
    def is_convolution(self) -> bool:
        """Whether the weights are laid out by output neuron and reach all over an image."""
        return isinstance(self.module, nn.Conv1d | nn.Conv2d | nn.Conv3d)

    @property
    def size(self) -> int:
        """How many weights are searched in it, biases included."""
        return sum(parameter.numel() for parameter in self.parameters.values())


class _InFloat32(contextlib.ContextDecorator):
    """While any thread is within, products of float32 are not rounded to TF32 or bf16, whatever torch has been told.

    torch's settings are the process's: the first thread to enter sets them, the last to leave puts them back.
    """

    def __init__(self) -> None:
        self.lock, self.count, self.told = threading.Lock(), 0, contextlib.ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            if self.count == 0:
                if torch.cuda.is_available():
                    self.told.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
                self.told.enter_context(_exact_matrix_products())
            self.count += 1

    def __exit__(self, *_: Any) -> None:
        with self.lock:
            self.count -= 1
            if self.count == 0:
                self.told.close()


@contextlib.contextmanager
def _exact_matrix_products() -> Iterator[None]:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before torch 2.9
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        yield
        torch.set_float32_matmul_precision(before)
        return
    settings = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    told = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    yield
    for setting, value in zip(settings, told, strict=True):
        setting.fp32_precision = value


in_float32 = _InFloat32()


def pieces(size: int, largest: int) -> list[slice]:
    """So many rows in pieces of nearly equal size, none larger than `largest`."""
    count = -(-size // largest)
    ends = [size * i // count for i in range(count + 1)]
    return [slice(*ends_of_piece) for ends_of_piece in itertools.pairwise(ends)]


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors in what a network puts out: a tensor, or tuples, lists and dictionaries of them."""
    return [value for value in tree_leaves(outputs) if isinstance(value, Tensor)]


def map_tensors(change: Callable[[Tensor], Any], outputs: Any) -> Any:
    """The same with each tensor changed."""
    return tree_map(lambda value: change(value) if isinstance(value, Tensor) else value, outputs)


def _joined(pieces: Sequence[Any]) -> Any:
    """What a network puts out for some pieces of rows, in one."""
    if len(pieces) == 1:
        return pieces[0]
    columns = zip(*map(tensors_of, pieces), strict=True)
    return map_tensors(lambda _: torch.cat(next(columns)), pieces[0])


def _are_alike(outputs: Any, others: Any) -> bool:
    """Whether two networks, or one in two ways, put out the same, roughly."""
    mine, theirs = tensors_of(outputs), tensors_of(others)
    return [value.shape for value in mine] == [value.shape for value in theirs] and all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True) for a, b in zip(mine, theirs, strict=True)
    )


def measure(value: Tensor) -> Moments:
    """Of each channel (dimension 1): mean, sum of squares about it, and how many numbers that is of."""
    dims = [d for d in range(value.dim()) if d != 1]
    count = value.numel() // value.shape[1]
    mean = value.sum(dims) / count
    squares = (value - mean.view(-1, *[1] * (value.dim() - 2))).square_().sum(dims)
    return mean.double().cpu().numpy(), squares.double().cpu().numpy(), count


def merge(moments: Sequence[Moments]) -> tuple[Array, Array]:
    """Mean and population variance over all pieces, float64."""
    mean, squares, count = _combine(moments)
    return mean, squares / count


def merge_shared(several: Sequence[Sequence[Moments]], ranks: Ranks) -> list[tuple[Array, Array]]:
    """The same for the pieces of several runs, over the pieces of all ranks, which tell each other once."""
    if ranks.count == 1:
        return [merge(moments) for moments in several]
    own = [_combine(moments) for moments in several]
    numbers = torch.from_numpy(np.stack([np.append(np.concatenate([mean, squares]), n) for mean, squares, n in own]))
    by_rank = torch.stack(ranks.gather(numbers)).numpy()  # (ranks, runs, 2 C + 1)
    channels = numbers.shape[1] // 2
    return [
        merge([(n[:channels], n[channels:-1], int(n[-1])) for n in by_rank[:, number]]) for number in range(len(own))
    ]


@np.errstate(over="ignore", invalid="ignore")
def _combine(moments: Sequence[Moments]) -> Moments:
    """Of all pieces together (Chan et al. 1979)."""
    if len(moments) == 1:
        return moments[0]
    means, squares, counts = (np.array(column, dtype=np.float64) for column in zip(*moments, strict=True))
    total = counts.sum()
    mean = counts @ means / total
    return mean, squares.sum(0) + counts @ np.square(means - mean), total


def scale_and_offset(mean: Array, variance: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array]:
    """What a batch norm multiplies by and then adds (C,), float64."""
    # NaN where the variance is not finite: of numbers too large to be squared, and of no loss that could win.
    scale = gamma / np.sqrt(variance + eps) + 0 * variance
    return scale, beta - mean * scale


class Network(fx.Interpreter):
    """A model that can be run from any node on, its batch norms on their own or on the mini-batch's statistics.

    `layers` are in execution order; `batch_norms`: where those are that are not frozen, which keep their statistics.
    `example` is a mini-batch (B, ...) to try the model on. Puts the model into eval mode. Raises TypeError or
    ValueError, naming the module, for a model that cannot be searched.
    """

    def __init__(self, model: nn.Module, example: Tensor):
        _refuse_unsearchable(model, example.dtype)
        _refuse_dropout(model)
        frozen = {module for module in model.modules() if _is_frozen(module)}
        model.eval()
        super().__init__(model, graph=_trace(model))
        self.ranks = ALONE  # that share a mini-batch, and so its statistics
        self.nodes = list(self.graph.nodes)
        self.input = self.nodes[0]
        self.user_to_last_uses |= {node: [node] for node in self.nodes if not node.users}
        self.writes_in_place = any(self.changes_its_input(node) for node in self.nodes)
        self.batch_norms = self._positions(lambda module: isinstance(module, _BatchNorm) and module not in frozen)
        self.stale = set(self.batch_norms)  # those whose statistics are not those of the network in force
        self.mixes_rows = False
        self.piece = PIECE if example.device.type == "cpu" else PIECE_ON_GPU
        example = example.clone()  # not a view of all images, whose storage `_sizes` would count
        values, outputs = self._try(example)
        self.layers = self._find_layers(values)
        self.sizes = self._sizes({self.input: example, **values}, len(example))
        self.mixes_rows = self._mixes_rows(example, outputs)

    def outputs(self, x: Tensor) -> Any:
        """The network's outputs for x (N, ...), each batch norm on its own statistics."""
        outputs = self.in_pieces({self.input: x}, lambda values, rows: values[self.nodes[-1]])
        return _joined(outputs)

    @in_float32
    def propagate(
        self,
        values: Values,
        start: int = 1,
        stop: int | None = None,
        *,
        batch_statistics_from: int | None = None,
        keep: Iterable[fx.Node] = (),
    ) -> Values:
        """Run the nodes from `start` to before `stop`, given the `values` of `frontier(start)`: at first the input.

        Batch norms at or after `batch_statistics_from` use the mini-batch's statistics, the others their own.
        Returns the values of the nodes in `keep` and of the last one.
        """
        self.batch_statistics_from = len(self.nodes) if batch_statistics_from is None else batch_statistics_from
        constants = [node for node in self.nodes[1:start] if node.op == "get_attr"]
        nodes = constants + self.nodes[start:stop]
        kept = {*keep, *nodes[-1:]}
        self.env = self._for_itself(values)
        self._advance(nodes, kept)
        found, self.env = {node: self.env[node] for node in kept}, {}
        return found

    def _for_itself(self, values: Values) -> Values:
        """The same values, copied where nodes may write into them: together, so that views stay views."""
        if not self.writes_in_place:
            return dict(values)
        if len(values) == 1 and isinstance(value := next(iter(values.values())), Tensor):
            return dict.fromkeys(values, value.clone())  # of some rows: a deep copy is one of all that lie beside them
        return dict(zip(values, copy.deepcopy(list(values.values())), strict=True))

    def _advance(self, nodes: Iterable[fx.Node], kept: Container[fx.Node] = ()) -> None:
        """Run these nodes on the values in `env`, and leave there what later ones use and those in `kept`."""
        for node in nodes:
            self.running = node
            arguments = self.fetch_args_kwargs_from_env(node)
            self.env[node] = getattr(self, node.op)(node.target, *arguments)
            for used in self.user_to_last_uses.get(node, ()):
                if used not in kept:
                    self.env.pop(used, None)

    def in_pieces(self, given: Values, then: Callable[[Values, slice], Any], **part: Any) -> list[Any]:
        """For each piece of the rows of `given`, in order: `then` of what propagating it gives, and of its place.

        `part`: as for `propagate`.
        """

        def run(rows: slice) -> Any:
            values = {node: value[rows] for node, value in given.items()}
            return then(copy.copy(self).propagate(values, **part), rows)  # each thread has an environment of its own

        return self._side_by_side([functools.partial(run, rows) for rows in self._cut(len(next(iter(given.values()))))])

    def _cut(self, size: int) -> list[slice]:
        """So many rows in the pieces that are run at a time."""
        return pieces(size, size if self.mixes_rows else self.piece)

    def _side_by_side(self, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        """What these tasks give, one for a piece, in order."""
        return workers().run(tasks, None if self.piece == PIECE else 1)

    def is_one_piece(self, rows: int) -> bool:
        """Whether so many rows are not cut."""
        return self.mixes_rows or rows <= self.piece

    def call_module(self, target: Any, args: tuple, kwargs: dict) -> Any:
        """What the module `target` puts out: fx calls this for each module in the graph."""
        module = self.fetch_attr(target)
        if self.batch_norms.get(target, -1) >= self.batch_statistics_from:
            (x,) = (*args, *kwargs.values())
            weight, bias, eps = module.weight, module.bias, module.eps
            if self.ranks.count == 1:
                return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
            (found,) = merge_shared([[measure(x)]], self.ranks)
            mean, variance = (torch.from_numpy(moment).to(x) for moment in found)
            return F.batch_norm(x, mean, variance, weight, bias, eps=eps)
        return module(*args, **kwargs)

    def frontier(self, position: int) -> list[fx.Node]:
        """The nodes before `position` whose values the nodes from there on use: what enters that part."""
        later = set(self.nodes[position:])
        constant = [node for node in self.nodes[1:position] if node.op == "get_attr"]
        return [node for node in self.nodes[:position] if later.intersection(node.users) and node not in constant]

    @torch.no_grad()
    @in_float32
    def refresh_statistics(self, x: Tensor, before: int | None = None) -> None:
        """Give each stale batch norm (before node `before`) the mean and population variance over all of x (N, ...).

        Of exactly the activations that the network now in force gives, piece by piece; the pieces are merged in
        float64. One pass: each piece waits before each of these norms until all have come so far. Where what waits
        would take more than CHECKPOINT bytes, the pieces wait where it last did not, and are run from there again.
        """
        norms = {
            name: position
            for name, position in self.batch_norms.items()
            if name in self.stale and (before is None or position < before)
        }
        walkers = [self._with({self.input: x[rows]}) for rows in self._cut(len(x))] if norms else []
        start = 1
        for name, position in norms.items():
            fits = (place for place in range(position, start, -1) if self.sizes[place] * len(x) <= CHECKPOINT)
            wait = next(fits, start)
            walks = [functools.partial(walker._walk, start, wait, position) for walker in walkers]
            mean, variance = merge(self._side_by_side(walks))
            module = self.fetch_attr(name)
            module.running_mean.copy_(torch.from_numpy(mean))
            module.running_var.copy_(torch.from_numpy(variance))
            self.stale.discard(name)
            start = wait

    def _with(self, values: Values) -> "Network":
        """The same network with an environment of its own, that holds these values."""
        walker = copy.copy(self)
        walker.env, walker.batch_statistics_from = self._for_itself(values), len(self.nodes)
        return walker

    def _walk(self, start: int, wait: int, position: int) -> Moments:
        """Go on from node `start`, of which `env` holds what enters, to `wait`. Moments of what enters `position`."""
        self._advance(self.nodes[start:wait])
        ahead = self._with(self.env) if wait < position else self
        ahead._advance(self.nodes[wait:position])
        return measure(ahead.env[self.nodes[position].all_input_nodes[0]])

    def _sizes(self, values: Values, rows: int) -> list[float]:
        """What enters each node, in bytes for each of the rows that gave these values of all nodes."""
        waiting: dict[fx.Node, dict[int, int]] = {}  # bytes of a node's storages, by address: views share theirs
        sizes = []
        for node in self.nodes:
            sizes.append(sum(dict(itertools.chain(*(held.items() for held in waiting.values()))).values()) / rows)
            value = values[node] if node.op != "get_attr" else ()
            parts = value if isinstance(value, tuple | list) else [value]
            storages = [part.untyped_storage() for part in parts if isinstance(part, Tensor)]
            waiting[node] = {storage.data_ptr(): storage.nbytes() for storage in storages}
            for used in self.user_to_last_uses.get(node, ()):
                waiting.pop(used, None)
        return sizes

    def _positions(self, chosen: Callable[[nn.Module], bool]) -> dict[str, int]:
        """Where in `nodes` each of the chosen batch norms is called."""
        positions: dict[str, int] = {}
        for position, node in enumerate(self.nodes):
            if node.op == "call_module" and chosen(self.fetch_attr(node.target)):
                if node.target in positions:
                    raise ValueError(
                        f"batch norm {node.target!r} is called twice: its statistics cannot be those of both places"
                    )
                positions[node.target] = position
        return positions

    @torch.no_grad()
    @torch.random.fork_rng(devices=[])
    def _try(self, example: Tensor) -> tuple[Values, Any]:
        """What each node puts out for a mini-batch, and the outputs where batch norms have their own statistics.

        Refuses a graph that fails, draws at random or is not the model.
        """
        versions = [parameter._version for parameter in self.module.parameters()]
        try:
            values, again = (
                self.propagate({self.input: example}, batch_statistics_from=0, keep=self.nodes[1:]) for _ in range(2)
            )
            outputs, traced = self.module(example.clone()), self.outputs(example)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            remedy = "" if example.is_floating_point() else f"; it gets {example.dtype} values as they are: {NORMALISE}"
            raise ValueError(
                f"the network fails in {self.running.target!r} on images of shape {tuple(example.shape)}: "
                f"{error}{remedy}"
            ) from error
        if [parameter._version for parameter in self.module.parameters()] != versions:
            raise ValueError(
                "the network changes its own parameters when it is called (an embedding with max_norm, say): the three "
                "losses would be of other weights"
            )
        for node in self.nodes[1:]:
            if isinstance(values[node], Tensor) and not torch.allclose(values[node], again[node], equal_nan=True):
                where = node.target if isinstance(node.target, str) else node.name
                raise ValueError(f"{where!r} draws at random: the three losses would differ by chance")
        if not tensors_of(outputs):
            raise TypeError(f"{type(self.module).__name__} puts out a {type(outputs).__name__}: expected tensors")
        if not _are_alike(outputs, traced):
            raise TypeError(
                f"torch.fx sees another network than {type(self.module).__name__} is when called (a hook, or a forward "
                "that depends on the data): change that, or train it with rso_lab.RSOptimizer"
            )
        return values, traced

    @torch.no_grad()
    def _mixes_rows(self, example: Tensor, together: Any) -> bool:
        """Whether the answer for an image depends on those beside it: such a network has to see them all at once."""
        try:
            alone = _joined([self.outputs(row) for row in example.split(1)])
        except (RuntimeError, ValueError, IndexError):  # it needs more than one
            return True
        return not _are_alike(alone, together)

    def _find_layers(self, values: Values) -> list[Layer]:
        called = {str(node.target) for node in self.nodes if node.op == "call_module"}
        positions: dict[str, list[int]] = {}  # of each module: where it is called, or a parameter of it is read
        uses: Counter[nn.Parameter] = Counter()
        for position, node in enumerate(self.nodes):
            owner, read = str(node.target), []
            if node.op == "call_module":
                read = list(self.fetch_attr(owner).parameters())
            elif node.op == "get_attr" and isinstance(parameter := self.fetch_attr(owner), nn.Parameter):
                above = (name for name in called if owner.startswith(f"{name}."))
                owner, read = next(above, owner.rpartition(".")[0]), [parameter]
            if read:
                positions.setdefault(owner, []).append(position)
                uses.update(read)
        layers: dict[str, Layer] = {}
        claimed: set[nn.Parameter] = set()  # by the layer that runs first of those that share them
        for name, places in sorted(positions.items(), key=lambda owner: owner[1][0]):
            module = self.module.get_submodule(name)
            parameters = {
                f"{name}.{key}".lstrip("."): parameter
                for key, parameter in module.named_parameters(recurse=name in called)
                if parameter.requires_grad
                and parameter not in claimed
                and not (
                    key == "bias"
                    and uses[parameter] == len(places)
                    and all(self._cancels(place, values) for place in places)
                )
            }
            claimed |= set(parameters.values())
            node = self.nodes[places[0]]
            source = node.all_input_nodes[0].target if isinstance(module, _BatchNorm) and node.args else None
            if source not in layers or layers[source].is_batch_norm:
                source = None
            if parameters:
                shared = any(uses[parameter] > 1 for parameter in parameters.values())
                layers[name] = Layer(name, module, parameters, places[0], source, shared)
        return list(layers.values())

    def _cancels(self, position: int, values: Values) -> bool:
        """Whether a bias at this node changes nothing, because only batch norms take what it puts out."""
        node = self.nodes[position]
        module = self.fetch_attr(node.target) if node.op == "call_module" else None
        per_channel = isinstance(module, _ConvNd) or (isinstance(module, nn.Linear) and values[node].dim() == 2)
        return per_channel and all(user.op == "call_module" and user.target in self.batch_norms for user in node.users)

    def changes_its_input(self, node: fx.Node) -> bool:
        """Whether a node changes a tensor that it was given; fx makes `x += y` a sum of its own."""
        if node.op == "call_module":
            return bool(getattr(self.fetch_attr(str(node.target)), "inplace", False))
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        inplace = (
            bool(node.kwargs.get("inplace")) or "out" in node.kwargs or any(argument is True for argument in node.args)
        )
        return node.op.startswith("call") and (inplace or (name.endswith("_") and not name.endswith("__")))


class _Tracer(fx.Tracer):
    """Traces `model(x)`, and nothing but that: while fx traces, it sees the modules of every thread."""

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self.thread = threading.get_ident()
        return super().trace(root, concrete_args)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list]:
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]  # the rest has forward's defaults

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


_tracing = threading.RLock()  # fx patches nn.Module meanwhile, for all: one thread at a time, and no fork
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_tracing.acquire, after_in_parent=_tracing.release, after_in_child=_tracing.release)


def _trace(model: nn.Module) -> fx.Graph:
    wanted = [
        argument.name
        for argument in inspect.signature(model.forward).parameters.values()
        if argument.default is argument.empty and argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
    ]
    if len(wanted) > 1:
        raise TypeError(
            f"{type(model).__name__}'s forward wants {' and '.join(wanted[1:])}, too: pass a network that takes the "
            "images alone, or train it with rso_lab.RSOptimizer"
        )
    try:
        with _tracing:
            return _Tracer().trace(model)
    except Exception as error:  # whatever the model's own code does with fx's stand-ins for tensors
        raise TypeError(
            f"torch.fx cannot trace {type(model).__name__} ({error}): take data-dependent Python out of its forward, "
            "or train it with rso_lab.RSOptimizer"
        ) from error


def _is_frozen(module: nn.Module) -> bool:
    """Whether it is a batch norm whose owner holds its statistics, gamma and beta: in eval mode, nothing to train."""
    parameters = list(module.parameters())
    trains = module.training or any(parameter.requires_grad for parameter in parameters)
    return isinstance(module, _BatchNorm) and bool(parameters) and not trains


def _refuse_unsearchable(model: nn.Module, dtype: torch.dtype) -> None:
    """`dtype`: of the images. Whole numbers are looked up: then the parameters have to agree with each other only."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model is a {type(model).__name__}: expected a torch.nn.Module")
    for name, module in model.named_modules():
        if inside := _inside_of(module, f"model.{name}" if name else "model"):
            raise TypeError(f"torch.fx cannot look into {type(module).__name__}: pass {inside}")
    if type(model).forward is nn.Module.forward and "forward" not in vars(model):
        raise TypeError(f"{type(model).__name__} has no forward: pass a network that can be called, nn.Sequential say")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"{type(model).__name__} has no parameters to search (with requires_grad=True)")
    seen: dict[int, tuple[str, nn.Parameter]] = {}
    others = "the images"
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if is_lazy(parameter):
            raise ValueError(f"{name!r} has no shape yet: run the model on a mini-batch once")
        if not parameter.is_floating_point():
            raise TypeError(f"{name!r} has dtype {parameter.dtype}: only floating-point parameters can be searched")
        if not dtype.is_floating_point:
            dtype, others = parameter.dtype, f"{name!r}"
        if parameter.dtype != dtype:
            raise TypeError(f"{name!r} has dtype {parameter.dtype} but {others} {dtype}: use model.to({dtype})")
        place = parameter.data_ptr() if parameter.numel() else id(parameter)
        other, same = seen.setdefault(place, (name, parameter))
        if same is not parameter:
            raise ValueError(
                f"{name!r} and {other!r} are two parameters in one memory: each weight would be searched twice; make "
                "them one parameter, or compute one from the other in the forward"
            )
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and type(module).forward is not _BatchNorm.forward:
            raise TypeError(f"batch norm {name!r} has a forward of its own: its statistics cannot be held")
        if isinstance(module, _BatchNorm) and (module._forward_hooks or module._forward_pre_hooks):
            raise TypeError(f"batch norm {name!r} has a forward hook: it would not run in the search")
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(f"batch norm {name!r} has track_running_stats=False: it has no place for its statistics")


def _inside_of(module: nn.Module, name: str) -> str | None:
    """What to pass in place of a module that is made of another or wrapped around it; None where it is neither."""
    exported = isinstance(module, fx.GraphModule) and "eval" in vars(module)  # torch.export's, which cannot
    if exported or isinstance(module, torch.jit.ScriptModule):
        return "the Python module that it was made from"
    if "_orig_mod" in module._modules:  # by torch.compile
        return f"the module inside, {name}._orig_mod"
    wrappers = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")
    return f"the module inside, {name}.module" if type(module).__name__ in wrappers else None


def _refuse_dropout(model: nn.Module) -> None:
    for name, module in model.named_modules():
        rate = module.p if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0)
        if module.training and isinstance(rate, float | int) and rate > 0:
            raise ValueError(
                f"module {name!r} drops activations out ({rate}): the three losses would differ by chance; "
                "call model.eval() or set its rate to 0"
            )
    for node in _trace(model).nodes:
        if node.op == "call_function" and node.target in _DROPOUTS:
            arguments = {"p": 0.5, "training": True} | dict(zip(("input", "p", "training"), node.args, strict=False))
            arguments |= node.kwargs
            if arguments["training"] and arguments["p"] > 0:
                raise ValueError(
                    f"{node.target.__name__} ({node.name!r}) drops activations out: pass training=self.training and "
                    "call model.eval()"
                )


_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}
