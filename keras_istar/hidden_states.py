"""Which hidden states of a model: blocks, names, widths, padding masks."""

from collections.abc import Sequence
from typing import NamedTuple

import keras

from keras_istar import functional_graph
from keras_istar.moments import Tensor

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
    if not functional_graph.is_functional(model):
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
    models = list(functional_graph.nested_models(model))
    for owner in models:
        calls = functional_graph.layer_calls(owner)
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
        for call in functional_graph.layer_calls(owner)
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
        and functional_graph.is_composite(call.layer)
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
