"""Copies of an attached model are plain; quantized models are attached."""

import copy
import pickle

import keras
import numpy as np
import oracle
import pytest
from composites import LENGTH
from composites import Listed
from composites import model_of
from private_keras import is_locked

import keras_istar


@pytest.fixture
def x(rng):
    return rng.normal(size=(8, LENGTH, 5)).astype("float32")


def _through_file(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.models.load_model(tmp_path / "model.keras")


COPIES = {
    "clone_model": lambda model, _: keras.models.clone_model(model),
    "clone_model by function": lambda model, _: keras.models.clone_model(
        model,
        clone_function=lambda layer: layer.__class__.from_config(
            layer.get_config()
        ),
    ),
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
    "from_config": lambda model, _: model.__class__.from_config(
        model.get_config()
    ),
    "inputs and outputs": lambda model, _: keras.Model(
        model.inputs, model.outputs
    ),
    "file": _through_file,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_copies_are_plain_models(x, tmp_path, way):
    model = model_of(Listed(name="encoder"))
    weights = model.get_weights()
    outputs = keras.ops.convert_to_numpy(model(x))
    keras_istar.attach(model, strength=-1.0)
    made = COPIES[way](model, tmp_path)
    assert len(made.weights) == len(weights)
    made.set_weights(weights)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(made(x, training=True)), outputs
    )
    made.compile("sgd", "mse")
    y = np.zeros((len(x), LENGTH, 1))
    assert list(made.fit(x, y, verbose=0).history) == ["loss"]
    keras_istar.attach(made, strength=-1.0)
    assert "istar_penalty" in made.fit(x, y, verbose=0).history
    with pytest.raises(ValueError, match="already attached"):
        keras_istar.attach(model, strength=-1.0)


def test_going_on_from_a_file(x, tmp_path):
    """Load, attach, and load the same file once more, as documented."""
    model = model_of(Listed(name="encoder"))
    layer = keras_istar.attach(model, strength=-1.0)
    layer.set_shrinkage_covariance(np.diag([1.0, 2.0, 3.0, 4.0]))
    model.compile("adam", "mse")
    model.fit(x, np.zeros((len(x), LENGTH, 1)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = keras_istar.attach(loaded, strength=-1.0)
    loaded.load_weights(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        again.shrinkage_covariance, np.diag([1.0, 2.0, 3.0, 4.0])
    )
    assert float(again.has_shrinkage_covariance.value) == 1.0
    assert int(loaded.optimizer.iterations) == 1
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(loaded(x)),
        keras.ops.convert_to_numpy(model(x)),
    )


@pytest.mark.parametrize(
    "mode, lora",
    [
        ("int8", True),
        pytest.param("int8", False, marks=pytest.mark.slow),
        pytest.param("int4", True, marks=pytest.mark.slow),
        pytest.param("int4", False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_quantized_backbone(tiny_bert, rng, lora, mode):
    hub = pytest.importorskip("keras_hub")
    task = hub.models.BertTextClassifier(tiny_bert(), num_classes=2, dropout=0)
    x = {
        "token_ids": rng.integers(5, 15, size=(4, 6)),
        "padding_mask": np.tile([1, 1, 1, 1, 0, 0], (4, 1)),
        "segment_ids": np.zeros((4, 6)),
    }
    x = {name: value.astype("int32") for name, value in x.items()}
    task.backbone.quantize(mode)
    if lora:
        task.backbone.enable_lora(2)
    blocks = task.backbone.transformer_layers
    states = keras.Model(
        task.backbone.input, [block.output for block in blocks]
    ).predict(x, verbose=0)
    expected = oracle.penalty(
        oracle.unmasked(states, [x["padding_mask"]] * 2), 2.0
    )
    before, number = task.predict(x, verbose=0), len(task.weights)
    layer = keras_istar.attach(task, strength=2.0)
    np.testing.assert_array_equal(task.predict(x, verbose=0), before)
    task.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    logs = task.fit(x, np.zeros(4), batch_size=4, verbose=0).history
    assert logs["istar_penalty"][0] == pytest.approx(expected, abs=1e-5)
    report = keras_istar.measure(task, x, measures=["isoscore"], verbose=0)
    assert report.rows[-1].tokens == 2 * 16
    assert is_locked(task.backbone)
    keras_istar.detach(task)
    assert len(task.weights) == number and layer.built
    np.testing.assert_array_equal(task.predict(x, verbose=0), before)
    assert is_locked(task.backbone)


@pytest.mark.slow
def test_quantized_after_attaching(tiny_bert, rng):
    backbone = tiny_bert()
    keras_istar.attach(backbone, strength=-1.0)
    backbone.quantize("int8")
    ids = rng.integers(5, 15, size=(4, 6)).astype("int32")
    x = {"token_ids": ids, "padding_mask": ids, "segment_ids": 0 * ids}
    assert np.all(np.isfinite(backbone(x)["sequence_output"]))
    keras_istar.detach(backbone)
