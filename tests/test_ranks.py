"""Several processes that share a search: the same weights as one, and a clear end when one of them dies."""

import os
import signal
import statistics
import subprocess
import sys
import time

import psutil
import pytest
import reference
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import rso_lab as rso
from rso_lab.ranks import ALONE, Ranks, RanksError, joined

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


@pytest.fixture(autouse=True)
def _several_pieces():
    """The other processes have whole ones."""


class Branching(nn.Module):
    """A convolution, a batch norm and a residual one, for 8x8 images of one channel."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.fc = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Linear(4, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.fc((x + torch.relu(self.second(x))).mean((2, 3)))


def model_of(kind, dtype):
    if kind == "sequential":
        return reference.small_network(dtype)
    if kind == "compiled":  # 16 channels: the kernels take them
        torch.manual_seed(4)
        parts = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2)]
        parts += [nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
        return nn.Sequential(*parts).to(dtype)
    torch.manual_seed(3)
    return Branching().to(dtype)


APART = [
    ("sequential", torch.float32, rso.RSO(1, 31, parallel=parallel, batch_every=batch_every), "auto")
    for parallel in ("neuron", "layer")
    for batch_every in ("weight", "layer")
]
SHARED = [
    (kind, torch.float64, rso.RSO(1, 31, batch_every="neuron"), evaluator)
    for kind, evaluator in (
        ("sequential", "plain"),
        ("sequential", "cached"),
        ("sequential", "incremental"),
        ("branching", "incremental"),
    )
]
ABOVE = [("sequential", torch.float64, rso.RSO(1, 31, level=level), "auto") for level in ("layer", "network")]
GROWING = ("sequential", torch.float64, rso.RSO(2, 9, batch_growth=2.0), "auto")
COMPILED = ("compiled", torch.float64, rso.RSO(1, 240, batch_every="neuron", layer_order="input_first"), "incremental")


def train(kind, dtype, method, evaluator, ranks):
    """Weights, shares kept and machine."""
    torch.set_num_threads(1)
    data = rso.load("digits", train_limit=240, test_limit=30)
    data = rso.Data.from_arrays(data.x_train.to(dtype), data.y_train, data.x_test.to(dtype), data.y_test)
    model = model_of(kind, dtype)
    history = rso.fit(model, data, method, seed=0, ranks=ranks, evaluator=evaluator)
    return model.state_dict(), [record.kept for record in history.cycles], history.machine


def train_all(rank, count, cases, folder):
    """In a process of its own: train in each case, and save what came of it."""
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=count)
    torch.save([train(*case, Ranks(rank, count)) for case in cases], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def ends(folder, count, cases):
    """For each case, what came of it in each rank."""
    mp.spawn(train_all, (count, cases, str(folder)), nprocs=count)
    return zip(*(torch.load(folder / f"{rank}.pt") for rank in range(count)), strict=True)


def test_searched_apart_any_number_of_ranks_ends_in_the_same_weights(tmp_path):
    count = 3  # torchrun has two, below
    for case, by_rank in zip(APART, ends(tmp_path, count, APART), strict=True):
        alone, kept, machine = train(*case, ALONE)
        assert "ranks" not in machine
        for weights, theirs, there in by_rank:
            assert all(torch.equal(weights[name], alone[name]) for name in alone), case
            assert theirs == kept
            assert there.endswith(f"ranks: {count}")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs here")
@pytest.mark.parametrize("parallel", ["neuron", "layer"])
def test_on_gpus_two_ranks_end_in_the_weights_of_one(tmp_path, parallel):
    command = ["--model", "one_conv", "--cycles", "1", "--batch-size", "200", "--device", "cuda", "--parallel"]
    for count in (1, 2):
        weights = ["--weights", str(tmp_path / f"{count}.pt")]
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(count),
            "-m",
            "rso_lab",
            "train",
        ]
        subprocess.run([*launch, *command, parallel, *weights], check=True, timeout=300)
    one, two = (torch.load(tmp_path / f"{count}.pt", weights_only=True) for count in (1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_shared_mini_batch_ends_in_the_same_weights(tmp_path):
    cases = [*SHARED, *ABOVE, GROWING, COMPILED]
    for case, by_rank in zip(cases, ends(tmp_path, 2, cases), strict=True):
        alone, kept, _ = train(*case, ALONE)
        for weights, theirs, _ in by_rank:
            assert theirs == kept, case
            for name in alone:
                assert torch.allclose(weights[name], alone[name], rtol=1e-9, atol=1e-12), (case, name)


def count_exchanges(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    exchange, calls = dist.all_gather, []
    dist.all_gather = lambda *arguments: calls.append(0) or exchange(*arguments)
    data = rso.load("digits", train_limit=240, test_limit=30)
    search = rso.steps(
        model_of("sequential", torch.float32), data, rso.RSO(1, 60, batch_every="layer"), seed=0, ranks=Ranks(rank, 2)
    )
    found = {}
    before = 0
    for step in search:
        found.setdefault(step.layer, []).append(len(calls) - before)
        before = len(calls)
    # More for a neuron's first weight, for which its channel is run once more, alone, and for a mini-batch's first.
    assert {layer: statistics.mode(counts) for layer, counts in found.items()} == {
        "9": 1,  # the losses
        "5": 1,
        "4": 2,  # and one batch norm behind the change
        "1": 2,
        "0": 3,
    }
    dist.destroy_process_group()


def test_a_weight_costs_an_exchange_for_each_batch_norm_behind_it_and_one_for_its_losses(tmp_path):
    mp.spawn(count_exchanges, (str(tmp_path),), nprocs=2)


@pytest.mark.parametrize(
    ("method", "loss", "message"),
    [
        (rso.SGD(1, 10, 0.1, warm_up=0), None, "SGD runs in one process"),
        (rso.RSO(1, 1), None, "batch_size is 1: expected at least 2, an image for each rank"),
        (rso.RSO(2, 2, batch_growth=0.5), None, "batch_size is 1: expected at least 2, an image for each rank"),
        (rso.RSO(1, 10), lambda outputs, targets: outputs.sum(), "has to be the mean over its images"),
    ],
)
def test_what_cannot_be_shared_is_refused(method, loss, message, digits):
    options = {} if loss is None else {"loss": loss}
    with pytest.raises(ValueError, match=message):
        rso.fit(rso.models.build("one_conv", digits), digits, method, seed=0, ranks=Ranks(0, 2), **options)


@pytest.mark.parametrize(("gpus", "backend", "own"), [(0, "gloo", []), (2, "cpu:gloo,cuda:nccl", [1])])
def test_what_is_on_a_gpu_goes_over_nccl_and_the_rest_over_gloo(gpus, backend, own, monkeypatch):
    """What torch is asked for; NCCL itself needs GPUs."""
    asked, chosen = [], []
    for module, name, double in (
        (dist, "is_torchelastic_launched", lambda: True),
        (dist, "init_process_group", asked.append),
        (dist, "get_rank", lambda: 1),
        (dist, "get_world_size", lambda: 2),
        (dist, "destroy_process_group", lambda: asked.append("end")),
        (torch.cuda, "device_count", lambda: gpus),
        (torch.cuda, "set_device", chosen.append),
    ):
        monkeypatch.setattr(module, name, double)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with joined() as ranks:
        assert ranks == Ranks(1, 2)
    assert (asked, chosen) == ([backend, "end"], own)


@pytest.mark.parametrize("parallel", [None, "neuron", "layer"])
def test_more_ranks_than_gpus_are_refused(parallel, monkeypatch):
    """NCCL would wait for ever, or stop with an error that few understand."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # torchrun's word for the ranks on this machine
    with FakeTensorMode():  # tensors without numbers, which can be on a GPU that is not there
        x, y = torch.zeros(20, 1, 8, 8, device="cuda"), torch.zeros(20, dtype=torch.long, device="cuda")
        data = rso.Data("digits", x, y, x, y, classes=10)
        with pytest.raises(ValueError, match="2 ranks on this machine, and 1 GPU: NCCL wants one for each"):
            rso.fit(nn.Linear(64, 10), data, rso.RSO(1, 10, parallel=parallel), seed=0, ranks=Ranks(0, 4))


