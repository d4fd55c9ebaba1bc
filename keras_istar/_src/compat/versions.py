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
    requirements = map(Requirement, declared)
    return [x for x in requirements if x.name in _CHECKED]


def _version(package):
    """Version of the imported package, or else of the installed one."""
    if package in sys.modules:
        return getattr(sys.modules[package], "__version__", None)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
