"""Checks of numbers, choices and paths: the rule, then what was received."""

import contextlib
import math
import numbers
import os
from collections.abc import Iterator
from typing import Any
from typing import NoReturn

import numpy as np

_LARGEST_REAL = float(np.finfo("float32").max)
_LARGEST_INT = 2**31 - 1


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
    """Returns `value`; raises unless it is a tuple of such items."""
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
    """Says which arguments Keras refuses within this scope, if it does."""
    try:
        yield
    except (TypeError, ValueError) as e:
        raise ValueError(
            "`**kwargs` must be arguments of `keras.layers.Layer`, such as "
            f"`name` and `dtype`. Received: {kwargs!r:.200}"
        ) from e


def _refuse(name: str, rule: str, value: Any) -> NoReturn:
    raise ValueError(
        f"`{name}` must be {rule}. Received: {name}={value!r:.200}"
    )
