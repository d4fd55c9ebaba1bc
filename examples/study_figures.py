"""Pictures of a study, one panel for each setting."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import study_settings
import study_styles
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from study_grid import Run

Record = dict[str, Any]


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
    styles = study_styles.styles(map(_method, records))
    is_long = len(styles) > 7  # A legend of many lines stands at the side.
    width = 3.6 * len(by_setting) + 2.6 * is_long
    figure = Figure(figsize=(width, 3.6), layout="constrained")
    axes = figure.subplots(1, len(by_setting), squeeze=False)[0]
    for axis, (name, group) in zip(axes, by_setting.items(), strict=True):
        draw_panel(axis, group, styles)
        axis.set_title(name)
        axis.spines[["top", "right"]].set_visible(False)
    handles = {}
    for axis in axes:
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
    names, groups = study_settings.names(runs), {}
    for run, record in zip(runs, records, strict=True):
        name = names[study_settings.setting(run)]
        groups.setdefault(name, []).append(record)
    return groups


def _method(record):
    return Run.from_dict(record["run"]).method


def _by_method(group, value: Callable[[Record], Any]):
    """Values of all seeds of each method `(seeds, ...)`."""
    values = {}
    for record in group:
        found = value(record)
        if found is not None:
            values.setdefault(str(_method(record)), []).append(found)
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
        axis.plot(*seeds.T, linestyle="", alpha=0.35, **styles[name])
        mean = seeds.mean(axis=0)
        axis.plot(
            *mean, linestyle="", markersize=11, label=name, **styles[name]
        )
    axis.set_xlabel(
        "IsoScore* towards tr(Σ)/d·I, ζ = 0.2,\nall layers, after training"
    )
    axis.set_ylabel("test score")


def _dimension_by_layer(axis, group, styles):
    curves = _by_method(group, _dimensions)
    for name, seeds in curves.items():
        layers = range(seeds.shape[1])
        _draw_mean(axis, layers, seeds, name, styles)
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
    curves = _by_method(group, _union_scores)
    for name, seeds in curves.items():
        _draw_mean(axis, range(1, seeds.shape[1] + 1), seeds, name, styles)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel("IsoScore of training tokens")


def _union_scores(record):
    """IsoScore of all layers after every epoch, None if not logged.

    The one before training is of test texts, whose tokens are others: it does
    not belong into this curve.
    """
    scores = [epoch.get("isoscore_union") for epoch in record["epochs"]]
    is_whole = _method(record).logs_all_tokens
    return scores if is_whole and None not in scores else None


def _draw_mean(axis, x, seeds, name, styles):
    """Mean over the seeds, and a band of one standard deviation."""
    mean = pd.DataFrame(seeds).mean().to_numpy()
    deviation = pd.DataFrame(seeds).std().fillna(0.0).to_numpy()
    axis.plot(x, mean, label=name, **styles[name])
    axis.fill_between(
        x,
        mean - deviation,
        mean + deviation,
        color=styles[name]["color"],
        alpha=0.15,
        linewidth=0,
    )
