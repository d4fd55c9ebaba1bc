"""Writes files of results."""

import os
from pathlib import Path

from finetuning.command_line import UserError


def append(path: Path, text: str) -> None:
    """Adds text to a file, which is made if there is none.

    Raises:
        UserError: If that is impossible.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error}") from error


def replace(path: Path, content: bytes) -> None:
    """Writes a file; what `path` holds stays if that fails."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
