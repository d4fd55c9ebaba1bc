"""`max_tokens`: what is drawn, and what it is on average."""

import keras
import numpy as np
import oracle
import pytest
from keras import ops
from workers.launch import run_worker

import keras_istar

BACKEND = keras.backend.backend()
# The moving average then is the covariance of the last draw.
LATEST = 1e-12
STEPS = 500  # Enough to see 10 % of bias in the smallest samples.


def _layer(max_tokens, seed=1):
    return keras_istar.IStarRegularization(
        -1.0, momentum=LATEST, max_tokens=max_tokens, seed=seed
    )


def _covariances(layer, states, mask, steps):
    """Covariances of the tokens drawn in each step `(steps, dim, dim)`."""
    layer(states)
    step = _compiled(layer, states, mask)
    drawn = []
    for _ in range(steps):
        step()
        drawn.append(ops.convert_to_numpy(layer.shrinkage_covariance))
    return np.array(drawn, "float64")


def _compiled(layer, states, mask):
    """A training call of the layer under XLA where the backend has it."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        def step():
            layer(states, mask=mask, training=True)

        return tf.function(step, jit_compile=True)
    if BACKEND == "jax":
        import jax

        @jax.jit
        def call(variables):
            return layer.stateless_call(
                [],
                variables,
                states,
                mask=mask,
                training=True,
                return_losses=True,
            )[1]

        def step():
            variables = layer.non_trainable_variables
            values = call([variable.value for variable in variables])
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

        return step
    return lambda: layer(states, mask=mask, training=True)


def _states(rng, number, batch=4, length=10, dim=3):
    """States with differing means, as layers have."""
    means = rng.normal(size=(number, 1, 1, dim))
    spread = np.exp(rng.normal(size=dim))
    noise = rng.normal(size=(number, batch, length, dim))
    return list((means + spread * noise).astype("float32"))


def _padding(rng, batch=4, length=10):
    return np.arange(length) < rng.integers(3, length, size=(batch, 1))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("number, max_tokens", [(1, 5), (3, 6), (2, 24)])
def test_covariance_is_unbiased(rng, masked, number, max_tokens):
    states = _states(rng, number)
    mask = _padding(rng) if masked else np.ones((4, 10), bool)
    drawn = _covariances(
        _layer(max_tokens), states, mask if masked else None, steps=STEPS
    )
    assert drawn.shape == (STEPS, 3, 3)
    expected = oracle.covariance(oracle.unmasked(states, [mask] * number))
    error = drawn.std(axis=0) / np.sqrt(len(drawn))
    assert np.max(error) < 0.1 * np.max(expected)
    assert np.all(np.abs(drawn.mean(axis=0) - expected) < 4.5 * error)


def test_counts_of_states_weigh_their_draws(rng):
    states = _states(rng, 2)
    masks = [np.ones((4, 10), bool), np.arange(10) < np.full((4, 1), 2)]
    drawn = _covariances(_layer(8), states, masks, steps=STEPS)
    expected = oracle.covariance(oracle.unmasked(states, masks))
    error = drawn.std(axis=0) / np.sqrt(len(drawn))
    assert np.all(np.abs(drawn.mean(axis=0) - expected) < 4.5 * error)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX knows all shapes")
@pytest.mark.parametrize("length", [2, 10])
def test_lengths_that_a_graph_does_not_know(rng, length):
    import tensorflow as tf

    layer = _layer(max_tokens=16)
    states = _states(rng, 1, length=length)[0]
    layer(states)
    spec = tf.TensorSpec((None, None, 3), "float32")

    @tf.function(input_signature=[spec], autograph=False)
    def penalty(x):
        layer(x, training=True)
        return layer.losses[-1]

    assert np.isfinite(penalty(states))
    drawn = ops.convert_to_numpy(layer.shrinkage_covariance)
    whole = oracle.covariance(states.reshape(-1, 3))
    # 16 are all of 8 tokens, but not of 40.
    assert np.allclose(drawn, whole, rtol=1e-4) == (length == 2)


def test_every_step_draws_anew_and_a_seed_repeats_it(rng):
    states = _states(rng, 2)
    first = _covariances(_layer(6, seed=1), states, None, steps=6)
    again = _covariances(_layer(6, seed=1), states, None, steps=6)
    other = _covariances(_layer(6, seed=2), states, None, steps=6)
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(np.round(first, 5), axis=0)) == 6
    assert not np.any(np.all(np.isclose(first, other), axis=(1, 2)))


def test_draws_distinct_unmasked_tokens_equally_often(rng, gradient):
    (states,) = _states(rng, 1)
    mask = _padding(rng)
    states[~mask] = np.nan
    layer = _layer(max_tokens=6)
    layer(states)

    def penalty(x):
        layer(x, mask=mask, training=True)
        return layer.losses[-1]

    steps = 100
    times_drawn = np.zeros(mask.shape)
    for _ in range(steps):
        is_drawn = np.any(gradient(penalty, states) != 0, axis=-1)
        assert is_drawn.sum() == 6
        times_drawn += is_drawn
    assert not np.any(times_drawn[~mask])
    share = 6 / mask.sum()
    error = np.sqrt(steps * share * (1 - share))
    assert np.all(np.abs(times_drawn[mask] - steps * share) < 4 * error)


@pytest.mark.parametrize("max_tokens", [28, 80, 1000])
def test_all_tokens_are_used_if_there_are_no_more(rng, max_tokens):
    states = _states(rng, 2)
    mask = np.arange(10) < np.array([[5], [4], [3], [2]])
    drawn = _covariances(_layer(max_tokens), states, mask, steps=2)
    expected = oracle.covariance(oracle.unmasked(states, [mask] * 2))
    np.testing.assert_allclose(drawn, [expected] * 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_tokens", [14, 80])
def test_gradient_reaches_the_tokens_it_is_of(rng, gradient, max_tokens):
    """A sample that is all tokens, in another order, has their gradient."""
    (states,) = _states(rng, 1)
    mask = np.arange(10) < np.array([[5], [4], [3], [2]])

    def penalty(max_tokens):
        layer = _layer(max_tokens)
        layer(states)

        def function(x):
            layer(x, mask=mask, training=True)
            return layer.losses[-1]

        return function

    expected = gradient(penalty(None), states)
    assert np.max(np.abs(expected)) > 1e-3
    sampled = gradient(penalty(max_tokens), states)
    np.testing.assert_allclose(sampled, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="operations of a graph")
def test_nothing_is_sorted(rng):
    """Beside a sort, XLA on a CPU makes dropout slow: seconds for some ms."""
    import tensorflow as tf

    (states,) = _states(rng, 1)
    layer = _layer(max_tokens=6)
    layer(states)

    @tf.function
    def penalty(x):
        layer(x, training=True)
        return layer.losses[-1]

    graph = penalty.get_concrete_function(tf.constant(states)).graph
    kinds = {op.type for op in graph.get_operations()}
    assert "StatelessRandomUniformV2" in kinds
    assert not [kind for kind in kinds if "TopK" in kind or "Sort" in kind]


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_hardly_any_token_is_no_error(rng, gradient, tokens):
    (states,) = _states(rng, 1)
    mask = np.arange(40).reshape(4, 10) < tokens
    states[~mask] = np.nan
    layer = _layer(max_tokens=5)
    layer(states)

    def penalty(x):
        layer(x, mask=mask, training=True)
        return layer.losses[-1]

    assert np.all(np.isfinite(gradient(penalty, states)))
    assert np.isfinite(float(penalty(ops.convert_to_tensor(states))))


@pytest.mark.parametrize("number", [1, 2])
def test_a_batch_without_examples(rng, number):
    states = _states(rng, number, batch=0)
    layer = _layer(max_tokens=6)
    layer(states)
    _compiled(layer, states, np.ones((0, 10), bool))()
    layer(states, training=True)
    assert np.isfinite(float(layer.losses[-1]))
    assert float(layer.has_shrinkage_covariance) == 0.0


@pytest.mark.skipif(BACKEND != "tensorflow", reason="shapes of a graph")
def test_shapes_are_static(rng):
    import tensorflow as tf

    states = _states(rng, 2)
    layer = _layer(max_tokens=6)
    layer(states)

    @tf.function
    def penalty(mask):
        layer(states, mask=mask, training=True)
        return layer.losses[-1]

    graph = penalty.get_concrete_function(tf.TensorSpec((4, 10), "bool")).graph
    outputs = [t for op in graph.get_operations() for t in op.outputs]
    unknown = [t.name for t in outputs if not t.shape.is_fully_defined()]
    assert not unknown
    matrices = [t for t in outputs if t.shape.rank == 2 and t.shape[1] == 3]
    # No more rows than a state has tokens.
    assert max(t.shape[0] for t in matrices) == 40


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_huge_max_tokens_draws_what_there_is(rng, jit_compile):
    inputs = keras.Input((6, 4))
    hidden = keras.layers.Identity(name="encoder")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    keras_istar.attach(model, "encoder", 0.0, 0.0, max_tokens=2**31 - 1)
    model.compile("sgd", "mse", jit_compile=jit_compile)
    x = rng.normal(size=(12, 6, 4)).astype("float32")
    logs = model.fit(x, x[..., :1], batch_size=12, verbose=0).history
    expected = oracle.score(oracle.covariance(x.reshape(-1, 4)))
    assert logs["isoscore"] == pytest.approx([expected], abs=1e-5)


@pytest.fixture(scope="module")
def drawn_on_replicas(tmp_path_factory):
    pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("sampled")
    return run_worker(folder, "sampled", 40, 2500)


@pytest.mark.processes
def test_covariance_of_replicas_is_unbiased(drawn_on_replicas):
    drawn = drawn_on_replicas["covariances"].astype("float64")
    expected = oracle.covariance(drawn_on_replicas["tokens"].reshape(-1, 3))
    error = drawn.std(axis=0) / np.sqrt(len(drawn))
    # Errors of the replicas' means, taken for spread, would add 10 %.
    assert np.max(error) < 0.02 * np.max(expected)
    assert np.all(np.abs(drawn.mean(axis=0) - expected) < 4.5 * error)


@pytest.mark.processes
def test_every_replica_draws_for_itself(drawn_on_replicas):
    first, second = np.moveaxis(drawn_on_replicas["drawn"], 1, 0)
    assert np.all(first.sum(axis=-1) == 5)
    assert np.mean(np.all(first == second, axis=-1)) < 0.01
