"""What the examples in docstrings may use without an import."""

import keras
import numpy as np
import pytest

import keras_istar

# On JAX, a layer that is called by hand logs nothing.
LOG_BY_HAND = (
    "CosineRegularization",
    "HiddenStateRegularization",
    "IStarRegularization",
    "IsotropicBatchNormalization",
)


@pytest.fixture(autouse=True)
def _names_in_examples(request, doctest_namespace):
    doctest_namespace.update(np=np, keras=keras, keras_istar=keras_istar)
    is_logged = request.node.name.endswith(LOG_BY_HAND)
    if is_logged and keras.backend.backend() == "jax":
        pytest.skip("on JAX a layer called by hand logs nothing")
