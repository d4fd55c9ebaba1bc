"""`attach` regularizes a model in one line; `detach` undoes it."""

import contextlib
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_istar._src import validation
from keras_istar._src.attach.find_embedding import find_embedding
from keras_istar._src.attach.find_states import HiddenStates
from keras_istar._src.attach.find_states import Layers
from keras_istar._src.attach.find_states import check_functional
from keras_istar._src.attach.find_states import find_states
from keras_istar._src.attach.padding import Mask
from keras_istar._src.attach.pooling import Pooling
from keras_istar._src.attach.pooling import check_poolable
from keras_istar._src.attach.pooling import check_pooling
from keras_istar._src.attach.pooling import pool
from keras_istar._src.compat import keras_private
from keras_istar._src.compat import train_steps
from keras_istar._src.compat.distribution import strategy_scope
from keras_istar._src.layers.base import HiddenStateRegularization
from keras_istar._src.layers.isobn import IsotropicBatchNormalization
from keras_istar._src.layers.istar import IStarRegularization
from keras_istar._src.layers.probe import SILENT
from keras_istar._src.layers.probe import Probe
from keras_istar._src.layers.probe import current_recorder
from keras_istar._src.layers.probe import silence
from keras_istar._src.types import Schedulable


def attach(
    model: keras.Model,
    layers: Layers = "all",
    strength: Schedulable | None = None,
    shrinkage: Schedulable = 0.2,
    momentum: float | None = None,
    mask: Mask = None,
    target: Any = None,
    pooling: Pooling = None,
    **options: Any,
) -> IStarRegularization:
    """Regularizes hidden states of a model, in place.

    The model keeps its type, layers, config, compile state and outputs, bit
    for bit. While it trains, the penalty of `IStarRegularization` on the chosen
    states joins its loss; without `target` and `strength`, it moves isotropy
    gently towards three quarters of what it is at the start. Files written from
    the model load in plain Keras and KerasHub, which ignore the only addition,
    the estimate Σ_S in weight files.

    Blocks are layers made of layers that map hidden states
    `(batch, length, dim)` to hidden states of the same shape, such as the
    encoder or decoder layers of a KerasHub backbone. The embedding output is
    not one. A block that is called several times (ALBERT) counts once a call.
    Where a composite layer calls the blocks, as in a Vision Transformer, each
    of them is taken, not the composite layer.

    Blocks and names are looked for in the model, then in the models nested in
    it. One call attaches to one of these models. If several nested models have
    what is asked for, the error lists the line to write for each, such as
    `attach(model, "text_encoder/all")`. If other parts of the model have layers
    of this name, or blocks of the same class, a warning says what to write. A
    nested model that is called twice (siamese) gives one cloud of both calls.
    `print(layer)` shows which states were taken.

    Padding is left out by the mask that a block is given, by the model's input
    `padding_mask` or `attention_mask` (an encoder-decoder has one for each
    side), or by Keras masks. A mask must be as long as the states. Where token
    ids come without any mask, or a Keras mask was lost on the way, a warning
    asks for the argument `mask`. While attached, `measure` uses this argument,
    too.

    Attach to the model that you `fit`. Its steps are traced anew, even while
    `fit` runs, so it may have been fitted before, and a callback may attach. If
    you attach to a part of a model that has been trained, compile the whole
    model again, or fit it with an `IStarCallback`; the same holds for `detach`.
    The whole must call the part, as in `head(encoder(inputs))`. A model of
    `head(encoder.output)` consists of the encoder's layers, does not call the
    encoder, and gets no penalty. If the whole calls the part several times, as
    `TimeDistributed` does, each call is a cloud of its own, and the penalties
    add up; on JAX this needs an `IStarCallback`.

    A model built inside of `keras.RematScope` recomputes its blocks as before,
    but no longer all of itself.

    Copies are plain models, however they are made: `keras.models.clone_model`,
    `copy.deepcopy`, `from_config`, `keras.Model(model.inputs, model.outputs)`,
    and models loaded from files. To go on from a `.keras` file with its Σ_S,
    load it, attach, and load the same file once more:
    `model.load_weights(path)`.

    `attach`, `detach` and `measure` may be called from any thread, on any
    models. If several threads attach to one model, one succeeds. Meanwhile, no
    other thread may train the model, or measure it on the JAX backend, where
    Keras takes the variables out of a model that it evaluates.

    Args:
        model: KerasHub `Task` or `Backbone`, or any Functional or built
            Sequential Keras model.
        layers: `"all"` blocks; or the index of a block, from 0, negative from
            the end; or the name of any layer with an output `(..., dim)`; or a
            list of indices and names, which gives the states their order.
            Names of nested models, or of composite layers that hold blocks, may
            come first: `"text_encoder/all"`, `"text_encoder/-1"`,
            `"query/encoder"`. For a layer with several outputs, the key of one
            comes last: `"bert/sequence_output"`. `"output"` is what the model
            itself returns, if that is one embedding of each example,
            `(batch, dim)`, and no layer has this name.
        strength: The paper's λ, see `IStarRegularization`. Without a `target`,
            it takes the place of the default target.
        shrinkage: The paper's ζ, see `IStarRegularization`.
        momentum: See `IStarRegularization`.
        mask: Which tokens count: None to find out; the name of an input,
            non-zero for tokens that count; the name of an input and the id of
            padding in it, `{"token_ids": 0}`; a function of the inputs (a dict
            if the model is given one) that returns `(batch, length)`, such as
            `lambda x: x["token_ids"] != 0`; or False for all, without a
            warning. The inputs are those of the nested model, if the states
            are in one.
        target: The IsoScore to hold, see `IStarRegularization`.
        pooling: None to score tokens; or how the tokens of an example become
            one embedding, to score embeddings: their `"mean"` or `"max"` in
            each dimension, or the `"first"` or `"last"` of them. Padding is
            left out of all four.
        **options: Further arguments of `IStarRegularization`.

    Returns:
        The `IStarRegularization` layer.

    Raises:
        TypeError: If an option is unknown.
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
    _check_options(options)
    check_functional(model)
    regularizer = IStarRegularization(
        strength, shrinkage, momentum, target=target, **options
    )
    _attach(model, regularizer, layers, mask, pooling, "attach(model, {})")
    return regularizer


def _check_options(options):
    own = list(inspect.signature(attach).parameters)[1:-1]
    further = list(inspect.signature(IStarRegularization).parameters)[:-1]
    known = [*dict.fromkeys([*own, *further]), "name", "dtype"]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(
            f"`attach` takes, after `model`, the arguments {known}. "
            f"Received: {unknown}"
        )


def attach_regularizer(
    model: keras.Model,
    regularizer: HiddenStateRegularization | IsotropicBatchNormalization,
    layers: Layers | None = None,
    mask: Mask = None,
    pooling: Pooling = None,
) -> HiddenStateRegularization | IsotropicBatchNormalization:
    """Attaches any regularizer to a model, in place.

    `IsotropicBatchNormalization` changes what the model computes: it scales the
    sentence embedding `(batch, dim)`, the input of the last `Dense` layer,
    before dropout. In KerasHub's classifiers that is the pooler's output.
    Attach it before other regularizers. Files written while it is attached hold
    a model without it.

    To log isotropy as well, call `attach(model, strength=0.0)` afterwards: this
    layer only logs, and `IStarCallback` works with it.

    Args:
        model: As for `attach`.
        regularizer: New layer, such as `CosineRegularization(strength=1.0)`. A
            model may have several, of different classes.
        layers: As for `attach`; None for the default of the regularizer: the
            last block for `CosineRegularization`, else all blocks. For
            `IsotropicBatchNormalization` the name of the layer that returns the
            sentence embedding, or None for the one above.
        mask: As for `attach`; not used by `IsotropicBatchNormalization`.
        pooling: As for `attach`; not used by `IsotropicBatchNormalization`.

    Returns:
        `regularizer`.

    Raises:
        ValueError: As `attach`; or if `regularizer` is not one or is in use
            already, or the model has no sentence embedding to scale.

    Example:

    >>> inputs = keras.Input((8, 4))
    >>> hidden = keras.layers.Dense(16, name="encoder")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    >>> cosine = keras_istar.attach_regularizer(
    ...     model, keras_istar.CosineRegularization(strength=1.0), "encoder"
    ... )
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
    line = "attach_regularizer(model, regularizer, {})"
    _attach(model, regularizer, layers, mask, pooling, line)
    return regularizer


