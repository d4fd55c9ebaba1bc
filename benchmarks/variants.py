"""The kernel of the penalty with other choices than it would make itself.

They show whether the choices in `keras_istar/_src/compat/products.py` are right
for a device.
"""

import contextlib
import os
import unittest.mock
from collections.abc import Iterator

from keras_istar._src.score import moments

_CHOICES = {
    "1 state at once": {
        "states_at_once": lambda tokens: 1,
        "gradients_at_once": lambda tokens: 1,
    },
    "12 states at once": {"states_at_once": lambda tokens: 12},
    "4 gradients at once": {"gradients_at_once": lambda tokens: 4},
    "float32 products": {"product_dtype": lambda tokens: "float32"},
}
IS_ASKED_FOR = os.environ.get("KERAS_ISTAR_BENCHMARK_VARIANTS") == "1"
NAMES = tuple(_CHOICES)


@contextlib.contextmanager
def variant(name: str) -> Iterator[None]:
    """Lets what is traced inside make this choice; none if it has no such name.

    PyTorch traces nothing: it would have to run inside.
    """
    with contextlib.ExitStack() as patches:
        for choice, function in _CHOICES.get(name, {}).items():
            patches.enter_context(
                unittest.mock.patch.object(moments, choice, function)
            )
        yield
