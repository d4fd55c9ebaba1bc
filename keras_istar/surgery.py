"""One line that regularizes a model: `attach`, and its undoing, `detach`."""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras

from keras_istar import functional_graph
from keras_istar.distribution import strategy_scope
from keras_istar.functional_graph import Call
from keras_istar.layer import IStarRegularization
from keras_istar.metrics import layers_update_metrics

_ATTRIBUTE = "istar_regularization"

_ATTENTION = (
    keras.layers.AdditiveAttention,
    keras.layers.Attention,
    keras.layers.GroupQueryAttention,
    keras.layers.MultiHeadAttention,
)


class _State(NamedTuple):
    """A hidden state: its name in logs, and the call that makes it."""

    name: str
    call: Call


def attach(
    model: keras.Model,
    layers: str | int | Sequence[int | str] = "all",
    strength: float = -1.0,
    shrinkage: float = 0.2,
    momentum: float | None = None,
    **options: Any,
) -> IStarRegularization:
    """Regularizes hidden states of a model, in place.

    The model keeps its type, layers, config, compile state and outputs, bit
    for bit; while it trains, `strength * (1 - IsoScore*)` of the chosen states
    joins its loss. Files written from it load in plain Keras and KerasHub,
    which ignore the one thing added: the estimate Σ_S in weight files.

    Blocks are the layers made of layers that map hidden states
    `(batch, length, dim)` to hidden states of the same shape, such as the
    encoder or decoder layers of a KerasHub backbone. The embedding output is
    not one. A block called several times (ALBERT) counts once a call. Blocks
    and names are looked for in the model, then in the models nested in it.

    Padding is left out: by the model's input `padding_mask` (an encoder-decoder
    has one for each side), or else by Keras masks.

    Attach to the model that you `fit`: its traced functions are dropped, so
    that it works after a first `fit` as well as before. Attaching to a part of
    a model that has been trained already takes effect when the whole is
    compiled again. A model built inside of `keras.RematScope` recomputes its
    blocks as before, but no longer all of itself.

    Args:
        model: KerasHub `Task` or `Backbone`, or any Functional Keras model.
        layers: `"all"` blocks; or the index of a block, from 0, negative from
            the end; or the name of any layer with an output `(..., dim)`; or a
            list of indices and names.
        strength: The paper's λ, see `IStarRegularization`.
        shrinkage: The paper's ζ, see `IStarRegularization`.
        momentum: See `IStarRegularization`.
        **options: Further arguments of `IStarRegularization`.

    Returns:
        The `IStarRegularization` layer.

    Raises:
        ValueError: If an argument is out of range, `model` is not Functional
            or already attached, or a chosen layer does not exist or is of
            another width than the others. The model is then left as it was.

    Example:

    >>> inputs = keras.Input((8, 4))
    >>> hidden = keras.layers.Dense(16, name="encoder")(inputs)
    >>> outputs = keras.layers.Dense(1)(hidden)
    >>> model = keras.Model(inputs, outputs)
    >>> layer = keras_istar.attach(model, layers="encoder", strength=1.0)
    >>> layer.strength
    1.0
    """
    regularizer = IStarRegularization(strength, shrinkage, momentum, **options)
    _check_functional(model)
    if _attached_models(model):
        raise ValueError(
            "`model` is already attached; call `detach(model)` first. "
            f"Received: model={model.name!r}"
        )
    owner, states = _find_states(model, layers)
    _check_widths(states)
    regularizer.state_names = tuple(state.name for state in states)
    masks = [_padding_mask(owner, state.call) for state in states]
    with strategy_scope(model):
        functional_graph.add_observer(
            owner,
            _ATTRIBUTE,
            regularizer,
            [state.call.output for state in states],
            # Without a padding mask, Keras passes its own masks.
            mask=masks if any(m is not None for m in masks) else None,
        )
    functional_graph.suspend_recomputation(model)
    if not layers_update_metrics():
        functional_graph.after_compute_loss(model, regularizer.log_step)
    functional_graph.forget_traces(model)
    return regularizer


def detach(model: keras.Model) -> None:
    """Undoes `attach`: the model is exactly what it was before.

    Args:
        model: The model given to `attach`, or one that contains it.

    Raises:
        ValueError: If nothing is attached to `model`.
    """
    _check_functional(model)
    attached = _attached_models(model)
    if not attached:
        raise ValueError(
            "`model` must have been attached before. "
            f"Received: model={model.name!r}"
        )
    for owner in attached:
        functional_graph.remove_observer(owner, _ATTRIBUTE)
    functional_graph.resume_recomputation(model)
    functional_graph.restore_compute_loss(model)
    functional_graph.forget_traces(model)


def _check_functional(model):
    if not functional_graph.is_functional(model):
        kind = getattr(model, "__class__", type(model)).__name__
        raise ValueError(
            "`model` must be a KerasHub task or backbone, or a Functional "
            "Keras model. In a subclassed or Sequential model, make an "
            "`IStarRegularization` layer yourself and call it on the hidden "
            "states: `x = self.istar([h1, h2], mask=mask)`. "
            f"Received: model of type {kind}"
        )


def _attached_models(model):
    return [
        m
        for m in functional_graph.nested_models(model)
        if hasattr(m, _ATTRIBUTE)
    ]


def _find_states(model, layers):
    """The (nested) model that has the asked layers, and their states."""
    items = [layers] if isinstance(layers, (str, int)) else list(layers)
    if not items:
        raise ValueError(
            f"`layers` must name at least one layer. Received: layers={layers}"
        )
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
    """The states asked for, each once, in the order in which they run."""
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
    return [
        _State(_state_name(call, index_of), call)
        for call in calls
        if id(call) in chosen
    ]


def _state_name(call, index_of):
    if id(call) in index_of:
        return f"layer_{index_of[id(call)]}"
    return call.layer.name


def _block_at(blocks, index):
    if isinstance(index, bool) or not isinstance(index, int):
        raise ValueError(
            "`layers` must hold indices and names of layers. "
            f"Received: {index!r} in layers"
        )
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


def _check_widths(states):
    widths = {state.name: state.call.output.shape[-1] for state in states}
    if len(set(widths.values())) > 1:
        raise ValueError(
            "`layers` must choose hidden states of one width. "
            f"Received: widths={widths}"
        )


def _padding_mask(model, call):
    """The input of `model` that tells padding from tokens in this state.

    Encoder-decoders name theirs `encoder_padding_mask` and
    `decoder_padding_mask`, and their blocks likewise.
    """
    for tensor in model.inputs:
        side, found, _ = tensor.name.partition("padding_mask")
        if found and side.strip("_") in call.layer.name:
            return tensor
    return None
