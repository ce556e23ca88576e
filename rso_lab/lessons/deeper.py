"""Lesson 09: what deeper networks cost, counted and converted to days, and the signal that a weight sees."""

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from rso_lab import counts, data, experiments, plots
from rso_lab.data import Data
from rso_lab.graph import Network
from rso_lab.history import History
from rso_lab.lessons.answers import ask, number_of
from rso_lab.models import build
from rso_lab.rso import RSO, searched_layers
from rso_lab.train import steps

DAY = 24 * 60 * 60  # seconds
COLOUR = torch.zeros(2, 3, 32, 32)  # pictures of CIFAR-10's size: enough to count by
HOW = ("plain", "cached", "incremental", "incremental, held for a neuron")
# Depth-10 on CIFAR-10 in the paper (§4.4, §4.5, Figure 3): RSO's cycles, images in a mini-batch and accuracy, SGD's
# iterations, images and accuracy, and on the same machine the seconds of a cycle and of an epoch.
PAPER_RSO, PAPER_SGD = (300, 5000, 0.818), (1700, 3000, 0.8198)
PAPER_CYCLE, PAPER_EPOCH = 52 * 60, 29


class Price(NamedTuple):
    """What a network costs on pictures of CIFAR-10's size."""

    weights: int
    picture: int  # multiply-adds of one picture's way through the network
    cycle: dict[str, int]  # multiply-adds of a cycle for each image of a mini-batch, by HOW they are computed


@functools.cache
def network_price(depth: str) -> Price:
    """Counted for "depth3", "depth5" or "depth10". Losses are counted as the kit does: see `counts.layer_costs`."""
    example = Data.from_arrays(COLOUR, [0, 9], COLOUR, [0, 9])
    network = Network(build(depth, example), COLOUR)
    layers = searched_layers(network, RSO(1, 1))
    cycle = {}
    for how in HOW:
        costs = counts.layer_costs(network, COLOUR, RSO(1, 1), how.partition(",")[0])
        whole = 0
        for layer in layers:
            of_one, once = costs[layer.name]
            batches = len(next(iter(layer.parameters.values()))) if "held" in how else layer.size
            whole += layer.size * of_one * (2 if once else 3) + batches * once
        cycle[how] = whole
    return Price(sum(layer.size for layer in layers), counts.forward_cost(network, COLOUR), cycle)


def network_prices() -> None:
    """Print weights and counted multiply-adds of the paper's three networks, each beside the shallowest's."""
    first = network_price(experiments.DEPTHS[0])
    print("network           weights           one picture   a cycle, for each image")
    for depth in experiments.DEPTHS:
        weights, picture, cycle = network_price(depth)
        times = [weights / first.weights, picture / first.picture, cycle["plain"] / first.cycle["plain"]]
        print(
            f"{depth:8} {weights:>9,} x {times[0]:4.1f}  {picture / 1e6:>6.1f} million x {times[1]:3.1f}"
            f"  {cycle['plain'] / 1e9:>8.1f} billion x {times[2]:4.1f}"
        )


def colour_pictures() -> Figure | None:
    """Eight pictures of CIFAR-10 where the data are here; None, with a word to the learner, where they are not."""
    if data.find("cifar10") is None:
        print("CIFAR-10 is not on this computer: no picture this time. Everything in this lesson works without it.")
        return None
    print("Reading CIFAR-10, which takes some seconds ...")
    return plots.colour_pictures(data.load("cifar10", train_limit=8, test_limit=8))


def _count(weights: float, picture: float, images: float, cycles: float) -> float:
    return 3 * weights * picture * images * cycles


