"""Backups in the middle of which a run is killed."""

import itertools
import json
import os
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_istar import AtomicBackup

EPOCHS = 2

_save_weights = keras.Model.save_weights


class Killed(BaseException):
    pass


@pytest.fixture
def train(rng):
    """Function that trains with a callback and returns the weights."""
    x, y = rng.normal(size=(16, 3)), rng.normal(size=(16, 1))

    def run(callback):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        # Much faster than to compile it for every one of many runs.
        model.compile(keras.optimizers.Adam(0.1), "mse", run_eagerly=True)
        model.fit(
            x, y, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=[callback]
        )
        assert int(model.optimizer.iterations) == EPOCHS
        return model.get_weights()

    return run


def _half_saved(model, filepath, **kwargs):
    _save_weights(model, filepath, **kwargs)
    os.truncate(filepath, os.path.getsize(filepath) // 2)


def _half_removed(folder, **kwargs):
    for weights in Path(folder).glob("*.h5"):
        weights.unlink()


def _nothing(*args, **kwargs):
    pass


def _kill_at_call(monkeypatch, number):
    """Ends the process, so to speak, within a change that a backup makes."""
    calls = itertools.count(1)

    def patch(place, name, begin):
        function = getattr(place, name)

        def call(*args, **kwargs):
            if next(calls) == number:
                begin(*args, **kwargs)
                raise Killed
            return function(*args, **kwargs)

        monkeypatch.setattr(place, name, call)

    patch(keras.Model, "save_weights", _half_saved)
    patch(json, "dumps", _nothing)  # What it is to go to is open and empty.
    patch(os, "rename", _nothing)
    patch(shutil, "rmtree", _half_removed)


def test_runs_that_are_killed_within_a_backup_go_on(
    train, tmp_path, monkeypatch
):
    expected = train(keras.callbacks.Callback())
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        with monkeypatch.context() as patches:
            _kill_at_call(patches, number)
            try:
                train(AtomicBackup(folder))
                break
            except Killed:
                pass
        for a, b in zip(train(AtomicBackup(folder)), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert number > 4 * EPOCHS


def test_backup_of_a_training_that_has_ended(train, tmp_path):
    (tmp_path / "notes.txt").touch()
    train(AtomicBackup(tmp_path, delete_checkpoint=False))
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"notes.txt", f"epoch_{EPOCHS}"}
    train(AtomicBackup(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_tenth_epoch_is_newer_than_the_ninth(tmp_path, rng):
    """If a kill left both, training goes on from the tenth."""
    x, y = rng.normal(size=(16, 3)), rng.normal(size=(16, 1))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    backup = AtomicBackup(tmp_path, delete_checkpoint=False)
    model.fit(x, y, epochs=9, verbose=0, callbacks=[backup])
    shutil.copytree(tmp_path / "epoch_9", tmp_path / "kept")
    model.fit(x, y, epochs=10, verbose=0, callbacks=[backup])
    os.rename(tmp_path / "kept", tmp_path / "epoch_9")
    assert model.fit(x, y, epochs=11, verbose=0, callbacks=[backup]).epoch == [
        10
    ]


def test_folder_that_is_no_path():
    with pytest.raises(ValueError, match="`folder` must be a path"):
        AtomicBackup(None)
