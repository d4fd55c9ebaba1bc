"""Devices, seeds, tiny models, and what every layer owes Keras."""

import gc
import os
import subprocess
import sys
import textwrap

import hypothesis
import keras
import numpy as np
import pytest
from vocabulary import VOCABULARY

BACKEND = keras.backend.backend()


# The same examples every time, but with `--hypothesis-profile random`; few of
# them with `--hypothesis-profile quick`.
hypothesis.settings.register_profile(
    "random",
    deadline=None,
    derandomize=False,
    max_examples=1000,  # Tests that take fewer say so.
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.register_profile(
    "fixed", hypothesis.settings.get_profile("random"), derandomize=True
)
hypothesis.settings.register_profile(
    "quick", hypothesis.settings.get_profile("fixed"), max_examples=15
)
hypothesis.settings.load_profile("fixed")


def _split_cpu():
    """Four devices out of one, before anything initialises them."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 4,
        )
    elif BACKEND == "jax":
        import jax

        jax.config.update("jax_num_cpu_devices", 4)


_split_cpu()


@pytest.fixture(scope="session")
def cpu_devices():
    """Names of the logical CPUs of TensorFlow."""
    if BACKEND != "tensorflow":
        pytest.skip("logical devices of TensorFlow need its backend")
    import tensorflow as tf

    return [device.name for device in tf.config.list_logical_devices("CPU")]


@pytest.fixture(scope="module", autouse=True)
def _spare_garbage_collection():
    """Lets it pass over what earlier files have left.

    TensorFlow and Keras keep millions of small objects of their graphs, and
    each collection would look through all of them.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def floatx64():
    """Keras with float64 as the default float type."""
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


@pytest.fixture
def gradient():
    """Function `(function, x) -> d function(x) / dx` as a NumPy array."""
    return _gradient


def _gradient(function, x):
    x = keras.ops.convert_to_tensor(x)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return keras.ops.convert_to_numpy(tape.gradient(value, x))
    if BACKEND == "jax":
        import jax

        return np.asarray(jax.grad(function)(x))
    x = x.detach().requires_grad_(True)
    function(x).backward()
    return x.grad.cpu().numpy()


@pytest.fixture
def tiny_bert():
    """Function that makes a BERT backbone with random weights."""
    hub = pytest.importorskip("keras_hub")

    def make(dropout=0.0, **kwargs):
        config = dict(
            vocabulary_size=len(VOCABULARY),
            num_layers=2,
            num_heads=2,
            hidden_dim=8,
            intermediate_dim=16,
            max_sequence_length=12,
        )
        return hub.models.BertBackbone(dropout=dropout, **(config | kwargs))

    return make


@pytest.fixture
def tiny_classifier(tiny_bert):
    """Function that makes a compiled BERT classifier of raw strings."""
    hub = pytest.importorskip("keras_hub")

    def make(dropout=0.0, **kwargs):
        tokenizer = hub.tokenizers.BertTokenizer(VOCABULARY, lowercase=True)
        preprocessor = hub.models.BertTextClassifierPreprocessor(
            tokenizer, sequence_length=8
        )
        return hub.models.BertTextClassifier(
            tiny_bert(dropout, **kwargs),
            num_classes=2,
            preprocessor=preprocessor,
            dropout=dropout,
        )

    return make


@pytest.fixture(scope="session")
def preset(tmp_path_factory):
    """A KerasHub preset of a tiny encoder with random weights."""
    hub = pytest.importorskip("keras_hub")
    keras.utils.set_random_seed(1)
    tokenizer = hub.tokenizers.BertTokenizer(VOCABULARY, lowercase=True)
    backbone = hub.models.BertBackbone(
        vocabulary_size=len(VOCABULARY),
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=32,
    )
    folder = tmp_path_factory.mktemp("preset")
    backbone.save_to_preset(str(folder))
    tokenizer.save_to_preset(str(folder))
    return str(folder)


@pytest.fixture
def table_file(tmp_path, rng):
    """Sentences that hold either "good" or "bad", and which one."""
    words = [word for word in VOCABULARY[5:] if word not in ("good", "bad")]
    lines = []
    for i in range(160):
        label = ("bad", "good")[i % 2]
        text = [*rng.choice(words[:8], size=rng.integers(2, 9)), label]
        lines.append(f"{label}\t{' '.join(rng.permutation(text))}")
    path = tmp_path / "sentences.tsv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def sentences(rng):
    """Raw strings of differing lengths and their labels."""
    words = VOCABULARY[5:]
    texts = [
        " ".join(rng.choice(words, size=rng.integers(2, 6))) for _ in range(16)
    ]
    return np.array(texts), np.array([i % 2 for i in range(16)])


@pytest.fixture
def make_report(rng):
    """Function that makes a report with 12 dimensions and such values."""
    from keras_istar import IsotropyReport

    def make(names=("layer_0", "layer_1", "union"), **values):
        return IsotropyReport(
            model="tiny",
            dim=12,
            rows=tuple(_report_row(rng, name, values) for name in names),
            shrinkage=0.2,
            shrinkage_target="a target",
            notes=("A note.",),
        )

    return make


def _report_row(rng, layer, values):
    from keras_istar import LayerIsotropy

    variances = rng.uniform(0.5, 1.5, size=12)
    variances[3] = 30.0
    return LayerIsotropy(
        layer=layer,
        tokens=1234,
        values={"isoscore": rng.uniform(), "mean_norm": rng.uniform()} | values,
        spectrum=np.sort(rng.uniform(0.1, 9, size=12))[::-1].tolist(),
        means=rng.normal(size=12).tolist(),
        variances=variances.tolist(),
        outlier_dimensions=[3],
    )


@pytest.fixture
def run_without_package(tmp_path):
    """Function that runs code in a process that cannot import the package."""

    def run(code):
        (tmp_path / "keras_istar.py").write_text("raise ImportError")
        script = "import keras, numpy as np\n" + textwrap.dedent(code)
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture
def check_layer(tmp_path):
    """The contract that Keras expects of an identity layer."""

    def check(cls, init, x, num_non_trainable):
        layer = cls(**init)
        _check_config(layer, cls, init)
        _check_calls(layer, x, num_non_trainable)
        _check_precision(cls, init, x)
        model = _check_training(cls(**init), x)
        _check_file(model, x, tmp_path / "model.keras")

    return check


def _check_config(layer, cls, init):
    config = layer.get_config()
    assert {key: config[key] for key in init} == init
    assert {key: getattr(layer, key) for key in init} == init
    assert cls.from_config(config).get_config() == config


def _check_calls(layer, x, num_non_trainable):
    symbolic = layer(keras.Input(x.shape[1:]))
    assert symbolic.shape == (None, *x.shape[1:])
    assert layer.compute_output_shape(x.shape) == x.shape
    np.testing.assert_array_equal(layer(x), x)
    assert len(layer.trainable_weights) == 0
    assert len(layer.non_trainable_weights) == num_non_trainable


def _check_precision(cls, init, x):
    for dtype in ("float16", "bfloat16"):
        layer = cls(**(init | {"dtype": f"mixed_{dtype}"}))
        narrow = keras.ops.cast(x, dtype)
        output = layer(narrow, training=True)
        assert keras.backend.standardize_dtype(output.dtype) == dtype
        assert {x.dtype for x in layer.variables} <= {"float32", "uint32"}
        assert bool(keras.ops.all(keras.ops.isfinite(layer.losses[0])))


def _check_training(layer, x):
    inputs = keras.Input(x.shape[1:])
    outputs = keras.layers.Dense(2)(layer(keras.layers.Dense(3)(inputs)))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    before = [w.numpy() for w in model.trainable_weights]
    model.fit(x, np.zeros((*x.shape[:-1], 2)), verbose=0)
    after = [w.numpy() for w in model.trainable_weights]
    assert any(np.any(a != b) for a, b in zip(after, before, strict=True))
    return model


def _check_file(model, x, path):
    model.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    for a, b in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
