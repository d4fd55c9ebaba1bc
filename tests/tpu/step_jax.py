"""Compiles train steps of a small BERT on the JAX backend."""

import json

import tpu_target  # First, it sets what JAX and libtpu read.

# isort: split
import jax
import keras
import keras_hub
import numpy as np
from jax import numpy as jnp
from sizes import DIM
from sizes import EXAMPLES_PER_CHIP
from sizes import LAYERS
from sizes import LENGTH

import keras_istar


def main(topology, dtype, *variants):
    """Compiles one step a variant: arguments of `attach` as JSON, or null."""
    keras.config.set_dtype_policy(dtype)
    return [_compile(topology, json.loads(variant)) for variant in variants]


def _compile(topology, options):
    model = _classifier()
    if options is not None:
        keras_istar.attach(model, **({"strength": -1.0} | options))
    model.compile(
        keras.optimizers.AdamW(2e-5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    batch = EXAMPLES_PER_CHIP * len(tpu_target.chips(topology))
    model._symbolic_build(
        data_batch=_map(lambda shape: np.zeros(shape, "int32"), batch)
    )
    model.optimizer.build(model.trainable_variables)
    replicated, sharded = tpu_target.shardings(topology)
    state = jax.tree.map(
        lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=replicated),
        (
            [v.value for v in model.trainable_variables],
            [v.value for v in model.non_trainable_variables],
            [v.value for v in model.optimizer.variables],
            [v.value for v in model.metrics_variables],
        ),
    )
    data = _map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharded),
        batch,
    )
    return tpu_target.compile_jax(model.train_step, state, data, donate=0)


def _classifier():
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=100,
        num_layers=LAYERS,
        num_heads=2,
        hidden_dim=DIM,
        intermediate_dim=4 * DIM,
        max_sequence_length=LENGTH,
    )
    return keras_hub.models.BertTextClassifier(backbone, num_classes=2)


def _map(make, batch):
    names = ("token_ids", "segment_ids", "padding_mask")
    return {name: make((batch, LENGTH)) for name in names}, make((batch,))
