"""The file format of reports: JSON, written whole or not at all."""

import json
import math
import os
import pathlib
import uuid
from typing import Any

from keras_istar import checks

_FORMAT = "keras_istar.IsotropyReport"
_VERSION = 1


def write(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Writes `content`; whatever `path` holds stays if that fails.

    Floats are written with all their digits. JSON has no NaN: the numbers in
    `content["rows"][...]["values"]` may be NaN, and become null.
    """
    content = {"format": _FORMAT, "version": _VERSION, **content}
    text = json.dumps(_without_nan(content), allow_nan=False, indent=1)
    path = pathlib.Path(checks.check_path("path", path))
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Reads what `write` has written.

    Raises:
        ValueError: If the file is none of `write`, or of a later version.
    """
    path = checks.check_path("path", path)
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as e:
        raise not_a_report(path) from e
    if not isinstance(content, dict) or content.pop("format", "") != _FORMAT:
        raise not_a_report(path)
    version = content.pop("version", None)
    if type(version) is not int or version < 1 or not content.get("rows"):
        raise not_a_report(path)
    if version > _VERSION:
        raise ValueError(
            "`path` must not be of a later version than this keras_istar "
            f"reads, {_VERSION}. Received: version={version}"
        )
    try:
        if isinstance(content["notes"], list):
            content["notes"] = tuple(content["notes"])
        for row in content["rows"]:
            row["values"] = {
                name: math.nan if value is None else value
                for name, value in row["values"].items()
            }
    except (AttributeError, KeyError, TypeError) as e:
        raise not_a_report(path) from e
    return content


def not_a_report(path: str | os.PathLike) -> ValueError:
    """The error for a file that holds something else."""
    return ValueError(
        "`path` must be a file that `IsotropyReport.save` has written. "
        f"Received: path={os.fspath(path)!r}"
    )


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    is_nan = isinstance(value, float) and math.isnan(value)
    return None if is_nan else value
