"""Gradients of a function, compiled, on the backend in use."""

from collections.abc import Callable

import keras


def compiled_gradient(function: Callable, states: list) -> Callable[[], None]:
    """Function that computes `d function(states) / d states` and waits."""
    if keras.backend.backend() == "jax":
        import jax

        gradient = jax.jit(jax.grad(function))
        return lambda: jax.block_until_ready(gradient(states))
    import tensorflow as tf

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(states)
            value = function(states)
        return tape.gradient(value, states)

    return lambda: _wait(gradient())


def compiled_product(a, b) -> Callable[[], None]:
    """Function that computes the matrix product `a @ b` and waits."""
    if keras.backend.backend() == "jax":
        import jax

        product = jax.jit(lambda a, b: a @ b)
        return lambda: jax.block_until_ready(product(a, b))
    import tensorflow as tf

    product = tf.function(lambda: tf.matmul(a, b))
    return lambda: _wait(product())


def _wait(tensors):
    import tensorflow as tf

    tf.test.experimental.sync_devices()
    return tensors
