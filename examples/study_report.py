"""The summary of a study as files: Markdown, CSV and pictures."""

import io
from pathlib import Path
from typing import Any

import output_file
import pandas as pd
import study_figures
import study_sentences
import study_summary
import study_versions
from command_line import UserError

Records = dict[str, dict[str, Any]]

_TABLE_HEADING = (
    "| method | seeds | score | IsoScore | TwoNN dimension, last layer | "
    "difference, 95 % interval | p | p (Holm) |"
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
    runs = study_summary.run_table(records)
    if runs.empty:
        raise UserError(f"{folder} has no finished run to summarise")
    table = study_summary.compare(runs)
    text = markdown(runs, table, records)
    finished = [r for r in records.values() if r["status"] == "ok"]
    files = {
        f"{name}.png": _png(figure)
        for name, figure in study_figures.draw(finished).items()
    }
    files["summary.csv"] = table.to_csv(index=False).encode()
    files["summary.md"] = text.encode()
    for name, content in files.items():
        output_file.write(str(folder / name), content)
    return text


def _png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def markdown(runs: pd.DataFrame, table: pd.DataFrame, records: Records) -> str:
    """Sentences, a table for each setting, and the runs that failed."""
    lines = [f"- {text}" for text in study_sentences.sentences(runs, table)]
    for name, group in table.groupby("setting", sort=False):
        reference = study_summary.baseline(group) or "none"
        lines += [
            "",
            f"**{name}**, against {reference}:",
            "",
            _TABLE_HEADING,
            "|---|---|---|---|---|---|---|---|",
            *(_line(row) for row in group.itertuples()),
        ]
    lines += _mixed_versions(records)
    failures = _failures(records)
    if failures:
        lines += ["", "Failed runs:", "", *(f"- {line}" for line in failures)]
    return "\n".join(lines) + "\n"


def _line(row):
    cells = [
        row.method,
        str(row.seeds),
        f"{row.score:.3f}" + _deviation(row.deviation),
        f"{row.isoscore:.3f}",
        "" if pd.isna(row.dimension) else f"{row.dimension:.1f}",
        _difference(row),
        _probability(row.p),
        _probability(row.p_holm),
    ]
    return f"| {' | '.join(cells)} |"


def _deviation(value):
    return "" if pd.isna(value) else f" ± {value:.3f}"


def _difference(row):
    if pd.isna(row.difference):
        return ""
    interval = ""
    if not pd.isna(row.p):
        interval = f" ({row.low:+.3f} to {row.high:+.3f})"
    return f"{row.difference:+.3f}{interval}"


def _probability(p):
    if pd.isna(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _mixed_versions(records):
    versions = [record.get("versions", {}) for record in records.values()]
    found = study_versions.differences(versions)
    if not found:
        return []
    named = [f"{name} {' and '.join(x)}" for name, x in found.items()]
    return ["", f"Runs differ in versions: {', '.join(named)}."]


def _failures(records):
    return [
        f"{record['name']}: {record['error']}"
        for record in records.values()
        if record["status"] == "failed"
    ]
