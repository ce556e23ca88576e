"""What is told from the graph: which parameters are searched, in which order, and what each batch norm holds."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import rso_lab as rso
from rso_lab import graph
from rso_lab.graph import Network
from rso_lab.visits import layer_sequence, weight_visits

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Custom(nn.Module):
    """A module whose forward is given."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.own_forward = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.own_forward(self, x)


def searched(model):
    return {name for layer in Network(model, X[:2]).layers for name in layer.parameters}


def sequence(model, layer_order):
    return [layer.name for layer in layer_sequence(Network(model, X[:2]).layers, layer_order)]


def head(self, x):
    return self.fc(x.mean(dim=(2, 3)))


def parts():
    return {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "fc": nn.Linear(4, 10)}


def test_a_bias_is_left_out_only_where_nothing_but_batch_norms_takes_it():
    behind = Custom(lambda self, x: head(self, self.bn(self.conv(x))), **parts())
    assert searched(behind) == {"conv.weight", "bn.weight", "bn.bias", "fc.weight", "fc.bias"}

    def beside(self, x):
        x = self.conv(x)
        return head(self, self.bn(x) + x)

    assert "conv.bias" in searched(Custom(beside, **parts()))
    relu_between = Custom(lambda self, x: head(self, self.bn(F.relu(self.conv(x)))), **parts())
    assert "conv.bias" in searched(relu_between)


def test_a_batch_norm_may_have_any_name():
    """fx calls the end of every network "output"."""
    named = nn.Sequential()
    for name, module in (("output", nn.BatchNorm2d(3)), ("flatten", nn.Flatten()), ("fc", nn.Linear(192, 10))):
        named.add_module(name, module)
    assert searched(named) == {"output.weight", "output.bias", "fc.weight", "fc.bias"}


def test_a_bias_of_each_feature_is_searched_where_the_batch_norm_has_other_channels():
    model = nn.Sequential(nn.Flatten(2), nn.Linear(64, 5), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(15, 10))
    assert "1.bias" in searched(model)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5), nn.Linear(5, 10))
    assert "1.bias" not in searched(flat)


def test_a_batch_norm_comes_right_after_its_layer_in_both_orders():
    model = rso.models.depth5()
    forward = [layer.name for layer in Network(model, torch.randn(2, 3, 32, 32)).layers]
    assert forward[:4] == ["conv1.conv", "conv1.bn", "conv2.conv", "conv2.bn"]
    expected = []
    for conv, bn in zip(forward[:-1:2], forward[1:-1:2], strict=True):
        expected = [conv, bn, *expected]
    network = Network(model, torch.randn(2, 3, 32, 32))
    assert [layer.name for layer in layer_sequence(network.layers, "output_first")] == ["fc", *expected]
    assert [layer.name for layer in layer_sequence(network.layers, "input_first")] == forward


def test_a_batch_norm_that_follows_no_layer_directly_has_a_place_of_its_own():
    model = Custom(lambda self, x: head(self, self.bn(F.relu(self.conv(x)))), **parts())
    assert sequence(model, "output_first") == ["fc", "bn", "conv"]
    first = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 10))
    assert sequence(first, "output_first") == ["2", "0"]


def test_layers_are_in_the_order_of_execution_not_of_definition():
    def forward(self, x):
        return self.first(F.relu(self.second(x.flatten(1))))

    model = Custom(forward, first=nn.Linear(7, 10), second=nn.Linear(192, 7))
    assert sequence(model, "input_first") == ["second", "first"]


def in_place(write):
    def forward(self, x):
        x = F.leaky_relu(self.conv(x))
        y = self.conv2(x)
        return head(self, write(x, y))

    return lambda: Custom(forward, conv2=nn.Conv2d(4, 4, 3, padding=1), **parts())


def early_parameter(self, x):
    scale = self.scale
    return head(self, self.conv(x) * scale.view(1, 4, 1, 1))


