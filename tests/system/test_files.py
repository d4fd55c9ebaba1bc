"""Files of models that the package has changed, or whose layers it has."""

import io
import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import zipfile

import h5py
import keras
import numpy as np
import pytest

import keras_istar

ROOT = pathlib.Path(keras_istar.__file__).parents[1]


@pytest.fixture
def x(rng, tmp_path):
    """Input, which other processes find in `x.npy`."""
    x = rng.normal(size=(16, 6, 5)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    return x


def _attached_model():
    inputs = keras.Input((6, 5))
    states = keras.layers.Dense(4, name="encoder")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(states))
    keras_istar.attach(model, "encoder", momentum=0.5, strength=-1.0)
    return model


def _explicit_model():
    """A model that calls every layer of the package."""
    inputs = keras.Input((6, 5))
    states = keras.layers.Dense(4)(inputs)
    states = keras_istar.IStarRegularization(-1.0, momentum=0.5)(states)
    states = keras_istar.CosineRegularization(1.0)(states)
    pooled = keras.layers.GlobalAveragePooling1D()(states)
    pooled = keras_istar.IsotropicBatchNormalization()(pooled)
    return keras.Model(inputs, keras.layers.Dense(1)(pooled))


def _train(model, x, folder):
    """One epoch; then `y.npy` in the folder holds the outputs for `x`."""
    model.compile("sgd", "mse")
    model.fit(x, np.zeros_like(model.predict(x, verbose=0)), verbose=0)
    np.save(folder / "y.npy", model.predict(x, verbose=0))
    return model


def test_weight_files_of_attached_models_are_plain(
    x, tmp_path, run_without_package
):
    model = _train(_attached_model(), x, tmp_path)
    model.save_weights(tmp_path / "model.weights.h5")
    run_without_package(
        """
        inputs = keras.Input((6, 5))
        states = keras.layers.Dense(4, name="encoder")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(1)(states))
        model.load_weights("model.weights.h5")
        y = model.predict(np.load("x.npy"), verbose=0)
        np.testing.assert_allclose(y, np.load("y.npy"), atol=1e-6)
        """
    )


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="exports on other backends"
)
def test_exports_of_attached_models_are_plain(x, tmp_path, run_without_package):
    pytest.importorskip("tensorflow")
    model = _train(_attached_model(), x, tmp_path)
    model.export(tmp_path / "served", verbose=False)
    run_without_package(
        """
        import tensorflow as tf
        served = tf.saved_model.load("served")
        y = served.serve(np.load("x.npy"))
        np.testing.assert_allclose(y, np.load("y.npy"), atol=1e-6)
        """
    )


def test_layers_load_in_safe_mode_once_the_package_is_imported(x, tmp_path):
    model = _train(_explicit_model(), x, tmp_path)
    model.save(tmp_path / "model.keras")
    code = """
        import keras, keras_istar
        import numpy as np
        model = keras.models.load_model("model.keras", safe_mode=True)
        y = model.predict(np.load("x.npy"), verbose=0)
        np.testing.assert_allclose(y, np.load("y.npy"), atol=1e-6)
        modules = [type(layer).__module__ for layer in model.layers]
        assert sum("keras_istar" in module for module in modules) == 3
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("make", [_attached_model, _explicit_model])
def test_keras_files_hold_no_pickle(make, x, tmp_path):
    _train(make(), x, tmp_path).save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        contents = {name: file.read(name) for name in file.namelist()}
    assert set(contents) == {"config.json", "metadata.json", "model.weights.h5"}
    for name in ("config.json", "metadata.json"):
        assert json.loads(contents[name])
        assert b"__lambda__" not in contents[name]
    with h5py.File(io.BytesIO(contents["model.weights.h5"])) as weights:
        weights.visititems(_check_numeric)


def _check_numeric(name, item):
    if isinstance(item, h5py.Dataset):
        assert item.dtype.kind in "fiub", name


def test_source_unpickles_nothing():
    dangerous = re.compile(
        r"pickle|dill|joblib|marshal|shelve|safe_mode=False"
        r"|enable_unsafe_deserialization|\beval\(|\bexec\("
    )
    sources = [
        *ROOT.glob("keras_istar/**/*.py"),
        *ROOT.glob("examples/**/*.py"),
    ]
    found = {
        path.name: dangerous.findall(path.read_text(encoding="utf-8"))
        for path in sources
    }
    assert len(found) > 40
    assert not any(found.values()), found
