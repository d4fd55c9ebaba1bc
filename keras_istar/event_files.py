"""Everything that knows of `tf.summary`: the files that TensorBoard reads."""

import contextlib
import os
import re
import uuid
import warnings
from typing import Any
from typing import NamedTuple


class Panel(NamedTuple):
    """One thing that TensorBoard shows.

    Attributes:
        kind: `"scalar"`, `"histogram"` or `"image"`.
        tag: Its name. What stands before a slash groups it with others.
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

    Folder and file come into being with the first `write`, and after every
    `write` all of it is on disk. If that fails, a warning says so.

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
        """Writes all that there is of one step."""
        tf = _import_tensorflow()
        try:
            if self._file is None:
                self._file = _EventFile(self._log_dir)
            # Accelerators may be another backend's.
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
        """Raises unless so many more records are on disk.

        TensorFlow is silent about most writes that fail. A record has 8 bytes
        that tell the length of its data, and 8 of checksums.
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
