"""Attaching to KerasHub models with random weights."""

import keras
import numpy as np
import oracle
import pytest

import keras_istar

hub = pytest.importorskip("keras_hub")
pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="KerasHub is tested elsewhere"
)

LAYERS = 3
CONFIG = dict(
    vocabulary_size=20,
    num_layers=LAYERS,
    num_heads=2,
    hidden_dim=8,
    intermediate_dim=16,
    dropout=0.0,
    max_sequence_length=10,
)
GEMMA = dict(
    vocabulary_size=20,
    num_layers=LAYERS,
    num_query_heads=2,
    num_key_value_heads=1,
    hidden_dim=8,
    intermediate_dim=16,
    head_dim=4,
)
FAMILIES = {
    "Bert": CONFIG,
    "DistilBert": CONFIG,
    "Roberta": CONFIG,
    "Albert": CONFIG | {"embedding_dim": 6},
    "DebertaV3": CONFIG | {"bucket_size": 4},
    "GPT2": CONFIG,
    "Gemma": GEMMA,
}


def _backbone(family):
    keras.utils.set_random_seed(1)
    return getattr(hub.models, f"{family}Backbone")(**FAMILIES[family])


def _data(model, rng, batch=4, length=6):
    """Random tokens; the second half of some sentences is padding."""
    mask = np.ones((batch, length), "int32")
    mask[1::2, length // 2 :] = 0
    x = {}
    for name in model.input:
        x[name] = np.zeros((batch, length), "int32")
        if name.endswith("token_ids"):
            x[name] = rng.integers(5, 17, size=(batch, length)) * mask
        if name.endswith("padding_mask"):
            x[name] = mask
    return x


def _outputs(model, x):
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(x))]


def _assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def _states(model, layers, x):
    """Outputs of the blocks as the model itself computes them."""
    outputs = [keras.tree.flatten(layer.output)[0] for layer in layers]
    probe = keras.Model(model.input, outputs)
    return [np.asarray(y) for y in probe(x)]


# The others are of the kinds of BERT and of GPT-2. The table of supported
# models has them all.
QUICK = ["Bert", "Albert", "Gemma"]


@pytest.fixture(
    params=[
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in FAMILIES
    ]
)
def family(request):
    return request.param


def test_outputs_stay_bit_identical(family, rng):
    backbone = _backbone(family)
    x = _data(backbone, rng)
    before, config = _outputs(backbone, x), backbone.get_config()
    layer = keras_istar.attach(backbone, strength=-1.0)
    assert layer.state_names == tuple(f"layer_{i}" for i in range(LAYERS))
    _assert_equal(_outputs(backbone, x), before)
    assert backbone.get_config() == config
    backbone(x, training=True)
    assert len(backbone.losses) == 1
    keras_istar.detach(backbone)
    _assert_equal(_outputs(backbone, x), before)
    backbone(x, training=True)
    assert backbone.losses == []


def test_penalty_is_that_of_the_blocks_without_padding(family, rng):
    if family == "Albert":
        pytest.skip("one block, called many times, has no one output")
    backbone = _backbone(family)
    x = _data(backbone, rng)
    states = _states(backbone, backbone.transformer_layers, x)
    assert len(states) == LAYERS
    keras_istar.attach(backbone, strength=2.0)
    backbone(x, training=True)
    cloud = oracle.unmasked(states, [x["padding_mask"]] * LAYERS)
    expected = oracle.penalty(cloud, 2.0)
    assert float(backbone.losses[0]) == pytest.approx(expected, abs=1e-5)
    everything = np.concatenate(states).reshape(-1, 8)
    assert abs(expected - oracle.penalty(everything, 2.0)) > 1e-4


@pytest.mark.parametrize("order", ["attach first", "LoRA first"])
def test_lora(family, rng, order, tmp_path):
    backbone, plain = _backbone(family), _backbone(family)
    x = _data(backbone, rng)
    before = _outputs(backbone, x)
    if order == "attach first":
        keras_istar.attach(backbone, strength=-1.0)
    backbone.enable_lora(2)
    if order == "LoRA first":
        keras_istar.attach(backbone, strength=-1.0)
    _assert_equal(_outputs(backbone, x), before)
    for weight in backbone.trainable_weights:
        if "lora" in weight.name:
            weight.assign(rng.normal(size=weight.shape))
    backbone.save_lora_weights(tmp_path / "attached.lora.h5")
    plain.enable_lora(2)
    plain.load_lora_weights(str(tmp_path / "attached.lora.h5"))
    attached = _outputs(backbone, x)
    assert np.any(attached[0] != before[0])
    _assert_equal(_outputs(plain, x), attached)
    plain.save_lora_weights(tmp_path / "plain.lora.h5")
    backbone.load_lora_weights(str(tmp_path / "plain.lora.h5"))
    _assert_equal(_outputs(backbone, x), attached)


