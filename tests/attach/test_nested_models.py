"""Several models in one: which is attached, and what to write for each."""

import ast
import logging
import re
import warnings

import keras
import numpy as np
import oracle
import pytest
from private_keras import all_layers
from private_keras import snapshot

import keras_istar


@pytest.fixture
def x(rng):
    return rng.normal(size=(8, 6, 5)).astype("float32")


def _tower(name, dim=4):
    inputs = keras.Input((6, 5))
    hidden = keras.layers.Dense(dim, "tanh", name="encoder")(inputs)
    hidden = keras.layers.Dense(dim, "tanh", name=f"{name}_last")(hidden)
    pooled = keras.layers.GlobalAveragePooling1D()(hidden)
    return keras.Model(inputs, pooled, name=name)


def _two_towers():
    inputs = [keras.Input((6, 5)), keras.Input((6, 5))]
    towers = [_tower("query"), _tower("doc")]
    outputs = [t(i) for t, i in zip(towers, inputs, strict=True)]
    return keras.Model(inputs, keras.layers.Dot(1)(outputs), name="both")


def _siamese(inner):
    inputs = [keras.Input((6, 5)), keras.Input((6, 5))]
    outputs = keras.layers.Subtract()([inner(i) for i in inputs])
    return keras.Model(inputs, keras.layers.Dense(1)(outputs))


def _states(model, name, x):
    layer = model.get_layer(name)
    states = keras.Model(model.input, layer.output)(x)
    return keras.ops.convert_to_numpy(states).reshape(-1, states.shape[-1])


def _logged(model, x):
    model.compile(keras.optimizers.SGD(0.0), "mse")
    y = np.zeros((8, 1))
    return {
        key: values[0]
        for key, values in model.fit(
            x, y, batch_size=8, verbose=0
        ).history.items()
    }


@pytest.mark.parametrize("layers", ["encoder", ["encoder"], "all", -1])
def test_what_several_models_have_is_refused(layers):
    model = _two_towers()
    if layers in ("all", -1):
        inputs = [keras.Input((6, 5)), keras.Input((6, 5))]
        lstms = [
            keras.Sequential(
                [
                    keras.Input((6, 5)),
                    keras.layers.LSTM(5, return_sequences=True),
                ],
                name=name,
            )
            for name in ("query", "doc")
        ]
        pooled = [f(i)[:, 0] for f, i in zip(lstms, inputs, strict=True)]
        model = keras.Model(inputs, keras.layers.Dot(1)(pooled))
    with pytest.raises(ValueError) as error:
        keras_istar.attach(model, layers, strength=-1.0)
    item = layers[0] if isinstance(layers, list) else layers
    assert f"attach(model, 'query/{item}')" in str(error.value)
    assert f"attach(model, 'doc/{item}')" in str(error.value)
    # What it says can be done.
    keras_istar.attach(model, f"query/{item}", strength=-1.0)
    keras_istar.attach(model, f"doc/{item}", strength=-1.0)
    keras_istar.detach(model)


def test_messages_name_the_function_that_was_called(x):
    model = _two_towers()
    with pytest.raises(ValueError, match=r"measure\(model, data, 'doc/enc"):
        keras_istar.measure(model, [x, x], "encoder", verbose=0)
    cosine = keras_istar.CosineRegularization(1.0)
    line = r"attach_regularizer\(model, regularizer, 'query/encoder'\)"
    with pytest.raises(ValueError, match=line):
        keras_istar.attach_regularizer(model, cosine, "encoder")
    assert not cosine.built


def test_both_towers_are_attached_at_once(x, rng):
    model = _two_towers()
    data = [x, rng.normal(size=x.shape).astype("float32") * [1, 2, 3, 4, 5]]
    for name, strength in (("query", 1.0), ("doc", -2.0)):
        layer = keras_istar.attach(model, f"{name}/encoder", strength=strength)
        assert layer.owner_name == name
        assert layer.state_names == ("encoder",)
        message = f"already attached, in its part '{name}'.*{model.name!r}"
        with pytest.raises(ValueError, match=message):
            keras_istar.attach(model, f"{name}/{name}_last", strength=-1.0)
    expected = [
        oracle.penalty(_states(model.get_layer(name), "encoder", part), s)
        for name, part, s in zip(
            ("query", "doc"), data, (1.0, -2.0), strict=True
        )
    ]
    model.compile(keras.optimizers.SGD(0.0), "mse")
    y = np.zeros((8, 1))
    task = model.evaluate(data, y, verbose=0, return_dict=True)["loss"]
    logs = _logged(model, data)
    assert logs["loss"] - task == pytest.approx(sum(expected), abs=1e-5)
    assert sorted(
        value for key, value in logs.items() if key.endswith("istar_penalty")
    ) == pytest.approx(sorted(expected), abs=1e-5)
    keras_istar.detach(model)
    assert list(_logged(model, data)) == ["loss"]


