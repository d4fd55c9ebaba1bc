import warnings

import keras
import numpy as np
import oracle
import pytest
from private_keras import all_layers
from private_keras import graph_of

import keras_istar
from keras_istar._src.validation import see_guide

BACKEND = keras.backend.backend()


@keras.saving.register_keras_serializable("tests")
class Block(keras.layers.Layer):
    """A layer made of layers, from hidden states to hidden states."""

    def __init__(self, dim, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim
        self.dense = keras.layers.Dense(dim, activation="tanh")

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, x):
        return x + self.dense(x)

    def get_config(self):
        return super().get_config() | {"dim": self.dim}


def _model(blocks=3):
    inputs = keras.Input((6, 5), name="features")
    x = keras.layers.Dense(4, name="embedding")(inputs)
    for i in range(blocks):
        x = Block(4, name=f"block_{i}")(x)
    wide = keras.layers.Dense(7, name="wide")(x)
    return keras.Model(inputs, keras.layers.Dense(1, name="head")(wide))


def _plain_model():
    """Layers of Keras alone."""
    inputs = keras.Input((6, 5))
    x = keras.layers.Dense(4, name="encoder")(inputs)
    return keras.Model(inputs, keras.layers.Dense(1, name="head")(x))


@pytest.fixture
def x(rng):
    return rng.normal(size=(16, 6, 5)).astype("float32")


def _states(model, x):
    """Name -> the output of the layer, a cloud of tokens."""
    layers = [layer for layer in model.layers if layer.name != "head"][1:]
    probe = keras.Model(model.inputs, [layer.output for layer in layers])
    outputs = keras.tree.flatten(probe.predict(x, verbose=0))
    return {
        layer.name: output.reshape(-1, output.shape[-1])
        for layer, output in zip(layers, outputs, strict=True)
    }


def _snapshot(model):
    """All that attaching could leave behind."""
    nodes, links = graph_of(model)
    return (
        model.get_config(),
        [id(weight) for weight in model.weights],
        [id(layer) for layer in all_layers(model)],
        nodes,
        links,
        list(model.operations),
        set(vars(model)),
        model.inputs,
        model.outputs,
    )


def _assert_same(before, after):
    for a, b in zip(before, after, strict=True):
        assert a == b


@pytest.mark.parametrize(
    "layers, names",
    [
        ("all", ["block_0", "block_1", "block_2"]),
        (0, ["block_0"]),
        (-1, ["block_2"]),
        ([0, -1], ["block_0", "block_2"]),
        ([2, 0, -1], ["block_0", "block_2"]),
        ("embedding", ["embedding"]),
        (["embedding", 1], ["embedding", "block_1"]),
        (("block_1", "block_0"), ["block_0", "block_1"]),
        (["all", "embedding"], ["embedding", "block_0", "block_1", "block_2"]),
        ("wide", ["wide"]),
    ],
)
def test_chosen_layers(x, layers, names):
    model = _model()
    states = _states(model, x)
    layer = keras_istar.attach(model, layers, strength=2.0, shrinkage=0.1)
    assert isinstance(layer, keras_istar.IStarRegularization)
    assert (layer.strength, layer.shrinkage) == (2.0, 0.1)
    model(x, training=True)
    (loss,) = model.losses
    cloud = np.concatenate([states[name] for name in names])
    assert float(loss) == pytest.approx(
        oracle.penalty(cloud, 2.0, 0.1), abs=1e-5
    )


def test_state_names():
    layer = keras_istar.attach(
        _model(), ["embedding", 0, "block_2"], strength=-1.0
    )
    assert layer.state_names == ("embedding", "layer_0", "block_2")


def test_shared_block_counts_once_a_call(x):
    inputs = keras.Input((6, 5))
    block = Block(5, name="shared")
    first = block(inputs)
    second = block(first)
    model = keras.Model(inputs, keras.layers.Dense(1)(second))
    layer = keras_istar.attach(model, strength=-1.0)
    assert layer.state_names == ("layer_0", "layer_1")
    model(x, training=True)
    probe = keras.Model(inputs, [first, second])
    cloud = np.concatenate(probe.predict(x, verbose=0)).reshape(-1, 5)
    assert float(model.losses[0]) == pytest.approx(
        oracle.penalty(cloud), abs=1e-5
    )


