"""What runs the examples in docstrings and in the documentation."""

import os

# Tests compile many small programs and run each of them a few times: optimizing
# their machine code takes longer than it saves. The backend reads this when
# Keras imports it, and what tests start inherits it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

import keras_istar  # noqa: E402

try:
    from sybil import Sybil
    from sybil.parsers.myst import PythonCodeBlockParser
    from sybil.parsers.myst import SkipParser
except ImportError:  # Nothing is collected from Markdown then.
    pass
else:
    pytest_collect_file = Sybil(
        parsers=[PythonCodeBlockParser(), SkipParser()],
        patterns=["README.md", "docs/*.md"],
    ).pytest()

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