def test_detaching_a_part_that_the_whole_was_attached_by(x):
    """The whole is what it was, and trains without the penalty."""
    model = _two_towers()
    before = snapshot(model)
    for name in ("query", "doc"):
        keras_istar.attach(model, f"{name}/encoder")
    keras_istar.detach(model.get_layer("query"))
    keras_istar.detach(model.get_layer("doc"))
    assert snapshot(model) == before


def test_detaching_a_part_makes_the_whole_train_without_it(x):
    model = _two_towers()
    for name in ("query", "doc"):
        keras_istar.attach(model, f"{name}/encoder", strength=-1.0)
    assert len(_logged(model, [x, x])) == 5
    y = np.zeros((8, 1))
    for name, number in (("query", 3), ("doc", 1)):
        keras_istar.detach(model.get_layer(name))
        logs = model.fit([x, x], y, batch_size=8, verbose=0).history
        assert len(logs) == number  # As many metrics for each, and the loss.


def test_names_in_different_models():
    model = _two_towers()
    with pytest.raises(ValueError) as error:
        keras_istar.attach(model, ["query_last", "doc_last"], strength=-1.0)
    assert (
        "these names are in different nested models: "
        "{'query_last': 'query', 'doc_last': 'doc'}"
    ) in str(error.value)
    with pytest.raises(ValueError) as error:
        keras_istar.attach(
            model, ["query/encoder", "doc/encoder"], strength=-1.0
        )
    assert "a line for each" in str(error.value)
    layer = keras_istar.attach(
        model, ["query/encoder", "query/query_last"], strength=-1.0
    )
    assert layer.state_names == ("encoder", "query_last")


@pytest.mark.parametrize(
    "layers, message",
    [
        ("query/no_such", "no layer named ['no_such']"),
        ("no_such/encoder", "has no 'no_such'. There are: ['query', 'doc']"),
        ("query/all", "has no encoder blocks"),
        ("query/encoder/x", "has no 'query/encoder'"),
        ("query/", "no layer named ['']"),
    ],
)
def test_paths_that_lead_nowhere(layers, message):
    with pytest.raises(ValueError) as error:
        keras_istar.attach(_two_towers(), layers, strength=-1.0)
    assert message in str(error.value)


def test_paths_of_any_depth(x):
    inner = _tower("inner")
    i = keras.Input((6, 5))
    middle = keras.Model(i, keras.layers.Dense(4)(inner(i)), name="middle")
    j = keras.Input((6, 5))
    model = keras.Model(j, keras.layers.Dense(1)(middle(j)))
    expected = oracle.penalty(_states(inner, "encoder", x), 1.0)
    for layers in ("encoder", "middle/inner/encoder", "inner/encoder"):
        layer = keras_istar.attach(model, layers, strength=1.0)
        assert layer.owner_name == "inner"
        assert _logged(model, x)["istar_penalty"] == pytest.approx(
            expected, abs=1e-5
        )
        keras_istar.detach(model)


@pytest.mark.parametrize("layers", ["encoder", "query/encoder"])
def test_a_model_called_twice_is_one_cloud(x, layers):
    inner = _tower("query")
    model = _siamese(inner)
    data = [x, x * np.array([5, 1, 0.1, 0.1, 2], "float32")]
    cloud = np.concatenate([_states(inner, "encoder", part) for part in data])
    before = keras.ops.convert_to_numpy(model(data))
    layer = keras_istar.attach(model, layers, strength=1.0)
    assert layer.owner_name == model.name
    assert layer.state_names == ("encoder", "encoder_1")
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(model(data)), before
    )
    logs = _logged(model, data)
    assert logs["istar_penalty"] == pytest.approx(
        oracle.penalty(cloud, 1.0), abs=1e-5
    )
    task = model.evaluate(data, np.zeros((8, 1)), verbose=0, return_dict=True)[
        "loss"
    ]
    assert logs["loss"] - task == pytest.approx(logs["istar_penalty"], abs=1e-5)
    report = keras_istar.measure(
        model, data, layers, measures=["isoscore"], verbose=0
    )
    assert report.rows[-1].values["isoscore"] == pytest.approx(
        oracle.score(oracle.covariance(cloud)), abs=1e-5
    )
    # The inner model, called elsewhere, has nothing to do with it.
    inner.compile(keras.optimizers.SGD(0.0), "mse")
    assert list(inner.fit(x, np.zeros((8, 4)), verbose=0).history) == ["loss"]
    keras_istar.detach(model)
    assert set(vars(inner.get_layer("encoder"))) == set(
        vars(inner.get_layer("query_last"))
    )


