"""The file of results: a line for each run, with its task and settings."""

import json
from pathlib import Path
from typing import Any

from finetuning.command_line import UserError

from side_by_side.methods import Method

DTYPE_POLICY = "mixed_bfloat16"  # Where a line, or the user, says nothing.

Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """The lines of a file; methods are spelled as they are now.

    Raises:
        UserError: If the file cannot be read, or holds other lines, or one run
            twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the results: {error}") from error
    runs: dict[Any, Line] = {}
    for number, content in enumerate(text.splitlines(), start=1):
        if not content.strip():
            continue
        try:
            line = json.loads(content)
            own = line["settings"].items()
            method = Method(**{k: x for k, x in own if k != "shrinkage"})
            line["method"] = str(method)
            key = key_of(line)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"line {number} of {path} is not from this program: remove "
                f"it. Received: {content:.80}"
            ) from error
        if key in runs:
            raise UserError(
                f"line {number} of {path} is a run that an earlier line "
                f"holds: remove one of them. Received: {content:.80}"
            )
        runs[key] = line
    return list(runs.values())


def key_of(line: Line) -> tuple[str, str, int]:
    """What tells the line from others: setting, method and seed."""
    return setting_of(line), line["method"], line["seed"]


def setting_of(line: Line) -> str:
    """What compared runs share, see `setting`."""
    dtype_policy = line.get("dtype_policy", DTYPE_POLICY)
    is_held_out = "validation" in line
    return setting(line["task"], line["steps"], dtype_policy, is_held_out)


def setting(
    task: str, steps: int, dtype_policy: str, is_held_out: bool = True
) -> str:
    """The task, how its runs were trained, and on which part they were not."""
    parts = [task, f"{steps} steps"]
    if dtype_policy != DTYPE_POLICY:
        parts.append(dtype_policy)
    if is_held_out:
        parts.append("validation part held out")
    return ", ".join(parts)
