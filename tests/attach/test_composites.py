"""Blocks that a composite layer calls, not the graph."""

import keras
import numpy as np
import oracle
import pytest
from composites import DIM
from composites import LENGTH
from composites import STACKS
from composites import Block
from composites import Composite
from composites import Experts
from composites import Listed
from composites import Nested
from composites import Scanned
from composites import Streams
from composites import TwoFeedForwards
from composites import explicit_model_of
from composites import model_of
from private_keras import remat_modes
from private_keras import snapshot

import keras_istar


@pytest.fixture
def x(rng):
    return rng.normal(size=(8, LENGTH, 5)).astype("float32")


def _states(model, composite, x):
    """States of the blocks, in NumPy."""
    states = composite.states(model.get_layer("embedding")(x))
    return [keras.ops.convert_to_numpy(state) for state in states]


def _output(model, x):
    return keras.ops.convert_to_numpy(model(x))


def _logged(model, x):
    """What one step of training logs, with weights as they are."""
    model.compile(keras.optimizers.SGD(0.0), "mse")
    y = np.zeros((len(x), LENGTH, 1))
    history = model.fit(x, y, batch_size=len(x), verbose=0).history
    return {key: values[0] for key, values in history.items()}


def _penalty(states):
    return oracle.penalty(np.concatenate(states).reshape(-1, DIM), 1.0)


