"""Measures of isotropy: statistics of tokens -> numbers, in float64.

`MEASURES` is the table of them. To add a measure, write a function and a row:
reports, pictures and comparisons take everything else from the row.
"""

import importlib.util
import warnings
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
class MeasureInputs:
    """Statistics of tokens that the measures are computed from.

    All but the first two may be left out if no measure asked for needs them.

    Attributes:
        count: Number of tokens, at least 2.
        covariance: Unbiased, `(dim, dim)`.
        shrunk: The covariance after shrinkage, Σ_ζ, `(dim, dim)`.
        norm_sum: Sum of the Euclidean norms of the tokens.
        unit_sum: Sum of the tokens scaled to length 1, `(dim,)`.
        num_nonzero: Number of tokens that are not the zero vector.
        sample: Some of the tokens, `(tokens, dim)`.
    """

    count: int
    covariance: np.ndarray
    shrunk: np.ndarray = _ABSENT
    norm_sum: float = _ABSENT
    unit_sum: np.ndarray = _ABSENT
    num_nonzero: int = _ABSENT
    sample: np.ndarray = _ABSENT


class Column(NamedTuple):
    """A number of a measure, as reports show it.

    Attributes:
        heading: Text above it in a printed report, as short as can be.
        format: How to print it, as `format` takes it.
        title: Its name on a page.
        meaning: What it says in one sentence. May name `dim`, `shrinkage`,
            `shrinkage_target` and `sample` in braces.
    """

    heading: str
    format: str
    title: str
    meaning: str


class Measure(NamedTuple):
    """A measure, its numbers and what it needs.

    Attributes:
        columns: The numbers by name.
        compute: Function of `MeasureInputs` that returns one number for each
            column. If the measure reads the sample, the number of tokens that
            it comes from follows.
        meaning: Formula and source, for the documentation.
        sample_column: Name of that number of tokens, if it reads the sample.
        needs_directions: Whether it reads lengths or directions of tokens.
        needs_package: Package that it imports, if any.
    """

    columns: dict[str, Column]
    compute: Callable[[MeasureInputs], tuple]
    meaning: str
    sample_column: str | None = None
    needs_directions: bool = False
    needs_package: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all of its numbers, in the order of `compute`."""
        sample = () if self.sample_column is None else (self.sample_column,)
        return (*self.columns, *sample)


def choose(chosen: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the measures asked for, and of those left out.

    `"all"` leaves out the measures whose package is not installed. A measure
    that is asked for by name is never left out.

    Raises:
        ValueError: If a name is unknown.
        ImportError: If a measure asked for by name lacks its package.
    """
    left_out = [n for n, m in MEASURES.items() if not _is_available(m)]
    if isinstance(chosen, str) and chosen == "all":
        return [n for n in MEASURES if n not in left_out], left_out
    is_list = isinstance(chosen, (list, tuple))
    names = list(chosen) if is_list else [chosen]
    unknown = [x for x in names if not isinstance(x, str) or x not in MEASURES]
    if unknown or not names:
        raise ValueError(
            '`measures` must be "all" or a list of names out of '
            f"{list(MEASURES)}. Received: measures={chosen!r:.200}"
        )
    for name in set(names) & set(left_out):
        raise ImportError(
            f"`measures` asks for {name!r}, which needs scikit-dimension: "
            "`pip install keras-istar[report]`."
        )
    return [name for name in MEASURES if name in names], []


def need_sample(names: Sequence[str]) -> bool:
    """Whether any of the named measures reads a sample of the tokens."""
    return any(MEASURES[name].sample_column for name in names)


def needs_only_moments(names: Sequence[str]) -> bool:
    """Whether mean and covariance are all that the named measures read."""
    return not need_sample(names) and not any(
        MEASURES[name].needs_directions for name in names
    )


def columns_of(names: Sequence[str]) -> list[str]:
    """Names of the numbers of the named measures that reports show."""
    return [column for name in names for column in MEASURES[name].columns]


