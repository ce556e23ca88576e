"""What the lessons call: their first cell, checks of a learner's answers that name the likely mistake, the ledger."""

import contextlib
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from rso_lab import doctor, rso
from rso_lab.data import Data
from rso_lab.graph import Network
from rso_lab.history import History
from rso_lab.models import build

Choose = Callable[[float, float, float], object]  # (minus, keep, plus) -> the name of the candidate to take

NAMES = ("minus", "keep", "plus")

# Losses at w - δ, w and w + δ, and what they should teach.
_CASES = [
    ((0.9, 0.5, 0.7), "both changes raise the loss, so the weight is kept"),
    ((0.7, 0.5, 0.4), "w + δ has the lowest loss"),
    ((0.4, 0.5, 0.7), "w - δ has the lowest loss"),
    ((0.3, 0.5, 0.4), "both changes lower the loss, and w - δ lowers it most"),
    ((0.4, 0.5, 0.3), "both changes lower the loss, and w + δ lowers it most"),
    ((0.5, 0.5, 0.5), "all three are equal: a change that gains nothing is not made"),
    ((0.5, 0.5, 0.7), "w - δ is no better than w: a change that gains nothing is not made"),
    ((0.7, 0.5, 0.5), "w + δ is no better than w: a change that gains nothing is not made"),
]

# What learners write instead, and what to tell them.
_FIRST_THAT_HELPS = "You take the first change that helps. Compare both."
_MISTAKES: list[tuple[Choose, str]] = [
    (lambda m, k, p: NAMES[(m, k, p).index(max(m, k, p))], "You take the highest loss. The lowest is the best."),
    (lambda m, k, p: NAMES[(m, k, p).index(min(m, k, p))], "On a tie your min takes the first. Ask about keep first."),
    (lambda m, k, p: "minus" if m < k else "plus" if p < k else "keep", _FIRST_THAT_HELPS),
    (lambda m, k, p: "plus" if p < k else "minus" if m < k else "keep", _FIRST_THAT_HELPS),
    (lambda m, k, p: "keep" if k <= min(m, p) else "minus" if p < m else "plus", "minus and plus look exchanged."),
]


def begin() -> None:
    """Check the set-up, and compute on one thread.

    The lessons' small networks gain little from a second one, and lose much where a browser keeps the cores busy.
    """
    torch.set_num_threads(1)
    doctor.check()


def check_choose(answer: Choose) -> bool:
    """Check a learner's `choose(minus, keep, plus)`; prints what to change, and returns whether it is right."""
    try:
        answers = [answer(*losses) for losses, _ in _CASES]
    except Exception as error:
        print(f"Not yet: your choose stopped with {type(error).__name__}: {error}.")
        return False
    if all(given in (None, ...) for given in answers):
        print('Not done yet: choose returns nothing. It should return "minus", "keep" or "plus".')
        return False
    for (losses, why), given in zip(_CASES, answers, strict=True):
        minus, keep, plus = losses
        right = rso.CANDIDATES[int(rso.choose(torch.tensor([keep, plus, minus])))]
        if given != right:
            print(f"Not yet. With the losses {losses[0]} at w - δ, {losses[1]} at w and {losses[2]} at w + δ: {why}.")
            print(f"Your answer was {given!r}, the right one is {right!r}.")
            if isinstance(given, float):
                print("That is a loss: return the name of its candidate, in quotes.")
            elif given not in NAMES:
                print('It has to be one of "minus", "keep" and "plus".')
            for mistake, advice in _MISTAKES:
                if answers == [mistake(*losses) for losses, _ in _CASES]:
                    print(advice)
                    break
            return False
    print("Right: your choose takes the best of the three.")
    return True


# Fan-in, fan-out and what they are of: the shapes that a learner's rule is tried on.
_SHAPES = [(16, 144, (16, 16, 3, 3)), (4, 9, (4, 1, 3, 3)), (10, 64, (10, 64))]
_SIGMA_MISTAKES: list[tuple[Callable[[torch.Tensor], float], str]] = [
    (lambda w: 2 / w[0].numel(), "That is the variance: sigma is its square root."),
    (lambda w: (1 / w[0].numel()) ** 0.5, "Without the 2: ReLU lets only half of the signal's square through."),
    (lambda w: (2 / w.shape[0]) ** 0.5, "You divide by the outputs. Each output sums over its inputs: count those."),
    (lambda w: (2 / w.numel()) ** 0.5, "You divide by all weights. Count those of one output neuron."),
    (lambda w: (2 / w.shape[1]) ** 0.5, "An output of a convolution also sums over the kernel's places: w[0].numel()."),
    (lambda w: float(w.std()), "That is the spread it has. The rule says which it should have, from its shape alone."),
]


