"""Lowers the layer's penalty and gradient with TensorFlow, then compiles it."""

import tpu_target  # First, it sets what JAX and libtpu read.

# isort: split
import contextlib
import re
from unittest import mock

import keras
import tensorflow as tf
from sizes import DIM
from sizes import EXAMPLES_PER_CHIP
from sizes import LAYERS
from sizes import LENGTH
from tensorflow.python.ops import gen_tpu_ops
from tensorflow.python.tpu.ops import tpu_ops  # noqa: F401 for the gradient

import keras_istar


class Replica:
    """Replica context whose sums are the op that `TPUStrategy` makes of them.

    `test_tpu_strategy.py` sees that it does.
    """

    def __init__(self, replicas, index):
        self.num_replicas_in_sync = replicas
        self.replica_id_in_sync_group = index

    def all_reduce(self, op, value):
        assert op == tf.distribute.ReduceOp.SUM
        everyone = [list(range(self.num_replicas_in_sync))]
        return gen_tpu_ops.cross_replica_sum(value, everyone)

    @contextlib.contextmanager
    def scope(self):
        with mock.patch.multiple(
            tf.distribute,
            has_strategy=lambda: True,
            in_cross_replica_context=lambda: False,
            get_replica_context=lambda: self,
        ):
            yield


def main(topology, dtype):
    layer = keras_istar.IStarRegularization(strength=-1.0)
    layer.build([(EXAMPLES_PER_CHIP, LENGTH, DIM)] * LAYERS)
    variables = [*layer.variables, *layer.metrics_variables]
    replicas = len(tpu_target.chips(topology))

    def penalty_and_gradient(index, mask, values, states):
        # A program has no variables, only arguments.
        state = keras.StatelessScope(
            list(zip(variables, values, strict=True)), collect_losses=True
        )
        with tf.GradientTape() as tape:
            tape.watch(states)
            with state, Replica(replicas, index).scope():
                layer(states, mask=mask, training=True)
            (penalty,) = state.losses
        return [penalty, *tape.gradient(penalty, states)]

    function = tf.function(penalty_and_gradient, autograph=False)
    traced = function.get_concrete_function(
        tf.TensorSpec((), "int32"),
        tf.TensorSpec((EXAMPLES_PER_CHIP, LENGTH), "int32"),
        [tf.TensorSpec(v.shape, v.dtype) for v in variables],
        [tf.TensorSpec((EXAMPLES_PER_CHIP, LENGTH, DIM), dtype)] * LAYERS,
    )
    return tpu_target.compile_mhlo(_lower(traced), topology)


def _lower(traced):
    """The program in MHLO.

    TensorFlow without TPU support has no TPU kernels to lower the few ops for
    that have no MLIR pattern, so those of its CPU stand in; the kernels of
    both write the same platform-independent operations of XLA.
    """
    module = tf.mlir.experimental.convert_function(
        traced, pass_pipeline="tf-standard-pipeline"
    )
    module = tf.mlir.experimental.run_pass_pipeline(
        module,
        "xla-legalize-tf{device-type=XLA_CPU_JIT use-tf2xla-fallback=true},"
        "func.func(canonicalize)",
    )
    return _without_tf_attributes(module)


def _without_tf_attributes(module):
    """Drops what only TensorFlow's parser reads, and names the entry."""
    module = re.sub(
        r"module attributes \{tf\.versions.*?\} \{\n",
        "module {\n",
        module,
        count=1,
        flags=re.S,
    )
    module = re.sub(
        r'func\.func @"?[^"(]+"?\(', "func.func @main(", module, count=1
    )
    module = re.sub(r' \{tf\._user_specified_name = "[^"]*"\}', "", module)
    return re.sub(r" attributes \{allow_soft[^\n]*\}\} \{", " {", module)
