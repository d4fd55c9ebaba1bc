"""Functions that bring their own gradient, on every backend."""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_istar._src.types import Tensor


def custom_gradient(gradient: Callable) -> Callable:
    """Decorates a function of tensors with its gradient, on every backend.

    Args:
        gradient: Function of the tuple of arguments, with None for absent ones,
            and of the gradient of each output. It returns for each argument its
            gradient, or None.

    Returns:
        Decorator of a function that returns a tensor or a tuple of them. Only
        the arguments are kept for the backward pass.
    """
    if keras.backend.backend() == "torch":
        return functools.partial(_torch_differentiable, gradient)
    return functools.partial(_differentiable, gradient)


def _differentiable(gradient, function):
    def differentiable(*arguments):
        given = [x is not None for x in arguments]
        gradient_functions = []

        def outputs_and_gradient(*tensors):
            rest = iter(tensors)
            filled = tuple(next(rest) if x else None for x in given)

            def gradients(*upstream):
                # JAX hands over one tuple, TensorFlow its members.
                if isinstance(upstream[0], tuple):
                    (upstream,) = upstream
                return tuple(
                    _zeros_unless(value, x)
                    for value, x in zip(
                        gradient(filled, *upstream), filled, strict=True
                    )
                    if x is not None
                )

            if keras.backend.backend() == "tensorflow":
                gradient_functions.append(gradients)
            return function(*filled), gradients

        tensors = [x for x in arguments if x is not None]
        outputs = ops.custom_gradient(outputs_and_gradient)(*tensors)
        for gradients in gradient_functions:
            free_with_graph(gradients)
        return outputs

    return differentiable


def _torch_differentiable(gradient, function):
    import torch

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(context, *arguments):
            context.save_for_backward(*arguments)
            return function(*arguments)

        @staticmethod
        def backward(context, *upstream):
            return gradient(context.saved_tensors, *upstream)

    def differentiable(*arguments):
        tensors = [
            x if x is None else ops.convert_to_tensor(x) for x in arguments
        ]
        return Differentiable.apply(*tensors)

    return differentiable


def when_differentiated(tensor: Tensor, function: Callable[[], Any]) -> Tensor:
    """Returns a tensor as it is, and tells when it gets a gradient.

    Args:
        tensor: Any tensor.
        function: What to call when a gradient with respect to `tensor` is
            traced or computed.
    """

    def gradient(_, upstream):
        function()
        return (upstream,)

    if keras.backend.backend() != "jax":
        return custom_gradient(gradient)(lambda x: x)(tensor)
    # On JAX, `ops.custom_gradient` traces gradients that nobody asks for.
    import jax

    identity = jax.custom_vjp(lambda x: x)
    identity.defvjp(lambda x: (x, None), gradient)
    return identity(tensor)


def _zeros_unless(gradient, tensor):
    return ops.zeros_like(tensor) if gradient is None else gradient


# On JAX, XLA orders operations to save memory, and gradients may be sharded: to
# wait for one, devices would have to exchange a piece of it. PyTorch runs
# operations in the order of the calls.
_ONE_AFTER_THE_OTHER = keras.backend.backend() == "tensorflow"


def last_first(
    gradients: list[Callable[[Tensor | None], list[Tensor]]],
    before: Tensor | None = None,
) -> list[Tensor]:
    """Computes gradients of states, the last state first, one at a time.

    The backward pass of a model needs the gradient of its last state first, and
    frees memory as it goes on. Gradients of all states at once would be the
    peak of a train step. Only TensorFlow has to be forced into this order.

    Args:
        gradients: Functions, one for each state, or for several that are
            computed together. Each returns a list of their gradients, computed
            `after` the tensor that it is given.
        before: Tensor that the first gradient is computed `after`.

    Returns:
        A gradient for each state, in their order.
    """
    found: list[Tensor] = []
    for gradient in reversed(gradients):
        found = gradient(before) + found
        if _ONE_AFTER_THE_OTHER:
            before = found[0]
    return found


def after(gradient: Tensor | None, value: Tensor) -> Tensor:
    """Returns `value`, on TensorFlow made to depend on a matrix `gradient`.

    Without this dependency, its compilers would find that the forward pass has
    computed the same from `value`, and keep it in memory until the backward
    pass. A NaN in the gradient replaces `value`; it would reach the result
    anyway.
    """
    if gradient is None or not _ONE_AFTER_THE_OTHER:
        return value
    first = ops.sum(gradient[:1, :1])  # The matrix may have no rows.
    return ops.where(ops.isnan(first), ops.cast(first, value.dtype), value)


def anew(values: Any) -> Any:
    """Returns tensors that XLA on JAX does not know to be the same as `values`.

    What is computed from them is computed when it is needed. Otherwise XLA
    would find that the forward pass has computed the same, and keep that; or
    compute it for all states at once, as they share a mask or a matrix.

    Args:
        values: Tensors in lists and tuples, or None.
    """
    if keras.backend.backend() != "jax":
        return values
    import jax

    return jax.lax.optimization_barrier(values)


def free_with_graph(gradient: Callable) -> None:
    """Lets what `tf.custom_gradient` registers be freed with its graph.

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
        assert function is not None  # The graph keeps it alive.
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
