"""Reads docstrings as Keras writes them: indented formulas stay as they are."""

import re

from sphinx.application import Sphinx

_SECTION = re.compile(r"\s*[A-Z][\w `]*:$")


def _indent(line):
    return len(line) - len(line.lstrip())


def keep_formulas(app, what, name, obj, options, lines):
    """Makes a literal block of what is indented below a plain paragraph."""
    kept: list[str] = []
    is_literal = False
    base = 0  # Indent of the last line outside of literal blocks.
    for number, line in enumerate(lines):
        # Napoleon knows no heading with code in it.
        line = re.sub(r"^Call arguments of `\w+`:$", "Call arguments:", line)
        if line.strip():
            before = [x for x in lines[:number] if x.strip()]
            follows_blank = number > 0 and not lines[number - 1].strip()
            if is_literal and _indent(line) <= base:
                is_literal = False
            elif (
                not is_literal
                and follows_blank
                and before
                and _indent(line) >= base + 4
                and not _SECTION.match(before[-1])
            ):
                kept += [" " * base + "::", ""]
                is_literal = True
            if not is_literal:
                base = _indent(line)
        kept.append(line)
    lines[:] = kept


def setup(app: Sphinx) -> dict:
    """Registers the extension."""
    # Before napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", keep_formulas, priority=400)
    return {"parallel_read_safe": True}
