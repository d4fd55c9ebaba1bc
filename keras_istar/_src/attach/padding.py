"""Finds the padding masks of hidden states."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_istar._src.attach.find_blocks import Call
from keras_istar._src.attach.find_blocks import Scope
from keras_istar._src.attach.find_blocks import nodes_before
from keras_istar._src.compat import keras_private
from keras_istar._src.types import Tensor

# None to find it; False for none; the name of an input; the name of an input
# and its padding id; a function of the inputs.
Mask = None | bool | str | Mapping[str, int] | Callable[[Any], Tensor]

# Lengths to try where the model leaves them open: short ones for models with
# few positions, long ones for models that sample sequences down.
_LENGTHS = (6, 10, 1536, 2560)


@dataclasses.dataclass(frozen=True, eq=False)
class MaskSource:
    """A padding mask that can be computed from tensors of a graph.

    Attributes:
        words: Where it comes from, in words.
        tensors: Symbolic tensors.
        function: Function of them that returns the mask `(batch, length)`.
    """

    words: str
    tensors: list[Any]
    function: Callable[..., Tensor]

    def spec(self, shapes: Mapping[int, Any] | None = None) -> Any:
        """The mask as a symbolic tensor, for other shapes if they are given."""
        tensors = self.tensors
        if shapes is not None:
            tensors = [shapes[id(x)] for x in tensors]
        return keras_private.spec_of(self.function, *tensors)

    def from_inputs(self, model: keras.Model) -> "MaskSource | None":
        """The same mask, computed once more from the inputs of its model.

        Args:
            model: The model in whose graph the mask is.

        Returns:
            A source of which the inputs of `model` are the tensors; None if the
            mask depends on weights.
        """
        inputs = keras_private.inputs_of(model)
        compute = keras.Function(inputs, self.tensors)
        if any(getattr(x, "weights", []) for x in compute.operations):
            return None
        return MaskSource(
            self.words,
            inputs,
            lambda *values: self.function(*compute(list(values))),
        )


class Padding:
    """Finds the masks of hidden states in one call of a model.

    Args:
        scope: The call of the model in whose graph the states are.
        mask: As `attach` was given it.

    Attributes:
        mask: That argument.
    """

    def __init__(self, scope: Scope, mask: Mask):
        self._scope = scope
        self.mask = mask
        self._shapes: dict[int, Any] = {}
        self._chosen = None
        if mask is not None and mask is not False:
            self._chosen = _chosen_source(scope.model, mask)

    def source_for(self, call: Call, state: Any) -> MaskSource | None:
        """The mask of a hidden state; None for its Keras mask, or none at all.

        Raises:
            ValueError: If the mask that was asked for does not fit.
        """
        if self.mask is False:
            return None
        if self._chosen is not None:
            if not self._fits(self._chosen, call, state):
                raise ValueError(
                    "`mask` must have the shape of the hidden states without "
                    f"their last axis, {_shape_of(state)[:-1]} in "
                    f"{call.layer.name!r}. Received: mask of "
                    f"{self._chosen.words}, which has another shape"
                )
            return self._chosen
        for source in self._candidates(call):
            if self._fits(source, call, state):
                return source
        return None

    def expects_mask(self, call: Call, state: Any) -> bool:
        """Whether a hidden state without a source should have a Keras mask.

        It should if it comes from token ids, or from tensors as long as it is
        that have one. Whether it has one shows when the model runs.
        """
        if self.mask is False:
            return False
        if may_have_mask(call, state):
            return True
        before = nodes_before(self._scope.model, call.node.input_tensors)
        return any(
            _embeds_ids(node) or _has_mask(node, state) for node in before
        ) or _comes_from_ids(self._scope, call.node.input_tensors, state)

    @functools.cached_property
    def _dependencies(self):
        return _dependencies(self._scope.model)

    def _candidates(self, call):
        """Masks by name: inputs of the model, and arguments of the block.

        Encoder-decoders name theirs `encoder_padding_mask` and
        `decoder_padding_mask`, and their blocks likewise. An input that the
        block itself is given comes first, what the model computes comes last.
        """
        model = self._scope.model
        inputs = keras_private.inputs_of(model)
        names = keras_private.input_names(model)
        name_of = {id(x): name for x, name in zip(inputs, names, strict=True)}
        given = list(_given_masks(call))
        for _, tensor in given:
            if id(tensor) in name_of:
                words = f"input {name_of[id(tensor)]!r}"
                yield MaskSource(words, [tensor], _same)
        words_of_call = _words(call.layer.name) | _words(
            call.node.operation.name
        )
        for tensor, name in zip(inputs, names, strict=True):
            for kind in _INPUT_MASKS:
                side, found, _ = name.partition(kind)
                if (
                    found
                    and _words(side) <= words_of_call
                    and _belongs_to(tensor, call, model, self._dependencies)
                ):
                    yield MaskSource(f"input {name!r}", [tensor], _same)
        for name, tensor in given:
            if id(tensor) not in name_of:
                words = f"argument {name!r} of {call.node.operation.name!r}"
                yield MaskSource(words, [tensor], _same)

    def _fits(self, source, call, state):
        """Whether a mask has the shape of a state, as far as can be known."""
        rows = _shape_of(state)[:-1]
        try:
            shape = _shape_of(source.spec())
        except Exception as e:  # A user's function may raise anything.
            raise ValueError(
                "`mask` must be computed by a function of the model's inputs, "
                "with `keras.ops`. "
                f"Received: a function that raised {type(e).__name__}: {e}"
            ) from e
        if not _can_be_equal(shape, rows):
            return False
        if None not in rows[1:] and None not in shape[1:]:
            return True
        state = _stand_in(call, state)
        compared = 0
        for length in _LENGTHS:
            if compared < 2:
                shapes = self._shapes_at(length)
                with contextlib.suppress(Exception):
                    rows = _shape_of(shapes[id(state)])[:-1]
                    if not _can_be_equal(_shape_of(source.spec(shapes)), rows):
                        return False
                    compared += 1
        return True

    def _shapes_at(self, length):
        if length not in self._shapes:
            self._shapes[length] = keras_private.shapes_at(
                self._scope.model,
                # The sides of an encoder-decoder differ in length.
                lambda name: length + 2 * name.startswith("decoder"),
            )
        return self._shapes[length]


def may_have_mask(call: Call, state: Any) -> bool:
    """Whether a state, or what a layer around it is given, has a Keras mask."""
    tensors = [state, *(call.inputs if call.is_inner else [])]
    return any(keras_private.keras_mask(x) is not None for x in tensors)


def _chosen_source(model, mask):
    inputs = keras_private.inputs_of(model)
    names = keras_private.input_names(model)
    by_name = dict(zip(names, inputs, strict=True))
    if callable(mask):
        return MaskSource(
            "the function `mask`",
            inputs,
            lambda *flat: mask(keras_private.inputs_like(model, flat)),
        )
    padding_id = 0
    name = mask
    if isinstance(mask, Mapping) and len(mask) == 1:
        ((name, padding_id),) = mask.items()
        is_id = isinstance(padding_id, int) and not isinstance(padding_id, bool)
        name = name if is_id else None
    if not isinstance(name, str):
        raise ValueError(
            "`mask` must be None, False, the name of an input, a dict of the "
            'name of an input and its padding id such as {"token_ids": 0}, or '
            f"a function of the inputs. Received: mask={mask!r:.200}"
        )
    if name not in by_name:
        raise ValueError(
            f"`mask` must name an input of {model.name!r}, which are "
            f"{list(by_name)}. Received: mask={mask!r:.200}"
        )
    return MaskSource(
        f"input {name!r}"
        + (f", padding id {padding_id}" if padding_id or name != mask else ""),
        [by_name[name]],
        lambda x: ops.not_equal(x, ops.cast(padding_id, x.dtype)),
    )


def _given_masks(call):
    """Names and tensors of masks that a block is given for its own tokens."""
    given = keras_private.named_arguments_of(call.node)
    names = sorted(filter(_is_mask_name, given), key=_place_of)
    has_decoder = any(name.startswith("decoder") for name in given)
    for name in names:
        is_other_side = name.startswith("encoder") and has_decoder
        if isinstance(given[name], keras.KerasTensor) and not is_other_side:
            yield name, given[name]


_INPUT_MASKS = ("padding_mask", "attention_mask")
# Of a block that takes several masks, those of its own tokens come first.
_OWN_MASKS = ("query_mask", "decoder_padding_mask", "padding_mask", "mask")
# Names of the sequence that a block looks at, not of its own.
_OTHER_SEQUENCES = {"key", "value", "memory", "context", "cross"}


def _is_mask_name(name):
    return name.endswith("mask") and not _words(name) & _OTHER_SEQUENCES


def _place_of(name):
    return _OWN_MASKS.index(name) if name in _OWN_MASKS else len(_OWN_MASKS)


def _words(name):
    return set(filter(None, re.split(r"[_/\d]+", name)))


def _dependencies(model):
    """`id` of a tensor of the graph -> those of the inputs that it needs."""
    needed = {id(x): {id(x)} for x in keras_private.inputs_of(model)}
    for node in keras_private.nodes(model):
        found = _inputs_behind(node.input_tensors, needed)
        needed |= {id(x): found for x in node.outputs}
    return needed


def _inputs_behind(tensors, dependencies):
    return set().union(*(dependencies.get(id(x), set()) for x in tensors))


def _belongs_to(mask, call, model, dependencies):
    """Whether an input is the mask of the sequence that a block is given.

    It is if the block depends on it, if the model combines it with an input
    that the block depends on, or if the model does not use it.
    """
    own = _inputs_behind(call.node.input_tensors, dependencies)
    combined = [
        x
        for node in keras_private.nodes(model)
        if any(
            dependencies.get(id(x)) == {id(mask)} for x in node.input_tensors
        )
        for x in node.input_tensors
    ]
    partners = _inputs_behind(combined, dependencies) - {id(mask)}
    return id(mask) in own or not partners or not own or bool(partners & own)


def _same(mask):
    return mask


def _comes_from_ids(scope, tensors, state):
    """Whether tensors come from integers `(batch, length)`, or from a mask.

    Masked tensors around the model count if they are as long as `state`.
    """
    dependencies = _dependencies(scope.model)
    needed = _inputs_behind(tensors, dependencies)
    inputs = [
        x for x in keras_private.inputs_of(scope.model) if id(x) in needed
    ]
    if any(_are_ids(x) for x in inputs):
        return True
    if scope.around is None:
        return False
    given = keras_private.arguments_of(scope.node)
    outer = [given[id(x)] for x in inputs if id(x) in given]
    masked = [x for x in outer if keras_private.keras_mask(x) is not None]
    if masked:
        return any(_is_as_long(x, state) for x in masked)
    return _comes_from_ids(scope.around, outer, state)


def _embeds_ids(node):
    """Whether a node looks up sequences of ids, which may be floats."""
    is_embedding = isinstance(node.operation, keras.layers.Embedding)
    return is_embedding and any(
        len(x.shape) > 1 and x.shape[-1] != 1 for x in node.input_tensors
    )


def _has_mask(node, state):
    return any(
        keras_private.keras_mask(x) is not None and _is_as_long(x, state)
        for x in node.outputs
    )


def _is_as_long(tensor, state):
    return _can_be_equal(_shape_of(tensor)[:-1], _shape_of(state)[:-1])


def _are_ids(tensor):
    is_integer = "int" in keras.backend.standardize_dtype(tensor.dtype)
    return is_integer and len(tensor.shape) == 2 and tensor.shape[1] != 1


def _stand_in(call, state):
    """A tensor of the graph as long as a state inside of a layer."""
    if call.is_inner:
        for x in call.inputs:
            if tuple(x.shape) == tuple(state.shape):
                return x
    return state


def _shape_of(tensor):
    return tuple(tensor.shape)


def _can_be_equal(a, b):
    return len(a) == len(b) and all(
        x is None or y is None or x == y
        for x, y in zip(a[1:], b[1:], strict=True)
    )
