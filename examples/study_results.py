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
_STATUSES = ("ok", "failed")
_ROOM = 2**20  # For lines to come.


class ResultFolder:
    """Results of a study, shared by the processes that work on it.

    Args:
        path: The folder. Whatever writes makes it if need be.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def read(self) -> dict[str, dict[str, Any]]:
        """All results by the id of the run, in order.

        Lines that are damaged, of another format version, or of a run that
        has another line are moved to a file of their own, which is reported.

        Raises:
            UserError: If the folder cannot be read, or not be mended.
        """
        with self._errors():
            records, bad_lines = self._read()
            if not bad_lines:
                return records
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
            lock = self._open_lock(run_id)
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
            # The run has a result now: whoever waits for the lock finds it.
            with self._errors():
                Path(file.name).unlink(missing_ok=True)

    def check_space(self) -> None:
        """Raises `UserError` unless the file can be written anew and grow."""
        with self._errors(), self._locked(_FILE):
            file = self.path / _FILE
            size = file.stat().st_size if file.exists() else 0
            with self._part() as part:
                _write_through(part, b"\0" * (size + _ROOM))

    @contextlib.contextmanager
    def _locked(self, name):
        with self._open_lock(name) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _open_lock(self, name):
        folder = self.path / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / f"{name}.lock").open("w")

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
        records, bad_lines = self._read()
        if bad_lines:
            self._set_aside(b"\n".join(bad_lines) + b"\n", len(bad_lines))
            self._write(records)
        return records

    def _read(self):
        """Records by id, and the lines that are none or not needed."""
        file = self.path / _FILE
        try:
            lines = file.read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}, []
        records, kept, bad_lines = {}, {}, []
        for line in filter(None, lines):
            record = _parse(line)
            if record is None or not _is_better(record, records):
                bad_lines.append(line)
                continue
            run_id = record["id"]
            bad_lines += [kept[run_id]] if run_id in kept else []
            records[run_id], kept[run_id] = record, line
        return records, bad_lines

    def _set_aside(self, content, count):
        digest = hashlib.sha256(content).hexdigest()[:8]
        file = self.path / f"results.damaged-{digest}.jsonl"
        _write_through(file, content)
        print(
            f"{self.path / _FILE}: {count} lines that are damaged, of another "
            f"format version, or of a run that has another line, moved to "
            f"{file.name}",
            flush=True,
        )

    def _write(self, records):
        ordered = sorted(records.values(), key=_sort_key)
        lines = (json.dumps(record, allow_nan=False) for record in ordered)
        with self._part() as part:
            _write_through(part, "".join(f"{x}\n" for x in lines).encode())
            os.replace(part, self.path / _FILE)
        _sync_folder(self.path)

    @contextlib.contextmanager
    def _part(self):
        """The file to write to first; a killed process may have left it."""
        part = self.path / f"{_FILE}.part"
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)


def _parse(line):
    """The record of a line, None if it is not a line of this version."""
    try:
        record = json.loads(line)
        if record["format"] != FORMAT or record["status"] not in _STATUSES:
            return None
        run = study_grid.Run.from_dict(record["run"])
        return record if run.id == record["id"] else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _is_better(record, records):
    """Whether the record takes its place, if another has it already."""
    other = records.get(record["id"])
    if other is None:
        return True
    return record["status"] == "ok" and other["status"] != "ok"


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
