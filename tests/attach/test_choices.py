"""What a name means, and what is refused."""

import keras
import numpy as np
import oracle
import pytest
from keras import layers

import keras_istar


@keras.saving.register_keras_serializable("tests")
class Split(layers.Layer):
    """Returns a pooled vector, and two hidden states."""

    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self.kind = kind
        self.dense = layers.Dense(4, "tanh")

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, x):
        a = self.dense(x)
        if self.kind is dict:
            return {"pooled": a[:, 0], "sequence": a, "twice": 2 * a}
        return a[:, 0], a, 2 * a


@pytest.fixture
def x(rng):
    return rng.normal(size=(8, 6, 5)).astype("float32")


def _split_model(kind, use):
    inputs = keras.Input((6, 5))
    outputs = Split(kind, name="split")(inputs)
    used = [
        outputs[key]
        if len(outputs[key].shape) == 2
        else keras.ops.mean(outputs[key], axis=1)
        for key in use
    ]
    return keras.Model(inputs, layers.Dense(1)(sum(used)))


def _penalty(model, x):
    model.compile(keras.optimizers.SGD(0.0), "mse")
    y = np.zeros((len(x), 1))
    history = model.fit(x, y, batch_size=len(x), verbose=0).history
    return history["istar_penalty"][0]


def _expected(model, x):
    dense = model.get_layer("split").dense
    states = keras.ops.convert_to_numpy(dense(x))
    return oracle.penalty(states.reshape(-1, 4), 1.0)


KEYS = {dict: ["pooled", "sequence", "twice"], tuple: [0, 1, 2]}


@pytest.mark.parametrize("kind", [dict, tuple])
def test_one_output_that_the_model_goes_on_with(x, kind):
    model = _split_model(kind, KEYS[kind][1:2])
    keras_istar.attach(model, "split", strength=1.0)
    assert _penalty(model, x) == pytest.approx(_expected(model, x), abs=1e-5)


@pytest.mark.parametrize("kind", [dict, tuple])
@pytest.mark.parametrize("used", [slice(1, 3), slice(0, 1)])
def test_several_outputs_are_refused_and_listed(x, kind, used):
    model = _split_model(kind, KEYS[kind][used])
    with pytest.raises(ValueError) as error:
        keras_istar.attach(model, "split", strength=-1.0)
    choices = [f"'split/{key}'" for key in KEYS[kind]]
    assert all(choice in str(error.value) for choice in choices)
    with pytest.raises(ValueError, match="which of the outputs"):
        keras_istar.measure(model, x, "split", verbose=0)


@pytest.mark.parametrize("kind", [dict, tuple])
def test_an_output_by_its_key(x, kind):
    model = _split_model(kind, KEYS[kind][1:])
    key = KEYS[kind][1]
    layer = keras_istar.attach(model, f"split/{key}", strength=1.0)
    assert layer.state_names == ("split",)
    assert layer.attachment.shapes == ((None, 6, 4),)
    assert _penalty(model, x) == pytest.approx(_expected(model, x), abs=1e-5)
    report = keras_istar.measure(
        model, x, f"split/{KEYS[kind][0]}", measures=["isoscore"], verbose=0
    )
    assert report.rows[0].tokens == len(x)  # The pooled one.
    for layers_ in ("split/other", ["split/0", "split/no"]):
        with pytest.raises(ValueError, match="`layers` must"):
            keras_istar.measure(model, x, layers_, verbose=0)


def test_recurrent_and_wrapper_layers_by_name():
    inputs = keras.Input((6, 8))
    h = layers.LSTM(8, return_sequences=True, name="first")(inputs)
    h = layers.Bidirectional(
        layers.GRU(4, return_sequences=True), name="second"
    )(h)
    h = layers.TimeDistributed(layers.Dense(8), name="third")(h)
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(h))
    names = ["first", "second", "third"]
    layer = keras_istar.attach(model, names, strength=-1.0)
    assert list(layer.state_names) == names


@pytest.mark.parametrize("layers_", [[0, "first"], ["first", 0, -2]])
def test_one_state_by_index_and_by_name(layers_):
    inputs = keras.Input((6, 8))
    h = layers.LSTM(8, return_sequences=True, name="first")(inputs)
    h = layers.LSTM(8, return_sequences=True, name="last")(h)
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(h))
    layer = keras_istar.attach(model, layers_, strength=-1.0)
    assert layer.state_names == ("first",)


