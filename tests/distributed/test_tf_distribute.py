"""R replicas of `MirroredStrategy` train as one device does."""

import functools
import importlib.util

import numpy as np
import pytest
from workers.launch import run_worker

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("tensorflow", "keras_hub"))),
    reason="needs TensorFlow and KerasHub",
)

SMALL = ["even", "callback"]
# Of the last batch, three examples are left for four replicas.
UNEVEN = ["empty_replica", "empty_replica_sum"]
OTHERS = [
    *SMALL,
    *("two_towers", "synchronized_batch_norm", "batch_norm", "other_losses"),
    *("cosine", "isobn", "isobn_other_losses"),
    *("target", "per_layer", "centered"),
    *("plain_uneven", "sync", "no_sync"),
]
# For each number of replicas, the cases that one process runs; 0: no strategy.
CASES = {
    0: [[*UNEVEN, *OTHERS]],
    1: [SMALL],
    2: [OTHERS, UNEVEN],
    4: [UNEVEN, OTHERS],
}
SLOW = [
    *((1, case) for case in SMALL),
    *((2, case) for case in UNEVEN),
    *((4, case) for case in OTHERS),
]
REPLICAS = [
    pytest.param(1, marks=pytest.mark.slow),
    2,
    pytest.param(4, marks=pytest.mark.slow),
]
EXACT = [
    pytest.param(
        case,
        replicas,
        marks=[pytest.mark.slow] if (replicas, case) in SLOW else [],
    )
    for replicas in (1, 2, 4)
    for cases in CASES[replicas]
    for case in cases
    if case not in ("batch_norm", "plain_uneven", "no_sync")
]
LOGS = ("loss", "isoscore", "cosine", "penalty", "accuracy", "mse", "target")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Function from replicas and a place in their `CASES` to quantities."""

    @functools.cache
    def measure(replicas, place):
        folder = tmp_path_factory.mktemp("mirrored")
        return run_worker(folder, "mirrored", replicas, *CASES[replicas][place])

    return measure


@pytest.fixture
def results(measured):
    """Function from a case and a number of replicas to quantities by name."""

    def get(case, replicas):
        (place,) = [i for i, x in enumerate(CASES[replicas]) if case in x]
        return {
            key.removeprefix(f"{case}/"): value
            for key, value in measured(replicas, place).items()
            if key.startswith(f"{case}/")
        }

    return get


def relative_difference(actual, expected):
    assert actual.shape == expected.shape
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("case, replicas", EXACT)
def test_weights_are_those_of_one_device(results, case, replicas):
    actual, expected = results(case, replicas), results(case, 0)
    assert relative_difference(actual["weights"], expected["weights"]) < 1e-6
    assert relative_difference(actual["change"], expected["change"]) < 1e-5


@pytest.mark.parametrize("case, replicas", EXACT)
def test_logs_are_those_of_one_device(results, case, replicas):
    actual, expected = results(case, replicas), results(case, 0)
    assert set(actual) == set(expected)
    names = [name for name in expected if name.endswith(LOGS)]
    if case == "empty_replica_sum":
        # Keras itself reports sums as if replicas had equal shares.
        names.remove("loss")
    assert len(names) >= 3
    for name in names:
        np.testing.assert_allclose(
            actual[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize(
    "case, replicas",
    [
        parameters
        for parameters in EXACT
        if parameters.values[0] in ("callback", "empty_replica")
    ],
)
def test_shrinkage_covariance_is_the_same_everywhere(results, case, replicas):
    (expected,) = results(case, 0)["shrinkage_covariances"]
    actual = results(case, replicas)["shrinkage_covariances"]
    assert actual.shape == (replicas, *expected.shape)
    assert np.all(actual == actual[0])
    np.testing.assert_allclose(
        actual[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("replicas", REPLICAS)
def test_callback_logs_are_those_of_one_device(results, replicas):
    actual, expected = results("callback", replicas), results("callback", 0)
    for name in ("isoscore_union", "isoscore_layer_0", "isoscore_layer_1"):
        assert expected[name].shape == (1,)
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize("replicas", REPLICAS)
def test_evaluate_and_predict_are_unaffected(results, replicas):
    actual, expected = results("even", replicas), results("even", 0)
    assert list(actual["evaluate_names"]) == ["accuracy", "loss"]
    for name in ("evaluate_loss", "predictions"):
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize("replicas", REPLICAS[1:])
def test_reported_loss_is_task_loss_plus_penalty(results, replicas):
    logs = results("batch_norm", replicas)
    np.testing.assert_allclose(
        logs["loss"], logs["mse"] + logs["istar_penalty"], rtol=1e-5
    )


@pytest.mark.parametrize("replicas", REPLICAS[1:])
def test_keras_weighs_uneven_replicas_by_itself(results, replicas):
    plain = [results("plain_uneven", x)["change"] for x in (replicas, 0)]
    assert relative_difference(*plain) > 1e-3


@pytest.mark.parametrize("replicas", REPLICAS[1:])
def test_without_sync_every_replica_scores_its_own_tokens(results, replicas):
    expected = results("no_sync", 0)
    same = results("sync", 0)
    np.testing.assert_array_equal(expected["weights"], same["weights"])
    actual = results("no_sync", replicas)
    assert relative_difference(actual["change"], expected["change"]) > 1e-2
    # Fewer tokens have a covariance of fewer dimensions.
    less = 0.0025 * replicas
    assert np.all(actual["isoscore"] < expected["isoscore"] - less)
    np.testing.assert_allclose(
        actual["loss"], actual["mse"] + actual["istar_penalty"], rtol=1e-5
    )
