"""Works through a grid of runs, together with other processes."""

import datetime
import os
import time
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import study_time
import study_versions
from command_line import UserError
from command_line import summarize
from study_grid import Run
from study_results import FORMAT
from study_results import ResultFolder

Records = dict[str, dict[str, Any]]


def work(
    runs: list[Run],
    folder: ResultFolder,
    execute: Callable[[Run], dict[str, Any]],
    retry_before: str | None = None,
    max_runs: int | None = None,
) -> bool:
    """Does the runs that have no result and no other process is doing.

    Args:
        runs: All runs of the study.
        folder: Where results are.
        execute: Does a run and returns what to record. An exception, other
            than `UserError`, is recorded as a failure.
        retry_before: A `timestamp`; runs that have failed before are repeated.
        max_runs: Stop after so many.

    Returns:
        Whether all runs were gone through.

    Raises:
        UserError: If `execute` does, or the folder cannot be written.
    """
    in_work = num_done = 0
    for run in runs:
        if num_done == max_runs:
            return False
        with folder.claim(run.id) as is_mine:
            if not to_do([run], folder.read(), retry_before):
                continue
            if not is_mine:
                in_work += 1
                continue
            folder.check_space()
            record = _record(run, execute)
            folder.add(record)
        num_done += 1
        _report(record, runs, folder.read())
    print(_closing(runs, folder.read(), in_work), flush=True)
    return True


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
    """The grid, what is done, and an estimate of the time for the rest."""
    lines = [
        f"{records[run.id]['status'] if run.id in records else 'to do':<7}{run}"
        for run in runs
    ]
    rest = to_do(runs, records)
    has_times = any(record["status"] == "ok" for record in records.values())
    basis = (
        "from the times of finished runs where there are some, or else"
        if has_times
        else "at"
    )
    lines.append(
        f"{len(runs)} runs, {len(rest)} to do: about {_time(rest, records)} "
        f"for one process, {basis} "
        f"{1000 * study_time.SECONDS_PER_TRAINING_TOKEN:g} ms a training token "
        f"and {study_time.SECONDS_BESIDES:g} s a run, as MiniLM takes on two "
        "CPU cores"
    )
    return "\n".join(lines)


def _record(run, execute):
    """The line for a run, which it does."""
    started = timestamp()
    start, processor = time.monotonic(), time.process_time()
    try:
        figures = {"status": "ok", **execute(run)}
    except UserError:
        raise
    except Exception as error:  # Whatever training raises.
        name = type(error).__name__
        figures = {"status": "failed", "error": f"{name}: {summarize(error)}"}
    seconds = {
        **figures.pop("seconds", {}),
        "total": round(time.monotonic() - start, 2),
        "processor": round(time.process_time() - processor, 2),
    }
    return {
        "format": FORMAT,
        "id": run.id,
        "name": str(run),
        "run": run.as_dict(),
        **figures,
        "versions": study_versions.installed(),
        "cores": os.cpu_count(),
        "started": started,
        "seconds": seconds,
    }


def _report(record, runs, records):
    """One line on a finished run and on what is left."""
    rest = to_do(runs, records)
    if record["status"] == "ok":
        test, isotropy = record["test"]["end"], record["isotropy"]["after"]
        outcome = ", ".join(f"{k} {v:.3f}" for k, v in test.items())
        outcome += f", IsoScore {isotropy['union']['isoscore']:.3f}"
    else:
        outcome = record["error"]
    print(
        f"[{len(runs) - len(rest)}/{len(runs)}] {record['name']}: {outcome}; "
        f"{record['seconds']['total']:.0f} s; {len(rest)} left, about "
        f"{_time(rest, records)}",
        flush=True,
    )


def _closing(runs, records, in_work):
    done = [records[run.id] for run in runs if run.id in records]
    num_failed = sum(record["status"] == "failed" for record in done)
    text = f"{len(done)} of {len(runs)} runs have a result"
    if num_failed:
        text += f", {num_failed} of them a failure (see `error` in its line)"
    if in_work:
        text += f"; {in_work} were in work by other processes"
    return text


def _time(runs, records):
    return study_time.shown(study_time.estimate(runs, records))
