"""Checks which Keras, TensorFlow and KerasHub are installed."""

import importlib.metadata
import sys

from packaging.requirements import Requirement

_CHECKED = ("keras", "tensorflow", "keras-hub")


def check_versions() -> None:
    """Raises for versions that would fail later with a less clear message.

    The bounds are those that the package declares. pip can be told to ignore
    them.

    Raises:
        ImportError: If Keras, TensorFlow or KerasHub is imported or installed
            in a version that the package does not support.
    """
    for requirement in _requirements():
        package = requirement.name.replace("-", "_")
        version = _version(package)
        if version is not None and not requirement.specifier.contains(
            version, prereleases=True
        ):
            raise ImportError(
                f"keras_istar needs `{package}` {requirement.specifier}. "
                f"Received: {package}.__version__={version!r}"
            )


def _requirements():
    """Declared requirements of the installed package that are checked here."""
    try:
        declared = importlib.metadata.requires("keras-istar") or []
    except importlib.metadata.PackageNotFoundError:
        return []  # The package runs from a folder and is not installed.
    return [
        requirement
        for requirement in map(Requirement, declared)
        if requirement.name in _CHECKED and _holds(requirement.marker)
    ]


def _holds(marker):
    """Whether a requirement is the package's own, or of the extra `hub`.

    Other extras may ask for more than the package needs.
    """
    return marker is None or marker.evaluate({"extra": "hub"})


def _version(package):
    """Version of the imported package, or else of the installed one."""
    if package in sys.modules:
        return getattr(sys.modules[package], "__version__", None)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
