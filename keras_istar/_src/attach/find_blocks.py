"""The calls of layers in a model, at any depth, and which of them are blocks.

Blocks are layers made of layers that map hidden states `(batch, length, dim)`
to hidden states of the same shape. Many models call each block themselves. In
others a composite layer calls them all, and looks like a block itself. It is a
stack if blocks of one class follow each other inside of it.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras

from keras_istar._src.compat import keras_private
from keras_istar._src.compat.keras_calls import InnerCall

# Lengths to try where the model leaves them open: short for texts, long for
# audio, which is sampled down.
_LENGTHS = (16, 6, 1536)

_ATTENTION = (
    keras.layers.AdditiveAttention,
    keras.layers.Attention,
    keras.layers.GroupQueryAttention,
    keras.layers.MultiHeadAttention,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer.

    Attributes:
        layer: The layer called.
        node: The node in the graph of the scope's model: of the layer itself,
            or of the composite layer that calls it.
        stack: Names of the composite layers that it happens in.
        inputs: Symbolic inputs of the node.
        outputs: Symbolic outputs of the layer, flattened.
        is_block: Whether it is one of the blocks of the scope.
        problem: Why no blocks can be taken from a composite layer, if so.
    """

    layer: keras.layers.Layer
    node: Any
    stack: tuple[str, ...]
    inputs: list[Any]
    outputs: list[Any]
    is_block: bool
    problem: str | None = None

    @property
    def is_inner(self) -> bool:
        """Whether a composite layer makes the call, not the graph."""
        return bool(self.stack)


@dataclasses.dataclass(frozen=True, eq=False)
class Scope:
    """One call of a model, with the calls in it.

    Attributes:
        model: The model called: the outermost, or one nested in it.
        node: Its node in the graph of the scope around it, None if outermost.
        around: The scope around it.
        items: Calls and nested scopes, in the order in which they run.
    """

    model: keras.Model
    node: Any
    around: "Scope | None"
    items: list[Any]

    @property
    def path(self) -> tuple[str, ...]:
        """Names of the models around it and its own, without the outermost."""
        if self.around is None:
            return ()
        return (*self.around.path, self.model.name)

    @property
    def trail(self) -> tuple["Scope", ...]:
        """The scopes around it and itself, outermost first."""
        around = () if self.around is None else self.around.trail
        return (*around, self)

    @property
    def calls(self) -> list[Call]:
        """Calls in the graph of the model itself, and in its stacks."""
        return [x for x in self.items if isinstance(x, Call)]

    @property
    def blocks(self) -> list[Call]:
        """Those of the calls that are blocks."""
        return [call for call in self.calls if call.is_block]

    @property
    def scopes(self) -> list["Scope"]:
        """Calls of models that are nested in this one."""
        return [x for x in self.items if isinstance(x, Scope)]

    @property
    def indices(self) -> range:
        """Indices of the blocks, the negative ones from the end."""
        number = len(self.blocks)
        return range(-number, number)

    @property
    def names(self) -> list[str]:
        """Names of the layers in it that can be chosen."""
        return list(dict.fromkeys(call.layer.name for call in self.calls))

    def all_scopes(self) -> Iterator["Scope"]:
        """It and the scopes in it, at any depth."""
        yield self
        for scope in self.scopes:
            yield from scope.all_scopes()

    def everything(self) -> Iterator[tuple["Scope", Call]]:
        """All calls at any depth, in the order in which they run."""
        for item in self.items:
            if isinstance(item, Scope):
                yield from item.everything()
            else:
                yield self, item


class Chosen(NamedTuple):
    """A call of which an output is taken.

    Attributes:
        scope: The call of the model in which it happens.
        call: The call.
        output: Position of the output that is taken.
        name: Its name in logs.
        item: The index or name in `layers` that chose it, without its prefix.
    """

    scope: Scope
    call: Call
    output: int
    name: str
    item: int | str


def nodes_before(model: keras.Model, tensors: Sequence[Any]) -> list[Any]:
    """Nodes of the graph of `model` that compute `tensors`."""
    wanted = {id(x) for x in tensors}
    before = []
    for node in reversed(keras_private.nodes(model)):
        if any(id(x) in wanted for x in node.outputs):
            before.append(node)
            wanted |= {id(x) for x in node.input_tensors}
    return before


def read_model(model: keras.Model) -> Scope:
    """The calls in a model that has a graph."""
    return _read(model, None, None, {})


def _read(model, node, around, known):
    scope = Scope(model, node, around, [])
    for node in keras_private.nodes(model):
        layer = node.operation
        if not isinstance(layer, keras.layers.Layer):
            continue
        nested = None
        if keras_private.is_functional(layer):
            nested = _read(layer, node, scope, known)
            inner, problem = [], None
        else:
            inner, problem = _inner_blocks(model, node, known)
        has_blocks = inner or (
            nested is not None
            and any(c.is_block for _, c in nested.everything())
        )
        call = Call(
            layer,
            node,
            (),
            node.input_tensors,
            node.outputs,
            _looks_like_block(layer, node.input_tensors, node.outputs)
            and not has_blocks,
            problem,
        )
        scope.items.append(call)
        scope.items.extend(inner if nested is None else [nested])
    return scope


def _looks_like_block(layer, inputs, outputs):
    shapes = [tuple(x.shape) for x in inputs if hasattr(x, "shape")]
    return _maps_states(layer, shapes, [tuple(x.shape) for x in outputs])


def _maps_states(layer, input_shapes, output_shapes):
    return len(output_shapes[0]) == 3 and _keeps_shape(
        layer, input_shapes, output_shapes
    )