@pytest.mark.parametrize(
    "model",
    [
        in_place(lambda x, y: x.add_(y)),
        in_place(lambda x, y: F.relu(x, inplace=True) + y),
        in_place(lambda x, y: F.relu(x, True) + y),
        in_place(lambda x, y: torch.relu_(x) + y),
        lambda: Custom(early_parameter, scale=nn.Parameter(torch.linspace(1, 2, 4)), **parts()),
    ],
    ids=["add_", "inplace=True", "inplace by position", "relu_", "a parameter read before it is used"],
)
@pytest.mark.parametrize("evaluator", ["cached", "incremental"])
def test_evaluators_agree_on_odd_code(model, evaluator):
    labels = torch.arange(6) % 10
    data = rso.Data.from_arrays(X.double(), labels, X.double(), labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = model().double()
    other = Custom(plain.own_forward, **dict(model().double().named_children()))
    if hasattr(plain, "scale"):
        other.scale = nn.Parameter(plain.scale.detach().clone())
    other.load_state_dict(plain.state_dict())
    steps = [
        rso.steps(net, data, rso.RSO(1, 5), seed=0, evaluator=name)
        for net, name in ((plain, "plain"), (other, evaluator))
    ]
    for a, b in zip(*steps, strict=True):
        assert b.losses == pytest.approx(a.losses, rel=1e-11)
        assert a.choice == b.choice
        with torch.no_grad():
            now = F.cross_entropy(plain(data.x_train[a.batch]), labels[a.batch]).item()
        assert getattr(a.losses, a.choice) == pytest.approx(now, rel=1e-11)


def test_statistics_are_those_of_all_images_of_the_network_in_force():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3), nn.BatchNorm1d(3)
    )
    x = 1000 + torch.randn(130, 3, 8, 8, generator=torch.Generator().manual_seed(1))  # large mean: cancellation shows
    network = Network(model, x[:2])
    network.refresh_statistics(x)
    with torch.no_grad():
        inside = model[0].double()(x.double())
        assert torch.allclose(model[1].running_mean.double(), inside.mean((0, 2, 3)), rtol=1e-5)
        assert torch.allclose(model[1].running_var.double(), inside.var((0, 2, 3), correction=0), rtol=1e-3)
    assert not network.stale


def test_the_users_images_are_left_alone(digits):
    images = digits.x_train.clone()
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 10))
    for evaluator in ("plain", "cached", "incremental"):
        next(rso.steps(model, digits, rso.RSO(1, 20), seed=0, evaluator=evaluator))
    assert torch.equal(images, digits.x_train)


def test_other_layers_hold_a_mini_batch_for_each_row_of_each_tensor():
    parameters = {"a.first": torch.zeros(2, 3), "a.second": torch.zeros(2)}
    visits = list(weight_visits("a", parameters, "input"))
    assert [(visit.names[0], visit.index) for visit in visits] == [
        *(("a.first", (i, j)) for i in range(2) for j in range(3)),
        ("a.second", (0,)),
        ("a.second", (1,)),
    ]
    assert len({visit.group for visit in visits}) == 4


def test_batch_norms_in_a_row_are_all_searched():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.Linear(4, 10))
    assert sorted(sequence(model, "output_first")) == sorted(sequence(model, "input_first")) == ["1", "2", "3", "4"]


def test_a_scalar_parameter_is_a_weight_like_others(digits64):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            return x * self.weight

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Scale()).double()
    steps = list(rso.steps(model, digits64, rso.RSO(1, 20), seed=0))
    scalar = [step for step in steps if step.name == "2.weight"]
    assert [step.index for step in scalar] == [()]
    assert isinstance(scalar[0].delta, float)


def test_batch_norms_with_a_forward_of_their_own_are_refused():
    class Activated(nn.BatchNorm2d):
        def forward(self, x):
            return F.relu(super().forward(x))

    with pytest.raises(TypeError, match="'bn' has a forward of its own"):
        searched(Custom(lambda self, x: head(self, self.bn(self.conv(x))), **(parts() | {"bn": Activated(4)})))


def early_size(self, x):
    rows = x.size(0)
    x = F.relu(self.conv(x), inplace=True)
    return self.fc(x.view(rows, 4, -1).mean(2))


def view_written(self, x):
    x = self.conv(x)
    part = x[:, :2]
    part.add_(self.conv2(x)[:, :2])
    return head(self, x)


