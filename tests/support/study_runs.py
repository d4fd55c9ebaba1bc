"""Runs of the study, as its options ask for them."""

from pathlib import Path

from study import __main__ as program
from study import grid
from study.options import Options

EXAMPLES = Path(program.__file__).parents[1]
METHODS = ("none", "istar:-1", "istar:1,shrinkage=0.8", "cosreg:1", "isobn")


def make_runs(**options):
    if "regularizers" in options:
        methods = map(grid.parse_method, options["regularizers"])
        options["regularizers"] = tuple(methods)
    return Options(output="x", **options).runs
