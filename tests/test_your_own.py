"""What a researcher brings: tokens, targets that are no labels, networks of several outputs and of shared weights."""

import collections
import itertools
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rso_lab as rso

G = torch.Generator().manual_seed(0)
X = torch.randn(60, 8, generator=G, dtype=torch.float64)
LABELS = torch.arange(60) % 3
IDS = torch.randint(10, (60, 5), generator=G)
EVALUATORS = ["plain", "cached", "incremental"]


def data_of(x, y):
    return rso.Data.from_arrays(x[:40], y[:40], x[40:], y[40:])


class Own(nn.Module):
    """A network with a forward of its own: forward(self, x)."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.own_forward = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.own_forward(self, x)


def seeded(build):
    torch.manual_seed(1)
    return build().double()


def decisions(build, data, evaluator, method=None, count=200, **options):
    """Batch, change, choice and losses of each step, and the network behind the last of them."""
    model = seeded(build)
    method = method or rso.RSO(2, 20, batch_every="neuron")
    steps = rso.steps(model, data, method, seed=3, evaluator=evaluator, **options)
    taken = [(s.name, s.index, str(s.delta), s.choice, s.losses.keep) for s in itertools.islice(steps, count)]
    steps.close()
    return taken, model


def assert_alike(build, data, **options):
    """All evaluators decide alike, and their losses are the network's own."""
    found = [decisions(build, data, evaluator, **options) for evaluator in EVALUATORS]
    for taken, model in found[1:]:
        assert [step[:-1] for step in taken] == [step[:-1] for step in found[0][0]]
        assert [step[-1] for step in taken] == pytest.approx([step[-1] for step in found[0][0]], rel=1e-9)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), found[0][1].parameters(), strict=True))
    choices = {step[3] for step in found[0][0]}
    assert choices >= {"plus", "minus"}
    return found[0][0]


# Tokens


def text(**options):
    head = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    return Own(lambda self, x: self.head(self.words(x).mean(1)), words=nn.Embedding(10, 4, **options), head=head)


def recurrent():
    def forward(self, x):
        out, _ = self.rnn(self.words(x))
        return self.head(out[:, -1])

    return Own(forward, words=nn.Embedding(10, 4), rnn=nn.LSTM(4, 3, batch_first=True), head=nn.Linear(3, 3))


READERS = {
    "embedding": text,
    "bag": lambda: nn.Sequential(nn.EmbeddingBag(10, 4), nn.Linear(4, 3)),
    "recurrent": recurrent,
    "one-hot": lambda: Own(lambda self, x: self.head(F.one_hot(x, 10).double().flatten(1)), head=nn.Linear(50, 3)),
    "columns": lambda: Own(
        lambda self, x: self.head(torch.cat([self.a(x[:, 0]), self.b(x[:, 1])], 1)),
        a=nn.Embedding(10, 2),
        b=nn.Embedding(10, 3),
        head=nn.Linear(5, 3),
    ),
}


@pytest.mark.parametrize("build", READERS.values(), ids=READERS)
def test_tokens_are_looked_up_and_every_evaluator_decides_alike(build):
    assert_alike(build, data_of(IDS, LABELS))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_whole_numbers_of_any_kind_train_an_embedding(dtype):
    """On what the first word says: the embedding itself has to learn."""
    data = data_of(IDS.to(dtype), IDS[:, 0] % 3)
    assert data.x_train.dtype == torch.int64
    model = seeded(lambda: nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(20, 3)))
    before = model[0].weight.detach().clone()
    history = rso.fit(model, data, rso.RSO(4, 40), seed=0)
    assert history.cycles[-1].train_accuracy > 0.9
    assert not torch.equal(before, model[0].weight)


