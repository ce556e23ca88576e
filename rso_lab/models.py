"""The networks of the paper and of the lessons, and He's initialisation.

All take `seed` and initialise from a generator of their own. `build` makes any of them fit any data set.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rso_lab.data import NORMALISE, Data, usable_seed


def he_init_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights from N(0, sqrt(2 / fan_in)), fan_in = |w_i| for output neuron i; biases 0, batch-norm gamma 1, beta 0.

    He et al. 2015, as in Algorithm 1, lines 2-5, of the paper. Of convolutions, linear layers and batch norms; other
    layers stay as they are. Changes `model` in place and returns it. Raises ValueError for a seed beyond 32 bits.
    """
    generator = torch.Generator().manual_seed(usable_seed(seed))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                fan_in = module.weight[0].numel()
                draw = torch.randn(module.weight.shape, generator=generator, dtype=torch.float64)
                module.weight.copy_(draw * (2 / fan_in) ** 0.5)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, _BatchNorm) and module.affine:
                module.weight.fill_(1)
                module.bias.zero_()
    return model


def build(name: str, data: Data, seed: int = 0) -> nn.Module:
    """The network `name` for the image size, channels, classes and dtype of `data`."""
    if name not in MODELS:
        raise ValueError(f"network {name!r} is not known: choose from {', '.join(MODELS)}")
    if data.x_train.dim() != 4:
        shape = tuple(data.x_train.shape)
        raise ValueError(f"x_train has shape {shape}: these networks take (N, channels, height, width)")
    if not data.x_train.is_floating_point():
        raise ValueError(f"x_train holds {data.x_train.dtype} values: {NORMALISE}")
    if data.classes is None:
        raise ValueError("these networks tell classes apart, and the targets are no labels: bring your own")
    _, channels, height, width = data.x_train.shape
    fits: dict[str, Any] = {
        "in_channels": channels,
        "classes": data.classes,
        "image_size": (height, width),
        "seed": seed,
    }
    takes = inspect.signature(MODELS[name]).parameters
    return MODELS[name](**{key: value for key, value in fits.items() if key in takes}).to(data.x_train.dtype)


