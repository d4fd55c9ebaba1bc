"""The summary of a study as files: Markdown, CSV and pictures."""

import io
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from finetuning.command_line import UserError

from study import comparison
from study import figures
from study.result_folder import Records
from study.result_folder import replace_file

_PAIRED = ("difference, 95 % interval", "p", "p (Holm)")
_HEADINGS = (
    "method",
    "seeds",
    "score",
    "IsoScore",
    "TwoNN dimension, last layer",
    *_PAIRED,
)
_CHOICE_HEADINGS = (
    "setting",
    "family",
    "methods",
    "chosen (seeds)",
    "seeds",
    "test score",
    *_PAIRED,
)
_STEP = 0.1  # Of IsoScore, in lines on the slope.
_CHOICE = (
    "In every seed, the method of the family with the best validation score "
    "after the last {}, on the test part; methods that tie share the choice. "
    "Differences are to no penalty; p of Holm counts these lines."
)


def write(records: Records, folder: Path) -> str:
    """Writes `summary.md`, `summary.csv` and the figures.

    Each file appears whole or stays as it was, `summary.md` last.

    Args:
        records: Of all runs, by id.
        folder: Where to write.

    Returns:
        The Markdown.

    Raises:
        UserError: If no run has a result, or the folder cannot be written.
    """
    finished = [r for r in records.values() if r["status"] == "ok"]
    if not finished:
        raise UserError(f"{folder} has no finished run to summarize")
    text, table = markdown(records)
    files = {
        f"{name}.png": _png(figure)
        for name, figure in figures.draw(finished).items()
    }
    files["summary.csv"] = table.to_csv(index=False).encode()
    files["summary.md"] = text.encode()
    try:
        for name, content in files.items():
            replace_file(folder / name, content)
    except OSError as error:
        raise UserError(f"cannot write the summary: {error}") from error
    return text


def _png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def markdown(records: Records) -> tuple[str, pd.DataFrame]:
    """The summary, and the figures of its tables of methods.

    The order of isotropy, the slope of the score on it, what the validation
    part chooses, a table for each setting, and failures.
    """
    ended = comparison.run_table(records)
    runs = ended.dropna(subset="score")
    table = comparison.compare(runs)
    lines = [f"- {text}" for text in comparison.orders(runs)]
    lines += map(_slope, comparison.slopes(runs).itertuples())
    lines += choice_table(ended, "epoch")
    for name, group in table.groupby("setting", sort=False):
        reference = comparison.baseline(group) or "none"
        lines += [
            "",
            f"**{name}**, against {reference}:",
            "",
            *markdown_table(_HEADINGS, map(_cells, group.itertuples())),
        ]
    failures = [
        f"- {record['name']}: {record['error']}"
        for record in records.values()
        if record["status"] == "failed"
    ]
    if failures:
        lines += ["", "Failed runs:", "", *failures]
    return "\n".join(lines).strip() + "\n", table


def choice_table(runs: pd.DataFrame, unit: str) -> list[str]:
    """Lines of Markdown: what the validation part chooses, if it does.

    Args:
        runs: For `comparison.choose`.
        unit: `"epoch"` or `"step"`: after the last one, methods are scored.
    """
    choice = comparison.choose(runs)
    if choice.empty:
        return []
    rows = map(_choice_cells, choice.itertuples())
    table = markdown_table(_CHOICE_HEADINGS, rows)
    return [
        "",
        "**Chosen on validation**",
        "",
        _CHOICE.format(unit),
        "",
        *table,
    ]


def markdown_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]]
) -> list[str]:
    """Lines of Markdown: a table of these cells."""
    head, *body = (f"| {' | '.join(cells)} |" for cells in (headings, *rows))
    return [head, "|" + "---|" * len(headings), *body]


def _slope(row):
    slope, low, high = (_STEP * x for x in (row.slope, row.low, row.high))
    interval = f" (95 % interval {low:+.3f} to {high:+.3f})"
    return (
        f"- {row.setting}: where IsoScore is {_STEP} higher, the score is "
        f"{slope:+.3f}" + _shown(low, interval) + ", within the same seed "
        f"({row.seeds} seeds, {row.runs} runs of I-STAR or without a penalty)."
    )


def _choice_cells(row):
    names = row.setting, row.family, str(row.methods), row.chosen
    return *names, str(row.seeds), _score(row), *_paired_cells(row)


def _cells(row):
    return (
        row.method,
        str(row.seeds),
        _score(row),
        f"{row.isoscore:.3f}",
        _shown(row.dimension, f"{row.dimension:.1f}"),
        *_paired_cells(row),
    )


def _score(row):
    return f"{row.score:.3f}" + _shown(row.deviation, f" ± {row.deviation:.3f}")


def _paired_cells(row):
    interval = f" ({row.low:+.3f} to {row.high:+.3f})"
    return (
        _shown(row.difference, f"{row.difference:+.3f}")
        + _shown(row.p, interval),
        _probability(row.p),
        _probability(row.p_holm),
    )


def _shown(value, text):
    return "" if pd.isna(value) else text


def _probability(p):
    return _shown(p, "< 0.001" if p < 0.001 else f"{p:.3f}")
