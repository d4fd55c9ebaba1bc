"""Writes isotropy to event files for TensorBoard, through `tf.summary`."""

import contextlib
import importlib.util
import os
import re
import uuid
import warnings
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np

from keras_istar._src.measure import measures
from keras_istar._src.measure import plots
from keras_istar._src.measure.layer_isotropy import LayerIsotropy
from keras_istar._src.measure.measures import COLUMNS


class Panel(NamedTuple):
    """One thing that TensorBoard shows.

    Attributes:
        kind: `"scalar"`, `"histogram"` or `"image"`.
        tag: Its name. Panels with the same text before a slash are grouped.
        value: A number; an array of numbers; bytes of shape
            `(images, height, width, 3)`.
        description: Text that TensorBoard shows beside it.
    """

    kind: str
    tag: str
    value: Any
    description: str


class EventFiles:
    """Writes to a folder that TensorBoard reads.

    The first `write` makes the folder and the file. After every `write`, all
    that was written is on disk. If writing fails, a warning says so.

    Args:
        log_dir: The folder.

    Attributes:
        has_failed: Whether a `write` has failed since the file was opened.

    Raises:
        ImportError: If TensorFlow or TensorBoard is not installed.
    """

    def __init__(self, log_dir: str):
        _import_tensorflow()
        self._log_dir = log_dir
        self._file: _EventFile | None = None
        self.has_failed = False

    def write(self, step: int, panels: list[Panel]) -> None:
        """Writes all panels of one step."""
        tf = _import_tensorflow()
        try:
            if self._file is None:
                self._file = _EventFile(self._log_dir)
            # Accelerators may belong to another backend.
            with tf.device("CPU:0"):
                self._file.write(step, panels)
        except (OSError, tf.errors.OpError) as error:
            self.has_failed = True
            warnings.warn(
                f"From step {step} on, nothing more is written to "
                f"log_dir={self._log_dir!r}: {_reason(error)}",
                stacklevel=2,
            )

    def close(self) -> None:
        """Closes the file. The next `write` opens another one."""
        self.has_failed = False
        if self._file is not None:
            file, self._file = self._file, None
            # All that could be written has been.
            with contextlib.suppress(_import_tensorflow().errors.OpError):
                file.close()


class _EventFile:
    """One file, newly made; raises `OSError` or `tf.errors.OpError`."""

    def __init__(self, log_dir):
        suffix = f".{uuid.uuid4().hex[:8]}.v2"
        self._writer = _import_tensorflow().summary.create_file_writer(
            log_dir, filename_suffix=suffix
        )
        self._path = _find(log_dir, suffix)
        self._end = 0
        self._check(1)  # The version of the format.

    def write(self, step, panels):
        tf = _import_tensorflow()
        # Other callbacks restrict recording to some batches.
        with tf.summary.record_if(True), self._writer.as_default(step):
            for kind, tag, value, description in panels:
                record = getattr(tf.summary, kind)
                record(tag, value, description=description)
        self._check(len(panels))

    def close(self):
        self._writer.close()

    def _check(self, number):
        """Raises unless `number` more records are on disk.

        TensorFlow does not report most writes that fail. A record is 8 bytes
        that tell the length of its data, the data, and 8 bytes of checksums.
        """
        self._writer.flush()
        if self._path is None:
            return
        with open(self._path, "rb") as file:
            for _ in range(number):
                file.seek(self._end)
                self._end += 16 + int.from_bytes(file.read(8), "little")
        if os.path.getsize(self._path) < self._end:
            raise OSError(f"{self._path} ends too early, as on a full disk")


def _find(log_dir, suffix):
    """Path of the file with that suffix, None if it is on another machine."""
    if "://" in log_dir:
        return None
    (name,) = (name for name in os.listdir(log_dir) if name.endswith(suffix))
    return os.path.join(os.path.abspath(log_dir), name)


def _import_tensorflow():
    try:
        import tensorboard  # noqa: F401, `tf.summary` is made of it.
        import tensorflow
    except ImportError as e:
        raise ImportError(
            "`log_dir` needs TensorFlow and TensorBoard: "
            "`pip install tensorflow tensorboard`."
        ) from e
    return tensorflow


def _reason(error):
    """Its message, without TensorFlow's names of operations."""
    return re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", str(error))


_GROUP = "isotropy"

_SHARE = "Share of the union's variance between the means of the states."
_SETTINGS = {
    "strength": "Factor of the penalty, at the end of the epoch.",
    "shrinkage": "ζ, the weight of Σ_S in the score, at the end of the epoch.",
    "target": "Bound of the IsoScore that is held, at the end of the epoch.",
}
_SPECTRUM = (
    "log10 of the eigenvalues of the covariance of the hidden states. Those "
    "that float32's rounding could make are left out."
)
_REPORT = "Isotropy, spectrum and outlier dimensions by layer."


class Dashboard:
    """Writes event files that show epochs in TensorBoard.

    Args:
        log_dir: Folder of its event files.

    Raises:
        ImportError: If TensorFlow or TensorBoard is not installed.
    """

    def __init__(self, log_dir: str):
        self._files = EventFiles(log_dir)
        self._can_draw = importlib.util.find_spec("matplotlib") is not None
        if not self._can_draw:
            warnings.warn(
                "`log_dir` will hold no pictures, which need matplotlib: "
                "`pip install keras-istar[report]`.",
                stacklevel=3,
            )

    def show(
        self,
        epoch: int,
        numbers: Mapping[str, float],
        settings: Mapping[str, float],
        reports: Mapping[Any, list[LayerIsotropy]],
    ) -> None:
        """Writes one epoch.

        Args:
            epoch: Its index.
            numbers: What is in the logs.
            settings: Settings in force, by names that contain the setting's.
            reports: For each layer, a row for each state and for their union;
                no rows if these are not finite.
        """
        if self._files.has_failed:
            return
        panels = [
            _panel("scalar", name, value, _meaning(name))
            for name, value in {**numbers, **settings}.items()
        ]
        for layer, rows in reports.items():
            if rows:
                panels += _spectra(layer, rows)
                panels += self._picture(epoch, layer, rows)
        self._files.write(epoch, panels)

    def _picture(self, epoch, layer, rows) -> list[Panel]:
        """The picture of a layer, if it can be drawn."""
        if not self._can_draw:
            return []
        try:
            images = plots.report_image(rows)[None]
        except Exception as error:  # A picture must not end the training.
            self._can_draw = False
            warnings.warn(
                f"From step {epoch} on, no pictures are written to `log_dir`: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )
            return []
        return [_panel("image", layer.log_name("report"), images, _REPORT)]

    def close(self) -> None:
        """Closes the file, if there is one; the next `show` opens another."""
        self._files.close()


def _panel(kind, name, value, description):
    return Panel(kind, f"{_GROUP}/{name}", value, description)


def _meaning(name):
    """Description of a number in the logs."""
    for name_of_column, column in COLUMNS.items():
        if f"{name_of_column}_" in name:
            return f"{column.title} of the hidden states, as in the logs."
    for setting, what in _SETTINGS.items():
        if setting in name:
            return what
    return _SHARE


def _spectra(layer, rows) -> Iterator[Panel]:
    for row in rows:
        name = layer.log_name(f"spectrum_{row.layer}")
        logarithms = np.log10(measures.above_rounding(row.spectrum))
        yield _panel("histogram", name, logarithms, _SPECTRUM)
