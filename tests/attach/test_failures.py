"""An attach that fails, wherever it fails, leaves nothing."""

import keras
import numpy as np
import pytest
from composites import Listed
from composites import model_of
from private_keras import snapshot

import keras_istar
from keras_istar._src.attach import attach as attach_file
from keras_istar._src.compat import keras_private


class Injected(Exception):
    pass


def _assert_same(model, before):
    parts, *rest = snapshot(model)
    for now, then in zip(parts, before[0], strict=True):
        assert {k for k in now if now[k] != then.get(k)} == set()
        assert set(now) == set(then)
    assert rest == list(before[1:])


def _models():
    composite = model_of(Listed(name="encoder"))
    inner = keras.Sequential(
        [
            keras.Input((6, 5)),
            keras.layers.LSTM(5, return_sequences=True, name="part_1"),
        ],
        name="encoder",
    )
    inputs = [keras.Input((6, 5)), keras.Input((6, 5))]
    siamese = keras.Model(
        inputs, keras.layers.Subtract()([inner(i) for i in inputs])
    )
    return {"composite": composite, "siamese": siamese, "sequential": inner}


PLACES = {
    "taps": (keras_private, "tap"),
    "suspension": (keras_private, "_suspend"),
    "shown nodes": (keras_private, "_showing"),
    "attribute": (keras_private, "_hold"),
    "node below": (keras_private, "_set_below_outputs"),
    "states": (attach_file, "find_states"),
    "weights": (keras_istar.IStarRegularization, "build"),
    "traces": (keras_private, "retrace"),
}


@pytest.mark.parametrize("kind", ["composite", "siamese", "sequential"])
@pytest.mark.parametrize("place", PLACES)
def test_failures(monkeypatch, kind, place):
    model = _models()[kind]
    before = snapshot(model)
    thing, name = PLACES[place]
    function, number = getattr(thing, name), [0]

    def fail_at_first(*args, **kwargs):
        number[0] += 1
        if number[0] == 1:
            raise Injected
        return function(*args, **kwargs)

    monkeypatch.setattr(thing, name, fail_at_first)
    try:
        keras_istar.attach(model, strength=-1.0)
    except (Injected, ValueError):
        _assert_same(model, before)
    else:
        # Not needed for this model, or tried again to look into a layer.
        assert number[0] == 0 or kind == "composite"
        keras_istar.detach(model)
    monkeypatch.setattr(thing, name, function)
    # Nor does it stand in the way of another.
    layer = keras_istar.attach(model, strength=-1.0)
    assert layer.built
    keras_istar.detach(model)
    _assert_same(model, before)


def test_a_refused_attach_keeps_the_regularizer_new():
    cosine = keras_istar.CosineRegularization(1.0)
    model = _models()["composite"]
    with pytest.raises(ValueError):
        keras_istar.attach_regularizer(model, cosine, "no_such")
    assert not cosine.built and cosine.state_names is None
    keras_istar.attach_regularizer(model, cosine, "part_1")


def test_a_failure_leaves_no_names_in_the_regularizer():
    model = _models()["composite"]
    layer = keras_istar.IStarRegularization(target=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="one item for each of the 1"):
        keras_istar.attach_regularizer(model, layer, "part_1")
    assert layer.attachment is None and layer.state_names is None


def test_an_embedding_that_cannot_be_normalized(monkeypatch):
    inputs = keras.Input((6, 5))
    x = keras.layers.GlobalAveragePooling1D(name="pooled")(inputs)
    x = keras.layers.Dropout(0.1)(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    before = snapshot(model)
    data = np.ones((2, 6, 5), "float32")
    outputs = model.predict(data, verbose=0)

    def fail(*args, **kwargs):
        raise Injected

    for thing, name in (
        (keras, "Function"),
        (keras_private, "_hold"),
        (keras_istar.IsotropicBatchNormalization, "build"),
        (keras_private, "retrace"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(thing, name, fail)
            layer = keras_istar.IsotropicBatchNormalization()
            with pytest.raises((Injected, ValueError, RuntimeError)):
                keras_istar.attach_regularizer(model, layer)
        _assert_same_but_traces(model, before)
    keras_istar.attach_regularizer(
        model, keras_istar.IsotropicBatchNormalization()
    )
    keras_istar.detach(model)
    _assert_same_but_traces(model, before)
    np.testing.assert_array_equal(model.predict(data, verbose=0), outputs)


def _assert_same_but_traces(model, before):
    for now, then in zip(snapshot(model)[1:], before[1:], strict=True):
        assert now == then
