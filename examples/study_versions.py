"""Versions of what the figures of the study depend on."""

import importlib.metadata
import platform

_PACKAGES = (
    "keras-istar",
    "keras",
    "keras-hub",
    "numpy",
    "scikit-dimension",
    "scikit-learn",
    "scipy",
    "tensorflow",
    "tensorflow-datasets",
    "tensorflow-text",
)


def installed() -> dict[str, str]:
    """Versions of Python and of the packages."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **packages}


def differences(versions: list[dict[str, str]]) -> dict[str, list[str]]:
    """The versions of each package of which there are several, in order."""
    names = dict.fromkeys(name for entry in versions for name in entry)
    found = {
        name: sorted({entry[name] for entry in versions if name in entry})
        for name in names
    }
    return {name: several for name, several in found.items() if several[1:]}
