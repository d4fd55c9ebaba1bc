"""Passes over data that does not divide among the replicas."""

import keras
import numpy as np
import oracle
import pytest
from workers.launch import run_worker

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="replicas of TensorFlow"
)

KERNEL = np.random.default_rng(5).normal(size=(4, 6)).astype("float32")
EXAMPLES = {
    "array_2": 2,
    "array_35": 35,
    "array_67": 67,
    "array_96": 96,
    "array_of_one_batch_32": 32,
    "array_batch_size_1": 7,
    "dataset_of_10": 32,
    "dataset_of_1": 4,
    "callback_2": 2,
    "callback_66": 66,
    "callback_97": 97,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_worker(tmp_path_factory.mktemp("uneven"), "uneven")


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_token_is_seen_once(results, name):
    number = EXAMPLES[name]
    rng = np.random.default_rng(number)
    x = rng.normal(size=(number, 8, 4)).astype("float32")
    expected = oracle.score(oracle.covariance(x.reshape(-1, 4) @ KERNEL))
    seen = list(results[name])
    assert seen.pop() == pytest.approx(expected, rel=1e-4)
    assert seen in ([], [8 * number])


def test_there_are_results_of_all_kinds(results):
    assert set(results) == set(EXAMPLES)
