"""Which Keras, TensorFlow and KerasHub the package works with."""

import importlib.metadata
import re
import sys

import keras

# As in pyproject.toml, which pip may have been told to ignore.
_SUPPORTED = {
    "keras": ((3, 15), (4,)),
    "tensorflow": ((2, 20), (3,)),
    "keras_hub": ((0, 32), None),
}


def check_versions() -> None:
    """Refuses versions that would fail later, and less clearly.

    Raises:
        ImportError: If Keras, or TensorFlow or KerasHub where they have been
            imported or are installed, is older or newer than the package
            supports.
    """
    _check("keras", keras.__version__)
    for package in ("tensorflow", "keras_hub"):
        version = _version(package)
        if version is not None:
            _check(package, version)


def _version(package):
    """Of the package imported, or else of the one that would be, if any."""
    if package in sys.modules:
        return getattr(sys.modules[package], "__version__", None)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check(package, installed):
    oldest, too_new = _SUPPORTED[package]
    release = tuple(int(x) for x in re.findall(r"\d+", installed)[:2])
    if release >= oldest and (too_new is None or release < too_new):
        return
    allowed = f"{_text(oldest)} or newer"
    if too_new is not None:
        allowed += f", before {_text(too_new)}"
    raise ImportError(
        f"keras_istar needs `{package}` {allowed}. "
        f"Received: {package}.__version__={installed!r}"
    )


def _text(release):
    return ".".join(map(str, release))
