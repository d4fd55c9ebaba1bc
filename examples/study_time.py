"""How long runs of the study take, as far as that can be told before."""

import statistics
from collections.abc import Iterable
from typing import Any

import glue
from study_grid import Run

# MiniLM on two CPU cores: medians of the runs in `results` are met within a
# quarter. A training token goes through the encoder forwards and backwards,
# and once more for Σ_S.
SECONDS_PER_TRAINING_TOKEN = 0.45e-3
SECONDS_PER_TEST_TOKEN = 0.11e-3
SECONDS_BESIDES = 60.0

_HELD_OUT = 0.1  # Share of GLUE's training split, for validation.
_OTHER_SIZES = (7_991, 1_025)  # Those of the film reviews.


def estimate(runs: Iterable[Run], records: dict[str, dict[str, Any]]) -> float:
    """Seconds that the runs should take one after the other.

    A run takes as long as those of the same task and recipe have taken, or
    else so long for each token and so long besides.
    """
    times = {}
    for record in records.values():
        if record["status"] == "ok":
            done = Run.from_dict(record["run"])
            times.setdefault((done.task, done.recipe), []).append(
                record["seconds"]["total"]
            )
    return sum(_seconds(run, times) for run in runs)


def _seconds(run, times):
    known = times.get((run.task, run.recipe))
    if known:
        return statistics.mean(known)
    recipe = run.recipe
    train, test = _sizes(run.task)
    train = min(recipe.limit or train, train) * recipe.epochs
    test = min(recipe.test_limit or test, test)
    return SECONDS_BESIDES + recipe.sequence_length * (
        train * SECONDS_PER_TRAINING_TOKEN + test * SECONDS_PER_TEST_TOKEN
    )


def _sizes(task):
    """Numbers of training and test examples."""
    if task not in glue.TASKS:
        return _OTHER_SIZES
    train, test = glue.TASKS[task].sizes
    return round(train * (1 - _HELD_OUT)), test


def shown(seconds: float) -> str:
    """Hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