def _pooled(image_size: tuple[int, int], factor: int) -> list[int]:
    """The size of images after all pooling. Raises ValueError where nothing is left of them."""
    if min(image_size) < factor:
        raise ValueError(f"images of {image_size[0]} x {image_size[1]} pixels: at least {factor} x {factor} are needed")
    return [size // factor for size in image_size]


# torch's constructors draw from its global generator: fork_rng gives back what they took.
@torch.random.fork_rng(devices=[])
def paper_cnn(in_channels: int = 1, classes: int = 10, seed: int = 0, width: int = 16, depth: int = 6) -> nn.Module:
    """The paper's MNIST network (§4.1): six 3x3 convolutions of 16 channels, each with batch norm and ReLU.

    2x2 average pooling after the second and fourth, global average pooling after the sixth, then one linear layer:
    12,026 parameters on MNIST. Others of its kind have another `width` (channels) or `depth` (convolutions).
    (B, in_channels, H, W) -> (B, classes).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, depth + 1):
        layers[f"conv{i}"] = nn.Conv2d(in_channels if i == 1 else width, width, 3, padding=1, bias=False)
        layers[f"bn{i}"] = nn.BatchNorm2d(width)
        layers[f"relu{i}"] = nn.ReLU()
        if i in (2, 4) and i < depth:
            layers[f"pool{i}"] = nn.AvgPool2d(2)
    layers |= {f"pool{depth}": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(width, classes)}
    return he_init_(nn.Sequential(layers), seed)


@torch.random.fork_rng(devices=[])
def one_conv(
    in_channels: int = 1, classes: int = 10, image_size: tuple[int, int] = (28, 28), seed: int = 0
) -> nn.Module:
    """The Julia notebook's smallest network: a 3x3 convolution of 4 channels, ReLU, 2x2 max pooling, a linear layer.

    (B, in_channels, *image_size) -> (B, classes). Raises ValueError for images too small to be pooled.
    """
    height, width = _pooled(image_size, 2)
    layers = {
        "conv1": nn.Conv2d(in_channels, 4, 3, padding=1),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(4 * height * width, classes),
    }
    return he_init_(nn.Sequential(OrderedDict(layers)), seed)


@torch.random.fork_rng(devices=[])
def two_conv(
    in_channels: int = 1, classes: int = 10, image_size: tuple[int, int] = (28, 28), seed: int = 0
) -> nn.Module:
    """The Julia notebook's second network: two 3x3 convolutions of 16 channels, each with ReLU and 2x2 max pooling.

    (B, in_channels, *image_size) -> (B, classes). Raises ValueError for images too small to be pooled.
    """
    height, width = _pooled(image_size, 4)
    layers = {
        "conv1": nn.Conv2d(in_channels, 16, 3, padding=1),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(16, 16, 3, padding=1),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(16 * height * width, classes),
    }
    return he_init_(nn.Sequential(OrderedDict(layers)), seed)


@torch.random.fork_rng(devices=[])
def mlp(in_channels: int = 1, classes: int = 10, image_size: tuple[int, int] = (28, 28), seed: int = 0) -> nn.Module:
    """A small network without convolutions: one hidden layer of 32. (B, in_channels, *image_size) -> (B, classes)."""
    height, width = image_size
    layers = {
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(in_channels * height * width, 32),
        "relu1": nn.ReLU(),
        "fc2": nn.Linear(32, classes),
    }
    return he_init_(nn.Sequential(OrderedDict(layers)), seed)


@torch.random.fork_rng(devices=[])
def stack(depth: int, in_features: int, width: int = 64, classes: int = 10, seed: int = 0) -> nn.Sequential:
    """Linear layers in a row, each but the last with ReLU, no batch norm: shows what the scale of weights does.

    (B, in_features) of any shape behind B -> (B, classes).
    """
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for number in range(1, depth):
        layers[f"fc{number}"] = nn.Linear(in_features if number == 1 else width, width)
        layers[f"relu{number}"] = nn.ReLU()
    layers[f"fc{depth}"] = nn.Linear(width if depth > 1 else in_features, classes)
    model = nn.Sequential(OrderedDict(layers))
    he_init_(model, seed)
    return model


class Block(nn.Module):
    """A basic residual block (He et al. 2016): two 3x3 convolutions with batch norm, and a shortcut across them.

    The shortcut has no parameters: where the block widens, the new channels get zeros ("option A" of that paper).
    (B, in_channels, H, W) -> (B, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for x (B, in_channels, H, W)."""
        change = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x
        return self.relu2(shortcut + change)


def _single(in_channels: int, out_channels: int) -> nn.Module:
    layers = {
        "conv": nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        "bn": nn.BatchNorm2d(out_channels),
        "relu": nn.ReLU(),
    }
    return nn.Sequential(OrderedDict(layers))


def _depth(in_channels: int, classes: int, seed: int, **stages: nn.Module) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=_single(in_channels, 8))
    for name, stage in stages.items():
        layers[name] = stage
        if name in ("conv2", "conv3"):
            layers[name.replace("conv", "pool")] = nn.AvgPool2d(2)
    width = 32 if "conv4" in stages else 16
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(width, classes)}
    return he_init_(nn.Sequential(layers), seed)


@torch.random.fork_rng(devices=[])
def depth3(in_channels: int = 3, classes: int = 10, seed: int = 0) -> nn.Module:
    """Depth-3 of the paper (§4.4): two convolutions, one linear layer. A reconstruction, see `depth10`."""
    return _depth(in_channels, classes, seed, conv2=_single(8, 16))


@torch.random.fork_rng(devices=[])
def depth5(in_channels: int = 3, classes: int = 10, seed: int = 0) -> nn.Module:
    """Depth-5 of the paper (§4.4): four convolutions, one linear layer. A reconstruction, see `depth10`."""
    return _depth(in_channels, classes, seed, conv2=_single(8, 16), conv3=Block(16, 16))


@torch.random.fork_rng(devices=[])
def depth10(in_channels: int = 3, classes: int = 10, seed: int = 0) -> nn.Module:
    """Depth-10 of the paper (§4.4): nine convolutions, most of them in residual blocks, and one linear layer.

    A reconstruction: the text that we have lacks Table 3, so the widths are ours. What the text does give: the pooling,
    a factor 3.5 in multiply-adds saved by caching (§4.7), and a cycle that costs 52/12 of the MNIST network's
    (Figure 3). Among stages of 8, 16, 32 or 64 channels these come nearest: a factor 3.54, and 4.40 times the cost.

        stage   size    Depth-3     Depth-5     Depth-10
        conv1   32x32   3x3, 8      3x3, 8      3x3, 8
        conv2   32x32   3x3, 16     3x3, 16     1 block, 16    then 2x2 average pooling
        conv3   16x16   -           1 block, 16 2 blocks, 16   then 2x2 average pooling
        conv4   8x8     -           -           1 block, 32

    Each convolution is followed by batch norm and ReLU, the last by global average pooling.
    (B, in_channels, H, W) -> (B, classes).
    """
    conv3 = nn.Sequential(Block(16, 16), Block(16, 16))
    return _depth(in_channels, classes, seed, conv2=Block(8, 16), conv3=conv3, conv4=Block(16, 32))


MODELS: dict[str, Callable[..., nn.Module]] = {
    function.__name__: function for function in (paper_cnn, one_conv, two_conv, depth3, depth5, depth10, mlp)
}