def _attach(model, regularizer, layers, mask, pooling, line):
    check_pooling(pooling)
    with keras_private.graph_lock, contextlib.ExitStack() as undo:
        train_steps.sync(model)
        if keras_private.is_in_use(regularizer):
            raise ValueError(
                "`regularizer` must be a layer of its own, which no model "
                f"calls yet. Received: regularizer={regularizer!r}"
            )
        outside = keras_private.layers_outside(model)
        if isinstance(regularizer, HiddenStateRegularization):
            _attach_below(model, regularizer, layers, mask, pooling, line, undo)
        else:
            _insert(model, regularizer, layers, undo)
        if not train_steps.is_hooked(model):
            undo.callback(train_steps.unhook, model)
            train_steps.hook(model)
        keras_private.retrace(model)
        if outside:
            _warn_of_models_around(model, outside)
        undo.pop_all()


def _warn_of_models_around(model, outside):
    """Warns that a model may have been made from tensors of `model`."""
    warnings.warn(
        f"The layers {outside} were called on tensors of {model.name!r}, "
        "outside of it. `keras.Model(model.input, outputs)`, made from what "
        f"they return, does not call {model.name!r} and trains without a "
        "penalty. If you train that model, attach to it; if it is gone, ignore "
        "this.",
        stacklevel=4,
    )


