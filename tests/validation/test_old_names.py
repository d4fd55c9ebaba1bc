"""Names that arguments had one release ago work, with a warning."""

import keras
import numpy as np
import pytest

import keras_istar

X = np.random.default_rng(0).normal(size=(8, 6, 4)).astype("float32")


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((6, 4))
    return keras.Model(inputs, keras.layers.Dense(5, name="encoder")(inputs))


def measure(model, **kwargs):
    return keras_istar.measure(model, X, "encoder", batch_size=2, **kwargs)


@pytest.mark.parametrize(
    "old, new, value, others",
    [
        ("max_points", "max_tokens", 10, {"measures": "outliers"}),
        ("sample_points", "sample_tokens", 20, {"measures": "twonn"}),
        ("metrics", "measures", ["mean_norm"], {}),
    ],
)
def test_arguments_of_measure(model, old, new, value, others):
    if others.get("measures") == "twonn":
        pytest.importorskip("skdim")
    expected = measure(model, **{new: value}, **others)
    with pytest.warns(DeprecationWarning, match=f"`{old}` is.*`{new}`") as w:
        assert measure(model, **{old: value}, **others) == expected
    assert w[0].filename == __file__
    everything = measure(model)
    assert expected.rows != everything.rows
    with pytest.raises(ValueError, match=f"`{old}` must.* `{new}`.*Received: "):
        measure(model, **{old: value, new: value}, **others)


def test_argument_of_the_callback():
    with pytest.warns(DeprecationWarning, match="`max_points` is") as caught:
        callback = keras_istar.IStarCallback(X, max_points=7)
    assert caught[0].filename == __file__
    assert callback.max_tokens == 7


def test_attribute_of_a_row(model):
    row = measure(model, measures="outliers").rows[0]
    with pytest.warns(DeprecationWarning, match="`points` is.*`tokens`") as w:
        assert row.points == row.tokens == 48
    assert w[0].filename == __file__