def _keeps_shape(layer, input_shapes, output_shapes):
    return (
        output_shapes[0] in input_shapes
        and keras_private.is_composite(layer)
        and not isinstance(layer, _ATTENTION)
    )


def _inner_blocks(model, node, known):
    """Finds the calls of blocks inside of a composite layer.

    Args:
        model: Model with a graph.
        node: Node of any layer in that graph.
        known: Kinds of layers without blocks -> the problem, None if there is
            none. Kinds that are found are added.

    Returns:
        A tuple: the calls; and the problem if they could not be found, or None.
    """
    layer = node.operation
    parts = keras_private.parts_of(layer)
    kind = (type(layer), tuple(type(part) for part in parts))
    may_have_blocks = any(
        keras_private.is_composite(part) and not isinstance(part, _ATTENTION)
        for part in parts
    )
    if not may_have_blocks or kind in known:
        return [], known.get(kind)
    try:
        calls, given, returned = _calls_inside(model, node)
        members = _stack(layer, calls, None, given, returned)
        if members:
            return _calls_of(node, calls, members), None
        known[kind] = None
        if _looks_like_block(layer, node.input_tensors, node.outputs):
            known[kind] = _other_stack(layer, calls)
    except Exception as e:  # A layer may raise anything.
        known[kind] = (
            "could not be looked into: it may hold some. It raised "
            f"{type(e).__name__}: {e!s:.300}"
        )
    return [], known[kind]


def _calls_inside(model, node):
    """Returns `keras_private.inner_calls` of a node.

    Some layers run only if they know the shapes of their inputs, which Keras
    does not need to build a model. For these, lengths are tried.
    """
    try:
        return keras_private.inner_calls(node)
    except Exception:  # A layer may raise anything.
        for length in _LENGTHS:
            with contextlib.suppress(Exception):
                names = [x.name for x in keras_private.inputs_of(model)]
                length_of = dict.fromkeys(names, length).__getitem__
                shapes = keras_private.shapes_at(model, length_of, batch=2)
                return keras_private.inner_calls(node, shapes)
        raise


def _calls_of(node, calls, members):
    layers = list(
        {id(calls[i].layer): calls[i].layer for i in members}.values()
    )
    outputs = keras_private.inner_outputs(node, layers)
    found = []
    for i in members:
        layer = calls[i].layer
        before = [j for j, call in enumerate(calls[:i]) if call.layer is layer]
        flat = outputs[id(layer)][len(before)]
        stack = [node.operation.name]
        parent = calls[i].parent
        around = []
        while parent is not None:
            around.append(calls[parent].layer.name)
            parent = calls[parent].parent
        found.append(
            Call(
                layer,
                node,
                (*stack, *reversed(around)),
                node.input_tensors,
                [tensor for tensor, _ in flat],
                is_block=True,
            )
        )
    return found


def _stack(layer, calls, parent, given, returned):
    """Indices of the blocks that are stacked inside of a composite layer.

    Args:
        layer: The composite layer.
        calls: All calls inside of the outermost layer.
        parent: Index of the composite layer's call, None if outermost.
        given: Sources of its inputs.
        returned: Source of its first output.
    """
    children = [i for i, call in enumerate(calls) if call.parent == parent]
    blocks = [
        i
        for i in children
        if _maps_states(
            calls[i].layer, calls[i].input_shapes, calls[i].output_shapes
        )
    ]
    lists = keras_private.lists_of(layer)
    found = []
    for i in children:
        call = calls[i]
        inner = _stack(call.layer, calls, i, call.sources, call.passed_on)
        if inner:
            found += inner
        elif i in blocks:
            others = [j for j in blocks if j != i]
            is_alone = (
                _listed_with(lists, call.layer)
                and call.sources[0] in given
                and returned == ("call", i)
            )
            if is_alone or any(
                _follow(calls, min(i, j), max(i, j), lists) for j in others
            ):
                found.append(i)
    return found


def _other_stack(layer, calls):
    """Describes a stack of layers in `layer` that are not blocks, else None.

    Gemma 3n, for one, has blocks of several streams `(4, batch, length, dim)`.
    """
    lists = keras_private.lists_of(layer)
    kept = [
        i
        for i, call in enumerate(calls)
        if call.parent is None
        and len(call.output_shapes[0]) > 3
        and _keeps_shape(call.layer, call.input_shapes, call.output_shapes)
    ]
    for i, j in zip(kept, kept[1:], strict=False):
        a, b = calls[i].layer, calls[j].layer
        is_listed = any(_holds(x, a) and _holds(x, b) for x in lists)
        if is_listed and _follow(calls, i, j, lists):
            shape = calls[i].output_shapes[0]
            return (
                f"holds a stack of layers that return {shape}, which is no "
                "hidden state `(batch, length, dim)`"
            )
    return None


def _follow(calls: list[InnerCall], first: int, second: int, lists) -> bool:
    """Whether two blocks inside of one layer are of one stack."""
    a, b = calls[first], calls[second]
    if type(a.layer) is not type(b.layer):
        return False
    if a.output_shapes[0] != b.output_shapes[0]:
        return False
    is_chained = ("call", first) in b.sources
    # Experts are listed together, too, but are given the same input.
    is_listed = any(_holds(x, a.layer) and _holds(x, b.layer) for x in lists)
    return is_chained or (is_listed and a.sources[0] != b.sources[0])


def _listed_with(lists, layer):
    """Whether `layer` is in a list of layers alone, not in Keras's own."""
    return any(len(x) == 1 and x[0] is layer for x in lists)


def _holds(items, layer):
    return any(x is layer for x in items)