def test_nested_models_are_searched(x):
    inner = _model()
    inputs = keras.Input((6, 5))
    outer = keras.Model(inputs, keras.layers.Dense(2)(inner(inputs)))
    keras_istar.attach(outer, strength=-1.0)
    outer(x, training=True)
    states = _states(inner, x)
    cloud = np.concatenate([states[f"block_{i}"] for i in range(3)])
    assert float(outer.losses[0]) == pytest.approx(
        oracle.penalty(cloud), abs=1e-5
    )
    keras_istar.detach(outer)
    assert outer(x, training=True) is not None
    assert outer.losses == []


@pytest.mark.parametrize("source", ["padding_mask", "Keras"])
def test_padding_does_not_count(rng, source):
    tokens = rng.integers(0, 4, size=(8, 6))
    inputs = [keras.Input((6,), dtype="int32")]
    by_keras = source == "Keras"
    embedding = keras.layers.Embedding(4, 5, mask_zero=by_keras)
    x = [tokens]
    if not by_keras:
        inputs.append(keras.Input((6,), dtype="int32", name="padding_mask"))
        x.append((tokens != 0).astype("int32"))
    states = keras.layers.Dense(4, name="encoder")(embedding(inputs[0]))
    outputs = [keras.layers.Dense(1)(states)]
    if not by_keras:  # Unused inputs are dropped.
        outputs.append(keras.ops.cast(inputs[1], "float32"))
    model = keras.Model(inputs, outputs)
    keras_istar.attach(model, "encoder", strength=-1.0)
    model(x, training=True)
    cloud = np.asarray(model.get_layer("encoder")(embedding(tokens)))
    assert float(model.losses[0]) == pytest.approx(
        oracle.penalty(cloud[tokens != 0]), abs=1e-5
    )


def test_outputs_are_bit_identical(x):
    model = _model()
    before = model.predict(x, verbose=0)
    keras_istar.attach(model, strength=-1.0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    np.testing.assert_array_equal(model(x, training=True), model(x))
    keras_istar.detach(model)
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)


def test_detach_restores_exactly(x):
    model = _model()
    model.compile("sgd", "mse")
    model.predict(x, verbose=0)
    before = _snapshot(model)
    for layers in ("all", "embedding", [0, 2]):
        keras_istar.attach(model, layers, strength=-1.0)
        keras_istar.detach(model)
        _assert_same(before, _snapshot(model))


def test_attached_config_and_summary_are_the_models_own(capsys):
    model = _model()
    config = model.get_config()
    keras_istar.attach(model, strength=-1.0)
    assert model.get_config() == config
    model.summary()
    assert "block_2" in capsys.readouterr().out


@pytest.mark.parametrize("when", ["before", "after"])
def test_fit_after_attaching_at_any_time(x, when):
    model, y = _model(), np.zeros((16, 6, 1))
    model.compile("sgd", "mse")
    if when == "after":
        plain = model.fit(x, y, verbose=0).history
        assert "istar_penalty" not in plain
        model.evaluate(x, y, verbose=0)
        model.predict(x, verbose=0)
    keras_istar.attach(model, strength=-1.0)
    assert "istar_penalty" in model.fit(x, y, verbose=0).history
    keras_istar.detach(model)
    assert set(model.fit(x, y, verbose=0).history) == {"loss"}


def test_optimizer_state_survives(x):
    model, y = _model(), np.zeros((16, 6, 1))
    model.compile("adam", "mse")
    model.fit(x, y, epochs=2, verbose=0)
    keras_istar.attach(model, strength=-1.0)
    model.fit(x, y, epochs=2, verbose=0)
    assert int(model.optimizer.iterations) == 4


@pytest.mark.parametrize("attached", ["saved", "loaded", "both"])
def test_weight_files_are_interchangeable(x, tmp_path, attached):
    source, target = _model(), _model()
    if attached in ("saved", "both"):
        layer = keras_istar.attach(source, strength=-1.0)
        layer.set_shrinkage_covariance(np.diag([1.0, 2.0, 3.0, 4.0]))
    if attached in ("loaded", "both"):
        loaded = keras_istar.attach(target)
    source.save_weights(tmp_path / "model.weights.h5")
    target.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(target(x), source(x))
    if attached == "both":
        np.testing.assert_array_equal(
            loaded.shrinkage_covariance, layer.shrinkage_covariance
        )
        assert float(loaded.has_shrinkage_covariance.value) == 1
    if attached == "loaded":
        assert float(loaded.has_shrinkage_covariance.value) == 0


