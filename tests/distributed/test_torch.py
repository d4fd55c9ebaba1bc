"""The PyTorch backend, alone and in several processes."""

import importlib.util

import numpy as np
import pytest
from workers.launch import free_port
from workers.launch import run_worker
from workers.launch import run_workers

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs PyTorch"
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return run_worker(folder, "torch_data_parallel")


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    address = f"127.0.0.1:{free_port()}"
    jobs = [([address, 2, index], {}) for index in (0, 1)]
    return run_workers(folder, "torch_data_parallel", jobs)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    "name",
    [
        "callback",
        "sync/change",
        "sync/weights",
        "sync/penalties",
        "sync/shrinkage_covariance",
    ],
)
def test_processes_train_as_one_does(alone, processes, name, index):
    actual, expected = processes[index][name], alone[name]
    assert actual.shape == expected.shape
    np.testing.assert_allclose(
        actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
    )


def test_without_sync_every_process_scores_its_own_tokens(alone, processes):
    np.testing.assert_array_equal(
        alone["sync/weights"], alone["no_sync/weights"]
    )
    first, second = (p["no_sync/penalties"] for p in processes)
    assert np.all(np.abs(first - second) > 1e-4)
    for process in processes:
        change, expected = process["no_sync/change"], alone["sync/change"]
        error = np.linalg.norm(change - expected)
        assert error > 1e-3 * np.linalg.norm(expected)


def test_training_alone_moves_isotropy_the_way_asked(alone):
    # The strength is negative: away from isotropy.
    before, after = alone["score_before_and_after"]
    assert after < before
