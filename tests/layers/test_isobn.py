import keras
import numpy as np
import pytest

import keras_istar
from keras_istar._src.layers.isobn import isotropic_scale


def _scale(deviation, covariance, beta, epsilon):
    """Zhou et al. 2021, step by step, in float64."""
    dim = len(deviation)
    scale = np.empty(dim)
    for i in range(dim):
        correlations = [
            np.clip(covariance[i, j] / (deviation[i] * deviation[j]), -1, 1)
            for j in range(dim)
        ]
        sharing = np.mean(np.square(correlations))
        scale[i] = (sharing * deviation[i] + epsilon) ** -beta
    variance = np.diag(covariance)
    kept = variance.sum() / (np.sum(variance * scale**2) + epsilon)
    return np.sqrt(kept) * scale


def _statistics(x):
    covariance = np.cov(np.asarray(x, "float64"), rowvar=False, bias=True)
    return np.sqrt(np.diag(covariance)), covariance


@pytest.fixture
def batches(rng):
    mixing = rng.normal(size=(5, 5)) * [3.0, 1.0, 1.0, 0.5, 0.1]
    return (rng.normal(size=(3, 40, 5)) @ mixing).astype("float32")


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_scale_of_the_paper(batches, beta):
    deviation, covariance = _statistics(batches[0])
    scale = isotropic_scale(
        keras.ops.convert_to_tensor(deviation.astype("float32")),
        keras.ops.convert_to_tensor(covariance.astype("float32")),
        beta,
        1e-3,
    )
    expected = _scale(deviation, covariance, beta, 1e-3)
    np.testing.assert_allclose(scale, expected, rtol=1e-5)


def test_moving_averages_over_batches(batches):
    layer = keras_istar.IsotropicBatchNormalization(momentum=0.9, beta=0.5)
    averages = None
    for x in batches:
        now = _statistics(x)
        averages = (
            now
            if averages is None
            else [0.9 * a + 0.1 * b for a, b in zip(averages, now, strict=True)]
        )
        outputs = layer(x, training=True)
        expected = x * _scale(*averages, 0.5, 1e-3)
        assert outputs.shape == (40, 5)
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    # Inference scales by what training left, and leaves it alone.
    np.testing.assert_allclose(
        layer(batches[0]), batches[0] * _scale(*averages, 0.5, 1e-3), rtol=1e-4
    )


def test_embeddings_become_more_isotropic(batches):
    layer = keras_istar.IsotropicBatchNormalization()
    x = batches[0]
    scaled = keras.ops.convert_to_numpy(layer(x, training=True))
    assert float(keras_istar.isoscore(scaled)) > float(keras_istar.isoscore(x))
    assert scaled.var(axis=0).sum() == pytest.approx(
        x.var(axis=0).sum(), rel=1e-2
    )


def test_identity_before_training_and_on_damaged_batches(batches):
    layer = keras_istar.IsotropicBatchNormalization()
    np.testing.assert_array_equal(layer(batches[0]), batches[0])
    layer(np.full((4, 5), np.nan, "float32"), training=True)
    np.testing.assert_array_equal(layer(batches[0]), batches[0])


def test_no_gradient_through_statistics(batches, gradient):
    layer = keras_istar.IsotropicBatchNormalization()
    layer(batches[0], training=True)
    scale = _scale(*_statistics(batches[0]), 0.5, 1e-3)
    slope = gradient(lambda x: keras.ops.sum(layer(x)), batches[1])
    np.testing.assert_allclose(
        slope, np.broadcast_to(scale, (40, 5)), rtol=1e-4
    )


def test_config_and_arguments():
    layer = keras_istar.IsotropicBatchNormalization(0.8, 0.3, 1e-2, name="n")
    config = layer.get_config()
    copy = keras_istar.IsotropicBatchNormalization.from_config(config)
    assert copy.get_config() == config
    assert (copy.momentum, copy.beta, copy.epsilon) == (0.8, 0.3, 1e-2)


@pytest.mark.parametrize(
    "argument, value, rule",
    [
        ("momentum", 1.0, "strictly between 0 and 1"),
        ("beta", -0.1, "between 0 and 1"),
        ("epsilon", 0.0, "greater than 0"),
    ],
)
def test_bad_arguments(argument, value, rule):
    with pytest.raises(ValueError) as error:
        keras_istar.IsotropicBatchNormalization(**{argument: value})
    assert str(error.value) == (
        f"`{argument}` must be {rule}. Received: {argument}={value}"
    )


def test_embeddings_of_another_rank():
    layer = keras_istar.IsotropicBatchNormalization()
    with pytest.raises(ValueError, match="`embeddings` must have two dim"):
        layer(np.ones((2, 3, 4)))


def test_attached_to_the_sentence_embedding(tiny_classifier, sentences):
    texts, labels = sentences
    model = tiny_classifier()
    layers = [layer.name for layer in model.layers]
    before = model.predict(texts, verbose=0)
    normalization = keras_istar.IsotropicBatchNormalization()
    keras_istar.attach_regularizer(model, normalization)
    np.testing.assert_array_equal(model.predict(texts, verbose=0), before)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    model.fit(texts, labels, verbose=0)
    assert float(keras.ops.convert_to_tensor(normalization.has_statistics)) == 1
    scaled = model.predict(texts, verbose=0)
    keras_istar.detach(model)
    assert [layer.name for layer in model.layers] == layers
    assert np.abs(model.predict(texts, verbose=0) - scaled).max() > 1e-6


