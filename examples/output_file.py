"""Output files that appear whole or not at all."""

import tempfile
import uuid
from pathlib import Path

from command_line import UserError


def check(path: str) -> None:
    """Raises a `UserError` if `write` could not write to `path`.

    To be called before the work whose result is to be written.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        raise UserError(f"cannot write {path}: it is not a plain file")
    try:
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def write(path: str, content: bytes) -> None:
    """Writes `content`; what `path` holds stays if that fails.

    Raises:
        UserError: If it fails.
    """
    target = Path(path).resolve()  # A link stays one.
    temporary = target.with_name(f".part-{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
