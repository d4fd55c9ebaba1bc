"""Everything that relies on private Keras API: the graph of Functional models.

A Functional model runs the nodes of `_nodes_by_depth`, deepest first, and
keeps every tensor that they produce until it returns. One more node below the
outputs therefore sees any hidden state, and changes nothing for the others:
the model's own nodes, layers, config and outputs stay as they are.
"""

import threading
import weakref
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import keras

try:
    from keras.src.backend import get_keras_mask
    from keras.src.models.functional import Functional
except ImportError as e:
    raise ImportError(
        f"keras_istar relies on private names, of which Keras "
        f"{keras.__version__} has moved one: {e}"
    ) from e

_BELOW_OUTPUTS = -1  # Outputs are at depth 0.

# What makes up the graph of a Functional model.
_GRAPH = tuple(
    "_inputs _outputs _inputs_struct _outputs_struct _nodes _nodes_by_depth "
    "_operations _operations_by_depth".split()
)

graph_lock = threading.RLock()  # To be held while the graph of a model changes.

_suspended_modes: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_original_graphs: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class Call(NamedTuple):
    """One call of a layer in the graph of a model.

    Attributes:
        layer: The layer called.
        inputs: Its symbolic inputs.
        output: Its first symbolic output.
    """

    layer: keras.layers.Layer
    inputs: list[Any]
    output: Any


def is_functional(model: Any) -> bool:
    """Whether `model` is a Functional model, as KerasHub's are."""
    return isinstance(model, Functional)


def nested_models(model: keras.Model) -> Iterator[keras.Model]:
    """`model`, and the Functional models in its graph, outermost first."""
    yield model
    for operation in model._operations:
        if is_functional(operation):
            yield from nested_models(operation)


def computed_tensors(model: keras.Model) -> Iterator[Any]:
    """Symbolic tensors that the graph of `model` computes, in order."""
    for node in _nodes_in_order(model):
        if not node.is_input:
            yield from node.outputs


def layer_calls(model: keras.Model) -> list[Call]:
    """Calls of layers in the graph of `model`, in the order they run."""
    return [
        Call(node.operation, node.input_tensors, node.outputs[0])
        for node in _nodes_in_order(model)
        if isinstance(node.operation, keras.layers.Layer) and not node.is_input
    ]


def is_composite(layer: keras.layers.Layer) -> bool:
    """Whether `layer` is made of other layers."""
    return bool(layer._layers)


def is_in_use(layer: keras.layers.Layer) -> bool:
    """Whether a Functional model calls `layer`."""
    return bool(layer._inbound_nodes)


def attach_layer(
    model: keras.Model, name: str, layer: keras.layers.Layer, *args, **kwargs
) -> None:
    """Makes `model` call `layer` on tensors of its graph whenever it runs.

    Args:
        model: Functional model, changed in place.
        name: Attribute of `model` that will hold the layer, so that Keras
            finds its weights, losses and metrics.
        layer: Layer whose output nobody needs.
        *args, **kwargs: Symbolic tensors from the graph of `model`.
    """
    layer(*args, **kwargs)
    node = layer._inbound_nodes[-1]
    setattr(model, name, layer)
    _set_below_outputs(model, [*_below_outputs(model), node])


def detach_layer(model: keras.Model, name: str) -> None:
    """Undoes `attach_layer(model, name, ...)`."""
    layer = getattr(model, name)
    node = layer._inbound_nodes[-1]
    _set_below_outputs(
        model, [other for other in _below_outputs(model) if other is not node]
    )
    for tensor in node.input_tensors:
        producer = tensor._keras_history.operation
        if node in producer._outbound_nodes:
            producer._outbound_nodes.remove(node)
    layer._inbound_nodes.remove(node)
    model._tracker.untrack(layer)
    delattr(model, name)


def attached_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """The layers that `attach_layer` gave to `model`, by name."""
    layers = {id(node.operation) for node in _below_outputs(model)}
    # The PyTorch backend keeps layers apart from other attributes.
    attributes = {**vars(model), **vars(model).get("_modules", {})}
    return {name: x for name, x in attributes.items() if id(x) in layers}


