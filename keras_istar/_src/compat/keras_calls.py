"""Records the calls of layers that run inside of other layers.

A composite layer, or a nested model, keeps the outputs of its parts to itself.
A part that is tapped shows its calls to the recorder of the calling thread.
Taps are attributes of the layer instances: classes and weights do not change.
"""

import contextlib
import contextvars
import functools
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple
from typing import Protocol

import keras

from keras_istar._src.types import Tensor


class CallRecorder(Protocol):
    """Receives the calls of tapped layers."""

    def enter(self, layer: keras.layers.Layer) -> None:
        """Called when a call of `layer` begins."""

    def leave(
        self, layer: keras.layers.Layer, inputs: list[Any], outputs: list[Any]
    ) -> None:
        """Called when the innermost call, of `layer`, ends."""


_recorders: contextvars.ContextVar[tuple[CallRecorder, ...]] = (
    contextvars.ContextVar("keras_istar_call_recorders", default=())
)

_taps: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def recorded(recorder: CallRecorder) -> Iterator[None]:
    """Records the tapped layers that this thread calls within this scope."""
    token = _recorders.set((*_recorders.get(), recorder))
    try:
        yield
    finally:
        _recorders.reset(token)


def tap(
    layer: keras.layers.Layer,
    is_recomputed: Callable[[keras.layers.Layer], bool],
) -> Callable[[], None]:
    """Makes `layer` show its calls to recorders; returns a function to undo it.

    Args:
        layer: Any layer.
        is_recomputed: Function that tells whether the backward pass calls a
            layer again. Tensors of such a call belong to an inner function;
            only its outputs can be shown.
    """

    def make_taps():
        def tapped(function):
            return _tapped(layer, function, lambda: not is_recomputed(layer))

        return {
            "call": tapped(layer.call),
            "quantized_call": tapped(layer.quantized_call),
            "rematerialized_call": _tapped_recomputation(layer),
        }

    return replace_methods(_taps, layer, make_taps)


def replace_methods(
    replaced: weakref.WeakKeyDictionary,
    layer: keras.layers.Layer,
    make: Callable[[], dict[str, Callable]],
) -> Callable[[], None]:
    """Gives a layer methods of its own, until every call of this is undone.

    Args:
        replaced: Layer -> number of calls, and the attributes that the instance
            had before. One for each kind of methods.
        layer: Any layer.
        make: Makes the methods, by name; called if the layer has none yet.

    Returns:
        Function that undoes this call.
    """
    if layer not in replaced:
        methods = make()
        replaced[layer] = [0, {name: vars(layer).get(name) for name in methods}]
        vars(layer).update(methods)
    replaced[layer][0] += 1
    return functools.partial(_put_back, replaced, layer)


def _put_back(replaced, layer):
    replaced[layer][0] -= 1
    number, before = replaced[layer]
    if number == 0:
        del replaced[layer]
        for name, value in before.items():
            del vars(layer)[name]
            if value is not None:
                vars(layer)[name] = value


def _tapped(layer, function, is_shown=lambda: True):
    @functools.wraps(function)
    def call(*args, **kwargs):
        recorders = _recorders.get() if is_shown() else ()
        for recorder in recorders:
            recorder.enter(layer)
        outputs = function(*args, **kwargs)
        for recorder in recorders:
            recorder.leave(
                layer,
                keras.tree.flatten((args, kwargs)),
                keras.tree.flatten(outputs),
            )
        return outputs

    return call


def _tapped_recomputation(layer):
    make = layer.rematerialized_call

    @functools.wraps(make)
    def rematerialized_call(call, *args, **kwargs):
        # `jax.checkpoint` keeps the trace of a function, with its weights as
        # constants, as long as the function lives. So each call gets a new one.
        def once(*args, **kwargs):
            return call(*args, **kwargs)

        return _tapped(layer, make(once, *args, **kwargs))

    return rematerialized_call


class RecordedOutputs:
    """Recorder of the flattened outputs of each call of each layer."""

    def __init__(self):
        self._calls: dict[int, list[list[Tensor]]] = {}

    def enter(self, layer: keras.layers.Layer) -> None:
        pass

    def leave(self, layer, inputs, outputs) -> None:
        self._calls.setdefault(id(layer), []).append(outputs)

    def calls_of(self, layer: keras.layers.Layer) -> list[list[Tensor]]:
        """The outputs of each call of `layer`, in order."""
        return self._calls.get(id(layer), [])


class InnerCall(NamedTuple):
    """A call of a layer inside of another one.

    A source says where a tensor comes from: `("call", index)` is the output of
    a call, `("tensor", id)` any other tensor. A layer without parts passes the
    source of its first input on if it keeps the shape, as dropout and
    normalization do.

    Attributes:
        layer: The layer called.
        parent: Index of the call that it happens in; None for the outermost.
        sources: Sources of its input tensors.
        passed_on: Source of its first output as seen inside of the call.
        input_shapes: Shapes of its input tensors.
        output_shapes: Shapes of its output tensors.
    """

    layer: keras.layers.Layer
    parent: int | None
    sources: list[tuple[str, int]]
    passed_on: tuple[str, int]
    input_shapes: list[tuple]
    output_shapes: list[tuple]


class CallTree:
    """Recorder of the tree of calls, and of the sources of tensors.

    Args:
        is_composite: Whether a layer is made of other layers.

    Attributes:
        calls: The calls that have ended, in the order in which they began.
    """

    def __init__(self, is_composite: Callable[[keras.layers.Layer], bool]):
        self._is_composite = is_composite
        self.calls: list[InnerCall | None] = []
        self._open: list[int] = []
        self._sources: dict[int, tuple[str, int]] = {}
        self._kept: list[Tensor] = []  # Alive, so that no `id` is reused.

    def source_of(self, tensor: Tensor) -> tuple[str, int]:
        """Where `tensor` comes from."""
        self._kept.append(tensor)
        return self._sources.get(id(tensor), ("tensor", id(tensor)))

    def enter(self, layer: keras.layers.Layer) -> None:
        self._open.append(len(self.calls))
        self.calls.append(None)

    def leave(self, layer, inputs, outputs) -> None:
        index = self._open.pop()
        inputs = [x for x in inputs if hasattr(x, "shape")]
        outputs = [x for x in outputs if hasattr(x, "shape")]
        if not outputs:
            outputs = inputs[:1]
        call = InnerCall(
            layer,
            self._open[-1] if self._open else None,
            [self.source_of(x) for x in inputs],
            self.source_of(outputs[0]) if outputs else ("tensor", 0),
            [tuple(x.shape) for x in inputs],
            [tuple(x.shape) for x in outputs],
        )
        self.calls[index] = call
        if not outputs:
            return
        first = id(outputs[0])
        if self._is_composite(layer):
            self._sources[first] = ("call", index)
        elif inputs and call.output_shapes[0] == call.input_shapes[0]:
            self._sources[first] = call.sources[0]
