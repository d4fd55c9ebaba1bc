"""Measures of isotropy: what is known of points -> numbers, in float64."""

import importlib.util
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import NamedTuple

import numpy as np

OUTLIER_RULE = 5.0  # Times the average variance.
_TOP = (1, 3, 10)
_ABSENT: Any = None


@dataclass(frozen=True)
class Cloud:
    """What the measures need to know of a cloud of points.

    All but the first two may be left out if no measure asked for needs them.

    Attributes:
        count: Number of points, at least 2.
        covariance: Unbiased, `(dim, dim)`.
        shrunk: The covariance after shrinkage, Σ_ζ, `(dim, dim)`.
        norm_sum: Sum of the Euclidean norms of the points.
        unit_sum: Sum of the points scaled to length 1, `(dim,)`.
        num_nonzero: Number of points that are not the zero vector.
        sample: Some of the points, `(points, dim)`.
    """

    count: int
    covariance: np.ndarray
    shrunk: np.ndarray = _ABSENT
    norm_sum: float = _ABSENT
    unit_sum: np.ndarray = _ABSENT
    num_nonzero: int = _ABSENT
    sample: np.ndarray = _ABSENT


class Measure(NamedTuple):
    """A measure: its columns, how to compute them, what it needs.

    Attributes:
        columns: Names of its numbers.
        compute: `Cloud` -> one number for each column.
        needs_sample: Whether it reads `Cloud.sample`.
        needs_package: Module that it imports, if it does.
    """

    columns: tuple[str, ...]
    compute: Callable[[Cloud], tuple]
    needs_sample: bool = False
    needs_package: str | None = None


