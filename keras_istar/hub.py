"""Everything that knows how KerasHub tasks take raw data."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np


def preprocessed(
    model: keras.Model, data: Any, batch_size: int
) -> tuple[Any, int | None]:
    """`data` as `keras.Model.evaluate` takes it, and the batch size to pass.

    Args:
        model: Any model. If it is a KerasHub task with a preprocessor, `data`
            is what its `fit` takes as `x`, raw strings for example.
        data: Arrays or nested tuples and dicts of them, or a dataset.
        batch_size: Examples in a batch, where `data` does not come in batches.

    Returns:
        A tuple `(data, batch_size)`; the second is None for batched data.
    """
    is_batched = not _is_arrays(data)
    if getattr(model, "preprocessor", None) is not None:
        if _is_arrays(data):
            batches = _PreprocessedBatches(model, data, batch_size)
            return batches, None
        return _map_preprocessor(model, data), None
    return data, None if is_batched else batch_size


def check_data(model: keras.Model, data: Any) -> None:
    """Raises unless `data` can be what `fit` of `model` takes as `x`.

    Datasets are not looked into.

    Raises:
        ValueError: If it cannot.
    """
    if isinstance(data, Iterator):
        raise ValueError(
            "`data` must be iterable more than once, a generator is not. "
            f"Received: data of type {type(data).__name__}"
        )
    if _is_dataset(data):
        return
    has_preprocessor = getattr(model, "preprocessor", None) is not None
    are_inputs = isinstance(data, list) and not has_preprocessor
    arrays = data if are_inputs else _leaves(data)
    if not all(_is_array(x, has_preprocessor) for x in arrays):
        raise ValueError(
            "`data` must be what the model's `fit` takes as `x`: arrays, "
            "nested tuples or dicts of them, a dataset, or strings if the "
            "model is a KerasHub task. "
            f"Received: data of type {type(data).__name__}"
        )
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"`data` must be of one length. Received: lengths={lengths}"
        )
    if not has_preprocessor and not isinstance(data, dict):
        _check_inputs(getattr(model, "inputs", None), arrays)


def _check_inputs(inputs, arrays):
    """Raises unless the arrays fit the symbolic inputs of a model."""
    if not inputs or not arrays:
        return
    if len(inputs) != len(arrays):
        raise ValueError(
            f"`data` must have one array for each of the {len(inputs)} inputs "
            f"of the model. Received: {len(arrays)} arrays"
        )
    for tensor, array in zip(inputs, arrays, strict=True):
        if not _fits(tensor.shape[1:], array.shape[1:]):
            raise ValueError(
                f"`data` must fit the input {tensor.name!r} of the model, "
                f"{tuple(tensor.shape)}. Received: shape {tuple(array.shape)}"
            )
        is_text = isinstance(array, np.ndarray) and array.dtype.kind in "OSU"
        if is_text and tensor.dtype != "string":
            raise ValueError(
                f"`data` must hold numbers for the input {tensor.name!r} of "
                f"the model. Received: dtype {array.dtype}"
            )


def _fits(expected, shape):
    """Whether a shape is as expected; Keras adds and drops a last axis of 1."""
    if len(expected) != len(shape):
        return abs(len(expected) - len(shape)) == 1 and 1 in (
            expected[-1:] + shape[-1:]
        )
    return all(
        e is None or e == s for e, s in zip(expected, shape, strict=True)
    )


def count_examples(data: Any) -> int | None:
    """Number of examples in `data`, None where only iterating tells."""
    if not _is_arrays(data):
        return None
    return min((len(leaf) for leaf in _leaves(data)), default=0)


class _PreprocessedBatches(keras.utils.PyDataset):
    """Batches of raw data, preprocessed one by one as they are asked for."""

    def __init__(self, task, data, batch_size):
        super().__init__()
        self._task, self._data, self._batch_size = task, data, batch_size

    def __len__(self):
        return -(-count_examples(self._data) // self._batch_size)

    def __getitem__(self, index):
        start = index * self._batch_size
        batch = _map_leaves(
            self._data, lambda leaf: leaf[start : start + self._batch_size]
        )
        x, _, _ = keras.utils.unpack_x_y_sample_weight(
            self._task.preprocess_samples(batch)
        )
        return (keras.tree.map_structure(_without_bools, x),)


def _map_preprocessor(task, dataset):
    """A `tf.data` or Grain dataset, or an iterable of batches, preprocessed."""
    if hasattr(dataset, "element_spec"):  # tf.data passes fields apart.
        return dataset.map(
            lambda *batch: keras.tree.map_structure(
                _without_tensor_bools, task.preprocess_samples(*batch)
            )
        )
    if hasattr(dataset, "map"):
        return dataset.map(
            lambda batch: task.preprocess_samples(
                *keras.utils.unpack_x_y_sample_weight(batch)
            )
        )
    raise ValueError(
        "`data` must be what the task's `fit` takes as `x`: strings, arrays, "
        "nested tuples or dicts of them, or a `tf.data` or Grain dataset. "
        f"Received: data of type {type(dataset).__name__}"
    )


# Keras takes the mean of the first batch over replicas, which TensorFlow has
# not for the bools that masks are.


def _without_bools(leaf):
    leaf = np.asarray(leaf)
    return leaf.astype("int32") if leaf.dtype == bool else leaf


def _without_tensor_bools(leaf):
    import tensorflow as tf

    return tf.cast(leaf, "int32") if leaf.dtype == tf.bool else leaf


# A list is one array of examples, as in the `fit` of KerasHub.


def _is_arrays(data):
    return all(_is_array(leaf) for leaf in _leaves(data))


def _is_array(leaf, or_list=True):
    if isinstance(leaf, list):
        return or_list
    return len(getattr(leaf, "shape", ())) > 0 and hasattr(leaf, "__getitem__")


def _is_dataset(data):
    """Whether `data` comes in batches, of which nothing is known yet."""
    is_one = not isinstance(data, (bytes, dict, list, str, tuple))
    is_iterable = hasattr(data, "__iter__") or hasattr(data, "__getitem__")
    return is_one and is_iterable and not hasattr(data, "shape")


def _leaves(data):
    if isinstance(data, dict):
        data = tuple(data.values())
    if isinstance(data, tuple):
        return [leaf for item in data for leaf in _leaves(item)]
    return [data]


def _map_leaves(data, function):
    if isinstance(data, dict):
        return {k: _map_leaves(v, function) for k, v in data.items()}
    if isinstance(data, tuple):
        return tuple(_map_leaves(item, function) for item in data)
    return function(data)
