"""RSO written a second time, naively, for networks that are an nn.Sequential: what the tests compare with."""

import math

import torch
import torch.nn.functional as F
from torch import nn

KERNEL = [(a, b) for a in range(3) for b in range(3)]


def small_network(dtype=torch.float64):
    """Two 3x3 convolutions with batch norm and a linear layer, for 8x8 images of one channel; 168 parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1, bias=False),
            nn.BatchNorm2d(2),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(2, 3, 3, padding=1),  # its bias feeds a batch norm: not searched
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(12, 10),
        )
    return model.to(dtype)


# Where each searched parameter of small_network stands, layer by layer from the input on.
LAYERS = [["0.weight"], ["1.weight", "1.bias"], ["4.weight"], ["5.weight", "5.bias"], ["9.weight", "9.bias"]]
BATCH_NORMS = ("1", "5")


def visits(order, layer_order, batch_norm=True):
    """(parameter name, index, group) of each weight of small_network in a cycle, spelled out."""
    conv1 = {
        "neuron": [("0.weight", (i, 0, a, b), i) for i in range(2) for a, b in KERNEL],
        "input": [("0.weight", (i, 0, a, b), 0) for i in range(2) for a, b in KERNEL],
    }
    conv2 = {
        "neuron": [("4.weight", (i, j, a, b), i) for i in range(3) for j in range(2) for a, b in KERNEL],
        "input": [("4.weight", (i, j, a, b), j) for j in range(2) for i in range(3) for a, b in KERNEL],
    }
    linear = {
        "neuron": [
            visit for i in range(10) for visit in ([("9.weight", (i, j), i) for j in range(12)] + [("9.bias", (i,), i)])
        ],
        "input": [("9.weight", (i, j), j) for j in range(12) for i in range(10)]
        + [("9.bias", (i,), "biases") for i in range(10)],
    }
    bn1 = [(f"1.{name}", (i,), i) for i in range(2) for name in ("weight", "bias")] if batch_norm else []
    bn2 = [(f"5.{name}", (i,), i) for i in range(3) for name in ("weight", "bias")] if batch_norm else []
    if layer_order == "output_first":
        return [*linear[order], *conv2[order], *bn2, *conv1[order], *bn1]
    return [*conv1[order], *bn1, *conv2[order], *bn2, *linear[order]]


def outputs(model, x, x_train, first):
    """The outputs for x while the module number `first` is searched.

    Batch norms before it use the statistics of all of x_train, of the network as it is; the others those of x.
    """
    for number, module in enumerate(model):
        if isinstance(module, nn.BatchNorm2d):
            source = x_train if number < first else x
            mean = source.mean(dim=(0, 2, 3), keepdim=True)
            deviation = (source.var(dim=(0, 2, 3), correction=0, keepdim=True) + module.eps).sqrt()
            gamma, beta = module.weight.view(1, -1, 1, 1), module.bias.view(1, -1, 1, 1)
            x, x_train = ((a - mean) / deviation * gamma + beta for a in (x, x_train))
        else:
            x, x_train = module(x), module(x_train)
    return x


@torch.no_grad()
def losses(model, data, step, weight_decay=0.0, opposite=True, whole_batch=False):
    """The three losses of a step, with the model's weights as they were before it."""
    x, y = data.x_train[step.batch], data.y_train[step.batch]
    first = 0 if whole_batch else int(step.layer)
    parameters = dict(model.named_parameters())
    deltas = step.delta if isinstance(step.delta, dict) else {step.name: step.delta}
    results = {}
    for name, sign in (("minus", -1), ("keep", 0), ("plus", 1)):
        before = {key: value.clone() for key, value in parameters.items()}
        for key, delta in deltas.items():
            parameters[key][step.index] += sign * delta
        loss = F.cross_entropy(outputs(model, x, data.x_train, first), y)
        decayed = [parameters[key] for key in ("0.weight", "4.weight", "9.weight")]
        loss = loss + weight_decay / 2 * sum(weight.square().sum() for weight in decayed)
        results[name] = loss.item() if opposite or name != "minus" else math.nan
        for key, value in before.items():
            parameters[key].copy_(value)
    return results


def losses_of(model, batches):
    """For each mini-batch a function from a vector of weights to its loss."""

    def at(batch):
        def loss(weights):
            torch.nn.utils.vector_to_parameters(weights, model.parameters())
            with torch.no_grad():
                return F.cross_entropy(model(batch[0]), batch[1]).item()

        return loss

    return [at(batch) for batch in batches]


def genetic(start, losses, population, parents, sigma, generator):
    """The elite of a genetic algorithm after a generation for each of `losses`; fewer than 64 children each."""
    best = [start]
    for loss in losses:
        chosen = torch.randint(len(best), (population - 1,), generator=generator).tolist()
        seed = int(torch.randint(2**32, (), generator=generator))
        noise = torch.randn(
            population - 1, len(start), generator=torch.Generator().manual_seed(seed), dtype=start.dtype
        )
        children = [best[parent] + sigma * noise[i] for i, parent in enumerate(chosen)]
        best = sorted([best[0], *children], key=loss)[:parents]
    return best[0]
