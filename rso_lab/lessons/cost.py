"""Lesson 06: what a candidate, a cycle and a larger network cost, counted and measured."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from rso_lab import experiments
from rso_lab.counts import forward_cost, layer_costs
from rso_lab.data import Data
from rso_lab.graph import Layer, Network, Values
from rso_lab.lessons.answers import advise, ask, number_of
from rso_lab.models import build, paper_cnn
from rso_lab.paths import find_path, multiply_adds
from rso_lab.rso import RSO, searched_layers
from rso_lab.train import steps

EVALUATORS = ("plain", "cached", "incremental")

# Of convolutions and the linear layer only, as in the paper's formula (§4.7).
COUNTED = RSO(cycles=1, batch_size=1, batch_norm=False)


@torch.no_grad()
def examples_of(network: Network, x: Tensor) -> Values:
    """What every node of the network puts out for two of these images (B, C, H, W), in execution order."""
    given = {network.input: x[:2]}
    found = given | network.propagate(given, keep=network.nodes[1:])
    return {node: found[node] for node in network.nodes}


def candidate_costs(network: Network, layer: Layer, evaluator: str, examples: Values) -> dict[str, int]:
    """Multiply-adds for one image of a candidate in this layer's first channel, by the layer that does them."""
    path = find_path(network, network.layers[0] if evaluator == "plain" else layer, examples)
    assert path is not None
    parts = path.parts if evaluator != "incremental" else [part for part in path.parts if part.node in path.affected]
    spans = path.spans[0] if evaluator == "incremental" else None
    return {str(part.node.target): multiply_adds(part, spans, examples) for part in parts if part.kind == "mix"}


def cycle_costs(model: nn.Module, x: Tensor, settings: RSO) -> dict[str, dict[str, int]]:
    """Multiply-adds of the first cycle, by evaluator and by the layer that is searched; x (B, C, H, W), B at least 2.

    A run's record counts the same.
    """
    network = Network(model, x[:2])
    found: dict[str, dict[str, int]] = {}
    for evaluator in EVALUATORS:
        costs = layer_costs(network, x, settings, evaluator)
        found[evaluator] = {}
        for layer in searched_layers(network, settings):
            neurons = len(next(iter(layer.parameters.values())))
            batches = {"weight": layer.size, "neuron": neurons, "layer": 1}[settings.batch_every]
            cost = costs[layer.name]
            tried = 2 if cost.batch else 3  # where the mini-batch has been run, the loss at w is known
            candidates = layer.size * tried * cost.candidate
            found[evaluator][layer.name] = settings.batch_size * (candidates + batches * cost.batch)
    return found


