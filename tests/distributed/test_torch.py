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
        "autodiff/change",
        "autodiff/penalties",
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


@pytest.mark.parametrize("index", [0, 1])
def test_gradient_is_that_of_autodiff_in_processes(processes, index):
    actual, expected = (
        processes[index][f"{name}/change"] for name in ("sync", "autodiff")
    )
    assert not np.array_equal(actual, expected)  # It is another computation.
    np.testing.assert_allclose(
        actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
    )


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    return run_worker(tmp_path_factory.mktemp("gradients"), "torch_gradients")


@pytest.mark.parametrize("clouds", ["together", "centered"])
@pytest.mark.parametrize("check", ["gradcheck", "gradgradcheck"])
def test_derivatives_by_finite_differences(gradients, check, clouds):
    assert gradients[f"{check}/{clouds}"]


@pytest.mark.parametrize(
    "case",
    [
        *[f"custom/{dtype} on a CPU" for dtype in ("float32", "bfloat16")],
        *[
            f"custom/{dtype} on a GPU"
            for dtype in ("float32", "bfloat16", "float16")
        ],
        *[f"compiled/bfloat16 on a {device}" for device in ("CPU", "GPU")],
    ],
)
def test_gradient_is_that_of_autodiff(gradients, case):
    """Each is rounded to the states' type, and on a GPU one operand as well."""
    how, name = case.split("/")
    actual, expected = gradients[case], gradients[f"autodiff/{name}"]
    assert actual.shape == (6 * 7 * 5 + 1,)  # The gradient, and the score.
    unit = {"float32": 1e-6, "bfloat16": 2.0**-8, "float16": 2.0**-11}
    error = np.linalg.norm(actual[:-1] - expected[:-1])
    assert error <= 4 * unit[name.split()[0]] * np.linalg.norm(expected[:-1])
    np.testing.assert_allclose(actual[-1], expected[-1], rtol=1e-6)
