"""Command lines with checked numbers and errors of one line."""

import argparse
import dataclasses
import math
from collections.abc import Callable
from typing import Any


class UserError(Exception):
    """A condition that the user can mend. The message fits on one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def option(group: str, text: str, default: Any = None, **kwargs: Any) -> Any:
    """A field of a dataclass of options.

    Args:
        group: Heading that `--help` shows it under.
        text: What `--help` says of it.
        default: Its value if it is not given.
        **kwargs: Further arguments of `ArgumentParser.add_argument`.
    """
    metadata = {"group": group, "help": text, **kwargs}
    return dataclasses.field(default=default, metadata=metadata)


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line on stderr, exit code 2.

    Args:
        prog: Name of the program.
        description: What it does.
        options: Frozen dataclass of fields made by `option`: field `data_dir`
            is the option `--data-dir`.
    """

    def __init__(self, prog: str, description: str | None, options: type):
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._options = options
        groups: dict[str, Any] = {}
        for field in dataclasses.fields(options):
            kwargs = dict(field.metadata)
            name = kwargs.pop("group")
            if name not in groups:
                groups[name] = self.add_argument_group(name)
            flag = f"--{field.name.replace('_', '-')}"
            groups[name].add_argument(flag, default=field.default, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")

    def run(
        self, program: Callable[[Any], object], argv: list[str] | None = None
    ) -> None:
        """Runs a program with its options, and reports its `UserError`.

        Args:
            program: Function of the dataclass.
            argv: The command line, that of this process if None.
        """
        try:
            program(self._options(**vars(self.parse_args(argv))))
        except UserError as error:
            self.error(str(error))


def summarize(error: BaseException, max_length: int = 300) -> str:
    """The message of an error on one line, cut to `max_length` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= max_length else text[: max_length - 3] + "..."


def _number(kind, rule, is_right):
    """Type of an option: converts its text, and checks the value."""

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not is_right(value):
            raise argparse.ArgumentTypeError(
                f"must be {rule}. Received: {text!r}"
            )
        return value

    return convert


real = _number(float, "a finite number", math.isfinite)
positive_real = _number(
    float, "a finite number above 0", lambda x: 0 < x < math.inf
)
fraction = _number(float, "a number between 0 and 1", lambda x: 0 <= x <= 1)
open_fraction = _number(
    float, "a number strictly between 0 and 1", lambda x: 0 < x < 1
)
positive_int = _number(int, "a whole number above 0", lambda x: x > 0)
non_negative_int = _number(int, "a whole number, 0 or above", lambda x: x >= 0)
seed = _number(
    int, "a whole number from 0 to 2**32 - 1", lambda x: 0 <= x < 2**32
)


def index_or_name(text: str) -> int | str:
    """An option's value as an index if it is a whole number, else a name."""
    try:
        return int(text)
    except ValueError:
        return text
