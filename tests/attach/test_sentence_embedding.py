import keras
import numpy as np
import pytest

import keras_istar
from keras_istar._src.attach.find_embedding import find_embedding

SIZES = dict(
    vocabulary_size=20,
    num_layers=1,
    num_heads=2,
    hidden_dim=8,
    intermediate_dim=16,
    max_sequence_length=6,
    dropout=0.0,
)


def _bert(hub, dropout=0.1):
    backbone = hub.models.BertBackbone(**SIZES)
    return hub.models.BertTextClassifier(backbone, 2, dropout=dropout)


def _roberta(hub, dropout=0.1):
    backbone = hub.models.RobertaBackbone(**SIZES)
    return hub.models.RobertaTextClassifier(backbone, 2, dropout=dropout)


def _distil_bert(hub):
    backbone = hub.models.DistilBertBackbone(**SIZES)
    return hub.models.DistilBertTextClassifier(backbone, 2)


def _deberta(hub):
    backbone = hub.models.DebertaV3Backbone(**SIZES)
    return hub.models.DebertaV3TextClassifier(backbone, 2)


@pytest.mark.parametrize("make", [_roberta, _distil_bert, _deberta])
def test_pooler_in_the_head_of_a_classifier(make):
    model = make(pytest.importorskip("keras_hub"))
    assert find_embedding(model) is model.get_layer("pooled_dense").output


def test_pooler_in_the_backbone_of_a_classifier():
    model = _bert(pytest.importorskip("keras_hub"))
    dropout = model.get_layer("classifier_dropout")
    assert dropout.rate == 0.1
    assert find_embedding(model) is dropout.input


def test_pooler_of_a_backbone():
    backbone = _bert(pytest.importorskip("keras_hub")).backbone
    assert find_embedding(backbone) is backbone.output["pooled_output"]


def _mean_pooled():
    """Masked mean pooling, as of sentence encoders, then two dense layers."""
    tokens = keras.Input((6,), dtype="int32")
    mask = keras.ops.cast(tokens != 0, "float32")
    states = keras.layers.Embedding(20, 8)(tokens)
    total = keras.ops.sum(states * mask[..., None], axis=1)
    pooled = total / keras.ops.sum(mask, axis=1, keepdims=True)
    pooled = keras.layers.LayerNormalization(name="norm")(pooled)
    dropped = keras.layers.Dropout(0.1)(keras.layers.Dropout(0.1)(pooled))
    return keras.Model(tokens, keras.layers.Dense(2)(dropped))


def test_mean_pooling():
    model = _mean_pooled()
    assert find_embedding(model) is model.get_layer("norm").output


def test_layer_by_name():
    model = _mean_pooled()
    scores = model.layers[-1]
    assert find_embedding(model, scores.name) is scores.output


@pytest.mark.parametrize("name", ["all", "embedding", -1, ["norm"]])
def test_names_of_no_embedding(name):
    with pytest.raises(ValueError) as error:
        find_embedding(_mean_pooled(), name)
    assert "Layers with such outputs are: ['norm', 'dropout" in str(error.value)
    assert str(error.value).endswith(f"Received: layers={name!r}")


def test_layer_that_is_called_twice():
    inputs = keras.Input((6,)), keras.Input((6,))
    encoder = keras.layers.Dense(4, name="encoder")
    features = keras.ops.concatenate([encoder(x) for x in inputs], axis=-1)
    model = keras.Model(inputs, keras.layers.Dense(2)(features))
    assert find_embedding(model).shape == (None, 8)
    with pytest.raises(ValueError, match="calls, once"):
        find_embedding(model, "encoder")


@pytest.mark.parametrize("make", [_bert, _roberta])
def test_attached_layer_sees_the_output_of_the_pooler(make, rng):
    model = make(pytest.importorskip("keras_hub"), dropout=0.0)
    tokens = rng.integers(1, 20, (32, 6)).astype("int32")
    x = {name: tokens for name in ("token_ids", "padding_mask")}
    if make is _bert:
        x["segment_ids"] = 0 * tokens
        pooled = model.backbone(x)["pooled_output"]
    else:
        pooled = model.get_layer("pooled_dense").output
        pooled = keras.Model(model.inputs, pooled)(x)
    expected = np.cov(keras.ops.convert_to_numpy(pooled).T, bias=True)
    normalization = keras_istar.IsotropicBatchNormalization()
    keras_istar.attach_regularizer(model, normalization)
    model(x, training=True)
    np.testing.assert_allclose(
        keras.ops.convert_to_tensor(normalization.moving_covariance),
        expected,
        rtol=1e-4,
        atol=1e-6,
    )