def _attach_below(model, regularizer, layers, mask, pooling, line, undo):
    if layers is None:
        layers = regularizer.default_layers
    states = find_states(model, layers, mask, line)
    check_poolable(pooling, states.names, states.shapes)
    _check_call(model)
    if states.owner is not model:
        _check_call(states.owner)
    name = regularizer.default_name
    if name in keras_private.attached_layers(states.owner):
        raise _already_attached(model, states.owner)
    _check_regularizer(regularizer, states)
    told = {
        "state_names": states.names,
        "owner_name": states.owner.name,
        "attachment": states.attachment._replace(pooling=pooling),
        "mask_argument": mask,
    }
    for key, value in told.items():
        undo.callback(
            setattr, regularizer, key, getattr(regularizer, key, None)
        )
        setattr(regularizer, key, value)
    regularizer.join(model)
    with strategy_scope(model):
        # First: another thread may run the model as soon as the layer is in it.
        if not regularizer.built:
            regularizer.build(_pooled_shapes(states.shapes, pooling))
        _attach_layer(model, states, name, regularizer, pooling, undo)
    for sentence in states.warnings:
        warnings.warn(sentence, stacklevel=4)
    if not states.is_trainable and regularizer.strength != 0:
        warnings.warn(
            "No layer before the hidden states has weights that the model "
            "trains: the penalty has no effect while they are frozen. With "
            "`strength=0.0`, the layer only logs. "
            f"Received: model={model.name!r}",
            stacklevel=4,
        )


def _check_call(model):
    """Raises if a user's `call` leaves out the graph, or `training`."""
    if not keras_private.has_own_call(model):
        return
    with silence():
        seen = keras_private.run_graph(model)
    if seen is not None and not any(seen):
        raise ValueError(
            "The `call` of `model` must run `super().call(inputs, "
            "training=training)`, for what is attached runs with the graph. "
            "Else call an `IStarRegularization` layer in it. "
            f"{validation.see_guide('subclassed-models')}. "
            f"Received: model of type {type(model).__name__}, whose `call` "
            f"{'does not pass `training` on' if seen else 'does not'}"
        )


def _pooled_shapes(shapes, pooling):
    if pooling is None:
        return shapes
    return [(shape[0], shape[-1]) for shape in shapes]


