"""Picture of scores against the number of samples."""

import matplotlib
import numpy as np
import pandas
import stability_curves
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from stability_spaces import Space

_INCHES = (7.09, 2.9)  # 180 mm: two columns of a journal page.
_ORANGE = "#D55E00"  # Okabe and Ito, "Color Universal Design", 2008.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def draw(results: list[tuple[Space, pandas.DataFrame]]) -> Figure:
    """A panel for each space.

    Args:
        results: Spaces and what `stability_curves.measure` found there.

    Returns:
        Matplotlib figure. Lines are medians, bands reach from quartile to
        quartile.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_INCHES, dpi=200, layout="constrained")
        panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
        for axes, (space, scores) in zip(panels, results, strict=True):
            _draw_space(axes, space, scores)
        panels[0].set_ylabel("score")
        panels[0].set_ylim(0, 1.2 * max(space.score for space, _ in results))
        lines, names = panels[0].get_legend_handles_labels()
        figure.legend(
            lines[::-1],  # From top to bottom as in the panels.
            names[::-1],
            loc="outside right center",
            labelspacing=0.8,
        )
    return figure


def _draw_space(axes, space, scores):
    middle, low, high = (
        stability_curves.quantile(scores, share) for share in (0.5, 0.25, 0.75)
    )
    blues = matplotlib.colormaps["Blues"](
        np.linspace(0.45, 1.0, len(scores.columns) - 1)
    )
    for name, color, marker in zip(
        scores.columns, [_ORANGE, *blues], _MARKERS, strict=False
    ):
        sizes = middle.index
        axes.fill_between(
            sizes, low[name], high[name], color=color, alpha=0.25, lw=0
        )
        label = name if name == "IsoScore" else f"IsoScore*, {name}"
        axes.plot(
            sizes,
            middle[name],
            color=color,
            marker=marker,
            label=label,
            lw=1.2,
            ms=3.5,
        )
    _mark(axes, space)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    ticks = list(middle.index)[-1::-2]  # Among them `dim`.
    axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
    axes.set_title(space.name)
    axes.set_xlabel("number of points n")


def _mark(axes, space):
    """Marks the score to be found, and where n is the dimension."""
    axes.axhline(space.score, color="black", lw=0.9, ls=(0, (4, 2)))
    axes.annotate(
        f"{space.score_name}: {space.score:.3f}",
        (0, space.score),
        xycoords=("axes fraction", "data"),
        xytext=(3, 3),
        textcoords="offset points",
    )
    axes.axvline(space.dim, color="black", lw=0.7, ls=(0, (1, 2)))
    axes.annotate(
        "n = d",
        (space.dim, 0),
        xycoords=("data", "axes fraction"),
        xytext=(3, 3),
        textcoords="offset points",
    )
