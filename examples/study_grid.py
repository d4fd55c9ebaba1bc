"""What a run of the study is, and the grid of runs that options ask for."""

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import glue
from command_line import UserError
from study_method import REGULARIZERS
from study_method import Method

_SEQUENCE_LENGTHS = {
    "cola": 32,
    "film-reviews": 48,
    "mnli": 80,
    "mrpc": 80,
    "qnli": 96,
    "qqp": 64,
    "rte": 96,
    "sst2": 48,
    "stsb": 64,
    "wnli": 96,
}
_OTHER_SEQUENCE_LENGTH = 48


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to fine-tune and to measure, the same for all methods.

    Attributes:
        preset: Of the encoder, see `classifiers.load_classifier`.
        limit: Number of training examples, None for all.
        validation_limit: Number of examples scored after every epoch.
        test_limit: Number of examples for the final figures, None for all.
        epochs: Passes over the training examples, after one for the head.
        batch_size: Examples in a training batch.
        learning_rate: Peak of Adam's.
        sequence_length: Tokens to which texts are cut.
        max_points: Tokens of a pass for Σ_S, counted once in every state.
        measured_texts: Number of test examples whose states are measured.
    """

    preset: str
    limit: int | None
    validation_limit: int
    test_limit: int | None
    epochs: int
    batch_size: int
    learning_rate: float
    sequence_length: int
    max_points: int
    measured_texts: int


@dataclasses.dataclass(frozen=True)
class Run:
    """One fine-tuning: a line of the result file."""

    task: str
    recipe: Recipe
    seed: int
    method: Method

    @property
    def id(self) -> str:
        """Hash of all options: the same in every process and on any machine."""
        return hashlib.sha256(self.as_json().encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """All options, in dicts."""
        return dataclasses.asdict(self)

    def as_json(self) -> str:
        """All options, in one fixed order."""
        return json.dumps(self.as_dict())

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> "Run":
        """The run whose options a line of the result file holds."""
        method = dict(options["method"])
        if method["layers"] is not None:
            method["layers"] = tuple(method["layers"])
        return cls(
            options["task"],
            Recipe(**options["recipe"]),
            options["seed"],
            Method(**method),
        )

    def __str__(self):
        return f"{self.task} {self.method} seed {self.seed}"


def sort_key(run: Run) -> tuple:
    """Order of runs in the result file: tasks, seeds, methods."""
    method = run.method
    strength = method.strength or 0.0
    rank = REGULARIZERS.index(method.regularizer)
    return (run.task, run.seed, rank, strength, str(method), run.as_json())


def grid(
    options: argparse.Namespace,
) -> list[Run]:
    """The runs that the options of `study.py` ask for, each once, in order."""
    runs = {
        Run(task, _recipe(options, task), options.first_seed + seed, method)
        for task, seed, method in itertools.product(
            options.tasks, range(options.seeds), options.regularizers
        )
    }
    return sorted(runs, key=sort_key)


def check_refresh(run: Run, num_examples: int) -> None:
    """Checks that `refresh` is not the same as once an epoch.

    Args:
        run: The run.
        num_examples: Training examples that the task has.

    Raises:
        UserError: If `refresh` counts as many steps as an epoch, or more.
    """
    used = min(run.recipe.limit or num_examples, num_examples)
    steps = math.ceil(used / run.recipe.batch_size)
    refresh = run.method.refresh
    if isinstance(refresh, int) and refresh >= steps:
        raise UserError(
            f"`refresh` must be below the {steps} steps of an epoch on "
            f"{run.task}, at whose end there is a pass anyway. Received: "
            f"refresh={refresh}"
        )


def parse_task(name: str) -> str:
    """Name of a task, of GLUE without the `glue/`.

    Raises:
        UserError: If there is no such task or file.
    """
    short = name.removeprefix("glue/")
    if short not in _SEQUENCE_LENGTHS and not Path(name).is_file():
        raise UserError(
            f"no such task or file: {name!r}. Tasks are "
            f"{', '.join(_SEQUENCE_LENGTHS)}"
        )
    return short if short in _SEQUENCE_LENGTHS else name


def _recipe(options, task):
    length = options.sequence_length or _SEQUENCE_LENGTHS.get(
        task, _OTHER_SEQUENCE_LENGTH
    )
    return Recipe(
        preset=options.preset,
        limit=options.limit or None,
        validation_limit=options.validation_limit,
        test_limit=options.test_limit or None,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        sequence_length=length,
        max_points=options.max_points,
        measured_texts=options.measured_texts,
    )


def data_name(task: str) -> str:
    """The name under which `text_tasks.load` knows a task."""
    return f"glue/{task}" if task in glue.TASKS else task
