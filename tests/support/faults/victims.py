"""What `kill.py` kills: training, saving and downloading.

A victim is a function of a folder to work in and of a function `say`, which it
calls with the name of whatever it is about to do. It looks at what earlier runs
have left in the folder, and writes its result there as `result.npz`.
"""

import functools
import hashlib
import os
import sys
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from finetuning import downloads
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

import keras_istar
from keras_istar import AtomicBackup
from keras_istar._src.measure.streaming_pass import StatesPass

EPOCHS, EXAMPLES, BATCH = 5, 32, 4
STEPS = EXAMPLES // BATCH


class Scenario(NamedTuple):
    name: str
    victim: Callable


def scenarios():
    return [
        Scenario("training", train),
        Scenario("saving", save),
        Scenario("downloading", download),
    ]


def saying(say, word, function):
    """`function`, which says `word` first."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        say(word)
        return function(*args, **kwargs)

    return wrapped


def write_result(folder, **arrays):
    part = folder / "part.npz"
    np.savez(part, **arrays)
    part.replace(folder / "result.npz")


def make_model(width=4):
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    inputs = keras.Input((3, 5))
    states = keras.layers.Dense(width, activation="tanh", name="encoder")
    model = keras.Model(inputs, keras.layers.Dense(1)(states(inputs)))
    layer = keras_istar.attach(model, "encoder", shrinkage=0.5, strength=-1.0)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model, layer


def train(folder, say):
    model, layer = make_model()
    x = np.random.default_rng(0).normal(size=(EXAMPLES, 3, 5))
    StatesPass.run = saying(say, "pass", StatesPass.run)
    model.save_weights = saying(say, "backup", model.save_weights)
    model.fit(
        x,
        x[..., :1] ** 2,
        BATCH,
        EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[
            keras_istar.IStarCallback(
                x, update_freq=3, verbose=0, log_dir=folder / "logs"
            ),
            AtomicBackup(folder / "backup", delete_checkpoint=False),
            keras.callbacks.LambdaCallback(
                on_train_batch_begin=lambda batch, logs: say("step")
            ),
        ],
    )
    weights = {f"weight_{i}": w for i, w in enumerate(model.get_weights())}
    scores = logged(folder / "logs")
    assert int(model.optimizer.iterations) == EPOCHS * STEPS
    assert float(layer.has_shrinkage_covariance.value) == 1
    assert sorted(scores) == list(range(EPOCHS)), scores
    scores = [scores[step] for step in range(EPOCHS)]
    write_result(folder, scores=scores, **weights)


def logged(folder):
    """Step -> value that TensorBoard shows.

    A run that is killed between log and backup logs the epoch twice.
    """
    events = event_accumulator.EventAccumulator(str(folder), {"tensors": 0})
    scores = {}
    for event in events.Reload().Tensors("isotropy/isoscore_union"):
        value = tensor_util.make_ndarray(event.tensor_proto).item()
        assert scores.setdefault(event.step, value) == value
    return scores


def save(folder, say):
    model, layer = make_model(width=256)
    layer.set_shrinkage_covariance(np.diag(np.arange(256.0)))
    x = np.random.default_rng(0).normal(size=(EXAMPLES, 3, 5))
    report = keras_istar.measure(model, x, "encoder", verbose=0)
    weights = values(model.trainable_weights)
    expected = {
        "model.keras": weights,
        "model.weights.h5": weights + values(estimates(layer)),
    }
    files = {
        "model.keras": (model.save, load_model),
        "model.weights.h5": (model.save_weights, load_weights),
        "report.json": (report.save, keras_istar.IsotropyReport.load),
    }

    def is_whole(name):
        try:
            loaded = files[name][1](folder / name)
        except Exception:
            # Only reports appear whole or not at all.
            assert name != "report.json"
            return False
        if name == "report.json":
            assert str(loaded) == str(report)
            return True
        for a, b in zip(loaded, expected[name], strict=True):
            np.testing.assert_array_equal(a, b)
        return True

    for name in files:
        if (folder / name).exists():
            is_whole(name)
    for _ in range(4):
        for name, (write, _) in files.items():
            say(name)
            write(folder / name)
    assert all(is_whole(name) for name in files)
    write_result(folder, text=str(report))


def load_model(path):
    """The weights of the plain model that the file holds."""
    return values(keras.models.load_model(path).trainable_weights)


def load_weights(path):
    """The weights and Σ_S of an attached model that reads the file."""
    model, layer = make_model(width=256)
    variables = [*model.trainable_weights, *estimates(layer)]
    for variable in variables:
        variable.assign(variable + 1.0)
    model.load_weights(path)
    return values(variables)


def estimates(layer):
    """What files hold of a layer that is attached."""
    return [layer.shrinkage_covariance, layer.has_shrinkage_covariance]


def values(variables):
    return [variable.numpy() for variable in variables]


def download(folder, say):
    package, archive = make_package(folder)
    os.environ["KERAS_ISTAR_CACHE"] = str(folder / "cache")
    for name in ("_download", "_unpack"):
        function = saying(say, name, getattr(downloads, name))
        setattr(downloads, name, function)
    os.replace = saying(say, "replace", os.replace)
    check_cache(package)
    code = f"import shutil, sys; shutil.copy({str(archive)!r}, sys.argv[-1])"
    done = downloads.fetch(package, pip=(sys.executable, "-c", code))
    assert len(check_cache(package)) == len(package.members)
    hashes = [sha256((done / m.name).read_bytes()) for m in package.members]
    write_result(folder, hashes=hashes)


def make_package(folder):
    contents = [np.random.default_rng(i).bytes(2**22) for i in range(3)]
    archive = folder / "toy-1.0.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for i, content in enumerate(contents):
            # The same archive every time.
            file.writestr(zipfile.ZipInfo(f"toy/{i}.bin"), content)
    members = tuple(
        downloads.Member((f"toy/{i}.bin",), sha256(content))
        for i, content in enumerate(contents)
    )
    digest = sha256(archive.read_bytes())
    return downloads.Package("toy==1.0", digest, members), archive


def check_cache(package):
    """The files in the cache, none of which may be damaged."""
    folder = downloads.cache_folder() / "toy-1.0"
    present = [m for m in package.members if (folder / m.name).exists()]
    for member in present:
        assert sha256((folder / member.name).read_bytes()) == member.sha256
    return present


def sha256(content):
    return hashlib.sha256(content).hexdigest()
