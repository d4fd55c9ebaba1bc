"""Pictures of a study, a panel for each setting."""

import functools
import itertools
import math
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from finetuning.settings import SKIP_PADDING
from finetuning.settings import Method
from matplotlib import color_sequences
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from study.grid import Run
from study.grid import is_plain
from study.grid import order
from study.grid import settings
from study.grid import spell

Record = dict[str, Any]

# Blue and orange mean strengths, and gray no regularizer.
_, _, *_FREE, _GRAY, _YELLOW, _CYAN = color_sequences["tab10"]
_OTHER_COLORS = (*_FREE, _YELLOW, _CYAN, *color_sequences["tab20b"])
_MARKERS = "osD^vP*X"
_MOST_TICKS = 5
_MOST_COLUMNS = 3
_PANEL = 3.6  # Inches.
_MOST_LETTERS = 36  # In a line above a panel.
_MOST_LINES = 7  # More are drawn side by side: none hides another.
_OFFSET = 0.06  # Of such lines, in epochs or layers.


def draw(records: list[Record]) -> dict[str, Figure]:
    """The figures of a study by the name of their file.

    Args:
        records: Of runs that have not failed. A figure whose numbers no record
            has is left out: older versions wrote fewer of them.
    """
    runs = [Run.from_dict(record["run"]) for record in records]
    names = settings(runs)
    styles = _styles({run.method for run in runs})
    figures = {}
    for figure, (numbers, draw_panel) in _FIGURES.items():
        panels: dict[str, dict[str, list]] = {x: {} for x in names.values()}
        for run, record in zip(runs, records, strict=True):
            found = numbers(run.method, record)
            if found is not None:
                seeds = panels[names[run.task, run.recipe]]
                seeds.setdefault(spell(run.method), []).append(found)
        if any(panels.values()):
            figures[figure] = _draw_panels(panels, draw_panel, styles)
    return figures


def _draw_panels(panels, draw_panel, styles):
    columns = min(len(panels), _MOST_COLUMNS)
    rows = math.ceil(len(panels) / columns)
    # The legend is at the side.
    width = _PANEL * columns + 0.6 + 0.085 * max(map(len, styles))
    height = max(_PANEL * rows, 0.23 * len(styles))
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    handles = {}
    for axis, title in itertools.zip_longest(axes, panels):
        if title is None:
            axis.remove()
            continue
        for name, seeds in panels[title].items():
            draw_panel(axis, np.array(seeds, "float64"), name, styles)
        axis.set_title(textwrap.fill(title, _MOST_LETTERS))
        axis.spines[["top", "right"]].set_visible(False)
        lines, labels = axis.get_legend_handles_labels()
        handles.update(zip(labels, lines, strict=True))
    figure.legend(
        handles=[handles[name] for name in styles if name in handles],
        loc="outside right center",
        frameon=False,
    )
    return figure


def _draw_scores(axis, seeds, name, styles):
    """A point for every seed `(isoscore, score)`, and a larger one for all."""
    style = styles[name] | {"linestyle": ""}
    axis.plot(*seeds.T, alpha=0.35, **style)
    axis.plot(*seeds.mean(axis=0), markersize=11, label=name, **style)
    axis.xaxis.set_major_locator(MaxNLocator(_MOST_TICKS))
    axis.set_xlabel("IsoScore of all layers, after training")
    axis.set_ylabel("test score")


def _draw_curves(axis, seeds, name, styles, *, x, y, first):
    """The mean of the seeds, and a band of one standard deviation."""
    table = pd.DataFrame(seeds)
    mean, deviation = table.mean(), table.std().fillna(0.0)
    places = np.arange(first, first + len(mean))
    if len(styles) > _MOST_LINES:
        place = list(styles).index(name) - (len(styles) - 1) / 2
        places = places + _OFFSET * place
    style = styles[name]
    axis.plot(places, mean, label=name, **style)
    axis.fill_between(
        places,
        mean - deviation,
        mean + deviation,
        color=style["color"],
        alpha=0.15,
        linewidth=0,
    )
    # Without the last argument, one epoch has ticks at fractions of it.
    axis.xaxis.set_major_locator(
        MaxNLocator(_MOST_TICKS, integer=True, min_n_ticks=1)
    )
    axis.set_xlabel(x)
    axis.set_ylabel(y)