_DAYS_MISTAKES: list[tuple[Callable[..., float], str]] = [
    (lambda w, p, i, c, s: _count(w, p, i, c) / s, "Those are seconds. A day has 24 * 60 * 60 of them."),
    (lambda w, p, i, c, s: _count(w, p, i, c) / s / 60, "Those are minutes. A day has 24 * 60 of them."),
    (lambda w, p, i, c, s: _count(w, p, i, c) / s / 3600, "Those are hours. A day has 24 of them."),
    (lambda w, p, i, c, s: _count(w, p, i, c) / s / 1440, "One 60 is missing: a day has 24 * 60 * 60 seconds."),
    (lambda w, p, i, c, s: _count(w, p, i, c) / s / 24, "A day has 24 * 60 * 60 seconds, not 24."),
    (lambda w, p, i, c, s: _count(w, p, i, c) / s * DAY, "Divide by the seconds of a day, do not multiply."),
    (lambda w, p, i, c, s: _count(w, p, i, c) / 3 / s / DAY, "Each weight takes three losses: w - δ, w and w + δ."),
    (lambda w, p, i, c, s: _count(w, p, i, c) * 2 / 3 / s / DAY, "The loss at w counts, too: three, as in the paper."),
    (lambda w, p, i, c, s: _count(w, p, 1, c) / s / DAY, "Each loss is that of a whole mini-batch: where is `images`?"),
    (lambda w, p, i, c, s: _count(w, p, i, 1) / s / DAY, "That is one cycle: where is `cycles`?"),
    (lambda w, p, i, c, s: _count(1, p, i, c) / s / DAY, "A cycle visits every weight: where is `weights`?"),
    (lambda w, p, i, c, s: _count(w, 1, i, c) / s / DAY, "And what does one picture cost? Where is `picture`?"),
    (lambda w, p, i, c, s: _count(w, p, i, c) * s / DAY, "The faster the computer, the shorter it takes: divide."),
    (lambda w, p, i, c, s: _count(w, p, i, c), "Those are the multiply-adds. How many seconds are they?"),
]


def check_days(answer: Callable[[int, int, int, int, float], float]) -> bool:
    """Check a learner's `days(weights, picture, images, cycles, speed)`: says what to change; whether it is right."""
    plan = (2000, 3_000_000, 700, 20, 5e9)
    given = ask("days", answer, *plan, wanted="a number")
    if given is None or (number := number_of(given)) is None:
        return False
    right = _count(*plan[:4]) / plan[4] / DAY
    if not math.isclose(number, right, rel_tol=1e-6):
        print("Not yet. For 2000 weights, 3 million multiply-adds a picture, 700 images, 20 cycles and a speed of 5e9")
        print(f"it is {right:.4f} days, your answer was {number:.6g}.")
        for mistake, advice in _DAYS_MISTAKES:
            if math.isclose(number, mistake(*plan), rel_tol=1e-6):
                print(advice)
                break
        return False
    print("Right: the bill is a product, and weights and pictures both grow with depth.")
    return True


def depth_runs(size: str = "evening") -> dict[str, History]:
    """The recorded runs of the depth experiment, the first seed's, as far as each got."""
    result = experiments.read(experiments.RESULTS / f"depth_{size}.json")
    return {label: histories[0] for label, histories in experiments.curves(result).items()}


def recorded_speed() -> float:
    """Multiply-adds a second of Depth-10's recorded run with RSO: on CIFAR-10 where it has begun, else on digits."""
    last = (depth_runs("class") | depth_runs())["depth10, RSO"].cycles[-1]
    return last.multiply_adds / last.seconds


def plan_days(depth: str, how: str, images: int, cycles: int) -> float:
    """Days that RSO takes at the recorded speed, by its counted multiply-adds."""
    return network_price(depth).cycle[how] * images * cycles / recorded_speed() / DAY


def duration(days: float) -> str:
    """Days in the unit that suits."""
    units = {"days": 1, "hours": 24, "minutes": 24 * 60, "seconds": DAY}
    unit = next((unit for unit, number in units.items() if days * number >= 1), "seconds")
    return f"{days * units[unit]:.1f} {unit}"


def paper_days() -> tuple[float, float]:
    """Days that the paper's runs on Depth-10 took on its machine, RSO's and SGD's, by its seconds of a cycle."""
    cycles, _, _ = PAPER_RSO
    iterations, images, _ = PAPER_SGD
    epochs = iterations * images / 50_000  # of CIFAR-10's training pictures
    return cycles * PAPER_CYCLE / DAY, epochs * PAPER_EPOCH / DAY


def paper_points() -> dict[str, tuple[float, float]]:
    """Days and accuracy of the paper's runs on Depth-10: on its machine, and RSO's counted, at the recorded speed."""
    by_rso, by_sgd = paper_days()
    cycles, images, accuracy = PAPER_RSO
    return {
        "paper, depth10, SGD": (by_sgd, PAPER_SGD[-1]),
        "paper, depth10, RSO": (by_rso, accuracy),
        "the same, at this kit's speed": (plan_days("depth10", "cached", images, cycles), accuracy),
    }


