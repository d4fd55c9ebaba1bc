"""What else `layers` may mean: errors and warnings, and what to write."""

import re
from collections.abc import Iterator
from collections.abc import Sequence

import keras

from keras_istar._src.attach.find_blocks import Call
from keras_istar._src.attach.find_blocks import Chosen
from keras_istar._src.attach.find_blocks import Scope
from keras_istar._src.attach.find_blocks import nodes_before
from keras_istar._src.compat import keras_private
from keras_istar._src.validation import see_guide

Layers = str | int | Sequence[int | str]


def several_models(
    scopes: list[Scope], items: list[int | str], layers: Layers, line: str
) -> ValueError:
    """The error where `layers` fits several nested models.

    Args:
        scopes: Calls of the models.
        items: Indices and names of `layers`, without what is before a slash.
        layers: See `attach`.
        line: Pattern of the user's line of code.
    """
    lines = []
    for scope in scopes:
        indices = scope.indices
        fitting = [x for x in items if isinstance(x, str) or x in indices]
        lines += [_line_for(scope, fitting, line)] if fitting else []
    names = [scope.model.name for scope in scopes]
    return ValueError(
        "`layers` must choose hidden states of one model, for they are one "
        f"cloud; these models have such blocks or names: {names}. Write a "
        f"line for each that you mean: {'; '.join(lines)}. "
        f"Received: layers={layers!r:.200}"
    )


def several_outputs(call: Call, layers: Layers) -> ValueError:
    """The error where a layer with several outputs was chosen."""
    name = call.layer.name
    choices = [
        f"'{name}/{key}' {tuple(x.shape)}"
        for key, x in zip(
            keras_private.output_keys(call.node), call.outputs, strict=True
        )
    ]
    return ValueError(
        f"`layers` must say which of the outputs of {name!r}: "
        f"{', '.join(choices)}. Received: layers={layers!r:.200}"
    )


def nothing_found(
    root: Scope,
    scopes: list[Scope],
    prefix: tuple[str, ...],
    items: list[int | str],
    layers: Layers,
) -> ValueError:
    """The error where `layers` fits nothing.

    Args:
        root: The call of the outermost model.
        scopes: Calls of models that `prefix` leads to.
        prefix: Names before the slash.
        items: What comes after it.
        layers: See `attach`.
    """
    searched = list(root.all_scopes())
    received = f"Received: layers={layers!r}"
    if prefix and not scopes:
        known = [
            *dict.fromkeys("/".join(s.path) for s in searched if s.path),
            *dict.fromkeys(
                x for s in searched for c in s.calls for x in c.stack
            ),
        ]
        return ValueError(
            "`layers` must name nested models before each slash, and the model "
            f"has no {'/'.join(prefix)!r}. There are: {known}. {received}"
        )
    if scopes and prefix:
        searched = [x for scope in scopes for x in scope.all_scopes()]
    places: dict[str, str] = {}
    for scope in searched:
        for call in scope.calls:
            places.setdefault(call.layer.name, "/".join(scope.path))
    names = [
        x for x in dict.fromkeys(items) if isinstance(x, str) and x != "all"
    ]
    missing = sorted(set(names) - set(places))
    if missing:
        problem, hint = f"has no layer named {missing}", ""
        number = re.fullmatch(r"layer_(\d+)", missing[0])
        if number and any(int(number[1]) < len(x.blocks) for x in searched):
            hint = (
                f"The block that logs call {missing[0]!r} is the index "
                f"{number[1]}, a number. "
            )
    elif len({places[name] for name in names}) > 1:
        where = {name: places[name] or "the model itself" for name in names}
        return ValueError(
            "`layers` must choose hidden states of one model, for they are "
            f"one cloud; these names are in different nested models: {where}. "
            + received
        )
    else:
        problem = "has no encoder blocks"
        example = _likely_names(searched) or list(places)[:1]
        hint = f"Name layers that return them, such as layers={example}. "
    return ValueError(
        "`layers` must choose hidden states of the model, which "
        f"{problem}. {hint}Names there are: {list(places)}. "
        f"{see_guide('which-layers')}. {received}"
    )


def _likely_names(scopes):
    """Names of two layers that may return hidden states, if there are."""
    likely = [
        call.layer.name
        for scope in scopes
        for call in scope.calls
        if any(len(x.shape) > 2 for x in call.outputs)
    ]
    return list(dict.fromkeys(likely))[:2]


def check_output_is_unique(root: Scope, name: str) -> None:
    """Raises if a layer in a nested model has the name of the model's output.

    Args:
        root: The call of the outermost model.
        name: What stands for the output of the outermost model.
    """
    paths = [
        "/".join((*scope.path, name))
        for scope in root.all_scopes()
        if name in scope.names
    ]
    if paths:
        paths = list(dict.fromkeys(paths))
        raise ValueError(
            "`layers` must say which output: name the layer whose output the "
            f"model returns, or write {' or '.join(map(repr, paths))} for the "
            f"layer of this name. Received: layers={name!r}"
        )


def warnings_of(
    root: Scope, chosen: list[Chosen], has_prefix: bool, line: str
) -> Iterator[str]:
    """Says what `layers` may mean as well, in sentences for warnings.

    Args:
        root: The call of the outermost model.
        chosen: What is taken.
        has_prefix: Whether `layers` names the model that it is taken from.
        line: Pattern of the user's line of code.
    """
    if not has_prefix:
        yield from _fitting_models(root, chosen, line)
        yield from _hidden_names(root, chosen, line)
        yield from _stacks_apart(chosen, line)
    yield from _other_calls(chosen, line)


