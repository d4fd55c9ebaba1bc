"""Finds hidden states in a model: blocks, names, widths, padding masks."""

import contextlib
import dataclasses
import itertools
import logging
import numbers
import operator
from collections.abc import Sequence
from typing import NamedTuple

import keras

from keras_istar._src.attach.ambiguity import Layers
from keras_istar._src.attach.ambiguity import check_output_is_unique
from keras_istar._src.attach.ambiguity import left_out
from keras_istar._src.attach.ambiguity import nothing_found
from keras_istar._src.attach.ambiguity import several_models
from keras_istar._src.attach.ambiguity import several_outputs
from keras_istar._src.attach.ambiguity import warnings_of
from keras_istar._src.attach.find_blocks import Chosen
from keras_istar._src.attach.find_blocks import Scope
from keras_istar._src.attach.find_blocks import nodes_before
from keras_istar._src.attach.find_blocks import read_model
from keras_istar._src.attach.find_embedding import is_embedding
from keras_istar._src.attach.padding import Mask
from keras_istar._src.attach.padding import MaskSource
from keras_istar._src.attach.padding import Padding
from keras_istar._src.attach.padding import may_have_mask
from keras_istar._src.compat import keras_private
from keras_istar._src.compat.keras_private import InnerOutput
from keras_istar._src.layers.attachment import Attachment
from keras_istar._src.layers.probe import silence
from keras_istar._src.types import Tensor
from keras_istar._src.validation import see_guide

_logger = logging.getLogger("keras_istar")


class HiddenStates(NamedTuple):
    """Hidden states in the graph of a model, all of one width.

    Attributes:
        owner: The (nested) model in whose graph they are.
        names: A name for each, for logs: `layer_0` for the first block, or the
            name by which the layer was chosen.
        tensors: Symbolic tensors of shape `(batch, length, dim)`, or outputs of
            layers inside of a layer of the graph.
        masks: For each, where its mask comes from; None for its Keras mask.
        uses_keras_masks: Whether masks that Keras puts on states count.
        attachment: A description of these states.
        is_trainable: Whether a layer that computes them has weights that the
            model trains.
        warnings: What the user has to be told, in sentences.
    """

    owner: keras.Model
    names: tuple[str, ...]
    tensors: list[Tensor | InnerOutput]
    masks: list[MaskSource | None]
    uses_keras_masks: bool
    attachment: Attachment
    is_trainable: bool
    warnings: tuple[str, ...]

    @property
    def shapes(self) -> list[tuple[int | None, ...]]:
        """The shape of each hidden state."""
        return list(self.attachment.shapes)

    @property
    def dim(self) -> int:
        """Width of the hidden states."""
        return int(self.shapes[0][-1] or 0)


_OUTPUT = "output"  # A value of `layers`: what the model returns.


def find_states(
    model: keras.Model,
    layers: Layers,
    mask: Mask = None,
    line: str = "attach(model, {})",
) -> HiddenStates:
    """Finds the states that `layers` chooses, see `attach`.

    Args:
        model: Model with a graph.
        layers: See `attach`.
        mask: See `attach`.
        line: Pattern of the user's line of code, for messages.

    Raises:
        ValueError: If `model` is not Functional, or a chosen layer does not
            exist or is of another width than the others.
    """
    check_functional(model)
    root = read_model(model)
    if layers == _OUTPUT and _OUTPUT not in root.names:
        check_output_is_unique(root, _OUTPUT)
        return _own_output(model, mask)
    items = _parse(layers)
    chosen = _choose(root, items, layers, line)
    states = [c.call.outputs[c.output] for c in chosen]
    names = _unique([c.name for c in chosen])
    _check_widths(names, chosen, states)
    owner = _owner_of([c.scope for c in chosen])
    tensors = _tensors(root, chosen, owner)
    found = _find_masks(model, owner, chosen, names, tensors, mask)
    sources, uses_keras_masks, words, lacking = found
    has_prefix = any(prefix for prefix, _ in items)
    sentences = list(warnings_of(root, chosen, has_prefix, line))
    if lacking:
        sentences.append(_no_mask_found(owner, lacking))
    others = left_out(root, chosen, line)
    for sentence in others:
        _logger.info("attach(%r): %s", model.name, sentence)
    return HiddenStates(
        owner.model,
        names,
        tensors,
        sources,
        uses_keras_masks,
        Attachment(
            owner.model.name,
            names,
            tuple(tuple(x.shape) for x in states),
            tuple(words),
            tuple(others),
        ),
        _are_trainable(chosen, model),
        tuple(sentences),
    )


