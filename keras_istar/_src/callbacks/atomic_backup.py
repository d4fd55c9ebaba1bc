"""Backups of a training that survive a kill at any moment.

Keras writes a backup over the last one, the weights first and then the epoch. A
run that is killed meanwhile does not start again, or repeats an epoch on newer
weights, even with `double_checkpoint`
(https://github.com/keras-team/keras/issues/20463). Remove when Keras writes a
backup beside the last one and then renames it.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import keras

from keras_istar._src import validation

Logs = dict[str, Any] | None


class AtomicBackup(keras.callbacks.BackupAndRestore):
    """Saves and restores a training like `BackupAndRestore`, but atomically.

    A backup that is interrupted does not damage the one before it. Every
    backup is a folder of its own, which gets its final name once all of it is
    written; the one before it is then deleted.

    Args:
        folder: Where to keep backups, on a file system of this machine and
            for this training alone. It is made when the first epoch ends.
        delete_checkpoint: Whether to delete the backup when training ends.

    Example:

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x, y = np.random.rand(32, 4), np.random.rand(32, 1)
    >>> def train(epochs):
    ...     backup = keras_istar.AtomicBackup(folder, delete_checkpoint=False)
    ...     return model.fit(x, y, epochs=epochs, verbose=0, callbacks=[backup])
    >>> train(epochs=2).epoch
    [0, 1]
    >>> train(epochs=3).epoch  # Goes on where the backup ends.
    [2]
    """

    def __init__(
        self, folder: str | os.PathLike, delete_checkpoint: bool = True
    ):
        self.folder = Path(validation.check_path("folder", folder))
        # Keras writes here. What is here is never taken for a whole backup.
        super().__init__(
            str(self.folder / "unfinished"), delete_checkpoint=delete_checkpoint
        )

    def on_train_begin(self, logs: Logs = None) -> None:
        shutil.rmtree(self.backup_dir, ignore_errors=True)
        whole = self._whole()
        if whole:
            shutil.copytree(whole[-1], self.backup_dir)
        super().on_train_begin(logs)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        older = self._whole()
        super().on_epoch_end(epoch, logs)
        os.rename(self.backup_dir, self.folder / f"epoch_{epoch + 1}")
        self._delete(older)

    def on_train_end(self, logs: Logs = None) -> None:
        super().on_train_end(logs)
        if self.delete_checkpoint:
            self._delete(self._whole())

    def _whole(self):
        """Folders of whole backups, the newest one last."""
        return sorted(self.folder.glob("epoch_*"), key=_epochs)

    def _delete(self, backups):
        for backup in backups:
            # Renamed first, so that a half-deleted one is not taken for whole.
            os.rename(backup, self.backup_dir)
            shutil.rmtree(self.backup_dir)


def _epochs(backup):
    return int(backup.name.removeprefix("epoch_"))
