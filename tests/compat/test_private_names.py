"""Which names of others, that nothing promises, the package relies on."""

import pathlib
import re
import sys

import keras
import numpy as np
import pytest
from workers.small_models import bert_classifier

from keras_istar._src.compat import custom_gradients
from keras_istar._src.compat import keras_private

# What keras_private relies on. Keras documents none of it.
LAYER = """_layers _losses _loss_ids _inbound_nodes _outbound_nodes _remat_mode
    _tracker _flatten_layers _get_call_context _call_context_args
    _called _set_mask_metadata"""
MODEL = """_inputs _outputs _inputs_struct _outputs_struct _nodes
    _nodes_by_depth _operations _operations_by_depth
    train_function test_function predict_function
    _aggregate_additional_loss"""
NODE = "operation arguments input_tensors outputs is_input"
MODULES = {
    "keras.src.backend": """compute_output_spec get_keras_mask
        get_stateless_scope in_stateless_scope""",
    "keras.src.backend.common.tensor_attributes": """get_tensor_attr
        set_tensor_attr""",
    "keras.src.models.functional": "Functional",
}
PYTORCH = {"_modules"}  # Looked up with a default.
TENSORFLOW = {"_maybe_symbolic_build"}  # Models of the others have none.
PREFIXES = {"_self_"}  # Of attributes that TensorFlow adds.


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
        (layer._tracker, "untrack unlock lock locked"),
        (keras.Sequential([keras.Input((2,))]), "_functional"),
        (layer.kernel, "_value"),
        (keras.StatelessScope(), "collect_losses get_current_value"),
        (listening.context[0], "entry_layer"),
        *[(sys.modules[name], names) for name, names in MODULES.items()],
    ]


def test_keras_has_what_attaching_relies_on():
    things = private_things()
    for thing, names in things:
        for name in names.split():
            assert hasattr(thing, name), (
                f"Keras {keras.__version__} has moved "
                f"`{getattr(thing, '__name__', type(thing).__name__)}.{name}`, "
                f"which {keras_private.__name__} relies on"
            )
    listed = {name for _, names in things for name in names.split()}
    source = source_of(keras_private)
    private = set(re.findall(r'(?:\.|["\s])(_[a-z]\w+)\b', source))
    own = set(re.findall(r"(?:^|def )(_[a-z]\w+)", source, re.MULTILINE))
    private -= {"_src"}
    others = PYTORCH | TENSORFLOW | PREFIXES
    assert private - listed - own == others, "to be listed above"
    unused = {x for x in listed if not re.search(rf"\b{x}\b", source)}
    assert unused == set(), "no longer relied on"


def source_of(module):
    return pathlib.Path(module.__file__).read_text(encoding="utf-8")


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
        f"`_nodes_by_depth`, below which {keras_private.__name__} adds nodes"
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
            f"{custom_gradients.__name__} relies on"
        )
    source = source_of(custom_gradients)
    used = set(re.findall(r"\bops\.(get_\w+)", source))
    used |= set(re.findall(r'\(ops, "(\w+)"', source))
    assert used == {"gradient_registry", "get_default_graph"}
    entries = registry._registry.values()
    assert all("type" in entry for entry in entries), (
        "TensorFlow has moved the functions of its gradient registry, which "
        f"{custom_gradients.__name__} relies on"
    )
