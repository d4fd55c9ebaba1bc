"""Properties of attached and of measured models, whatever their states are."""

import keras
import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from strategies import clouds
from strategies import fractions
from strategies import masked_clouds
from strategies import strengths
from strategies import units

import keras_istar
from keras_istar._src.measure.measure import measure

needs_eager_losses = pytest.mark.skipif(
    keras.backend.backend() == "jax",
    reason="on JAX a model called by hand keeps no losses",
)


@st.composite
def stacks(draw):
    """Depth and width of a stack of blocks, and which of them to attach."""
    depth, dim = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    names = st.sampled_from([f"block_{i}" for i in range(depth)])
    return depth, dim, draw(st.lists(names, min_size=1, unique=True))


def _model(depth, dim):
    inputs = keras.Input((None, 3))
    x = keras.layers.Masking()(inputs)
    for i in range(depth):
        x = keras.layers.Dense(dim, "tanh", name=f"block_{i}")(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def _sentences(seed):
    """Padded sentences `(batch, length, dim)` of random lengths."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rng.integers(1, 5), rng.integers(1, 7), 3))
    lengths = rng.integers(1, x.shape[1] + 1, size=len(x))
    mask = np.arange(x.shape[1]) < lengths[:, None]
    return (x * mask[..., None]).astype("float32"), mask


seeds = st.integers(0, 2**32 - 1)


@needs_eager_losses
@settings(max_examples=60)
@given(stacks(), seeds, strengths, fractions)
def test_attached_model_is_the_model_and_the_papers_penalty(
    stack, seed, strength, shrinkage
):
    depth, dim, names = stack
    model = _model(depth, dim)
    x, mask = _sentences(seed)
    config, outputs = model.get_config(), np.asarray(model(x))
    weights = [weight.path for weight in model.weights]
    keras_istar.attach(model, names, strength, shrinkage)
    assert model.get_config() == config
    np.testing.assert_array_equal(model(x, training=True), outputs)
    (penalty,) = model.losses
    states = [
        np.asarray(keras.Model(model.input, model.get_layer(name).output)(x))
        for name in names
    ]
    points = oracle.unmasked(states, [mask] * len(states))
    expected = oracle.penalty(points, strength, shrinkage)
    assert abs(float(penalty) - expected) <= 1e-4 * abs(strength)
    np.testing.assert_array_equal(model(x), outputs)
    assert model.losses == []
    keras_istar.detach(model)
    assert model.get_config() == config
    assert [weight.path for weight in model.weights] == weights
    np.testing.assert_array_equal(model(x, training=True), outputs)
    assert model.losses == []


@settings(max_examples=60)
@given(stacks(), st.sampled_from(["missing", 7]))
def test_model_that_cannot_be_attached_stays_as_it_was(stack, wrong):
    depth, dim, names = stack
    model = _model(depth, dim)
    config, weights = model.get_config(), len(model.weights)
    layers = [*names, wrong]
    with pytest.raises(ValueError, match="`layers`"):
        keras_istar.attach(model, layers, strength=-1.0)
    assert model.get_config() == config
    assert len(model.weights) == weights
    with pytest.raises(ValueError, match="must have been attached"):
        keras_istar.detach(model)


@settings(max_examples=100)
@given(
    clouds(dtypes=["float32"], min_tokens=2),
    arrays("float64", (8, 8), elements=units),
    st.sampled_from(["asymmetry", "variance", "nan", "shape"]),
)
def test_only_a_covariance_becomes_the_shrinkage_covariance(cloud, a, fault):
    points, _ = cloud
    dim = points.shape[-1]
    covariance = oracle.covariance(points.reshape(-1, dim)).astype("float32")
    layer = keras_istar.IStarRegularization(strength=-1.0)
    layer.build((None, None, dim))
    layer.set_shrinkage_covariance(covariance)
    np.testing.assert_array_equal(layer.shrinkage_covariance, covariance)
    wrong = (a @ a.T + np.eye(8))[:dim, :dim]
    if fault == "asymmetry":
        wrong[0, 1] += np.max(wrong)
    elif fault == "variance":
        wrong[1, 1] = -np.max(wrong)
    elif fault == "nan":
        wrong[-1, -1] = np.nan
    else:
        wrong = wrong[1:]
    with pytest.raises(ValueError, match="`value`"):
        layer.set_shrinkage_covariance(wrong)
    np.testing.assert_array_equal(layer.shrinkage_covariance, covariance)
    assert float(layer.has_shrinkage_covariance.value) == 1.0


@settings(max_examples=15)
@given(
    masked_clouds(dtypes=["float32"], furthest=10.0, min_tokens=4),
    st.integers(1, 5),
    fractions,
)
def test_measured_is_what_the_unmasked_points_are(cloud, batch_size, shrinkage):
    points, mask, _ = cloud
    mask[0, :2] = True  # Two tokens at least.
    inputs = keras.Input(points.shape[1:], name="inputs")
    padding_mask = keras.Input(mask.shape[1:], name="padding_mask")
    states = keras.layers.Identity(name="states")(inputs)
    model = keras.Model(
        {"inputs": inputs, "padding_mask": padding_mask}, states
    )
    report = measure(
        model,
        {"inputs": points.astype("float32"), "padding_mask": mask},
        "states",
        measures=["isoscore", "isoscore_star", "mean_norm"],
        shrinkage=shrinkage,
        batch_size=batch_size,
        verbose=0,
    )
    chosen = points[mask]
    for row in report.rows:
        assert row.tokens == len(chosen)
        expected = {
            "isoscore": oracle.score(oracle.covariance(chosen)),
            "isoscore_star": oracle.score(oracle.shrunk(chosen, shrinkage)),
            "mean_norm": np.mean(np.linalg.norm(chosen, axis=-1)),
        }
        if not np.any(chosen != chosen[0]):
            del expected["isoscore_star"]  # Of whatever rounding left.
        for name, value in expected.items():
            assert row.values[name] == pytest.approx(value, rel=1e-3, abs=2e-4)


def _with_call(call):
    class Own(keras.Model):
        pass

    Own.call = call
    inputs = keras.Input((6, 4))
    hidden = keras.layers.Dense(5, name="block")(inputs)
    return Own, Own(inputs, keras.layers.Dense(1, name="head")(hidden))


def _calls_layers(self, x, training=None, mask=None):
    return self.get_layer("head")(self.get_layer("block")(x))


def _drops_training(self, x, training=None, mask=None):
    return super(type(self), self).call(x)


def _passes_on(self, x, training=None, mask=None):
    return super(type(self), self).call(2 * x, training=training)


def _fails(self, x, training=None, mask=None):
    raise TypeError("values are needed")


@pytest.mark.parametrize(
    "call, received",
    [
        (_calls_layers, "`call` does not$"),
        (_drops_training, "does not pass `training` on$"),
    ],
)
def test_a_call_that_leaves_out_the_graph_is_refused(call, received):
    kind, model = _with_call(call)
    attributes = set(vars(model))
    with pytest.raises(ValueError, match=received):
        keras_istar.attach(model, "block")
    inputs = keras.Input((6, 4))
    outer = keras.Model(inputs, model(inputs))
    with pytest.raises(ValueError, match=f"model of type {kind.__name__}"):
        keras_istar.attach(outer, "block")
    assert set(vars(model)) == attributes
    assert len(model.weights) == 4


@pytest.mark.parametrize("call", [_passes_on, _fails])
def test_a_call_that_may_run_the_graph_is_left_alone(call):
    _, model = _with_call(call)
    keras_istar.attach(model, "block")
    keras_istar.detach(model)
    assert len(model.weights) == 4
