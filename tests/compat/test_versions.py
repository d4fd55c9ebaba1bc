"""Which Keras, TensorFlow and KerasHub are refused, and in which words."""

import importlib.metadata
import re
import subprocess
import sys
import types

import keras
import pytest

from keras_istar._src.compat.versions import check_versions

OTHERS = [
    ("keras", "2.15.0", "<4,>=3.15"),
    ("keras", "3.14.1", "<4,>=3.15"),
    ("keras", "4.0.0", "<4,>=3.15"),
    ("tensorflow", "2.19.1", "<3,>=2.20"),
    ("tensorflow", "3.0.0", "<3,>=2.20"),
    ("keras_hub", "0.31.1", ">=0.32"),
]


def message(package, version, allowed):
    return (
        f"keras_istar needs `{package}` {allowed}. "
        f"Received: {package}.__version__={version!r}"
    )


def pretend(monkeypatch, package, version):
    module = types.SimpleNamespace(__version__=version)
    monkeypatch.setitem(sys.modules, package, module)


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Function that adds a package which is only installed, not imported."""
    monkeypatch.syspath_prepend(tmp_path)

    def add(name, version, *requirements):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = [f"Requires-Dist: {text}" for text in requirements]
        (folder / "METADATA").write_text(
            "\n".join([f"Name: {name}", f"Version: {version}", *lines])
        )
        monkeypatch.delitem(sys.modules, name.replace("-", "_"), raising=False)

    return add


@pytest.mark.parametrize("package, version, allowed", OTHERS)
def test_imported_packages_of_other_versions(
    monkeypatch, package, version, allowed
):
    pretend(monkeypatch, package, version)
    with pytest.raises(ImportError) as error:
        check_versions()
    assert str(error.value) == message(package, version, allowed)


@pytest.mark.parametrize("package, version, allowed", OTHERS[3:])
def test_packages_of_other_versions_that_are_only_installed(
    install, package, version, allowed
):
    install(package.replace("_", "-"), version)
    with pytest.raises(ImportError) as error:
        check_versions()
    assert str(error.value) == message(package, version, allowed)


@pytest.mark.parametrize(
    "package, version",
    [
        *[("keras", x) for x in ("3.15.0", "3.15.1rc0")],
        *[("keras", x) for x in ("3.16.0.dev2026112403", "3.100")],
        # One of the extras pins TensorFlow.
        *[("tensorflow", x) for x in ("2.20.0", "2.21.0", "2.22.0rc1", "2.99")],
        *[("keras_hub", x) for x in ("0.32.0", "1.0")],
    ],
)
def test_supported_versions_pass(monkeypatch, package, version):
    pretend(monkeypatch, package, version)
    check_versions()


def test_bounds_are_those_that_the_installed_package_declares(install):
    install("keras-istar", "9.9", "keras<3.1,>=3.0", "numpy>=99")
    with pytest.raises(ImportError) as error:
        check_versions()
    assert str(error.value) == message("keras", keras.__version__, "<3.1,>=3.0")


def test_packages_that_are_not_installed_pass(monkeypatch):
    def find_none(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.delitem(sys.modules, "keras_hub", raising=False)
    monkeypatch.setattr(importlib.metadata, "version", find_none)
    check_versions()
    monkeypatch.setattr(importlib.metadata, "requires", find_none)
    pretend(monkeypatch, "keras", "2.15.0")
    check_versions()


@pytest.mark.processes
@pytest.mark.parametrize(
    "change, said",
    [
        (
            "keras.__version__ = '2.15.0'",
            re.escape(message("keras", "2.15.0", "<4,>=3.15")),
        ),
        *[
            (
                f"del sys.modules[{module!r}].{name}",
                "keras_istar relies on private names, of which Keras "
                f"{keras.__version__} has moved one: .*{name!r} from "
                f"{module!r}",
            )
            for module, name in [
                ("keras.src.models.functional", "Functional"),
                ("keras.src.backend", "get_keras_mask"),
            ]
        ],
    ],
)
def test_the_import_says_what_it_cannot_live_with(change, said):
    code = f"import sys, keras; {change}; import keras_istar"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert re.match(f"ImportError: {said}", last), last
