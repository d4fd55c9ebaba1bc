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