def depth_results() -> None:
    """Print what the recorded runs on CIFAR-10 reached, and at what price, as far as each got."""
    print(f"{'run':14} {'cycles, epochs':>14} {'accuracy':>9} {'multiply-adds':>17} {'time':>12}")
    for label, history in sorted(depth_runs().items(), key=lambda run: (run[0].endswith("SGD"), len(run[0]), run[0])):
        last = history.cycles[-1]
        whole = history.settings.get("cycles") or history.settings["epochs"]
        done = f"{last.cycle} of {whole}"
        spent = f"{last.multiply_adds / 1e9:>9,.0f} billion {last.seconds / 60:>8.1f} min"
        print(f"{label:14} {done:>14} {last.test_accuracy:>9.1%} {spent}")
    print("paper, Depth-10: RSO 81.8% after 300 cycles of 500, SGD 82.94% at best (§4.4)")


@torch.no_grad()
def equal_guesses(
    digits: Data, depths: Sequence[str], count: int, batch_size: int, seed: int = 0
) -> dict[str, tuple[list[int], list[float]]]:
    """Train each network with RSO for so many guesses; returns, by name, how many were made and the accuracy then.

    Accuracy is that of the test images, by whose statistics the batch norms go meanwhile.
    """
    found = {}
    for depth in depths:
        model = build(depth, digits, seed)
        network = Network(model, digits.x_train[:2])
        length = sum(layer.size for layer in searched_layers(network, RSO(1, batch_size)))
        method = RSO(math.ceil(count / length), batch_size, sigma_end=1.0, batch_every="neuron")
        made, right = [0], [_right(network, digits)]
        search = steps(model, digits, method, seed=seed)
        for number, _ in zip(tqdm(range(1, count + 1), desc=depth, unit=" guesses"), search, strict=False):
            if number % max(1, count // 10) == 0:
                made.append(number)
                right.append(_right(network, digits))
        search.close()  # type: ignore[attr-defined]
        found[f"{depth}, {count / length:.2g} cycles"] = (made, right)
    return found


def _right(network: Network, digits: Data) -> float:
    values = network.propagate({network.input: digits.x_test}, batch_statistics_from=1)
    return (values[network.nodes[-1]].argmax(dim=1) == digits.y_test).double().mean().item()


@torch.no_grad()
def layer_signals(digits: Data, depth: str, count: int = 12) -> dict[str, tuple[float, float]]:
    """What one weight's change by its layer's sigma_d does to the loss, and the luck of that, layer by layer.

    Of `count` random weights of each convolution and linear layer, first to last, of a network with random weights: the
    mean of |change|, and the mean standard error of the change, both on 250 training images.
    """
    model = build(depth, digits).train()
    x, y = digits.x_train[:250], digits.y_train[:250]
    generator = torch.Generator().manual_seed(0)
    keep = F.cross_entropy(model(x), y, reduction="none")
    signals = {}
    weights = {name.removesuffix(".weight"): p for name, p in model.named_parameters() if p.dim() > 1}
    for name, weight in tqdm(weights.items(), desc=depth, unit=" layers"):
        flat, step = weight.view(-1), weight.std(correction=0).item()
        changes, lucks = [], []
        for place in torch.randint(weight.numel(), (count,), generator=generator).tolist():
            before = flat[place].item()
            flat[place] = before + step
            differences = F.cross_entropy(model(x), y, reduction="none") - keep
            flat[place] = before
            changes.append(abs(differences.mean().item()))
            lucks.append(differences.std().item() / len(x) ** 0.5)
        signals[name] = (statistics.mean(changes), statistics.mean(lucks))
    return signals


def kept_by_layer(label: str = "depth10, RSO", size: str = "class") -> dict[str, float]:
    """The share of weights that the last cycle of a recorded run kept in each convolution and linear layer."""
    shares: dict[str, Any] = depth_runs(size)[label].cycles[-1].kept
    return {name: share for name, share in reversed(shares.items()) if name != "all" and ".bn" not in name}
