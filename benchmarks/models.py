"""Encoders with random weights, and batches with realistic padding."""

from typing import NamedTuple

import keras
import keras_hub
import numpy as np


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


def classifier(encoder: Encoder) -> keras.Model:
    """A Functional BERT classifier, not compiled."""
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
    outputs = keras.layers.Dense(2, dtype="float32")(pooled)
    return keras.Model(backbone.input, outputs)


def compile_classifier(model: keras.Model, jit_compile: bool = False) -> None:
    """Compiles `model` for fine-tuning as in the paper."""
    model.compile(
        optimizer=keras.optimizers.AdamW(2e-5),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )


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
