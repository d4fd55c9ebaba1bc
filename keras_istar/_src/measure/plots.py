"""Figures of a report."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from keras_istar._src.measure import measures
from keras_istar._src.measure.layer_isotropy import LayerIsotropy
from keras_istar._src.measure.measures import OUTLIER_RULE

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

_INCHES = (7.09, 2.5)  # 180 mm: two columns of a journal page.
# The size of a TensorBoard card in a window that is 1,400 pixels wide.
# In floats, 10.2 * 100 is below 1020, and some versions of Matplotlib cut it.
_CARD_INCHES, _CARD_DPI = (math.nextafter(10.2, 11.0), 2.2), 100

# Okabe and Ito, "Color Universal Design", 2008.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_GREY, _PALE = "#8C8C8C", "#E3E3E3"

_STYLE: dict[Any, Any] = {
    "font.size": 7,
    "axes.titlesize": 8,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.title_fontsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # Text stays text, as publishers ask.
}

_DASHED = (0, (4, 2))
_LEGEND: dict[str, Any] = {
    "frameon": False,
    "handlelength": 1.8,
    "columnspacing": 1.0,
}
# For six lines, in one row or in two.
_LOW = {**_LEGEND, "ncols": 6, "handlelength": 1.2, "columnspacing": 0.7}
_HIGH = {**_LEGEND, "ncols": 3}

_LOWEST_RATIO = 1e-3  # Of a drawn variance to the average.

_SCORES = {"isoscore": "IsoScore", "isoscore_star": "IsoScore*"}


def report_figure(
    rows: Sequence[LayerIsotropy], for_card: bool = False
) -> "matplotlib.figure.Figure":
    """Three panels: isotropy, spectrum and outlier dimensions, by layer.

    Args:
        rows: One for each state, then one for their union.
        for_card: Whether the figure is wide and low, for TensorBoard.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError(
            "`IsotropyReport.plot` needs matplotlib: "
            "`pip install keras-istar[report]`."
        ) from e
    with matplotlib.rc_context(_STYLE):
        figure = Figure(
            figsize=_CARD_INCHES if for_card else _INCHES,
            dpi=_CARD_DPI if for_card else 200,
            layout="constrained",
        )
        scores, spectra, outliers = figure.subplots(1, 3)
        _draw_scores(scores, rows)
        _draw_spectra(spectra, rows)
        _draw_outliers(outliers, rows, legend=_LOW if for_card else _HIGH)
    return figure


def report_image(rows: Sequence[LayerIsotropy]) -> np.ndarray:
    """The figure for a TensorBoard card as RGB bytes, `(220, 1020, 3)`."""
    figure = report_figure(rows, for_card=True)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _draw_scores(axes, rows):
    *layers, union = rows
    columns = [name for name in _SCORES if name in union.values]
    for column, color, marker in zip(columns, _COLORS, _MARKERS, strict=False):
        values = [row.values[column] for row in layers]
        _draw_line(axes, values, color, marker, label=_SCORES[column])
        axes.axhline(union.values[column], color=color, lw=0.8, ls=_DASHED)
    axes.plot([], [], color=_GREY, lw=0.8, ls=_DASHED, label="union")
    axes.set_title("Isotropy")
    axes.set_ylabel("score")
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    axes.legend(**_LEGEND)
    _name_layers(axes, layers)


def _draw_spectra(axes, rows):
    import matplotlib

    *layers, union = rows
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    for place, (row, color) in enumerate(zip(layers, colors, strict=True)):
        is_end = place in (0, len(layers) - 1)
        label = row.layer if is_end else None
        axes.plot(*_shares(row.spectrum), color=color, lw=0.9, label=label)
    axes.plot(
        *_shares(union.spectrum),
        color="black",
        lw=0.8,
        ls=_DASHED,
        label="union",
    )
    axes.set_yscale("log")
    axes.set_title("Spectrum")
    axes.set_xlabel("principal direction")
    axes.set_ylabel("share of variance")
    axes.legend(**_LEGEND)


def _draw_outliers(axes, rows, legend):
    *layers, _ = rows
    places = np.arange(len(layers))
    ratios = np.array([_variance_ratios(row) for row in layers])
    low, high = np.quantile(ratios, [0.05, 0.95], axis=1)
    outliers = _widest_outliers(layers, ratios)
    drawn = ratios[:, outliers[: len(_COLORS)]]
    lowest = min(np.min(low), np.min(drawn, initial=np.inf))
    floor = np.clip(lowest / 2, _LOWEST_RATIO, 0.1)
    low, high = np.maximum(low, floor), np.maximum(high, floor)
    axes.fill_between(places, low, high, color=_PALE, lw=0)
    middle = np.sqrt(low[0] * high[0])
    axes.text(0, middle, " middle 90%", color=_GREY, va="center", fontsize=6.5)
    axes.axhline(OUTLIER_RULE, color="black", lw=0.8, ls=(0, (1, 1.5)))
    # Lines to lower values, even to 0, leave the panel.
    ratios = np.maximum(ratios, _LOWEST_RATIO / 10)
    for dimension, color, marker in zip(
        outliers, _COLORS, _MARKERS, strict=False
    ):
        _draw_line(
            axes, ratios[:, dimension], color, marker, label=str(dimension)
        )
    axes.set_yscale("log")
    peak = max(np.max(ratios), OUTLIER_RULE)
    # Leaves more than a quarter of the height to the legend.
    axes.set_ylim(floor, peak * (peak / floor) ** 0.4)
    axes.set_title("Outlier dimensions")
    axes.set_ylabel("variance / average variance")
    if outliers:
        title = "dimension"
        if len(outliers) > len(_COLORS):
            title = f"the widest {len(_COLORS)} of {len(outliers)} dimensions"
        axes.legend(loc="upper center", title=title, **legend)
    _name_layers(axes, layers)


def _draw_line(axes, values, color, marker, label):
    axes.plot(values, color=color, marker=marker, label=label, lw=1, ms=3.5)


def _variance_ratios(row):
    variances = np.asarray(row.variances)
    average = np.mean(variances)
    return variances / average if average > 0 else np.ones_like(variances)


def _widest_outliers(layers, ratios):
    """Dimensions that are outliers in any layer, the widest first."""
    outliers = {d for row in layers for d in row.outlier_dimensions}
    return sorted(outliers, key=lambda d: (-np.max(ratios[:, d]), d))


def _shares(spectrum):
    """Ranks from 1, and the eigenvalues above rounding as shares."""
    values = measures.above_rounding(spectrum)
    return np.arange(1, len(values) + 1), values / np.sum(values)


def _name_layers(axes, layers):
    names = [row.layer for row in layers]
    numbers = [name.removeprefix("layer_") for name in names]
    are_blocks = all(n.isdigit() for n in numbers)
    step = -(-len(names) // 12)
    axes.set_xticks(
        range(0, len(names), step), (numbers if are_blocks else names)[::step]
    )
    if are_blocks:
        axes.set_xlabel("layer")
    else:
        axes.tick_params(axis="x", rotation=30)
    axes.set_xlim(-0.5, len(names) - 0.5)
