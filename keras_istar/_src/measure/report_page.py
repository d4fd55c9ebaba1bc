"""The HTML page of a report: one file that needs no other file or network."""

import base64
import dataclasses
import importlib.resources
import io
import math
from collections.abc import Iterable
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any
from typing import NamedTuple

from keras_istar._src.measure.measures import COLUMNS
from keras_istar._src.measure.measures import MEASURES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# An `IsotropyReport`, which imports this file.
_Report = Any
_TEMPLATE = "report_page.html"
_FEW_TOKENS = 10  # For each dimension; below, IsoScore is clearly too low.
_CAPTIONS = {
    "Isotropy": "Isotropy of each layer, and of all together (dashed).",
    "Spectrum": "Share of each principal direction in the variance, on a "
    "logarithmic scale. A flat line would be a sphere.",
    "Outlier dimensions": "Variance of the dimensions that stand out most, six "
    "at most, in multiples of the average. The dotted line is the limit, 5.",
}


class Table(NamedTuple):
    """A table of text.

    Attributes:
        caption: What it shows.
        headings: One for each column.
        rows: Cells, the name of the row first.
    """

    caption: str
    headings: list[str]
    rows: list[list[str]]


class Panel(NamedTuple):
    """A picture.

    Attributes:
        source: The picture as a data URI.
        alternative: Text for readers who do not see the picture.
        caption: How to read it.
    """

    source: str
    alternative: str
    caption: str


def render(reports: Sequence[_Report]) -> str:
    """The page as HTML.

    Args:
        reports: One report, or two to compare, before and after. Their `model`
            is what the page calls them.

    Raises:
        ImportError: If jinja2, pandas or matplotlib is not installed.
    """
    try:
        import jinja2
    except ImportError as e:
        raise ImportError(
            "The page of an `IsotropyReport` needs jinja2: "
            "`pip install keras-istar[report]`."
        ) from e
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    reports = _told_apart(reports)
    folder = importlib.resources.files("keras_istar._src.measure")
    template = folder.joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(template).render(
        reports=reports,
        summaries=[_summary(report) for report in reports],
        changes=_change(*reports) if len(reports) == 2 else [],
        difference=_difference(*reports) if len(reports) == 2 else None,
        tables=[_table(report) for report in reports],
        pictures=_pictures(reports),
        meanings=_meanings(reports[0]),
    )


def _told_apart(reports):
    """Reports with names that differ."""
    if len({report.model for report in reports}) == len(reports):
        return reports
    return [
        dataclasses.replace(report, model=f"{report.model} ({when})")
        for report, when in zip(reports, ("before", "after"), strict=True)
    ]


def _table(report: _Report) -> Table:
    """All measures of all layers and their union."""
    columns = _columns(report.rows[0].values)
    headings = ["Layer", "Tokens", *(COLUMNS[c].title for c in columns)]
    rows = [
        [row.layer, f"{row.tokens:,}"]
        + [number(c, row.values[c]) for c in columns]
        for row in report.rows
    ]
    return Table(f"Isotropy of {report.model}", headings, rows)


def _difference(before: _Report, after: _Report) -> Table:
    """Measures of `after` minus those of `before`, in layers that both have."""
    frame = before.compare(after)
    columns = _columns(frame.columns)
    rows = [
        [layer] + [number(c, values[c], signed=True) for c in columns]
        for layer, values in frame.iterrows()
    ]
    return Table(
        f"Difference: {after.model} minus {before.model}",
        ["Layer", *(COLUMNS[c].title for c in columns)],
        rows,
    )


def _pictures(reports: Sequence[_Report]) -> list[list[Panel]]:
    """For each report the panels of its figure, on common scales."""
    figures = [report.plot() for report in reports]
    share_scales(figures)
    return [
        _panels(figure, report)
        for figure, report in zip(figures, reports, strict=True)
    ]


def share_scales(figures: list["Figure"]) -> None:
    """Gives the panels at one place of all figures the same vertical scale."""
    for panels in zip(*(figure.axes for figure in figures), strict=True):
        lows, highs = zip(*(axes.get_ylim() for axes in panels), strict=True)
        for axes in panels:
            axes.set_ylim(min(lows), max(highs))


def _columns(available: Iterable[Any]) -> list[str]:
    names = set(available)
    return [column for column in COLUMNS if column in names]


