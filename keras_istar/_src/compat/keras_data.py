"""Data as `fit` takes it: arrays, datasets, and raw data of KerasHub tasks."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_istar._src.compat import keras_private

_DATASETS = (
    ("grain", "DataLoader"),
    ("grain", "IterDataset"),
    ("grain", "MapDataset"),
    ("tensorflow", "DatasetV2"),
    ("tensorflow", "DistributedDatasetInterface"),
    ("torch", "DataLoader"),
)


def preprocessed(
    model: keras.Model, data: Any, batch_size: int
) -> tuple[Any, int | None]:
    """Returns `data` as `evaluate` takes it, and the batch size to pass.

    Args:
        model: Any model. If it is a KerasHub task with a preprocessor, `data`
            is what its `fit` takes as `x`, raw strings for example.
        data: Arrays or nested tuples and dicts of them, or a dataset.
        batch_size: Examples in a batch, where `data` does not come in batches.

    Returns:
        A tuple `(data, batch_size)`; the second is None for batched data.
    """
    is_batched = not _is_arrays(model, data)
    if _has_preprocessor(model):
        if is_batched:
            return _map_preprocessor(model, data), None
        return _PreprocessedBatches(model, data, batch_size), None
    return data, None if is_batched else batch_size


def run_once(model: keras.Model, data: Any, batch_size: int) -> None:
    """Runs a model on a batch, which makes the variables of its layers."""
    batches, size = preprocessed(model, data, batch_size)
    model.predict(batches, batch_size=size, steps=1, verbose=0)


def check_repeatable(data: Any) -> None:
    """Raises if `data` is None or can be read only once.

    Raises:
        ValueError: If it is.
    """
    if data is None:
        raise _not_what_fit_takes(data)
    if isinstance(data, Iterator):
        raise ValueError(
            "`data` must be iterable more than once, a generator is not. "
            f"Received: data of type {type(data).__name__}"
        )


def check_data(model: keras.Model, data: Any) -> None:
    """Raises unless `data` can be what `fit` of `model` takes as `x`.

    Of a dataset, only the `element_spec` is checked, if it has one.

    Raises:
        ValueError: If it cannot.
    """
    check_repeatable(data)
    if _is_dataset(data):
        if hasattr(data, "element_spec"):
            _check_examples(model, _x_of(data.element_spec))
        return
    leaves = _leaves(model, data)
    only_none = not leaves and bool(keras.tree.flatten(data))
    if only_none or not _is_arrays(model, data):
        raise _not_what_fit_takes(data)
    lengths = [_length(array) for array in leaves]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"`data` must be of one length. Received: lengths={lengths}"
        )
    if all(lengths):  # Callers refuse data without examples.
        if _has_preprocessor(model):
            data = _map_leaves(data, _as_preprocessors_take)
        _check_examples(model, data)
        if _has_preprocessor(model):
            _try_preprocessor(model, data)


def _not_what_fit_takes(data):
    return ValueError(
        "`data` must be what the model's `fit` takes as `x`: arrays, "
        "nested tuples or dicts of them, a dataset, or a list of strings if "
        "the model is a KerasHub task. "
        f"Received: data of type {type(data).__name__}"
    )


def _has_preprocessor(model):
    return getattr(model, "preprocessor", None) is not None


def _try_preprocessor(task, data):
    try:
        task.preprocess_samples(_map_leaves(data, lambda leaf: leaf[:1]))
    except Exception as e:
        raise ValueError(
            "`data` must be what the preprocessor of the KerasHub task takes. "
            f"Received: data of type {type(data).__name__}"
        ) from e


def _x_of(element):
    return element[0] if isinstance(element, tuple) else element


def _check_examples(model, x):
    """Raises unless a batch, or the spec of one, can enter the model."""
    if not _has_preprocessor(model):
        check_inputs(model, x)
    elif are_texts(model.preprocessor):
        for leaf in _leaves(model, x):
            check_texts(leaf)


def count_examples(model: keras.Model, data: Any) -> int | None:
    """Number of examples in `data`; None if only iterating would tell."""
    if not _is_arrays(model, data):
        return None
    return min(map(_length, _leaves(model, data)), default=0)


class _PreprocessedBatches(keras.utils.PyDataset):
    """Batches of raw data, preprocessed one by one as they are asked for."""

    def __init__(self, task, data, batch_size):
        super().__init__()
        self._task, self._batch_size = task, batch_size
        self._data = _map_leaves(data, _as_preprocessors_take)

    def __len__(self):
        examples = count_examples(self._task, self._data) or 0
        return -(-examples // self._batch_size)

    def __getitem__(self, index):
        start = index * self._batch_size
        batch = _map_leaves(
            self._data, lambda leaf: leaf[start : start + self._batch_size]
        )
        x, _, _ = keras.utils.unpack_x_y_sample_weight(
            self._task.preprocess_samples(batch)
        )
        return (x,)


def _map_preprocessor(task, dataset):
    """Maps the preprocessor of a task over a `tf.data` or Grain dataset."""
    if hasattr(dataset, "element_spec"):  # `tf.data` passes fields one by one.
        return dataset.map(lambda *batch: task.preprocess_samples(*batch))
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


def integer_masks(data: Any) -> Any:
    """Converts boolean masks to integers, as `fit` on several replicas needs.

    Under `MirroredStrategy` and `TPUStrategy`, Keras takes the mean of the
    first batch over the replicas. TensorFlow has no mean of booleans, which
    KerasHub's preprocessors return as masks. Models accept integers instead.

    Args:
        data: What a preprocessor returns, arrays or tensors in dicts, lists
            and tuples; or a `tf.data` dataset of these.

    Returns:
        The same, with zeros and ones of type int32 where there were booleans.

    Example:

    >>> masks = {"padding_mask": np.array([[True, False]])}
    >>> keras_istar.integer_masks(masks)["padding_mask"].tolist()
    [[1, 0]]
    """
    if hasattr(data, "element_spec"):  # `tf.data` passes fields one by one.
        return data.map(
            lambda *batch: integer_masks(batch if len(batch) > 1 else batch[0])
        )
    return keras.tree.map_structure(_without_bool, data)


def _without_bool(leaf):
    if not hasattr(leaf, "dtype"):
        return leaf
    is_bool = keras.backend.standardize_dtype(leaf.dtype) == "bool"
    if not is_bool:
        return leaf
    if isinstance(leaf, np.ndarray):
        return leaf.astype("int32")
    if type(leaf).__module__.startswith("tensorflow"):  # On any backend.
        import tensorflow as tf

        return tf.cast(leaf, "int32")
    return ops.cast(leaf, "int32")


def _as_preprocessors_take(leaf):
    """Converts arrays and pandas columns to NumPy, as KerasHub's `fit` does."""
    return ops.convert_to_numpy(leaf) if hasattr(leaf, "__array__") else leaf


