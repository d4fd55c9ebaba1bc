"""Examples as arrays of tokens, and batches of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import Self

import numpy as np
import tensorflow as tf

from finetuning import scores
from finetuning.data import Examples

_INFERENCE_BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Examples as the model takes them, and their labels.

    Attributes:
        inputs: Arrays of shape `(examples, length)` by name.
        labels: Of shape `(examples,)`, or `(examples, labels)`.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray

    @property
    def num_examples(self) -> int:
        """Number of examples of the task."""
        return len(self.labels)

    def score(
        self, names: Sequence[str], outputs: np.ndarray
    ) -> dict[str, float]:
        """Scores of a model's outputs for the first of these, by name."""
        return scores.score(names, outputs, self.labels[: len(outputs)])

    def take(self, index: Any) -> Self:
        """The examples of a slice, or of an array of indices."""
        inputs = {name: array[index] for name, array in self.inputs.items()}
        return dataclasses.replace(
            self, inputs=inputs, labels=self.labels[index]
        )

    def by_length(self) -> Self:
        """The examples in the order of their lengths, which saves padding."""
        if "padding_mask" not in self.inputs:
            return self
        lengths = self.inputs["padding_mask"].sum(axis=-1)
        return self.take(np.argsort(lengths, kind="stable"))


def tokenize(preprocessor: Any, examples: Examples) -> Tokens:
    """Arrays of integers, by the preprocessor of a KerasHub classifier."""
    texts, labels = examples
    is_pair = isinstance(texts, tuple)
    texts = tuple(map(tf.constant, texts)) if is_pair else tf.constant(texts)
    inputs, _ = preprocessor(texts, tf.constant(labels))
    # Integers for masks too: under a strategy of several replicas, `fit` takes
    # the mean of the first batch over them; TensorFlow has none for booleans.
    arrays = {k: np.asarray(x).astype("int32") for k, x in inputs.items()}
    return Tokens(arrays, np.asarray(labels))


class Batches(NamedTuple):
    """Makes batches of tokens.

    Attributes:
        size: Examples in a training batch.
        are_alike: Whether all batches must have one shape: nothing is cut,
            and the examples that do not fill a batch are dropped.
    """

    size: int
    are_alike: bool = False

    def for_training(self, tokens: Tokens, seed: int) -> tf.data.Dataset:
        """Batches in an order of their own in every epoch, by the seed."""
        data = _dataset(tokens)
        data = data.shuffle(len(tokens.labels), seed=seed)
        return self._cut(data.batch(self.size, drop_remainder=self.are_alike))

    def for_inference(self, tokens: Tokens) -> tf.data.Dataset:
        """Batches in the given order."""
        size = self.size if self.are_alike else _INFERENCE_BATCH_SIZE
        data = _dataset(tokens).batch(size, drop_remainder=self.are_alike)
        # Outputs for every token must have one length, to be put together.
        return data if tokens.labels.ndim > 1 else self._cut(data)

    def count(self, tokens: Tokens) -> int:
        """Number of training batches."""
        whole, rest = divmod(len(tokens.labels), self.size)
        return whole + (rest > 0 and not self.are_alike)

    def _cut(self, data):
        return data if self.are_alike else data.map(_cut_padding)


def _dataset(tokens):
    return tf.data.Dataset.from_tensor_slices((tokens.inputs, tokens.labels))


def _cut_padding(inputs, labels):
    """Cuts a batch to its longest example."""
    if "padding_mask" not in inputs:
        return inputs, labels
    length = tf.reduce_max(tf.reduce_sum(inputs["padding_mask"], axis=-1))
    return {name: array[:, :length] for name, array in inputs.items()}, labels