def test_whole_numbers_that_would_be_multiplied_are_to_be_normalised():
    for first in (nn.Linear(5, 3), nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 3, 5), nn.Flatten())):
        with pytest.raises(ValueError, match=r"fails in '0.*' on images of shape .*normalise the images first"):
            rso.fit(nn.Sequential(first), data_of(IDS, LABELS), rso.RSO(1, 10), seed=0)
    images = data_of((255 * torch.rand(60, 1, 8, 8)).to(torch.uint8), LABELS)
    with pytest.raises(ValueError, match=r"holds torch\.int64 values: normalise the images first"):
        rso.models.build("one_conv", images)
    with pytest.raises(ValueError, match=r"x_test holds torch.float32 values|x_train holds torch.int64 values: norm"):
        rso.Data.from_arrays(IDS[:40], LABELS[:40], IDS[40:].float(), LABELS[40:])


@pytest.mark.parametrize("build", [text, READERS["columns"]])
@pytest.mark.parametrize("wrong", [10, -1])
def test_an_id_without_a_row_is_named_before_the_run(build, wrong):
    ids = IDS.clone()
    ids[50, :2] = wrong
    model = seeded(build)
    with pytest.raises(ValueError, match=rf"x_test holds whole numbers from {min(wrong, 0)} to {max(wrong, 9)}, which"):
        rso.fit(model, data_of(ids, LABELS), rso.RSO(1, 10), seed=0)


def test_a_network_that_changes_its_own_weights_is_refused():
    with pytest.raises(ValueError, match="changes its own parameters when it is called"):
        rso.fit(seeded(lambda: text(max_norm=0.1)), data_of(IDS, LABELS), rso.RSO(1, 10), seed=0)


# Targets that are no labels

NUMBERS = X @ torch.randn(8, 2, generator=G, dtype=torch.float64)


def regressor(outputs=2):
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, outputs))


def tagger():
    return Own(
        lambda self, x: self.head(self.words(x)).transpose(1, 2), words=nn.Embedding(10, 4), head=nn.Linear(4, 3)
    )


TARGETS = {
    "numbers": (regressor, X, NUMBERS, F.mse_loss),
    "one number": (lambda: nn.Sequential(regressor(1), nn.Flatten(0)), X, NUMBERS[:, 0], F.l1_loss),
    "shares": (lambda: regressor(3), X, NUMBERS.softmax(1).repeat(1, 2)[:, :3], nn.CrossEntropyLoss()),
    "several labels": (regressor, X, (NUMBERS > 0).double(), nn.BCEWithLogitsLoss()),
    "a label for each word": (tagger, IDS, IDS % 3, nn.CrossEntropyLoss()),
    "images": (
        lambda: nn.Sequential(regressor(16), nn.Unflatten(1, (1, 4, 4))),
        X,
        X[:, :, None, None].repeat(1, 2, 1, 1).view(60, 1, 4, 4),
        F.mse_loss,
    ),
    "whole numbers as targets": (lambda: regressor(1), X, NUMBERS[:, :1].round(), F.huber_loss),
}


@pytest.mark.parametrize(("build", "x", "y", "loss"), TARGETS.values(), ids=TARGETS)
def test_any_targets_go_with_a_loss_of_ones_own(build, x, y, loss, tmp_path):
    data = data_of(x, y)
    assert data.classes is None
    assert_alike(build, data, loss=loss)
    model = seeded(build)
    with torch.no_grad():
        before = float(loss(model(data.x_train), data.y_train))

    def worst(outputs, targets):
        return loss(outputs[:3], targets[:3])

    history = rso.fit(model, data, rso.RSO(2, 40), seed=0, loss=loss, metric=worst)
    last = history.cycles[-1]
    with torch.no_grad():
        assert last.loss == pytest.approx(float(loss(model(data.x_train), data.y_train)))
        assert last.test_metric == pytest.approx(float(worst(model(data.x_test), data.y_test)))
        assert last.train_metric == pytest.approx(float(worst(model(data.x_train), data.y_train)))
    assert last.loss < before
    assert last.test_accuracy is None
    assert last.train_accuracy is None
    history.save(tmp_path / "run.json")
    loaded = rso.History.load(tmp_path / "run.json")
    assert loaded.cycles == history.cycles
    axes = rso.plots.accuracy(loaded)
    assert axes.lines[0].get_ydata().tolist() == [record.test_metric for record in history.cycles]
    assert axes.get_ylabel() == "worst, test set"


