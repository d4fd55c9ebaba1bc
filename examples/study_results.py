"""The result folder: one line of JSON for each finished run.

`results.jsonl` is replaced as a whole, so that it is complete at every moment,
and sorted, so that it does not tell in which order or by how many processes
the runs were done. Who works on a run holds the lock of a file; the system
frees it when the process ends, however it ends.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import study_grid
from command_line import UserError

FORMAT = 1

_FILE = "results.jsonl"


class ResultFolder:
    """Results of a study, shared by the processes that work on it.

    Args:
        path: The folder, made if need be.

    Raises:
        UserError: If it cannot be made or written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        with self._errors():
            (self.path / "locks").mkdir(parents=True, exist_ok=True)

    def read(self) -> dict[str, dict[str, Any]]:
        """All results by the id of the run, in order.

        Lines that are damaged or of another format version are moved to a
        file of their own, which is reported.
        """
        with self._errors():
            if not (self.path / _FILE).exists():
                return {}
            with self._locked(_FILE):
                return self._read_and_repair()

    def add(self, record: dict[str, Any]) -> None:
        """Writes one more result; it replaces an older one of its run.

        Raises:
            UserError: If that is impossible; the file is then as it was.
        """
        with self._errors(), self._locked(_FILE):
            self._write({**self._read_and_repair(), record["id"]: record})

    @contextlib.contextmanager
    def claim(self, run_id: str) -> Iterator[bool]:
        """Within this scope the run is this process's own, if it yields True.

        Raises:
            UserError: If the folder cannot be written.
        """
        with self._errors():
            file = (self.path / "locks" / f"{run_id}.lock").open("w")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def check_space(self, size: int = 2**20) -> None:
        """Raises `UserError` unless there is room for `size` bytes more."""
        file = self.path / "locks" / f"space-{os.getpid()}"
        with self._errors():
            try:
                _write_through(file, b"\0" * size)
            finally:
                file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, name):
        with (self.path / "locks" / f"{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _errors(self):
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot use the result folder {self.path}: {error}. What "
                "is in it is safe; start the same command again to go on"
            ) from error

    def _read_and_repair(self):
        file = self.path / _FILE
        lines = file.read_bytes().split(b"\n") if file.exists() else []
        records, damaged = {}, []
        for line in filter(None, lines):
            record = _parse(line)
            if record is None or record["id"] in records:
                damaged.append(line)
            else:
                records[record["id"]] = record
        if damaged:
            self._set_aside(b"\n".join(damaged) + b"\n", len(damaged))
            self._write(records)
        return records

    def _set_aside(self, content, count):
        digest = hashlib.sha256(content).hexdigest()[:8]
        file = self.path / f"results.damaged-{digest}.jsonl"
        _write_through(file, content)
        print(
            f"{self.path / _FILE}: {count} damaged lines or lines of another "
            f"format version, moved to {file.name}",
            flush=True,
        )

    def _write(self, records):
        ordered = sorted(records.values(), key=_sort_key)
        lines = (json.dumps(record, allow_nan=False) for record in ordered)
        part = self.path / f"{_FILE}.part"
        try:
            _write_through(part, "".join(f"{x}\n" for x in lines).encode())
            os.replace(part, self.path / _FILE)
        finally:
            part.unlink(missing_ok=True)
        _sync_folder(self.path)


def _parse(line):
    """The record of a line, None if it is not a line of this version."""
    try:
        record = json.loads(line)
        if record["format"] != FORMAT:
            return None
        run = study_grid.Run.from_dict(record["run"])
        return record if run.id == record["id"] else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _sort_key(record):
    return study_grid.sort_key(study_grid.Run.from_dict(record["run"]))


def _write_through(path, content):
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path):
    """Makes a renaming in the folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
