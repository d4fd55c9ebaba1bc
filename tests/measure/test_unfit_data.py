"""Data that leave nothing to measure, or nothing finite."""

import re

import keras
import numpy as np
import pytest

from keras_istar._src.measure.measure import measure

pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data")


def two_layers(dim=4):
    """Layers `good` and `bad`; `bad` makes NaN of inputs below zero."""
    inputs = keras.Input((None, dim))
    good = keras.layers.Identity(name="good")(inputs)
    bad = keras.layers.Lambda(keras.ops.sqrt, name="bad")(good)
    return keras.Model(inputs, keras.layers.Dense(1)(bad))


def dataset(*arrays, batch_size=4):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size)


@pytest.fixture
def states(rng):
    return rng.uniform(1.0, 2.0, size=(6, 5, 4)).astype("float32")


@pytest.mark.parametrize("with_labels", [False, True])
def test_empty_dataset(states, with_labels):
    arrays = (states[:0], states[:0, 0, 0])[: 1 + with_labels]
    with pytest.raises(ValueError, match="two unmasked tokens.*0 in 'good'"):
        measure(two_layers(), dataset(*arrays), ["good", "bad"])


def test_dataset_that_yields_no_batch(states):
    data = dataset(states).take(0)
    with pytest.raises(ValueError, match="two unmasked tokens.*with 0 in"):
        measure(two_layers(), data, "good")


@pytest.mark.parametrize("make", [list, np.array, tuple])
def test_no_texts(tiny_classifier, make):
    texts = ([], []) if make is tuple else make([])
    with pytest.raises(ValueError, match="two unmasked tokens.*'layer_0'"):
        measure(tiny_classifier(), texts, measures="isoscore")


def test_empty_dataset_of_texts(tiny_classifier, sentences):
    texts, labels = sentences
    with pytest.raises(ValueError, match="two unmasked tokens.*with 0 in"):
        measure(
            tiny_classifier(),
            dataset(texts, labels).take(0),
            measures="isoscore",
        )


@pytest.mark.parametrize("as_dataset", [False, True])
def test_one_token(states, as_dataset):
    token = states[:1, :1]
    data = dataset(token) if as_dataset else token
    with pytest.raises(ValueError, match="two unmasked tokens.*with 1 in"):
        measure(two_layers(), data, "good")


def test_two_tokens_are_enough(states):
    report = measure(two_layers(), states[:1, :2], "good", measures="isoscore")
    assert report.rows[0].tokens == 2


def test_only_layers_that_are_not_finite_are_named(states):
    states[0, 0, 0] = states[2, 3, :] = states[5, 1, 2] = -1.0
    with pytest.raises(ValueError, match="must be finite") as caught:
        measure(two_layers(), states, ["good", "bad"], batch_size=2)
    message = str(caught.value)
    assert "'bad': '3 of 30 tokens'" in message
    assert "good" not in message


def test_layer_that_went_wrong_in_training(tiny_classifier, sentences):
    task = tiny_classifier()
    block = task.backbone.get_layer("transformer_layer_1")
    block.set_weights([np.full_like(w, np.nan) for w in block.get_weights()])
    with pytest.raises(ValueError) as caught:
        measure(task, sentences[0], measures="isoscore")
    damaged = re.search(r"\{.*\}", str(caught.value)).group()
    number = measure(task, sentences[0], 0, measures="isoscore").rows[0].tokens
    assert damaged == str({"layer_1": f"{number:,} of {number:,} tokens"})


def test_a_wrong_name_is_found_before_the_model_runs(states):
    class Untouchable(keras.utils.PyDataset):
        def __len__(self):
            raise AssertionError("looked at")

        __getitem__ = __len__

    with pytest.raises(ValueError, match="Received: measures=.*'isotropy'"):
        measure(
            two_layers(),
            Untouchable(),
            "good",
            measures=["isoscore", "isotropy"],
        )
    with pytest.raises(ValueError, match="no layer named"):
        measure(two_layers(), Untouchable(), "elsewhere")


def test_model_measures_on_after_an_error(states):
    model = two_layers()
    before = model.predict(states, verbose=0)
    with pytest.raises(ValueError, match="must be finite"):
        measure(model, -states, "bad")
    np.testing.assert_array_equal(model.predict(states, verbose=0), before)
    assert (
        measure(model, states, "bad", measures="isoscore").rows[0].tokens == 30
    )