def test_without_a_metric_the_loss_is_drawn():
    history = rso.fit(seeded(regressor), data_of(X, NUMBERS), rso.RSO(2, 20), seed=0, loss=F.mse_loss)
    assert rso.plots.accuracy(history).lines[0].get_ydata().tolist() == [record.loss for record in history.cycles]


@pytest.mark.parametrize("method", [rso.SGD(2, 10, 0.1), rso.ES(2, 10, 0.01), rso.GA(2, 10), rso.Masks(2, 10, 0.1)])
def test_the_relatives_take_them_too(method):
    history = rso.fit(seeded(regressor), data_of(X, NUMBERS), method, seed=0, loss=F.mse_loss, metric=F.l1_loss)
    assert history.cycles[-1].test_metric > 0
    assert history.settings["metric"] == "l1_loss"


def test_a_metric_goes_beside_accuracy():
    history = rso.fit(seeded(lambda: regressor(3)), data_of(X, LABELS), rso.RSO(1, 20), seed=0, metric=F.nll_loss)
    assert history.cycles[-1].test_accuracy is not None
    assert history.cycles[-1].test_metric is not None


def test_a_metric_makes_up_for_outputs_that_tell_no_class():
    """Points on a line, where images of one class are to lie together."""

    def spread(outputs, labels):
        return torch.stack([outputs[labels == label].var(correction=0) for label in labels.unique()]).mean()

    data = data_of(X, LABELS)
    with pytest.raises(ValueError, match=r"expected \(B, 3\); pass .* for other outputs a metric beside the loss"):
        rso.fit(seeded(lambda: regressor(1)), data, rso.RSO(1, 20), seed=0, loss=spread)
    history = rso.fit(seeded(lambda: regressor(1)), data, rso.RSO(1, 20), seed=0, loss=spread, metric=spread)
    assert history.cycles[-1].test_accuracy is None


SHOWN = {  # labels as others have them: what is said of them, and what to do
    "a column": (LABELS[:, None], r"y_train has shape \(40, 1\): expected \(40,\), one label .*y\[:, 0\]"),
    "one-hot": (F.one_hot(LABELS), r"y_train has shape \(40, 3\): expected \(40,\), one label .*y\.argmax\(1\)"),
    "one-hot floats": (F.one_hot(LABELS).float(), r"torch\.float32 values of shape \(40, 3\).*y\.argmax\(1\)"),
    "a column of floats": (LABELS[:, None].float(), r"torch\.float32 values of shape \(40, 1\).*labels, integers"),
    "floats": (LABELS.float(), r"the targets hold torch\.float32 values .*labels, integers \(N,\) from 0"),
    "strings": (list(map(str, LABELS)), "y_train is no array of numbers"),
    "booleans": (LABELS > 0, "y_train holds torch.bool values"),
    "from 1": (LABELS + 1, r"have shape \(2, 3\): expected \(B, 4\); labels begin at 0, and these at 1: subtract it"),
    "from 5": (LABELS + 5, r"expected \(B, 8\); labels begin at 0, and these at 5"),
    "from -1": (LABELS - 1, r"y_train holds the label -1: labels are integers from 0"),
    "a missing one": (torch.where(LABELS == 1, torch.nan, LABELS.double()), "y_train holds NaN or infinite values"),
}


@pytest.mark.parametrize(("labels", "said"), SHOWN.values(), ids=SHOWN)
def test_labels_in_another_form_are_explained(labels, said):
    with pytest.raises(ValueError, match=said):
        rso.fit(seeded(lambda: regressor(3)), data_of(X, labels), rso.RSO(1, 20), seed=0)


LOSSES = {
    "of each image": (nn.CrossEntropyLoss(reduction="none"), 'it gives 2 numbers: take their mean, reduction="mean"'),
    "a list": (lambda outputs, targets: [1.0, 2.0, 3.0], "it gives 3 numbers: take their mean"),
    "with something else": (lambda outputs, targets: (outputs.sum(), outputs), "only one element"),
    "nothing": (lambda outputs, targets: None, "NoneType"),
}


