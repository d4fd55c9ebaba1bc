"""Products of few bits, and hidden states of few bits."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_istar
from keras_istar._src.score import moments

BACKEND = keras.backend.backend()
MANTISSA_BITS = {"bfloat16": 7, "tensorfloat32": 10}


def narrow(x, bits):
    """`x` rounded to so many bits of mantissa, by Dekker's splitting."""
    scaled = x * (2.0 ** (23 - bits) + 1.0)
    return scaled - (scaled - x)


def one_pass(bits):
    return lambda a, b: ops.matmul(narrow(a, bits), narrow(b, bits))


def three_passes(bits):
    """What accelerators make of `high` precision."""

    def matmul(a, b):
        a_high, b_high = narrow(a, bits), narrow(b, bits)
        return (
            ops.matmul(a_high, b_high)
            + ops.matmul(narrow(a - a_high, bits), b_high)
            + ops.matmul(a_high, narrow(b - b_high, bits))
        )

    return matmul


PRODUCTS = {
    "three bfloat16 passes": three_passes(MANTISSA_BITS["bfloat16"]),
    "one TensorFloat-32 pass": one_pass(MANTISSA_BITS["tensorfloat32"]),
}


@pytest.fixture
def states(rng):
    """Spreads that differ, and a few means hundreds of times the spread."""
    dim = 64
    spread = np.exp(rng.normal(0.0, 0.7, dim))
    mean = np.zeros(dim)
    mean[[3, 17, 40]] = 500.0, -300.0, 1000.0
    x = rng.standard_normal((2, 32, 24, dim)) * spread + mean
    return x.astype("float32")


def score(x):
    covariance = moments.covariance(moments.union_moments([*x], [None, None]))
    return keras_istar.isoscore_from_covariance(covariance)


def multiply_with(product, monkeypatch):
    for module in (moments, moments):
        monkeypatch.setattr(module, "matmul", product)


def measure(gradient, x):
    return float(score(x)), gradient(score, x).astype("float64")


def relative_difference(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def test_narrowing_keeps_as_many_bits(rng):
    x = rng.standard_normal(1000).astype("float32")
    expected = ops.convert_to_numpy(
        ops.cast(ops.cast(x, "bfloat16"), "float32")
    )
    actual = ops.convert_to_numpy(narrow(ops.convert_to_tensor(x), 7))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", PRODUCTS)
def test_narrow_products_are_good_enough(monkeypatch, gradient, states, name):
    expected_score, expected_gradient = measure(gradient, states)
    multiply_with(PRODUCTS[name], monkeypatch)
    actual_score, actual_gradient = measure(gradient, states)
    assert abs(actual_score - expected_score) < 1e-5
    assert 0 < relative_difference(actual_gradient, expected_gradient) < 1e-3


def test_one_bfloat16_pass_is_not(monkeypatch, gradient, states):
    _, expected = measure(gradient, states)
    multiply_with(one_pass(MANTISSA_BITS["bfloat16"]), monkeypatch)
    _, actual = measure(gradient, states)
    assert relative_difference(actual, expected) > 1e-3


@pytest.mark.skipif(BACKEND != "jax", reason="reads a program of JAX")
def test_products_ask_for_high_precision(states):
    import jax

    program = jax.jit(jax.grad(score)).lower(states).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) >= 4
    assert all("HIGH" in line for line in products)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_penalty_of_narrow_activations_is_that_of_float32(rng, dtype):
    x = ops.cast(rng.standard_normal((16, 12, 24)) * np.arange(1, 25), dtype)
    penalties = []
    for states in (x, ops.cast(x, "float32")):
        layer = keras_istar.IStarRegularization(
            strength=-1.0, dtype=f"mixed_{dtype}"
        )
        layer(states, training=True)
        penalties.append(layer.losses[0])
    narrow_penalty, expected = map(float, penalties)
    assert keras.backend.standardize_dtype(penalties[0].dtype) == "float32"
    assert abs(narrow_penalty - expected) < 1e-3
    x = ops.convert_to_numpy(ops.cast(x, "float32")).astype("float64")
    covariance = np.cov(x.reshape(-1, 24), rowvar=False)
    target = np.trace(covariance) / 24 * np.eye(24)
    mixed = 0.8 * covariance + 0.2 * target
    ratio = np.trace(mixed) ** 2 / np.sum(mixed**2)
    np.testing.assert_allclose(expected, (ratio - 1) / 23 - 1, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_large_activations_do_not_overflow(rng, gradient, dtype):
    x = (6e4 * rng.choice([-1.0, 1.0], (8, 12, 16))).astype("float32")

    def penalty(x):
        layer = keras_istar.IStarRegularization(strength=-2.0)
        layer(ops.cast(x, dtype), training=True)
        return layer.losses[0]

    assert np.isfinite(float(penalty(x)))
    slope = gradient(penalty, x).astype("float64")
    assert slope.shape == (8, 12, 16)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_training_in_mixed_precision(rng, dtype):
    def fit(policy):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((12, 16))
        hidden = keras.layers.Dense(24, "tanh", dtype=policy, name="hidden")
        outputs = keras.layers.GlobalAveragePooling1D()(hidden(inputs))
        outputs = keras.layers.Dense(1, dtype="float32")(outputs)
        model = keras.Model(inputs, outputs)
        keras_istar.attach(model, layers="hidden", strength=-2.0)
        optimizer = keras.optimizers.SGD(0.1)
        if policy == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model.compile(optimizer, "mse")
        history = model.fit(x, y, batch_size=16, epochs=3, verbose=0).history
        return np.array(history["istar_penalty"])

    x = rng.standard_normal((64, 12, 16)) * np.linspace(0.3, 3, 16)
    y = rng.standard_normal((64, 1))
    actual, expected = fit(f"mixed_{dtype}"), fit("float32")
    assert actual.shape == (3,)
    assert expected[-1] < expected[0] - 0.05
    # Weights drift apart by the rounding of activations.
    np.testing.assert_allclose(actual, expected, atol=5e-3)
