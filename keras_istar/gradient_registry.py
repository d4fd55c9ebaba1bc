"""TensorFlow's registry of gradients, kept from holding graphs for ever.

`tf.custom_gradient` registers a function for every use in a graph. It holds
the tensors of that graph, hence the graph, hence the weights that the graph
reads: a program that trains one model after the other would keep them all.
"""

import weakref
from collections.abc import Callable

import keras


def free_with_graph(gradient: Callable) -> None:
    """Lets what `tf.custom_gradient` has registered live as long as its graph.

    The registry then holds a reference that does not count, and the graph one
    that does. Nothing happens on other backends, outside of graphs, or if a
    TensorFlow to come keeps its registry in another way.

    Args:
        gradient: The gradient function that `tf.custom_gradient` was given in
            the graph of this context.
    """
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf
    from tensorflow.python.framework import ops

    if tf.executing_eagerly():
        return
    registry = getattr(getattr(ops, "gradient_registry", None), "_registry", {})
    for entry in reversed(list(registry.values())):
        registered = entry.get("type")
        if _closes_over(registered, gradient, depth=2):
            graph = ops.get_default_graph()
            graph._keras_istar_gradients = [
                *getattr(graph, "_keras_istar_gradients", []),
                registered,
            ]
            entry["type"] = _weakly(registered)
            return


def _weakly(function):
    reference = weakref.ref(function)

    def call(*arguments):
        return reference()(*arguments)

    return call


def _closes_over(function, wanted, depth):
    cells = getattr(function, "__closure__", None) or ()
    contents = [cell.cell_contents for cell in cells if _is_filled(cell)]
    return any(content is wanted for content in contents) or (
        depth > 1
        and any(_closes_over(inner, wanted, depth - 1) for inner in contents)
    )


def _is_filled(cell):
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
