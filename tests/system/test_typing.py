"""The types that users' type checkers see."""

import importlib.resources
import inspect
import subprocess
import sys

import pytest

import keras_istar

CALLABLES = [
    getattr(keras_istar, name)
    for name in keras_istar.__all__
    if name != "__version__"
]


def own_functions(thing):
    """Public functions that the package itself defines for a public name."""
    if inspect.isfunction(thing):
        return [thing]
    return [
        inspect.unwrap(getattr(member, "__func__", member))
        for cls in thing.__mro__
        if cls.__module__.startswith("keras_istar")
        for name, member in vars(cls).items()
        if (not name.startswith("_") or name == "__init__")
        and (inspect.isfunction(member) or isinstance(member, classmethod))
    ]


@pytest.mark.parametrize("thing", CALLABLES)
def test_public_signatures_are_typed(thing):
    for function in own_functions(thing):
        signature = inspect.signature(function)
        parameters = [p for n, p in signature.parameters.items() if n != "self"]
        for parameter in parameters:
            if parameter.name != "cls":
                assert parameter.annotation is not parameter.empty, function
        if function.__name__ != "__init__":
            assert signature.return_annotation is not signature.empty, function


def test_types_are_declared():
    assert importlib.resources.files(keras_istar).joinpath("py.typed").is_file()


def test_type_checker_of_a_user_sees_mistakes(tmp_path):
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(
        "import keras\n"
        "import keras_istar\n"
        "def run(model: keras.Model) -> None:\n"
        "    layer = keras_istar.attach(model, strength=-1.0)\n"
        "    layer.strength = 2.0\n"
        "    report = keras_istar.measure(model, ['text'], 'all', 100)\n"
        "    report.save(5)\n"
        "    keras_istar.attach(model, shrinkage='much', strength=-1.0)\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--ignore-missing-imports",
            "--no-error-summary",
            f"--cache-dir={tmp_path / 'cache'}",
            script,
        ],
        capture_output=True,
        text=True,
    )
    lines = [
        line.split(":")[1]
        for line in done.stdout.splitlines()
        if "error" in line
    ]
    assert lines == ["7", "8"], done.stdout + done.stderr
