"""What is measured on two replicas is what one device measures."""

import keras
import numpy as np
import oracle
import pytest
from workers.launch import run_workers

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="needs tf.distribute"
    ),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Function that gives results by name, of one device and of two."""
    pytest.importorskip("keras_hub")
    folder = tmp_path_factory.mktemp("replicas")
    jobs = [([replicas], {}) for replicas in (0, 2)]
    both = run_workers(folder, "mirrored_measure", jobs)

    def get(name):
        return [
            {
                key.removeprefix(f"{name}/"): value
                for key, value in found.items()
                if key.startswith(f"{name}/")
            }
            for found in both
        ]

    return get


def test_every_number_is_that_of_one_device(results):
    one, two = results("measured")
    columns = {key.rpartition("union_")[2] for key in one if "union" in key}
    assert {"tokens", "isoscore_star", "twonn_dimension"} <= columns
    assert len(columns) == 15 and len(one) == 3 * 15
    for column, value in one.items():
        np.testing.assert_allclose(two[column], value, rtol=1e-5)


def test_samples_are_of_the_size_asked_for(results):
    for values in results("sampled"):
        assert values["twonn_tokens"] == 30


def test_metric_is_that_of_one_device(results):
    one, two = results("metric")
    expected = oracle.score(oracle.covariance(one["outputs"]))
    for found in (one, two):
        np.testing.assert_allclose(found["evaluated"], expected, rtol=1e-4)
        np.testing.assert_allclose(found["fitted"], expected, rtol=1e-4)
