"""Runs of the study, and the grid of them that is asked for."""

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from finetuning import command_line
from finetuning.command_line import UserError
from finetuning.data import TASKS
from finetuning.data import find_task
from finetuning.settings import COUNT_PADDING
from finetuning.settings import DEFAULTS
from finetuning.settings import REFRESH_EPOCH
from finetuning.settings import REFRESH_NEVER
from finetuning.settings import SKIP_PADDING
from finetuning.settings import Method
from finetuning.settings import Recipe
from finetuning.settings import check_method

_RANKS = {name: i for i, name in enumerate(DEFAULTS)}
# They came later: lines that lack them have their defaults, and keep their id.
_LATER = {"recipe": ("head_steps", "optimizer"), "method": ("target",)}


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
        text = json.dumps(self.as_dict())
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """All options, in dicts."""
        options = dataclasses.asdict(self)
        defaults = {"recipe": Recipe(), "method": Method("none")}
        for part, names in _LATER.items():
            for name in names:
                if options[part][name] == getattr(defaults[part], name):
                    del options[part][name]
        return options

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> "Run":
        """The run whose options a line of the result file holds."""
        method = dict(options["method"])
        if method["layers"] is not None:
            method["layers"] = tuple(method["layers"])
        recipe = Recipe(**options["recipe"])
        return cls(options["task"], recipe, options["seed"], Method(**method))

    def __str__(self):
        return f"{self.task} {spell(self.method)} seed {self.seed}"


def make_grid(
    tasks: Iterable[str],
    recipe: Recipe,
    seeds: Iterable[int],
    methods: Iterable[Method],
    sequence_length: int | None = None,
) -> list[Run]:
    """All runs of some tasks, seeds and methods, each once, in order.

    Args:
        tasks: Names as `parse_task` returns them.
        recipe: How to do them.
        seeds: The seeds.
        methods: The methods.
        sequence_length: Tokens to which texts are cut, by the task if None.

    Raises:
        UserError: If a method has no place in the models of a task.
    """
    runs = {
        Run(
            task,
            dataclasses.replace(
                recipe,
                sequence_length=sequence_length
                or find_task(data_name(task)).sequence_length,
            ),
            seed,
            method,
        )
        for task, seed, method in itertools.product(tasks, seeds, methods)
    }
    for run in runs:
        check_method(run.method, data_name(run.task))
    return sorted(runs, key=sort_key)


def sort_key(run: Run) -> tuple:
    """Order of runs in the result file: tasks, seeds, methods."""
    method = run.method
    rank = _RANKS[method.regularizer], method.strength or 0.0, spell(method)
    return run.task, run.seed, *rank, json.dumps(run.as_dict())


def parse_task(name: str) -> str:
    """Name of a task in the results: `sst2` for `glue/sst2`, or a path.

    Raises:
        UserError: If there is no such task, file or folder.
    """
    find_task(data_name(name))
    return name.removeprefix("glue/") if name in TASKS else str(Path(name))


def data_name(task: str) -> str:
    """The name under which `data.load` knows a task."""
    return f"glue/{task}" if f"glue/{task}" in TASKS else task


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


def parse_method(text: str) -> Method:
    """A method from `none`, `isobn`, `cosreg:1` or `istar:-1,shrinkage=0.8`.

    Raises:
        argparse.ArgumentTypeError: If the text is none of these.
    """
    head, *pairs = text.split(",")
    regularizer, _, strength = head.partition(":")
    if regularizer not in DEFAULTS:
        raise argparse.ArgumentTypeError(
            f"must be one of {', '.join(DEFAULTS)}. Received: {text!r}"
        )
    has_strength = "strength" in DEFAULTS[regularizer]
    if has_strength != bool(strength):
        needs = "needs a strength" if has_strength else "has no strength"
        raise argparse.ArgumentTypeError(
            f"{regularizer} {needs}, as in istar:-1. Received: {text!r}"
        )
    options = _parse_pairs(regularizer, pairs)
    if has_strength:
        options["strength"] = command_line.real(strength) + 0.0  # No -0.
    if options.keys() >= {"momentum", "refresh"}:
        raise argparse.ArgumentTypeError(
            "with momentum nothing is refreshed: give momentum or refresh. "
            f"Received: {text!r}"
        )
    return Method.make(regularizer, **options)


def _parse_pairs(regularizer, pairs):
    known = sorted(DEFAULTS[regularizer].keys() & _OPTIONS.keys())
    options = {}
    for pair in pairs:
        name, is_pair, value = pair.partition("=")
        if not is_pair or name not in known:
            raise argparse.ArgumentTypeError(
                f"options of {regularizer} are {known}, as in shrinkage=0.8. "
                f"Received: {pair!r}"
            )
        options[name] = _OPTIONS[name](value)
    return options


def spell(method: Method) -> str:
    """The shortest text that `parse_method` makes a method from."""
    text = method.regularizer
    if method.strength is not None:
        text += f":{method.strength:.10g}"
    defaults = DEFAULTS[method.regularizer]
    changes = [
        f"{name}={_shown(value)}"
        for name in _OPTIONS
        if (value := getattr(method, name)) not in (None, defaults.get(name))
    ]
    return ",".join([text, *changes])


def is_plain(method: Method) -> bool:
    """Whether a method is I-STAR with all defaults but the strength."""
    return method == Method.make("istar", strength=method.strength)


def _layers(text):
    return tuple(command_line.index_or_name(item) for item in text.split("+"))


def _refresh(text):
    is_word = text in (REFRESH_EPOCH, REFRESH_NEVER)
    return text if is_word else command_line.positive_int(text)


def _padding(text):
    if text not in (SKIP_PADDING, COUNT_PADDING):
        raise argparse.ArgumentTypeError(
            f"padding is {SKIP_PADDING} or {COUNT_PADDING}. Received: {text!r}"
        )
    return text


_OPTIONS = {
    "shrinkage": command_line.fraction,
    "target": command_line.fraction,
    "layers": _layers,
    "momentum": command_line.open_fraction,
    "refresh": _refresh,
    "padding": _padding,
}


def _shown(value):
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def settings(runs: Iterable[Run]) -> dict[tuple[str, Recipe], str]:
    """A name for each task and recipe, which runs must share to be compared.

    No two are the same: a name holds the task, the number of training
    examples, and what else differs between the recipes of the task.
    """
    recipes: dict[str, list[Recipe]] = {}
    for run in runs:
        recipes.setdefault(run.task, []).append(run.recipe)
    return {
        (task, recipe): _setting(task, recipe, own)
        for task, own in recipes.items()
        for recipe in dict.fromkeys(own)
    }


def _setting(task, recipe, recipes):
    values = dataclasses.asdict(recipe)
    texts = {
        name: f"{value:,}" if isinstance(value, int) else str(value or "all")
        for name, value in values.items()
    }
    differing = [
        f"{name}={texts[name]}"
        for name in values
        if name != "limit" and len({getattr(r, name) for r in recipes}) > 1
    ]
    return ", ".join([task, f"{texts['limit']} examples", *differing])
