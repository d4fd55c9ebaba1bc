"""Targets: the intervals in which scores should lie."""

import numbers
from typing import Any

import numpy as np
from keras import ops

from keras_istar._src.types import Tensor

Interval = float | tuple[float, float]

# Number of training steps in which a relative target learns the isotropy at the
# start.
STEPS_TO_START = 20.0

_BOUNDS = ("low", "high")
_LARGEST = float(np.finfo("float32").max)


def check_target(name: str, value: Any) -> Any:
    """Returns a target as numbers, pairs and lists; raises if it is not valid.

    Args:
        name: Name of the argument.
        value: None, a number, a pair `(low, high)`, or a list with a number or
            pair for each hidden state.
    """
    if value is None:
        return None
    if isinstance(value, list):
        if not value:
            _refuse(name, value)
        return [_check_interval(name, item, value) for item in value]
    return _check_interval(name, value, value)


def target_config(target: Any) -> Any:
    """Returns a target without tuples, for files; `check_target` reads it."""
    if isinstance(target, list):
        return [target_config(item) for item in target]
    if isinstance(target, tuple):
        return dict(zip(_BOUNDS, target, strict=True))
    return target


def _check_interval(name, item, value):
    if isinstance(item, dict) and tuple(item) == _BOUNDS:
        item = tuple(item.values())
    if not isinstance(item, tuple):
        item = (item, item)
    is_pair = len(item) == 2 and all(
        isinstance(x, numbers.Real) and not isinstance(x, bool) for x in item
    )
    if not is_pair or not 0 <= item[0] <= item[1] <= _LARGEST:
        _refuse(name, value)
    low, high = map(float, item)
    return low if low == high else (low, high)


def _refuse(name, value):
    raise ValueError(
        f"`{name}` must be `None`, a number, a pair `(low, high)` with "
        "0 <= low <= high, or a list with one of these for each hidden state. "
        f"Received: {name}={value!r:.200}"
    )


def check_range(name: str, target: Any, is_relative: bool) -> None:
    """Raises where a target that is an IsoScore is above 1."""
    if target is None or is_relative:
        return
    items = target if isinstance(target, list) else [target]
    if max(np.max(item) for item in items) > 1:
        raise ValueError(
            f"`{name}` must be at most 1, as an IsoScore is, unless "
            f"`relative=True`. Received: {name}={target!r:.200}"
        )


def intervals(target: Any, clouds: int) -> np.ndarray:
    """Low and high bound for each cloud, `(clouds, 2)`."""
    items = target if isinstance(target, list) else [target] * clouds
    if len(items) != clouds:
        raise ValueError(
            f"`target` must be a list with one item for each of the {clouds} "
            "hidden states; an interval is a tuple `(low, high)`. "
            f"Received: target={target!r:.200}"
        )
    return np.array([np.broadcast_to(item, 2) for item in items], "float32")


def scheduled_intervals(value: Any, clouds: int) -> Tensor:
    """The same from the result of a schedule, a scalar or a pair of them."""
    if isinstance(value, (list, tuple)):
        value = ops.stack([ops.cast(x, "float32") for x in value])
    value = ops.cast(value, "float32")
    return ops.broadcast_to(value, (clouds, 2))


def nearest(score: Tensor, bounds: Tensor) -> Tensor:
    """The value of each interval that is nearest to a score.

    Args:
        score: Tensor of any shape.
        bounds: Low and high, of that shape and a last axis of two.
    """
    return ops.minimum(ops.maximum(score, bounds[..., 0]), bounds[..., 1])