def compute(names: Sequence[str], tokens: MeasureInputs) -> dict[str, float]:
    """The numbers of the named measures, by column."""
    values: dict[str, Any] = {}
    for measure in (MEASURES[name] for name in names):
        values.update(zip(measure.names, measure.compute(tokens), strict=True))
    return {n: x if isinstance(x, int) else float(x) for n, x in values.items()}


def spectrum(covariance: np.ndarray) -> np.ndarray:
    """Eigenvalues of a covariance matrix, `(dim,)`, largest first."""
    return np.clip(np.linalg.eigvalsh(covariance)[::-1], 0.0, None)


def above_rounding(spectrum: Sequence[float]) -> np.ndarray:
    """The eigenvalues that exceed float32's rounding errors, largest first."""
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
    """tr(Σ)² / ‖Σ‖_F², from 1 to `dim`; 0 if all tokens are equal."""
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
    """Exp of the entropy of the eigenvalues as shares of their sum.

    From 1 to `dim`; 0 if all tokens are equal.

    Source: Roy and Vetterli, "The Effective Rank: A Measure of Effective
    Dimensionality", EUSIPCO 2007, for the covariance matrix.
    """
    values = spectrum(covariance)
    shares = values[values > 0] / max(np.sum(values), np.finfo(float).tiny)
    return float(np.exp(-np.sum(shares * np.log(shares)))) if len(shares) else 0


def average_cosine(tokens: MeasureInputs) -> float:
    """Mean cosine of all pairs of different tokens.

    With x̂ the tokens scaled to length 1, the sum over ordered pairs is
    ‖Σ x̂‖² − n. A pair with the zero vector counts as cosine 0.
    """
    pairs = tokens.count * (tokens.count - 1)
    return (np.sum(tokens.unit_sum**2) - tokens.num_nonzero) / pairs


def partition_isotropy(tokens: np.ndarray) -> float:
    """Min Z(a) / max Z(a) over unit eigenvectors a of XᵀX, Z(a) = Σ exp(aᵀx).

    An eigenvector has no sign: both a and −a are tried. From 0 to 1.

    Source: Mu and Viswanath, "All-but-the-Top: Simple and Effective
    Postprocessing for Word Representations", ICLR 2018.
    """
    _, directions = np.linalg.eigh(tokens.T @ tokens)
    projections = tokens @ np.concatenate([directions, -directions], axis=1)
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


def twonn(tokens: np.ndarray) -> tuple[float, int]:
    """TwoNN intrinsic dimension, and the number of tokens it comes from.

    Tokens that occur more than once count once: the estimate divides by the
    distance to the nearest neighbor. NaN for fewer than 10 tokens.

    Source: Facco et al., "Estimating the intrinsic dimension of datasets by a
    minimal neighborhood information", Scientific Reports 2017, as in
    `skdim.id.TwoNN`.
    """
    with warnings.catch_warnings():  # It turns off all warnings as it loads.
        from skdim.id import TwoNN

    distinct = np.unique(tokens, axis=0)
    if len(distinct) < 10:
        return float("nan"), len(distinct)
    return float(TwoNN().fit(distinct).dimension_), len(distinct)


_SCORE = ".3f"
_DIMENSION = ".1f"

