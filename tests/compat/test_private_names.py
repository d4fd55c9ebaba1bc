"""Which names of others, that nothing promises, are used and where."""

import ast
import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from workers.small_models import bert_classifier

import keras_istar
from keras_istar._src.compat import gradients
from keras_istar._src.compat import keras_graph

ROOT = Path(__file__).parents[2]
PACKAGE = Path(keras_istar.__file__).parent

# What functional_graph relies on. Keras documents none of it.
LAYER = """_layers _losses _inbound_nodes _outbound_nodes _remat_mode _tracker
    _flatten_layers _get_call_context"""
MODEL = """_inputs _outputs _inputs_struct _outputs_struct _nodes
    _nodes_by_depth _operations _operations_by_depth
    train_function test_function predict_function"""
NODE = "operation arguments input_tensors outputs is_input"
MODULES = {
    "keras.src.backend": "get_keras_mask",
    "keras.src.models.functional": "Functional",
}
PYTORCH = {"_modules"}  # Looked up with a default.
TENSORFLOW = {"_maybe_symbolic_build"}  # Models of the others have none.
BUILT_IN = {*dir(dict), *dir(list)}


class Listening(keras.layers.Layer):
    """Keeps the context that it was called in."""

    def call(self, inputs):
        self.context = [self._get_call_context()]
        return inputs


def private_things():
    """Objects of Keras, and the names that each should have."""
    model = bert_classifier()
    layer = model.layers[-1]
    (node,) = layer._inbound_nodes
    listening = Listening()
    listening(np.ones((2, 3)))
    return [
        (layer, LAYER),
        (model, MODEL),
        (node, NODE),
        (model.outputs[0], "_keras_history"),
        (model.outputs[0]._keras_history, "operation"),
        (node.arguments, "fill_in"),
        (layer._tracker, "untrack"),
        (listening.context[0], "entry_layer"),
        *[(sys.modules[name], names) for name, names in MODULES.items()],
    ]


def test_keras_has_what_the_graph_surgery_relies_on():
    things = private_things()
    for thing, names in things:
        for name in names.split():
            assert hasattr(thing, name), (
                f"Keras {keras.__version__} has moved "
                f"`{getattr(thing, '__name__', type(thing).__name__)}.{name}`, "
                f"which {keras_graph.__name__} relies on"
            )
    listed = {name for _, names in things for name in names.split()}
    used = set(_names_relied_on(Path(keras_graph.__file__)))
    others = PYTORCH | TENSORFLOW | BUILT_IN
    assert used - listed - others == set(), "to be listed above"
    assert listed - used == set(), "no longer relied on"


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="models of TensorFlow"
)
def test_models_of_tensorflow_have_what_passes_rely_on():
    assert all(hasattr(keras.Model(), name) for name in TENSORFLOW)


def test_outputs_are_at_depth_0():
    model = bert_classifier()
    outputs = model._nodes_by_depth[0]
    assert {node.operation for node in outputs} == {model.layers[-1]}, (
        f"Keras {keras.__version__} no longer has outputs at depth 0 of "
        f"`_nodes_by_depth`, below which {keras_graph.__name__} adds nodes"
    )


def test_tensorflow_has_what_the_gradient_registry_relies_on():
    ops = pytest.importorskip("tensorflow.python.framework.ops")
    registry = ops.gradient_registry
    for thing, name in (
        (ops, "gradient_registry"),
        (ops, "get_default_graph"),
        (registry, "_registry"),
    ):
        assert hasattr(thing, name), (
            f"TensorFlow has moved `{thing}.{name}`, which "
            f"{gradients.__name__} relies on"
        )
    source = Path(gradients.__file__).read_text(encoding="utf-8")
    used = set(re.findall(r"\bops\.(\w+)", source))
    used |= set(re.findall(r'\(ops, "(\w+)"', source))
    assert used == {"gradient_registry", "get_default_graph"}
    entries = registry._registry.values()
    assert all("type" in entry for entry in entries), (
        "TensorFlow has moved the functions of its gradient registry, which "
        f"{gradients.__name__} relies on"
    )


