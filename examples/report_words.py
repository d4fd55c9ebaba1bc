"""Reports of isotropy in plain words: what numbers mean, what they say."""

import math
from typing import NamedTuple

from keras_istar import IsotropyReport

_FEW_TOKENS = 10  # For each dimension; below, IsoScore is clearly too low.


class Wording(NamedTuple):
    """How a measure is shown.

    Attributes:
        heading: Of its column.
        meaning: What it is, in one line; may name fields of `facts`.
        decimals: Digits after the point.
    """

    heading: str
    meaning: str
    decimals: int = 3


WORDINGS = {
    "isoscore": Wording(
        "IsoScore",
        "How evenly the cloud of tokens fills its dimensions: 0 is a line, "
        "1 is the same width in every direction.",
    ),
    "isoscore_star": Wording(
        "IsoScore*",
        "IsoScore after {shrinkage:.0%} of the covariance is replaced by "
        "{shrinkage_target}, which steadies it where tokens are few.",
    ),
    "participation_ratio": Wording(
        "Participation ratio",
        "How many directions share the variance, (Σλ)²/Σλ²: from 1 to {dim}.",
        1,
    ),
    "effective_rank": Wording(
        "Effective rank",
        "How many directions share the variance, by the entropy of the "
        "spectrum, which gives narrow directions more weight: from 1 to {dim}.",
        1,
    ),
    "average_cosine": Wording(
        "Average cosine",
        "Mean cosine of the angle between two different tokens: 0 where no "
        "direction is preferred, 1 where all point the same way.",
    ),
    "partition_isotropy": Wording(
        "Partition isotropy",
        "Smallest over largest partition function along the principal "
        "directions, by Mu and Viswanath: 1 is isotropic. From a sample of "
        "{partition_points} tokens.",
    ),
    "top_1_variance": Wording(
        "Top 1", "Share of the variance in the widest dimension."
    ),
    "top_3_variance": Wording(
        "Top 3", "Share of the variance in the 3 widest dimensions."
    ),
    "top_10_variance": Wording(
        "Top 10", "Share of the variance in the 10 widest dimensions."
    ),
    "outliers": Wording(
        "Outliers",
        "Number of dimensions with over 5 times the average variance.",
        0,
    ),
    "mean_norm": Wording("Mean norm", "Mean length of a token's vector.", 2),
    "twonn_dimension": Wording(
        "TwoNN",
        "Intrinsic dimension: how many numbers tell neighbouring tokens "
        "apart. From a sample of {twonn_points} different tokens.",
        1,
    ),
}


def number(column: str, value: float, signed: bool = False) -> str:
    """A number of a measure as people read it, with its sign if asked for."""
    if math.isnan(value):
        return "–"
    decimals = WORDINGS[column].decimals
    is_zero = round(value, decimals) == 0
    sign = "+" if signed and not is_zero else ""
    text = f"{value:{sign}z.{decimals}f}"
    if is_zero and value != 0 and decimals == 3:  # Too small, not nothing.
        text = f"{value:{'+' if signed else ''}.0e}"
    return text.replace("-", "−")


def meanings(report: IsotropyReport) -> list[tuple[str, str]]:
    """Heading and meaning of every measure in the report."""
    facts = {
        "dim": report.dim,
        "shrinkage": report.shrinkage,
        "shrinkage_target": report.shrinkage_target,
        "partition_points": _range(report, "partition_points"),
        "twonn_points": _range(report, "twonn_points"),
    }
    return [
        (wording.heading, wording.meaning.format(**facts))
        for column, wording in WORDINGS.items()
        if column in report.rows[0].values
    ]


def summary(report: IsotropyReport) -> list[str]:
    """What the report says, in sentences."""
    *layers, union = report.rows
    who = (
        f"Taken together, the tokens of all {len(layers)} layers spread"
        if len(layers) > 1
        else f"The tokens of {layers[0].layer} spread"
    )
    sentences = [
        f"{who} over their {report.dim} dimensions as a cloud would that "
        f"fills {union.values['participation_ratio']:.0f} of them evenly and "
        "the others not at all: IsoScore "
        f"{number('isoscore', union.values['isoscore'])}."
    ]
    if len(layers) > 1:
        sentences.append(_extremes(layers))
    sentences += [_outliers(layers), _cosine(layers[-1])]
    fewest = min(row.points for row in layers)
    if fewest < _FEW_TOKENS * report.dim:
        sentences.append(
            f"Take care: {fewest:,} tokens are few for {report.dim} "
            "dimensions, and IsoScore comes out too low. Measure more texts."
        )
    return sentences


def change(before: IsotropyReport, after: IsotropyReport) -> list[str]:
    """What differs between two reports, in sentences."""
    sentences = []
    old, new = (r.rows[-1].values["isoscore"] for r in (before, after))
    if number("isoscore", old) == number("isoscore", new):
        sentences.append(
            "All layers together are as isotropic in both: IsoScore "
            f"{number('isoscore', old)}."
        )
    else:
        verb, how = ("rises", "more") if new > old else ("falls", "less")
        sentences.append(
            f"IsoScore of all layers together {verb} from "
            f"{number('isoscore', old)} in {before.model} to "
            f"{number('isoscore', new)} in {after.model}, which is {how} "
            "isotropic."
        )
    changes = before.compare(after)["isoscore"].drop("union")
    if len(changes) > 1 and changes.abs().max() > 0:
        layer = changes.abs().idxmax()
        sentences.append(
            f"No layer changes more than {layer}: "
            f"{number('isoscore', changes[layer], signed=True)}."
        )
    return sentences


def _extremes(layers):
    by_score = sorted(layers, key=lambda row: row.values["isoscore"])
    (least, low), (most, high) = (
        (row.layer, number("isoscore", row.values["isoscore"]))
        for row in (by_score[0], by_score[-1])
    )
    return (
        f"The most isotropic layer is {most} ({high}), the least {least} "
        f"({low})."
    )


def _outliers(layers):
    outliers = sorted({d for row in layers for d in row.outlier_dimensions})
    if not outliers:
        return "No dimension stands out by its variance in any layer."
    shown = ", ".join(map(str, outliers[:8]))
    more = f" and {len(outliers) - 8} more" if len(outliers) > 8 else ""
    noun = "dimension" if len(outliers) == 1 else "dimensions"
    return (
        f"{len(outliers)} {noun} stand{'s' * (len(outliers) == 1)} out, with "
        f"over 5 times the average variance in at least one layer: "
        f"{shown}{more}."
    )


def _cosine(row):
    value = number("average_cosine", row.values["average_cosine"])
    return (
        "Two tokens drawn at random from the last layer measured, "
        f"{row.layer}, have cosine {value} on average."
    )


def _range(report, column):
    values = [row.values[column] for row in report.rows if column in row.values]
    if not values:
        return ""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
