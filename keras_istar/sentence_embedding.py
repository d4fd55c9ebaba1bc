"""Which tensor of a model is its sentence embedding."""

from typing import Any

import keras

from keras_istar import functional_graph
from keras_istar.functional_graph import Call
from keras_istar.hidden_states import check_functional
from keras_istar.moments import Tensor

_POOLER = "pooled_dense"  # KerasHub's name, in a backbone that has no head.


def find_embedding(model: keras.Model, layer: Any = None) -> Tensor:
    """The tensor `(batch, dim)` that the graph of a model classifies.

    It is what the last `Dense` layer is given, before dropout: the pooler's
    output in KerasHub's classifiers, after its dense layer and activation.

    Args:
        model: KerasHub task or backbone, or any Functional model.
        layer: Name of the layer that returns the embedding instead.

    Raises:
        ValueError: If `model` is not Functional or has no such tensor.
    """
    check_functional(model)
    calls = functional_graph.layer_calls(model)
    if layer is not None:
        return _named_output(calls, layer)
    computed = {id(x) for x in functional_graph.computed_tensors(model)}
    for call in reversed(calls):
        if isinstance(call.layer, keras.layers.Dense):
            if call.layer.name == _POOLER:
                return call.output
            embedding = _before_dropout(calls, call.inputs[0])
            if _is_embedding(embedding) and id(embedding) in computed:
                return embedding
    raise ValueError(
        "`model` must have a `Dense` layer that is given a sentence embedding "
        "`(batch, dim)`, or `layers` must name the layer that returns it. "
        f"Received: model={model.name!r}"
    )


def _named_output(calls: list[Call], name: Any) -> Tensor:
    outputs = [call.output for call in calls if call.layer.name == name]
    if len(outputs) != 1 or not _is_embedding(outputs[0]):
        known = [c.layer.name for c in calls if _is_embedding(c.output)]
        raise ValueError(
            "`layers` must be None or the name of a layer that the model "
            "itself calls, once, to make a sentence embedding `(batch, dim)`. "
            f"Layers with such outputs are: {known}. "
            f"Received: layers={name!r:.200}"
        )
    return outputs[0]


def _before_dropout(calls: list[Call], tensor: Tensor) -> Tensor:
    producers = {id(call.output): call for call in calls}
    call = producers.get(id(tensor))
    if call is not None and isinstance(call.layer, keras.layers.Dropout):
        return _before_dropout(calls, call.inputs[0])
    return tensor


def _is_embedding(tensor: Tensor) -> bool:
    is_float = "float" in keras.backend.standardize_dtype(tensor.dtype)
    return is_float and len(tensor.shape) == 2 and (tensor.shape[-1] or 0) > 1
