"""Finds the sentence embedding `(batch, dim)` that a model classifies."""

from typing import Any

import keras

from keras_istar._src.compat import keras_private
from keras_istar._src.types import Tensor

_POOLER = "pooled_dense"  # KerasHub's name, in a backbone that has no head.


def find_embedding(model: keras.Model, layer: Any = None) -> Tensor:
    """Finds the tensor `(batch, dim)` that a model classifies.

    It is the input of the last `Dense` layer, before dropout. In KerasHub's
    classifiers it is the output of the pooler, after its activation.

    Args:
        model: Model with a graph.
        layer: Name of the layer that returns the embedding; None to find it.

    Raises:
        ValueError: If the model has no such tensor.
    """
    calls = [
        node
        for node in keras_private.nodes(model)
        if isinstance(node.operation, keras.layers.Layer)
    ]
    if layer is not None:
        return _named_output(calls, layer)
    computed = {id(x) for x in keras_private.computed_tensors(model)}
    for call in reversed(calls):
        if isinstance(call.operation, keras.layers.Dense):
            if call.operation.name == _POOLER:
                return call.outputs[0]
            embedding = _before_dropout(calls, call.input_tensors[0])
            if is_embedding(embedding) and id(embedding) in computed:
                return embedding
    raise ValueError(
        "`model` must have a `Dense` layer that is given a sentence embedding "
        "`(batch, dim)`, or `layers` must name the layer that returns it. "
        f"Received: model={model.name!r}"
    )


def _named_output(calls: list[Any], name: Any) -> Tensor:
    outputs = [call.outputs[0] for call in calls if call.operation.name == name]
    if len(outputs) != 1 or not is_embedding(outputs[0]):
        known = [c.operation.name for c in calls if is_embedding(c.outputs[0])]
        raise ValueError(
            "`layers` must be None or the name of a layer that the model "
            "itself calls, once, to make a sentence embedding `(batch, dim)`. "
            f"Layers with such outputs are: {known}. "
            f"Received: layers={name!r:.200}"
        )
    return outputs[0]


def _before_dropout(calls: list[Any], tensor: Tensor) -> Tensor:
    producers = {id(call.outputs[0]): call for call in calls}
    call = producers.get(id(tensor))
    if call is not None and isinstance(call.operation, keras.layers.Dropout):
        return _before_dropout(calls, call.input_tensors[0])
    return tensor


def is_embedding(tensor: Tensor) -> bool:
    """Whether a tensor holds one embedding of each example."""
    is_float = "float" in keras.backend.standardize_dtype(tensor.dtype)
    return is_float and len(tensor.shape) == 2 and (tensor.shape[-1] or 0) > 1
