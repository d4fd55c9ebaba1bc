"""The summary of a study as files: Markdown and pictures."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from finetuning import files
from finetuning.command_line import UserError
from matplotlib.figure import Figure

from study import comparison
from study import figures
from study.work import Records

_CHOICE = """
**Chosen on validation**

In every seed, the method of the family with the best validation score after \
the last {}, on the test part; methods that tie share the choice. Differences \
are to no penalty; p of Holm counts these lines.
"""
_STEP = 0.1  # Of IsoScore, in lines on the slope.


def write(records: Records, folder: Path) -> str:
    """Writes `summary.md` and the figures, and returns the Markdown."""
    finished = [r for r in records.values() if r["status"] == "ok"]
    if not finished:
        raise UserError(f"{folder} has no finished run to summarize")
    text = markdown(records)
    write_files(folder, text, figures.draw(finished))
    return text


def write_files(folder: Path, text: str, drawn: dict[str, Figure]) -> None:
    """Writes figures by name, then `summary.md`; each whole or not at all."""
    contents = {}
    for name, figure in drawn.items():
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        contents[f"{name}.png"] = picture.getvalue()
    contents["summary.md"] = text.encode()
    try:
        for name, content in contents.items():
            files.replace(folder / name, content)
    except OSError as error:
        raise UserError(f"cannot write the summary: {error}") from error


def markdown(records: Records) -> str:
    """The summary of a study.

    The order of isotropy, the slope of the score on it, what the validation
    part chooses, a table for each setting, and failures.
    """
    ended = comparison.run_table(records)
    runs = ended.dropna(subset="score")
    lines = [f"- {text}" for text in comparison.orders(runs)]
    lines += map(_slope, comparison.slopes(runs).itertuples())
    lines += choice_table(ended, "epoch")
    table = comparison.compare(runs)
    for name, group in table.groupby("setting", sort=False):
        reference = comparison.baseline(group) or "none"
        lines += [
            f"\n**{name}**, against {reference}:\n",
            *markdown_table(map(_cells, group.itertuples())),
        ]
    failures = [
        f"- {record['name']}: {record['error']}"
        for record in records.values()
        if record["status"] == "failed"
    ]
    if failures:
        lines += ["\nFailed runs:\n", *failures]
    return "\n".join(lines).strip() + "\n"


def choice_table(runs: pd.DataFrame, unit: str) -> list[str]:
    """Lines of Markdown: what the validation part chooses, if it does.

    Methods are scored after the last unit, `"epoch"` or `"step"`.
    """
    choice = comparison.choose(runs)
    if choice.empty:
        return []
    rows = map(_choice_cells, choice.itertuples())
    return [_CHOICE.format(unit), *markdown_table(rows)]


def markdown_table(rows: Iterable[dict[str, str]]) -> list[str]:
    """Lines of Markdown: a table of rows, which are cells by heading."""
    rows = list(rows)
    head, *body = (
        f"| {' | '.join(cells)} |"
        for cells in (rows[0], *(row.values() for row in rows))
    )
    return [head, "|" + "---|" * len(rows[0]), *body]


def _slope(row):
    slope, low, high = (_STEP * x for x in (row.slope, row.low, row.high))
    interval = _shown(low, f" (95 % interval {low:+.3f} to {high:+.3f})")
    return (
        f"- {row.setting}: where IsoScore is {_STEP} higher, the score is "
        f"{slope:+.3f}{interval}, within the same seed "
        f"({row.seeds} seeds, {row.runs} runs of I-STAR or without a penalty)."
    )


def _choice_cells(row):
    return {
        "setting": row.setting,
        "family": row.family,
        "methods": str(row.methods),
        "chosen (seeds)": row.chosen,
        "seeds": str(row.seeds),
        "test score": score_cell(row),
        **_paired_cells(row),
    }


def _cells(row):
    return {
        "method": row.method,
        "seeds": str(row.seeds),
        "score": score_cell(row),
        "IsoScore": f"{row.isoscore:.3f}",
        "TwoNN dimension, last layer": _shown(
            row.dimension, f"{row.dimension:.1f}"
        ),
        **_paired_cells(row),
    }


def score_cell(row: Any) -> str:
    """Mean and standard deviation of the score in a row of a comparison."""
    return f"{row.score:.3f}" + _shown(row.deviation, f" ± {row.deviation:.3f}")


def _paired_cells(row):
    difference = _shown(row.difference, f"{row.difference:+.3f}")
    interval = _shown(row.p, f" ({row.low:+.3f} to {row.high:+.3f})")
    return {
        "difference, 95 % interval": difference + interval,
        "p": _probability(row.p),
        "p (Holm)": _probability(row.p_holm),
    }


def _probability(p):
    return _shown(p, "< 0.001" if p < 0.001 else f"{p:.3f}")


def _shown(value, text):
    return "" if pd.isna(value) else text
