"""Isotropy of one hidden state: a row of a report."""

import sys
import warnings
from dataclasses import dataclass
from math import isfinite

from keras_istar._src import validation

_ARRAYS = ("spectrum", "means", "variances")


@dataclass(frozen=True)
class LayerIsotropy:
    """Isotropy of one hidden state, or of the union of all, as measured.

    Attributes:
        layer: Name of the state, `"layer_0"` for example, or `"union"`.
        tokens: Number of tokens measured.
        values: The measures' numbers by column, see `measure`.
        spectrum: Eigenvalues of the covariance, largest first, `dim` of them.
        means: Mean of each dimension.
        variances: Variance of each dimension.
        outlier_dimensions: Dimensions with more than 5 times the average
            variance, widest first.

    Raises:
        ValueError: If an attribute is of another type, or spectrum, means and
            variances differ in length.

    Example:

    >>> inputs = keras.Input((8, 4))
    >>> hidden = keras.layers.Dense(6, name="encoder")(inputs)
    >>> model = keras.Model(inputs, hidden)
    >>> data = np.random.default_rng(0).normal(size=(32, 8, 4))
    >>> report = keras_istar.measure(model, data, layers="encoder", verbose=0)
    >>> row = report.rows[0]
    >>> row.layer, row.tokens, len(row.spectrum)
    ('encoder', 256, 6)
    """

    layer: str
    tokens: int
    values: dict[str, float]
    spectrum: list[float]
    means: list[float]
    variances: list[float]
    outlier_dimensions: list[int]

    @property
    def points(self) -> int:
        """The name that `tokens` had one release ago."""
        warnings.warn(
            "`points` is now called `tokens`. The old name will be removed in "
            "the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.tokens

    def __post_init__(self):
        validation.check_text("layer", self.layer)
        validation.check_positive_int(
            "tokens", self.tokens, at_most=sys.maxsize
        )
        _check_values(self.values)
        columns = (self.spectrum, self.means, self.variances)
        for name, column in zip(_ARRAYS, columns, strict=True):
            _check_numbers(name, column)
        lengths = [len(column) for column in columns]
        if len(set(lengths)) > 1:
            raise ValueError(
                "`spectrum`, `means` and `variances` must be of one length. "
                f"Received: lengths={lengths}"
            )
        _check_dimensions(self.outlier_dimensions, lengths[0])


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


def _is_number(value):
    return isinstance(value, float) or (
        type(value) is int and abs(value) <= sys.float_info.max
    )