def _names_relied_on(path):
    """Names of Keras that no documentation promises, in a file about nodes."""
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.ImportFrom) and _is_private(node.module):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"(_[a-z]\w* ?)+", node.value):
                yield from node.value.split()
        elif isinstance(node, ast.Attribute):
            owner = node.value.func if _is_call(node.value) else node.value
            of_private = re.match("_[a-z]", getattr(owner, "attr", ""))
            is_private = re.match("_[a-z]", node.attr)
            is_hidden = is_private or of_private or _root(node) == "node"
            if is_hidden or node.attr.endswith("_function"):
                yield node.attr


def _is_call(node):
    return isinstance(node, ast.Call)


def _root(node):
    while isinstance(node, ast.Attribute):
        node = node.value
    return getattr(node, "id", None)


def _parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def _is_private(module):
    """Whether a module is one that its package keeps to itself."""
    private = r"(keras|keras_hub)\.src|tensorflow\.python|jax\._src"
    return re.match(rf"({private})\b", module or "")


# What each file may import all the same.
IMPORTS = {
    "functional_graph.py": set(MODULES),
    "gradient_registry.py": {"tensorflow.python.framework"},
}


@pytest.mark.parametrize("folder", [PACKAGE, ROOT / "examples"])
def test_private_names_are_used_in_one_file(folder):
    own = {"_asdict", "_fields", "_replace"}  # Of named tuples.
    for path in {*PACKAGE.glob("*.py"), *folder.glob("*.py")}:
        own |= set(_own_private_names(path))
    for path in folder.glob("*.py"):
        imports = set(_private_imports(path)) - IMPORTS.get(path.name, set())
        assert not imports, f"{path.name} imports {imports}"
        if path.name != "functional_graph.py":
            found = set(_private_attributes(path, own))
            assert not found, f"{path.name} uses {found}"


def _own_private_names(path):
    """Private names of classes and functions, and of what `self` is given."""
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            for statement in filter(_is_assignment, node.body):
                yield from (target.id for target in statement.targets)
        elif isinstance(node, ast.Attribute):
            is_stored = isinstance(node.ctx, ast.Store)
            if is_stored and _root(node) in ("self", "cls"):
                yield node.attr


def _is_assignment(node):
    return isinstance(node, ast.Assign)


def _private_attributes(path, own):
    """Private names that are not ours, or that Keras has as well."""
    of_keras = {*LAYER.split(), *MODEL.split(), *NODE.split()}
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Attribute) and re.match(
            "_(?!_|keras_istar)", node.attr
        ):
            is_self = getattr(node.value, "id", None) in ("self", "cls")
            if node.attr not in own or node.attr in of_keras and not is_self:
                yield node.attr


def _private_imports(path):
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.ImportFrom):
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = []
        # `keras.src` needs no import, once there is `keras`.
        if isinstance(node, ast.Attribute) and _is_private(ast.unparse(node)):
            names = [ast.unparse(node)]
        yield from filter(_is_private, names)


@pytest.mark.parametrize(
    "code, imports, attributes",
    [
        ("import keras.src", {"keras.src"}, set()),
        ("from keras.src.ops import x", {"keras.src.ops"}, set()),
        ("import keras\nkeras.src.ops", {"keras.src", "keras.src.ops"}, set()),
        ("from tensorflow.python import y", {"tensorflow.python"}, set()),
        ("import keras_istar", set(), set()),
        ("def f(x): x._losses = []", set(), {"_losses"}),
        ("def f(self): self._losses", set(), {"_losses"}),
        ("class C:\n def f(self): self._x = 1; self._x", set(), set()),
        ("class C:\n def _layers(self): self._layers", set(), set()),
        ("class C:\n def _layers(self): model._layers", set(), {"_layers"}),
    ],
)
def test_the_guard_sees_private_names(tmp_path, code, imports, attributes):
    path = tmp_path / "code.py"
    path.write_text(code)
    assert set(_private_imports(path)) == imports
    own = set(_own_private_names(path))
    assert set(_private_attributes(path, own)) == attributes
