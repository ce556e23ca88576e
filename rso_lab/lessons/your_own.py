"""Lesson 10: a learner's own network, and losses without a slope."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rso_lab.data import Data, load
from rso_lab.graph import Network
from rso_lab.lessons.answers import ask
from rso_lab.models import he_init_
from rso_lab.rso import RSO, LossFunction
from rso_lab.train import steps

MOST = 3000  # weights that a cycle of a lesson has time for


def moved(before: dict[str, Tensor], model: nn.Module) -> str:
    """How far the weights of each layer are from those `before`, a state dict, as a share of their length."""
    after = model.state_dict()
    shares = {name: ((after[name] - old).norm() / old.norm()).item() for name, old in before.items() if old.dim() > 1}
    return ", ".join(f"{name} moved by {share:.0%}" for name, share in shares.items())


def three_losses(model: nn.Module, data: Data, method: RSO, loss: LossFunction, seed: int = 0) -> dict[str, float]:
    """Train, and count what the proposals' three losses say: the share of each outcome."""
    found = Counter({"all three equal": 0, "no change is better": 0, "a change is accepted": 0})
    for step in steps(model, data, method, seed=seed, loss=loss):
        losses = step.losses
        if losses.minus == losses.keep == losses.plus:
            found["all three equal"] += 1
        elif step.choice == "keep":
            found["no change is better"] += 1
        else:
            found["a change is accepted"] += 1
    return {outcome: times / found.total() for outcome, times in found.items()}


_WANTED = "a network: return nn.Sequential(...)"


def check_my_net(answer: Callable[[], Any]) -> bool:
    """Check a learner's `my_net()`: says what to change; returns whether it fits digits and a short run."""
    model = ask("my_net", answer, wanted=_WANTED)
    if model is None:
        return False
    fault = _fault_of_kind(model) or _fault_of_run(copy.deepcopy(model).eval()) or _fault_of_search(model)
    if fault:
        print(f"Not yet. {fault}")
        return False
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"Right: it fits. It has {count:,} weights, so a cycle takes {3 * count:,} losses.")
    return True


def mine_or_ours(answer: Callable[[], Any]) -> nn.Module:
    """A learner's network where it passes the check, else one of ours, which is said; initialised by He's rule."""
    if check_my_net(answer):
        model = answer()
    else:
        print("Until it fits, here is one of ours.")
        with torch.random.fork_rng(devices=[]):
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    return he_init_(model)


def _fault_of_kind(model: Any) -> str:
    if isinstance(model, type):
        return f"my_net returns the class {model.__name__}. Brackets behind it make a network: {model.__name__}()."
    if not isinstance(model, nn.Module):
        return f"my_net returns {type(model).__name__}, and what is wanted is {_WANTED}."
    if not list(model.parameters()):
        return "Your network has no weights: it needs a layer such as nn.Linear(64, 10)."
    return ""


def _images() -> Tensor:
    return load("digits").x_train[:100]


def _fault_of_run(model: nn.Module) -> str:
    """What is wrong when the network, in eval mode, is run on images: the layer that does not fit, or its outputs."""
    entering: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, given: entering.append((module, given[0])))
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            outputs = model(_images())
    except Exception as error:
        return _misfit(*entering[-1]) if entering else f"It stopped with {type(error).__name__}: {error}."
    finally:
        for hook in hooks:
            hook.remove()
    return _fault_of_outputs(outputs)


def _misfit(layer: nn.Module, given: Tensor) -> str:
    """What to change where this layer, the last that was reached, stopped."""
    each = tuple(given.shape[1:])
    if not each:
        return "All images became one single row: nn.Flatten(), with nothing between its brackets, makes one for each."
    if isinstance(layer, nn.Conv2d) and given.dim() != 4:
        return f"A convolution wants images, and gets {each} for each of them: put nn.Flatten() behind it."
    if isinstance(layer, nn.Conv2d) and layer.in_channels != each[0]:
        return f"nn.Conv2d({layer.in_channels}, ...) gets {each[0]} channels: let it begin with that number."
    if isinstance(layer, nn.Linear) and len(each) > 1:
        return f"A linear layer wants one row of numbers for an image, and gets {each}: put nn.Flatten() before it."
    if isinstance(layer, nn.Linear) and layer.in_features != each[0]:
        return f"nn.Linear({layer.in_features}, ...) gets {each[0]} numbers for an image: let it begin with that one."
    return f"It stopped in or behind {layer}, which gets {each} for an image."


def _fault_of_outputs(outputs: Any) -> str:
    if not isinstance(outputs, Tensor):
        return f"Your network puts out a {type(outputs).__name__}: one tensor is wanted."
    if outputs.shape != (len(_images()), 10):
        each = tuple(outputs.shape[1:])
        return f"For each image it puts out numbers of the shape {each}, and ten are wanted, one for each digit: (10,)."
    if (outputs >= 0).all() and torch.allclose(outputs.sum(1), torch.ones(len(outputs)), atol=1e-4):
        return "It ends with softmax. Leave that out: the loss, cross-entropy, has it inside."
    if outputs.any() and (outputs >= 0).all():
        return (
            "Its outputs are never negative. Leave out the activation behind the last layer: the loss needs both signs."
        )
    return ""


def _fault_of_search(model: nn.Module) -> str:
    try:
        network = Network(model, _images())
    except (TypeError, ValueError) as error:
        return f"It cannot be searched: {error}."
    count = sum(layer.size for layer in network.layers)
    if count > MOST:
        return f"It has {count:,} weights, at three losses each: take {MOST:,} at most, for this lesson's time."
    return ""
