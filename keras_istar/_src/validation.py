"""Checks of arguments: the rule, then what was received."""

import contextlib
import functools
import math
import numbers
import os
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import NoReturn
from typing import TypeVar

import keras
import numpy as np
from keras import ops

Function = TypeVar("Function", bound=Callable)

_LARGEST_REAL = float(np.finfo("float32").max)
_LARGEST_INT = 2**31 - 1
_GUIDE = "https://github.com/keras-istar/keras-istar/blob/main/docs/guide.md"


def see_guide(heading: str) -> str:
    """Returns a link to a section of the guide, to end a message with.

    Args:
        heading: Heading of the section, as links spell it: `"which-layers"`.
    """
    return f"See {_GUIDE}#{heading}"


def check_real(name: str, value: Any) -> float:
    """Returns `value` as a float; raises unless it is a finite number."""
    is_real = isinstance(value, numbers.Real)
    if isinstance(value, bool) or not is_real:
        _refuse(name, "a real number", value)
    if value != value or abs(value) == math.inf:
        _refuse(name, "a finite number", value)
    if abs(value) > _LARGEST_REAL:
        _refuse(name, "a number that float32 can hold", value)
    return float(value)


def check_schedule(
    name: str, schedule: Callable, check: Callable[[str, Any], Any]
) -> Any:
    """Returns the first value of a schedule; raises if it is not valid."""
    try:
        first = schedule(ops.convert_to_tensor(0.0))
    except Exception as e:
        raise ValueError(
            f"`{name}` must be a value or a function that returns one for a "
            "step, a float32 scalar tensor. "
            f"Received: {name}={schedule!r:.200}, which raised "
            f"{type(e).__name__}: {e!s:.200}"
        ) from e
    try:
        # A list would be read as one value for each hidden state.
        is_pair = isinstance(first, tuple) and len(first) == 2
        number = tuple(map(float, first)) if is_pair else float(first)
    except (TypeError, ValueError) as e:
        raise ValueError(
            f"`{name}` must be a value or a function that returns a number, "
            "or a tuple `(low, high)` where an interval is one. "
            f"Received: {name}={schedule!r:.200}, which returned {first!r:.200}"
        ) from e
    return check(name, number)


def sampled_values(name: str, value: Any) -> list[tuple[float, float]]:
    """Steps and the values there: of a number at step 0, of a schedule at some.

    The first value of a schedule is checked. At later steps, a schedule that
    knows an end may raise.
    """
    if not callable(value):
        return [(0.0, value)]
    found = [(0.0, check_schedule(name, value, check_real))]
    with contextlib.suppress(Exception):
        for power in range(7):
            step = 10.0**power
            found.append((step, float(value(ops.convert_to_tensor(step)))))
    return found


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


def check_positive_int(
    name: str,
    value: Any,
    text: str = "a positive integer",
    at_most: int = _LARGEST_INT,
) -> int:
    """Returns `value` as an int; raises unless it is a whole number > 0."""
    is_int = isinstance(value, numbers.Integral)
    if isinstance(value, bool) or not is_int or value <= 0:
        _refuse(name, text, value)
    if value > at_most:
        _refuse(name, f"at most {at_most}", value)
    return int(value)


def check_optional_positive_int(name: str, value: Any) -> int | None:
    """Returns `value`; raises unless it is None or a whole number > 0."""
    return None if value is None else check_positive_int(name, value)


def check_seed(value: Any) -> int:
    """Returns `value`; raises unless it can seed random numbers."""
    is_int = isinstance(value, numbers.Integral)
    if isinstance(value, bool) or not is_int or not 0 <= value <= _LARGEST_INT:
        _refuse("seed", f"an integer from 0 to {_LARGEST_INT}", value)
    return int(value)


def check_verbose(value: Any) -> int:
    """Returns `value`; raises unless it is 0 or 1."""
    if not isinstance(value, numbers.Integral) or value not in (0, 1):
        _refuse("verbose", "0 or 1", value)
    return int(value)


def check_bool(name: str, value: Any) -> bool:
    """Returns `value`; raises unless it is True or False."""
    if not isinstance(value, bool):
        _refuse(name, "True or False", value)
    return value


def check_text(name: str, value: Any) -> str:
    """Returns `value`; raises unless it is a string."""
    if not isinstance(value, str):
        _refuse(name, "text", value)
    return value


def check_tuple(name: str, value: Any, item: type, rule: str) -> tuple:
    """Returns `value`; raises unless it is a tuple of `item` objects."""
    is_tuple = isinstance(value, tuple)
    if not is_tuple or not all(isinstance(x, item) for x in value):
        _refuse(name, rule, value)
    return value


def check_optional_path(name: str, value: Any) -> str | None:
    """Returns `value` as a string; raises unless it is None or a path."""
    if value is None:
        return None
    return check_path(name, value, "`None` or a path")


def check_path(name: str, value: Any, rule: str = "a path") -> str:
    """Returns `value` as a string; raises unless it is a path."""
    is_path = isinstance(value, (str, os.PathLike))
    path = os.fspath(value) if is_path else None
    if not path or not isinstance(path, str):
        _refuse(name, rule, value)
    return path


@contextlib.contextmanager
def keras_arguments(kwargs: dict[str, Any]) -> Iterator[None]:
    """Raises an error that shows `kwargs` if Keras refuses them."""
    try:
        yield
    except (TypeError, ValueError) as e:
        raise ValueError(
            "`**kwargs` must be arguments of `keras.layers.Layer`, such as "
            f"`name` and `dtype`. Received: {kwargs!r:.200}"
        ) from e