def _find_masks(model, owner, chosen, names, tensors, mask):
    """Finds the masks of states.

    Returns:
        A tuple: the source of each mask in terms of the owner's graph, None for
        a Keras mask; whether Keras masks count; where each mask comes from, in
        words; names of the states that should have a mask and have none.
    """
    paddings = {id(c.scope): Padding(c.scope, mask) for c in chosen}
    known_masks = [] if mask is not None else _masks_said(owner.model)
    uses_keras_masks = True
    sources = []
    expecting = []
    for name, c in zip(names, chosen, strict=True):
        state = c.call.outputs[c.output]
        padding = _said_before(c, state, known_masks) or paddings[id(c.scope)]
        uses_keras_masks &= padding.mask is not False
        source = padding.source_for(c.call, state)
        source = _lifted(source, c.scope, owner)
        sources.append(source)
        # An embedding of each example has no tokens that could be padding.
        if source is None and not is_embedding(state):
            if padding.expects_mask(c.call, state):
                expecting.append(name)
    masked: list[str] = []
    unmasked: list[str] = []
    if expecting:
        with silence():
            have_masks = keras_private.have_masks(owner.model, tensors, model)
        if have_masks is None:  # Then what the graph says is the best guess.
            may_have = [
                may_have_mask(c.call, c.call.outputs[c.output]) for c in chosen
            ]
        else:
            may_have = have_masks
            masked = [*itertools.compress(names, have_masks)]
        unmasked = [*itertools.compress(names, map(operator.not_, may_have))]
    lacking = [name for name in expecting if name in unmasked]
    words = [
        _words_of(source, uses_keras_masks, name in masked, name in lacking)
        for name, source in zip(names, sources, strict=True)
    ]
    return sources, uses_keras_masks, words, lacking


def _own_output(model, mask):
    """The model's own output, if that is one embedding of each example."""
    embeddings = [x for x in model.outputs if is_embedding(x)]
    if len(model.outputs) != 1 or not embeddings or mask not in (None, False):
        raise ValueError(
            "`layers='output'` is for models that return one embedding of each "
            "example, `(batch, dim)`, which needs no `mask`; else name a "
            "layer. Received: outputs of shapes "
            f"{[tuple(x.shape) for x in model.outputs]}, mask={mask!r:.200}"
        )
    (output,) = embeddings
    return HiddenStates(
        model,
        (_OUTPUT,),
        [output],
        [None],
        False,
        Attachment(
            model.name, (_OUTPUT,), (tuple(output.shape),), ("none, one each",)
        ),
        bool(model.trainable_weights),
        _warnings_of_scores(model),
    )


def _warnings_of_scores(model):
    """What to say of the output of a classifier of KerasHub."""
    classes = getattr(model, "num_classes", None)
    if classes is None:
        return ()
    return (
        f"`layers='output'` takes the scores of the {classes} classes that "
        f"{model.name!r} returns, which are no embedding: name a layer before "
        "its head.",
    )


def _are_trainable(chosen, model):
    """Whether `model` trains weights of a chosen layer, or of one before."""
    # A frozen layer with LoRA has no trainable weights; the model has.
    trained = {id(x) for x in model.trainable_weights}
    return any(
        id(x) in trained
        for c in chosen
        for node in _nodes_to(c)
        for x in getattr(node.operation, "weights", [])
    )


def _nodes_to(chosen):
    """The node of a chosen call, and those before it in all models around."""
    scope, node = chosen.scope, chosen.call.node
    yield node
    while scope is not None:
        yield from nodes_before(scope.model, node.input_tensors)
        scope, node = scope.around, scope.node


def _masks_said(model):
    """Arguments `mask` of the layers that are attached to `model`."""
    masks = [
        getattr(layer, "mask_argument", None)
        for layer in keras_private.attached_layers(model).values()
    ]
    return [mask for mask in masks if mask is not None]


def _said_before(chosen, state, masks):
    """The padding by the first of the masks that fits a state, or None."""
    for mask in masks:
        with contextlib.suppress(ValueError):
            padding = Padding(chosen.scope, mask)
            padding.source_for(chosen.call, state)
            return padding
    return None


def check_functional(model: keras.Model) -> None:
    """Raises unless `model` has a graph; says what to do if it has none."""
    if keras_private.is_functional(model):
        return
    if isinstance(model, keras.Sequential):
        raise ValueError(
            "`model` must be built: give it a `keras.Input` first, or call it "
            "once. Received: model of type Sequential, not built"
        )
    advice = ""
    if isinstance(model, keras.Model):
        advice = (
            "In a subclassed model, make an `IStarRegularization` layer "
            "yourself and call it on the hidden states: "
            "`x = self.istar([h1, h2], mask=mask, training=training)` "
            "in `def call(self, inputs, training=None)`. "
            f"{see_guide('subclassed-models')}. "
        )
    raise ValueError(
        "`model` must be a KerasHub task or backbone, or a Functional Keras "
        f"model. {advice}Received: model of type {type(model).__name__}"
    )


