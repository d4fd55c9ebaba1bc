"""Reports of isotropy as one HTML page that needs no other file."""

import base64
import io
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jinja2
import matplotlib
import report_words
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from report_words import WORDINGS

import keras_istar
from keras_istar import IsotropyReport

_TEMPLATE = "report_page.html"
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
        source: Data URI with all of it.
        alternative: What it shows, for those who do not see it.
        caption: How to read it.
    """

    source: str
    alternative: str
    caption: str


def render(
    reports: list[IsotropyReport], texts: str, sequence_length: int
) -> bytes:
    """The page.

    Args:
        reports: One report, or two to compare, before and after. Their `model`
            is what the page calls them.
        texts: What was measured on, in words.
        sequence_length: Tokens to which texts were cut.

    Returns:
        HTML in UTF-8.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(_TEMPLATE).render(
        reports=reports,
        texts=texts,
        sequence_length=sequence_length,
        summaries=[report_words.summary(report) for report in reports],
        changes=report_words.change(*reports) if len(reports) == 2 else [],
        difference=difference(*reports) if len(reports) == 2 else None,
        tables=[table(report) for report in reports],
        pictures=pictures(reports),
        meanings=report_words.meanings(reports[0]),
        version=keras_istar.__version__,
    )
    # A file name may hold bytes that are no text.
    return page.encode("utf-8", "replace")


def table(report: IsotropyReport) -> Table:
    """All measures of all layers and their union."""
    columns = _columns(report.rows[0].values)
    headings = ["Layer", "Tokens", *(WORDINGS[c].heading for c in columns)]
    rows = [
        [row.layer, f"{row.points:,}"]
        + [report_words.number(c, row.values[c]) for c in columns]
        for row in report.rows
    ]
    return Table(f"Isotropy of {report.model}", headings, rows)


def difference(before: IsotropyReport, after: IsotropyReport) -> Table:
    """What `after` has more than `before`, in layers that both have."""
    frame = before.compare(after)
    columns = _columns(frame.columns)
    rows = [
        [layer]
        + [report_words.number(c, values[c], signed=True) for c in columns]
        for layer, values in frame.iterrows()
    ]
    return Table(
        f"Difference: {after.model} minus {before.model}",
        ["Layer", *(WORDINGS[c].heading for c in columns)],
        rows,
    )


def pictures(reports: list[IsotropyReport]) -> list[list[Panel]]:
    """For each report the panels of its figure, on scales that all share."""
    figures = [report.plot() for report in reports]
    share_scales(figures)
    return [
        _panels(figure, report)
        for figure, report in zip(figures, reports, strict=True)
    ]


def share_scales(figures: list[Figure]) -> None:
    """Gives each panel the vertical scale of its like in all figures."""
    for panels in zip(*(figure.axes for figure in figures), strict=True):
        lows, highs = zip(*(axes.get_ylim() for axes in panels), strict=True)
        for axes in panels:
            axes.set_ylim(min(lows), max(highs))


def _columns(available: Any) -> list[str]:
    return [column for column in WORDINGS if column in available]


def _panels(figure, report):
    """The panels of a figure, one by one, all of one size."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # It has found the places.
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
    """What a panel shows, with the numbers if they are few."""
    if title == "Spectrum":
        return "Eigenvalues of the covariance, largest first, a line a layer."
    rows = report.rows
    if title == "Isotropy":
        scores = (
            f"{r.layer} {report_words.number('isoscore', r.values['isoscore'])}"
            for r in rows
        )
        return f"IsoScore: {', '.join(scores)}."
    outliers = (
        f"{r.layer} {', '.join(map(str, r.outlier_dimensions)) or 'none'}"
        for r in rows[:-1]
    )
    return f"Outlier dimensions: {'; '.join(outliers)}."
