import doctest
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_istar

ROOT = Path(__file__).parents[2]
PUBLIC = [name for name in keras_istar.__all__ if name != "__version__"]
HEAVY = (
    "keras_hub",
    "keras_nlp",
    "matplotlib",
    "pandas",
    "tensorflow_datasets",
)


def test_import_is_light():
    # Keras itself imports what it finds of some of them.
    code = (
        "import sys, keras, tensorflow; before = set(sys.modules); "
        "import keras_istar; new = set(sys.modules) - before; "
        f"print(sorted(new & {set(HEAVY)}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


def test_public_names_are_listed_and_there():
    assert len(set(keras_istar.__all__)) == len(keras_istar.__all__)
    for name in keras_istar.__all__:
        assert hasattr(keras_istar, name)


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", keras_istar.__version__)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    thing = getattr(keras_istar, name)
    doc = inspect.getdoc(thing)
    assert doc and ">>>" in doc
    for argument in inspect.signature(thing).parameters:
        if not argument.startswith("_"):
            assert re.search(rf"^ +\**{argument}: ", doc, re.MULTILINE)


@pytest.mark.skipif(
    keras.backend.backend() == "jax",
    reason="on JAX a layer called by hand logs nothing",
)
@pytest.mark.parametrize("name", PUBLIC)
def test_examples_in_docstrings_run(name):
    examples = doctest.DocTestFinder(recurse=False).find(
        getattr(keras_istar, name),
        name,
        globs={"np": np, "keras": keras, "keras_istar": keras_istar},
    )
    for example in examples:
        results = doctest.DocTestRunner().run(example)
        assert results.attempted > 0
        assert results.failed == 0


def test_readme_snippet_runs_as_pasted():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    snippet = readme.split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    scores = re.findall(r"isoscore_union: ([\d.]+)", done.stdout)
    assert float(scores[-1]) > float(scores[0])