@pytest.mark.parametrize("what", ["loss", "metric"])
@pytest.mark.parametrize(("function", "said"), LOSSES.values(), ids=LOSSES)
def test_a_loss_or_metric_that_is_not_one_number_is_explained(function, said, what):
    with pytest.raises(ValueError, match=rf"^{what}\(outputs, targets\) must give one number.*{said}"):
        rso.fit(seeded(lambda: regressor(3)), data_of(X, LABELS), rso.RSO(1, 20), seed=0, **{what: function})
    model = seeded(lambda: regressor(3))
    with pytest.raises(TypeError, match=r"the closure returns .*: expected the loss, one number"):
        rso.RSOptimizer(model.named_parameters(), seed=0).step(lambda: function(model(X), LABELS))


def test_a_loss_that_would_compare_all_with_all_is_refused():
    """Outputs (B, 1) minus targets (B,) are (B, B): torch only warns."""
    with pytest.raises(ValueError, match=r"outputs of shape \(2, 1\) and torch.float64 of shape \(2,\) as targets"):
        rso.fit(seeded(lambda: regressor(1)), data_of(X, NUMBERS[:, 0]), rso.RSO(1, 20), seed=0, loss=F.mse_loss)


# Several outputs


def both(outputs, targets):
    a, b = outputs.values() if isinstance(outputs, dict) else outputs
    return F.cross_entropy(a, targets) + 0.3 * F.cross_entropy(b, targets)


def two_heads(join):
    return lambda: Own(
        lambda self, x: join(self.a(h := self.body(x)), self.b(h)),
        body=nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU()),
        a=nn.Linear(6, 3),
        b=nn.Linear(6, 3),
    )


Heads = collections.namedtuple("Heads", ["a", "b"])
JOINS = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "dictionary": lambda a, b: {"out": a, "auxiliary": b},
    "named tuple": Heads,
}


@pytest.mark.parametrize("join", JOINS.values(), ids=JOINS)
def test_the_loss_gets_what_the_network_puts_out(join):
    data = data_of(X, LABELS)
    assert_alike(two_heads(join), data, loss=both)
    model = seeded(two_heads(join))
    history = rso.fit(model, data, rso.RSO(2, 40), seed=0, loss=both, metric=both)
    with torch.no_grad():
        outputs = model(data.x_test)
        assert history.cycles[-1].test_metric == pytest.approx(float(both(outputs, data.y_test)))
    first = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs[0]
    assert history.cycles[-1].test_accuracy == float((first.argmax(1) == data.y_test).double().mean())


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_a_number_for_all_images_may_stand_beside_the_outputs(evaluator):
    """A penalty that the network puts out by itself: such a network sees all rows at once."""
    model = seeded(lambda: Own(lambda self, x: (h := self.fc(x), h.square().mean()), fc=nn.Linear(8, 3)))

    def loss(outputs, targets):
        return F.cross_entropy(outputs[0], targets) + 0.1 * outputs[1]

    history = rso.fit(model, data_of(X, LABELS), rso.RSO(1, 20), seed=0, loss=loss, evaluator=evaluator)
    assert history.cycles[-1].test_accuracy is not None


def test_several_outputs_want_a_loss_that_knows_them():
    with pytest.raises(TypeError, match="Own puts out a tuple: give a loss of your own"):
        rso.fit(seeded(two_heads(JOINS["tuple"])), data_of(X, LABELS), rso.RSO(1, 20), seed=0)
    with pytest.raises(ValueError, match=r"of outputs of tuple of shapes \(2, 3\), \(2, 3\) and whole numbers"):
        rso.fit(seeded(two_heads(JOINS["tuple"])), data_of(X, LABELS), rso.RSO(1, 20), seed=0, loss=F.nll_loss)


# One tensor in several places