def _check_regularizer(regularizer, states):
    dim = states.dim
    if regularizer.built and regularizer.dim != dim:
        raise ValueError(
            f"`regularizer` must be new, or built for hidden states of width "
            f"{dim}. Received: regularizer of width {regularizer.dim}"
        )
    number = len(states.names)
    max_tokens = getattr(regularizer, "max_tokens", None)
    if max_tokens is not None and max_tokens < 2 * number:
        raise ValueError(
            "`max_tokens` must be at least two for each of the "
            f"{number} hidden states, {2 * number}. "
            f"Received: max_tokens={max_tokens}"
        )


def _attach_layer(model, states: HiddenStates, name, layer, pooling, undo):
    """Makes the owner of hidden states call `layer` on them and their masks."""
    number = len(states.tensors)
    tensors = list(states.tensors)
    places = []
    own_masks = [
        state
        for state, source in zip(states.tensors, states.masks, strict=True)
        if source is None and states.uses_keras_masks
    ]
    for source in states.masks:
        start = len(tensors)
        tensors += [] if source is None else source.tensors
        places.append(slice(start, len(tensors)))

    def call(values, training):
        recorder = current_recorder()
        if recorder is SILENT:
            return
        # In inference nothing is needed, and nothing may fail.
        if not training and recorder is None:
            if isinstance(layer, HiddenStateRegularization):
                layer.rest()
                if training is None:
                    layer.warn_of_no_training()
            return
        hidden = list(values[:number])
        _check_presence(states.names, hidden)
        masks = [
            _mask_of(state, source, values[place], states.uses_keras_masks)
            for state, source, place in zip(
                hidden, states.masks, places, strict=True
            )
        ]
        pooled = [
            pool(pooling, *pair) for pair in zip(hidden, masks, strict=True)
        ]
        hidden, masks = map(list, zip(*pooled, strict=True))
        layer(hidden, mask=masks, training=training)

    keras_private.attach_layer(
        states.owner, name, layer, call, tensors, model, own_masks
    )
    undo.callback(keras_private.detach_layer, states.owner, name)


def _mask_of(state, source, values, uses_keras_masks):
    if source is not None:
        return source.function(*values)
    return keras_private.kept_mask(state) if uses_keras_masks else None


def _check_presence(names, states):
    missing = [
        name for name, state in zip(names, states, strict=True) if state is None
    ]
    if missing:
        raise ValueError(
            "The attached layers must be called as often as when the model was "
            "built. In this step, those of the hidden states "
            f"{missing} are not: attach to layers that always run."
        )


def _insert(model, normalization, layers, undo):
    if keras_private.is_attached(model):
        raise _already_attached(model, model)
    embedding = find_embedding(model, layers)
    with strategy_scope(model):
        keras_private.insert_layer(
            model, normalization.default_name, normalization, embedding
        )
    undo.callback(keras_private.remove_inserted_layer, model)


def _already_attached(model, owner):
    place = "" if owner is model else f", in its part {owner.name!r}"
    return ValueError(
        f"`model` is already attached{place}; call `detach(model)` first. "
        f"Received: model={model.name!r}"
    )


def _regularizers(model):
    """Models and names of attached regularizers, without probes."""
    return [
        (nested, name)
        for nested in keras_private.nested_models(model)
        for name, layer in keras_private.attached_layers(nested).items()
        if isinstance(layer, HiddenStateRegularization)
    ]


