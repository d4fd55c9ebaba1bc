"""Fails the build where a public name has no entry in the API reference."""

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

import keras_istar


def check(app: Sphinx, env) -> None:
    """Compares what the pages document with `keras_istar.__all__`."""
    documented = {x[0] for x in env.get_domain("py").get_objects()}
    missing = [
        name
        for name in keras_istar.__all__
        if not name.startswith("__") and f"keras_istar.{name}" not in documented
    ]
    if missing:
        raise ExtensionError(
            "Every public name must have an entry in docs/api.md. "
            f"Missing: {missing}"
        )


def setup(app: Sphinx) -> dict:
    """Registers the extension."""
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