def test_a_model_called_twice_inside_of_another(x):
    inner = _tower("query")
    middle = _siamese(inner)
    inputs = [keras.Input((6, 5)), keras.Input((6, 5))]
    model = keras.Model(inputs, keras.layers.Dense(1)(middle(inputs)))
    cloud = np.concatenate([_states(inner, "encoder", p) for p in (x, x + 1)])
    layer = keras_istar.attach(model, "encoder", strength=1.0)
    assert layer.owner_name == middle.name
    assert _logged(model, [x, x + 1])["istar_penalty"] == pytest.approx(
        oracle.penalty(cloud, 1.0), abs=1e-5
    )


class Block(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(5)

    def call(self, x):
        return x + self.dense(x)


class Patches(Block):
    """Another kind of block."""


def _one_on_another(kind, number=1):
    i = keras.Input((6, 5))
    inner = keras.Model(i, kind(name="b")(i), name="vision")
    j = keras.Input((6, 5))
    x = inner(j)
    for name in ("a", "c")[:number]:
        x = Block(name=name)(x)
    return keras.Model(j, x, name="both")


def _two_dense():
    i = keras.Input((6, 5))
    inner = keras.Model(i, keras.layers.Dense(5, name="hidden")(i), name="in")
    j = keras.Input((6, 5))
    hidden = keras.layers.Dense(5, name="hidden")(inner(j))
    return keras.Model(j, hidden, name="out")


@pytest.mark.filterwarnings("error")
def test_what_is_left_out_is_logged_once(caplog):
    model = _one_on_another(Patches)
    with caplog.at_level(logging.INFO, "keras_istar"):
        layer = keras_istar.attach(model, strength=-1.0)
    assert layer.state_names == ("layer_0",)
    (record,) = caplog.records
    assert "the 1 blocks of 'vision' are not taken" in record.getMessage()
    assert "attach(model, 'vision/all')" in record.getMessage()
    assert record.getMessage().split(": ", 1)[1] in (
        layer.attachment.describe()
    )
    keras_istar.attach(model, "vision/all", strength=-1.0)
    keras_istar.detach(model)


class Tower(keras.Model):
    """A tower that is not Functional."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [Block(name="first"), Block(name="second")]

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def _towers_of_two_kinds():
    inputs = [keras.Input((6, 5)), keras.Input((6, 5))]
    i = keras.Input((6, 5))
    query = keras.Model(i, Block(name="first")(i), name="query")
    pair = [query(inputs[0]), Tower(name="doc")(inputs[1])]
    return keras.Model(inputs, keras.layers.Dot(2)(pair), name="both")


def _lines(warning):
    """The arguments `layers` that a warning writes out."""
    lines = re.findall(r"attach\(model, (.*?)\)", str(warning.message))
    return [ast.literal_eval(line) for line in lines]


@pytest.mark.parametrize(
    "make, layers, said",
    [
        (lambda: _one_on_another(Block), "all", ["vision/all", "both/all"]),
        (lambda: _one_on_another(Block), [-1], ["vision/-1", "both/-1"]),
        (
            lambda: _one_on_another(Block, 2),
            [1, 0],
            ["vision/0", ["both/1", "both/0"]],
        ),
        (_towers_of_two_kinds, "all", ["query/all", "both/all"]),
        (_two_dense, "hidden", ["in/hidden", "out/hidden"]),
    ],
)
def test_the_user_is_told_of_what_fits_as_well(make, layers, said):
    model = make()
    with pytest.warns(UserWarning, match="`layers` also fits") as warned:
        taken = keras_istar.attach(model, layers).state_names
    (warning,) = warned
    assert _lines(warning) == said
    keras_istar.detach(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other, own = said
        assert keras_istar.attach(model, own).state_names == taken
        keras_istar.attach(model, other)


def test_lines_for_models_with_less_blocks():
    def tower(name, number):
        i = x = keras.Input((6, 5))
        for j in range(number):
            x = Block(name=f"{name}_{j}")(x)
        return keras.Model(i, x, name=name)

    inputs = [keras.Input((6, 5)), keras.Input((6, 5))]
    towers = [tower("query", 3), tower("doc", 2)]
    pair = [f(i) for f, i in zip(towers, inputs, strict=True)]
    model = keras.Model(inputs, keras.layers.Dot(2)(pair))
    with pytest.raises(ValueError, match="these models have") as error:
        keras_istar.attach(model, [0, 2])
    lines = re.findall(r"attach\(model, (.*?)\)", str(error.value))
    assert lines == ["['query/0', 'query/2']", "'doc/0'"]


def test_a_model_and_one_in_it_are_not_one_cloud():
    line = r"attach\(model, \['hidden', 'hidden'\]\)|attach\(model, 'hidden'\)"
    with pytest.raises(ValueError, match=line) as error:
        keras_istar.attach(_two_dense(), ["hidden", "in/hidden"])
    said = str(error.value)
    assert "attach(model, 'in/hidden')" in said
    assert said.endswith("Received: layers=['hidden', 'in/hidden']")


def test_the_user_is_told_of_names_that_cannot_be_taken():
    model = _towers_of_two_kinds()
    model.get_layer("query").get_layer("first").name = "hidden"
    model.get_layer("doc").blocks[0].dense.name = "hidden"
    with pytest.warns(UserWarning, match=r"\['hidden'\] inside of 'doc'") as w:
        layer = keras_istar.attach(model, "hidden")
    assert layer.owner_name == "query"
    assert _lines(w[0]) == ["query/hidden"]
    keras_istar.detach(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keras_istar.attach(model, "query/hidden")


@pytest.mark.filterwarnings("error")
def test_names_of_parts_of_layers_before():
    """Such as those of attention, and of blocks before the last norm."""
    inputs = keras.Input((6, 5))
    tower = Tower(name="tower")
    states = tower(inputs)
    tower.blocks[0].dense.name = "norm"
    states = keras.layers.MultiHeadAttention(1, 2)(states, states)
    outputs = keras.layers.Dense(5, name="query")(states)
    outputs = keras.layers.Dense(5, name="norm")(outputs)
    names = ["query", "norm"]
    layer = keras_istar.attach(keras.Model(inputs, outputs), names)
    assert list(layer.state_names) == names


def _pair_of_calls(encode):
    inputs = [keras.Input((6, 5)), keras.Input((6, 5))]
    outputs = keras.layers.Subtract()([encode(i) for i in inputs])
    return keras.Model(inputs, outputs, name="pair")


@pytest.mark.parametrize("kind", ["blocks", "composite", "nested"])
def test_the_user_is_told_of_other_calls_of_a_block(kind):
    stack = [Block(name="first"), Block(name="second")]

    def encode(x):
        for block in stack:
            x = block(x)
        return x

    model = _pair_of_calls(Tower(name="t") if kind == "composite" else encode)
    path = ""
    if kind == "nested":
        inputs = [keras.Input((6, 5)), keras.Input((6, 5))]
        outputs = Block(name="second")(model(inputs))
        model, path = keras.Model(inputs, outputs, name="whole"), "pair/"
    index = f"{path}-1" if path else -1
    with pytest.warns(UserWarning, match="1 of the 2 calls of 'second'") as w:
        keras_istar.attach(model, index)
    (warning,) = w
    assert _lines(warning) == [f"{path}second"]
    keras_istar.detach(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = keras_istar.attach(model, f"{path}second")
        assert both.state_names == (
            f"{path}second".split("/")[-1],
            "second_1",
        )
        keras_istar.detach(model)
        indices = [f"{path}{i}" if path else i for i in range(4)]
        keras_istar.attach(model, indices)
        keras_istar.detach(model)


def test_the_user_is_told_of_stacks_apart():
    inputs = [keras.Input((6, 5)), keras.Input((6, 5))]
    states = [
        Tower(name=name)(i)
        for name, i in zip(("text", "image"), inputs, strict=True)
    ]
    model = keras.Model(inputs, keras.layers.Dot(2)(states))
    with pytest.warns(UserWarning, match="'text', 'image'. are one") as w:
        layer = keras_istar.attach(model)
    assert len(layer.state_names) == 4
    assert _lines(w[0]) == ["text/all", "image/all"]
    keras_istar.detach(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(keras_istar.attach(model, "image/all").state_names) == 2


@pytest.mark.filterwarnings("error")
def test_one_block_after_itself_has_indices():
    block = Block(name="shared")
    inputs = keras.Input((6, 5))
    model = keras.Model(inputs, block(block(block(inputs))))
    layer = keras_istar.attach(model, [0, -1])
    assert layer.state_names == ("layer_0", "layer_2")


def test_output_as_a_name_of_an_inner_layer():
    i = keras.Input((6, 5))
    states = keras.layers.Dense(5, name="output")(i)
    inner = keras.Model(i, states, name="inner")
    j = keras.Input((6, 5))
    pooled = keras.layers.GlobalAveragePooling1D()(inner(inner(j)))
    model = keras.Model(j, keras.layers.Dense(3, name="embed")(pooled))
    with pytest.raises(ValueError, match="write 'inner/output' for the"):
        keras_istar.attach(model, "output")
    assert keras_istar.attach(model, "embed").dim == 3
    keras_istar.detach(model)
    assert keras_istar.attach(model, "inner/output").dim == 5


def test_sequential_models(x, tmp_path):
    def make():
        return keras.Sequential(
            [
                keras.Input((6, 5)),
                keras.layers.Dense(4, "tanh", name="encoder"),
                keras.layers.GlobalAveragePooling1D(),
                keras.layers.Dense(1),
            ]
        )

    model, plain = make(), make()
    number, before = len(model.weights), model.predict(x, verbose=0)
    config = model.get_config()
    states = keras.ops.convert_to_numpy(model.get_layer("encoder")(x))
    layer = keras_istar.attach(model, "encoder", strength=1.0)
    assert layer in keras_istar_layers(model)
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    assert model.get_config() == config
    expected = oracle.penalty(states.reshape(-1, 4), 1.0)
    assert _logged(model, x)["istar_penalty"] == pytest.approx(
        expected, abs=1e-5
    )
    callback = keras_istar.IStarCallback(x, verbose=0)
    history = model.fit(
        x, np.zeros((8, 1)), verbose=0, callbacks=[callback]
    ).history
    assert "isoscore_encoder" in history
    model.save_weights(tmp_path / "attached.weights.h5")
    plain.load_weights(tmp_path / "attached.weights.h5")
    np.testing.assert_array_equal(
        plain.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    again = keras_istar.attach(plain, "encoder", strength=-1.0)
    plain.load_weights(tmp_path / "attached.weights.h5")
    np.testing.assert_array_equal(
        again.shrinkage_covariance, layer.shrinkage_covariance
    )
    model.save(tmp_path / "model.keras")
    assert len(keras.models.load_model(tmp_path / "model.keras").weights) == 4
    keras_istar.detach(model)
    assert len(model.weights) == number
    assert "istar_penalty" not in _logged(model, x)


def keras_istar_layers(model):
    kind = keras_istar.IStarRegularization
    return [x for x in all_layers(model) if isinstance(x, kind)]


def test_sequential_model_in_a_functional_one(x):
    inner = keras.Sequential(
        [keras.layers.Dense(4, name="encoder"), keras.layers.Dense(3)],
        name="tower",
    )
    i = keras.Input((6, 5))
    pooled = keras.layers.GlobalAveragePooling1D()(inner(i))
    model = keras.Model(i, keras.layers.Dense(1)(pooled))
    states = keras.ops.convert_to_numpy(inner.get_layer("encoder")(x))
    for layers in ("encoder", "tower/encoder"):
        layer = keras_istar.attach(model, layers, strength=1.0)
        assert layer.owner_name == "tower"
        assert _logged(model, x)["istar_penalty"] == pytest.approx(
            oracle.penalty(states.reshape(-1, 4), 1.0), abs=1e-5
        )
        keras_istar.detach(model)


def test_sequential_model_that_is_not_built():
    with pytest.raises(ValueError, match="must be built"):
        keras_istar.attach(keras.Sequential([keras.layers.Dense(4)]))
