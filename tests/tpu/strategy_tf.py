"""Traces steps under a `TPUStrategy` of four chips that are not there.

The strategy is TensorFlow's own; only the resolver that should find the chips
makes them up. Nothing here can run, or be compiled.
"""

import json

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from sizes import DIM
from sizes import EXAMPLES_PER_CHIP
from sizes import LAYERS
from sizes import LENGTH
from tensorflow.python.client.session import _DeviceAttributes
from tensorflow.python.distribute import values
from tensorflow.python.tpu.topology import Topology
from tensorflow.python.tpu.tpu_system_metadata import TPUSystemMetadata

import keras_istar
from keras_istar._src.score import moments

REPLICAS = 4


class Resolver:
    """A resolver that has found a slice of 2 x 2 chips."""

    task_type, task_id, tpu_hardware_feature = "localhost", 0, None

    def get_tpu_system_metadata(self):
        job = "/job:localhost/replica:0/task:0/device:"
        names = [("TPU", i) for i in range(REPLICAS)] + [("CPU", 0)]
        return TPUSystemMetadata(
            num_cores=REPLICAS,
            num_hosts=1,
            num_of_cores_per_host=REPLICAS,
            topology=self.get_tpu_topology(),
            devices=[
                _DeviceAttributes(f"{job}{kind}:{i}", kind, 1, 1)
                for kind, i in names
            ],
        )

    def get_tpu_topology(self):
        chips = [[[x, y, 0, 0] for y in range(2) for x in range(2)]]
        return Topology(mesh_shape=[2, 2, 1, 1], device_coordinates=chips)

    def master(self):
        return ""

    get_master = master

    def cluster_spec(self):
        return tf.train.ClusterSpec({})


def main(*variants):
    """Traces programs, and returns their operations.

    A variant is arguments of `attach` as JSON, null for the step without the
    layer, or the name of a program in `_PROGRAMS`.
    """
    strategy = tf.distribute.TPUStrategy(Resolver())
    with strategy.scope():
        return [_operations(_trace(strategy, name)) for name in variants]


def _trace(strategy, variant):
    if variant in _PROGRAMS:
        states = tf.TensorSpec((EXAMPLES_PER_CHIP, LENGTH, DIM), tf.float32)
        function = _PROGRAMS[variant]
        return _trace_replicas(strategy, function, [states] * LAYERS)
    model = _classifier(json.loads(variant))
    return _trace_replicas(
        strategy,
        lambda a, b, c, y: model.train_step((_features(a, b, c), y)),
        [tf.TensorSpec((EXAMPLES_PER_CHIP, LENGTH), tf.int32)] * 3
        + [tf.TensorSpec((EXAMPLES_PER_CHIP,), tf.int32)],
    )


def _trace_replicas(strategy, function, specs):
    """Graph of `strategy.run(function)`, from the specs of one replica."""

    def run(*tensors):
        arguments = [
            values.PerReplica(tensors[i : i + REPLICAS])
            for i in range(0, len(tensors), REPLICAS)
        ]
        return strategy.run(function, args=arguments)

    every = [spec for spec in specs for _ in range(REPLICAS)]
    traced = tf.function(run, autograph=False).get_concrete_function(*every)
    return traced.graph


def _operations(graph):
    """Each operation's type and outputs; types alone in nested functions."""
    operations = [
        {
            "type": op.type,
            "outputs": [
                {
                    "dtype": x.dtype.name,
                    "shape": list(x.shape)
                    if x.shape.rank is not None
                    else None,
                }
                for x in op.outputs
            ],
        }
        for op in graph.get_operations()
    ]
    nested = [
        {"type": node.op, "outputs": []}
        for function in graph.as_graph_def().library.function
        for node in function.node_def
    ]
    return operations + nested


def _classifier(options):
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=100,
        num_layers=LAYERS,
        num_heads=2,
        hidden_dim=DIM,
        intermediate_dim=2 * DIM,
        max_sequence_length=LENGTH,
    )
    model = keras_hub.models.BertTextClassifier(backbone, num_classes=2)
    if options is not None:
        keras_istar.attach(model, **options)
    model.compile(
        keras.optimizers.AdamW(2e-5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    tokens = np.zeros((EXAMPLES_PER_CHIP, LENGTH), "int32")
    model._symbolic_build(
        data_batch=(_features(tokens, tokens, tokens), tokens[:, 0])
    )
    model.optimizer.build(model.trainable_variables)
    return model


def _features(token_ids, segment_ids, padding_mask):
    return {
        "token_ids": token_ids,
        "segment_ids": segment_ids,
        "padding_mask": padding_mask,
    }


def _one_sum_a_state(*states):
    with tf.GradientTape() as tape:
        tape.watch(states)
        parts = [
            moments.sum_over_replicas(moments.token_moments(state))[0]
            for state in states
        ]
        loss = tf.reduce_sum(moments.combine(parts).scatter ** 2)
    return tape.gradient(loss, states)


_PROGRAMS = {
    "one_sum_a_state": _one_sum_a_state,
    "eigenvalues": lambda x, _: tf.linalg.eigvalsh(x[0, :, :LENGTH]),
    "any_eigenvalues": lambda x, _: tf.linalg.eigvals(x[0, :, :LENGTH]),
    "singular_values": lambda x, _: tf.linalg.svd(x, compute_uv=False),
    "float64": lambda x, _: tf.cast(x, tf.float64),
    "dynamic_shape": lambda x, _: tf.boolean_mask(x, x > 0),
    "host_function": lambda x, _: tf.py_function(abs, [x], tf.float32),
}
