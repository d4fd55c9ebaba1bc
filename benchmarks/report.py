"""Results as rows, a Markdown table and JSON."""

import json
import pathlib
from typing import NamedTuple

from benchmarks.timing import Ratio
from benchmarks.timing import Seconds
from benchmarks.timing import compare
from benchmarks.timing import milliseconds

TITLES = {
    "train-step": "Train step",
    "penalty": "Penalty alone, forward and backward",
    "accuracy": "Accuracy of score and gradient",
    "memory": "Peak memory of a train step",
    "growth": "Growth of the penalty's cost",
    "callback": "Callback's pass, and inference",
    "sampling": "Error of a random subset of tokens",
    "counts": "Counts of the compiled programs",
    "gpu-programs": "Programs as compiled for an H200",
}
_COLUMNS = (
    "case | side | value | against | value of that | ratio (quartiles) | "
    "CPU ratio | rounds | target | "
).split(" | ")


class Row(NamedTuple):
    """One comparison.

    Attributes:
        case: Model, size and framework.
        side: The thing measured.
        value: Its median, in `unit`.
        unit: `"ms"`, `"MB"`, `"%"`, `"exponent"`, or empty for a number of
            things.
        against: What it is compared with, empty if nothing.
        reference: Median of that, in `unit`.
        ratio: `value / reference`, run by run.
        at_most: Target: the largest ratio that meets it.
        at_least: Target: the smallest ratio that meets it.
    """

    case: str
    side: str
    value: float
    unit: str = "ms"
    against: str = ""
    reference: float | None = None
    ratio: Ratio | None = None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def target(self) -> tuple[str, str]:
        """The target in words, and whether it is met; empty without one."""
        if self.at_most is not None:
            met = self.ratio.median <= self.at_most
            return f"≤ {self.at_most:g}", "met" if met else "missed"
        if self.at_least is not None:
            met = self.ratio.median >= self.at_least
            return f"≥ {self.at_least:g}", "met" if met else "missed"
        return "", ""


def timing_row(
    case: str,
    sides: dict[str, list[Seconds]],
    side: str,
    against: str,
    **target: float | None,
) -> Row:
    """Compares two of the `sides` that `alternate` has timed."""
    values = milliseconds(sides[side]), milliseconds(sides[against])
    ratio = compare(sides[side], sides[against])
    return Row(case, side, values[0], "ms", against, values[1], ratio, **target)


def number_row(
    case: str,
    values: dict[str, float],
    side: str,
    against: str,
    unit: str = "",
    **target: float | None,
) -> Row:
    """Compares two of the `values`, each measured once."""
    value, reference = values[side], values[against]
    ratio = Ratio(*[value / reference] * 4, rounds=1)
    return Row(case, side, value, unit, against, reference, ratio, **target)


def said(rows: list[Row]) -> list[Row]:
    """Prints rows as soon as they are there, and returns them."""
    for row in rows:
        print(_line(_cells(row)), flush=True)
    return rows


def read(path: pathlib.Path) -> tuple[dict, dict[str, list[Row]]]:
    """Returns machine and sections that `write` has written."""
    record = json.loads(path.read_text())
    sections = {}
    for name, rows in record["sections"].items():
        for row in rows:
            row["ratio"] = row["ratio"] and Ratio(**row["ratio"])
        sections[name] = [
            Row(**{field: row[field] for field in Row._fields}) for row in rows
        ]
    return record["machine"], sections


def write(
    path: pathlib.Path, machine: dict, sections: dict[str, list[Row]]
) -> str:
    """Writes a JSON file, and beside it the Markdown that is returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine, "sections": {}}
    for name, rows in sections.items():
        record["sections"][name] = [
            row._asdict()
            | {
                "ratio": row.ratio and row.ratio._asdict(),
                "verdict": row.target[1],
            }
            for row in rows
        ]
    path.write_text(json.dumps(record, indent=2) + "\n")
    text = markdown(machine, sections)
    path.with_suffix(".md").write_text(text)
    return text


def markdown(machine: dict, sections: dict[str, list[Row]]) -> str:
    """Returns the whole report."""
    lines = [f"- {name}: {value}" for name, value in machine.items()]
    for name, title in TITLES.items():
        if name in sections:
            lines += ["", f"## {title}", "", _line(_COLUMNS)]
            lines.append(_line(["---"] * len(_COLUMNS)))
            lines += [_line(_cells(row)) for row in sections[name]]
    return "\n".join(lines) + "\n"


def _cells(row):
    ratio = cpu = rounds = reference = ""
    if row.reference is not None:
        reference = _quantity(row.reference, row.unit)
    if row.ratio is not None:
        ratio = f"**{row.ratio.median:.3f}**"
        if row.ratio.low != row.ratio.high:
            ratio += f" ({row.ratio.low:.3f} to {row.ratio.high:.3f})"
        if row.unit == "ms":
            cpu, rounds = f"{row.ratio.cpu:.3f}", str(row.ratio.rounds)
    value = _quantity(row.value, row.unit)
    names = (row.case, row.side, value, row.against, reference)
    return (*names, ratio, cpu, rounds, *row.target)


def _quantity(value, unit):
    digits = ",.0f" if value >= 1000 or not unit else ".3g"
    return f"{value:{digits}} {unit}".rstrip()


def _line(cells):
    return "| " + " | ".join(cells) + " |"
