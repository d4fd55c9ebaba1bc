"""Methods: the terms that runs add to the loss, and their texts.

A method is written as in `python examples/study`: `none`, `istar:-0.1`,
`istar:target=0.3,strength=100`, `istar:target=0.1..0.3`, `istar:target=0.5x`.
The stable estimate is always a moving average, of `momentum=0.9` unless given.
Options are `seeds`, the number of runs; `per_layer`; and `centered`, which
subtracts the mean of each layer in the union. A target has three more:
`error=batch` measures the distance to it by the score of the batch instead of
the moving average; `at=inference` scales the score by the ratio, at the start,
of the scores without and with dropout; `ramp` is the part of the steps in which
the target moves from the start to its value.
"""

import argparse
import dataclasses
from typing import Any
from typing import NamedTuple

from finetuning import command_line
from finetuning.settings import TARGET_DEFAULTS
from study import grid


@dataclasses.dataclass(frozen=True)
class Method:
    """A term to add to the loss, see the docstring of this file.

    Attributes:
        strength: Factor of the term.
        low: Lower end of the target, None for the plain term.
        high: Upper end of the target.
        is_relative: Whether the target is in units of the score at the start.
        of: `"union"`, `"centered"` or `"layers"`.
        error: `"batch"` or `"running"`.
        at: `"dropout"` or `"inference"`.
        ramp: Part of the steps in which the target moves to its value.
        momentum: Of the moving average that keeps Σ_S.
        seeds: Number of runs.
    """

    strength: float = 0.0
    low: float | None = None
    high: float | None = None
    is_relative: bool = False
    of: str = "union"
    error: str = "running"
    at: str = "dropout"
    ramp: float = 0.0
    momentum: float = 0.9
    seeds: int = 1

    def __str__(self):
        others = ["momentum"]
        options: dict[str, Any] = {"strength": self.strength}
        if self.low is not None:
            target = (self.low, self.high) if self.low < self.high else self.low
            options = {"target": grid.spell_target(target, self.is_relative)}
            if self.strength != _HELD.strength:
                options["strength"] = self.strength
            others = ["error", "at", "ramp", "momentum"]
        elif not self.strength:
            return "none"
        options |= {flag: True for flag, of in _FLAGS.items() if of == self.of}
        for name in others:
            if (value := getattr(self, name)) != getattr(_HELD, name):
                options[name] = value
        return grid.spell_options("istar", options)


_HELD = Method(TARGET_DEFAULTS["strength"])
# Clouds that a method acts on, by its option.
_FLAGS = {"per_layer": "layers", "centered": "centered"}
_SEEDS = {"seeds": command_line.positive_int}
_OPTIONS = {
    **_SEEDS,
    "target": grid.parse_target,
    "strength": command_line.real,
    **dict.fromkeys(_FLAGS, grid.flag),
    "error": grid.one_of("batch", "running"),
    "at": grid.one_of("dropout", "inference"),
    "ramp": command_line.fraction,
    "momentum": command_line.open_fraction,
}


def parse_method(text: str) -> Method:
    """Reads a method from its text, see the docstring of this file.

    Raises:
        argparse.ArgumentTypeError: If the text is not a method.
    """
    known = {"none": _SEEDS, "istar": _OPTIONS}
    _, options = grid.parse_options(text, known)
    flags = [name for name in _FLAGS if options.pop(name, False)]
    if len(flags) > 1:
        raise argparse.ArgumentTypeError(
            f"must be {' or '.join(_FLAGS)}, not both. Received: {text!r}"
        )
    if flags:
        options["of"] = _FLAGS[flags[0]]
    if "target" in options:
        target, options["is_relative"] = options.pop("target")
        bounds = target if isinstance(target, tuple) else (target, target)
        options["low"], options["high"] = bounds
        options.setdefault("strength", _HELD.strength)
    return Method(**options)


class Run(NamedTuple):
    """A line of the results: a method and a seed."""

    method: Method
    seed: int
