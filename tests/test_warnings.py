"""Python takes every warning for an error here."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What Keras and its backends warn of by themselves is said before; from then
# on, a warning of any kind is an error.
PRELUDE = """
import warnings
import keras
import numpy as np

def make_model():
    inputs = keras.Input((6, 4))
    hidden = keras.layers.Dense(5, name="encoder")(inputs)
    return keras.Model(inputs, keras.layers.Dense(1)(hidden))

def fit(model, callbacks=()):
    model.compile("adam", "mse", metrics=["mae"])
    x = np.random.default_rng(0).normal(size=(32, 6, 4)).astype("float32")
    y = x[..., :1]
    return model.fit(
        x, y, 8, epochs=2, verbose=0, validation_data=(x, y),
        callbacks=list(callbacks),
    )

x = np.random.default_rng(0).normal(size=(32, 6, 4)).astype("float32")
fit(make_model())
warnings.simplefilter("error")
# Keras causes this one whenever it saves a variable.
warnings.filterwarnings("ignore", "__array__ implementation")
import keras_istar
"""

SCRIPTS = {
    "fit": """
        model = make_model()
        keras_istar.attach(model, "encoder", max_tokens=50)
        fit(model, [keras_istar.IStarCallback(x, max_points=100)])
        fit(model)
        keras_istar.detach(model)
        fit(model)
    """,
    "momentum and save": """
        model = make_model()
        keras_istar.attach(model, "encoder", momentum=0.9)
        cosine = keras_istar.CosineRegularization()
        keras_istar.attach_regularizer(model, cosine, "encoder")
        fit(model)
        model.save(folder + "/model.keras")
        keras.models.load_model(folder + "/model.keras")
    """,
    "explicit layers": """
        inputs = keras.Input((6, 4))
        hidden = keras_istar.IStarRegularization()(
            keras.layers.Dense(5)(inputs)
        )
        pooled = keras.layers.GlobalAveragePooling1D()(hidden)
        pooled = keras_istar.IsotropicBatchNormalization()(pooled)
        model = keras.Model(inputs, keras.layers.Dense(3)(pooled))
        model.compile("adam", "mse", metrics=[keras_istar.IsoScore()])
        model.fit(x, x[:, 0, :3], verbose=0)
        model.save(folder + "/model.keras")
        keras.models.load_model(folder + "/model.keras")
    """,
    "numbers and report": """
        points = x.reshape(-1, 4)
        keras_istar.isoscore(points)
        keras_istar.isoscore_star(points, np.eye(4))
        report = keras_istar.measure(make_model(), x, "encoder")
        report.save(folder + "/report.json")
        keras_istar.IsotropyReport.load(folder + "/report.json")
        print(report)
        metric = keras_istar.IsoScore()
        metric.update_state(None, points)
        metric.result()
    """,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_warning_is_caused(name, tmp_path):
    script = f"{PRELUDE}folder = {str(tmp_path)!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", script + textwrap.dedent(SCRIPTS[name])],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_modules_of_the_package_import_under_w_error():
    # Our source is compiled anew, for a warning of the compiler.
    code = (
        "import warnings, keras, tensorflow; warnings.simplefilter('error'); "
        "import pkgutil, importlib, keras_istar; "
        "[importlib.import_module('keras_istar.' + m.name) "
        "for m in pkgutil.iter_modules(keras_istar.__path__)]"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": "/nowhere"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
