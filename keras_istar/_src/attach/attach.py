"""One line that regularizes a model: `attach`, and its undoing, `detach`."""

import contextlib
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras

from keras_istar._src.attach.find_states import check_functional
from keras_istar._src.attach.find_states import find_embedding
from keras_istar._src.attach.find_states import find_states
from keras_istar._src.compat import jax_trainer
from keras_istar._src.compat import keras_graph
from keras_istar._src.compat.distribution import strategy_scope
from keras_istar._src.layers.base import HiddenStateRegularization
from keras_istar._src.layers.isobn import IsotropicBatchNormalization
from keras_istar._src.layers.istar import IStarRegularization
from keras_istar._src.layers.probe import Probe


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

    `attach`, `detach` and `measure` may be called from any thread, on any
    models. Of several that attach to one model, one succeeds. No other thread
    may train the model meanwhile, nor measure it on the JAX backend, where
    Keras takes the variables out of a model that it evaluates.

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
    attach_regularizer(model, regularizer, layers)
    return regularizer


def attach_regularizer(
    model: keras.Model,
    regularizer: HiddenStateRegularization | IsotropicBatchNormalization,
    layers: str | int | Sequence[int | str] | None = None,
) -> None:
    """Attaches any regularizer to a model, in place.

    `IsotropicBatchNormalization` changes what the model computes: it scales
    the sentence embedding `(batch, dim)`, which is what the last `Dense` layer
    is given, before dropout. In KerasHub's classifiers that is the pooler's
    output. Attach it before others; files written then hold a model without it.

    A layer `attach(model, strength=0.0)` beside any of them only logs, so that
    `IStarCallback` shows the isotropy of a model that they train.

    Args:
        model: As for `attach`.
        regularizer: New layer, such as `CosineRegularization(strength=1.0)`. A
            model may have several, of different classes.
        layers: As for `attach`; None for what is usual with the regularizer:
            the last block for `CosineRegularization`, else all blocks. For
            `IsotropicBatchNormalization` the name of the layer that returns
            the sentence embedding, or None for the one above.

    Raises:
        ValueError: As `attach`; or if the model has no such embedding.

    Example:

    >>> inputs = keras.Input((8, 4))
    >>> hidden = keras.layers.Dense(16, name="encoder")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    >>> cosine = keras_istar.CosineRegularization(strength=1.0)
    >>> keras_istar.attach_regularizer(model, cosine, layers="encoder")
    >>> cosine.built
    True
    """
    check_functional(model)
    if not isinstance(
        regularizer, (HiddenStateRegularization, IsotropicBatchNormalization)
    ):
        raise ValueError(
            "`regularizer` must be a layer such as `IStarRegularization`. "
            f"Received: regularizer={regularizer!r:.200}"
        )
    with keras_graph.graph_lock:
        if keras_graph.is_in_use(regularizer):
            raise ValueError(
                "`regularizer` must be a layer of its own, which no model "
                f"calls yet. Received: regularizer={regularizer!r}"
            )
        if isinstance(regularizer, HiddenStateRegularization):
            _attach_below(model, regularizer, layers)
        else:
            _insert(model, regularizer, layers)
        jax_trainer.hook(model)
        keras_graph.forget_traces(model)


def _attach_below(model, regularizer, layers):
    name = regularizer.default_name
    if any(attached == name for _, attached in _regularizers(model)):
        raise _already_attached(model)
    states = find_states(
        model, regularizer.default_layers if layers is None else layers
    )
    dim = states.tensors[0].shape[-1]
    if regularizer.built and regularizer.dim != dim:
        raise ValueError(
            f"`regularizer` must be new, or built for hidden states of width "
            f"{dim}. Received: regularizer of width {regularizer.dim}"
        )
    regularizer.state_names = states.names
    regularizer.owner_name = states.owner.name
    regularizer.join(model)
    with strategy_scope(model):
        keras_graph.attach_layer(
            states.owner, name, regularizer, states.tensors, mask=states.masks
        )
    keras_graph.suspend_recomputation(model)


def _insert(model, normalization, layers):
    if keras_graph.inserted_layer(model) or keras_graph.attached_layers(model):
        raise _already_attached(model)
    embedding = find_embedding(model, layers)
    with strategy_scope(model):
        keras_graph.insert_layer(
            model, normalization.default_name, normalization, embedding
        )


def _already_attached(model):
    return ValueError(
        "`model` is already attached; call `detach(model)` first. "
        f"Received: model={model.name!r}"
    )


def _regularizers(model):
    """Models and names of what was attached, `measure` may show more."""
    return [
        (nested, name)
        for nested in keras_graph.nested_models(model)
        for name, layer in keras_graph.attached_layers(nested).items()
        if isinstance(layer, HiddenStateRegularization)
    ]


def detach(model: keras.Model) -> None:
    """Undoes `attach`: the model is exactly what it was before.

    Args:
        model: The model given to `attach`, or one that contains it.

    Raises:
        ValueError: If nothing is attached to `model`.

    Example:

    >>> inputs = keras.Input((8, 4))
    >>> hidden = keras.layers.Dense(16, name="encoder")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    >>> layer = keras_istar.attach(model, layers="encoder")
    >>> keras_istar.detach(model)
    >>> len(model.non_trainable_weights)
    0
    """
    check_functional(model)
    with keras_graph.graph_lock:
        regularizers = _regularizers(model)
        is_normalized = keras_graph.inserted_layer(model) is not None
        if not regularizers and not is_normalized:
            raise ValueError(
                "`model` must have been attached before. "
                f"Received: model={model.name!r}"
            )
        for nested, name in regularizers:
            keras_graph.detach_layer(nested, name)
        if is_normalized:
            keras_graph.remove_inserted_layer(model)
        keras_graph.resume_recomputation(model)
        for nested in keras_graph.nested_models(model):
            jax_trainer.unhook(nested)
        keras_graph.forget_traces(model)


@contextlib.contextmanager
def probed(
    model: keras.Model, layers: str | int | Sequence[int | str]
) -> Iterator[Probe]:
    """Within this scope, `model` shows the chosen states to a `Probe`.

    Args:
        model: KerasHub task or backbone, or any Functional model.
        layers: Which hidden states, as in `attach`.

    Raises:
        ValueError: As `attach`.
    """
    with keras_graph.graph_lock:
        states = find_states(model, layers)
        probe = Probe(states.names, states.tensors[0].shape[-1])
        attribute = f"istar_probe_{id(probe)}"
        with strategy_scope(model):
            keras_graph.attach_layer(
                states.owner,
                attribute,
                probe,
                states.tensors,
                mask=states.masks,
            )
        # States cannot leave a model that is recomputed as a whole.
        keras_graph.suspend_recomputation(model)
    try:
        yield probe
    finally:
        with keras_graph.graph_lock:
            keras_graph.detach_layer(states.owner, attribute)
            # What others suspend stays suspended.
            if not any(
                keras_graph.attached_layers(nested)
                for nested in keras_graph.nested_models(model)
            ):
                keras_graph.resume_recomputation(model)
