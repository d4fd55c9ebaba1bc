"""What the examples' command lines share: one-line errors, checked numbers."""

import argparse
import math
from collections.abc import Callable


class UserError(Exception):
    """A condition that the user can mend. The message fits on one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on stderr, exit code 2."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")

    def run(
        self,
        program: Callable[[argparse.Namespace], object],
        argv: list[str] | None = None,
    ) -> None:
        """Runs `program` with the options; ends with its `UserError`, if any.

        Args:
            program: Function of the options.
            argv: The command line, that of this process if None.
        """
        options = self.parse_args(argv)
        try:
            program(options)
        except UserError as error:
            self.error(str(error))


def summarize(error: BaseException, max_length: int = 300) -> str:
    """The message of an error on one line, cut to `max_length` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= max_length else text[: max_length - 3] + "..."


def real(text: str) -> float:
    """An option's value as a finite number."""
    value = _number(float, text, "a number")
    return _check(math.isfinite(value), "a finite number", value)


def positive_real(text: str) -> float:
    """An option's value as a finite number above 0."""
    value = real(text)
    return _check(value > 0, "above 0", value)


def fraction(text: str) -> float:
    """An option's value as a number between 0 and 1."""
    value = real(text)
    return _check(0 <= value <= 1, "between 0 and 1", value)


def open_fraction(text: str) -> float:
    """An option's value as a number strictly between 0 and 1."""
    value = real(text)
    return _check(0 < value < 1, "strictly between 0 and 1", value)


def positive_int(text: str) -> int:
    """An option's value as a whole number above 0."""
    value = _number(int, text, "a whole number")
    return _check(value > 0, "above 0", value)


def non_negative_int(text: str) -> int:
    """An option's value as a whole number, 0 allowed."""
    value = _number(int, text, "a whole number")
    return _check(value >= 0, "0 or above", value)


def seed(text: str) -> int:
    """An option's value as a seed that NumPy takes."""
    value = non_negative_int(text)
    return _check(value < 2**32, "below 2**32", value)


def index_or_name(text: str) -> int | str:
    """An option's value as an index if it is a whole number, else a name."""
    try:
        return int(text)
    except ValueError:
        return text


def _number(kind, text, rule):
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be {rule}. Received: {text!r}"
        ) from None


def _check(is_right, rule, value):
    if not is_right:
        raise argparse.ArgumentTypeError(f"must be {rule}. Received: {value}")
    return value
