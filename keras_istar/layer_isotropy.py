"""What is measured of one hidden state: its cloud of points -> numbers."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from keras import ops

from keras_istar import checks
from keras_istar import measures
from keras_istar.measures import Cloud
from keras_istar.moments import Moments

_COLUMNS = ("spectrum", "means", "variances")


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

    Raises:
        ValueError: If an attribute is of another type, or spectrum, means and
            variances differ in length.
    """

    layer: str
    points: int
    values: dict[str, float]
    spectrum: list[float]
    means: list[float]
    variances: list[float]
    outlier_dimensions: list[int]

    def __post_init__(self):
        checks.check_text("layer", self.layer)
        checks.check_positive_int("points", self.points, at_most=sys.maxsize)
        _check_values(self.values)
        columns = (self.spectrum, self.means, self.variances)
        for name, column in zip(_COLUMNS, columns, strict=True):
            _check_numbers(name, column)
        lengths = [len(column) for column in columns]
        if len(set(lengths)) > 1:
            raise ValueError(
                "`spectrum`, `means` and `variances` must be of one length. "
                f"Received: lengths={lengths}"
            )
        _check_dimensions(self.outlier_dimensions, lengths[0])


def check_rows(rows: Any, dim: int) -> None:
    """Raises unless `rows` can be those of a report on `dim` dimensions."""
    checks.check_tuple("rows", rows, LayerIsotropy, "a tuple of LayerIsotropy")
    widths = [len(row.spectrum) for row in rows]
    if not rows or set(widths) != {dim}:
        raise ValueError(
            f"`rows` must be one or more of `dim` numbers, dim={dim}. "
            f"Received: rows of {widths} numbers"
        )
    names = [list(row.values) for row in rows]
    if any(set(other) != set(names[0]) for other in names):
        raise ValueError(
            "`rows` must have the same values. "
            f"Received: rows with values={names!r:.200}"
        )


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


def _is_number(value):
    return isinstance(value, float) or (
        type(value) is int and abs(value) <= sys.float_info.max
    )


def _check_values(values):
    is_dict = isinstance(values, dict)
    if not is_dict or not all(
        isinstance(name, str) and _is_number(value)
        for name, value in values.items()
    ):
        raise ValueError(
            "`values` must be a dict of numbers by name. "
            f"Received: values={values!r:.200}"
        )


def _check_numbers(name, values):
    is_list = isinstance(values, list)
    if not is_list or not all(_is_number(x) and isfinite(x) for x in values):
        raise ValueError(
            f"`{name}` must be a list of finite numbers. "
            f"Received: {name}={values!r:.200}"
        )


def _check_dimensions(dimensions, dim):
    if not isinstance(dimensions, list) or not all(
        type(x) is int and 0 <= x < dim for x in dimensions
    ):
        raise ValueError(
            "`outlier_dimensions` must be a list of integers from 0 to "
            f"{dim - 1}. Received: outlier_dimensions={dimensions!r:.200}"
        )
