"""Helpers of `test_isotropy_report_example`."""

from pathlib import Path

import keras
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
TFDS = ROOT.parent / "shared" / "tfds"


@pytest.fixture(scope="module", autouse=True)
def needs_tensorflow():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the examples feed and log through TensorFlow")


def eigenvalue_isoscore(points):
    """IsoScore by the eigenvalues of the covariance, in float64."""
    dim = points.shape[-1]
    values = np.linalg.eigvalsh(np.cov(points, rowvar=False))
    values = np.sqrt(dim) * values / np.linalg.norm(values)
    defect = np.linalg.norm(values - 1) / np.sqrt(2 * (dim - np.sqrt(dim)))
    phi = (dim - defect**2 * (dim - np.sqrt(dim))) ** 2 / dim**2
    return (dim * phi - 1) / (dim - 1)


def hidden_tokens(task, texts):
    """Unpadded tokens of every block, `(tokens, dim)` each, in float64."""
    inputs = task.preprocessor(texts)
    backbone = task.backbone
    blocks = [layer.output for layer in backbone.transformer_layers]
    states = keras.Model(backbone.inputs, blocks)(inputs)
    mask = np.asarray(inputs["padding_mask"]).astype(bool)
    return [np.asarray(state, "float64")[mask] for state in states]