@pytest.fixture(params=STACKS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_every_block_is_taken(kind, x):
    composite = kind()
    model = model_of(composite)
    states = _states(model, composite, x)
    before = _output(model, x)
    layer = keras_istar.attach(model, strength=1.0)
    assert layer.state_names == tuple(f"layer_{i}" for i in range(len(states)))
    np.testing.assert_array_equal(_output(model, x), before)
    logs = _logged(model, x)
    assert logs["istar_penalty"] == pytest.approx(_penalty(states), abs=1e-5)
    report = keras_istar.measure(model, x, measures=["mean_norm"], verbose=0)
    for row, state in zip(report.rows, states, strict=False):
        assert row.values["mean_norm"] == pytest.approx(
            np.mean(np.linalg.norm(state, axis=-1)), rel=1e-5
        )
    keras_istar.detach(model)
    np.testing.assert_array_equal(_output(model, x), before)


@pytest.mark.parametrize("kind", [TwoFeedForwards, Experts])
def test_parts_of_a_block_are_not_blocks(kind, x):
    composite = kind(name="block")
    model = model_of(composite)
    hidden = composite(model.get_layer("embedding")(x))
    layer = keras_istar.attach(model, strength=1.0)
    assert layer.state_names == ("layer_0",)
    assert layer.attachment.shapes == ((None, LENGTH, DIM),)
    states = [keras.ops.convert_to_numpy(hidden)]
    assert _logged(model, x)["istar_penalty"] == pytest.approx(
        _penalty(states), abs=1e-5
    )


@pytest.mark.parametrize(
    "layers, names, chosen",
    [
        (-1, ["layer_2"], [2]),
        ([0, 2], ["layer_0", "layer_2"], [0, 2]),
        ("part_1", ["part_1"], [1]),
        ([1, "part_1"], ["part_1"], [1]),
        (["part_2", 0], ["part_2", "layer_0"], [2, 0]),
        ("encoder/all", ["layer_0", "layer_1", "layer_2"], [0, 1, 2]),
        ("encoder/-1", ["layer_2"], [2]),
        ("encoder/part_0", ["encoder/part_0"], [0]),
        (
            ["encoder/0", "encoder/part_1"],
            ["layer_0", "encoder/part_1"],
            [0, 1],
        ),
    ],
)
def test_chosen_blocks(x, layers, names, chosen):
    composite = Listed(name="encoder")
    model = model_of(composite)
    states = _states(model, composite, x)
    layer = keras_istar.attach(model, layers, strength=1.0)
    assert list(layer.state_names) == names
    assert _logged(model, x)["istar_penalty"] == pytest.approx(
        _penalty([states[i] for i in chosen]), abs=1e-5
    )


def test_the_composite_layer_itself_has_a_name(x):
    composite = Listed(name="encoder")
    model = model_of(composite)
    layer = keras_istar.attach(model, ["encoder", 2], strength=-1.0)
    assert layer.state_names == ("encoder", "layer_2")


def test_one_name_in_two_composite_layers(x):
    model = model_of(Nested(name="encoder"))
    with pytest.raises(ValueError) as error:
        keras_istar.attach(model, "part_1", strength=-1.0)
    assert "'encoder/stage_0/part_1', 'encoder/stage_1/part_1'" in str(
        error.value
    )
    layer = keras_istar.attach(
        model, ["stage_0/part_1", "encoder/stage_1/part_1"]
    )
    assert layer.state_names == ("stage_0/part_1", "encoder/stage_1/part_1")


@keras.saving.register_keras_serializable("tests")
class Widening(Composite):
    """Two stages of two blocks, the second of twice the width."""

    def make_parts(self):
        self.narrow = [Block(name=f"narrow_{i}") for i in range(2)]
        self.widen = keras.layers.Dense(2 * DIM)
        self.wide = [Block(2 * DIM, name=f"wide_{i}") for i in range(2)]

    def build(self, input_shape):
        for part in (*self.narrow, self.widen, self.norm):
            part.build(input_shape)
        for part in self.wide:
            part.build((*input_shape[:-1], 2 * DIM))

    def call(self, x):
        for block in self.narrow:
            x = block(x)
        x = self.widen(x)
        for block in self.wide:
            x = block(x)
        return x


def test_blocks_of_several_widths():
    model = model_of(Widening())
    with pytest.raises(ValueError) as error:
        keras_istar.attach(model, strength=-1.0)
    assert "choose those of one by layers=[0, 1] or layers=[2, 3]" in str(
        error.value
    )
    layer = keras_istar.attach(model, [2, 3], strength=-1.0)
    assert layer.attachment.shapes == ((None, LENGTH, 8),) * 2


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.filterwarnings("ignore:The layers .* were called on tensors")
def test_trains_as_the_explicit_model_does(x, steps):
    composite = Listed()
    model = model_of(composite)
    explicit = explicit_model_of(model, Listed)
    start, results = model.get_weights(), []
    y = np.zeros((len(x), LENGTH, 1))
    for trained in (model, explicit):
        model.set_weights(start)
        keras_istar.attach(trained, strength=3.0)
        trained.compile(
            keras.optimizers.SGD(0.1), "mse", steps_per_execution=steps
        )
        history = trained.fit(
            x, y, batch_size=4, epochs=2, shuffle=False, verbose=0
        ).history
        keras_istar.detach(trained)
        results.append((model.get_weights(), history))
    for a, b in zip(*[weights for weights, _ in results], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert any(
        np.any(a != b) for a, b in zip(results[0][0], start, strict=True)
    )
    for key, values in results[1][1].items():
        np.testing.assert_allclose(results[0][1][key], values, atol=1e-6)


@pytest.mark.parametrize("whole", [False, True])
def test_recomputed_blocks(x, whole):
    """Recomputed in the backward pass or not, the training is the same."""
    names = [f"part_{i}" for i in range(3)] + ["encoder"] * whole
    with keras.RematScope(mode="list_of_layers", layer_names=names):
        model = model_of(Listed(name="encoder"))
    plain = model_of(Listed(name="encoder"))
    plain.set_weights(model.get_weights())
    encoder = model.get_layer("encoder")
    modes = remat_modes(model)
    y = np.zeros((len(x), LENGTH, 1))
    histories = []
    for trained in (model, plain):
        keras_istar.attach(trained, strength=3.0)
        trained.compile(keras.optimizers.SGD(0.1), "mse")
        histories.append(
            trained.fit(x, y, shuffle=False, verbose=0, epochs=2).history
        )
    assert remat_modes(encoder)[0] is None
    assert None not in [remat_modes(block)[0] for block in encoder.blocks]
    for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(
        histories[0]["istar_penalty"], histories[1]["istar_penalty"], atol=1e-5
    )
    keras_istar.detach(model)
    assert remat_modes(model) == modes


def test_blocks_that_training_skips_are_said(x):
    """Nothing is left out of the cloud in silence."""

    class Skipping(Composite):
        def call(self, x, training=None):
            for block in self.blocks[: 2 if training else 3]:
                x = block(x)
            return self.norm(x)

    model = model_of(Skipping())
    before = model.predict(x, verbose=0)
    keras_istar.attach(model, strength=-1.0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    with pytest.raises(ValueError, match="'layer_2'"):
        _logged(model, x)


def test_blocks_that_run_only_if_they_know_the_length(x):
    inputs = keras.Input((None, 5))
    states = [keras.layers.Dense(DIM, name="embedding")(inputs)]
    blocks = [Scanned(name=f"block_{i}") for i in range(2)]
    for block in blocks:
        states.append(block(states[-1]))
    model = keras.Model(inputs, keras.layers.Dense(1)(states[-1]))
    first = blocks[0](model.get_layer("embedding")(x))
    expected = _penalty([first, blocks[1](first)])
    layer = keras_istar.attach(model, strength=1.0)
    assert layer.state_names == ("layer_0", "layer_1")
    logs = _logged(model, x)
    assert logs["istar_penalty"] == pytest.approx(expected, abs=1e-5)


def test_a_stack_of_something_else_is_no_block(x):
    model = model_of(Streams(name="streams"))
    before = snapshot(model)
    with pytest.raises(ValueError, match="'streams' holds a stack of layers"):
        keras_istar.attach(model)
    assert snapshot(model) == before
    layer = keras_istar.attach(model, "streams")
    assert layer.state_names == ("streams",)


def test_several_regularizers_and_measure_at_once(x):
    composite = Listed()
    model = model_of(composite)
    states = _states(model, composite, x)
    taps = {id(b): dict(vars(b)) for b in composite.blocks}
    keras_istar.attach(model, "part_0", strength=1.0)
    cosine = keras_istar.CosineRegularization(strength=1.0)
    keras_istar.attach_regularizer(model, cosine, [0, 1])
    report = keras_istar.measure(model, x, measures=["isoscore"], verbose=0)
    assert len(report.rows) == 4
    logs = _logged(model, x)
    assert logs["istar_penalty"] == pytest.approx(
        _penalty(states[:1]), abs=1e-5
    )
    points = np.concatenate(states[:2]).reshape(-1, DIM)
    unit = points / np.linalg.norm(points, axis=-1, keepdims=True)
    n = len(unit)
    mean = (np.sum(unit.sum(0) ** 2) - n) / (n * (n - 1))
    assert logs["cosine"] == pytest.approx(mean, abs=1e-5)
    keras_istar.detach(model)
    assert {id(b): dict(vars(b)) for b in composite.blocks} == taps