def disagree(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    ranks.refuse_to_disagree([torch.ones(3)], "ones")
    assert ranks.sum(torch.tensor([1.0 + rank])).tolist() == [3.0]
    assert ranks.first(rank) == 0
    with pytest.raises(RanksError, match="the ranks disagree about this"):
        ranks.refuse_to_disagree([torch.tensor([1.0, 1.0 + rank * 1e-7])], "this")
    with pytest.raises(RanksError, match="the ranks disagree about seeds"):
        ranks.refuse_to_disagree([], "seeds", rank)
    dist.destroy_process_group()


def test_ranks_that_disagree_do_not_go_on(tmp_path):
    mp.spawn(disagree, (str(tmp_path),), nprocs=2)


def command(count, *arguments):
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return [*run, "-m", "rso_lab", "train", *arguments]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_torchrun_writes_once_and_as_one_process_does(tmp_path):
    for count in (1, 2):
        files = ["--out", str(tmp_path / f"{count}.json"), "--weights", str(tmp_path / f"{count}.pt")]
        arguments = ["--cycles", "2", "--batch-size", "50", "--parallel", "neuron", *files]
        run = subprocess.run(command(count, *arguments), env=ENVIRONMENT, capture_output=True, text=True, check=True)
        assert run.stdout.count("cycle 2: test accuracy") + run.stderr.count("cycle 2: test accuracy") == 1
    one, two = (torch.load(tmp_path / f"{count}.pt", weights_only=True) for count in (1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert rso.History.load(tmp_path / "2.json").machine.endswith("ranks: 2")


DYING = ["--model", "two_conv", "--cycles", "1", "--batch-size", "100", "--parallel", "neuron"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights of the run that the tests below disturb."""
    path = tmp_path_factory.mktemp("whole") / "weights.pt"
    subprocess.run(command(1, *DYING, "--weights", str(path)), env=ENVIRONMENT, capture_output=True, check=True)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_run_which_goes_on_with_another_number(victim, undisturbed, tmp_path):
    arguments = [*DYING, "--checkpoint", str(tmp_path / "state")]
    with subprocess.Popen(command(2, *arguments), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as run:
        while not (tmp_path / "state" / "latest.pt").exists():
            assert run.poll() is None
            time.sleep(0.05)
        started = psutil.Process(run.pid).children()
        (pid,) = (process.pid for process in started if process.environ().get("RANK") == str(victim))
        os.kill(pid, signal.SIGKILL)
        _, said = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "another rank has ended" in said or "Signal 9" in said
    goes_on = ["--resume", "--weights", str(tmp_path / "resumed.pt")]
    subprocess.run(command(1, *arguments, *goes_on), env=ENVIRONMENT, capture_output=True, check=True)
    resumed = torch.load(tmp_path / "resumed.pt", weights_only=True)
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in resumed)