def called_twice():
    return Own(
        lambda self, x: self.head(self.fc(F.relu(self.fc(self.first(x))))),
        first=nn.Linear(8, 8),
        fc=nn.Linear(8, 8),
        head=nn.Linear(8, 3),
    )


def tied(parameter="weight"):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    setattr(model[2], parameter, getattr(model[0], parameter))
    return model


def tied_norms():
    """Two batch norms with one beta, behind layers whose biases they take back."""
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    model[4].bias = model[1].bias
    return model.append(nn.Linear(8, 3))


def tied_backwards():
    """The layer that is registered first runs last."""
    model = Own(
        lambda self, x: self.head(self.late(F.relu(self.early(x)))),
        late=nn.Linear(8, 8),
        early=nn.Linear(8, 8),
        head=nn.Linear(8, 3),
    )
    model.early.weight = model.late.weight
    return model


def autoencoder():
    """The decoder reads the encoder's weight, transposed."""
    return Own(lambda self, x: F.linear(torch.tanh(self.code(x)), self.code.weight.t()), code=nn.Linear(8, 3))


def read_before_the_call():
    return Own(
        lambda self, x: self.head(self.fc(F.linear(x, self.fc.weight))), fc=nn.Linear(8, 8), head=nn.Linear(8, 3)
    )


def language_model():
    """The output layer has the embedding's weight."""
    model = Own(
        lambda self, x: self.out(torch.tanh(self.mix(self.words(x)))).transpose(1, 2),
        words=nn.Embedding(10, 4),
        mix=nn.Linear(4, 4),
        out=nn.Linear(4, 10),
    )
    model.out.weight = model.words.weight
    return model


def convolutions():
    """A convolution that is called twice, once before a batch norm, which takes its bias back."""
    return Own(
        lambda self, x: self.head(
            F.relu(self.conv(F.relu(self.norm(self.conv(x.unflatten(1, (2, 2, 2))))))).flatten(1)
        ),
        conv=nn.Conv2d(2, 2, 3, padding=1),
        norm=nn.BatchNorm2d(2),
        head=nn.Linear(8, 3),
    )


def two_names():
    model = Own(lambda self, x: self.head(self.b(F.relu(self.a(x)))), a=nn.Linear(8, 8), head=nn.Linear(8, 3))
    model.b = model.a
    return model


SHARED = {  # and how many weights there are to search
    "a module called twice": (called_twice, 72 + 72 + 27),
    "a module with two names": (two_names, 72 + 27),
    "tied weights": (tied, 64 + 8 + 8 + 27),
    "tied biases": (lambda: tied(parameter="bias"), 64 + 64 + 8 + 27),
    "tied, the later one first": (tied_backwards, 64 + 8 + 8 + 27),
    "tied batch norms": (tied_norms, 64 + 64 + 8 + 16 + 27),
    "a convolution": (convolutions, 36 + 2 + 4 + 27),
    "read before the call": (read_before_the_call, 72 + 27),
}


@pytest.mark.parametrize(("build", "count"), SHARED.values(), ids=SHARED)
@pytest.mark.parametrize("layer_order", ["output_first", "input_first"])
def test_what_is_shared_is_searched_once_and_all_evaluators_decide_alike(build, count, layer_order):
    method = rso.RSO(2, 20, batch_every="neuron", weight_decay=0.1, layer_order=layer_order)
    data = data_of(X, LABELS)
    taken = assert_alike(build, data, method=method, count=2 * count + 1)
    assert len(taken) == 2 * count
    assert len({step[:2] for step in taken}) == count


def test_shared_weights_in_other_places():
    images = {"loss": F.mse_loss}
    assert_alike(autoencoder, data_of(X, X), **images)
    following = torch.roll(IDS, -1, 1)
    taken = assert_alike(language_model, data_of(IDS, following), loss=nn.CrossEntropyLoss(), count=10**6)
    assert len(taken) == 2 * (40 + 20 + 10)