def _choose(root, items, layers, line):
    """The calls that `layers` asks for, each once.

    They are in the order of `layers`; those of one item as they run.
    """
    chosen: dict[tuple[int, int], Chosen] = {}
    places: dict[tuple[int, int], int] = {}
    by_prefix: dict[tuple[str, ...], list] = {}
    for prefix, item in items:
        by_prefix.setdefault(prefix, []).append(item)
    for prefix, group in by_prefix.items():
        for c in _choose_together(root, prefix, group, layers, line):
            key = (id(c.scope), id(c.call))
            known = chosen.get(key)
            if known is not None and known.output != c.output:
                raise ValueError(
                    f"`layers` must choose one output of {c.call.layer.name!r}"
                    f". Received: layers={layers!r:.200}"
                )
            if known is None or known.name.startswith("layer_"):
                chosen[key] = c
            place = items.index((prefix, c.item))
            places[key] = min(place, places.get(key, place))
    models = {id(c.scope.model): c.scope for c in chosen.values()}
    if len(models) > 1:
        raise several_models(
            list(models.values()), [item for _, item in items], layers, line
        )
    order = {
        (id(scope), id(call)): i
        for i, (scope, call) in enumerate(root.everything())
    }
    in_order = sorted(chosen, key=lambda key: (places[key], order[key]))
    return [chosen[key] for key in in_order]


def _parse(layers):
    """Splits each item into a prefix of names and an index or name."""
    items = [layers] if isinstance(layers, (str, numbers.Integral)) else layers
    if isinstance(items, bytes) or not isinstance(items, Sequence) or not items:
        raise ValueError(
            "`layers` must be 'all', an index, a name such as `layer.name`, or "
            f"a list of indices and names. Received: layers={layers!r:.200}"
        )
    parsed: list[tuple[tuple[str, ...], int | str]] = []
    for item in items:
        if isinstance(item, numbers.Integral) and not isinstance(item, bool):
            item = int(item)  # NumPy's integers print as no index does.
        if isinstance(item, bool) or not isinstance(item, (int, str)):
            raise ValueError(
                "`layers` must hold indices and names of layers, such as "
                "`layer.name`. "
                f"Received: {item!r:.200} in layers"
            )
        if isinstance(item, int) or "/" not in item:
            parsed.append(((), item))
            continue
        *prefix, last = item.split("/")
        is_index = last.lstrip("-").isdigit()
        parsed.append((tuple(prefix), int(last) if is_index else last))
    return parsed


def _choose_together(root, prefix, items, layers, line):
    """Makes the choices in one (nested) model, or in a stack in a model."""
    scopes, stack, named = _scopes_at(root, prefix)
    if scopes:
        names = {x for x in items if isinstance(x, str)} - {"all"}
        needs_blocks = len(names) < len(set(items)) or "all" in items

        def fits(scope):
            calls = _calls_in(scope, stack)
            return names <= {call.layer.name for call in calls} and (
                not needs_blocks or any(call.is_block for call in calls)
            )

        found = _outermost(scopes, fits)
        if found:
            models = {id(scope.model): scope for scope in found}
            if len(models) > 1:
                raise several_models(list(models.values()), items, layers, line)
            return [
                c
                for scope in found
                for c in _choose_in(scope, stack, items, layers)
            ]
    several = [(s, call) for s, call in named if len(call.outputs) > 1]
    if several and (not scopes or _output_at(several[0][1], items) is not None):
        chosen = []
        for scope, call in several:
            output = _output_at(call, items)
            if output is None:
                raise several_outputs(call, layers)
            _check_state(scope, call, output)
            chosen.append(Chosen(scope, call, output, prefix[-1], items[0]))
        return chosen
    raise nothing_found(root, scopes, prefix, items, layers)


