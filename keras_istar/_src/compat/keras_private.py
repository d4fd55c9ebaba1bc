"""All use of private Keras API, above all the graph of Functional models.

A Functional model runs the nodes of `_nodes_by_depth`, deepest first, and
keeps every tensor that they produce until it returns. One more node below the
outputs therefore sees any hidden state, and changes nothing for the others:
the model's own nodes, layers, config and outputs stay as they are.

Hidden states inside of a composite layer or a nested model are not among those
tensors. A copy of the layer's node runs in its place and returns the states
beside the outputs, see `keras_calls`; the node itself stays as it is.
"""

import contextlib
import copy
import functools
import inspect
import threading
import warnings
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras

from keras_istar._src.compat.keras_calls import CallTree
from keras_istar._src.compat.keras_calls import InnerCall
from keras_istar._src.compat.keras_calls import RecordedOutputs
from keras_istar._src.compat.keras_calls import recorded
from keras_istar._src.compat.keras_calls import replace_methods
from keras_istar._src.compat.keras_calls import tap
from keras_istar._src.types import Tensor

try:
    from keras.src.backend import compute_output_spec
    from keras.src.backend import get_keras_mask
    from keras.src.backend import get_stateless_scope
    from keras.src.backend import in_stateless_scope
    from keras.src.backend.common.tensor_attributes import get_tensor_attr
    from keras.src.backend.common.tensor_attributes import set_tensor_attr
    from keras.src.models.functional import Functional
except ImportError as e:
    raise ImportError(
        f"keras_istar relies on private names, of which Keras "
        f"{keras.__version__} has moved one: {e}"
    ) from e

_BELOW_OUTPUTS = -1  # Outputs are at depth 0.
_KEPT_MASK = "keras_istar_mask"  # Attribute of tensors.

# Attributes that make up the graph of a Functional model.
_GRAPH = tuple(
    "_inputs _outputs _inputs_struct _outputs_struct _nodes _nodes_by_depth "
    "_operations _operations_by_depth".split()
)

graph_lock = threading.RLock()  # To be held while the graph of a model changes.


class InnerOutput(NamedTuple):
    """An output of a layer that is called inside of another layer.

    Attributes:
        node: The node of the outer layer, in the graph of a model.
        layer: The inner layer.
        call_index: Index among the calls of the layer within the node.
        num_calls: Number of those calls.
        position: Index among the flattened outputs of the call.
        tensor: Symbolic tensor that stands for the output.
    """

    node: Any
    layer: keras.layers.Layer
    call_index: int
    num_calls: int
    position: int
    tensor: keras.KerasTensor


class _Attachment(NamedTuple):
    layer: keras.layers.Layer
    node: Any
    undo: contextlib.ExitStack


# Graph -> name -> what is attached to it.
_attachments: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
# Graph -> the `InnerOutput`s that its nodes return.
_shown_outputs: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
# Layer -> its mode, and how often it has been suspended.
_suspended_modes: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
# Layer -> what `keep_masks` has replaced.
_mask_keepers: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
# Stateless scope -> the layers that `is_called_again` has seen in it.
_called_layers: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
# Graph -> what undoes `insert_layer`.
_insertions: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def is_functional(model: Any) -> bool:
    """Whether `model` has a graph: Functional, or Sequential and built."""
    return _graph_of(model) is not None


def _graph_of(model):
    """The Functional model that `model` is, or runs; None if there is none."""
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if isinstance(model, Functional) else None


def nested_models(model: keras.Model) -> Iterator[keras.Model]:
    """`model`, and the models in its graph that have one, outermost first."""
    seen = set()

    def models(model):
        if id(model) not in seen:
            seen.add(id(model))
            yield model
            for operation in _graph_of(model)._operations:
                if is_functional(operation):
                    yield from models(operation)

    yield from models(model)


def computed_tensors(model: keras.Model) -> Iterator[Any]:
    """Symbolic tensors that the graph of `model` computes, in order."""
    for node in nodes(model):
        yield from node.outputs


def used_tensors(model: keras.Model) -> set[int]:
    """`id` of the symbolic tensors that nodes or outputs of `model` use."""
    used = {id(x) for x in _graph_of(model)._outputs}
    for node in nodes(model):
        used.update(id(x) for x in node.input_tensors)
    return used


def nodes(model: keras.Model) -> list[Any]:
    """Nodes of the graph of `model` without ours, in running order."""
    by_depth = _graph_of(model)._nodes_by_depth
    return [
        _own_node(node)
        for depth in sorted(by_depth, reverse=True)
        if depth != _BELOW_OUTPUTS
        for node in by_depth[depth]
        if not node.is_input
    ]