def test_keras_file_written_while_attached_is_plain(
    x, tmp_path, run_without_package
):
    model = _plain_model()
    layer = keras_istar.attach(model, "encoder", strength=-1.0)
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((16, 6, 1)), verbose=0)
    assert layer.built
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", model.predict(x, verbose=0))
    run_without_package(
        """
        model = keras.models.load_model("model.keras")
        y = model.predict(np.load("x.npy"), verbose=0)
        np.testing.assert_allclose(y, np.load("y.npy"), atol=1e-6)
        assert len(model.weights) == 4
        """
    )


NAMES = "['embedding', 'block_0', 'block_1', 'block_2', 'wide', 'head']"
SEE = see_guide("which-layers")
ERRORS = [
    (
        "no_such",
        "`layers` must choose hidden states of the model, which has no layer "
        f"named ['no_such']. Names there are: {NAMES}. {SEE}. "
        "Received: layers='no_such'",
    ),
    (
        [0, "no_such"],
        "`layers` must choose hidden states of the model, which has no layer "
        f"named ['no_such']. Names there are: {NAMES}. {SEE}. "
        "Received: layers=[0, 'no_such']",
    ),
    (
        3,
        "`layers` must hold indices from -3 to 2, the model has 3 blocks. "
        "Received: 3 in layers",
    ),
    (
        [0, -4],
        "`layers` must hold indices from -3 to 2, the model has 3 blocks. "
        "Received: -4 in layers",
    ),
    (
        True,
        "`layers` must hold indices and names of layers, such as `layer.name`. "
        "Received: True in layers",
    ),
    (
        [1.5],
        "`layers` must hold indices and names of layers, such as `layer.name`. "
        "Received: 1.5 in layers",
    ),
    (
        np.int64(3),
        "`layers` must hold indices from -3 to 2, the model has 3 blocks. "
        "Received: 3 in layers",
    ),
    (
        [],
        "`layers` must be 'all', an index, a name such as `layer.name`, or a "
        "list of indices and names. Received: layers=[]",
    ),
    (
        ["block_0", "wide"],
        "`layers` must choose hidden states of one width. "
        "Received: widths={'block_0': 4, 'wide': 7}",
    ),
    (
        "head",
        "`layers` must choose layers with an output `(..., dim)`, dim at "
        "least 2. Received: 'head' with output shape (None, 6, 1)",
    ),
]


@pytest.mark.parametrize("layers, message", ERRORS)
def test_errors_leave_the_model_as_it_was(layers, message):
    model = _model()
    before = _snapshot(model)
    with pytest.raises(ValueError) as error:
        keras_istar.attach(model, layers, strength=-1.0)
    assert str(error.value) == message
    _assert_same(before, _snapshot(model))
    keras_istar.attach(model, strength=-1.0)


@pytest.mark.parametrize(
    "settings",
    [{"strength": np.nan}, {"shrinkage": 2}, {"momentum": 1.0}],
)
def test_wrong_settings_leave_the_model_as_it_was(settings):
    model = _model()
    before = _snapshot(model)
    (name,) = settings
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        keras_istar.attach(model, **settings)
    _assert_same(before, _snapshot(model))


def test_name_of_a_block_in_the_logs():
    with pytest.raises(ValueError) as error:
        keras_istar.attach(_model(), "layer_7", strength=-1.0)
    assert "is the index" not in str(error.value)
    with pytest.raises(ValueError) as error:
        keras_istar.attach(_model(), "layer_1", strength=-1.0)
    assert "that logs call 'layer_1' is the index 1, a number." in str(
        error.value
    )


def test_no_blocks():
    with pytest.raises(ValueError) as error:
        keras_istar.attach(_plain_model(), strength=-1.0)
    assert str(error.value) == (
        "`layers` must choose hidden states of the model, which has no encoder "
        "blocks. Name layers that return them, such as layers=['encoder', "
        f"'head']. Names there are: ['encoder', 'head']. {SEE}. "
        "Received: layers='all'"
    )


