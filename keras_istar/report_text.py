"""A report as text: its table, and what the reader has to know."""

import math
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from keras_istar.measures import OUTLIER_RULE

if TYPE_CHECKING:
    from keras_istar.report import IsotropyReport

HEADINGS = {
    "isoscore": "IsoScore",
    "isoscore_star": "IsoScore*",
    "participation_ratio": "part.ratio",
    "effective_rank": "eff.rank",
    "average_cosine": "cosine",
    "partition_isotropy": "partition",
    "top_1_variance": "top 1",
    "top_3_variance": "top 3",
    "top_10_variance": "top 10",
    "outliers": "outliers",
    "mean_norm": "norm",
    "twonn_dimension": "TwoNN",
}

_SAMPLED = {"partition_points": "partition", "twonn_points": "TwoNN"}
_MOST_OUTLIERS = 8  # Named for each layer; `to_frame` has all.
_WIDTH = 79


def text(report: "IsotropyReport") -> str:
    """What `print` shows of a report."""
    lines = [f"Isotropy of {report.model!r}, {report.dim} dimensions", ""]
    lines += [*_table(report.rows), ""]
    for sentence in [*_explanations(report), *report.notes]:
        lines += textwrap.wrap(sentence, _WIDTH, subsequent_indent="  ")
    return "\n".join(lines).rstrip()


def _table(rows):
    """Lines of text, columns aligned."""
    columns = [name for name in HEADINGS if name in rows[0].values]
    cells = [["layer", "points", *(HEADINGS[name] for name in columns)]]
    for row in rows:
        numbers = [_shown(name, row.values[name]) for name in columns]
        cells.append([row.layer, f"{row.points:,}", *numbers])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
        )
        for line in cells
    ]


def _shown(name, value):
    if math.isnan(value):
        return "-"
    if name == "outliers":
        return f"{value:.0f}"
    if name in ("participation_ratio", "effective_rank", "twonn_dimension"):
        return f"{value:.1f}"
    if name == "mean_norm":
        return f"{value:.3g}"
    return f"{value:.3f}" if value >= 5e-4 or value <= 0 else f"{value:.0e}"


def _explanations(report) -> Iterator[str]:
    if any("isoscore_star" in row.values for row in report.rows):
        yield (
            f"IsoScore*: shrinkage {report.shrinkage:g} towards "
            f"{report.shrinkage_target}."
        )
    for column, name in _SAMPLED.items():
        sizes = [r.values[column] for r in report.rows if column in r.values]
        if sizes:
            yield f"{name}: from a sample of {_range(sizes)} points."
    outliers = [
        f"{row.layer} {_listed(row.outlier_dimensions)}"
        for row in report.rows
        if row.outlier_dimensions
    ]
    if outliers:
        yield (
            f"Outliers: dimensions with over {OUTLIER_RULE:g} times the "
            f"average variance: {'; '.join(outliers)}."
        )


def _range(sizes):
    low, high = min(sizes), max(sizes)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _listed(dimensions):
    shown = ", ".join(map(str, dimensions[:_MOST_OUTLIERS]))
    more = len(dimensions) - _MOST_OUTLIERS
    return f"{shown} and {more} more" if more > 0 else shown
