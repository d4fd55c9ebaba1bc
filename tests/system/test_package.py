import graphlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_istar

ROOT = Path(__file__).parents[2]
PUBLIC = [name for name in keras_istar.__all__ if name != "__version__"]
HEAVY = (
    "keras_hub",
    "keras_nlp",
    "matplotlib",
    "pandas",
    "skdim",
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


FLOORS = [
    "version types validation",
    "compat",
    "score",
    "layers",
    "attach",
    "measure",
    "callbacks",
]


def floor_of(module):
    """Index in `FLOORS` of a module `keras_istar._src.<floor>...`."""
    name = module.split(".")[2]
    (floor,) = [i for i, names in enumerate(FLOORS) if name in names.split()]
    return floor


def imports_of_the_package():
    """For each private module the private modules that it imports."""
    folder = ROOT / "keras_istar"
    imports = {}
    for path in folder.glob("_src/*/*.py"), folder.glob("_src/*.py"):
        for file in path:
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            if file.name != "__init__.py":
                imports[name] = set(imported_by(file.read_text("utf-8")))
    return imports


def imported_by(source):
    # What a type checker alone imports makes no circle.
    source = re.sub(r"if TYPE_CHECKING:\n(    .*\n|\n(?=    ))+", "", source)
    pattern = r"^ *from (keras_istar\.\S+) import (\w+)"
    for module, name in re.findall(pattern, source, re.MULTILINE):
        is_folder = (ROOT / module.replace(".", "/")).is_dir()
        yield f"{module}.{name}" if is_folder else module


def test_imports_point_downwards():
    imports = imports_of_the_package()
    assert len(imports) > 20 and sum(map(len, imports.values())) > 50
    for module, others in imports.items():
        for other in others:
            assert other in imports, f"{module} imports {other}"
            assert floor_of(other) <= floor_of(module), (
                f"{module} imports {other}, which is on a higher floor"
            )


def test_imports_have_no_circle():
    order = graphlib.TopologicalSorter(imports_of_the_package())
    order.prepare()  # Raises where there is a circle.


def test_nothing_but_public_names_is_in_view():
    names = {x for x in dir(keras_istar) if not re.fullmatch("__.*__", x)}
    public = set(keras_istar.__all__) - {"__version__"}
    assert names - {"_src"} == public


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
    scores = re.findall(r"isoscore_block_2: ([\d.]+)", done.stdout)
    assert float(scores[0]) == pytest.approx(0.29, abs=0.03)
    assert float(scores[-1]) == pytest.approx(0.23, abs=0.03)