def candidate_table(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Print the multiply-adds of a candidate, layer by layer, for one of the images x (B, C, H, W), B at least 2.

    Returns those of a cycle, one candidate a weight, by evaluator.
    """
    network = Network(model, x[:2])
    layers = searched_layers(network, COUNTED)
    costs = {evaluator: layer_costs(network, x, COUNTED, evaluator) for evaluator in EVALUATORS}
    print(f"{'a change in':12} {'weights':>8} " + " ".join(f"{evaluator:>12}" for evaluator in EVALUATORS))
    for layer in layers:
        row = " ".join(f"{costs[evaluator][layer.name].candidate:12,}" for evaluator in EVALUATORS)
        print(f"{layer.name:12} {layer.size:8,} {row}")
    totals = {
        evaluator: sum(layer.size * costs[evaluator][layer.name].candidate for layer in layers)
        for evaluator in EVALUATORS
    }
    row = " ".join(f"{totals[evaluator] / 1e9:10.1f}e9" for evaluator in EVALUATORS)
    print(f"{'each once':12} {sum(layer.size for layer in layers):8,} {row}")
    return totals


MultiplyAdds = Callable[[int, int, int, int, int], float]

_QUESTION = (16, 8, 5, 14, 12)  # outputs, inputs, kernel, height, width
_COUNT_MISTAKES: list[tuple[Callable[..., Any], str]] = [
    (lambda q: q[0] * q[1] * q[2] ** 2, "Those are the weights. Each of them is used at every place of the image."),
    (lambda q: q[0] * q[2] ** 2 * q[3] * q[4], "Each output sums over all input channels, too."),
    (lambda q: q[0] * q[1] * q[2] * q[3] * q[4], "The kernel has kernel x kernel places: its square."),
    (lambda q: q[0] * q[1] * q[3] * q[4], "And the places of the kernel? (A power is `**` in Python, not `^`.)"),
    (
        lambda q: q[0] * q[1] * 9 * q[3] * q[4],
        "A kernel has 9 places where it is 3 x 3. This one is larger: use `kernel`.",
    ),
    (lambda q: q[1] * q[2] ** 2 * q[3] * q[4], "That is one output channel. There are more of them."),
    (lambda q: q[0] * q[3] * q[4], "Those are the numbers that come out. How many products does each take?"),
    (lambda q: q[1] * q[2] ** 2, "That is one number of the output. How many come out?"),
    (lambda q: q[0] * q[1] * q[2] ** 2 * q[3], "The image has height x width places."),
    (lambda q: q[0] * q[1] * q[2] ** 2 * q[3] ** 2, "The image is height x width: it need not be square."),
    (lambda q: 2 * q[0] * q[1] * q[2] ** 2 * q[3] * q[4], "A product and its addition count as one here."),
    (
        lambda q: q[0] * q[1] * q[2] ** 2 * (q[3] - q[2] + 1) * (q[4] - q[2] + 1),
        "The image has a margin of zeros, so that what comes out is as large as what goes in.",
    ),
]


def check_multiply_adds(answer: MultiplyAdds) -> bool:
    """Check a learner's `multiply_adds(outputs, inputs, kernel, height, width)`; returns whether it is right."""
    given = ask("multiply_adds", answer, *_QUESTION, wanted="a number")
    if given is None or (number := number_of(given)) is None:
        return False
    outputs, inputs, kernel, height, width = _QUESTION
    right = outputs * inputs * kernel**2 * height * width
    if not math.isclose(number, right):
        print(
            f"Not yet. {outputs} outputs, {inputs} inputs, kernel {kernel}, {height} x {width} pixels: "
            f"{right:,} multiply-adds, your answer was {number:,.0f}."
        )
        advise([number], [tuple(map(float, _QUESTION))], _COUNT_MISTAKES)
        return False
    print("Right: the weights of the layer, times the places that they are used at.")
    return True


def count_network(answer: MultiplyAdds) -> None:
    """Print a learner's count beside the package's, for each convolution of the paper's network on 28 x 28 pixels."""
    if not check_multiply_adds(answer):
        return
    network = Network(paper_cnn(), torch.zeros(2, 1, 28, 28))
    examples = examples_of(network, torch.zeros(2, 1, 28, 28))
    counted = candidate_costs(network, network.layers[0], "plain", examples)
    print(f"\n{'layer':8} {'weights':>8} {'yours':>12} {'the package':>12}")
    outs = {str(node.target): value for node, value in examples.items()}
    for name, number in counted.items():
        weight = network.module.get_parameter(f"{name}.weight")
        outputs, inputs, kernel, *_ = (*weight.shape, 1)
        given = answer(outputs, inputs, kernel, *(*outs[name].shape[2:], 1, 1)[:2])  # a linear layer has one place
        print(f"{name:8} {weight.numel():8,} {given:12,.0f} {number:12,}")
    print(f"{'all':17} {'':12} {sum(counted.values()):12,}")


Update = Callable[[Tensor, Tensor, tuple[int, int, int, int], float], Tensor]


def moved(z: Tensor, padded: Tensor, index: tuple[int, int, int, int], delta: float) -> Tensor:
    """What a convolution puts out, having put out z (B, outputs, H, W), when weight[index] has grown by delta.

    padded (B, inputs, H + kernel - 1, W + kernel - 1): its input with the margin of zeros; stride 1.
    """
    i, j, a, b = index
    height, width = z.shape[2:]
    new = z.clone()
    new[:, i] += delta * padded[:, j, a : a + height, b : b + width]
    return new


def _replaced(z: Tensor, padded: Tensor, index: tuple[int, int, int, int], delta: float) -> Tensor:
    return torch.cat([z[:, : index[0]], moved(z * 0, padded, index, delta)[:, [index[0]]], z[:, index[0] + 1 :]], dim=1)


_UPDATE_MISTAKES: list[tuple[Callable[..., Any], str]] = [
    (
        lambda q: moved(q[0], q[1], (*q[2][:2], 1, 1), q[3]),
        "You always take the middle of the input. Kernel place (a, b) looks at it from row a and column b on.",
    ),
    (
        lambda q: moved(q[0], q[1], (*q[2][:2], 0, 0), q[3]),
        "You always begin at row 0 and column 0. Kernel place (a, b) looks at the input from row a and column b on.",
    ),
    (lambda q: moved(q[0], q[1], (*q[2][:2], *q[2][:1:-1]), q[3]), "a is for the rows, b for the columns."),
    (
        lambda q: moved(q[0], q[1], (*q[2][:2], 2 - q[2][2], 2 - q[2][3]), q[3]),
        "You shift to the other side: begin at row a and column b.",
    ),
    (lambda q: moved(q[0], q[1], (q[2][1], q[2][0], *q[2][2:]), q[3]), "i is the output channel, j the input channel."),
    (lambda q: moved(q[0], q[1], q[2], 1.0), "And delta? The input is multiplied by it."),
    (lambda q: moved(q[0], q[1], q[2], -q[3]), "The sign: w + delta adds."),
    (lambda q: _replaced(*q), "The change is added to what the channel held before: += in place of =."),
    (
        lambda q: q[0] + moved(q[0] * 0, *q[1:])[:, [q[2][0]]],
        "You change all output channels. One weight touches one channel: new[:, i].",
    ),
    (lambda q: moved(q[0], *q[1:])[:, q[2][0]], "Return all channels, not only the one that has changed."),
]


def check_update(answer: Update) -> bool:
    """Check a learner's `update(z, padded, index, delta)` against a convolution; returns whether it is right."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 6, generator=generator)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    padded = F.pad(x, (1, 1, 1, 1))
    z = F.conv2d(x, weight, padding=1)
    questions = [(z, padded, (2, 1, 0, 1), 0.5), (z, padded, (1, 0, 2, 0), -0.3)]
    answers = []
    for _, _, index, delta in questions:
        lent, lent_input = z.clone(), padded.clone()
        given = ask("update", answer, lent, lent_input, index, delta, wanted="the new z, with all its channels")
        if given is None:
            return False
        if not isinstance(given, Tensor):
            print(f"Not yet: a tensor of the shape of z is wanted, your answer was {given!r}.")
            return False
        changed = weight.clone()
        changed[index] += delta
        right = F.conv2d(x, changed, padding=1)
        given = given.to(right.dtype)
        if given.shape == right.shape and torch.allclose(given, right, atol=1e-5):
            if not torch.equal(lent, z):
                print(
                    "Nearly: the numbers are right, but z itself has changed. The other candidate, w - delta, needs it"
                )
                print("as it was. Begin with new = z.clone(), and change that.")
                return False
            if not torch.equal(lent_input, padded):
                print("Nearly: the numbers are right, but `padded` itself has changed. The other candidate, w - delta,")
                print("needs it as it was: `delta * padded[...]` makes new numbers, `padded *= delta` changes these.")
                return False
        answers.append((given, right))
    if all(torch.equal(given, z) for given, _ in answers):
        print("Not done yet: update returns z as it was. What is added, and to which channel?")
        return False
    for (given, right), (_, _, index, delta) in zip(answers, questions, strict=True):
        if given.shape != right.shape or not torch.allclose(given, right, atol=1e-5):
            print(f"Not yet. With index {index} and delta {delta} the convolution puts out something else.")
            advise([given for given, _ in answers], questions, _UPDATE_MISTAKES)
            return False
    print("Right: the same numbers as the whole convolution, for one product a place.")
    return True


@dataclass(frozen=True)
class Measured:
    """A way to compute the losses, for a cycle."""

    multiply_adds: int  # counted
    seconds: float  # from the median of a few proposals in each layer
    choices: Sequence[str]  # of those proposals


_WAYS = {
    "plain": ("plain", "weight"),
    "cached": ("cached", "weight"),
    "incremental": ("incremental", "weight"),
    "incremental, images held": ("incremental", "neuron"),
}


def measure_cycle(data: Data, batch_size: int, count: int = 6) -> dict[str, Measured]:
    """What a cycle of the paper's network costs, counted and timed, by way; the last holds its images for a neuron.

    Timed are `count` proposals in each convolution and in the linear layer; every layer is searched from the same
    random weights.
    """
    layers = searched_layers(Network(build("paper_cnn", data), data.x_train[:2]), COUNTED)
    found = {}
    bar = tqdm(total=len(_WAYS) * len(layers), unit=" layers")
    for way, (evaluator, batch_every) in _WAYS.items():
        method = RSO(1, batch_size, batch_norm=False, batch_every=batch_every)  # type: ignore[arg-type]
        seconds, choices = 0.0, list[str]()
        for layer in layers:
            bar.set_description(f"{way}: {layer.name}")
            model = build("paper_cnn", data)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in layer.parameters)
            search = steps(model, data, method, seed=0, evaluator=evaluator)
            next(search)  # which fills the cache
            times = []
            for _ in range(count):
                begun = time.perf_counter()
                choices.append(next(search).choice)
                times.append(time.perf_counter() - begun)
            search.close()  # type: ignore[attr-defined]
            seconds += layer.size * statistics.median(times)
            bar.update()
        counted = sum(cycle_costs(build("paper_cnn", data), data.x_train, method)[evaluator].values())
        found[way] = Measured(counted, seconds, choices)
    bar.close()
    return found


def cost_table(found: Mapping[str, Measured]) -> None:
    """Print what was counted beside what was measured; ratios are to the first way."""
    first = next(iter(found.values()))
    print(f"{'a cycle':26} {'multiply-adds':>15} {'':9} {'seconds':>9}")
    for way, cost in found.items():
        fewer, faster = first.multiply_adds / cost.multiply_adds, first.seconds / cost.seconds
        print(
            f"{way:26} {cost.multiply_adds / 1e9:7,.0f} billion, 1 / {fewer:<4.1f} {cost.seconds:9.1f}, "
            f"{faster:.1f} times as fast"
        )
    for way in ("cached", "incremental"):
        same = sum(a == b for a, b in zip(found[way].choices, first.choices, strict=True))
        print(f"{way}: {same} of {len(first.choices)} decisions are those of plain")


def recorded_costs() -> None:
    """Print the recorded experiment `caching`: means over its seeds."""
    result = experiments.read(experiments.RESULTS / "caching_class.json")
    images = next(iter(result["settings"]["ways"].values()))["batch_size"]
    print(f"recorded on {result['settings']['data']}, batches of {images}, mean of {len(result['seeds'])} seeds")
    print(f"{'a cycle':26} {'multiply-adds':>15} {'':9} {'seconds':>9}")
    for way, histories in experiments.curves(result).items():
        last = [history.cycles[-1] for history in histories]
        seconds = [record.seconds for record in last]
        print(
            f"{way:26} {statistics.mean(record.multiply_adds for record in last) / 1e9:7,.0f} billion {'':9} "
            f"{statistics.mean(seconds):9.1f}, from {min(seconds):.1f} to {max(seconds):.1f}"
        )


def growth(widths: Sequence[int], shape: Sequence[int], batch_size: int) -> dict[str, list[tuple[int, int]]]:
    """Weights, and multiply-adds of a cycle, of networks like the paper's with so many channels, by evaluator.

    shape (C, H, W) of an image.
    """
    found: dict[str, list[tuple[int, int]]] = {evaluator: [] for evaluator in EVALUATORS}
    x = torch.zeros(2, *shape)
    settings = RSO(1, batch_size, batch_norm=False)
    for width in tqdm(widths, desc="networks"):
        model = paper_cnn(in_channels=shape[0], width=width)
        weights = sum(layer.size for layer in searched_layers(Network(model, x), settings))
        for evaluator, costs in cycle_costs(model, x, settings).items():
            found[evaluator].append((weights, sum(costs.values())))
    return found


@torch.no_grad()
def speed(model: nn.Module, x: Tensor, times: int = 5) -> float:
    """Multiply-adds a second of this machine, in forward passes of x (B, C, H, W): the fastest of a few."""
    total = forward_cost(Network(model, x[:2]), x) * len(x)
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        model(x)
        taken.append(time.perf_counter() - begun)
    return total / min(taken)


@torch.no_grad()
def company(data: Data, others: int = 100) -> dict[str, float]:
    """How far what enters conv3 of the paper's network depends on the other images of the mini-batch, by statistics.

    Of the first image, in two mini-batches; the largest difference as a share of the largest activation.
    """
    network = Network(build("paper_cnn", data), data.x_train[:2])
    network.refresh_statistics(data.x_train)
    (node,) = (node for node in network.nodes if node.target == "pool2")
    batches = (data.x_train[: others + 1], torch.cat([data.x_train[:1], data.x_train[-others:]]))
    found = {}
    for name, first in (("the mini-batch's own", 1), ("the training set's", None)):
        one, other = (
            network.propagate({network.input: x}, batch_statistics_from=first, keep=[node])[node][0] for x in batches
        )
        found[name] = float((one - other).abs().max() / one.abs().max())
    return found
