"""What the tests of this folder need."""

import importlib.util

import pytest


@pytest.fixture(scope="session")
def tpu_compiler():
    """Skips where there is no compiler for TPUs."""
    _require("jax", "tpu-check")
    _require("libtpu", "tpu-check")


@pytest.fixture(scope="session")
def keras_hub():
    """Skips where there is no KerasHub to make a BERT with."""
    _require("keras_hub", "hub")


@pytest.fixture(scope="session")
def tensorflow():
    """Skips where TensorFlow, a dependency, is missing all the same."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("needs tensorflow")


def _require(module, extra):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}: pip install 'keras-istar[{extra}]'")