def _oracle_isoscore(covariance):
    values = np.linalg.eigvalsh(covariance)
    ratio = values.sum() ** 2 / np.sum(values**2)
    return (ratio - 1) / (len(values) - 1)


@pytest.mark.parametrize("name", [None, "pooled"])
def test_isotropy_of_the_scaled_embeddings_is_logged(batches, name):
    inputs = keras.Input((5,))
    features = keras.layers.Dense(5, kernel_initializer="identity")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(features))
    normalization = keras_istar.IsotropicBatchNormalization(0.9, name=name)
    keras_istar.attach_regularizer(model, normalization)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x = np.concatenate(batches[:2])
    labels = np.zeros((len(x), 1))
    history = model.fit(
        x,
        labels,
        batch_size=40,
        shuffle=False,
        verbose=0,
        validation_data=(x, labels),
    ).history
    first, second = map(_statistics, batches[:2])
    averages = [0.9 * a + 0.1 * b for a, b in zip(first, second, strict=True)]
    expected = []
    for deviation, covariance in (first, averages):
        scale = _scale(deviation, covariance, 0.5, 1e-3)
        expected.append(_oracle_isoscore(covariance * np.outer(scale, scale)))
    prefix = "" if name is None else "pooled_"
    assert set(history) == {"loss", "val_loss", f"{prefix}isobn_isoscore"}
    np.testing.assert_allclose(
        history[f"{prefix}isobn_isoscore"], [np.mean(expected)], rtol=1e-4
    )


def test_before_others_and_once(tiny_classifier):
    model = tiny_classifier()
    keras_istar.attach_regularizer(
        model, keras_istar.IsotropicBatchNormalization()
    )
    with pytest.raises(ValueError, match="already attached"):
        keras_istar.attach_regularizer(
            model, keras_istar.IsotropicBatchNormalization()
        )


def test_equal_embeddings_stay_as_they_are():
    # Rounding leaves these a variance just below zero.
    embeddings = np.full((15, 2), 0.375, "float32")
    layer = keras_istar.IsotropicBatchNormalization()
    np.testing.assert_array_equal(layer(embeddings, training=True), embeddings)


def test_one_embedding_says_nothing_of_the_variance(rng):
    layer = keras_istar.IsotropicBatchNormalization()
    lone = rng.normal(size=(1, 4)).astype("float32")
    np.testing.assert_array_equal(layer(lone, training=True), lone)
    assert float(layer.has_statistics) == 0.0
    layer(rng.normal(size=(8, 4)).astype("float32"), training=True)
    assert float(layer.has_statistics) == 1.0


def test_model_without_a_sentence_embedding():
    inputs = keras.Input((8, 4))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs), name="tokens")
    layer = keras_istar.IsotropicBatchNormalization()
    with pytest.raises(ValueError) as error:
        keras_istar.attach_regularizer(model, layer)
    assert str(error.value) == (
        "`model` must have a `Dense` layer that is given a sentence embedding "
        "`(batch, dim)`, or `layers` must name the layer that returns it. "
        "Received: model='tokens'"
    )


def folding_model(head=None, dropout=0.3):
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(5, activation="tanh", name="pooled")(inputs)
    dropped = keras.layers.Dropout(dropout)(hidden)
    head = head or keras.layers.Dense(3, name="head")
    return keras.Model(inputs, head(dropped))


def trained_with_isobn(model, rng):
    layer = keras_istar.IsotropicBatchNormalization()
    keras_istar.attach_regularizer(model, layer, "pooled")
    model.compile("sgd", "mse")
    x = rng.normal(size=(64, 6)).astype("float32") * [9, 1, 1, 1, 1, 0.1]
    model.fit(x, np.zeros((64, 3)), verbose=0)
    return x


def test_folded_models_answer_as_before(rng):
    model = folding_model()
    names = [layer.name for layer in model.layers]
    x = trained_with_isobn(model, rng)
    before = model.predict(x, verbose=0)
    keras_istar.detach(model, fold=True)
    after = model.predict(x, verbose=0)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    assert [layer.name for layer in model.layers] == names


def test_detaching_without_folding_drops_the_scaling(rng):
    model = folding_model()
    x = trained_with_isobn(model, rng)
    before = model.predict(x, verbose=0)
    keras_istar.detach(model)
    assert np.max(np.abs(model.predict(x, verbose=0) - before)) > 1e-3


@pytest.mark.parametrize("case", ["activation", "lora", "nothing"])
def test_what_cannot_be_folded_is_refused(rng, case):
    if case == "activation":
        model = folding_model(keras.layers.Activation("relu"))
        keras_istar.attach_regularizer(
            model, keras_istar.IsotropicBatchNormalization(), "pooled"
        )
    elif case == "lora":
        model = folding_model()
        trained_with_isobn(model, rng)
        model.get_layer("head").enable_lora(2)
    else:
        model = folding_model()
        keras_istar.attach(model, "pooled", strength=-1.0)
    with pytest.raises(ValueError, match="`fold` needs"):
        keras_istar.detach(model, fold=True)
    keras_istar.detach(model)  # It is still attached.


def test_steps_are_counted_as_they_are_in_mixed_precision(rng):
    """bfloat16 has no 257."""
    layer = keras_istar.IsotropicBatchNormalization(dtype="mixed_bfloat16")
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(1, dtype="float32")(layer(inputs))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x = rng.normal(size=(600, 4)).astype("float32")
    model.fit(x, x[:, :1], batch_size=2, verbose=0)
    (metric,) = layer.metrics
    total, count = map(keras.ops.convert_to_numpy, metric.variables)
    assert count == 300
    assert 0 < total / count < 1
