import os

import matplotlib.pyplot as plt
import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start: as many tests run at once as there are cores
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined

import rso_lab as rso


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _several_pieces(monkeypatch):
    """The tests' data sets are small: cut them into several pieces, too."""
    monkeypatch.setattr("rso_lab.graph.PIECE", 50)


@pytest.fixture(autouse=True)
def _figures_closed():
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def digits():
    """A slice of the digits, float32."""
    return rso.load("digits", train_limit=120, test_limit=60)


@pytest.fixture(scope="session")
def digits64(digits):
    """The same in float64."""
    return rso.Data.from_arrays(digits.x_train.double(), digits.y_train, digits.x_test.double(), digits.y_test)


@pytest.fixture
def threads():
    """Sets torch's threads; afterwards they are what they were."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