def layers_outside(model: keras.Model) -> list[str]:
    """Names of layers that were called on `model`'s tensors, outside of it."""
    graph = _graph_of(model)
    inside = {id(x) for x in graph._operations}
    computed = {id(x) for x in computed_tensors(model)}
    calls = [
        call
        for node in nodes(model)
        for call in node.operation._outbound_nodes
        if not computed.isdisjoint(id(x) for x in call.input_tensors)
    ]
    outside = [
        call.operation.name
        for call in calls
        if id(call.operation) not in inside
        and not isinstance(call.operation, _Below)
        and not _is_end(call)
    ]
    return list(dict.fromkeys(outside))


def _is_end(node):
    """Whether a node is an operation without weights whose result is unused.

    Keras leaves a cast where a layer is given another dtype than its own, and
    users leave others.
    """
    operation = node.operation
    is_layer = isinstance(operation, keras.layers.Layer)
    return not is_layer and not operation._outbound_nodes


def inputs_of(model: keras.Model) -> list[Any]:
    """Symbolic inputs of `model`, flattened."""
    return list(_graph_of(model)._inputs)


def inputs_like(model: keras.Model, flat: Sequence[Any]) -> Any:
    """Packs flattened inputs into the structure that `model` is given.

    A single input is returned without a list around it.
    """
    struct = keras.tree.pack_sequence_as(
        _graph_of(model)._inputs_struct, list(flat)
    )
    is_single = isinstance(struct, (list, tuple)) and len(struct) == 1
    return struct[0] if is_single else struct


def arguments_of(node: Any) -> dict[int, Any]:
    """Maps the `id` of each input of a nested model to what its node is given.

    Args:
        node: Node of a nested model with a graph.
    """
    graph = _graph_of(node.operation)
    given = [*node.arguments.args, *node.arguments.kwargs.values()][0]
    if isinstance(given, dict) and not isinstance(graph._inputs_struct, dict):
        given = [given.get(x.name) for x in graph._inputs]
    flat = keras.tree.flatten(given)
    return {id(x): y for x, y in zip(graph._inputs, flat, strict=False)}


def named_arguments_of(node: Any) -> dict[str, Any]:
    """What a node gives its layer, by the names of `call`."""
    args, kwargs = node.arguments.args, node.arguments.kwargs
    with contextlib.suppress(TypeError, ValueError):
        call = inspect.signature(node.operation.call)
        return {**kwargs, **call.bind(*args, **kwargs).arguments}
    return dict(kwargs)


def input_names(model: keras.Model) -> list[str]:
    """Names of `inputs_of(model)`: keys of a dict, or those of the tensors."""
    graph = _graph_of(model)
    struct = graph._inputs_struct
    if isinstance(struct, dict):
        keys = {id(x): key for key, x in struct.items()}
        return [keys.get(id(x), x.name) for x in graph._inputs]
    return [x.name for x in graph._inputs]


def output_keys(node: Any) -> list[str]:
    """Keys of the outputs of a node's layer: those of a dict, or `"0"`, ..."""
    layer = node.operation
    struct = getattr(_graph_of(layer), "_outputs_struct", None)
    if struct is None:
        with contextlib.suppress(Exception):  # Not all layers can tell.
            struct = layer.compute_output_spec(
                *node.arguments.args, **node.arguments.kwargs
            )
    with contextlib.suppress(Exception):
        paths = [path for path, _ in _flat_with_path(struct)]
        if len(paths) == len(node.outputs):
            return [".".join(str(key) for key in path) for path in paths]
    return [str(i) for i in range(len(node.outputs))]


def _flat_with_path(struct, path=()):
    if isinstance(struct, dict):
        for key in sorted(struct):
            yield from _flat_with_path(struct[key], (*path, key))
    elif isinstance(struct, (list, tuple)):
        for i, value in enumerate(struct):
            yield from _flat_with_path(value, (*path, i))
    else:
        yield path, struct


