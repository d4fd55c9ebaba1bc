"""Works through a grid of runs, together with other processes.

The result folder holds a line of JSON for each finished run. `results.jsonl` is
replaced as a whole, so that it is complete at every moment, and sorted, so that
it does not depend on the order of the runs or the number of processes. A
process that works on a run holds the lock of a file; the system frees it when
the process ends in any way.
"""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetuning import files
from finetuning.command_line import UserError
from finetuning.command_line import summarize

from study.grid import Run
from study.grid import sort_key

Execute = Callable[[Run], dict[str, Any]]
Records = dict[str, dict[str, Any]]

_FORMAT = 1
_PACKAGES = ("keras-istar", "keras", "keras-hub", "tensorflow")


class ResultFolder:
    """Results of a study, shared by the processes that work on it.

    A folder that cannot be read or written is a `UserError`; its results are
    then as they were.

    Args:
        path: The folder. It is made when something is written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._file = self.path / "results.jsonl"
        self._has_warned = False

    def read(self) -> Records:
        """All results by the id of the run, in order.

        Lines that are damaged or of another format are reported, left in the
        file, and not counted. Of several lines of a run, a success counts.
        """
        with self._errors():
            return self._read()[0]

    @contextlib.contextmanager
    def changes(self) -> Iterator[Records]:
        """All results, to be changed within this scope, and then written."""
        with self._errors(), self._open_lock(self._file.name) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            records, other_lines = self._read()
            yield records
            lines = [
                json.dumps(record, allow_nan=False).encode()
                for record in sorted(records.values(), key=_order)
            ]
            content = b"".join(line + b"\n" for line in lines + other_lines)
            files.replace(self._file, content)

    @contextlib.contextmanager
    def claim(self, run: Run) -> Iterator[bool]:
        """Yields whether the run is this process's own within this scope."""
        with self._errors():
            lock = self._open_lock(run.id)
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
        try:
            lines = self._file.read_bytes().split(b"\n")
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
                f"{self._file}: {len(other_lines)} lines are damaged or of "
                "another format; they stay in the file and are not counted",
                flush=True,
            )
        return records, other_lines


def _parse(line):
    """The record of a line, None if it is not a line of this format."""
    try:
        record = json.loads(line)
        is_whole = (
            record["format"] == _FORMAT
            and record["status"] in ("ok", "failed")
            and record["id"] == Run.from_dict(record["run"]).id
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return record if is_whole else None


def _order(record):
    return sort_key(Run.from_dict(record["run"]))


def work(runs: list[Run], folder: ResultFolder, execute: Execute) -> None:
    """Does the runs that have no result and that no other process does.

    Args:
        runs: All runs of the study.
        folder: Where results are.
        execute: Does a run and returns what to record. An exception, other
            than `UserError`, is recorded as a failure.
    """
    for run in runs:
        with folder.claim(run) as is_mine:
            if not is_mine or run.id in folder.read():
                continue
            record = _record(run, execute)
            with folder.changes() as records:
                records[run.id] = record
        done = sum(run.id in records for run in runs)
        print(f"[{done}/{len(runs)}] {_outcome(record)}", flush=True)
    print(_closing(runs, folder.read()), flush=True)


def forget_failures(runs: list[Run], folder: ResultFolder) -> None:
    """Removes the results of failed runs, so that `work` repeats them."""
    with folder.changes() as records:
        for run in runs:
            if records.get(run.id, {}).get("status") == "failed":
                del records[run.id]


def plan(runs: list[Run], records: Records) -> str:
    """The grid, and what of it is done."""
    states = [records.get(run.id, {}).get("status", "to do") for run in runs]
    lines = [f"{x:<7}{run}" for x, run in zip(states, runs, strict=True)]
    total = f"{len(runs)} runs, {states.count('to do')} to do"
    return "\n".join([*lines, total])


def _record(run, execute):
    """The line for a run, which it does."""
    started = datetime.datetime.now(datetime.UTC)
    start = time.monotonic()
    try:
        figures = {"status": "ok", **execute(run)}
    except UserError:
        raise
    except Exception as error:  # Training raises what it likes.
        name = type(error).__name__
        figures = {"status": "failed", "error": f"{name}: {summarize(error)}"}
    total = round(time.monotonic() - start, 2)
    return {
        "format": _FORMAT,
        "id": run.id,
        "name": str(run),
        "run": run.as_dict(),
        **figures,
        "versions": {x: importlib.metadata.version(x) for x in _PACKAGES},
        "cores": os.cpu_count(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": {**figures.get("seconds", {}), "total": total},
    }


def _outcome(record):
    if record["status"] == "ok":
        scores, isotropy = record["test"]["end"], record["isotropy"]["after"]
        outcome = ", ".join(f"{k} {v:.3f}" for k, v in scores.items())
        outcome += f", IsoScore {isotropy['union']['isoscore']:.3f}"
    else:
        outcome = record["error"]
    return f"{record['name']}: {outcome}; {record['seconds']['total']:.0f} s"


def _closing(runs, records):
    """A line at the end, when other processes may still be at work."""
    done = [records[run.id]["status"] for run in runs if run.id in records]
    text = f"{len(done)} of {len(runs)} runs have a result"
    if failures := done.count("failed"):
        text += f", {failures} of them a failure (see `error` in its line)"
    if len(done) < len(runs):
        text += "; the others are in work by other processes"
    return text
