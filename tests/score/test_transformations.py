"""The scores inside of what each backend does with functions."""

import keras
import numpy as np
import oracle
import pytest

import keras_istar

BACKEND = keras.backend.backend()
MASK = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)
POINTS = np.random.default_rng(1).normal(size=(8, 3)).astype("float32")
TARGET = oracle.covariance(POINTS @ np.diag([3.0, 1.0, 0.5]) + POINTS[::-1])
TARGET = TARGET.astype("float32")


def _points(rng):
    return rng.normal(size=(8, 3)) * [1.0, 2.0, 0.4] + 5.0


def _covariance(rng):
    return oracle.covariance(_points(rng))


def _shrinkage(rng):
    return rng.uniform(0.1, 0.9)


def _score(matrix):
    """IsoScore of any square matrix, as differences take it apart."""
    ratio = np.trace(matrix) ** 2 / np.sum(matrix**2)
    return (ratio - 1) / (len(matrix) - 1)


def _star(points, shrinkage, target):
    return _score(oracle.shrunk(points, shrinkage, target))


# A public function of one argument, the same in NumPy, and its argument.
FUNCTIONS = {
    "isoscore": (
        keras_istar.isoscore,
        lambda x: _score(oracle.covariance(x)),
        _points,
    ),
    "isoscore of masked points": (
        lambda x: keras_istar.isoscore(x, MASK),
        lambda x: _score(oracle.covariance(x[MASK])),
        _points,
    ),
    "isoscore_star": (
        lambda x: keras_istar.isoscore_star(x, TARGET, 0.3),
        lambda x: _star(x, 0.3, TARGET),
        _points,
    ),
    "isoscore_star by its target": (
        lambda x: keras_istar.isoscore_star(POINTS, x, 0.3, MASK),
        lambda x: _star(POINTS[MASK], 0.3, x),
        _covariance,
    ),
    "isoscore_star by its shrinkage": (
        lambda x: keras_istar.isoscore_star(POINTS, TARGET, x),
        lambda x: _star(POINTS, x, TARGET),
        _shrinkage,
    ),
    "isoscore_from_covariance": (
        keras_istar.isoscore_from_covariance,
        _score,
        _covariance,
    ),
}


def _slopes(function, x, step=1e-4):
    """Derivatives of a function of NumPy arrays by central differences."""
    x = np.asarray(x, "float64")
    slopes = np.zeros((*x.shape, *np.shape(function(x))))
    for place in np.ndindex(*x.shape):
        move = np.zeros(x.shape)
        move[place] = step
        difference = function(x + move) - function(x - move)
        slopes[place] = difference / (2 * step)
    return slopes


def _value(function, x, direction):
    return function(x)


def _values(function, x, direction):
    return np.stack([function(one) for one in x])


def _gradient(function, x, direction):
    return _slopes(function, x)


def _gradients(function, x, direction):
    return np.stack([_slopes(function, one) for one in x])


def _hessian(function, x, direction):
    return _slopes(lambda x: _slopes(function, x), x)


def _slope(function, x, direction):
    """The directional derivative."""
    return np.sum(_slopes(function, x) * direction)