def renamed_arguments(**renames: str) -> Callable[[Function], Function]:
    """Lets a function take arguments by their names of one release ago.

    Args:
        **renames: The new name of each old one.

    Returns:
        A decorator. The function warns of an old name with a
        `DeprecationWarning`, and raises a `ValueError` if the new one is given
        too.
    """

    def decorate(function):
        @functools.wraps(function)
        def with_old_names(*args, **kwargs):
            for old, new in renames.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise ValueError(
                        f"`{old}` must not stand beside `{new}`, its new name. "
                        f"Received: {old}={kwargs[old]!r:.200} and "
                        f"{new}={kwargs[new]!r:.200}"
                    )
                warnings.warn(
                    f"`{old}` is now called `{new}`. The old name will be "
                    "removed in the next release.",
                    DeprecationWarning,
                    stacklevel=2,
                )
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return with_old_names

    return decorate


def _refuse(name: str, rule: str, value: Any) -> NoReturn:
    raise ValueError(
        f"`{name}` must be {rule}. Received: {name}={value!r:.200}"
    )


# Tolerances for the entries of a covariance, relative to the largest entry.
_ROUNDING = 1e-4
_ROUNDING_OF_NARROW = 1e-2  # bfloat16 has 8 bits.


def check_points(points: Any, mask: Any) -> tuple[Any, Any]:
    """Returns `points` as a float tensor and `mask` as a tensor.

    Raises:
        ValueError: If `points` is not `(..., dim)` or `mask` does not fit it.
    """
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
    """Returns `value` as a float tensor; raises unless it is a covariance.

    Args:
        name: Name of the argument.
        value: What was given for it.
        dim: Width that it must have; None for any.
        dtype: Type of the tensor; None for that of `value`.
    """
    value = _float_tensor(name, value)
    shape = tuple(value.shape)
    # A function may be traced for any number of rows.
    if len(shape) != 2 or shape[0] not in (None, shape[1]):
        raise ValueError(
            f"`{name}` must be a square matrix `(dim, dim)`. "
            f"Received: {name}.shape={shape}"
        )
    check_width(name, shape)
    if dim is not None and shape[1] != dim:
        raise ValueError(
            f"`{name}` must have shape {(dim, dim)} to fit dim={dim}. "
            f"Received: {name}.shape={shape}"
        )
    if dtype is not None:
        value = ops.cast(value, dtype)
    values = _known_values(value)
    if values is not None:
        is_narrow = "16" in keras.backend.standardize_dtype(value.dtype)
        _check_values(name, values, is_narrow)
    return value


def check_traceable_fraction(name: str, value: Any) -> Any:
    """Returns `value`; raises unless it is a number in [0, 1].

    It may also be a scalar tensor. While a function is traced, its value is not
    known and not checked.
    """
    if tuple(getattr(value, "shape", (None,))) != () or isinstance(
        value, numbers.Real
    ):
        return check_fraction(name, value)
    tensor = check_tensor(name, value)
    known = _known_values(tensor)
    if known is not None:
        check_fraction(name, float(known))
    return tensor


def _known_values(tensor):
    """Values of a tensor as a NumPy array; None while a function is traced."""
    # Not `float(tensor)`: AutoGraph makes that a cast, which never fails.
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if tf.is_symbolic_tensor(tensor):
            return None
    elif keras.backend.backend() == "jax":
        import jax

        if isinstance(tensor, jax.core.Tracer):
            # Under `jax.grad` alone, this is an array with values.
            tensor = jax.lax.stop_gradient(tensor)
        if isinstance(tensor, jax.core.Tracer):
            return None
    elif keras.backend.backend() == "torch":
        import torch

        if torch.compiler.is_compiling():
            return None
    try:
        return ops.convert_to_numpy(tensor).astype("float64")
    except RuntimeError:  # `torch.vmap`, which has no other public sign.
        return None


def _check_values(name, matrix, is_narrow):
    """Raises where the values are not those of a covariance."""
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
    """Returns `value` as a tensor; raises unless it holds real numbers."""
    try:
        tensor = ops.convert_to_tensor(value)
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if dtype == "string" or "complex" in dtype:
            raise TypeError(f"{dtype} is no real number.")
        is_symbolic = isinstance(tensor, keras.KerasTensor)
        if is_symbolic or not hasattr(tensor, "__array__"):
            raise TypeError(f"{type(tensor).__name__} has no array of values.")
    except Exception as e:
        raise ValueError(
            f"`{name}` must be a tensor or array of numbers. "
            f"Received: {name}={value!r:.200}"
        ) from e
    if getattr(tensor.shape, "rank", 0) is None:  # In a TensorFlow graph.
        raise ValueError(
            f"`{name}` must have a known number of dimensions; `set_shape` "
            f"tells TensorFlow. Received: {name}.shape={tensor.shape}"
        )
    return tensor


def check_float_dtypes(name: str, dtypes: Any) -> None:
    """Raises unless all dtypes are one and the same float type."""
    names = [keras.backend.standardize_dtype(dtype) for dtype in dtypes]
    if "float" not in names[0] or len(set(names)) > 1:
        raise ValueError(
            f"`{name}` must be of one float dtype. Received: dtypes={names}"
        )