def written_out(self, x):
    x = self.conv(x)
    torch.add(x, self.conv2(x), out=x)
    return head(self, x)


def largest_of_the_batch(self, x):
    x = self.conv(x)
    return head(self, x / x.abs().max())


@pytest.mark.parametrize("forward", [early_size, view_written, written_out, largest_of_the_batch])
@pytest.mark.parametrize("evaluator", ["cached", "incremental"])
def test_evaluators_agree_on_odder_code(forward, evaluator):
    labels = torch.arange(6)
    data = rso.Data.from_arrays(X.double(), labels, X.double(), labels)
    modules = {"conv2": nn.Conv2d(4, 4, 3, padding=1), **parts()}
    models = [rso.models.he_init_(Custom(forward, **modules).double(), seed=1) for _ in range(2)]
    models[1] = copy.deepcopy(models[0])
    steps = [
        list(rso.steps(model, data, rso.RSO(1, 4), seed=0, evaluator=name))
        for model, name in zip(models, ("plain", evaluator), strict=True)
    ]
    for a, b in zip(*steps, strict=True):
        assert b.losses._asdict() == pytest.approx(a.losses._asdict(), rel=1e-10)
        assert a.choice == b.choice


def test_the_variance_survives_a_huge_mean():
    x = 1e7 + torch.randn(130, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    network = Network(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 10)).double(), x[:2])
    network.refresh_statistics(x)
    assert torch.allclose(network.module[0].running_var, x.var((0, 2, 3), correction=0), rtol=1e-6)


@pytest.mark.parametrize("name", ["paper_cnn", "depth10"])
def test_what_is_stored_on_the_way_changes_no_statistics(name, digits64, monkeypatch):
    """Batch norm after batch norm from the images on, from anywhere in between, and some of them only."""
    found = []
    for room in (0, 10**6, 2**30):  # bytes: no place fits, the later ones, all
        monkeypatch.setattr(graph, "CHECKPOINT", room)
        network = Network(rso.models.build(name, digits64), digits64.x_train[:2])
        network.refresh_statistics(digits64.x_train)
        network.stale = set(list(network.batch_norms)[2::3])
        network.refresh_statistics(digits64.x_train)
        found.append([buffer.clone() for buffer in network.module.buffers()])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def dense_block(self, x):
    """Features side by side; a ReLU that writes into the joined ones, and one that writes into what it will join."""
    features = [self.conv(x)]
    for layer in self.layers:
        features.append(F.relu_(layer(F.relu_(torch.cat(features, 1)))))
    parts = torch.cat(features, 1).chunk(2, 1)
    return head(self, self.bn(parts[0] + F.relu(parts[1][:, :4])[:, :4]))


def dense():
    layers = [nn.Sequential(nn.BatchNorm2d(4 + 2 * i), nn.Conv2d(4 + 2 * i, 2, 3, padding=1)) for i in range(2)]
    return Custom(dense_block, layers=nn.ModuleList(layers), **parts())


def residual(depth):
    """So many convolutions behind the first, each added to what enters it; every second ReLU writes in place."""
    layers = [[nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(i % 2 == 0)] for i in range(depth)]

    def forward(self, x):
        x = self.bn(self.conv(x))
        for layer in self.layers:
            x = x + layer(x)
        return head(self, x)

    return Custom(forward, layers=nn.ModuleList(nn.Sequential(*layer) for layer in layers), **parts())


def written_beside_the_wide(self, x):
    """With room for x and not for the wide one, what is run again writes into a view of what it starts from."""
    x = self.conv(x)
    part = x[:, :2]
    wide = self.widen(x)
    F.leaky_relu_(part, 0.5)
    return head(self, self.second(self.bn(wide) + x[:, :1, 1:-1, 1:-1])[:, :4])


def wide():
    return parts() | {"widen": nn.Conv2d(4, 64, 3), "bn": nn.BatchNorm2d(64), "second": nn.BatchNorm2d(64)}