def _scopes_at(root, prefix):
    """Finds what a prefix of names leads to.

    Returns:
        A tuple: the calls of nested models; the names of composite layers in
        them; the calls of a layer that the last name may mean instead.
    """
    scopes, named = [root], []
    stack: tuple[str, ...] = ()
    for i, name in enumerate(prefix):
        is_last = i == len(prefix) - 1
        if is_last:
            named = [
                (scope, call)
                for scope in _nearest(
                    scopes,
                    lambda s, name=name: any(
                        c.layer.name == name and not c.is_inner for c in s.calls
                    ),
                )
                for call in scope.calls
                if call.layer.name == name and not call.is_inner
            ]
        nested = _nearest(
            [x for scope in scopes for x in scope.scopes],
            lambda s, name=name: s.model.name == name,
        )
        if nested:
            scopes = nested
            continue
        holders = _nearest(
            scopes,
            lambda s, name=name: any(name in c.stack for c in s.calls),
        )
        if holders:
            scopes, stack = holders, (*stack, name)
        elif name != root.model.name or i:
            return [], (), named
    return scopes, stack, named


def _nearest(scopes, fits):
    """Scopes that fit, of the outermost level that has any."""
    while scopes:
        found = [scope for scope in scopes if fits(scope)]
        if found:
            return found
        scopes = [x for scope in scopes for x in scope.scopes]
    return []


def _outermost(scopes, fits):
    """Scopes that fit, none of them inside of another."""
    found: list[Scope] = []
    for scope in scopes:
        found += [scope] if fits(scope) else _outermost(scope.scopes, fits)
    return found


def _calls_in(scope, stack):
    return [
        call
        for call in scope.calls
        if all(name in call.stack for name in stack)
    ]


def _choose_in(scope, stack, items, layers):
    calls = _calls_in(scope, stack)
    blocks = [call for call in calls if call.is_block]
    index_of = {id(call): i for i, call in enumerate(scope.blocks)}
    chosen: dict[int, Chosen] = {}
    for item in items:
        if isinstance(item, int) or item == "all":
            _check_seen(scope)
            for call in blocks if item == "all" else [_at(blocks, item)]:
                name = f"layer_{index_of[id(call)]}"
                c = Chosen(scope, call, _state_in(call), name, item)
                chosen.setdefault(id(call), c)
        else:
            for call in _named(calls, item, layers):
                output = _output_of(scope, call)
                name = "/".join((*stack, item))
                c = Chosen(scope, call, output, name, item)
                first = chosen.get(id(call), c).item
                chosen[id(call)] = c._replace(item=first)
    return list(chosen.values())


def _check_seen(scope):
    for call in scope.calls:
        if call.problem is not None:
            raise ValueError(
                f"`layers` cannot choose blocks, for {call.layer.name!r} "
                f"{call.problem}. Choose layers by name: {scope.names}"
            )


def _named(calls, name, layers):
    named = [call for call in calls if call.layer.name == name]
    different = {id(call.layer): call for call in named}
    if len(different) > 1:
        paths = ["/".join((*c.stack, name)) for c in different.values()]
        raise ValueError(
            f"`layers` must say which {name!r}, there are: {paths}. "
            f"Received: layers={layers!r:.200}"
        )
    return named


def _at(blocks, index):
    if not -len(blocks) <= index < len(blocks):
        raise ValueError(
            f"`layers` must hold indices from {-len(blocks)} to "
            f"{len(blocks) - 1}, the model has {len(blocks)} blocks. "
            f"Received: {index} in layers"
        )
    return blocks[index]


def _state_in(call):
    """Position of the output of a block that has the shape of an input."""
    shapes = [tuple(x.shape) for x in call.inputs]
    for i, output in enumerate(call.outputs):
        if tuple(output.shape) in shapes:
            return i
    return 0


def _output_of(scope, call):
    """Position of the output of a layer chosen by name."""
    if len(call.outputs) == 1:
        _check_state(scope, call, 0)
        return 0
    if call.is_block:
        return _state_in(call)
    used = keras_private.used_tensors(scope.model)
    states = [
        i
        for i, x in enumerate(call.outputs)
        if len(x.shape) >= 3 and (call.is_inner or id(x) in used)
    ]
    if len(states) == 1:
        _check_state(scope, call, states[0])
        return states[0]
    raise several_outputs(call, call.layer.name)


def _output_at(call, items):
    """Position of the output that was asked for by its key, if it exists."""
    keys = keras_private.output_keys(call.node)
    (item, *others) = [str(item) for item in items]
    return None if others or item not in keys else keys.index(item)


def _check_state(scope, call, position):
    shape = tuple(call.outputs[position].shape)
    if len(shape) < 2 or shape[-1] is None or shape[-1] < 2:
        raise ValueError(
            "`layers` must choose layers with an output `(..., dim)`, dim at "
            f"least 2. Received: {call.layer.name!r} with output shape {shape}"
        )
    if len(shape) >= 3 and _is_channels_first(scope, call):
        raise ValueError(
            "`layers` must choose layers whose last axis is `dim`; "
            f"{call.layer.name!r} returns channels first. Attach to a "
            "`keras.layers.Permute` after it. "
            f"Received: {call.layer.name!r} with output shape {shape}"
        )