def test_already_attached():
    model = _model()
    layer = keras_istar.attach(model, strength=-1.0)
    before = _snapshot(model)
    with pytest.raises(ValueError) as error:
        keras_istar.attach(model, 0, strength=-1.0)
    assert str(error.value) == (
        "`model` is already attached; call `detach(model)` first. "
        f"Received: model={model.name!r}"
    )
    _assert_same(before, _snapshot(model))
    assert layer.strength == -1.0


def test_detaching_what_is_not_attached():
    model = _model()
    with pytest.raises(ValueError) as error:
        keras_istar.detach(model)
    assert str(error.value) == (
        "`model` must have been attached before. "
        f"Received: model={model.name!r}"
    )


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    "model, kind",
    [
        (Subclassed(), "Subclassed"),
        ("bert", "str"),
        (None, "NoneType"),
    ],
)
@pytest.mark.parametrize("function", ["attach", "detach"])
def test_models_that_are_not_functional(model, kind, function):
    with pytest.raises(ValueError) as error:
        getattr(keras_istar, function)(model)
    message = str(error.value)
    assert message.startswith(
        "`model` must be a KerasHub task or backbone, or a Functional Keras "
        "model."
    )
    assert ("self.istar(" in message) == (kind == "Subclassed")
    assert message.endswith(f"Received: model of type {kind}")


@pytest.mark.parametrize("function", ["attach", "detach"])
def test_sequential_model_that_is_not_built(function):
    model = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="`model` must be built"):
        getattr(keras_istar, function)(model)


class Twice(keras.Model):
    """Computes its loss from another pass, in which Keras drops losses."""

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return super().compute_loss(x, y, self(x), sample_weight, training)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_loss_of_another_pass_keeps_the_penalty(x, run_eagerly):
    plain = _plain_model()
    model = Twice(plain.inputs, plain.outputs)
    before = set(vars(model))
    expected = oracle.penalty(_states(model, x)["encoder"], 1.0)
    y = np.zeros((len(x), 6, 1))
    model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=run_eagerly)
    task = model.evaluate(x, y, verbose=0)
    keras_istar.attach(model, "encoder", strength=1.0)
    logs = model.fit(x, y, batch_size=len(x), verbose=0).history
    assert logs["istar_penalty"][0] == pytest.approx(expected, abs=1e-5)
    assert logs["loss"][0] == pytest.approx(task + expected, abs=1e-5)
    evaluated = model.evaluate(x, y, verbose=0, return_dict=True)
    assert evaluated == pytest.approx({"loss": task}, abs=1e-6)
    keras_istar.detach(model)
    assert not {"train_step", "compute_loss"} & (set(vars(model)) - before)
    logs = model.fit(x, y, batch_size=len(x), verbose=0).history
    assert list(logs) == ["loss"]
    assert logs["loss"][0] == pytest.approx(task, abs=1e-6)


@pytest.mark.parametrize("is_nested", [False, True])
def test_frozen_layers(is_nested):
    model = inner = _model()
    for part in inner.layers:
        part.trainable = False
    if is_nested:
        inputs = keras.Input((6, 5))
        model = keras.Model(inputs, inner(inputs))
    with pytest.warns(UserWarning, match="No layer before the hidden states"):
        keras_istar.attach(model)
    keras_istar.detach(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keras_istar.attach(model, strength=0.0)  # Logs only.
        keras_istar.detach(model)
        inner.get_layer("block_0").trainable = True
        keras_istar.attach(model)
        keras_istar.detach(model)
    with pytest.warns(UserWarning, match="No layer before"):
        keras_istar.attach(model, "embedding")


@pytest.mark.filterwarnings("error")
def test_layers_that_lora_trains_are_not_frozen():
    model = _model()
    for i in range(3):
        block = model.get_layer(f"block_{i}")
        block.trainable = False
        block.dense.trainable = True
        block.dense.enable_lora(2)
        assert not block.trainable_weights
    model.get_layer("embedding").trainable = False
    assert len(keras_istar.attach(model).state_names) == 3


@pytest.mark.filterwarnings("error")
def test_frozen_layers_after_one_that_trains():
    encoder = _model()
    encoder.trainable = False
    inputs = keras.Input((6, 5))
    adapted = keras.layers.Dense(5)(inputs)
    model = keras.Model(inputs, encoder(adapted))
    assert len(keras_istar.attach(model).state_names) == 3