@pytest.mark.parametrize("attached", [0, 1])
def test_weight_files_are_interchangeable(family, rng, tmp_path, attached):
    models = [_backbone(family), _backbone(family)]
    for weight in models[0].weights:
        weight.assign(rng.normal(size=weight.shape))
    keras_istar.attach(models[attached], strength=-1.0)
    models[0].save_weights(tmp_path / "model.weights.h5")
    models[1].load_weights(tmp_path / "model.weights.h5")
    x = _data(models[0], rng)
    _assert_equal(_outputs(models[1], x), _outputs(models[0], x))


@pytest.mark.parametrize("name", ["Bart", "T5"])
@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
def test_encoder_decoder_padding(rng, name):
    config = dict(CONFIG)
    if name == "T5":
        del config["max_sequence_length"]
    backbone = getattr(hub.models, f"{name}Backbone")(**config)
    x = _data(backbone, rng)
    mask = np.ones((4, 5), "int32")
    mask[0, 1:] = 0
    x["decoder_padding_mask"] = mask
    x["decoder_token_ids"] = rng.integers(5, 17, size=(4, 5)) * mask
    sides = (
        backbone.encoder_transformer_layers,
        backbone.decoder_transformer_layers,
    )
    states = _states(backbone, sides[0] + sides[1], x)
    masks = [x["encoder_padding_mask"]] * LAYERS + [mask] * LAYERS
    keras_istar.attach(backbone, strength=-1.0)
    backbone(x, training=True)
    assert float(backbone.losses[0]) == pytest.approx(
        oracle.penalty(oracle.unmasked(states, masks)), abs=1e-5
    )


def test_task_keeps_everything_and_fits_raw_strings(tiny_classifier, sentences):
    task = tiny_classifier()
    texts, labels = sentences
    kept = ("preprocessor", "backbone", "optimizer", "_compile_config")
    before = [getattr(task, name) for name in kept]
    outputs = task.predict(texts, verbose=0)
    config = task.get_config()
    layer = keras_istar.attach(task, strength=-1.0)
    assert type(task) is hub.models.BertTextClassifier
    assert [getattr(task, name) for name in kept] == before
    assert task.get_config() == config
    np.testing.assert_array_equal(task.predict(texts, verbose=0), outputs)
    history = task.fit(texts, labels, batch_size=8, verbose=0).history
    assert {"isoscore", "istar_penalty"} < set(history)
    assert history["istar_penalty"][0] == pytest.approx(
        history["isoscore"][0] - 1, abs=1e-6
    )
    assert layer.state_names == ("layer_0", "layer_1")


def test_task_fit_after_fit(tiny_classifier, sentences):
    task = tiny_classifier()
    task.fit(*sentences, verbose=0)
    keras_istar.attach(task, strength=-1.0)
    assert "isoscore" in task.fit(*sentences, verbose=0).history
    keras_istar.detach(task)
    assert "isoscore" not in task.fit(*sentences, verbose=0).history


def test_preset_loads_without_the_package(
    tiny_classifier, sentences, tmp_path, run_without_package
):
    task = tiny_classifier()
    keras_istar.attach(task, strength=-1.0)
    task.fit(*sentences, verbose=0)
    task.save_to_preset(tmp_path / "preset")
    np.save(tmp_path / "x.npy", sentences[0])
    np.save(tmp_path / "y.npy", task.predict(sentences[0], verbose=0))
    run_without_package(
        """
        import keras_hub
        task = keras_hub.models.TextClassifier.from_preset("./preset")
        y = task.predict(np.load("x.npy"), verbose=0)
        np.testing.assert_allclose(y, np.load("y.npy"), atol=1e-6)
        """
    )


def test_keras_nlp_models():
    nlp = pytest.importorskip("keras_nlp")
    backbone = nlp.models.BertBackbone(**CONFIG)
    layer = keras_istar.attach(backbone, layers=-1, strength=-1.0)
    assert layer.state_names == (f"layer_{LAYERS - 1}",)


def test_unknown_name_lists_those_of_the_backbone(tiny_classifier):
    task = tiny_classifier()
    with pytest.raises(ValueError, match="'transformer_layer_1'"):
        keras_istar.attach(task, "transformer_layer_9", strength=-1.0)
    assert not hasattr(task.backbone, "istar_regularization")