def insert_layer(
    model: keras.Model, name: str, layer: keras.layers.Layer, tensor: Any
) -> None:
    """Makes `model` pass `tensor` of its graph through `layer`.

    What the model computes from `tensor` is computed from the layer's output
    from now on; layers that do not depend on it are not touched.

    Args:
        model: Functional model without attached_layers, changed in place.
        name: Attribute of `model` that will hold the layer.
        layer: Layer from `tensor` to one of the same shape.
        tensor: Symbolic tensor that the model computes.
    """
    original = {name: vars(model)[name] for name in _GRAPH}
    replaced = {id(x): x for x in model._inputs}
    for node in _nodes_in_order(model):
        outputs = node.outputs
        if any(replaced[id(x)] is not x for x in node.input_tensors):
            args, kwargs = node.arguments.fill_in(replaced)
            outputs = keras.tree.flatten(node.operation(*args, **kwargs))
        for before, after in zip(node.outputs, outputs, strict=True):
            replaced[id(before)] = layer(tensor) if before is tensor else after
    graph = keras.Function(
        model._inputs_struct,
        keras.tree.map_structure(
            lambda x: replaced[id(x)], model._outputs_struct
        ),
    )
    setattr(model, name, layer)
    vars(model).update({name: vars(graph)[name] for name in _GRAPH})
    _original_graphs[model] = (name, original)


def inserted_layer(model: keras.Model) -> str | None:
    """The attribute with the layer that `insert_layer` gave to `model`."""
    return _original_graphs.get(model, (None, None))[0]


def remove_inserted_layer(model: keras.Model) -> None:
    """Undoes `insert_layer`."""
    name, original = _original_graphs.pop(model)
    layer = getattr(model, name)
    layer._inbound_nodes.clear()
    model._tracker.untrack(layer)
    vars(model).update(original)
    delattr(model, name)


def suspend_recomputation(model: keras.Model) -> None:
    """Lets `keras.RematScope` recompute layers of `model`, but not all of it.

    A loss that is added inside of a recomputed function has no gradient.
    """
    for nested in nested_models(model):
        if nested._remat_mode is not None:
            _suspended_modes[nested] = nested._remat_mode
            nested._remat_mode = None


def resume_recomputation(model: keras.Model) -> None:
    """Undoes `suspend_recomputation`."""
    for nested in nested_models(model):
        if nested in _suspended_modes:
            nested._remat_mode = _suspended_modes.pop(nested)


def replace_losses(layer: keras.layers.Layer, make_list: type) -> None:
    """Makes all layers of the model that calls `layer` use other lists.

    The layer is being called; the model may be the layer itself.
    """
    model = layer._get_call_context().entry_layer
    for part in model._flatten_layers():
        if not isinstance(part._losses, make_list):
            losses = make_list()
            losses.extend(part._losses)
            part._losses = losses


def skip_build(model: keras.Model) -> None:
    """Spares a model that is built the build from its first batch.

    Under a strategy, Keras 3.15 builds from the mean of that batch over the
    replicas, even if there is nothing to build. Replicas whose shares of the
    batch differ in size have no mean.
    """
    model._maybe_symbolic_build = lambda *args, **kwargs: None


def forget_traces(model: keras.Model) -> None:
    """Makes `fit`, `evaluate` and `predict` trace the model anew."""
    model.train_function = None
    model.test_function = None
    model.predict_function = None


def keras_mask(tensor: Any) -> Any:
    """The mask that Keras layers have put on `tensor`, or None."""
    return get_keras_mask(tensor)


def find_layers(model: keras.Model, kind: type) -> list[keras.layers.Layer]:
    """All layers of class `kind` in `model`, at any depth."""
    return [x for x in model._flatten_layers() if isinstance(x, kind)]


def _nodes_in_order(model):
    for depth in sorted(model._nodes_by_depth, reverse=True):
        if depth != _BELOW_OUTPUTS:
            yield from model._nodes_by_depth[depth]


def _below_outputs(model):
    return model._nodes_by_depth.get(_BELOW_OUTPUTS, [])


def _set_below_outputs(model, nodes):
    # Another thread may be running the nodes there have been: it keeps those.
    graph = {**model._nodes_by_depth, _BELOW_OUTPUTS: nodes}
    if not nodes:
        del graph[_BELOW_OUTPUTS]
    vars(model)["_nodes_by_depth"] = graph
