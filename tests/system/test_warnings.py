"""Python takes every warning for an error here."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What Keras and its backends warn of by themselves is said before.
PRELUDE = """
import sys
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
"""

# From then on, a warning of any kind is an error.
START = """
warnings.simplefilter("error")
# Keras causes this one whenever it saves a variable.
warnings.filterwarnings("ignore", "__array__ implementation")
print("-- start --", file=sys.stderr)
import importlib
import pkgutil
import keras_istar

for module in pkgutil.walk_packages(keras_istar.__path__, "keras_istar."):
    importlib.import_module(module.name)
"""

HUB_TASK = """
import keras_hub

def make_task():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    return keras_hub.models.BertTextClassifier(
        keras_hub.models.BertBackbone(
            len(words), num_layers=2, num_heads=2, hidden_dim=8,
            intermediate_dim=16, max_sequence_length=8,
        ),
        num_classes=2,
        preprocessor=keras_hub.models.BertTextClassifierPreprocessor(
            keras_hub.tokenizers.BertTokenizer(words), sequence_length=8
        ),
    )

texts, labels = np.array(["good", "bad bad"] * 8), np.array([1, 0] * 8)
make_task().fit(texts, labels, 4, verbose=0, shuffle=False)
"""

# Few in one process: TensorFlow takes the fifth training for a mistake.
SCRIPTS = {
    "fit": """
        model = make_model()
        keras_istar.attach(model, "encoder", max_tokens=50, strength=-1.0)
        fit(model, [keras_istar.IStarCallback(x, max_tokens=100)])
        fit(model)
        keras_istar.detach(model)
        fit(model)
    """,
    "logs and files": """
        model = make_model()
        keras_istar.attach(model, "encoder", strength=-1.0)
        fit(model, [keras_istar.IStarCallback(x, log_dir=folder)])
        model = make_model()
        keras_istar.attach(model, "encoder", momentum=0.9, strength=-1.0)
        cosine = keras_istar.CosineRegularization()
        keras_istar.attach_regularizer(model, cosine, "encoder")
        fit(model)
        model.save(folder + "/model.keras")
        keras.models.load_model(folder + "/model.keras")
    """,
    "KerasHub task": """
        task = make_task()
        keras_istar.attach(task, strength=-1.0)
        callback = keras_istar.IStarCallback(texts, log_dir=folder)
        task.fit(
            texts, labels, 4, verbose=0, shuffle=False, callbacks=[callback]
        )
        keras_istar.measure(task, texts, measures="isoscore")
        keras_istar.detach(task)
        keras_istar.attach_regularizer(
            task, keras_istar.IsotropicBatchNormalization()
        )
        keras_istar.attach(task)
        keras_istar.detach(task)
        keras_istar.attach(task.backbone)
    """,
    "passes, numbers and explicit layers": """
        model = make_model()
        for _ in range(6):
            keras_istar.measure(model, x, "encoder", measures="isoscore")
        fit(model, [keras_istar.IsotropyMonitor(x, "encoder", verbose=0)])
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
        inputs = keras.Input((6, 4))
        hidden = keras_istar.IStarRegularization(target=0.5)(
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
}


@pytest.mark.processes
@pytest.mark.parametrize("name", SCRIPTS)
def test_no_warning_is_caused(name, tmp_path):
    setup = ""
    if name == "KerasHub task":
        pytest.importorskip("keras_hub")
        setup = HUB_TASK
    folder = f"folder = {str(tmp_path)!r}\n"
    script = PRELUDE + setup + START + folder + textwrap.dedent(SCRIPTS[name])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    _, ours = done.stderr.split("-- start --")
    # Of Python's `logging` and of Abseil, whose lines begin with a letter.
    assert not re.search(r"WARNING|^[WE]\d{4}", ours, re.MULTILINE), ours


@pytest.mark.filterwarnings("error")
def test_source_compiles_without_a_warning():
    sources = list((ROOT / "keras_istar").rglob("*.py"))
    assert len(sources) > 25
    for path in sources:
        compile(path.read_text(encoding="utf-8"), path, "exec")
