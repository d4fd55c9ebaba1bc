"""Embeddings of examples in place of tokens, against NumPy."""

import keras
import numpy as np
import oracle
import pytest

import keras_istar
from keras_istar._src.attach import pooling

KINDS = ["mean", "first", "last", "max"]


def _pooled(kind, states, mask):
    """What NumPy makes of it; None for examples without a token."""
    rows = []
    for tokens, keep in zip(np.asarray(states, "float64"), mask, strict=True):
        tokens = tokens[keep]
        if len(tokens):
            rows.append(
                {
                    "mean": lambda x: x.mean(axis=0),
                    "first": lambda x: x[0],
                    "last": lambda x: x[-1],
                    "max": lambda x: x.max(axis=0),
                }[kind](tokens)
            )
    return np.array(rows)


def _masked(rng):
    states = rng.normal(size=(7, 5, 3)).astype("float32")
    mask = rng.random((7, 5)) < 0.5
    mask[0], mask[1] = True, False
    mask[2] = [False, True, True, False, False]  # Padded on both sides.
    states[~mask] = np.nan
    return states, mask


@pytest.mark.parametrize("kind", KINDS)
def test_padding_has_no_part_in_an_embedding(rng, kind):
    states, mask = _masked(rng)
    embeddings, has_tokens = pooling.pool(kind, states, mask)
    has_tokens = np.asarray(has_tokens)
    np.testing.assert_array_equal(has_tokens, mask.any(axis=1))
    np.testing.assert_allclose(
        np.asarray(embeddings)[has_tokens],
        _pooled(kind, states, mask),
        rtol=1e-6,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_mask_all_tokens_count(rng, kind):
    states = rng.normal(size=(4, 2, 3, 5)).astype("float32")
    embeddings, has_tokens = pooling.pool(kind, states, None)
    assert has_tokens is None
    expected = _pooled(kind, states.reshape(4, 6, 5), np.ones((4, 6), bool))
    np.testing.assert_allclose(embeddings, expected, rtol=1e-5, atol=1e-6)


def _model():
    states = keras.Input((5, 3), name="states")
    padding = keras.Input((5,), dtype="int32", name="padding_mask")
    hidden = keras.layers.Dense(3, name="hidden")(states)
    outputs = keras.layers.GlobalAveragePooling1D(name="pooled")(hidden)
    outputs = keras.layers.Dense(1)(outputs)
    return keras.Model({"states": states, "padding_mask": padding}, outputs)


@pytest.mark.parametrize("kind", KINDS)
def test_penalty_and_report_are_of_the_embeddings(rng, kind):
    model = _model()
    states, mask = _masked(rng)
    states = np.nan_to_num(states)
    x = {"states": states, "padding_mask": mask.astype("int32")}
    hidden = np.asarray(model.get_layer("hidden")(states))
    cloud = _pooled(kind, hidden, mask)
    layer = keras_istar.attach(
        model, "hidden", strength=-2.0, pooling=kind, mask="padding_mask"
    )
    assert f"the {kind} of the tokens" in str(layer)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    history = model.fit(x, np.zeros((7, 1)), verbose=0).history
    assert history["istar_penalty"] == pytest.approx(
        [oracle.penalty(cloud, -2.0, 0.2)], abs=1e-5
    )
    report = keras_istar.measure(
        model, x, "hidden", pooling=kind, mask="padding_mask", verbose=0
    )
    row = report.rows[0]
    assert row.tokens == len(cloud)
    assert row.values["isoscore"] == pytest.approx(
        oracle.score(oracle.covariance(cloud)), abs=1e-5
    )


def test_embeddings_and_unknown_kinds_are_refused(rng):
    model = _model()
    with pytest.raises(ValueError, match="`pooling` must be None or one of"):
        keras_istar.attach(model, "hidden", strength=1.0, pooling="sum")
    with pytest.raises(ValueError, match="`pooling` must be None for states"):
        keras_istar.measure(
            model,
            {"states": np.zeros((2, 5, 3)), "padding_mask": np.ones((2, 5))},
            "pooled",
            pooling="mean",
        )
    with pytest.raises(ValueError, match="`pooling` must be None or one of"):
        keras_istar.IsotropyMonitor(np.zeros((2, 5, 3)), pooling="sum")


def test_output_of_a_text_embedder(rng):
    keras_hub = pytest.importorskip("keras_hub")
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=20,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=8,
        max_sequence_length=6,
    )
    embedder = keras_hub.models.BertTextEmbedder(backbone, preprocessor=None)
    x = {
        "token_ids": rng.integers(1, 20, (16, 6)),
        "segment_ids": np.zeros((16, 6), "int32"),
        "padding_mask": rng.random((16, 6)) < 0.7,
    }
    x["padding_mask"][:, 0] = True
    embeddings = np.asarray(embedder(x))
    report = keras_istar.measure(embedder, x, "output", verbose=0)
    assert report.rows[0].layer == "output"
    assert report.rows[0].values["isoscore"] == pytest.approx(
        oracle.score(oracle.covariance(embeddings)), abs=1e-5
    )
    layer = keras_istar.attach(embedder, "output", strength=1.0)
    assert "output  (batch, 8)" in str(layer)
    with pytest.raises(ValueError, match="`layers='output'` is for models"):
        keras_istar.attach(_tokens_out(), "output")


def test_scores_of_classes_are_no_embedding(tiny_classifier):
    with pytest.warns(UserWarning, match="the scores of the 2 classes"):
        layer = keras_istar.attach(tiny_classifier(), "output", strength=1.0)
    assert "output  (batch, 2)" in str(layer)


def _tokens_out():
    inputs = keras.Input((5, 3))
    return keras.Model(inputs, keras.layers.Dense(4)(inputs))