def shapes_at(
    model: keras.Model,
    length_of: Callable[[str], int],
    batch: int | None = None,
) -> dict[int, keras.KerasTensor]:
    """Shapes of tensors of the graph of `model` for inputs of other lengths.

    Args:
        model: Model with a graph.
        length_of: Function from the name of an input to the size of those of
            its axes that are unknown.
        batch: Number of examples, if all shapes must be known. Layers are then
            called, not asked for the shapes of their outputs: some run only
            with known shapes, and some report wrong ones.

    Returns:
        A dict from the `id` of a tensor to a symbolic tensor of the new shape.
        Tensors that cannot be computed this way are left out.
    """
    shapes = {}
    for x in inputs_of(model):
        shape = [
            (length_of(x.name) if axis else batch) if size is None else size
            for axis, size in enumerate(x.shape)
        ]
        shapes[id(x)] = keras.KerasTensor(shape, x.dtype)
    for node in nodes(model):
        if all(id(x) in shapes for x in node.input_tensors):
            args, kwargs = node.arguments.fill_in(shapes)
            with contextlib.suppress(Exception):
                if batch is None:
                    outputs = node.operation.compute_output_spec(
                        *args, **kwargs
                    )
                else:
                    with _not_called(node.operation):
                        outputs = compute_output_spec(
                            node.operation, *args, **kwargs
                        )
                outputs = keras.tree.flatten(outputs)
                for x, output in zip(node.outputs, outputs, strict=True):
                    shapes[id(x)] = output
    return shapes


def spec_of(function: Callable[..., Any], *args: Any) -> Any:
    """Symbolic tensors that `function` returns for symbolic tensors."""
    return compute_output_spec(function, *args)


def _spec_of_call(function, node, shapes=None):
    """Symbolic tensors that `function` returns for the arguments of a node.

    Args:
        function: Any function.
        node: Node of the graph of a model.
        shapes: Result of `shapes_at`, if all shapes must be known.
    """

    def dense(x):
        if not isinstance(x, keras.KerasTensor):
            return x
        shape = x.shape if shapes is None else shapes[id(x)].shape
        return keras.KerasTensor(shape, x.dtype, name=x.name)

    # Keras marks the product of a symbolic tensor and a TensorFlow one as
    # sparse. Remove when `keras.ops.multiply(keras.Input((2,)), tf.ones(2))` is
    # dense.
    args, kwargs = keras.tree.map_structure(
        dense, (node.arguments.args, node.arguments.kwargs)
    )
    with _not_called(node.operation):
        return compute_output_spec(function, *args, **kwargs)


@contextlib.contextmanager
def _not_called(operation):
    """Lets layers forget a call in this scope, and keep their losses."""
    is_layer = isinstance(operation, keras.layers.Layer)
    parts = operation._flatten_layers() if is_layer else []
    before = [
        (part, part._called, list(part._losses), set(part._loss_ids))
        for part in parts
    ]
    try:
        yield
    finally:
        for part, called, losses, ids in before:
            part._called = called
            part._losses[:] = losses
            part._loss_ids.clear()
            part._loss_ids.update(ids)


def is_composite(layer: keras.layers.Layer) -> bool:
    """Whether `layer` is made of other layers."""
    return bool(layer._layers)


