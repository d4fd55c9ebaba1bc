"""What is asked of Keras, TensorFlow and KerasHub, and what is said of it."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import keras
import pytest

from keras_istar._src.compat import versions

ROOT = Path(__file__).parents[2]


def test_bounds_are_those_of_the_installer():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["hub"]
    for package, (oldest, too_new) in versions._SUPPORTED.items():
        name = package.replace("_", "-")
        (bounds,) = [x for x in needed if re.match(rf"{name}>=", x)]
        expected = f"{name}>={versions._text(oldest)}"
        if too_new is not None:
            expected += f",<{versions._text(too_new)}"
        assert bounds == expected


@pytest.mark.parametrize(
    "package, version, allowed",
    [
        ("keras", "2.15.0", "3.15 or newer, before 4"),
        ("keras", "3.14.1", "3.15 or newer, before 4"),
        ("keras", "4.0.0", "3.15 or newer, before 4"),
        ("tensorflow", "2.19.1", "2.20 or newer, before 3"),
        ("keras_hub", "0.31.1", "0.32 or newer"),
    ],
)
def test_other_versions_are_refused_at_import(package, version, allowed):
    code = (
        "import sys, types, keras; "
        f"sys.modules.setdefault({package!r}, types.ModuleType({package!r})); "
        f"sys.modules[{package!r}].__version__ = {version!r}; "
        "import keras_istar"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: keras_istar needs `{package}` {allowed}. "
        f"Received: {package}.__version__={version!r}"
    )


@pytest.mark.parametrize(
    "package, version, allowed",
    [
        ("tensorflow", "2.19.1", "2.20 or newer, before 3"),
        ("tensorflow", "3.0.0", "2.20 or newer, before 3"),
        ("keras_hub", "0.31.1", "0.32 or newer"),
    ],
)
def test_other_versions_that_are_only_installed(
    package, version, allowed, tmp_path
):
    pytest.importorskip("jax")  # With which Keras imports no TensorFlow.
    folder = tmp_path / f"{package}-{version}.dist-info"
    folder.mkdir()
    name = package.replace("_", "-")
    (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", "import keras_istar"],
        env=os.environ | {"PYTHONPATH": paths, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
    )
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: keras_istar needs `{package}` {allowed}. "
        f"Received: {package}.__version__={version!r}"
    )


def test_packages_that_are_not_installed_pass():
    assert versions._version("no_such_package") is None


@pytest.mark.parametrize(
    "module, name",
    [
        ("keras.src.models.functional", "Functional"),
        ("keras.src.backend", "get_keras_mask"),
    ],
)
def test_private_names_that_keras_has_moved(module, name):
    code = (
        f"import sys, keras; del sys.modules[{module!r}].{name}; "
        "import keras_istar"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert re.match(
        "ImportError: keras_istar relies on private names, of which Keras "
        f"{keras.__version__} has moved one: .*{name!r} from {module!r}",
        done.stderr.splitlines()[-1],
    )


@pytest.mark.parametrize(
    "version", ["3.15.0", "3.15.1rc0", "3.16.0.dev2026112403", "3.100"]
)
def test_supported_versions_pass(version):
    versions._check("keras", version)
