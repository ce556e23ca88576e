"""Whether network, targets, loss and metric go together, and how good the network is: accuracy, loss and metric."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rso_lab.data import Data
from rso_lab.graph import Network, map_tensors, tensors_of
from rso_lab.rso import LossFunction, as_loss


@torch.no_grad()
def measured(network: Network, data: Data, loss: LossFunction, metric: LossFunction | None) -> dict[str, Any]:
    """What a record says of the network after a cycle: None where there is no accuracy, or no metric."""
    found: dict[str, Any] = {}
    for part, x, y in (("test", data.x_test, data.y_test), ("train", data.x_train, data.y_train)):
        outputs = network.outputs(x)
        scores = _scores(outputs, data.classes, loss)
        right = None if scores is None else int((scores.argmax(dim=1) == y).sum()) / len(y)
        found |= {f"{part}_accuracy": right, f"{part}_metric": float(metric(outputs, y)) if metric else None}
        if part == "train":
            found["loss"] = float(loss(outputs, y))
    weights = [parameter for parameter in network.module.parameters() if parameter.dim() > 1]
    return found | {"nonzero": sum(int(weight.count_nonzero()) for weight in weights)}


def _scores(outputs: Any, classes: int | None, loss: LossFunction) -> Tensor | None:
    """What tells the class of each image (B, classes or more), of what the network puts out; None: nothing does."""
    first = next(iter(tensors_of(outputs)), None)
    if classes is None or first is None:
        return None
    if classes == 2 and loss is not F.cross_entropy and first.dim() > 0 and first.shape[1:] in ((1,), ()):
        logit = first.flatten()  # of class 1
        return torch.stack([torch.zeros_like(logit), logit], dim=1)
    return first if first.dim() == 2 and first.shape[1] >= classes else None


def refuse_unfit(
    network: Network, data: Data, loss: LossFunction, metric: LossFunction | None, slope_for: str | None
) -> None:
    """Raise TypeError or ValueError where network, targets, loss and metric do not go together, tried on two images.

    `slope_for`: the method that needs the loss's gradient, if it does.
    """
    with torch.no_grad():
        if not data.x_train.is_floating_point():
            _refuse_unknown_ids(network, data)
        outputs, targets = network.outputs(data.x_train[:2]), data.y_train[:2]
    if loss is F.cross_entropy and data.classes is None:
        raise ValueError(
            f"the targets hold {targets.dtype} values of shape {tuple(data.y_train.shape)}, and cross_entropy is of "
            "labels, integers (N,) from 0 (of one-hot rows y.argmax(1) makes them): give a loss of your own, for "
            "numbers loss=F.mse_loss"
        )
    if loss is F.cross_entropy and not isinstance(outputs, Tensor):
        name = type(network.module).__name__
        raise TypeError(f"{name} puts out a {type(outputs).__name__}: give a loss of your own, loss(outputs, targets)")
    if data.classes is not None and metric is None and _scores(outputs, data.classes, loss) is None:
        raise ValueError(_unfit_for_labels(network, outputs, data, data.classes, loss))
    number = _tried("loss", loss, outputs, data, slope_for is not None)
    if slope_for is not None and not getattr(number, "requires_grad", False):
        raise ValueError(
            f"loss(outputs, targets) gives a number without a gradient: {slope_for} needs one, ES and RSO do not"
        )
    if metric is not None:
        _tried("metric", metric, outputs, data, False)


def _tried(what: str, function: LossFunction, outputs: Any, data: Data, slopes: bool) -> Any:
    """What it gives for the first two images. Raises ValueError where that is not one number."""
    targets = data.y_train[:2]
    try:
        with torch.set_grad_enabled(slopes), warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size")  # torch's losses would compare all with all
            number = function(map_tensors(_with_slopes, outputs) if slopes else outputs, targets)
        as_loss(number, targets.device)
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, UserWarning) as error:
        kind = f"{targets.dtype} of shape {tuple(targets.shape)}" if data.classes is None else "whole numbers"
        raise ValueError(
            f"{what}(outputs, targets) must give one number for a mini-batch, of outputs of {_shape(outputs)} and "
            f"{kind} as targets ({error})"
        ) from error
    return number


def _with_slopes(outputs: Tensor) -> Tensor:
    return outputs.requires_grad_() if outputs.is_floating_point() else outputs


def _refuse_unknown_ids(network: Network, data: Data) -> None:
    """Raise ValueError for whole numbers that the network cannot look up: else it would fail in the middle of a run."""
    for name, x in (("x_train", data.x_train), ("x_test", data.x_test)):
        try:
            network.outputs(x)
        except (IndexError, RuntimeError) as error:
            held = f"{name} holds whole numbers from {int(x.min())} to {int(x.max())}"
            raise ValueError(f"{held}, which the network cannot look up: {error}") from error


def _unfit_for_labels(network: Network, outputs: Any, data: Data, classes: int, loss: LossFunction) -> str:
    """What is wrong, and the likely mistake."""
    wrong = f"the outputs, from layer {network.layers[-1].name!r}, have {_shape(outputs)}: expected (B, {classes})"
    lowest = int(min(data.y_train.min(), data.y_test.min()))
    if isinstance(outputs, Tensor) and outputs.dim() == 2 and 0 < lowest == classes - outputs.shape[1]:
        return f"{wrong}; labels begin at 0, and these at {lowest}: subtract it"
    if loss is F.cross_entropy:
        return wrong
    return f"{wrong}; pass targets that are no labels as floats, and for other outputs a metric beside the loss"


def _shape(outputs: Any) -> str:
    if isinstance(outputs, Tensor):
        return f"shape {tuple(outputs.shape)}"
    return f"{type(outputs).__name__} of shapes {', '.join(str(tuple(value.shape)) for value in tensors_of(outputs))}"