def _panels(figure, report):
    """The panels of a figure, one by one, all of one size."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # The layout is done.
    boxes = [
        axes.get_tightbbox().transformed(figure.dpi_scale_trans.inverted())
        for axes in figure.axes
    ]
    width = max(box.width for box in boxes) + 0.06
    height = figure.get_figheight()
    panels = []
    for axes, box in zip(figure.axes, boxes, strict=True):
        for other in figure.axes:
            other.set_visible(other is axes)
        left = (box.x0 + box.x1 - width) / 2
        frame = Bbox.from_bounds(left, 0, width, height)
        title = axes.get_title()
        panels.append(
            Panel(
                _data_uri(figure, frame),
                f"{title} of {report.model}. {_alternative(title, report)}",
                _CAPTIONS[title],
            )
        )
    return panels


def _data_uri(figure, frame):
    import matplotlib

    buffer = io.BytesIO()
    # The same figures give the same page.
    with matplotlib.rc_context({"svg.hashsalt": "keras_istar"}):
        figure.savefig(
            buffer,
            format="svg",
            bbox_inches=frame,
            transparent=True,
            metadata={"Date": None},
        )
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/svg+xml;base64,{encoded}"


def _alternative(title, report):
    """Describes a panel in words, with its numbers if they are few."""
    if title == "Spectrum":
        return "Eigenvalues of the covariance, largest first, a line a layer."
    rows = report.rows
    if title == "Isotropy":
        if "isoscore" not in rows[0].values:
            return "Scores by layer."
        scores = (
            f"{r.layer} {number('isoscore', r.values['isoscore'])}"
            for r in rows
        )
        return f"IsoScore: {', '.join(scores)}."
    outliers = (
        f"{r.layer} {', '.join(map(str, r.outlier_dimensions)) or 'none'}"
        for r in rows[:-1]
    )
    return f"Outlier dimensions: {'; '.join(outliers)}."


def number(column: str, value: float, signed: bool = False) -> str:
    """Formats a number of a measure, with its sign if asked for."""
    if math.isnan(value):
        return "–"
    sign = "+" if signed else ""
    text = format(value, f"{sign}z{COLUMNS[column].format}")
    if float(text) == 0:
        # Three digits would show a small score as 0.
        is_score = COLUMNS[column].format == ".3f" and value != 0
        text = f"{value:{sign}.0e}" if is_score else text.lstrip("+")
    return text.replace("-", "−")


def _meanings(report: _Report) -> list[tuple[str, str]]:
    """Heading and meaning of every measure in the report."""
    values = report.rows[0].values
    facts = {
        "dim": report.dim,
        "shrinkage": report.shrinkage,
        "shrinkage_target": report.shrinkage_target,
    }
    return [
        (
            column.title,
            column.meaning.format(
                **facts, sample=_range(report, measure.sample_column)
            ),
        )
        for measure in MEASURES.values()
        for name, column in measure.columns.items()
        if name in values
    ]


def _summary(report: _Report) -> list[str]:
    """Summary of a report in sentences."""
    *layers, union = report.rows
    sentences = []
    if {"isoscore", "participation_ratio"} <= set(union.values):
        sentences.append(_spread(report, layers, union))
    if len(layers) > 1 and "isoscore" in union.values:
        sentences.append(_extremes(layers))
    sentences.append(_outliers(layers))
    if "average_cosine" in union.values:
        sentences.append(_cosine(layers[-1]))
    fewest = min(row.tokens for row in layers)
    if fewest < _FEW_TOKENS * report.dim:
        sentences.append(
            f"Take care: {fewest:,} tokens are few for {report.dim} "
            "dimensions, and IsoScore comes out too low. Measure more texts."
        )
    return sentences


def _spread(report, layers, union):
    who = (
        f"Taken together, the tokens of all {len(layers)} layers spread"
        if len(layers) > 1
        else f"The tokens of {layers[0].layer} spread"
    )
    return (
        f"{who} over their {report.dim} dimensions as a cloud would that "
        f"fills {union.values['participation_ratio']:.0f} of them evenly and "
        "the others not at all: IsoScore "
        f"{number('isoscore', union.values['isoscore'])}."
    )


def _change(before: _Report, after: _Report) -> list[str]:
    """Differences between two reports in sentences."""
    if any("isoscore" not in r.rows[-1].values for r in (before, after)):
        return [f"{after.model} beside {before.model}, which came before."]
    sentences = []
    old, new = (r.rows[-1].values["isoscore"] for r in (before, after))
    if number("isoscore", old) == number("isoscore", new):
        sentences.append(
            "All layers together are as isotropic in both: IsoScore "
            f"{number('isoscore', old)}."
        )
    else:
        verb, how = ("rises", "more") if new > old else ("falls", "less")
        sentences.append(
            f"IsoScore of all layers together {verb} from "
            f"{number('isoscore', old)} in {before.model} to "
            f"{number('isoscore', new)} in {after.model}, which is {how} "
            "isotropic."
        )
    changes = before.compare(after)["isoscore"].drop("union")
    if len(changes) > 1 and changes.abs().max() > 0:
        layer = changes.abs().idxmax()
        sentences.append(
            f"No layer changes more than {layer}: "
            f"{number('isoscore', changes[layer], signed=True)}."
        )
    return sentences


def _extremes(layers):
    by_score = sorted(layers, key=lambda row: row.values["isoscore"])
    (least, low), (most, high) = (
        (row.layer, number("isoscore", row.values["isoscore"]))
        for row in (by_score[0], by_score[-1])
    )
    return (
        f"The most isotropic layer is {most} ({high}), the least {least} "
        f"({low})."
    )


def _outliers(layers):
    outliers = sorted({d for row in layers for d in row.outlier_dimensions})
    if not outliers:
        return "No dimension stands out by its variance in any layer."
    shown = ", ".join(map(str, outliers[:8]))
    more = f" and {len(outliers) - 8} more" if len(outliers) > 8 else ""
    noun = "dimension" if len(outliers) == 1 else "dimensions"
    return (
        f"{len(outliers)} {noun} stand{'s' * (len(outliers) == 1)} out, with "
        f"over 5 times the average variance in at least one layer: "
        f"{shown}{more}."
    )


def _cosine(row):
    value = number("average_cosine", row.values["average_cosine"])
    return (
        "Two tokens drawn at random from the last layer measured, "
        f"{row.layer}, have cosine {value} on average."
    )


def _range(report, column):
    values = [row.values[column] for row in report.rows if column in row.values]
    if not values:
        return ""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
