"""What is measured of one hidden state: its cloud of points -> numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_istar import measures
from keras_istar.measures import Cloud
from keras_istar.moments import Moments


@dataclass(frozen=True)
class LayerIsotropy:
    """What was measured of one hidden state, or of the union of all.

    Attributes:
        layer: Name of the state, `"layer_0"` for example, or `"union"`.
        points: Number of tokens measured.
        values: The measures' numbers by column, see `measure`.
        spectrum: Eigenvalues of the covariance, largest first, `dim` of them.
        means: Mean of each dimension.
        variances: Variance of each dimension.
        outlier_dimensions: Dimensions with more than 5 times the average
            variance, widest first.
    """

    layer: str
    points: int
    values: dict[str, float]
    spectrum: list[float]
    means: list[float]
    variances: list[float]
    outlier_dimensions: list[int]


def mean_and_covariance(tokens: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Mean `(dim,)` and covariance `(dim, dim)` of tokens, in float64.

    Dimensions that are constant to rounding have covariance 0. Neither is
    finite where the moments are not.
    """
    count, center, offset, scatter = map(as_float64, tokens)
    mean = center + offset
    covariance = scatter / max(count - 1.0, 1.0)
    with np.errstate(invalid="ignore"):
        return mean, _resolved(covariance, mean)


def describe(
    layer: str, names: Sequence[str], cloud: Cloud, mean: np.ndarray
) -> LayerIsotropy:
    """The named measures of a cloud, its spectrum and its dimensions.

    Args:
        layer: Name of the state.
        names: Names of measures, as `measures.choose` gives them.
        cloud: What is known of the tokens.
        mean: Their mean, `(dim,)`.
    """
    variances = np.diag(cloud.covariance)
    return LayerIsotropy(
        layer=layer,
        points=cloud.count,
        values=measures.compute(names, cloud),
        spectrum=measures.spectrum(cloud.covariance).tolist(),
        means=mean.tolist(),
        variances=variances.tolist(),
        outlier_dimensions=measures.outlier_dimensions(variances).tolist(),
    )


def as_float64(tensor: Any) -> np.ndarray:
    """Array of the values of a tensor."""
    return np.asarray(ops.convert_to_numpy(tensor), "float64")


def _resolved(covariance, mean):
    """The covariance with 0 for dimensions constant to float32's rounding."""
    rounding = 4 * np.finfo("float32").eps * np.abs(mean)
    varies = np.diag(covariance) > rounding**2
    return covariance * varies * varies[:, None]