def parts_of(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers that `layer` is made of, at any depth."""
    return layer._flatten_layers(include_self=False)


def lists_of(layer: keras.layers.Layer) -> list[list[Any]]:
    """Items of the lists, tuples and dicts that are attributes of `layer`."""
    # Not the lists of Keras and its backends, which hold all sublayers.
    of_any_layer = vars(keras.layers.Layer())
    return [
        list(x.values()) if isinstance(x, dict) else list(x)
        for name, x in vars(layer).items()
        if isinstance(x, (list, tuple, dict))
        and name not in of_any_layer
        and not name.startswith("_self_")
    ]


def is_in_use(layer: keras.layers.Layer) -> bool:
    """Whether a Functional model calls `layer`."""
    return bool(layer._inbound_nodes) or any(
        attachment.layer is layer
        for attachments in _attachments.values()
        for attachment in attachments.values()
    )


def inner_calls(
    node: Any, shapes: dict[int, keras.KerasTensor] | None = None
) -> tuple[list[InnerCall], list, tuple]:
    """The calls of layers inside of a node's layer.

    Args:
        node: Node of a composite layer.
        shapes: Result of `shapes_at`, for layers that run only if they know the
            shapes of their inputs.

    Returns:
        A tuple: the calls, in the order in which they begin; the sources of the
        layer's inputs; the source of its first output.
    """
    layer = node.operation
    parts = parts_of(layer)
    found: list[Any] = []

    def run(*args, **kwargs):
        tree = CallTree(is_composite)
        given = [
            tree.source_of(x)
            for x in keras.tree.flatten((args, kwargs))
            if hasattr(x, "shape")
        ]
        with recorded(tree):
            outputs = keras.tree.flatten(layer(*args, **kwargs))
        found[:] = tree.calls, given, tree.source_of(outputs[0])
        return ()

    with contextlib.ExitStack() as undo:
        for part in [layer, *parts]:
            undo.callback(_suspend(part))
        for part in parts:
            undo.callback(tap(part, _is_recomputed))
        _spec_of_call(run, node, shapes)
    calls, given, returned = found
    return calls, given, returned


def inner_outputs(
    node: Any, layers: Sequence[keras.layers.Layer]
) -> dict[int, list[list[tuple[keras.KerasTensor, bool]]]]:
    """Outputs of `layers` that are called inside of a node's layer.

    Args:
        node: Node of a composite layer or nested model.
        layers: Layers inside of it.

    Returns:
        A dict from the `id` of a layer to a list of its calls. Each call is a
        list of its outputs: a symbolic tensor, and whether Keras has put a mask
        on it.

    Raises:
        Exception: Of any kind, if the outputs cannot leave the node's layer.
    """
    has_mask = {}

    def run(*args, **kwargs):
        recorder = RecordedOutputs()
        with recorded(recorder):
            node.operation(*args, **kwargs)
        calls = {str(id(x)): recorder.calls_of(x) for x in layers}
        for key, outputs in calls.items():
            has_mask[key] = [
                [get_keras_mask(x) is not None for x in flat]
                for flat in outputs
            ]
        return calls

    with contextlib.ExitStack() as undo:
        for part in _around(node.operation, layers):
            undo.callback(_suspend(part))
        for layer in layers:
            undo.callback(tap(layer, _is_recomputed))
        specs = _spec_of_call(run, node)
    return {
        int(key): [
            list(zip(flat, masked, strict=True))
            for flat, masked in zip(calls, has_mask[key], strict=True)
        ]
        for key, calls in specs.items()
    }


def _around(layer, inner):
    """`layer` and the parts of it that contain one of the `inner` layers."""
    wanted = {id(x) for x in inner}
    return [
        part
        for part in layer._flatten_layers()
        if any(id(x) in wanted for x in parts_of(part))
        or (part is layer and id(part) not in wanted)
    ]


class _Shown:
    """Stands in for the layer of a node and returns inner outputs as well.

    Keras clones a model from the layers of its nodes, so this claims to be one.
    """

    def __init__(self, node, inner):
        self.node = node
        self.inner = inner

    def __call__(self, *args, **kwargs):
        layer = self.node.operation
        leaves = keras.tree.flatten((args, kwargs))
        if any(isinstance(x, keras.KerasTensor) for x in leaves):
            return layer(*args, **kwargs)
        recorder = RecordedOutputs()
        with recorded(recorder):
            outputs = keras.tree.flatten(layer(*args, **kwargs))
        missing = len(self.node.outputs) - len(outputs)
        outputs = outputs[: len(self.node.outputs)] + [None] * missing
        return outputs + [_found(recorder, x) for x in self.inner]

    def __getattr__(self, name):
        return getattr(self.node.operation, name)

    @property  # type: ignore[misc]
    def __class__(self):
        return type(self.node.operation)


def _found(recorder, inner):
    """The tensor; None if the layer was called another number of times."""
    calls = recorder.calls_of(inner.layer)
    if len(calls) != inner.num_calls:
        return None
    return calls[inner.call_index][inner.position]


def _own_node(node):
    return node.operation.node if type(node.operation) is _Shown else node


def _show(model, inner):
    """Makes nodes of `model` return inner outputs; returns what undoes it."""
    graph = _graph_of(model)
    before = _shown_outputs.get(graph, [])
    _show_these(graph, [*before, *inner])

    def undo():
        shown = _shown_outputs[graph]
        _show_these(graph, [x for x in shown if not any(x is y for y in inner)])

    return undo


def _show_these(graph, inner):
    _set_nodes(graph, _showing(graph, inner))
    _shown_outputs[graph] = inner


def _showing(graph, inner):
    """The nodes of a graph by depth, some of which return inner outputs."""

    def shown(node):
        node = _own_node(node)
        own = [x for x in inner if x.node is node]
        if not own:
            return node
        copied = copy.copy(node)
        copied.operation = _Shown(node, own)
        copied.outputs = [*node.outputs, *[x.tensor for x in own]]
        return copied

    return {
        depth: [shown(node) for node in row]
        for depth, row in graph._nodes_by_depth.items()
    }


class _Below(keras.Operation):
    """The operation of a node below the outputs.

    Args:
        function: Function of the tensors and of whether the model is training.
        name: Name of the operation.
    """

    def __init__(self, function=None, name=None):
        with keras.RematScope(mode=None):
            super().__init__(name=name)
        self.function = function
        self._call_context_args = {"training"}

    def call(self, *tensors, training=None):
        if self.function is not None:
            self.function(tensors, training)
        return ()

    def compute_output_spec(self, *tensors, training=None):
        return ()

    def get_config(self):
        return {}  # A clone of the model has a node that does nothing.


def has_own_call(model: keras.Model) -> bool:
    """Whether `model` has a `call` that is not of Keras or KerasHub."""
    package = type(model).call.__module__.partition(".")[0]
    return package not in ("keras", "keras_hub")


def run_graph(model: keras.Model) -> list[Any] | None:
    """Calls `model` in training, symbolically.

    Returns:
        For each time that this runs the graph, what it says of `training`; None
        if the model cannot be called in this way.
    """
    seen: list[Any] = []
    with contextlib.ExitStack() as undo:
        _call_below(
            undo,
            model,
            lambda tensors, training: seen.append(training),
            _graph_of(model)._outputs[:1],
            model,
        )
        return seen if _can_run(model, training=True) else None


def _can_run(model, training):
    """Calls `model` symbolically, if that can be done."""
    try:
        with _not_called(model):
            compute_output_spec(
                lambda inputs: model(inputs, training=training),
                _graph_of(model)._inputs_struct,
            )
    except Exception:  # A user's `call` may raise anything.
        return False
    return True


def have_masks(
    model: keras.Model,
    tensors: Sequence[keras.KerasTensor | InnerOutput],
    outer: keras.Model,
) -> list[bool] | None:
    """Whether tensors have Keras masks when `outer` runs, in inference.

    The graph alone does not tell: layers that are called symbolically may have
    masks that they lose when they are run, and the other way around.

    Args:
        model: Model with a graph.
        tensors: Tensors of the graph of `model`.
        outer: The model to run: `model`, or one around it.

    Returns:
        For each tensor, whether it has a mask in every call of `model`; None if
        `outer` cannot be run symbolically.
    """
    seen: list[list[bool]] = []

    def look(values, training):
        seen.append([kept_mask(x) is not None for x in values])

    with contextlib.ExitStack() as undo:
        _call_below(undo, model, look, tensors, outer, masked=tensors)
        # Keras says what it thinks of masks when the user runs the model.
        undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        can_run = _can_run(outer, training=False)
    return [*map(all, zip(*seen, strict=True))] if can_run and seen else None


def attach_layer(
    model: keras.Model,
    name: str,
    layer: keras.layers.Layer,
    function: Callable[[Sequence[Tensor | None], bool | None], None],
    tensors: Sequence[keras.KerasTensor | InnerOutput],
    outer: keras.Model,
    masked: Sequence[keras.KerasTensor | InnerOutput] = (),
) -> None:
    """Makes `model` call `function` on tensors whenever it runs.

    `keras.RematScope` may still recompute layers of the model, but not the
    whole model: a loss that is added inside of a recomputed function has no
    gradient.

    Args:
        model: Model with a graph, changed in place. It stays as it was if this
            fails.
        name: Attribute that will hold the layer, so that Keras finds its
            weights, losses and metrics.
        layer: Layer that `function` calls.
        function: Function of the tensors, with None for those that do not exist
            in this pass, and of whether the model is training. Its result is
            not used.
        tensors: Tensors of the graph of `model`.
        outer: The model that is trained or run: `model`, or one around it.
        masked: Those of the tensors of which `function` takes the `kept_mask`.
    """
    graph = _graph_of(model)
    with contextlib.ExitStack() as undo:
        undo.callback(_hold(model, name, layer))
        node = _call_below(undo, model, function, tensors, outer, masked)
        attachment = _Attachment(layer, node, undo.pop_all())
        _attachments.setdefault(graph, {})[name] = attachment


def _call_below(undo, model, function, tensors, outer, masked=()):
    """Makes `model` call a function, as `attach_layer` says, until `undo`."""
    graph = _graph_of(model)
    inner = [x for x in tensors if isinstance(x, InnerOutput)]
    for around in nested_models(outer):
        if any(nested is model for nested in nested_models(around)):
            undo.callback(_suspend(around))
    for node in {id(x.node): x.node for x in inner}.values():
        layers = [x.layer for x in inner if x.node is node]
        for part in _around(node.operation, layers):
            undo.callback(_suspend(part))
    for x in inner:
        undo.callback(tap(x.layer, _is_recomputed))
    for x in masked:
        undo.callback(keep_masks(x))
    undo.callback(_show(model, inner))
    below = _Below(function)
    below(*[x.tensor if isinstance(x, InnerOutput) else x for x in tensors])
    (node,) = below._inbound_nodes
    undo.callback(_forget_node, node)
    undo.callback(_remove_below, graph, node)
    _set_below_outputs(graph, [*_below_outputs(graph), node])
    return node


def detach_layer(model: keras.Model, name: str) -> None:
    """Undoes `attach_layer(model, name, ...)`."""
    _attachments[_graph_of(model)].pop(name).undo.close()


def attached_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """The layers that `attach_layer` gave to `model`, by name."""
    attachments = _attachments.get(_graph_of(model), {})
    return {name: x.layer for name, x in attachments.items()}


def is_attached(model: keras.Model) -> bool:
    """Whether the graph of `model` itself has a layer of ours."""
    return bool(attached_layers(model)) or inserted_layer(model) is not None


def _hosts_of(model):
    """Layers whose attributes Keras searches for layers of `model`.

    In a Sequential model it searches only the layers, except when it saves.
    """
    if isinstance(model, keras.Sequential):
        first = model._functional._inputs[0]._keras_history.operation
        return [model, first]
    return [model]


def _hold(model, name, layer):
    """Makes Keras find `layer`; returns what undoes it."""
    with contextlib.ExitStack() as undo:
        if isinstance(model, keras.Sequential):
            undo.callback(_refuse_other_layers(model))
        for host in _hosts_of(model):
            tracker = host._tracker
            is_locked = tracker.locked
            undo.callback(_release, host, name, layer)
            tracker.unlock()
            try:
                setattr(host, name, layer)
            finally:
                if is_locked:
                    tracker.lock()
        return undo.pop_all().close


def _release(host, name, layer):
    host._tracker.untrack(layer)
    if name in {**vars(host), **vars(host).get("_modules", {})}:
        delattr(host, name)


def _refuse_other_layers(model):
    """Makes a Sequential model refuse a new graph; returns what undoes it.

    Nothing that is attached to its graph would be in the new one.
    """

    def refusal():
        def refuse(*args, **kwargs):
            raise ValueError(
                "`model` cannot gain or lose layers while it is attached: call "
                "`detach(model)` first, and attach anew. "
                f"Received: model={model.name!r}"
            )

        return refuse

    methods = ("add", "pop", "build")
    for name in methods:
        if not is_overridden(model, name):
            override(model, name, refusal())

    def undo():
        if not is_attached(model):
            for name in methods:
                restore(model, name)

    return undo


def override(model: keras.Model, name: str, method: Any) -> None:
    """Gives `model` a method of its own, until `restore(model, name)`."""
    # None, unless Keras or users have set this attribute on the model.
    method.replaced = vars(model).get(name)
    vars(model)[name] = method


def is_overridden(model: keras.Model, name: str) -> bool:
    """Whether `override` has been called, and nobody replaced its method."""
    return hasattr(vars(model).get(name), "replaced")


def restore(model: keras.Model, name: str) -> None:
    """Undoes `override`, except where users have replaced the method since."""
    if is_overridden(model, name):
        replaced = vars(model).pop(name).replaced
        if replaced is not None:
            vars(model)[name] = replaced


def _forget_node(node):
    for tensor in node.input_tensors:
        producer = tensor._keras_history.operation
        if producer is not None and node in producer._outbound_nodes:
            producer._outbound_nodes.remove(node)


def _below_outputs(graph):
    return graph._nodes_by_depth.get(_BELOW_OUTPUTS, [])


def _remove_below(graph, node):
    _set_below_outputs(
        graph, [other for other in _below_outputs(graph) if other is not node]
    )


def _set_below_outputs(graph, row):
    by_depth = {**graph._nodes_by_depth, _BELOW_OUTPUTS: row}
    if not row:
        del by_depth[_BELOW_OUTPUTS]
    _set_nodes(graph, by_depth)


def _set_nodes(graph, by_depth):
    # Not in place: another thread may be running the nodes of before.
    vars(graph)["_nodes_by_depth"] = by_depth


def insert_layer(
    model: keras.Model, name: str, layer: keras.layers.Layer, tensor: Any
) -> None:
    """Makes `model` pass `tensor` of its graph through `layer`.

    The model then computes from the layer's output what it computed from
    `tensor`. Layers that do not depend on `tensor` are not touched.

    Args:
        model: Model with a graph and without attached layers, changed in place.
            It stays as it was if this fails.
        name: Attribute that will hold the layer.
        layer: Layer from `tensor` to one of the same shape.
        tensor: Symbolic tensor that the model computes.
    """
    graph = _graph_of(model)
    original = {name: vars(graph)[name] for name in _GRAPH}
    operations = [layer, *graph._operations]
    links = [
        (nodes, list(nodes))
        for operation in operations
        for nodes in (operation._inbound_nodes, operation._outbound_nodes)
    ]
    try:
        replaced = {id(x): x for x in graph._inputs}
        for node in nodes(model):
            outputs = node.outputs
            if any(replaced[id(x)] is not x for x in node.input_tensors):
                args, kwargs = node.arguments.fill_in(replaced)
                outputs = keras.tree.flatten(node.operation(*args, **kwargs))
            for before, after in zip(node.outputs, outputs, strict=True):
                is_it = before is tensor
                replaced[id(before)] = layer(tensor) if is_it else after
        changed = keras.Function(
            graph._inputs_struct,
            keras.tree.map_structure(
                lambda x: replaced[id(x)], graph._outputs_struct
            ),
        )
        release = _hold(model, name, layer)
    except BaseException:
        for linked, before in links:
            linked[:] = before
        raise
    added = {x for linked, before in links for x in linked[len(before) :]}
    undo = contextlib.ExitStack()
    undo.callback(_drop_nodes, operations, added)
    undo.callback(release)
    undo.callback(vars(graph).update, original)
    vars(graph).update({name: vars(changed)[name] for name in _GRAPH})
    _insertions[graph] = (name, undo)


def _drop_nodes(operations, added):
    for operation in operations:
        # From the end only: others refer to inbound nodes by index.
        while (
            operation._inbound_nodes and operation._inbound_nodes[-1] in added
        ):
            operation._inbound_nodes.pop()
        operation._outbound_nodes[:] = [
            node for node in operation._outbound_nodes if node not in added
        ]


def inserted_layer(model: keras.Model) -> str | None:
    """The attribute with the layer that `insert_layer` gave to `model`."""
    return _insertions.get(_graph_of(model), (None, None))[0]


def remove_inserted_layer(model: keras.Model) -> None:
    """Undoes `insert_layer`."""
    _, undo = _insertions.pop(_graph_of(model))
    undo.close()


def _is_recomputed(layer):
    return layer._remat_mode is not None


def _suspend(layer):
    """Keeps `layer` from being recomputed; returns what undoes it."""
    mode, number = _suspended_modes.get(layer, (layer._remat_mode, 0))
    if mode is None:
        return lambda: None
    _suspended_modes[layer] = (mode, number + 1)
    layer._remat_mode = None

    def undo():
        mode, number = _suspended_modes.pop(layer)
        if number > 1:
            _suspended_modes[layer] = (mode, number - 1)
        else:
            layer._remat_mode = mode

    return undo


def calling_model(layer: keras.layers.Layer) -> keras.layers.Layer:
    """The outermost model, or layer, in whose call `layer` is being called."""
    return layer._get_call_context().entry_layer


def knows_training(layer: keras.layers.Layer) -> bool:
    """Whether the caller of `layer` could tell it that the model trains.

    A layer that is called by hand counts: its caller can pass `training`.
    """
    if in_stateless_scope():
        # On JAX, steps collect losses and say whether they train; a model that
        # does not pass this on leaves its layers without.
        return loses_losses()
    caller = calling_model(layer)
    return caller is layer or (
        "training" in inspect.signature(caller.call).parameters
    )


def loses_losses() -> bool:
    """Whether a loss that a layer adds now is dropped.

    `stateless_call` drops losses unless it is asked to return them.
    """
    return in_stateless_scope() and not get_stateless_scope().collect_losses


def is_traced() -> bool:
    """Whether a graph of TensorFlow, or a step on JAX, is being traced.

    Not while Keras runs a layer only to infer the shape of its output.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return not (tf.executing_eagerly() or in_stateless_scope())
    return collected_losses() is not None


def collected_losses() -> list[Tensor] | None:
    """The losses that `stateless_call` is going to return, if it returns any.

    The list is changed in place: a layer that is called again loses its loss.
    """
    if not in_stateless_scope():
        return None
    scope = get_stateless_scope()
    return scope.losses if scope.collect_losses else None


def is_called_again(layer: keras.layers.Layer) -> bool:
    """Whether this was asked before for a layer in this stateless scope."""
    if not in_stateless_scope():
        return False
    layers = _called_layers.setdefault(get_stateless_scope(), weakref.WeakSet())
    is_known = layer in layers
    layers.add(layer)
    return is_known


def has_state(variable: keras.Variable) -> bool:
    """Whether the current stateless scope holds a value of `variable`."""
    if not in_stateless_scope():
        return False
    return get_stateless_scope().get_current_value(variable) is not None


def has_value(variable: keras.Variable) -> bool:
    """Whether assigning a variable has an effect.

    On JAX, Keras takes the values out of the variables for an epoch, and
    overwrites the variables when it ends.
    """
    return variable._value is not None


def replace_losses(layer: keras.layers.Layer, make_list: type) -> None:
    """Replaces the lists of losses in the model that calls `layer`.

    The layer is being called; the model may be the layer itself.
    """
    model = calling_model(layer)
    for part in model._flatten_layers():
        if not isinstance(part._losses, make_list):
            losses = make_list()
            losses.extend(part._losses)
            part._losses = losses


def overridden_methods(model: keras.Model, names: Sequence[str]) -> list[str]:
    """Those of the named methods of `keras.Model` that `model` replaces."""
    return [
        name
        for name in names
        if getattr(getattr(model, name), "__func__", None)
        is not getattr(keras.Model, name)
    ]


def additional_loss(model: keras.Model, loss: Tensor) -> Tensor:
    """A loss as Keras adds it to the loss of a step, scaled for replicas."""
    return model._aggregate_additional_loss(loss)


def skip_build(model: keras.Model) -> None:
    """Keeps Keras from building a built model again on its first batch.

    Under a strategy, Keras 3.15 builds from the mean of that batch over the
    replicas, even if there is nothing to build. There is no mean if the shares
    of the replicas differ in size. Remove when Keras does not build a built
    model.
    """
    model._maybe_symbolic_build = lambda *args, **kwargs: None


def retrace(model: keras.Model) -> None:
    """Makes `fit`, `evaluate` and `predict` trace `model` anew.

    They may be running: their next step is the new one.
    """
    for name in ("train_function", "test_function", "predict_function"):
        if getattr(model, name, None) is not None:
            getattr(model, f"make_{name}")(force=True)


def keras_mask(tensor: Any) -> Any:
    """The mask that Keras layers have put on `tensor`, or None."""
    return get_keras_mask(tensor)


def keep_masks(
    tensor: keras.KerasTensor | InnerOutput,
) -> Callable[[], None]:
    """Makes `kept_mask` find the masks of a tensor; returns what undoes it.

    Layers such as `keras.layers.MultiHeadAttention` remove the masks of the
    tensors that they are given.

    Args:
        tensor: Tensor of the graph of a model, or inside of one of its layers.
    """
    with contextlib.ExitStack() as undo:
        for layer in _put_on_by(tensor):
            undo.callback(
                replace_methods(
                    _mask_keepers, layer, functools.partial(_keeper, layer)
                )
            )
        return undo.pop_all().close


def _put_on_by(tensor):
    """The layers that may put the mask of a tensor on it."""
    if isinstance(tensor, InnerOutput):
        layer = tensor.layer
    else:  # Symbolic tensors of no graph have no history.
        history = getattr(tensor, "_keras_history", None)
        layer = None if history is None else history.operation
    if is_functional(layer):
        outputs = _graph_of(layer)._outputs
        return [inner for x in outputs for inner in _put_on_by(x)]
    return [layer] if isinstance(layer, keras.layers.Layer) else []


def _keeper(layer):
    put_masks = layer._set_mask_metadata

    def put_and_keep(inputs, outputs, previous_mask):
        put_masks(inputs, outputs, previous_mask)
        for x in keras.tree.flatten(outputs):
            # A layer may return what another one has returned before.
            if get_keras_mask(x) is not None:
                set_tensor_attr(x, _KEPT_MASK, get_keras_mask(x))

    return {"_set_mask_metadata": put_and_keep}


def kept_mask(tensor: Any) -> Any:
    """The mask of a tensor, even if a later layer has removed it, or None."""
    kept = get_tensor_attr(tensor, _KEPT_MASK)
    return get_keras_mask(tensor) if kept is None else kept


def find_layers(
    model: keras.Model, kind: type | tuple[type, ...]
) -> list[keras.layers.Layer]:
    """All layers of class `kind` in `model`, at any depth."""
    return [x for x in model._flatten_layers() if isinstance(x, kind)]
