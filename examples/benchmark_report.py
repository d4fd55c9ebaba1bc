"""Results of the benchmark as rows, a Markdown table and JSON."""

from typing import NamedTuple

from benchmark_timing import Ratio
from benchmark_timing import Seconds
from benchmark_timing import compare
from benchmark_timing import milliseconds

_COLUMNS = (
    "case",
    "side",
    "value",
    "against",
    "value of that",
    "ratio (quartiles)",
    "CPU ratio",
    "rounds",
    "target",
    "",
)


class Row(NamedTuple):
    """One comparison.

    Attributes:
        case: Model, size and framework.
        side: What was measured.
        value: Its median, in `unit`.
        unit: `"ms"`, `"MB"`, `"%"` or `"exponent"`.
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
    def verdict(self) -> str:
        """`"met"`, `"missed"`, or empty without a target."""
        if self.at_most is None and self.at_least is None:
            return ""
        above = self.at_least is None or self.ratio.median >= self.at_least
        below = self.at_most is None or self.ratio.median <= self.at_most
        return "met" if above and below else "missed"

    @property
    def target(self) -> str:
        """The target in words."""
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return "" if self.at_least is None else f"≥ {self.at_least:g}"


def timing_row(
    case: str,
    sides: dict[str, list[Seconds]],
    side: str,
    against: str,
    scale: float = 1.0,
    **target: float,
) -> Row:
    """Compares two of the `sides` that `alternate` has timed."""
    return Row(
        case,
        side,
        milliseconds(sides[side]),
        "ms",
        against,
        scale * milliseconds(sides[against]),
        compare(sides[side], sides[against], scale),
        **target,
    )


def memory_row(
    case: str,
    peaks: dict[str, float],
    side: str,
    against: str,
    **target: float,
) -> Row:
    """Compares two peaks in bytes."""
    ratio = peaks[side] / peaks[against]
    return Row(
        case,
        side,
        peaks[side] / 1e6,
        "MB",
        against,
        peaks[against] / 1e6,
        Ratio.of_one(ratio),
        **target,
    )


def as_dict(row: Row) -> dict:
    """`row` as JSON has it."""
    ratio = None if row.ratio is None else row.ratio._asdict()
    return row._asdict() | {"ratio": ratio, "verdict": row.verdict}


def from_dict(record: dict) -> Row:
    """Undoes `as_dict`."""
    fields = {name: record[name] for name in Row._fields}
    if fields["ratio"] is not None:
        fields["ratio"] = Ratio(**fields["ratio"])
    return Row(**fields)


def markdown(machine: dict, sections: dict[str, list[Row]]) -> str:
    """The whole report."""
    lines = [f"- {name}: {value}" for name, value in machine.items()]
    for title, rows in sections.items():
        lines += ["", f"## {title}", "", _line(_COLUMNS)]
        lines.append(_line(["---"] * len(_COLUMNS)))
        lines += [_line(_cells(row)) for row in rows]
    return "\n".join(lines) + "\n"


def _cells(row):
    if row.ratio is None:
        ratio = cpu = rounds = ""
    else:
        ratio = f"**{row.ratio.median:.3f}**"
        if row.ratio.low != row.ratio.high:
            ratio += f" ({row.ratio.low:.3f} to {row.ratio.high:.3f})"
        cpu = f"{row.ratio.cpu:.3f}" if row.unit == "ms" else ""
        rounds = str(row.ratio.rounds) if row.unit == "ms" else ""
    reference = ""
    if row.reference is not None:
        reference = f"{_number(row.reference)} {row.unit}"
    return (
        row.case,
        row.side,
        f"{_number(row.value)} {row.unit}",
        row.against,
        reference,
        ratio,
        cpu,
        rounds,
        row.target,
        row.verdict,
    )


def _number(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _line(cells):
    return "| " + " | ".join(cells) + " |"
