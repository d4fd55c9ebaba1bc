"""Runs of the study, and the grid of them that is asked for."""

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable
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
# Newer options: lines without them have their defaults, and keep their id.
_LATER = {
    "recipe": ("head_steps", "optimizer"),
    "method": ("target", "relative", "per_layer"),
}


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
        for name in ("layers", "target"):
            if isinstance(method.get(name), list):
                method[name] = tuple(method[name])
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
        recipe: How to train.
        seeds: The seeds.
        methods: The methods.
        sequence_length: Tokens to which texts are cut, by the task if None.

    Raises:
        UserError: If a method does not fit the models of a task.
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
    return run.task, run.seed, *order(run.method), json.dumps(run.as_dict())


def order(method: Method) -> tuple:
    """Order of methods in results and pictures: targets after strengths."""
    return (
        _RANKS[method.regularizer],
        method.target is not None,
        method.strength or 0.0,
        spell(method),
    )


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
    """A method from `none`, `isobn`, `cosreg:1`, `istar:-1,shrinkage=0.8`.

    With a target: `istar:target=0.3`, `istar:target=0.75x,strength=1`.

    Raises:
        argparse.ArgumentTypeError: If the text is none of these.
    """
    regularizer, *words = text.replace(":", ",", 1).split(",")
    if regularizer not in DEFAULTS:
        raise argparse.ArgumentTypeError(
            f"must be one of {', '.join(DEFAULTS)}. Received: {text!r}"
        )
    known = {k: x for k, x in _OPTIONS.items() if k in DEFAULTS[regularizer]}
    options = parse_options(regularizer, words, known)
    if "target" in options:
        options["target"], options["relative"] = options["target"]
    if "refresh" in options and options.keys() & {"momentum", "target"}:
        raise argparse.ArgumentTypeError(
            "with momentum or a target nothing is refreshed: leave refresh "
            f"out. Received: {text!r}"
        )
    return Method.make(regularizer, **options)


def parse_options(
    regularizer: str, words: list[str], known: dict[str, Callable]
) -> dict[str, Any]:
    """Options of a method by name.

    Args:
        regularizer: Its name.
        words: `name=value`, `name` alone if `flag` reads it; the first may be
            a strength.
        known: Function that reads the value, by name.

    Raises:
        argparse.ArgumentTypeError: If a word is no such option.
    """
    if "strength" in known and words and "=" not in words[0] not in known:
        words = [f"strength={words[0]}", *words[1:]]
    options: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known or name in options:
            raise argparse.ArgumentTypeError(
                f"options of {regularizer} are {sorted(known)}, each once, as "
                f"in istar:-1,shrinkage=0.8. Received: {word!r}"
            )
        options[name] = known[name](value)
    if "strength" in known and not options.keys() & {"strength", "target"}:
        raise argparse.ArgumentTypeError(
            f"{regularizer} needs a strength, as in istar:-1 or cosreg:1, or "
            f"istar a target, as in istar:target=0.75x. Received: {words}"
        )
    if "target" in options and options.get("strength", 0.0) < 0.0:
        raise argparse.ArgumentTypeError(
            f"with a target the strength is at least 0. Received: {words}"
        )
    return options


def spell(method: Method) -> str:
    """The shortest text that `parse_method` makes a method from."""
    words = []
    given = {}
    if method.target is not None:
        given["target"] = method.target
        target = spell_target(method.target, method.relative)
        words.append(f"target={target}")
    elif method.strength is not None:
        given["strength"] = method.strength
        words.append(f"{method.strength:.10g}")
    defaults = Method.make(method.regularizer, **given)
    words += [
        _shown(name, value)
        for name in _OPTIONS
        if (value := getattr(method, name))
        not in (None, getattr(defaults, name))
    ]
    return ":".join(filter(None, [method.regularizer, ",".join(words)]))


def is_plain(method: Method) -> bool:
    """Whether a method is I-STAR with all defaults but the strength."""
    return method == Method.make("istar", strength=method.strength)


def parse_target(text: str) -> tuple[float | tuple[float, float], bool]:
    """A target, and whether it is in multiples of the IsoScore at the start.

    Args:
        text: `0.3`; an interval, `0.1..0.3`; in multiples `0.5x`, `0.5..1x`.

    Raises:
        argparse.ArgumentTypeError: If the text is none of these.
    """
    numbers = text.removesuffix("x")
    is_relative = numbers != text
    bounds = [command_line.real(number) for number in numbers.split("..")]
    low, high = bounds[0], bounds[-1]
    is_right = len(bounds) <= 2 and 0.0 <= low <= high
    if not is_right or (high > 1.0 and not is_relative):
        raise argparse.ArgumentTypeError(
            "a target is an IsoScore from 0 to 1, as 0.3, or an interval, as "
            "0.1..0.3, or multiples of the IsoScore at the start, as 0.5x or "
            f"0.5..1x. Received: {text!r}"
        )
    return (low if low == high else (low, high)), is_relative


def spell_target(target: float | tuple[float, float], is_relative: bool) -> str:
    """The text that `parse_target` makes a target from."""
    bounds = target if isinstance(target, tuple) else (target,)
    return "..".join(f"{x:.10g}" for x in bounds) + "x" * is_relative


def _layers(text):
    return tuple(command_line.index_or_name(item) for item in text.split("+"))


def _refresh(text):
    is_word = text in (REFRESH_EPOCH, REFRESH_NEVER)
    return text if is_word else command_line.positive_int(text)


def one_of(*texts: str) -> Callable[[str], str]:
    """Function that checks that an option is one of these."""

    def check(text):
        if text not in texts:
            raise argparse.ArgumentTypeError(
                f"must be {' or '.join(texts)}. Received: {text!r}"
            )
        return text

    return check


def flag(text: str) -> bool:
    """True, of an option that is its name alone."""
    if text:
        raise argparse.ArgumentTypeError(
            f"this option has no value, as in istar:-1,per_layer. Received: "
            f"{text!r}"
        )
    return True


_OPTIONS = {
    "target": parse_target,
    "strength": lambda text: command_line.real(text) + 0.0,  # No -0.
    "shrinkage": command_line.fraction,
    "per_layer": flag,
    "layers": _layers,
    "momentum": command_line.open_fraction,
    "refresh": _refresh,
    "padding": one_of(SKIP_PADDING, COUNT_PADDING),
}


def _shown(name, value):
    if value is True:
        return name
    if isinstance(value, tuple):
        return f"{name}={'+'.join(map(str, value))}"
    return f"{name}=" + (
        f"{value:.10g}" if isinstance(value, float) else str(value)
    )


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
