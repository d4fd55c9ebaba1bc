"""What the symbolic inputs of a model take: names, shapes, kinds of values."""

from collections.abc import Iterator
from typing import Any

import keras

from keras_istar import functional_graph

_NO_NUMBERS = ("string", "complex", "resource", "variant")


def check_inputs(model: keras.Model, x: Any) -> None:
    """Raises unless `x` fits the inputs of `model`.

    Args:
        model: Any model; there is nothing to fit if it has no such inputs yet.
        x: Arrays, or `tf.TypeSpec`s of them, or a structure of either.

    Raises:
        ValueError: If an input is not there, or there are too many, or one is
            of another shape or holds no numbers.
    """
    if not getattr(model, "inputs", None) or not keras.tree.flatten(x):
        return
    for tensor, array in _pairs(model, x):
        shape = getattr(array, "shape", None)
        if shape is None or getattr(shape, "rank", 0) is None:
            continue  # A dataset that knows no more itself.
        if not _fits(tuple(tensor.shape), tuple(shape)):
            raise ValueError(
                f"`data` must fit the input {tensor.name!r} of the model, "
                f"{tuple(tensor.shape)}. Received: shape {tuple(shape)}"
            )
        dtype = getattr(array, "dtype", None)
        if tensor.dtype != "string" and not _are_numbers(dtype):
            raise ValueError(
                f"`data` must hold numbers for the input {tensor.name!r} of "
                f"the model. Received: dtype {getattr(dtype, 'name', dtype)}"
            )


def _pairs(model, x) -> Iterator[tuple[Any, Any]]:
    """Symbolic inputs of the model, and what `x` has for each."""
    if isinstance(x, dict):
        names = _names(model)
        missing = [name for name in names if name not in x]
        if missing:
            raise ValueError(
                f"`data` must have all inputs of the model, {list(names)}. "
                f"Received: keys={list(x)}"
            )
        return ((tensor, x[name]) for name, tensor in names.items())
    arrays = keras.tree.flatten(x)
    if len(model.inputs) != len(arrays):
        raise ValueError(
            "`data` must have one array for each of the "
            f"{len(model.inputs)} inputs of the model. "
            f"Received: {len(arrays)} arrays"
        )
    return zip(model.inputs, arrays, strict=True)


def _names(model):
    """Symbolic inputs by the names that a dict of data has for them."""
    if functional_graph.is_functional(model) and isinstance(model.input, dict):
        return model.input
    return {tensor.name: tensor for tensor in model.inputs}


def _fits(expected, shape):
    """Whether a shape is as expected; Keras adds and drops a last axis of 1."""
    if len(expected) != len(shape):
        longer = max(expected, shape, key=len)
        return (
            len(shape) > 0
            and abs(len(expected) - len(shape)) == 1
            and longer[-1] == 1
        )
    return all(
        e is None or s is None or e == s
        for e, s in zip(expected[1:], shape[1:], strict=True)
    )


def _are_numbers(dtype):
    kind = getattr(dtype, "kind", "")  # Of NumPy, JAX and pandas.
    name = str(getattr(dtype, "name", dtype))
    return kind not in tuple("cmMOSUV") and not any(
        word in name for word in _NO_NUMBERS
    )
