"""The result folder: one line of JSON for each finished run.

`results.jsonl` is replaced as a whole, so that it is complete at every moment,
and sorted, so that it does not depend on the order of the runs or the number of
processes. A process that works on a run holds the lock of a file; the system
frees it when the process ends in any way.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetuning.command_line import UserError

from study.grid import Run
from study.grid import sort_key

FORMAT = 1
Records = dict[str, dict[str, Any]]

_FILE = "results.jsonl"


class ResultFolder:
    """Results of a study, shared by the processes that work on it.

    Args:
        path: The folder. It is made when something is written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._has_warned = False

    def read(self) -> Records:
        """All results by the id of the run, in order.

        Lines that are damaged or of another format are reported, left in the
        file, and not counted. Of several lines of a run, a success counts.

        Raises:
            UserError: If the folder cannot be read.
        """
        with self._errors():
            return self._read()[0]

    def add(self, record: dict[str, Any]) -> Records:
        """Writes one more result; it replaces an older one of its run.

        Returns:
            All results, as they were right after this one was written.

        Raises:
            UserError: If that is impossible; the file is then as it was.
        """
        with self._errors(), self._open_lock(_FILE) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            records, other_lines = self._read()
            records[record["id"]] = record
            records = dict(sorted(records.items(), key=_order))
            lines = [
                json.dumps(record, allow_nan=False).encode()
                for record in records.values()
            ]
            content = b"".join(line + b"\n" for line in lines + other_lines)
            replace_file(self.path / _FILE, content)
            return records

    @contextlib.contextmanager
    def claim(self, run_id: str) -> Iterator[bool]:
        """Within this scope the run is this process's own, if it yields True.

        Raises:
            UserError: If the folder cannot be written.
        """
        with self._errors():
            lock = self._open_lock(run_id)
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
            # The run has a result now, which others find when they claim it.
            Path(lock.name).unlink(missing_ok=True)

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

    def _read(self):
        """Records by id, and the lines that are none."""
        file = self.path / _FILE
        try:
            lines = file.read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}, []
        records, other_lines = {}, []
        for line in filter(None, lines):
            record = _parse(line)
            if record is None:
                other_lines.append(line)
            elif records.get(record["id"], {}).get("status") != "ok":
                records[record["id"]] = record
        if other_lines and not self._has_warned:
            self._has_warned = True
            print(
                f"{file}: {len(other_lines)} lines are damaged or of another "
                "format; they stay in the file and are not counted",
                flush=True,
            )
        return records, other_lines


def _parse(line):
    """The record of a line, None if it is not a line of this format."""
    try:
        record = json.loads(line)
        run = Run.from_dict(record["run"])
        is_whole = (
            record["format"] == FORMAT
            and record["status"] in ("ok", "failed")
            and record["id"] == run.id
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return record if is_whole else None


def _order(item):
    return sort_key(Run.from_dict(item[1]["run"]))


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file; what `path` holds stays if that fails."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
