"""Functions that bring their own gradient, on every backend."""

import weakref
from collections.abc import Callable

import keras
from keras import ops

from keras_istar._src.types import Tensor


def custom_gradient(function: Callable) -> Callable:
    """Makes a function of its outputs and their gradient differentiable.

    PyTorch differentiates the operations of `function` by itself instead: the
    gradient is the same, at the price of autodiff.

    Args:
        function: Function of tensors, or None for those that are absent. It
            returns a tensor or a tuple of them, and a function that takes the
            gradients of these and returns one for each argument, None for
            none.

    Returns:
        Function of the same arguments that returns those tensors.
    """
    if keras.backend.backend() == "torch":
        return lambda *arguments: function(*arguments)[0]

    def differentiable(*arguments):
        given = [x is not None for x in arguments]
        gradient_functions = []

        def outputs_and_gradient(*tensors):
            rest = iter(tensors)
            filled = [next(rest) if is_given else None for is_given in given]
            outputs, gradient = function(*filled)

            def gradients(*upstream):
                # JAX hands over one tuple, TensorFlow its members.
                if isinstance(upstream[0], tuple):
                    (upstream,) = upstream
                return tuple(
                    _zeros_unless(value, x)
                    for value, x in zip(
                        gradient(*upstream), filled, strict=True
                    )
                    if x is not None
                )

            if keras.backend.backend() == "tensorflow":
                gradient_functions.append(gradients)
            return outputs, gradients

        tensors = [x for x in arguments if x is not None]
        outputs = ops.custom_gradient(outputs_and_gradient)(*tensors)
        for gradients in gradient_functions:
            free_with_graph(gradients)
        return outputs

    return differentiable


def _zeros_unless(gradient, tensor):
    return ops.zeros_like(tensor) if gradient is None else gradient


# On JAX, XLA orders operations to save memory, and gradients may be sharded: to
# wait for one, devices would have to exchange a piece of it.
_ONE_AFTER_THE_OTHER = keras.backend.backend() != "jax"


def last_first(
    gradients: list[Callable[[Tensor | None], Tensor]],
    before: Tensor | None = None,
) -> list[Tensor]:
    """Gradients of states, one at a time where nothing else sees to it.

    A model wants that of its last state first, and by then frees what it keeps
    for the others: gradients of all states at once would be the peak of a train
    step.

    Args:
        gradients: For each state a function that returns the gradient,
            computed `after` the tensor it is given.
        before: What the first of them is given.

    Returns:
        A gradient for each state, in their order.
    """
    found: list[Tensor] = []
    for gradient in reversed(gradients):
        found.insert(0, gradient(before))
        if _ONE_AFTER_THE_OTHER:
            before = found[0]
    return found


def after(gradient: Tensor | None, value: Tensor) -> Tensor:
    """`value`, made to depend on a matrix `gradient` if there is one.

    What is then computed from it is not found to be known from the forward
    pass, and kept since. A NaN in the gradient would come out anyway.
    """
    if gradient is None:
        return value
    first = ops.sum(gradient[:1, :1])  # There may be no row.
    return ops.where(ops.isnan(first), ops.cast(first, value.dtype), value)


def free_with_graph(gradient: Callable) -> None:
    """Frees what `tf.custom_gradient` has registered together with its graph.

    TensorFlow registers such a function for ever, and with it the tensors of
    its graph and the weights that the graph reads
    (https://github.com/tensorflow/tensorflow/issues/97697). Here the registry
    gets a weak reference, and the graph holds the function. Nothing happens on
    other backends, outside of graphs, or if TensorFlow keeps its registry in
    another way. Remove when the oldest supported TensorFlow frees it by itself.

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
        function = reference()
        assert function is not None  # The graph holds it.
        return function(*arguments)

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
