"""The figures of the example on sentence embeddings, by hand."""

import numpy as np
import oracle
import pytest

pytest.importorskip("tensorflow_datasets")
pytest.importorskip("keras_hub")
sentence_embeddings = pytest.importorskip("sentence_embeddings")


def test_row_of_the_table(capsys):
    first = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    second = np.array([[3.0, 0.0], [1.0, 1.0], [-1.0, -1.0]])
    scores = np.array([1.0, 0.8, 0.0])
    sentence_embeddings.evaluate("row", first, second, scores)
    spearman, alignment, uniformity, isoscore = map(
        float, capsys.readouterr().out.removeprefix("row").split()
    )
    assert spearman == 1.0  # Cosines are 1, 0.71 and -1.
    # Similar are the first two pairs, at distances² 0 and 2 - sqrt(2).
    assert alignment == pytest.approx((2 - np.sqrt(2)) / 2, abs=1e-3)
    angles = np.radians([0, 90, 45, 0, 45, 225])
    cosines = np.cos(angles[:, None] - angles)[~np.eye(6, dtype=bool)]
    expected = np.log(np.mean(np.exp(-2 * (2 - 2 * cosines))))
    assert uniformity == pytest.approx(expected, abs=6e-3)
    both = np.concatenate([first, second])
    assert isoscore == pytest.approx(
        oracle.score(oracle.covariance(both)), abs=1e-3
    )