def choose(metrics: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the measures asked for, and of those left out.

    `"all"` leaves out the measures whose package is not installed; a measure
    asked for by name never is.

    Raises:
        ValueError: If a name is unknown.
        ImportError: If a measure asked for by name lacks its package.
    """
    left_out = [n for n, m in MEASURES.items() if not _is_available(m)]
    if isinstance(metrics, str) and metrics == "all":
        return [n for n in MEASURES if n not in left_out], left_out
    is_list = isinstance(metrics, (list, tuple))
    names = list(metrics) if is_list else [metrics]
    unknown = [x for x in names if not isinstance(x, str) or x not in MEASURES]
    if unknown or not names:
        raise ValueError(
            '`metrics` must be "all" or a list of names out of '
            f"{list(MEASURES)}. Received: metrics={metrics!r:.200}"
        )
    for name in set(names) & set(left_out):
        raise ImportError(
            f"`metrics` asks for {name!r}, which needs scikit-dimension: "
            "`pip install keras-istar[report]`."
        )
    return [name for name in MEASURES if name in names], []


def need_sample(names: Sequence[str]) -> bool:
    """Whether any of the named measures reads a sample of the points."""
    return any(MEASURES[name].needs_sample for name in names)


def compute(names: Sequence[str], cloud: Cloud) -> dict[str, float]:
    """The numbers of the named measures, by column."""
    values: dict[str, Any] = {}
    for measure in (MEASURES[name] for name in names):
        values.update(zip(measure.columns, measure.compute(cloud), strict=True))
    return {n: x if isinstance(x, int) else float(x) for n, x in values.items()}


def spectrum(covariance: np.ndarray) -> np.ndarray:
    """Eigenvalues of a covariance matrix, `(dim,)`, largest first."""
    return np.clip(np.linalg.eigvalsh(covariance)[::-1], 0.0, None)


def above_rounding(spectrum: Sequence[float]) -> np.ndarray:
    """The eigenvalues, largest first, that float32's rounding cannot make."""
    values = np.asarray(spectrum)
    floor = values[0] * len(values) * np.finfo("float32").eps
    return values[values > floor]


def outlier_dimensions(variances: np.ndarray) -> np.ndarray:
    """Dimensions whose variance is over 5 times the average, widest first.

    Source: the rule of Rudman, Chen and Eickhoff, "Outlier Dimensions Encode
    Task-Specific Knowledge", EMNLP 2023, for what Timkey and van Schijndel
    (EMNLP 2021) call rogue dimensions.
    """
    widest_first = np.argsort(-variances, kind="stable")
    is_outlier = variances > OUTLIER_RULE * np.mean(variances)
    return widest_first[is_outlier[widest_first]]


def participation_ratio(covariance: np.ndarray) -> float:
    """tr(Σ)² / ‖Σ‖_F², from 1 to `dim`; 0 if all points are equal."""
    scale = np.max(np.abs(covariance))
    if scale == 0:
        return 0.0
    scaled = covariance / scale
    return np.trace(scaled) ** 2 / np.sum(scaled**2)


def isoscore(covariance: np.ndarray) -> float:
    """(tr(Σ)² / ‖Σ‖_F² − 1) / (dim − 1), see `keras_istar.isoscore`."""
    score = (participation_ratio(covariance) - 1.0) / (len(covariance) - 1.0)
    return min(max(score, 0.0), 1.0)


def effective_rank(covariance: np.ndarray) -> float:
    """exp of the entropy of the eigenvalues as shares of their sum.

    From 1 to `dim`; 0 if all points are equal.

    Source: Roy and Vetterli, "The Effective Rank: A Measure of Effective
    Dimensionality", EUSIPCO 2007, for the covariance matrix.
    """
    values = spectrum(covariance)
    shares = values[values > 0] / max(np.sum(values), np.finfo(float).tiny)
    return float(np.exp(-np.sum(shares * np.log(shares)))) if len(shares) else 0


def average_cosine(cloud: Cloud) -> float:
    """Mean cosine of all pairs of different points.

    With x̂ the points scaled to length 1, the sum over ordered pairs is
    ‖Σ x̂‖² − n. A pair with the zero vector counts as cosine 0.
    """
    pairs = cloud.count * (cloud.count - 1)
    return (np.sum(cloud.unit_sum**2) - cloud.num_nonzero) / pairs


def partition_isotropy(points: np.ndarray) -> float:
    """min Z(a) / max Z(a) over unit eigenvectors a of XᵀX, Z(a) = Σ exp(aᵀx).

    An eigenvector has no sign: both a and −a are tried. From 0 to 1.

    Source: Mu and Viswanath, "All-but-the-Top: Simple and Effective
    Postprocessing for Word Representations", ICLR 2018.
    """
    _, directions = np.linalg.eigh(points.T @ points)
    projections = points @ np.concatenate([directions, -directions], axis=1)
    largest = np.max(projections, axis=0)
    log_z = largest + np.log(np.sum(np.exp(projections - largest), axis=0))
    return float(np.exp(np.min(log_z) - np.max(log_z)))


def top_variance_shares(variances: np.ndarray) -> tuple[float, ...]:
    """Shares of the 1, 3 and 10 widest dimensions in the total variance."""
    widest_first = np.sort(variances)[::-1]
    total = np.sum(variances)
    return tuple(
        float(np.sum(widest_first[:top]) / total) if total > 0 else 0.0
        for top in _TOP
    )


def twonn(points: np.ndarray) -> tuple[float, int]:
    """TwoNN intrinsic dimension, and the number of points it comes from.

    Points that occur more than once count once: the estimate divides by the
    distance to the nearest neighbour. NaN for fewer than 10 points.

    Source: Facco et al., "Estimating the intrinsic dimension of datasets by a
    minimal neighborhood information", Scientific Reports 2017, as in
    `skdim.id.TwoNN`.
    """
    from skdim.id import TwoNN

    distinct = np.unique(points, axis=0)
    if len(distinct) < 10:
        return float("nan"), len(distinct)
    return float(TwoNN().fit(distinct).dimension_), len(distinct)


def _of_covariance(function):
    return lambda cloud: (function(cloud.covariance),)


MEASURES = {
    "isoscore": Measure(("isoscore",), _of_covariance(isoscore)),
    "isoscore_star": Measure(
        ("isoscore_star",), lambda cloud: (isoscore(cloud.shrunk),)
    ),
    "participation_ratio": Measure(
        ("participation_ratio",), _of_covariance(participation_ratio)
    ),
    "effective_rank": Measure(
        ("effective_rank",), _of_covariance(effective_rank)
    ),
    "average_cosine": Measure(
        ("average_cosine",), lambda cloud: (average_cosine(cloud),)
    ),
    "partition_isotropy": Measure(
        ("partition_isotropy", "partition_points"),
        lambda cloud: (partition_isotropy(cloud.sample), len(cloud.sample)),
        needs_sample=True,
    ),
    "top_variance": Measure(
        tuple(f"top_{top}_variance" for top in _TOP),
        lambda cloud: top_variance_shares(np.diag(cloud.covariance)),
    ),
    "outliers": Measure(
        ("outliers",),
        lambda cloud: (len(outlier_dimensions(np.diag(cloud.covariance))),),
    ),
    "mean_norm": Measure(
        ("mean_norm",), lambda cloud: (cloud.norm_sum / cloud.count,)
    ),
    "twonn": Measure(
        ("twonn_dimension", "twonn_points"),
        lambda cloud: twonn(cloud.sample),
        needs_sample=True,
        needs_package="skdim",
    ),
}


def _is_available(measure):
    package = measure.needs_package
    return package is None or importlib.util.find_spec(package) is not None