def _fitting_models(root, chosen, line):
    items = _items_of(chosen)
    names = {item for item in items if isinstance(item, str)} - {"all"}
    kinds = {type(c.call.layer) for c in chosen if c.item not in names}
    seen = {id(c.scope.model) for c in chosen}
    for scope in root.all_scopes():
        indices = ["all", *scope.indices]
        if not any(type(x.layer) in kinds for x in scope.blocks):
            indices = []
        fitting = [
            item for item in items if item in scope.names or item in indices
        ]
        if fitting and id(scope.model) not in seen:
            seen.add(id(scope.model))
            yield (
                f"`layers` also fits {scope.model.name!r}, which is not taken: "
                f"write {_line_for(scope, fitting, line)} for it. For what is "
                "taken alone, without this warning, write "
                f"{_line_for(chosen[0].scope, items, line, root)}."
            )


def _hidden_names(root, chosen, line):
    """Of layers of a chosen name, in a subclassed model beside the chosen."""
    items = _items_of(chosen)
    seen = set()
    for scope, call in root.everything():
        layer = call.layer
        is_subclassed = isinstance(layer, keras.Model) and not (
            keras_private.is_functional(layer)
        )
        if not is_subclassed or id(layer) in seen:
            continue
        seen.add(id(layer))
        parts = keras_private.find_layers(layer, keras.layers.Layer)
        names = {x.name for x in parts if x is not layer} & set(items)
        if names and all(_are_independent(c, scope, call) for c in chosen):
            yield (
                f"Layers named {sorted(names)} inside of {layer.name!r} are "
                "not taken: of a subclassed model, only blocks can be. For "
                "what is taken alone, without this warning, write "
                f"{_line_for(chosen[0].scope, items, line, root)}."
            )


def _stacks_apart(chosen, line):
    """Of stacks of blocks that do not follow each other, in one cloud."""
    holders = {
        id(c.call.node.operation): c
        for c in chosen
        if c.call.is_inner and (isinstance(c.item, int) or c.item == "all")
    }
    apart = [
        c
        for c in holders.values()
        if any(
            other is not c and _are_independent(c, other.scope, other.call)
            for other in holders.values()
        )
    ]
    if apart:
        lines = [
            _line_for(c.scope, [f"{c.call.stack[0]}/all"], line) for c in apart
        ]
        yield (
            f"The blocks of {[c.call.stack[0] for c in apart]} are one cloud, "
            "although none is computed from the others. For those of one, "
            f"write {' or '.join(lines)}."
        )


def _other_calls(chosen, line):
    """Of indices that take some of the calls of a block on several inputs."""
    taken = {id(c.call) for c in chosen}
    seen = set()
    for c in chosen:
        layer = c.call.layer
        if not isinstance(c.item, int) or id(layer) in seen:
            continue
        seen.add(id(layer))
        calls = [
            call
            for call in c.scope.blocks
            if call is c.call
            or (call.layer is layer and _are_independent(c, c.scope, call))
        ]
        number = sum(id(call) in taken for call in calls)
        if number < len(calls):
            yield (
                f"`layers` takes {number} of the {len(calls)} calls of "
                f"{layer.name!r}, which have different inputs. For all of "
                f"them, write {_line_for(c.scope, [layer.name], line)}."
            )


def _are_independent(chosen, scope, call):
    """Whether a call has nothing to do with what the chosen call returns."""
    if scope is not chosen.scope:
        return True
    node, other = chosen.call.node, call.node
    return (
        node is not other
        and node not in nodes_before(scope.model, other.input_tensors)
        and other not in nodes_before(scope.model, node.input_tensors)
    )


def _items_of(chosen):
    return list(dict.fromkeys(c.item for c in chosen))


def _line_for(scope, items, line, root=None):
    """The user's line, for what `items` are in a scope.

    Args:
        scope: The call of a model.
        items: Indices and names in it.
        line: Pattern of the line.
        root: The call of the outermost model, if its name is to be written.
    """
    path = scope.path
    if not path and root is not None:
        path = (root.model.name,)
    asked = ["/".join((*path, str(item))) for item in items] if path else items
    asked = list(dict.fromkeys(asked))
    return line.format(repr(asked[0] if len(asked) == 1 else asked))


def left_out(root: Scope, chosen: list[Chosen], line: str) -> list[str]:
    """Sentences about blocks that one might have expected to be taken."""
    scopes = {id(c.scope): c.scope for c in chosen}
    if any(not c.call.is_block for c in chosen):
        return []
    sentences = []
    seen = {id(scope.model) for scope in scopes.values()}
    for scope in root.all_scopes():
        if scope.blocks and id(scope.model) not in seen:
            seen.add(id(scope.model))
            sentences.append(
                f"the {len(scope.blocks)} blocks of {scope.model.name!r} are "
                f"not taken; that would be {_line_for(scope, ['all'], line)}"
            )
    sides = {
        side
        for c in chosen
        for side in ("encoder", "decoder")
        if side in c.call.layer.name
    }
    if len(sides) > 1:
        sentences.append(
            "blocks of the encoder and of the decoder are one cloud; choose "
            "those of one side by their names or indices"
        )
    return sentences
