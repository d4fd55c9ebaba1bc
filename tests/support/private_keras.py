"""What Keras keeps to itself about models, for tests that nothing is left."""


def graph_of(model):
    """Nodes by depth, and the links of every operation."""
    by_depth = {
        depth: list(nodes) for depth, nodes in model._nodes_by_depth.items()
    }
    links = [
        (op, list(op._inbound_nodes), list(op._outbound_nodes))
        for op in model.operations
    ]
    return by_depth, links


def all_layers(model):
    """The model and all layers in it, at any depth."""
    return model._flatten_layers()


def remat_modes(model):
    """How the model and each layer in it are recomputed, if they are."""
    return [part._remat_mode for part in all_layers(model)]


def snapshot(model):
    """All that attaching could leave behind."""
    parts = model._flatten_layers()
    return (
        [_plain(vars(part)) for part in parts],
        [[id(w) for w in part.weights] for part in parts],
        [list(part._inbound_nodes) for part in parts],
        [list(part._outbound_nodes) for part in parts],
        [list(part._losses) for part in parts],
        [part._remat_mode for part in parts],
        _nodes(model),
        [part._tracker.locked for part in parts],
    )


def _plain(value):
    """Containers by what they hold, other objects by what they are."""
    if isinstance(value, dict):
        return {key: _plain(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(x) for x in value]
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    return id(value)


def _nodes(model):
    graph = model._functional if hasattr(model, "_functional") else model
    return {depth: list(row) for depth, row in graph._nodes_by_depth.items()}


def is_locked(layer):
    """Whether Keras refuses new attributes that hold variables or layers."""
    return layer._tracker.locked