def check_he_sigma(answer: Callable[[torch.Tensor], float]) -> bool:
    """Check a learner's `he_sigma(weight)`; prints what to change, and returns whether it is right."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for _, _, shape in _SHAPES]
    try:
        answers = [answer(weight) for weight in weights]
    except Exception as error:
        print(f"Not yet: your he_sigma stopped with {type(error).__name__}: {error}.")
        return False
    if all(given in (None, ...) for given in answers):
        print("Not done yet: he_sigma returns nothing. It should return a number.")
        return False
    for (_, fan_in, shape), given in zip(_SHAPES, answers, strict=True):
        right = (2 / fan_in) ** 0.5
        if not isinstance(given, int | float | torch.Tensor) or not math.isclose(float(given), right, rel_tol=1e-6):
            print(f"Not yet. For a weight tensor of shape {shape} it is {right:.4f}, your answer was {given!r}.")
            _advise(answers, weights, _SIGMA_MISTAKES)
            return False
    print("Right: your rule keeps the signals as large as they came.")
    return True


_NORMALISE_MISTAKES: list[tuple[Callable[[torch.Tensor], torch.Tensor], str]] = [
    (lambda x: x - x.mean(), "Divide by the deviation, too."),
    (lambda x: x / x.std(), "Subtract the mean first."),
    (lambda x: (x - x.mean()) / x.var(), "You divide by the variance. The deviation is its square root."),
    (
        lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True),
        "Each image by its own mean: that takes away how dark it is as a whole. Use one mean for all.",
    ),
    (lambda x: (x - x.mean(0)) / (x.std(0) + 1e-8), "Each pixel by its own mean. Use one mean for all."),
    (lambda x: x / x.max(), "That is a scale from 0 to 1. The mean has to become 0, the deviation 1."),
]


def check_normalise(answer: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Check a learner's `normalise(x)`; prints what to change, and returns whether it is right."""
    x = 16 * torch.rand((50, 1, 8, 8), generator=torch.Generator().manual_seed(0)) ** 3
    x *= torch.linspace(0.5, 1, 50).view(-1, 1, 1, 1)
    try:
        given = answer(x.clone())
    except Exception as error:
        print(f"Not yet: your normalise stopped with {type(error).__name__}: {error}.")
        return False
    if given is None or given is ...:
        print("Not done yet: normalise returns nothing. It should return the images, changed.")
        return False
    if not isinstance(given, torch.Tensor) or given.shape != x.shape:
        print("Not yet: return a tensor of the same shape as x.")
        return False
    mean, deviation = given.mean().item(), given.std().item()
    spread = (x - x.mean()) / x.std()
    if not torch.allclose(given, spread, atol=0.02):
        print(f"Not yet. Yours have the mean {mean:.3f} and the deviation {deviation:.3f}; wanted are 0 and 1.")
        _advise([given], [x], _NORMALISE_MISTAKES)
        return False
    print("Right: mean 0, deviation 1.")
    return True


def _advise(answers: list, questions: list, mistakes: list) -> None:
    """Print what to tell a learner whose answers are those of one of the mistakes."""
    for mistake, advice in mistakes:
        wrong = [torch.as_tensor(mistake(question)) for question in questions]
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            if all(torch.allclose(torch.as_tensor(a), w) for a, w in zip(answers, wrong, strict=True)):
                print(advice)
                return


@torch.no_grad()
def random_networks(data: Data, count: int) -> list[float]:
    """Test accuracies of one_conv with random weights, of so many seeds."""
    models = (build("one_conv", data, seed) for seed in range(count))
    return [(model(data.x_test).argmax(dim=1) == data.y_test).double().mean().item() for model in models]


@torch.no_grad()
def train_with(answer: Choose, data: Data) -> None:
    """Train one_conv for a cycle with a learner's `choose` in place of the package's, and print how well it reads."""
    if not check_choose(answer):
        return
    network = Network(build("one_conv", data), data.x_train[:2])
    settings = rso.RSO(cycles=1, batch_size=min(1000, len(data.x_train)))
    evaluator = rso.CachedEvaluator(network, data, F.cross_entropy)
    sigmas = rso.initial_sigmas(network, settings)
    generator = torch.Generator().manual_seed(0)

    def decide(losses: torch.Tensor) -> torch.Tensor:
        keep, plus, minus = losses.tolist()
        return torch.tensor(rso.CANDIDATES.index(answer(minus, keep, plus)))

    search_layer = partial(rso.one_by_one, decide=decide)
    for _ in rso.search_cycle(1, sigmas, network, data, settings, evaluator, generator, search_layer):
        pass
    right = (network.outputs(data.x_test).argmax(dim=1) == data.y_test).double().mean().item()
    print(f"After one cycle in which your choose decided every time: {right:.1%} of the test images right.")


def compare(prediction: object, measured: float, what: str) -> None:
    """Print a learner's prediction, a share, beside what was measured."""
    if prediction is ...:
        print(f"{what}: measured {measured:.0%}. You made no prediction this time.")
        return
    if isinstance(prediction, bool) or not isinstance(prediction, int | float) or not 0 <= prediction <= 1:
        print(f"{what}: measured {measured:.0%}. Your prediction is {prediction!r}: write a number between 0 and 1.")
        return
    points = round(100 * (measured - prediction))
    more = f"{abs(points)} percentage points {'more' if points > 0 else 'less'} than you thought"
    print(f"{what}: measured {measured:.0%}, your prediction {prediction:.0%}, {more if points else 'spot on'}.")


def ledger(history: History) -> None:
    """Print what a run reached, and at what price."""
    last = history.cycles[-1]
    print(f"accuracy     {last.test_accuracy:.1%} of {history.settings['test_images']} test images")
    print(f"evaluations  {last.evaluations:,} losses, each over {history.settings['batch_size']} images")
    print(f"time         {last.seconds:.1f} s ({history.machine})")
