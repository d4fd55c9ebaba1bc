"""Two workers of `MultiWorkerMirroredStrategy` train as one device does."""

import importlib.util
import json

import numpy as np
import pytest
from workers.launch import free_port
from workers.launch import run_worker
from workers.launch import run_workers

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("tensorflow", "keras_hub"))),
    reason="needs TensorFlow and KerasHub",
)


def run_two(folder, mode):
    cluster = {"worker": [f"127.0.0.1:{free_port()}" for _ in range(2)]}
    tasks = [{"type": "worker", "index": index} for index in (0, 1)]
    jobs = [
        ([mode], {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})})
        for task in tasks
    ]
    return run_workers(folder, "multi_worker", jobs)


def test_a_loop_of_ones_own_is_exact(tmp_path):
    expected = run_worker(tmp_path, "multi_worker", "loop")
    assert expected.pop("replicas") == 1
    for actual in run_two(tmp_path, "loop"):
        assert actual.pop("replicas") == 2
        assert set(actual) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(
                actual[name],
                value,
                rtol=1e-5,
                atol=1e-5 * np.abs(value).max(),
                err_msg=name,
            )


@pytest.mark.slow
def test_keras_fit_does_not_work_across_workers(tmp_path):
    for result in run_two(tmp_path, "fit"):
        assert "PerReplica" in str(result["error"])
