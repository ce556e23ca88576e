"""The networks against the figures of the paper, and He's initialisation against its closed form."""

import inspect

import pytest
import torch
from torch import nn

import rso_lab as rso
from rso_lab.graph import Network
from rso_lab.models import Block, build, he_init_

SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


def like(name):
    """Random images of the shape of a data set."""
    shape, labels = SHAPES[name], torch.arange(10)
    images = torch.randn(10, *shape, generator=torch.Generator().manual_seed(0))
    return rso.Data.from_arrays(images, labels, images, labels)


def multiply_adds(model, data):
    """Of one image: (weights, multiply-adds) of each convolution and linear layer, in the order of execution.

    Measured from the shapes that pass by, not from the model file.
    """
    counted, hooks = [], []

    def count(module, inputs, output):
        weights = module.weight.numel()
        positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        counted.append((weights, weights * positions))

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            hooks.append(module.register_forward_hook(count))
    model.eval()(data.x_train[:1])
    for hook in hooks:
        hook.remove()
    return counted


def cost_of_a_cycle(counted, cached):
    """Multiply-adds of one image and candidate over a cycle (§4.7): weights times what runs from their layer on."""
    return sum(w * sum(f for _, f in (counted[d:] if cached else counted)) for d, (w, _) in enumerate(counted))


@pytest.mark.parametrize("data", SHAPES)
@pytest.mark.parametrize("name", rso.models.MODELS)
def test_every_network_fits_every_data_set(name, data):
    data = like(data)
    model = build(name, data)
    assert model(data.x_train).shape == (10, 10)
    assert {layer.name for layer in Network(model, data.x_train[:2]).layers}


def test_the_mnist_network_has_the_papers_size():
    model = rso.models.paper_cnn()
    assert sum(p.numel() for p in model.parameters()) == 144 + 5 * 2304 + 192 + 160 + 10 == 12_026
    network = Network(model, like("mnist").x_train[:2])
    assert sum(layer.size for layer in network.layers) == 12_026
    assert round(500_000 / 12_026) == 42  # "about 42 cycles" (§4.2)


def test_julia_networks_have_the_sizes_of_their_source():
    data = like("mnist")
    assert sum(p.numel() for p in build("one_conv", data).parameters()) == 4 * 9 + 4 + 14 * 14 * 4 * 10 + 10
    sizes = 16 * 9 + 16 + 16 * 16 * 9 + 16 + 7 * 7 * 16 * 10 + 10
    assert sum(p.numel() for p in build("two_conv", data).parameters()) == sizes


def test_caching_saves_what_the_paper_says():
    mnist = multiply_adds(build("paper_cnn", like("mnist")), like("mnist"))
    depth10 = multiply_adds(build("depth10", like("cifar10")), like("cifar10"))
    assert cost_of_a_cycle(mnist, False) / cost_of_a_cycle(mnist, True) == pytest.approx(3.0, abs=0.05)
    assert cost_of_a_cycle(depth10, False) / cost_of_a_cycle(depth10, True) == pytest.approx(3.5, abs=0.05)
    assert cost_of_a_cycle(depth10, True) / cost_of_a_cycle(mnist, True) == pytest.approx(52 / 12, rel=0.03)


@pytest.mark.parametrize(("name", "convolutions"), [("depth3", 2), ("depth5", 4), ("depth10", 9)])
def test_depth_counts_the_layers(name, convolutions):
    model = build(name, like("cifar10"))
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == convolutions
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == 1
    assert all(module.bias is None for module in model.modules() if isinstance(module, nn.Conv2d))


def test_a_block_with_zero_weights_is_its_shortcut():
    block = Block(2, 3).eval()
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(4, 2, 5, 5)
    assert torch.equal(block(x), torch.cat([x, torch.zeros(4, 1, 5, 5)], dim=1))


def test_he_initialisation():
    model = nn.Sequential(nn.Conv2d(20, 60, 3, groups=2), nn.BatchNorm2d(60), nn.Flatten(), nn.Linear(500, 100))
    nn.init.uniform_(model[1].weight)
    nn.init.uniform_(model[1].bias)
    assert he_init_(model, seed=3) is model
    for weight, fan_in in ((model[0].weight, 10 * 9), (model[3].weight, 500)):
        error = (2 / fan_in) ** 0.5 / (2 * weight.numel()) ** 0.5
        assert weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, abs=4 * error)
        assert weight.mean().item() == pytest.approx(0, abs=4 * (2 / fan_in / weight.numel()) ** 0.5)
    assert torch.equal(model[1].weight, torch.ones(60))
    assert not any(parameter.any() for parameter in (model[0].bias, model[1].bias, model[3].bias))
    again = he_init_(nn.Conv2d(20, 60, 3, groups=2), seed=3)
    assert torch.equal(again.weight, model[0].weight)
    assert not torch.equal(he_init_(again, seed=4).weight, model[0].weight)


@pytest.mark.parametrize("name", rso.models.MODELS)
def test_seeds_are_the_networks_own(name):
    function = rso.models.MODELS[name]
    assert inspect.signature(function).parameters["seed"].default == 0
    state = torch.random.get_rng_state()
    models = [function(seed=seed).state_dict() for seed in (0, 0, 1)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    assert any(not torch.equal(models[0][key], models[2][key]) for key in models[0])


def test_unknown_names_and_shapes_are_refused():
    with pytest.raises(ValueError, match="'resnet' is not known: choose from paper_cnn"):
        build("resnet", like("digits"))
    flat = torch.zeros(4, 64)
    labels = torch.arange(4)
    with pytest.raises(ValueError, match=r"\(4, 64\)"):
        build("mlp", rso.Data.from_arrays(flat, labels, flat, labels))


def test_a_network_takes_the_dtype_of_the_data(digits64):
    assert {p.dtype for p in build("depth3", digits64).parameters()} == {torch.float64}