def _draw_means(axis, seeds, name, styles):
    """The size of the mean of every dimension, the largest first."""
    sizes = np.sort(np.abs(seeds.mean(axis=0)))[::-1]
    ranks = np.arange(1, len(sizes) + 1)
    # Markers at ranks 1, 2, 4, 8, evenly spaced on this axis.
    marked = [2**i - 1 for i in range(len(sizes).bit_length())]
    axis.plot(ranks, sizes, markevery=marked, label=name, **styles[name])
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set_xlabel("dimension of the last layer, by size")
    axis.set_ylabel("size of the mean activation")


def _score_and_isoscore(method, record):
    isoscore = record["isotropy"]["after"]["union"]["isoscore"]
    return isoscore, record["test"]["end"]["score"]


def _dimensions(states):
    if states is None:
        return None
    return [x["twonn_dimension"] for k, x in states.items() if k != "union"]


def _isoscores_by_epoch(method, record):
    """IsoScore of all layers after every epoch, None if not logged.

    The score before training is of test texts, which have other tokens, so it
    is not part of this curve. Neither are scores of some layers only, or of
    padding.
    """
    is_whole = method.regularizer != "istar" or (
        method.layers == ("all",) and method.padding == SKIP_PADDING
    )
    scores = [epoch.get("isoscore_union") for epoch in record["epochs"]]
    return scores if is_whole and None not in scores else None


_by_layer = functools.partial(_draw_curves, x="layer", first=0)
# What each figure shows of a run, None for nothing, and how.
_FIGURES: dict[str, tuple[Callable[[Method, Record], Any], Callable]] = {
    "score_by_isotropy": (_score_and_isoscore, _draw_scores),
    "dimension_by_layer": (
        lambda _, record: _dimensions(record["isotropy"]["after"]),
        functools.partial(_by_layer, y="TwoNN dimension, after training"),
    ),
    "isotropy_by_epoch": (
        _isoscores_by_epoch,
        functools.partial(
            _draw_curves, x="epoch", y="IsoScore of training tokens", first=1
        ),
    ),
    "first_token_dimension_by_layer": (
        lambda _, record: _dimensions(record.get("first_tokens")),
        functools.partial(_by_layer, y="TwoNN dimension of first tokens"),
    ),
    "mean_activation": (
        lambda _, record: record.get("mean_activation"),
        _draw_means,
    ),
}


def _styles(methods: set[Method]) -> dict[str, dict[str, Any]]:
    """Color and marker of every method by its name, in order.

    I-STAR with its defaults is orange for strengths below 0, black for 0 and
    blue above, the darker the stronger; without a regularizer it is gray.
    """
    ordered = sorted(methods, key=order)
    plain = [method for method in ordered if is_plain(method)]
    below = [method for method in plain if method.strength < 0]
    above = [method for method in reversed(plain) if method.strength > 0]
    none = Method.make("none")
    others = [x for x in ordered if x != none and not is_plain(x)]
    colors = {
        **dict.fromkeys(plain, "black"),
        none: _GRAY,
        **dict(zip(below, _shades("Oranges", len(below)), strict=True)),
        **dict(zip(above, _shades("Blues", len(above)), strict=True)),
        **dict(zip(others, itertools.cycle(_OTHER_COLORS), strict=False)),
    }
    markers = zip(ordered, itertools.cycle(_MARKERS), strict=False)
    return {
        spell(method): {"color": colors[method], "marker": marker}
        for method, marker in markers
    }


def _shades(colormap, count):
    return map(tuple, colormaps[colormap](np.linspace(0.9, 0.45, count)))
