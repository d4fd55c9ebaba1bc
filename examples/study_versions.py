"""Versions of what the figures of the study depend on."""

import importlib.metadata
import platform

import keras_istar

_PACKAGES = (
    "keras",
    "keras-hub",
    "numpy",
    "scikit-dimension",
    "scikit-learn",
    "scipy",
    "tensorflow",
)


def installed() -> dict[str, str]:
    """Versions of what the figures depend on."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "python": platform.python_version(),
        "keras-istar": keras_istar.__version__,
        **packages,
    }
