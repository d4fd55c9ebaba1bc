"""Which hidden states of a model: blocks, names, widths, padding masks."""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras

from keras_istar._src.compat import keras_graph
from keras_istar._src.compat.keras_graph import Call
from keras_istar._src.types import Tensor

_ATTENTION = (
    keras.layers.AdditiveAttention,
    keras.layers.Attention,
    keras.layers.GroupQueryAttention,
    keras.layers.MultiHeadAttention,
)


class HiddenStates(NamedTuple):
    """Hidden states in the graph of a model, all of one width.

    Attributes:
        owner: The (nested) model in whose graph they are.
        names: A name for each, for logs: `layer_0` for the first block, or the
            name of a layer that is not a block.
        tensors: Symbolic tensors of shape `(batch, length, dim)`.
        masks: A symbolic padding mask or None for each; None if there is none
            at all, so that Keras passes its own masks.
    """

    owner: keras.Model
    names: tuple[str, ...]
    tensors: list[Tensor]
    masks: list[Tensor | None] | None


def find_states(
    model: keras.Model, layers: str | int | Sequence[int | str]
) -> HiddenStates:
    """The states that `layers` chooses, see `attach`.

    Raises:
        ValueError: If `model` is not Functional, or a chosen layer does not
            exist or is of another width than the others.
    """
    check_functional(model)
    owner, chosen = _find_calls(model, layers)
    tensors = [call.output for call in chosen.values()]
    widths = {name: call.output.shape[-1] for name, call in chosen.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(
            "`layers` must choose hidden states of one width. "
            f"Received: widths={widths}"
        )
    masks = [_padding_mask(owner, call) for call in chosen.values()]
    has_mask = any(mask is not None for mask in masks)
    return HiddenStates(
        owner, tuple(chosen), tensors, masks if has_mask else None
    )


def check_functional(model: keras.Model) -> None:
    """Raises unless `model` is Functional; says what to do if it is not."""
    if not keras_graph.is_functional(model):
        raise ValueError(
            "`model` must be a KerasHub task or backbone, or a Functional "
            "Keras model. In a subclassed or Sequential model, make an "
            "`IStarRegularization` layer yourself and call it on the hidden "
            "states: `x = self.istar([h1, h2], mask=mask, training=training)` "
            "in `def call(self, inputs, training=None)`. "
            f"Received: model of type {type(model).__name__}"
        )


def _find_calls(model, layers):
    """The (nested) model that has the asked layers, and their calls."""
    items = [layers] if isinstance(layers, (str, int)) else layers
    if isinstance(items, bytes) or not isinstance(items, Sequence) or not items:
        raise ValueError(
            "`layers` must be 'all', an index, a name, or a list of indices "
            f"and names. Received: layers={layers!r:.200}"
        )
    for item in items:
        _check_item(item)
    names = {item for item in items if isinstance(item, str)} - {"all"}
    models = list(keras_graph.nested_models(model))
    for owner in models:
        calls = keras_graph.layer_calls(owner)
        blocks = [call for call in calls if _is_block(call)]
        if names <= {call.layer.name for call in calls} and (
            blocks or len(names) == len(items)
        ):
            return owner, _choose(items, calls, blocks)
    raise _nothing_found(models, names, layers)


def _nothing_found(models, names, layers):
    known = {
        call.layer.name: None  # A dict, to keep the order.
        for owner in models
        for call in keras_graph.layer_calls(owner)
    }
    missing = sorted(names - set(known))
    problem = (
        f"has no layer named {missing}" if missing else "has no encoder blocks"
    )
    return ValueError(
        f"`layers` must choose hidden states of the model, which {problem}. "
        f"Names there are: {list(known)}. Received: layers={layers!r}"
    )


def _choose(items, calls, blocks):
    """The calls asked for by name, each once, in the order they run."""
    index_of = {id(block): i for i, block in enumerate(blocks)}
    chosen = set()
    for item in items:
        if item == "all":
            chosen.update(id(block) for block in blocks)
        elif isinstance(item, str):
            named = [call for call in calls if call.layer.name == item]
            for call in named:
                _check_state(call)
            chosen.update(id(call) for call in named)
        else:
            chosen.add(id(_block_at(blocks, item)))
    names = {}
    for call in calls:
        if id(call) in chosen:
            name = _state_name(call, index_of)
            again = sum(1 for other in names if other.startswith(name))
            names[f"{name}_{again}" if name in names else name] = call
    return names


def _state_name(call, index_of):
    if id(call) in index_of:
        return f"layer_{index_of[id(call)]}"
    return call.layer.name


def _check_item(item):
    if isinstance(item, bool) or not isinstance(item, (int, str)):
        raise ValueError(
            "`layers` must hold indices and names of layers. "
            f"Received: {item!r:.200} in layers"
        )


def _block_at(blocks, index):
    if not -len(blocks) <= index < len(blocks):
        raise ValueError(
            f"`layers` must hold indices from {-len(blocks)} to "
            f"{len(blocks) - 1}, the model has {len(blocks)} blocks. "
            f"Received: {index} in layers"
        )
    return blocks[index]


def _is_block(call):
    shape = tuple(call.output.shape)
    return (
        len(shape) == 3
        and shape in [tuple(x.shape) for x in call.inputs]
        and keras_graph.is_composite(call.layer)
        and not isinstance(call.layer, _ATTENTION)
    )


def _check_state(call):
    shape = tuple(call.output.shape)
    if len(shape) < 2 or shape[-1] is None or shape[-1] < 2:
        raise ValueError(
            "`layers` must choose layers with an output `(..., dim)`, dim at "
            f"least 2. Received: {call.layer.name!r} with output shape {shape}"
        )


def _padding_mask(model, call):
    """The input of `model` that tells padding from tokens in this state.

    Encoder-decoders name theirs `encoder_padding_mask` and
    `decoder_padding_mask`, and their blocks likewise.
    """
    for tensor in model.inputs:
        side, found, _ = tensor.name.partition("padding_mask")
        fits = len(tensor.shape) == len(call.output.shape) - 1
        if found and fits and side.strip("_") in call.layer.name:
            return tensor
    return None


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
    calls = keras_graph.layer_calls(model)
    if layer is not None:
        return _named_output(calls, layer)
    computed = {id(x) for x in keras_graph.computed_tensors(model)}
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
