"""Gradients of the penalty in float16, with the loss scaled and without."""

import keras
import numpy as np
import pytest

import keras_istar

RATE = 1e4  # So that steps are large beside the rounding of weights.


@pytest.fixture(autouse=True)
def _policy():
    before = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(before)


def _kernel_gradient(policy, dim, auto_scale_loss):
    """What one step of training takes from the kernel, of the penalty alone."""
    keras.config.set_dtype_policy(policy)
    rng = np.random.default_rng(0)
    inputs = keras.Input((16, 64))
    dense = keras.layers.Dense(dim, name="block")
    model = keras.Model(inputs, dense(inputs))
    keras_istar.attach(model, "block", strength=-1.0)
    kernel = rng.normal(size=(64, dim)) * rng.uniform(0.2, 2, size=dim) / 8
    dense.set_weights([kernel, np.zeros(dim)])
    model.compile(
        keras.optimizers.SGD(RATE),
        loss=lambda y, outputs: 0.0 * keras.ops.mean(outputs),
        auto_scale_loss=auto_scale_loss,
    )
    before = dense.get_weights()[0].astype("float64")
    x = rng.normal(size=(32, 16, 64)).astype("float32")
    model.train_on_batch(x, x[:, :1, :1])
    return (before - dense.get_weights()[0]) / RATE


@pytest.mark.parametrize("dim", [384, 768, 2048])
def test_scaling_the_loss_keeps_what_float16_would_lose(dim):
    right = _kernel_gradient("float32", dim, False)

    def error(auto_scale_loss):
        seen = _kernel_gradient("mixed_float16", dim, auto_scale_loss)
        return np.linalg.norm(seen - right) / np.linalg.norm(right)

    # Inputs, kernel and states are rounded to 11 bits.
    assert error(auto_scale_loss=True) < 2**-10
    # The gradient of one number is near 4 / (tokens * dim), and float16 knows
    # nothing between 0 and 6e-8.
    assert error(auto_scale_loss=False) > {384: 3e-3, 768: 1e-2, 2048: 0.1}[dim]
