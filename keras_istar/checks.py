"""Argument checks: the rule, then what was received."""

import math
import numbers
from typing import Any

import keras
from keras import ops


def check_real(name: str, value: Any) -> float:
    """Returns `value` as a float; raises unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        _refuse(name, "a real number", value)
    if not math.isfinite(value):
        _refuse(name, "a finite number", value)
    return float(value)


def check_fraction(name: str, value: Any) -> float:
    """Returns `value` as a float; raises unless it is in [0, 1]."""
    if not 0 <= check_real(name, value) <= 1:
        _refuse(name, "between 0 and 1", value)
    return float(value)


def check_open_fraction(name: str, value: Any) -> float:
    """Returns `value` as a float; raises unless it is strictly in (0, 1)."""
    if not 0 < check_real(name, value) < 1:
        _refuse(name, "strictly between 0 and 1", value)
    return float(value)


def check_positive(name: str, value: Any) -> float:
    """Returns `value` as a float; raises unless it is finite and > 0."""
    if not check_real(name, value) > 0:
        _refuse(name, "greater than 0", value)
    return float(value)


def check_momentum(value: Any) -> float | None:
    """Returns `value`; raises unless it is None or strictly in (0, 1)."""
    if value is not None and not 0 < check_real("momentum", value) < 1:
        _refuse("momentum", "`None` or strictly between 0 and 1", value)
    return None if value is None else float(value)


def check_positive_int(name: str, value: Any) -> int:
    """Returns `value` as an int; raises unless it is a whole number > 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        _refuse(name, "a positive integer", value)
    if value <= 0:
        _refuse(name, "a positive integer", value)
    return int(value)


def check_optional_positive_int(name: str, value: Any) -> int | None:
    """Returns `value`; raises unless it is None or a whole number > 0."""
    return None if value is None else check_positive_int(name, value)


def check_optional_int(name: str, value: Any) -> int | None:
    """Returns `value`; raises unless it is None or a whole number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        _refuse(name, "`None` or an integer", value)
    return int(value)


def check_bool(name: str, value: Any) -> bool:
    """Returns `value`; raises unless it is True or False."""
    if not isinstance(value, bool):
        _refuse(name, "True or False", value)
    return value


def check_points(points: Any, mask: Any) -> tuple[Any, Any]:
    """`points` `(..., dim)` as a float tensor, `mask` `(...)` as a tensor."""
    points = _float_tensor("points", points)
    if len(points.shape) < 2:
        raise ValueError(
            "`points` must have at least two dimensions, `(..., dim)`. "
            f"Received: points.shape={tuple(points.shape)}"
        )
    check_width("points", points.shape)
    if mask is not None:
        mask = _tensor("mask", mask)
        check_mask_shape(mask.shape, points.shape, "points")
    return points, mask


def check_covariance(name: str, value: Any, dim: int | None = None) -> Any:
    """`value` as a float tensor `(dim, dim)`."""
    value = _float_tensor(name, value)
    shape = tuple(value.shape)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(
            f"`{name}` must be a square matrix `(dim, dim)`. "
            f"Received: {name}.shape={shape}"
        )
    check_width(name, shape)
    if dim is not None and shape[0] != dim:
        raise ValueError(
            f"`{name}` must have shape {(dim, dim)} to fit dim={dim}. "
            f"Received: {name}.shape={shape}"
        )
    return value


def check_width(name: str, shape: tuple) -> None:
    """Raises unless the last axis of `shape` is known and at least 2."""
    if shape[-1] is None or shape[-1] < 2:
        raise ValueError(
            f"`{name}` must have a last axis of known size, at least 2. "
            f"Received: {name}.shape={tuple(shape)}"
        )


def check_mask_shape(mask_shape: tuple, shape: tuple, name: str) -> None:
    """Raises unless `mask_shape` can be `shape` without its last axis."""
    mask_shape, expected = tuple(mask_shape), tuple(shape)[:-1]
    fits = len(mask_shape) == len(expected) and all(
        m is None or e is None or m == e
        for m, e in zip(mask_shape, expected, strict=True)
    )
    if not fits:
        raise ValueError(
            f"`mask` must have the shape of `{name}` without its last axis, "
            f"{expected}. Received: mask.shape={mask_shape}"
        )


def _float_tensor(name, value):
    value = _tensor(name, value)
    if "float" not in keras.backend.standardize_dtype(value.dtype):
        value = ops.cast(value, "float32")
    return value


def _tensor(name, value):
    try:
        value = ops.convert_to_tensor(value)
        if keras.backend.standardize_dtype(value.dtype) == "string":
            raise TypeError("Text is no number.")
        return value
    except Exception as e:
        raise ValueError(
            f"`{name}` must be a tensor or array of numbers. "
            f"Received: {name}={value!r:.200}"
        ) from e


def _refuse(name, rule, value):
    raise ValueError(f"`{name}` must be {rule}. Received: {name}={value!r}")