def _tensorflow():
    import tensorflow as tf

    def gradient(function, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return tape.gradient(value, x)

    def hessian(function, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            slopes = gradient(function, x)
        return tape.jacobian(slopes, x)

    def forward(function, x, direction):
        with tf.autodiff.ForwardAccumulator(x, direction) as accumulator:
            value = function(x)
        return accumulator.jvp(value)

    def scan(function, x):
        scores = tf.TensorArray("float32", len(x))
        for i in tf.range(len(x)):
            scores = scores.write(i, function(x[i]))
        return scores.stack()

    def mapped(function, x):
        dataset = tf.data.Dataset.from_tensor_slices(x).map(function)
        return np.stack(list(dataset.as_numpy_iterator()))

    def unknown(function, x):
        shape = [None, *x.shape[1:]] if len(x.shape) else []
        signature = [tf.TensorSpec(shape, x.dtype)]
        return tf.function(function, input_signature=signature)(x)

    return {
        "tf.function": (lambda f, x: tf.function(f)(x), _value),
        "tf.function of unknown length": (unknown, _value),
        "tf.function, compiled": (
            lambda f, x: tf.function(f, jit_compile=True)(x),
            _value,
        ),
        "Dataset.map": (mapped, _values),
        "tf.map_fn": (
            lambda f, x: tf.map_fn(f, x, fn_output_signature="float32"),
            _values,
        ),
        "tf.map_fn in tf.function": (
            lambda f, x: tf.function(tf.map_fn)(f, x),
            _values,
        ),
        "a loop of AutoGraph": (
            lambda f, x: tf.function(scan)(f, x),
            _values,
        ),
        "tf.vectorized_map": (tf.vectorized_map, _values),
        "gradient": (gradient, _gradient),
        "gradient in tf.function": (
            lambda f, x: tf.function(gradient)(f, x),
            _gradient,
        ),
        "gradients in tf.vectorized_map": (
            lambda f, x: tf.vectorized_map(lambda x: gradient(f, x), x),
            _gradients,
        ),
        "hessian": (hessian, _hessian),
        "hessian in tf.function": (
            lambda f, x: tf.function(hessian)(f, x),
            _hessian,
        ),
        "forward mode": (forward, _slope),
    }


def _jax():
    import jax
    from jax import numpy

    def scan(function, x):
        return jax.lax.scan(lambda total, one: (total, function(one)), 0, x)[1]

    def forward(function, x, direction):
        return jax.jvp(function, [x], [direction])[1]

    return {
        "jit": (lambda f, x: jax.jit(f)(x), _value),
        "vmap": (lambda f, x: jax.vmap(f)(x), _values),
        "vmap in jit": (lambda f, x: jax.jit(jax.vmap(f))(x), _values),
        "lax.map": (jax.lax.map, _values),
        "lax.scan": (scan, _values),
        "grad": (lambda f, x: jax.grad(f)(x), _gradient),
        "grad in jit": (lambda f, x: jax.jit(jax.grad(f))(x), _gradient),
        "grad of checkpoint": (
            lambda f, x: jax.grad(jax.checkpoint(f))(x),
            _gradient,
        ),
        "grad in vmap": (lambda f, x: jax.vmap(jax.grad(f))(x), _gradients),
        "jacfwd": (lambda f, x: jax.jacfwd(f)(x), _gradient),
        "jacrev": (lambda f, x: jax.jacrev(f)(x), _gradient),
        "hessian": (lambda f, x: jax.hessian(f)(x), _hessian),
        "hessian in jit": (lambda f, x: jax.jit(jax.hessian(f))(x), _hessian),
        "grad of grad": (
            lambda f, x: jax.jacrev(jax.grad(f))(x),
            _hessian,
        ),
        "grad of sums": (
            lambda f, x: jax.grad(lambda x: numpy.sum(f(x)))(x),
            _gradient,
        ),
        "jvp": (forward, _slope),
        "jvp in jit": (
            lambda f, x, d: jax.jit(lambda x, d: forward(f, x, d))(x, d),
            _slope,
        ),
        "linearize": (
            lambda f, x, d: jax.linearize(f, x)[1](d),
            _slope,
        ),
    }


def _torch():
    import torch
    from torch import func

    def backward(function, x):
        x = x.detach().requires_grad_(True)
        function(x).backward()
        return x.grad

    return {
        "compile": (
            lambda f, x: torch.compile(f, backend="eager")(x),
            _value,
        ),
        "compile, in one graph": (
            lambda f, x: torch.compile(f, backend="eager", fullgraph=True)(x),
            _value,
        ),
        "backward": (backward, _gradient),
        "backward of compile": (
            lambda f, x: backward(torch.compile(f, backend="aot_eager"), x),
            _gradient,
        ),
        "vmap": (lambda f, x: func.vmap(f)(x), _values),
        "grad": (lambda f, x: func.grad(f)(x), _gradient),
        "grad in vmap": (lambda f, x: func.vmap(func.grad(f))(x), _gradients),
        "hessian": (lambda f, x: func.hessian(f)(x), _hessian),
        "jvp": (lambda f, x, d: func.jvp(f, (x,), (d,))[1], _slope),
    }


TRANSFORMATIONS = {
    "tensorflow": _tensorflow,
    "jax": _jax,
    "torch": _torch,
}[BACKEND]()


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_of_a_transformed_score(rng, name, transformation):
    function, reference, make = FUNCTIONS[name]
    transform, expect = TRANSFORMATIONS[transformation]
    batched = expect in (_values, _gradients)
    x = np.stack([make(rng) for _ in range(4)]) if batched else make(rng)
    x = np.asarray(x, "float32")
    direction = rng.normal(size=x.shape).astype("float32")
    arguments = [keras.ops.convert_to_tensor(x)]
    if expect is _slope:
        arguments.append(keras.ops.convert_to_tensor(direction))
    seen = keras.ops.convert_to_numpy(transform(function, *arguments))
    expected = expect(reference, x.astype("float64"), direction)
    assert seen.shape == np.shape(expected)
    size = np.max(np.abs(expected))
    np.testing.assert_allclose(seen, expected, rtol=1e-3, atol=1e-3 * size)


def _transformed(function):
    """`function`, traced by the means of the backend."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    import torch

    return torch.compile(function, backend="eager")


@pytest.mark.skipif(BACKEND == "torch", reason="its compiler knows no values")
def test_values_known_in_a_traced_function_are_checked():
    matrix = keras.ops.convert_to_tensor(np.diag([1.0, -1.0, 1.0]))

    def score(points):
        return keras_istar.isoscore_star(points, matrix)

    with pytest.raises(ValueError, match="no variance below 0"):
        _transformed(score)(keras.ops.convert_to_tensor(POINTS))


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_shrinkage_is_checked_where_it_is_known(value):
    shrinkage = keras.ops.convert_to_tensor(value, "float32")
    with pytest.raises(ValueError) as error:
        keras_istar.isoscore_star(POINTS, TARGET, shrinkage)
    assert str(error.value).startswith("`shrinkage` must be ")
    assert "Received: shrinkage=" in str(error.value)
    points = keras.ops.convert_to_tensor(POINTS)
    traced = _transformed(keras_istar.isoscore_star)
    seen = float(traced(points, TARGET, shrinkage))
    expected = _star(POINTS, value, TARGET)
    assert seen == pytest.approx(np.clip(expected, 0, 1), rel=1e-4, nan_ok=True)


@pytest.mark.parametrize("shape", [(1,), (3, 3)])
def test_shrinkage_is_one_number(shape):
    shrinkage = keras.ops.full(shape, 0.5)
    with pytest.raises(ValueError, match="`shrinkage` must be a real number"):
        keras_istar.isoscore_star(POINTS, TARGET, shrinkage)


def test_shrinkage_of_any_type():
    for make in (float, np.float64, np.array, keras.ops.convert_to_tensor):
        seen = keras_istar.isoscore_star(POINTS, TARGET, make(0.25))
        expected = _star(POINTS, 0.25, TARGET)
        assert float(seen) == pytest.approx(expected, rel=1e-5)


def test_losses_of_training(rng):
    """What `compile` takes: functions of batches, the last one smaller."""

    def loss(y, outputs):
        return 1.0 - keras_istar.isoscore_star(outputs, TARGET, 0.2)

    def isotropy(y, outputs):
        return keras_istar.isoscore(outputs)

    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(3, "linear", False, "identity")(inputs)
    model = keras.Model(inputs, outputs)
    model.compile("sgd", loss, metrics=[isotropy])
    x = rng.normal(size=(40, 3)).astype("float32")
    before = model.evaluate(x, x, batch_size=40, verbose=0)
    assert before == pytest.approx(
        [1 - _star(x, 0.2, TARGET), _score(oracle.covariance(x))], rel=1e-4
    )
    model.fit(x, x, batch_size=16, epochs=30, verbose=0)
    after = model.evaluate(x, x, batch_size=40, verbose=0)
    assert after[0] < before[0] - 0.01


@pytest.mark.skipif(BACKEND != "tensorflow", reason="shapes of TensorFlow")
def test_tensors_of_unknown_rank_are_refused():
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec(None)])
    def score(points):
        return keras_istar.isoscore(points)

    with pytest.raises(ValueError, match="`points` must have a known number"):
        score(POINTS)