@pytest.mark.parametrize(("build", "count"), SHARED.values(), ids=SHARED)
def test_losses_are_the_networks_own(build, count):
    """With every place of a weight changed: two networks in torch's own hands, batch norms on the mini-batch."""
    data, model = data_of(X, LABELS), seeded(build)
    settings = rso.RSO(1, 20, weight_decay=0.1, layer_order="input_first", level="network")
    for step in itertools.islice(rso.steps(model, data, settings, seed=0), 3):
        other = seeded(build)
        if step.choice != "keep":
            break
    with torch.no_grad():
        for name, delta in step.delta.items():
            other.get_parameter(name).add_(delta * {"plus": 1, "minus": -1, "keep": 0}[step.choice])
        tensors = {p for m in other.modules() if isinstance(m, nn.Linear | nn.Conv2d) for p in [m.weight]}
        decay = 0.05 * sum(float(p.square().sum()) for p in tensors)
        loss = F.cross_entropy(other.train()(data.x_train[step.batch]), data.y_train[step.batch])
    assert getattr(step.losses, step.choice) == pytest.approx(float(loss) + decay, rel=1e-12)


@pytest.mark.parametrize("parallel", ["neuron", "layer"])
def test_a_shared_convolution_is_searched_in_parallel(parallel):
    assert_alike(convolutions, data_of(X, LABELS), method=rso.RSO(2, 20, parallel=parallel))


@pytest.mark.parametrize("level", ["layer", "network"])
def test_a_shared_weight_moves_once_at_other_levels(level):
    assert_alike(tied_backwards, data_of(X, LABELS), method=rso.RSO(2, 20, level=level))


METHODS = [rso.SGD(2, 10, 0.1), rso.Subspace(2, 10, 0.1), rso.ES(2, 10, 0.1), rso.GA(2, 10), rso.Masks(2, 10, 0.1)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_other_methods_train_shared_weights(method):
    model = seeded(tied)
    history = rso.fit(model, data_of(X, LABELS), method, seed=0)
    assert model[0].weight is model[2].weight
    assert history.settings["parameters"] == 64 + 8 + 8 + 27


def test_a_run_of_a_network_with_shared_weights_is_resumed(tmp_path):
    data, method = data_of(X, LABELS), rso.RSO(2, 20)
    whole = seeded(tied)
    rso.fit(whole, data, method, seed=0)
    begun = rso.run(seeded(tied), data, method, seed=0, checkpoint=tmp_path)
    for _ in range(2):
        next(begun)
    begun.close()
    model = seeded(tied)
    rso.fit(model, data, method, seed=0, checkpoint=tmp_path, resume=True)
    assert all(map(torch.equal, model.parameters(), whole.parameters()))
    assert model[0].weight is model[2].weight


def one_memory(model):
    model[2].weight = nn.Parameter(model[0].weight.detach().t())
    return model


WRONG = {
    "a batch norm called twice": (
        lambda: Own(
            lambda self, x: self.head(self.norm(self.fc(self.norm(x)))),
            norm=nn.BatchNorm1d(8),
            fc=nn.Linear(8, 8),
            head=nn.Linear(8, 3),
        ),
        "batch norm 'norm' is called twice: its statistics cannot be those of both places",
    ),
    "two parameters in one memory": (
        lambda: one_memory(tied()),
        r"'2\.weight' and '0\.weight' are two parameters in one memory: .*make them one",
    ),
}


@pytest.mark.parametrize(("build", "said"), WRONG.values(), ids=WRONG)
def test_what_would_be_wrong_is_refused_with_the_reason(build, said):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=said):
        rso.fit(build(), data_of(X.float(), LABELS), rso.RSO(1, 20), seed=0)


def test_what_the_page_shows_runs():
    """docs/your_own.md, one block after the other."""
    page = Path(__file__).parent.parent / "docs" / "your_own.md"
    names: dict = {}
    torch.manual_seed(0)
    exec("\n".join(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)), names)
    assert names["history"].cycles[-1].test_accuracy is None
    assert names["scheduler"].get_last_lr() == pytest.approx([0.9**3])
