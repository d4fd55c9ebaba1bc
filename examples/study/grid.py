"""Runs of the study, and the grid of them that is asked for.

A method is a text: `none`, `isobn`, `cosreg:1`, `istar:-1,shrinkage=0.8`, or
with a target `istar:target=0.3`, `istar:target=0.75x,strength=1`.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from finetuning import command_line
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

# Older lines lack these options, have their defaults, and keep their id.
_LATER = ("head_steps", "optimizer", "target", "relative", "per_layer")
_NAMES_IN_LINES = {"max_tokens": "max_points"}


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
        """All options, as a line of the result file holds them."""
        return {
            "task": self.task,
            "recipe": _as_dict(self.recipe),
            "seed": self.seed,
            "method": _as_dict(self.method),
        }

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> "Run":
        """The run whose options a line of the result file holds."""
        recipe, method = dict(options["recipe"]), dict(options["method"])
        for name, name_in_line in _NAMES_IN_LINES.items():
            recipe[name] = recipe.pop(name_in_line)
        for name in ("layers", "target"):
            if isinstance(method.get(name), list):
                method[name] = tuple(method[name])
        return cls(
            options["task"], Recipe(**recipe), options["seed"], Method(**method)
        )

    def __str__(self):
        return f"{self.task} {spell(self.method)} seed {self.seed}"


def _as_dict(settings):
    return {
        _NAMES_IN_LINES.get(field.name, field.name): value
        for field in dataclasses.fields(settings)
        if (value := getattr(settings, field.name)) != field.default
        or field.name not in _LATER
    }


def make_grid(
    tasks: Iterable[str],
    recipe: Recipe,
    seeds: Iterable[int],
    methods: Iterable[Method],
    sequence_length: int | None = None,
) -> list[Run]:
    """All runs of some tasks, seeds and methods, each once, in order.

    Tasks are named as by `parse_task`. Without a sequence length, texts are cut
    as their task has it. A method that does not fit a task is a `UserError`.
    """
    runs = set()
    for task, seed, method in itertools.product(tasks, seeds, methods):
        check_method(method, data_name(task))
        length = sequence_length or find_task(data_name(task)).sequence_length
        own = dataclasses.replace(recipe, sequence_length=length)
        runs.add(Run(task, own, seed, method))
    return sorted(runs, key=sort_key)


def sort_key(run: Run) -> tuple:
    """Order of runs in the result file: tasks, seeds, methods."""
    return run.task, run.seed, *order(run.method), json.dumps(run.as_dict())


def order(method: Method) -> tuple:
    """Order of methods in results and pictures: targets after strengths."""
    return (
        list(DEFAULTS).index(method.regularizer),
        method.target is not None,
        method.strength or 0.0,
        spell(method),
    )


def parse_task(name: str) -> str:
    """Name of a task in the results: `sst2` for `glue/sst2`, or a path."""
    find_task(data_name(name))
    return name.removeprefix("glue/") if name in TASKS else str(Path(name))


def data_name(task: str) -> str:
    """The name under which `data.load` knows a task."""
    return f"glue/{task}" if f"glue/{task}" in TASKS else task


def parse_method(text: str) -> Method:
    """Reads a method from its text; any other is an `ArgumentTypeError`."""
    regularizer, options = parse_options(
        text,
        {
            name: {k: x for k, x in _OPTIONS.items() if k in defaults}
            for name, defaults in DEFAULTS.items()
        },
    )
    if "target" in options:
        options["target"], options["relative"] = options["target"]
    if "refresh" in options and options.keys() & {"momentum", "target"}:
        raise argparse.ArgumentTypeError(
            "with momentum or a target nothing is refreshed: leave refresh "
            f"out. Received: {text!r}"
        )
    return Method.make(regularizer, **options)


def parse_options(
    text: str, known: dict[str, dict[str, Callable]]
) -> tuple[str, dict[str, Any]]:
    """Reads a regularizer and its options from the text of a method.

    Args:
        text: The name, and after a colon options as `name=value`, or as `name`
            alone if `flag` reads it; the first may be a strength.
        known: For each regularizer the function that reads each option.
    """
    regularizer, *words = text.replace(":", ",", 1).split(",")
    if regularizer not in known:
        raise argparse.ArgumentTypeError(
            f"must be one of {', '.join(known)}. Received: {text!r}"
        )
    readers = known[regularizer]
    is_named = words and ("=" in words[0] or words[0] in readers)
    if "strength" in readers and words and not is_named:
        words[0] = f"strength={words[0]}"
    options: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in readers or name in options:
            raise argparse.ArgumentTypeError(
                f"options of {regularizer} are {sorted(readers)}, each once, "
                f"as in istar:-1,shrinkage=0.8. Received: {word!r}"
            )
        options[name] = readers[name](value)
    if "strength" in readers and not options.keys() & {"strength", "target"}:
        raise argparse.ArgumentTypeError(
            f"{regularizer} needs a strength, as in istar:-1 or cosreg:1, or "
            f"istar a target, as in istar:target=0.75x. Received: {text!r}"
        )
    if "target" in options and options.get("strength", 0.0) < 0.0:
        raise argparse.ArgumentTypeError(
            f"with a target the strength is at least 0. Received: {text!r}"
        )
    return regularizer, options


def spell(method: Method) -> str:
    """The shortest text that `parse_method` makes a method from."""
    given: dict[str, Any] = {"strength": method.strength}
    if method.target is not None:
        given = {"target": method.target}
    defaults = Method.make(method.regularizer, **given)
    others = {
        name: value
        for name in _OPTIONS
        if (value := getattr(method, name)) != getattr(defaults, name)
    }
    if method.target is not None:
        given = {"target": spell_target(method.target, method.relative)}
    return spell_options(method.regularizer, given | others)


def spell_options(regularizer: str, options: dict[str, Any]) -> str:
    """The text that `parse_options` reads these options from.

    The target is given as text. An option that is None is left out.
    """
    words = []
    for name, value in options.items():
        if value is True:
            words.append(name)
        elif value is not None:
            words.append(f"{name}={_value_text(value)}")
    text = ",".join(words).removeprefix("strength=")
    return f"{regularizer}:{text}" if text else regularizer


def _value_text(value):
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def is_plain(method: Method) -> bool:
    """Whether a method is I-STAR with all defaults but the strength."""
    return method == Method.make("istar", strength=method.strength)


def parse_target(text: str) -> tuple[float | tuple[float, float], bool]:
    """A target, and whether it is in multiples of the IsoScore at the start.

    It is written `0.3`; as interval `0.1..0.3`; in multiples `0.5x`, `0.5..1x`.
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


def settings(runs: Iterable[Run]) -> dict[tuple[str, Recipe], str]:
    """A name for each task and recipe, which runs must share to be compared.

    No two are the same: a name holds the task, the number of training
    examples, and what else differs between the recipes of the task.
    """
    names = dict.fromkeys(((run.task, run.recipe) for run in runs), "")
    for task, recipe in names:
        others = [own for name, own in names if name == task]
        differing = [
            f"{field.name}={_setting_text(recipe, field.name)}"
            for field in dataclasses.fields(Recipe)
            if field.name != "limit"
            and len({getattr(own, field.name) for own in others}) > 1
        ]
        limit = f"{_setting_text(recipe, 'limit')} examples"
        names[task, recipe] = ", ".join([task, limit, *differing])
    return names


def _setting_text(recipe, name):
    value = getattr(recipe, name)
    return f"{value:,}" if isinstance(value, int) else str(value or "all")