BATCH_NORM_NETWORKS = {
    "wide": lambda: Custom(written_beside_the_wide, **wide()),
    "dense": dense,
    "residual": lambda: residual(3),
    "densenet121": lambda: torchvision.models.densenet121(num_classes=10),
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "on the images": lambda: nn.Sequential(
        nn.LeakyReLU(0.1, True), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3072, 10)
    ),
}


def of_all_images(model, x):
    """By batch norm: mean and population variance of what enters it while a copy of the model is in training mode."""
    found = {}

    def see(name):
        def hook(module, entering):
            dims = [d for d in range(entering[0].dim()) if d != 1]
            found[name] = (entering[0].mean(dims), entering[0].var(dims, correction=0))

        return hook

    model = copy.deepcopy(model).train()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(see(name))
    model(x.clone())
    return found


@pytest.fixture
def images():
    return torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "room"),  # in bytes: nothing waits, where it is narrow, everywhere
    [*itertools.product(("dense", "residual"), [1]), *itertools.product(BATCH_NORM_NETWORKS, [10**6, 2**30])],
)
@torch.no_grad()
def test_statistics_are_those_of_a_pass_in_training_mode(name, room, images, monkeypatch):
    monkeypatch.setattr(graph, "CHECKPOINT", room)
    monkeypatch.setattr(graph, "PIECE", 7)
    model = rso.models.he_init_(BATCH_NORM_NETWORKS[name]().double(), seed=1)
    expected, given = of_all_images(model, images), images.clone()
    network = Network(model, images[:2])
    network.refresh_statistics(images)
    assert list(expected) == list(network.batch_norms)
    for key, (mean, variance) in expected.items():
        module = model.get_submodule(key)
        assert torch.allclose(module.running_mean, mean, rtol=1e-9, atol=1e-11 * variance.max().sqrt())
        assert torch.allclose(module.running_var, variance, rtol=1e-9)
    assert torch.equal(images, given)


def nodes_run(model, x, monkeypatch):
    network, run = Network(model, x[:2]), []
    fetch = Network.fetch_args_kwargs_from_env
    monkeypatch.setattr(Network, fetch.__name__, lambda self, node: run.append(node) or fetch(self, node))
    network.refresh_statistics(x)
    monkeypatch.undo()
    return len(run)


def test_statistics_take_time_in_proportion_to_the_depth(monkeypatch):
    few, many = (nodes_run(residual(depth), X, monkeypatch) for depth in (8, 64))
    assert few < 5 * 8
    assert many < 9 * few


@pytest.mark.parametrize("room", [2 * 10**5, 10**6])
def test_what_waits_keeps_to_its_room(room, images, monkeypatch):
    monkeypatch.setattr(graph, "CHECKPOINT", room)
    monkeypatch.setattr(graph, "PIECE", 7)
    walkers, held = {}, []

    def walk(self, *places):
        walkers[id(self)] = self
        return walked(self, *places)

    def merge(moments):
        storages = [
            value.untyped_storage()
            for walker in walkers.values()
            for node, value in walker.env.items()
            if node is not walker.input and isinstance(value, torch.Tensor)
        ]
        held.append(sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()))
        return merged(moments)

    walked, merged = Network._walk, graph.merge
    monkeypatch.setattr(Network, "_walk", walk)
    monkeypatch.setattr(graph, "merge", merge)
    network = Network(BATCH_NORM_NETWORKS["resnet18"]().double(), images[:2])
    network.refresh_statistics(images)
    assert len(walkers) == 3
    assert room / 4 < max(held) <= room


def test_rows_that_are_written_into_are_copied_alone(images):
    network = Network(BATCH_NORM_NETWORKS["on the images"]().double(), images[:2])
    copied = network.propagate({network.input: images[:2]}, stop=2, keep=[network.input])[network.input]
    assert copied.untyped_storage().nbytes() == images[:2].nbytes


def test_arguments_beside_the_images_have_their_defaults():
    class Optional(nn.Linear):
        def forward(self, x, mask=None, *more, features=False, **options):
            x = x.flatten(1)
            x = x if mask is None else x * mask
            return x if features or more or options else super().forward(x)

    model, x = Optional(64, 4), torch.randn(5, 1, 8, 8)
    assert torch.equal(Network(model, x).outputs(x), model(x))
