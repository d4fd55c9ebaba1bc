"""The picture of scores by the number of points, in few dimensions."""

import re

import matplotlib.image
import numpy as np
import oracle
import pytest
import stability


def test_scores_are_known_and_drawn(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(stability, "DIM", 16)
    monkeypatch.setattr(stability, "SIZES", [4, 64, 2048])
    monkeypatch.chdir(tmp_path)
    stability.main()
    printed = capsys.readouterr().out
    exact = oracle.score(np.diag(np.exp(-5 * np.arange(16) / 16)))
    assert f"Exact IsoScore: {exact:.3f}" in printed
    rows = re.findall(r"^(\d+)((?: +[\d.]+){5})$", printed, re.MULTILINE)
    assert [int(size) for size, _ in rows] == stability.SIZES
    few, _, many = (np.array(row.split(), "float") for _, row in rows)
    assert few[0] < 0.4 * exact  # Plain IsoScore of a fourth of the dimension.
    assert list(few) == sorted(few)  # The more shrinkage, the nearer.
    assert few[-1] == pytest.approx(exact, rel=0.15)
    np.testing.assert_allclose(many, exact, rtol=0.05)
    picture = matplotlib.image.imread(tmp_path / "stability.png")
    assert picture.shape[:2] == (600, 1200) and np.ptp(picture) == 1.0
