"""The summary of a study as files: Markdown, CSV and pictures."""

import io
from pathlib import Path

import pandas as pd
from finetuning.command_line import UserError

from study import comparison
from study import figures
from study.result_folder import Records
from study.result_folder import replace_file

_HEADINGS = (
    "method",
    "seeds",
    "score",
    "IsoScore",
    "TwoNN dimension, last layer",
    "difference, 95 % interval",
    "p",
    "p (Holm)",
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
    runs = comparison.run_table(records)
    if runs.empty:
        raise UserError(f"{folder} has no finished run to summarize")
    table = comparison.compare(runs)
    text = markdown(runs, table, records)
    finished = [r for r in records.values() if r["status"] == "ok"]
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


def markdown(runs: pd.DataFrame, table: pd.DataFrame, records: Records) -> str:
    """The order of isotropy, a table for each setting, and failures."""
    lines = [f"- {text}" for text in comparison.orders(runs)]
    for name, group in table.groupby("setting", sort=False):
        reference = comparison.baseline(group) or "none"
        lines += [
            "",
            f"**{name}**, against {reference}:",
            "",
            _line(_HEADINGS),
            "|" + "---|" * len(_HEADINGS),
            *(_line(_cells(row)) for row in group.itertuples()),
        ]
    failures = [
        f"- {record['name']}: {record['error']}"
        for record in records.values()
        if record["status"] == "failed"
    ]
    if failures:
        lines += ["", "Failed runs:", "", *failures]
    return "\n".join(lines).strip() + "\n"


def _line(cells):
    return f"| {' | '.join(cells)} |"


def _cells(row):
    interval = f" ({row.low:+.3f} to {row.high:+.3f})"
    return (
        row.method,
        str(row.seeds),
        f"{row.score:.3f}" + _shown(row.deviation, f" ± {row.deviation:.3f}"),
        f"{row.isoscore:.3f}",
        _shown(row.dimension, f"{row.dimension:.1f}"),
        _shown(row.difference, f"{row.difference:+.3f}")
        + _shown(row.p, interval),
        _probability(row.p),
        _probability(row.p_holm),
    )


def _shown(value, text):
    return "" if pd.isna(value) else text


def _probability(p):
    return _shown(p, "< 0.001" if p < 0.001 else f"{p:.3f}")
