"""Scores of samples of many sizes."""

from collections.abc import Sequence

import keras
import pandas
from stability_spaces import Space
from stability_spaces import largest_sample

import keras_istar


def sizes(dim: int) -> list[int]:
    """Sizes of samples: from `dim`/32 to 16 `dim`, each twice the last."""
    largest = largest_sample(dim)
    return [n for n in (largest >> k for k in range(9, -1, -1)) if n >= 2]


def measure(
    space: Space, shrinkages: Sequence[float], repeats: int
) -> pandas.DataFrame:
    """Scores of samples, independent from repeat to repeat.

    Args:
        space: What to take samples of.
        shrinkages: Each a ζ of IsoScore*.
        repeats: Number of samples of each size. Those of one repeat contain
            one another.

    Returns:
        A row for each sample, with a column for IsoScore and one for each ζ.
        The index has the number of `points`.
    """
    target = keras.ops.convert_to_tensor(space.target, "float32")
    rows = []
    for _ in range(repeats):
        points = space.draw(largest_sample(space.dim))
        for size in sizes(space.dim):
            sample = keras.ops.convert_to_tensor(points[:size])
            row = {"points": size, "IsoScore": keras_istar.isoscore(sample)}
            for shrinkage in shrinkages:
                row[f"ζ = {shrinkage:g}"] = keras_istar.isoscore_star(
                    sample, target, shrinkage
                )
            rows.append({name: float(v) for name, v in row.items()})
    frame = pandas.DataFrame(rows).astype({"points": int})
    return frame.set_index("points")


def quantile(scores: pandas.DataFrame, share: float) -> pandas.DataFrame:
    """Quantiles over repeats, a row for each number of points."""
    return scores.groupby("points").quantile(share)