MEASURES = {
    "isoscore": Measure(
        {
            "isoscore": Column(
                "IsoScore",
                _SCORE,
                "IsoScore",
                "How evenly the cloud of tokens fills its dimensions: 0 is "
                "a line, 1 is the same width in every direction.",
            )
        },
        lambda tokens: (isoscore(tokens.covariance),),
        "IsoScore, (tr(Σ)²/‖Σ‖_F² − 1)/(dim − 1), from 0 to 1 "
        "(Rudman et al. 2022)",
    ),
    "isoscore_star": Measure(
        {
            "isoscore_star": Column(
                "IsoScore*",
                _SCORE,
                "IsoScore*",
                "IsoScore after {shrinkage:.0%} of the covariance is "
                "replaced by {shrinkage_target}, which steadies it where "
                "tokens are few.",
            )
        },
        lambda tokens: (isoscore(tokens.shrunk),),
        "IsoScore of (1 − ζ) Σ + ζ Σ_S (Rudman and Eickhoff 2024)",
    ),
    "participation_ratio": Measure(
        {
            "participation_ratio": Column(
                "part.ratio",
                _DIMENSION,
                "Participation ratio",
                "How many directions share the variance, (Σλ)²/Σλ²: from 1 "
                "to {dim}.",
            )
        },
        lambda tokens: (participation_ratio(tokens.covariance),),
        "(Σλ)²/Σλ², how many directions are in use, from 1 to dim",
    ),
    "effective_rank": Measure(
        {
            "effective_rank": Column(
                "eff.rank",
                _DIMENSION,
                "Effective rank",
                "How many directions share the variance, by the entropy of "
                "the spectrum, which gives narrow directions more weight: "
                "from 1 to {dim}.",
            )
        },
        lambda tokens: (effective_rank(tokens.covariance),),
        "exp of the entropy of λ/Σλ, from 1 to dim (Roy and Vetterli 2007)",
    ),
    "average_cosine": Measure(
        {
            "average_cosine": Column(
                "cosine",
                _SCORE,
                "Average cosine",
                "Mean cosine of the angle between two different tokens: 0 "
                "where no direction is preferred, 1 where all point the "
                "same way.",
            )
        },
        lambda tokens: (average_cosine(tokens),),
        "mean cosine of all pairs of different tokens, exactly, from −1 to 1",
        needs_directions=True,
    ),
    "partition_isotropy": Measure(
        {
            "partition_isotropy": Column(
                "partition",
                _SCORE,
                "Partition isotropy",
                "Smallest over largest partition function along the "
                "principal directions: 1 is isotropic. From a sample of "
                "{sample} tokens.",
            )
        },
        lambda tokens: (
            partition_isotropy(tokens.sample),
            len(tokens.sample),
        ),
        "min Z(a)/max Z(a) over the eigenvectors ±a of XᵀX, Z(a) = Σ exp(aᵀx), "
        "on a sample, from 0 to 1 (Mu and Viswanath 2018)",
        sample_column="partition_tokens",
    ),
    "top_variance": Measure(
        {
            f"top_{top}_variance": Column(
                f"top {top}",
                _SCORE,
                f"Top {top}",
                f"Share of the {top} widest in the variance of all dimensions.",
            )
            for top in _TOP
        },
        lambda tokens: top_variance_shares(np.diag(tokens.covariance)),
        "share of the 1, 3 and 10 widest dimensions in the total variance",
    ),
    "outliers": Measure(
        {
            "outliers": Column(
                "outliers",
                ".0f",
                "Outliers",
                "Number of dimensions with over 5 times the average variance.",
            )
        },
        lambda tokens: (len(outlier_dimensions(np.diag(tokens.covariance))),),
        "number of dimensions with over 5 times the average variance "
        "(Rudman, Chen and Eickhoff 2023)",
    ),
    "mean_norm": Measure(
        {
            "mean_norm": Column(
                "norm",
                ".3g",
                "Mean norm",
                "Mean length of a token's vector.",
            )
        },
        lambda tokens: (tokens.norm_sum / tokens.count,),
        "mean Euclidean norm of the tokens",
        needs_directions=True,
    ),
    "twonn": Measure(
        {
            "twonn_dimension": Column(
                "TwoNN",
                _DIMENSION,
                "TwoNN",
                "Intrinsic dimension: how many numbers tell neighboring "
                "tokens apart. From a sample of {sample} different tokens.",
            )
        },
        lambda tokens: twonn(tokens.sample),
        "intrinsic dimension of the distinct tokens of a sample (Facco et al. "
        "2017), by scikit-dimension; NaN for fewer than 10 of them",
        sample_column="twonn_tokens",
        needs_package="skdim",
    ),
}

# The numbers that reports show, by name.
COLUMNS = {
    name: column
    for measure in MEASURES.values()
    for name, column in measure.columns.items()
}


def _is_available(measure):
    package = measure.needs_package
    return package is None or importlib.util.find_spec(package) is not None
