"""Where samples come from: a known Gaussian, and a model's hidden states."""

import argparse
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import classifiers
import keras
import numpy as np
from command_line import UserError
from text_tasks import TextTask

import keras_istar

_DECAY = 5.0  # Makes the Gaussian's IsoScore 0.394 in 768 dimensions.
_MANY = 100_000  # Points that the Gaussian's stable covariance comes from.
_LARGEST = 16  # Points in the largest sample, for each dimension.
_CHUNK = 256  # Texts that run through the model at once.


class Space(NamedTuple):
    """Points to take samples of.

    Attributes:
        name: What they are.
        dim: Number of their dimensions.
        score: IsoScore of all of them, which samples are to tell.
        score_name: What `score` is, in words.
        target: Covariance of an independent large sample, `(dim, dim)`.
        draw: Makes a sample of so many points, `(points, dim)` in float32.
    """

    name: str
    dim: int
    score: float
    score_name: str
    target: np.ndarray
    draw: Callable[[int], np.ndarray]


def largest_sample(dim: int) -> int:
    """Number of points that `draw` of a space is asked for."""
    return _LARGEST * dim


def gaussian(dim: int, rng: np.random.Generator) -> Space:
    """A Gaussian whose k-th variance of `dim` is exp(−5 k/dim).

    Neither isotropic nor flat: about 2/5 of the directions share the variance,
    (tanh 2.5)·dim·2/5 for large `dim`. Its axes are those of the coordinates,
    to which scores are blind.
    """
    widths = np.exp(-0.5 * _DECAY * np.arange(dim) / dim)

    def draw(count):
        return rng.standard_normal((count, dim), "float32") * np.float32(widths)

    score = keras_istar.isoscore_from_covariance(np.diag(widths**2))
    return Space(
        name=f"Gaussian, {dim} dimensions",
        dim=dim,
        score=float(score),
        score_name="exact IsoScore",
        target=np.cov(draw(_MANY), rowvar=False, dtype="float32"),
        draw=draw,
    )


def hidden_states(
    data: TextTask, options: argparse.Namespace, rng: np.random.Generator
) -> Space:
    """Tokens of all layers of an encoder, as one cloud.

    Samples come from the training part of the texts, the stable covariance
    from the test part.

    Raises:
        UserError: If the model has no list of blocks, or the texts too few
            tokens.
    """
    task = classifiers.load_classifier(
        options.preset, len(data.classes), options.sequence_length
    )
    if not hasattr(task.backbone, "transformer_layers"):
        raise UserError(f"{options.preset!r} has no list of transformer layers")
    points = _tokens(task, data.train.texts)
    others = _tokens(task, data.test.texts)
    needed = 2 * largest_sample(points.shape[-1])
    if len(points) < needed:
        raise UserError(
            f"the training part of {data.name} must have at least {needed:,} "
            f"hidden states. Received: {len(points):,}"
        )

    def draw(count):
        return points[rng.choice(len(points), count, replace=False)]

    dim = points.shape[-1]
    return Space(
        name=f"Hidden states of {options.preset}, {dim} dimensions",
        dim=dim,
        score=float(keras_istar.isoscore(points)),
        score_name="IsoScore of all",
        target=np.cov(others, rowvar=False),
        draw=draw,
    )


def _tokens(task: Any, texts: Any) -> np.ndarray:
    """Unpadded tokens of all blocks, `(tokens, dim)`, in float32."""
    backbone = task.backbone
    blocks = [block.output for block in backbone.transformer_layers]
    model = keras.Model(backbone.inputs, blocks)
    found = []
    for chunk in chunks(texts):
        inputs = task.preprocessor(chunk)
        is_token = keras.ops.convert_to_numpy(inputs["padding_mask"]) > 0
        states = model.predict(inputs, verbose=0)
        found += [state[is_token] for state in states]
    return np.concatenate(found).astype("float32", copy=False)


def chunks(texts: Any) -> Iterator[Any]:
    """Parts of a list of texts, or of a pair of lists."""
    columns = texts if isinstance(texts, tuple) else (texts,)
    for start in range(0, len(columns[0]), _CHUNK):
        parts = tuple(column[start : start + _CHUNK] for column in columns)
        yield parts if isinstance(texts, tuple) else parts[0]
