"""Pictures of a study, one panel for each setting."""

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
from matplotlib.ticker import MaxNLocator

from study.grid import Run
from study.grid import is_plain
from study.grid import settings
from study.grid import spell

Record = dict[str, Any]

_BLUE_AND_ORANGE = 2  # The first colors of tab10: they mean strengths here.
_OTHER_COLORS = (
    *color_sequences["tab10"][_BLUE_AND_ORANGE:],
    *color_sequences["tab20b"],
)
_MARKERS = "osD^vP*X"
_MOST_TICKS = 6


def draw(records: list[Record]) -> dict[str, Figure]:
    """The figures of a study by the name of their file.

    Args:
        records: Of runs that have not failed.
    """
    return {
        "score_by_isotropy": _panels(records, _score_by_isotropy),
        "dimension_by_layer": _panels(records, _dimension_by_layer),
        "isotropy_by_epoch": _panels(records, _isotropy_by_epoch),
    }


def _panels(records, draw_panel: Callable) -> Figure:
    by_setting = _by_setting(records)
    styles = _styles({_method(record) for record in records})
    is_long = len(styles) > 7  # A legend of many lines stands at the side.
    width = 3.6 * len(by_setting) + 2.6 * is_long
    figure = Figure(figsize=(width, 3.6), layout="constrained")
    axes = figure.subplots(1, len(by_setting), squeeze=False)[0]
    handles = {}
    for axis, (name, group) in zip(axes, by_setting.items(), strict=True):
        draw_panel(axis, group, styles)
        axis.set_title(name)
        axis.spines[["top", "right"]].set_visible(False)
        lines, labels = axis.get_legend_handles_labels()
        handles.update(zip(labels, lines, strict=True))
    shown = [name for name in styles if name in handles]
    figure.legend(
        [handles[name] for name in shown],
        shown,
        loc="outside right center" if is_long else "outside lower center",
        ncols=1 if is_long else min(len(styles), 2 + 3 * len(by_setting)),
        frameon=False,
    )
    return figure


def _by_setting(records):
    runs = [Run.from_dict(record["run"]) for record in records]
    names, groups = settings(runs), {}
    for run, record in zip(runs, records, strict=True):
        groups.setdefault(names[run.task, run.recipe], []).append(record)
    return groups


def _method(record):
    return Run.from_dict(record["run"]).method


def _by_method(group, value: Callable[[Record], Any]):
    """Values of all seeds of each method `(seeds, ...)`."""
    values = {}
    for record in group:
        found = value(record)
        if found is not None:
            values.setdefault(spell(_method(record)), []).append(found)
    return {name: np.array(seeds, "float64") for name, seeds in values.items()}


def _score_by_isotropy(axis, group, styles):
    points = _by_method(
        group,
        lambda record: (
            record["isotropy"]["after"]["union"]["isoscore_star"],
            record["test"]["end"]["score"],
        ),
    )
    for name, seeds in points.items():
        style = styles[name] | {"linestyle": ""}
        axis.plot(*seeds.T, alpha=0.35, **style)
        axis.plot(*seeds.mean(axis=0), markersize=11, label=name, **style)
    axis.xaxis.set_major_locator(MaxNLocator(_MOST_TICKS))
    axis.set_xlabel(
        "IsoScore* towards tr(Σ)/d·I, ζ = 0.2,\nall layers, after training"
    )
    axis.set_ylabel("test score")


def _dimension_by_layer(axis, group, styles):
    for name, seeds in _by_method(group, _dimensions).items():
        _draw_mean(axis, range(seeds.shape[1]), seeds, name, styles)
    axis.set_xlabel("layer")
    axis.set_ylabel("TwoNN dimension, after training")


def _dimensions(record):
    states = record["isotropy"]["after"]
    values = [
        state["twonn_dimension"]
        for name, state in states.items()
        if name != "union"
    ]
    return [math.nan if value is None else value for value in values]


def _isotropy_by_epoch(axis, group, styles):
    for name, seeds in _by_method(group, _union_scores).items():
        _draw_mean(axis, range(1, seeds.shape[1] + 1), seeds, name, styles)
    axis.set_xlabel("epoch")
    axis.set_ylabel("IsoScore of training tokens")


def _union_scores(record):
    """IsoScore of all layers after every epoch, None if not logged.

    The one before training is of test texts, whose tokens are others: it does
    not belong into this curve. Nor does that of some layers, or of padding.
    """
    method = _method(record)
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


def _styles(methods: set[Method]) -> dict[str, dict[str, Any]]:
    """Color and marker of every method by its name, in order of strength.

    I-STAR with its defaults is orange for strengths below 0, black for 0 and
    blue above, the darker the stronger.
    """
    ordered = sorted(methods, key=_rank)
    plain = [method.strength for method in ordered if is_plain(method)]
    shades = {
        0.0: (0.0, 0.0, 0.0, 1.0),
        **_shades([x for x in plain if x < 0], "Oranges"),
        **_shades([x for x in reversed(plain) if x > 0], "Blues"),
    }
    styles, num_others = {}, 0
    for i, method in enumerate(ordered):
        if is_plain(method):
            color = shades[method.strength]
        else:
            color = _OTHER_COLORS[num_others % len(_OTHER_COLORS)]
            num_others += 1
        marker = _MARKERS[i % len(_MARKERS)]
        styles[spell(method)] = {"color": color, "marker": marker}
    return styles


def _rank(method):
    return method.regularizer != "istar", method.strength or 0.0, spell(method)


def _shades(strengths, colormap):
    depths = np.linspace(0.9, 0.45, len(strengths))
    colors = map(tuple, colormaps[colormap](depths))
    return dict(zip(strengths, colors, strict=True))
