"""Pictures of a study, a panel for each setting."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from finetuning.settings import SKIP_PADDING
from finetuning.settings import Method
from matplotlib import color_sequences
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
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
_BLACK = (0.0, 0.0, 0.0)
_MARKERS = "osD^vP*X"
_MOST_TICKS = 5
_MOST_COLUMNS = 3
_PANEL = 3.6  # Inches.
_MOST_LINES = 7  # More are drawn side by side: none hides another.
_OFFSET = 0.06  # Of such lines, in epochs or layers.


def draw(records: list[Record]) -> dict[str, Figure]:
    """The figures of a study by the name of their file.

    Args:
        records: Of runs that have not failed. Those that an older version has
            written lack the figures of first tokens and of mean activations;
            without any that has them, no picture is made of these.
    """
    drawn = {
        "score_by_isotropy": _panels(records, _score_by_isotropy),
        "dimension_by_layer": _panels(records, _dimension_by_layer),
        "isotropy_by_epoch": _panels(records, _isotropy_by_epoch),
    }
    if any("first_tokens" in record for record in records):
        drawn["first_token_dimension_by_layer"] = _panels(
            records, _first_token_dimension_by_layer
        )
        drawn["mean_activation"] = _panels(records, _mean_activation)
    return drawn


def _panels(records, draw_panel: Callable) -> Figure:
    runs = [Run.from_dict(record["run"]) for record in records]
    styles = _styles({run.method for run in runs})
    names = settings(runs)
    groups: dict[str, list] = {name: [] for name in names.values()}
    for run, record in zip(runs, records, strict=True):
        groups[names[run.task, run.recipe]].append((run.method, record))
    columns = min(len(groups), _MOST_COLUMNS)
    rows = math.ceil(len(groups) / columns)
    # The legend is at the side.
    width = _PANEL * columns + 0.6 + 0.085 * max(map(len, styles))
    height = max(_PANEL * rows, 0.23 * len(styles))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(groups) :]:
        axis.remove()
    handles = {}
    for axis, (name, group) in zip(axes, groups.items(), strict=False):
        draw_panel(axis, group, styles)
        axis.set_title(name)
        axis.spines[["top", "right"]].set_visible(False)
        lines, labels = axis.get_legend_handles_labels()
        handles.update(zip(labels, lines, strict=True))
    nothing = Line2D([], [], linestyle="")
    figure.legend(
        [handles.get(name, nothing) for name in styles],
        [
            name if name in handles else f"{name} (no such log)"
            for name in styles
        ],
        loc="outside right center",
        frameon=False,
    )
    return figure


def _by_method(group, value: Callable[[Method, Record], Any]):
    """Values of all seeds of each method `(seeds, ...)`."""
    values: dict[str, list] = {}
    for method, record in group:
        found = value(method, record)
        if found is not None:
            values.setdefault(spell(method), []).append(found)
    return {name: np.array(seeds, "float64") for name, seeds in values.items()}


def _score_by_isotropy(axis, group, styles):
    points = _by_method(
        group,
        lambda _, record: (
            record["isotropy"]["after"]["union"]["isoscore"],
            record["test"]["end"]["score"],
        ),
    )
    for name, seeds in points.items():
        style = styles[name] | {"linestyle": ""}
        axis.plot(*seeds.T, alpha=0.35, **style)
        axis.plot(*seeds.mean(axis=0), markersize=11, label=name, **style)
    axis.xaxis.set_major_locator(MaxNLocator(_MOST_TICKS))
    axis.set_xlabel("IsoScore of all layers, after training")
    axis.set_ylabel("test score")


def _dimension_by_layer(axis, group, styles):
    states = _by_method(
        group, lambda _, record: _dimensions(record["isotropy"]["after"])
    )
    _draw_layers(axis, states, styles)
    axis.set_ylabel("TwoNN dimension, after training")


def _first_token_dimension_by_layer(axis, group, styles):
    states = _by_method(
        group, lambda _, record: _dimensions(record.get("first_tokens"))
    )
    _draw_layers(axis, states, styles)
    axis.set_ylabel("TwoNN dimension of first tokens")


def _draw_layers(axis, states, styles):
    for name, seeds in states.items():
        _draw_mean(axis, range(seeds.shape[1]), seeds, name, styles)
    axis.set_xlabel("layer")


def _dimensions(states):
    if states is None:
        return None
    values = [
        state["twonn_dimension"]
        for name, state in states.items()
        if name != "union"
    ]
    return [math.nan if value is None else value for value in values]


def _mean_activation(axis, group, styles):
    """The size of the mean of every dimension, the largest first."""
    means = _by_method(group, lambda _, record: record.get("mean_activation"))
    for name, seeds in means.items():
        sizes = np.sort(np.abs(seeds.mean(axis=0)))[::-1]
        ranks = np.arange(1, len(sizes) + 1)
        # Markers at ranks 1, 2, 4, 8, evenly spaced on this axis.
        marked = [2**i - 1 for i in range(len(sizes).bit_length())]
        axis.plot(ranks, sizes, markevery=marked, label=name, **styles[name])
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set_xlabel("dimension of the last layer, by size")
    axis.set_ylabel("size of the mean activation")


def _isotropy_by_epoch(axis, group, styles):
    for name, seeds in _by_method(group, _union_scores).items():
        _draw_mean(axis, range(1, seeds.shape[1] + 1), seeds, name, styles)
    axis.set_xlabel("epoch")
    axis.set_ylabel("IsoScore of training tokens")


def _union_scores(method, record):
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


def _draw_mean(axis, x, seeds, name, styles):
    """Mean over the seeds, and a band of one standard deviation."""
    mean = pd.DataFrame(seeds).mean().to_numpy()
    deviation = pd.DataFrame(seeds).std().fillna(0.0).to_numpy()
    style = styles[name]
    x = np.asarray(x) + _offset(list(styles).index(name), len(styles))
    axis.plot(x, mean, label=name, **style)
    axis.fill_between(
        x,
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


def _offset(place, count):
    """How far to the right of its place a line of many is drawn."""
    return _OFFSET * (place - (count - 1) / 2) if count > _MOST_LINES else 0.0


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
    colors = {**dict.fromkeys(plain, _BLACK), none: _GRAY}
    colors |= zip(below, _shades("Oranges", len(below)), strict=True)
    colors |= zip(above, _shades("Blues", len(above)), strict=True)
    colors |= zip(others, itertools.cycle(_OTHER_COLORS), strict=False)
    markers = zip(ordered, itertools.cycle(_MARKERS), strict=False)
    return {
        spell(method): {"color": colors[method], "marker": marker}
        for method, marker in markers
    }


def _shades(colormap, count):
    return map(tuple, colormaps[colormap](np.linspace(0.9, 0.45, count)))