def detach(model: keras.Model, fold: bool = False) -> None:
    """Undoes `attach` and `attach_regularizer`.

    The model then holds nothing of this package. Its weights stay as they are,
    except with `fold`. If you detach a part of a model that has been trained
    with it, compile the whole model again, unless an `IStarCallback` was in its
    `fit`.

    Args:
        model: The model given to `attach`, or one that contains it.
        fold: Whether the scaling of an attached `IsotropicBatchNormalization`
            becomes part of the `Dense` layers that take the scaled embedding,
            so that the model's outputs stay as they are. Otherwise the scaling
            goes with the layer.

    Raises:
        ValueError: If nothing is attached to `model`; or if `fold` is asked
            for, and no `IsotropicBatchNormalization` is attached, or a layer
            that takes the scaled embedding is not a plain `Dense` layer. The
            model is then left as it was.

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
    validation.check_bool("fold", fold)
    with keras_private.graph_lock:
        regularizers = _regularizers(model)
        is_normalized = keras_private.inserted_layer(model) is not None
        if not regularizers and not is_normalized:
            raise ValueError(
                "`model` must have been attached before. "
                f"Received: model={model.name!r}"
            )
        if fold:
            _fold(model)
        trained = {id(model): model}
        for nested, name in regularizers:
            layer = keras_private.attached_layers(nested)[name]
            trained |= {id(x): x for x in layer.joined_models()}
        for outer in trained.values():
            train_steps.sync(outer)
        for nested, name in regularizers:
            keras_private.detach_layer(nested, name)
        if is_normalized:
            keras_private.remove_inserted_layer(model)
        for outer in trained.values():
            _unhook(outer)
            keras_private.retrace(outer)


def _unhook(model):
    """Undoes the hooks of a model and those in it, if nothing needs them."""
    is_functional = keras_private.is_functional(model)
    models = keras_private.nested_models(model) if is_functional else [model]
    kinds = (HiddenStateRegularization, IsotropicBatchNormalization)
    if not keras_private.find_layers(model, kinds):
        for nested in models:
            train_steps.unhook(nested)


def _fold(model):
    """Moves the scaling θ of IsoBN into the kernels of the layers after it.

    x ↦ (θ∘x) W is x ↦ x (diag(θ) W), and dropout in between commutes.
    """
    name = keras_private.inserted_layer(model)
    if name is None:
        raise ValueError(
            "`fold` needs a model with an `IsotropicBatchNormalization`. "
            f"Received: fold=True, model={model.name!r}"
        )
    normalization = getattr(model, name)
    heads = _heads_after(keras_private.nodes(model), normalization)
    for head in heads:
        is_plain = type(head) is keras.layers.Dense and not (
            head.lora_enabled or head.quantization_mode
        )
        calls = [
            node
            for node in keras_private.nodes(model)
            if node.operation is head
        ]
        if not is_plain or len(calls) > 1:
            raise ValueError(
                "`fold` needs plain `Dense` layers, each called once, after "
                f"the `IsotropicBatchNormalization`. Received: {head.name!r} "
                f"of type {type(head).__name__}, called {len(calls)} times"
            )
    for head in heads:
        scale = ops.cast(normalization.scale(), head.kernel.dtype)
        head.kernel.assign(scale[:, None] * head.kernel)


def _heads_after(nodes, layer):
    """Layers that take what `layer` returns, after dropout."""
    outputs = {
        id(x) for node in nodes if node.operation is layer for x in node.outputs
    }
    heads = []
    for node in nodes:
        if outputs.isdisjoint(id(x) for x in node.input_tensors):
            continue
        if isinstance(node.operation, keras.layers.Dropout):
            heads += _heads_after(nodes, node.operation)
        else:
            heads.append(node.operation)
    return heads


@contextlib.contextmanager
def probed(
    model: keras.Model,
    layers: Layers,
    mask: Mask = None,
    pooling: Pooling = None,
    probe: Probe | None = None,
) -> Iterator[Probe]:
    """Makes `model` show the chosen states to a `Probe` within this scope.

    Args:
        model: KerasHub task or backbone, or any Functional model.
        layers: Which hidden states, as in `attach`.
        mask: What is padding, as in `attach`.
        pooling: How tokens become embeddings, as in `attach`.
        probe: That of an earlier scope for the same arguments; None for a new
            one.

    Raises:
        ValueError: As `attach`.
    """
    check_pooling(pooling)
    with contextlib.ExitStack() as undo:
        with keras_private.graph_lock:
            line = "measure(model, data, {})"
            states = find_states(model, layers, mask, line)
            for sentence in states.warnings:
                warnings.warn(sentence, stacklevel=2)
            check_poolable(pooling, states.names, states.shapes)
            if probe is None:
                probe = Probe(states.names, states.dim)
            name = f"istar_probe_{id(probe)}"
            with strategy_scope(model):
                _attach_layer(model, states, name, probe, pooling, undo)
        detach_probe = undo.pop_all()
    try:
        yield probe
    finally:
        with keras_private.graph_lock:
            detach_probe.close()