def _is_arrays(model, data):
    may_be_list = _has_preprocessor(model)
    return all(
        _is_array(leaf) or (may_be_list and isinstance(leaf, list))
        for leaf in _leaves(model, data)
    )


def _is_array(leaf):
    try:
        return len(leaf.shape) > 0 and _length(leaf) >= 0
    except (AttributeError, TypeError, ValueError):
        return False


def _length(leaf):
    """Examples in an array or a list. Sparse arrays have no `len`."""
    return len(leaf) if isinstance(leaf, list) else int(leaf.shape[0])


def _is_dataset(data):
    """Whether `data` comes in batches, as datasets that Keras knows do."""
    return isinstance(data, keras.utils.PyDataset) or any(
        (kind.__module__.partition(".")[0], kind.__name__) in _DATASETS
        for kind in type(data).__mro__
    )


def _leaves(model, data):
    """The arrays in a structure of data, as `fit` flattens it."""
    if _has_preprocessor(model):
        leaves: list[Any] = []
        _map_leaves(data, leaves.append)
        return leaves
    return [x for x in keras.tree.flatten(data) if x is not None]


def _map_leaves(data, function):
    """Maps data of a KerasHub task, for which a list is one array."""
    if isinstance(data, dict):
        return {k: _map_leaves(v, function) for k, v in data.items()}
    if isinstance(data, tuple):
        return tuple(_map_leaves(item, function) for item in data)
    return function(data)


