"""Checks of tensors: shape, dtype and, where they are known, values."""

from typing import Any

import keras
import numpy as np
from keras import ops

# Of the entries of a covariance, relative to the largest of them.
_ROUNDING = 1e-4
_ROUNDING_OF_NARROW = 1e-2  # bfloat16 has 8 bits.


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
        mask = check_tensor("mask", mask)
        check_mask_shape(mask.shape, points.shape, "points")
    return points, mask


def check_covariance(
    name: str, value: Any, dim: int | None = None, dtype: str | None = None
) -> Any:
    """`value` as a float tensor `(dim, dim)`, of `dtype` if there is one."""
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
    if dtype is not None:
        value = ops.cast(value, dtype)
    constant = ops.stop_gradient(value)
    if _is_known(constant):
        _check_values(name, constant)
    return value


def _is_known(matrix):
    """Whether a matrix has values: not while a function of it is traced."""
    try:
        float(matrix[0, 0])
    except TypeError:
        return False
    return True


def _check_values(name, matrix):
    """Raises where the values are not those of a covariance."""
    is_narrow = "16" in keras.backend.standardize_dtype(matrix.dtype)
    if is_narrow:
        matrix = ops.cast(matrix, "float32")
    matrix = ops.convert_to_numpy(matrix).astype("float64")
    if not np.all(np.isfinite(matrix)):
        raise ValueError(
            f"`{name}` must be finite. Received: NaN or infinity in {name}"
        )
    rounding = _ROUNDING_OF_NARROW if is_narrow else _ROUNDING
    rounding *= np.max(np.abs(matrix))
    asymmetry = np.abs(matrix - matrix.T)
    i, j = np.unravel_index(np.argmax(asymmetry), matrix.shape)
    if asymmetry[i, j] > rounding:
        raise ValueError(
            f"`{name}` must be symmetric. Received: "
            f"{name}[{i}, {j}]={matrix[i, j]}, {name}[{j}, {i}]={matrix[j, i]}"
        )
    i = np.argmin(np.diag(matrix))
    if matrix[i, i] < -rounding:
        raise ValueError(
            f"`{name}` must have no variance below 0 on its diagonal. "
            f"Received: {name}[{i}, {i}]={matrix[i, i]}"
        )


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
    value = check_tensor(name, value)
    if "float" not in keras.backend.standardize_dtype(value.dtype):
        value = ops.cast(value, "float32")
    return value


def check_tensor(name: str, value: Any) -> Any:
    """`value` as a tensor of real numbers."""
    try:
        tensor = ops.convert_to_tensor(value)
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if dtype == "string" or "complex" in dtype:
            raise TypeError(f"{dtype} is no real number.")
        is_symbolic = isinstance(tensor, keras.KerasTensor)
        if is_symbolic or not hasattr(tensor, "__array__"):
            raise TypeError(f"{type(tensor).__name__} has no array of values.")
        return tensor
    except Exception as e:
        raise ValueError(
            f"`{name}` must be a tensor or array of numbers. "
            f"Received: {name}={value!r:.200}"
        ) from e


def check_float_dtypes(name: str, dtypes: Any) -> None:
    """Raises unless all dtypes are one and the same float type."""
    names = [keras.backend.standardize_dtype(dtype) for dtype in dtypes]
    if "float" not in names[0] or len(set(names)) > 1:
        raise ValueError(
            f"`{name}` must be of one float dtype. Received: dtypes={names}"
        )
