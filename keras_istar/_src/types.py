"""Types that stand in signatures."""

from typing import Any

Tensor = Any  # A tensor of the active Keras backend.
