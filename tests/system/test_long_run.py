import pathlib

import numpy as np
import pytest
from workers.launch import run_worker

pytestmark = pytest.mark.skipif(
    not pathlib.Path("/proc/self/statm").exists(),
    reason="needs to know the resident set",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """16 epochs of 80 steps, in each of which the callback makes 3 passes."""
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("long_run")
    run = run_worker(folder, "long_run", folder / "logs")
    assert run["steps"] == 1280
    assert len(run["resident"]) == 16
    return run


def test_resident_set_stays(run):
    assert run["resident"][-1] < 1.02 * run["resident"][9]


def test_nothing_is_traced_again(run):
    assert run["traces"].shape == (16, 2)
    assert np.all(run["traces"][0] > 0)
    np.testing.assert_array_equal(run["traces"], run["traces"][[0] * 16])


def test_losses_do_not_pile_up(run):
    assert np.all(run["losses"] <= 1)


def test_event_file_grows_by_the_epoch_alone(run):
    before, within, after = (
        run[f"files_{when}"] for when in ("before", "within", "after")
    )
    np.testing.assert_array_equal(within, before)
    np.testing.assert_array_equal(before[1:], after[:-1])
    np.testing.assert_array_equal(after[:, 0], 1)
    growth = after[:, 1] - before[:, 1]
    assert np.all(growth > 0)
    assert np.max(growth) < 1.2 * growth[0]
