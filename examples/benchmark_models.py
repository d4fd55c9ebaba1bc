"""Encoders with random weights, and batches with realistic padding."""

from typing import NamedTuple

import keras
import keras_hub
import numpy as np
from keras import ops


class Encoder(NamedTuple):
    """A BERT of some size and the batch it is trained on."""

    name: str
    layers: int
    dim: int
    batch: int
    length: int
    vocabulary: int = 30_522

    def __str__(self):
        return (
            f"{self.name} {self.layers}×{self.dim}, {self.batch}×{self.length}"
        )


MINILM = Encoder("MiniLM size", 6, 384, batch=32, length=128)
BERT_BASE = Encoder("BERT-base size", 12, 768, batch=8, length=128)
TINY = Encoder("tiny", 2, 32, batch=4, length=16, vocabulary=50)


def classifier(encoder: Encoder, penalty: keras.layers.Layer | None = None):
    """A Functional BERT classifier, not compiled.

    Args:
        encoder: Its size.
        penalty: A layer that is given the logits, the hidden states and the
            padding mask, and returns the logits.
    """
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=encoder.vocabulary,
        num_layers=encoder.layers,
        num_heads=12 if encoder.dim % 12 == 0 else 2,
        hidden_dim=encoder.dim,
        intermediate_dim=4 * encoder.dim,
        dropout=0.1,
        max_sequence_length=max(encoder.length, 128),
    )
    pooled = keras.layers.Dropout(0.1)(backbone.output["pooled_output"])
    outputs = keras.layers.Dense(2)(pooled)
    if penalty is not None:
        states = [
            backbone.get_layer(f"transformer_layer_{i}").output
            for i in range(encoder.layers)
        ]
        outputs = penalty([outputs, *states, backbone.input["padding_mask"]])
    return keras.Model(backbone.input, outputs)


def compiled(model: keras.Model, jit_compile: bool = False) -> keras.Model:
    """`model`, ready for fine-tuning as in the paper."""
    model.compile(
        optimizer=keras.optimizers.AdamW(2e-5),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    return model


def batch(encoder: Encoder, examples: int | None = None) -> tuple:
    """Random sentences of differing lengths, and their labels."""
    rng = np.random.default_rng(0)
    shape = (examples or encoder.batch, encoder.length)
    # Like pairs of sentences: half of them fill less than 0.4 of the length.
    lengths = encoder.length * rng.lognormal(np.log(0.4), 0.5, size=shape[0])
    mask = np.arange(encoder.length) < np.maximum(lengths, 4)[:, None]
    tokens = rng.integers(0, encoder.vocabulary, size=shape)
    inputs = {
        "token_ids": (tokens * mask).astype("int32"),
        "segment_ids": np.zeros(shape, "int32"),
        "padding_mask": mask.astype("int32"),
    }
    return inputs, rng.integers(0, 2, size=shape[0])


def eigenvalues(covariance):
    """Spectrum by the cheapest decomposition."""
    return ops.eigh(covariance)[0]


def singular_values(covariance):
    """Spectrum by the decomposition in the authors' code."""
    return ops.svd(covariance, compute_uv=False)


def textbook_score(states: list, mask=None, spectrum=eigenvalues):
    """IsoScore as published: one cloud, its covariance, its spectrum.

    Args:
        states: Hidden states `(..., dim)`.
        mask: Optional `(...)` tensor that says which tokens count.
        spectrum: `eigenvalues` or `singular_values`.
    """
    dim = states[0].shape[-1]
    points = ops.concatenate([ops.reshape(s, (-1, dim)) for s in states])
    if mask is None:
        count = ops.cast(ops.shape(points)[0], points.dtype)
        points = points - ops.mean(points, axis=0)
    else:
        weights = ops.cast(ops.reshape(mask, (-1, 1)), points.dtype)
        weights = ops.tile(weights, (len(states), 1))
        count = ops.sum(weights)
        mean = ops.sum(weights * points, axis=0) / count
        points = weights * (points - mean)
    covariance = ops.matmul(ops.transpose(points), points) / (count - 1.0)
    values = spectrum(covariance)
    normalized = np.sqrt(dim) * values / ops.norm(values)
    defect = ops.norm(normalized - 1.0) / np.sqrt(2.0 * (dim - np.sqrt(dim)))
    used = ops.square(dim - defect**2 * (dim - np.sqrt(dim))) / dim**2
    return (dim * used - 1.0) / (dim - 1.0)


class TextbookPenalty(keras.layers.Layer):
    """Adds `1 - textbook_score` to the loss, by plain autodiff."""

    def call(self, inputs, training=None):
        outputs, *states, mask = inputs
        if training:
            self.add_loss(1.0 - textbook_score(states, mask))
        return outputs
