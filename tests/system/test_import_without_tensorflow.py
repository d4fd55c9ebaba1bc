"""Off TensorFlow, the package needs no TensorFlow."""

import importlib.util

import numpy as np
import pytest
from workers.launch import run_worker


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_package_lives_without_tensorflow(tmp_path, backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"needs {backend}")
    result = run_worker(tmp_path, "no_tensorflow", KERAS_BACKEND=backend)
    assert result["backend"] == backend
    assert not result["imported"]
    assert not any("keras_istar" in asker for asker in result["askers"])
    logged = {"isoscore", "isoscore_union", "istar_penalty", "val_loss"}
    assert logged <= set(result["logs"])
    assert np.all(np.isfinite(result["values"]))