def test_too_few_tokens_drawn():
    inputs = keras.Input((6, 8))
    h = layers.LSTM(8, return_sequences=True, name="a")(inputs)
    h = layers.LSTM(8, return_sequences=True, name="b")(h)
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(h))
    before = len(model.weights)
    with pytest.raises(ValueError) as error:
        keras_istar.attach(model, max_tokens=3, strength=-1.0)
    assert str(error.value) == (
        "`max_tokens` must be at least two for each of the 2 hidden states, "
        "4. Received: max_tokens=3"
    )
    assert len(model.weights) == before
    keras_istar.attach(model, max_tokens=4, strength=-1.0)


@pytest.mark.parametrize("name", ["conv", "norm", "relu"])
def test_channels_first_is_refused(name):
    inputs = keras.Input((3, 8, 8))
    h = layers.Conv2D(
        4, 3, padding="same", data_format="channels_first", name="conv"
    )
    # Shapes are all that is needed; processors cannot compute it.
    try:
        h = h(inputs)
    except Exception:
        pytest.skip("this backend has no such convolution")
    h = layers.BatchNormalization(axis=1, name="norm")(h)
    h = layers.ReLU(name="relu")(h)
    h = layers.Permute((2, 3, 1), name="permute")(h)
    outputs = layers.Dense(1)(layers.GlobalAveragePooling2D()(h))
    model = keras.Model(inputs, outputs)
    with pytest.raises(ValueError, match="channels first"):
        keras_istar.attach(model, name, strength=-1.0)
    layer = keras_istar.attach(model, "permute", strength=-1.0)
    assert layer.dim == 4


def test_options_that_do_not_exist():
    inputs = keras.Input((6, 8))
    h = layers.LSTM(8, return_sequences=True)(inputs)
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(h))
    with pytest.raises(TypeError) as error:
        keras_istar.attach(model, lam=1, strength=-1.0)
    for name in ("strength", "shrinkage", "momentum", "max_tokens", "mask"):
        assert f"'{name}'" in str(error.value)
    assert "trainable" not in str(error.value)
    assert "['lam']" in str(error.value)


def test_description():
    inputs = keras.Input((None, 8))
    h = layers.LSTM(8, return_sequences=True, name="a")(inputs)
    model = keras.Model(
        inputs, layers.GlobalAveragePooling1D()(h), name="tagger"
    )
    layer = keras_istar.attach(model, "a", strength=-1.0)
    assert layer.attachment.describe() == (
        "attached to 'tagger', hidden states:\n"
        "  a  (batch, ?, 8)  padding: Keras masks, if any"
    )
    assert "attached to 'tagger'" in str(layer)
    keras_istar.detach(model)
    assert "attached to" not in str(layer)


def test_names_that_numbers_would_repeat():
    """A layer called twice, beside one that has the name of its second call."""
    shared = layers.Dense(5, name="encoder")
    inputs = keras.Input((6, 5))
    last = layers.Dense(5, name="encoder_1")(shared(shared(inputs)))
    model = keras.Model(inputs, last)
    layer = keras_istar.attach(model, ["encoder", "encoder_1"])
    assert layer.state_names == ("encoder", "encoder_2", "encoder_1")


def test_two_outputs_of_one_layer_are_refused():
    model = _split_model(dict, ["sequence"])
    with pytest.raises(ValueError, match="must choose one output of 'split'"):
        keras_istar.attach(model, ["split", "split/twice"])


class Attentive(layers.Layer):
    """Returns its states, and scores of attention."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(5, "tanh")

    def call(self, x):
        states = x + self.dense(x)
        transposed = keras.ops.transpose(states, (0, 2, 1))
        return states, keras.ops.matmul(states, transposed)


def test_a_block_that_returns_more_than_its_states(x):
    inputs = keras.Input((6, 5))
    block = Attentive(name="block")
    states, scores = block(inputs)
    pooled = keras.ops.mean(keras.ops.matmul(scores, states), axis=1)
    model = keras.Model(inputs, layers.Dense(1)(pooled))
    states = keras.ops.convert_to_numpy(block(x)[0])
    expected = oracle.penalty(states.reshape(-1, 5), 1.0)
    for chosen in ("block", 0):
        keras_istar.attach(model, chosen, strength=1.0)
        assert _penalty(model, x) == pytest.approx(expected, abs=1e-5)
        keras_istar.detach(model)