_NO_NUMBERS = ("string", "complex", "resource", "variant")


def check_inputs(model: keras.Model, x: Any) -> None:
    """Raises unless `x` fits the inputs of `model`.

    Args:
        model: Any model. Nothing is checked if its inputs are not known yet.
        x: Arrays, or `tf.TypeSpec`s of them, or a structure of either.

    Raises:
        ValueError: If inputs are missing or too many, or one has another shape
            or does not hold numbers.
    """
    if not getattr(model, "inputs", None) or not keras.tree.flatten(x):
        return
    for tensor, array in _pairs(model, x):
        shape = getattr(array, "shape", None)
        if shape is None or getattr(shape, "rank", 0) is None:
            continue  # A dataset of unknown shapes.
        if not _fits(tuple(tensor.shape), tuple(shape)):
            raise ValueError(
                f"`data` must fit the input {tensor.name!r} of the model, "
                f"{tuple(tensor.shape)}; a dataset must come in batches. "
                f"Received: shape {tuple(shape)}"
            )
        dtype = getattr(array, "dtype", None)
        if tensor.dtype != "string" and not _are_numbers(dtype):
            raise ValueError(
                f"`data` must hold numbers for the input {tensor.name!r} of "
                f"the model. Received: dtype {getattr(dtype, 'name', dtype)}"
            )


def _pairs(model, x) -> Iterator[tuple[Any, Any]]:
    """Pairs of a symbolic input of the model and its array in `x`."""
    if isinstance(x, dict):
        names = _names(model)
        missing = [name for name in names if name not in x]
        if missing:
            raise ValueError(
                f"`data` must have all inputs of the model, {list(names)}. "
                f"Received: keys={list(x)}"
            )
        tensors = keras.tree.flatten(list(names.values()))
        arrays = keras.tree.flatten([x[name] for name in names])
    else:
        tensors, arrays = model.inputs, keras.tree.flatten(x)
    if len(tensors) != len(arrays):
        raise ValueError(
            "`data` must have one array for each input of the model, and no "
            "labels unless it is a dataset. "
            f"Received: {len(arrays)} arrays for {len(tensors)} inputs"
        )
    return zip(tensors, arrays, strict=True)


def _names(model):
    """Symbolic inputs by the names that a dict of data has for them."""
    if keras_private.is_functional(model) and isinstance(model.input, dict):
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


def are_texts(preprocessor: Any) -> bool:
    """Whether a preprocessor takes texts and nothing else."""
    others = ("audio_converter", "image_converter")
    return getattr(preprocessor, "tokenizer", None) is not None and all(
        getattr(preprocessor, name, None) is None for name in others
    )


def check_texts(texts: Any) -> None:
    """Raises unless a list, an array or the spec of one holds texts.

    Raises:
        ValueError: If one of the examples is not a text.
    """
    if isinstance(texts, list):
        for text in texts:
            if not _is_text(text):
                raise _no_texts(f"{text!r:.200} in data")
        return
    shape = texts.shape
    rank = shape.rank if hasattr(shape, "rank") else len(shape)
    if rank != 1 or not _holds_texts(texts):
        raise _no_texts(f"shape {shape} and dtype {_dtype_name(texts)}")


def _no_texts(received):
    return ValueError(
        "`data` must hold one text an example, for the tokenizer of the "
        f"KerasHub task. Received: {received}"
    )


def _is_text(value):
    return isinstance(value, (bytes, str))


def _holds_texts(array):
    if getattr(array.dtype, "kind", "") == "O":
        return all(map(_is_text, array))
    return _dtype_name(array).startswith(("bytes", "str"))


def _dtype_name(array):
    return str(getattr(array.dtype, "name", array.dtype))
