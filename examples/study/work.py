"""Works through a grid of runs, together with other processes."""

import datetime
import importlib.metadata
import os
import time
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

from finetuning.command_line import UserError
from finetuning.command_line import summarize

from study.grid import Run
from study.result_folder import FORMAT
from study.result_folder import Records
from study.result_folder import ResultFolder

Execute = Callable[[Run], dict[str, Any]]

_PACKAGES = ("keras-istar", "keras", "keras-hub", "tensorflow")


def work(
    runs: list[Run],
    folder: ResultFolder,
    execute: Execute,
    retry_before: str | None = None,
) -> None:
    """Does the runs that have no result and that no other process does.

    Args:
        runs: All runs of the study.
        folder: Where results are.
        execute: Does a run and returns what to record. An exception, other
            than `UserError`, is recorded as a failure.
        retry_before: A `timestamp`; runs that have failed before are repeated.

    Raises:
        UserError: If `execute` does, or the folder cannot be written.
    """
    for run in runs:
        with folder.claim(run.id) as is_mine:
            if not is_mine or not to_do([run], folder.read(), retry_before):
                continue
            record = _record(run, execute)
            records = folder.add(record)
        print(_line(record, runs, records), flush=True)
    print(_closing(runs, folder.read()), flush=True)


def to_do(
    runs: Iterable[Run], records: Records, retry_before: str | None = None
) -> list[Run]:
    """The runs without a result, and those that failed before that time."""
    return [
        run
        for run in runs
        if run.id not in records
        or (
            retry_before is not None
            and records[run.id]["status"] == "failed"
            and records[run.id]["started"] < retry_before
        )
    ]


def timestamp() -> str:
    """Now, as text that sorts by time."""
    now = datetime.datetime.now(datetime.UTC)
    return now.isoformat(timespec="microseconds").replace("+00:00", "Z")


def plan(runs: list[Run], records: Records) -> str:
    """The grid, and what of it is done."""
    lines = [
        f"{records[run.id]['status'] if run.id in records else 'to do':<7}{run}"
        for run in runs
    ]
    rest = len(to_do(runs, records))
    return "\n".join([*lines, f"{len(runs)} runs, {rest} to do"])


def _record(run, execute):
    """The line for a run, which it does."""
    started, start = timestamp(), time.monotonic()
    try:
        figures = {"status": "ok", **execute(run)}
    except UserError:
        raise
    except Exception as error:  # Training raises what it likes.
        name = type(error).__name__
        figures = {"status": "failed", "error": f"{name}: {summarize(error)}"}
    total = round(time.monotonic() - start, 2)
    return {
        "format": FORMAT,
        "id": run.id,
        "name": str(run),
        "run": run.as_dict(),
        **figures,
        "versions": {x: importlib.metadata.version(x) for x in _PACKAGES},
        "cores": os.cpu_count(),
        "started": started,
        "seconds": {**figures.get("seconds", {}), "total": total},
    }


def _line(record, runs, records):
    """A line on a finished run.

    The records are those right after it was added, so that each of several
    processes reports another number of runs.
    """
    if record["status"] == "ok":
        scores, isotropy = record["test"]["end"], record["isotropy"]["after"]
        outcome = ", ".join(f"{k} {v:.3f}" for k, v in scores.items())
        outcome += f", IsoScore {isotropy['union']['isoscore']:.3f}"
    else:
        outcome = record["error"]
    done = len(runs) - len(to_do(runs, records))
    return (
        f"[{done}/{len(runs)}] {record['name']}: {outcome}; "
        f"{record['seconds']['total']:.0f} s"
    )


def _closing(runs, records):
    """A line at the end, when other processes may still be at work."""
    done = [records[run.id] for run in runs if run.id in records]
    num_failed = sum(record["status"] == "failed" for record in done)
    text = f"{len(done)} of {len(runs)} runs have a result"
    if num_failed:
        text += f", {num_failed} of them a failure (see `error` in its line)"
    if len(done) < len(runs):
        text += "; the others are in work by other processes"
    return text