def _is_channels_first(scope, call):
    """Whether the nearest layer that knows of channels has them first."""
    producers = {
        id(x): other
        for other in scope.calls
        if not other.is_inner
        for x in other.outputs
    }
    rank = len(call.outputs[0].shape)
    while call is not None and len(call.outputs[0].shape) == rank:
        if isinstance(call.layer, (keras.layers.Permute, keras.layers.Reshape)):
            return False
        data_format = getattr(call.layer, "data_format", None)
        if data_format is not None:
            return data_format == "channels_first"
        call = producers.get(id(call.inputs[0])) if call.inputs else None
    return False


def _check_widths(names, chosen, states):
    widths = {
        name: state.shape[-1] for name, state in zip(names, states, strict=True)
    }
    if len(set(widths.values())) > 1:
        raise ValueError(
            "`layers` must choose hidden states of one width."
            f"{_width_hint(chosen)} Received: widths={widths}"
        )


def _width_hint(chosen):
    """Hint on what to write if the chosen blocks are of several widths."""
    index_of = {id(x): i for i, x in enumerate(chosen[0].scope.blocks)}
    if not all(id(c.call) in index_of for c in chosen):
        return ""
    groups: dict[int, list[int]] = {}
    for c in chosen:
        width = c.call.outputs[c.output].shape[-1]
        groups.setdefault(width, []).append(index_of[id(c.call)])
    choices = " or ".join(f"layers={x}" for x in groups.values())
    return f" The blocks are of several; choose those of one by {choices}."


def _unique(names):
    """Names made unique by numbers."""
    unique: list[str] = []
    for name in names:
        number, new = 0, name
        while new in unique or (number and new in names):
            number += 1
            new = f"{name}_{number}"
        unique.append(new)
    return tuple(unique)


def _owner_of(scopes):
    """The innermost call of a model in which all scopes are."""
    common = scopes[0].trail
    for scope in scopes[1:]:
        pairs = zip(common, scope.trail, strict=False)
        common = tuple(a for a, b in pairs if a is b)
    return common[-1]


def _tensors(root, chosen, owner):
    """The states as tensors of the owner's graph, or of layers inside of it."""
    found = []
    for c in chosen:
        output = c.call.outputs[c.output]
        if c.scope is owner and not c.call.is_inner:
            found.append(output)
            continue
        node = _node_in(owner, c.scope, c.call)
        calls = [
            call
            for scope, call in root.everything()
            if call.layer is c.call.layer
            and owner in scope.trail
            and _node_in(owner, scope, call) is node
        ]
        tensor = keras.KerasTensor(output.shape, output.dtype)
        found.append(
            InnerOutput(
                node,
                c.call.layer,
                next(i for i, call in enumerate(calls) if call is c.call),
                len(calls),
                c.output,
                tensor,
            )
        )
    return found


def _node_in(owner, scope, call):
    """The node of the owner's graph in which a call happens."""
    depth = len(owner.trail)
    return call.node if scope is owner else scope.trail[depth].node


def _lifted(source, scope, owner):
    """A mask in terms of the owner's graph; None if that cannot be."""
    while source is not None and scope is not owner:
        given = keras_private.arguments_of(scope.node)
        if not all(id(x) in given for x in source.tensors):
            source = source.from_inputs(scope.model)
        if source is not None:
            tensors = [given[id(x)] for x in source.tensors]
            source = dataclasses.replace(source, tensors=tensors)
        scope = scope.around
    return source


def _words_of(source, uses_keras_masks, is_masked, lacks_mask):
    if source is not None:
        return source.words
    if not uses_keras_masks:
        return "none, as asked for"
    if lacks_mask:
        return "none found, all tokens count"
    return "its Keras mask" if is_masked else "Keras masks, if any"


def _no_mask_found(owner, names):
    ids = [
        x.name
        for x in keras_private.inputs_of(owner.model)
        if "int" in keras.backend.standardize_dtype(x.dtype)
    ]
    example = ids[0] if ids else "token_ids"
    return (
        f"No padding mask was found for {', '.join(names)} of "
        f"{owner.model.name!r}, which come from token ids or from tensors with "
        "a mask: padding counts as tokens. "
        f'Say what it is, such as `mask={{"{example}": 0}}` if its id '
        f"is 0, or `mask=False` if there is none. {see_guide('padding')}"
    )
