"""The runs as a table and a figure, beside the file of their lines."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
from finetuning.command_line import UserError
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from study import comparison
from study.summary import choice_table
from study.summary import markdown_table
from study.summary import score_cell
from study.summary import write_files

from side_by_side import lines

_BASELINE = "none"
_NOT_LAYERS = 2  # The union, and that with the mean of each layer removed.
_PANELS = {
    "cola": "CoLA, Matthews",
    "mrpc": "MRPC, accuracy and F1",
    "rte": "RTE, accuracy",
    "sst2": "SST-2, accuracy",
    "stsb": "STS-B, correlation",
}
# Color, marker and size of each kind of method.
_KINDS = {
    "no regularizer": ("black", "s", 5),
    "with a target": ("C0", "o", 4),
    "the default of attach": ("C2", "*", 9),
    "plain strength": ("C1", "^", 4),
}
_DEFAULT = "istar:target=0.75x,strength=1"
_LOWEST = -8.0  # What lost more points is drawn at the edge.
_MILLIMETERS = 25.4


def write(path: str) -> str:
    """Writes summary and figure beside the results; returns the Markdown."""
    runs = sorted(lines.read(Path(path)), key=lambda run: run["task"])
    if not runs:
        raise UserError(f"{path} has no results to summarize")
    text = markdown(runs)
    figures = {"score_by_isotropy": draw(runs)}
    write_files(Path(path).parent, f"{text}\n", figures)
    return text


def run_table(runs: list[dict[str, Any]]) -> pd.DataFrame:
    """One row for each run, for `comparison`, and what a table shows.

    `isoscore` is that of the union on the test part. `target`, `training` and
    `test` are scores of the clouds that the method holds; for layers, their
    means. `validation` is NaN where no part was held out for it, and below that
    of any other run where training has failed.
    """
    return pd.DataFrame(
        {
            "setting": lines.setting_of(run),
            "method": run["method"],
            "family": comparison.family("istar", run["settings"]["strength"]),
            "seed": run["seed"],
            "validation": _validation(run),
            "score": run["score"],
            "isoscore": run["end"]["test"]["union"],
            "dimension": math.nan,
            "target": _target(run),
            "training": _held(run, run["end"]["running"]),
            "test": _held(run, run["end"]["test"]),
            "last_layer": list(run["end"]["test"].values())[-1],
            "between_layers": run["share_between_layers"]["end"],
        }
        for run in runs
    )


def _validation(run):
    score = run.get("validation", math.nan)
    return -math.inf if None in (score, run["score"]) else score


def markdown(runs: list[dict[str, Any]]) -> str:
    """A table of what the validation part chooses, and one for each setting.

    Differences are to `none`, over the seeds that both have, with the p of a
    paired t-test, and that with Holm's correction over all tests of the file
    where it is below 0.05.
    """
    table = run_table(runs)
    shown = ["training", "test", "last_layer", "between_layers"]
    groups = table.groupby(["setting", "method"], sort=False)
    means = groups[shown].mean().join(groups["target"].first())
    rows = comparison.compare(table).merge(
        means.reset_index(), on=["setting", "method"]
    )
    pieces = [
        "By `python examples/side_by_side --output results.jsonl "
        "--summarize`. Differences are paired by seed, to `none`; Holm's p is "
        "over all tests of the file, and shown where it is below 0.05.",
        *choice_table(table, "step"),
    ]
    for name, group in rows.groupby("setting", sort=False):
        first = next(run for run in runs if lines.setting_of(run) == name)
        start = first["start"]
        pieces += [
            f"\n**{name}**; IsoScore of the union at the start: "
            f"{start['dropout']['union']:.3f} with dropout, "
            f"{start['train']['union']:.3f} without, "
            f"{start['test']['union']:.3f} on the test part; "
            f"{first['share_between_layers']['start']:.0%} of the variance "
            "between layers.\n",
            *markdown_table(map(_cells, group.itertuples())),
        ]
    return "\n".join(pieces)


def _cells(row):
    difference = "" if pd.isna(row.difference) else f"{row.difference:+.3f}"
    if not pd.isna(row.p):
        holm = f", Holm {row.p_holm:.3f}" if row.p_holm < 0.05 else ""
        difference += f" ({row.p:.3f}{holm})"
    return {
        "method": row.method,
        "seeds": str(row.seeds),
        "score": score_cell(row),
        "difference (p)": difference,
        "target": row.target,
        "held, in training": f"{row.training:.3f}",
        "on test part": f"{row.test:.3f}",
        "union, test": f"{row.isoscore:.3f}",
        "last layer, test": f"{row.last_layer:.3f}",
        "between layers": f"{row.between_layers:.0%}",
    }


def _held(run, scores):
    """The score of the cloud that a method holds; for layers, their mean."""
    of = run["settings"]["of"]
    if of != "layers":
        return scores[of]
    layers = list(scores.values())[_NOT_LAYERS:]
    return sum(layers) / len(layers)


def _target(run):
    settings = run["settings"]
    if settings["low"] is None:
        return ""
    start = "train" if settings["at"] == "inference" else "dropout"
    is_relative = settings["is_relative"]
    unit = _held(run, run["start"][start]) if is_relative else 1.0
    bounds = dict.fromkeys((settings["low"], settings["high"]))
    return " to ".join(f"{bound * unit:.3f}" for bound in bounds)


def draw(runs: list[dict[str, Any]]) -> Figure:
    """The difference of the score against IsoScore, a panel for each setting.

    Means over seeds; methods of one seed have a hollow marker. What lies below
    the axis is drawn at its edge.
    """
    rows = comparison.compare(run_table(runs))
    groups = list(rows.groupby("setting", sort=False))
    size = 180 / _MILLIMETERS, 62 / _MILLIMETERS
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    axes = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axis, (name, group) in zip(axes, groups, strict=True):
        axis.axhline(0.0, color="0.8", linewidth=0.8, zorder=0)
        for row in group.itertuples():
            _draw_method(axis, row)
        task, *rest = name.split(", ")
        title = "\n".join([_PANELS.get(task, task), *rest])
        axis.set_title(title, fontsize=7)
        axis.set_xlim(0.0, max(0.4, 1.1 * group["isoscore"].max()))
        axis.set_ylim(_LOWEST - 0.5, 1.5)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("points against no regularizer", fontsize=7)
    figure.supxlabel("IsoScore of all layers after training", fontsize=7)
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="", label=kind)
        for kind, (color, marker, _) in _KINDS.items()
    ]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles),
        fontsize=7,
        frameon=False,
    )
    return figure


def _draw_method(axis, row):
    color, marker, size = _KINDS[_kind(row.method)]
    points = 0.0 if row.method == _BASELINE else 100.0 * row.difference
    axis.plot(
        row.isoscore,
        max(points, _LOWEST),
        color=color,
        marker=marker if points > _LOWEST else "v",
        markersize=size,
        markerfacecolor="none" if row.seeds == 1 else color,
        alpha=0.7 if row.seeds == 1 else 1.0,
        clip_on=False,
    )


def _kind(method):
    if method == _BASELINE:
        return "no regularizer"
    if method == _DEFAULT:
        return "the default of attach"
    has_target = method.startswith("istar:target=")
    return "with a target" if has_target else "plain strength"
