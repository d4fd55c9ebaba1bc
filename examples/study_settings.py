"""Names of settings: what runs must agree on to be compared."""

import dataclasses
from collections.abc import Iterable

from study_grid import Recipe
from study_grid import Run

Setting = tuple[str, Recipe]


def setting(run: Run) -> Setting:
    """Task and recipe of a run."""
    return run.task, run.recipe


def names(runs: Iterable[Run]) -> dict[Setting, str]:
    """A name for each setting, no two the same.

    It holds the task, the number of training examples, and the fields of the
    recipe that differ between the runs of the task.
    """
    recipes = {}
    for run in runs:
        recipes.setdefault(run.task, {})[run.recipe] = None
    return {
        (task, recipe): _name(task, recipe, _differing(own))
        for task, own in recipes.items()
        for recipe in own
    }


def _differing(recipes):
    fields = [field.name for field in dataclasses.fields(Recipe)]
    return [
        name
        for name in fields
        if len({getattr(recipe, name) for recipe in recipes}) > 1
    ]


def _name(task, recipe, fields):
    parts = [task, f"{_shown(recipe.limit)} examples"]
    parts += [
        f"{name}={_shown(getattr(recipe, name))}"
        for name in fields
        if name != "limit"
    ]
    return ", ".join(parts)


def _shown(value):
    if value is None:
        return "all"
    return f"{value:,}" if isinstance(value, int) else str(value)
