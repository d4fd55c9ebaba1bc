"""Types for signatures."""

from collections.abc import Callable
from typing import Any

Tensor = Any  # A tensor of the active Keras backend.

# A number, or a function of the number of training steps so far.
Schedulable = float | Callable[[Tensor], Any]
