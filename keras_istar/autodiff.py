"""Functions that bring their own gradient, on every backend."""

from collections.abc import Callable

import keras
from keras import ops

from keras_istar.gradient_registry import free_with_graph


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
