"""Draws how IsoScore and IsoScore* depend on the number of tokens.

    python examples/stability.py

takes samples of 24 to 6,144 points of a Gaussian in 768 dimensions, whose
IsoScore is known, prints the median scores and draws `stability.png`. IsoScore
drops where samples are smaller than the dimension. IsoScore* shrinks the
covariance towards that of an independent large sample; the more it shrinks, the
less it drops. After Rudman and Eickhoff, "Stable Anisotropic Regularization",
ICLR 2024.
"""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

import keras_istar

DIM = 768
SIZES = [DIM * 2**k // 32 for k in range(9)]
SHRINKAGES = (0.2, 0.5, 0.8, 0.95)
REPEATS = 10
ORANGE = "#D55E00"


def main() -> None:
    """Takes the samples, prints the table and draws the picture."""
    rng = np.random.default_rng(0)
    # The k-th of the variances is exp(−5 k/dim): neither isotropic nor flat.
    deviations = np.exp(-2.5 * np.arange(DIM) / DIM).astype("float32")

    def draw(size):
        return rng.standard_normal((size, DIM), "float32") * deviations

    exact = float(keras_istar.isoscore_from_covariance(np.diag(deviations**2)))
    target = np.cov(draw(50_000), rowvar=False, dtype="float32")
    rows = []
    for _ in range(REPEATS):
        points = draw(SIZES[-1])
        for size in SIZES:
            row = {"n": size, "IsoScore": keras_istar.isoscore(points[:size])}
            for shrinkage in SHRINKAGES:
                row[f"IsoScore*, ζ = {shrinkage}"] = keras_istar.isoscore_star(
                    points[:size], target, shrinkage
                )
            rows.append({name: float(value) for name, value in row.items()})
    scores = pd.DataFrame(rows).astype({"n": int}).groupby("n")
    print(f"Exact IsoScore: {exact:.3f}. Medians of {REPEATS} samples:")
    print(scores.median().to_string(float_format="{:.3f}".format))
    plot(scores, exact).savefig("stability.png", dpi=200)


def plot(scores, exact: float) -> Figure:
    """Medians as lines, and bands from quartile to quartile."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    middle, low, high = (scores.quantile(share) for share in (0.5, 0.25, 0.75))
    blues = colormaps["Blues"](np.linspace(0.45, 1.0, len(SHRINKAGES)))
    for name, color in zip(middle.columns, [ORANGE, *blues], strict=True):
        axes.plot(middle[name], color=color, marker="o", ms=3, label=name)
        axes.fill_between(
            middle.index, low[name], high[name], color=color, alpha=0.25, lw=0
        )
    axes.axhline(exact, color="black", ls="--", label=f"exact: {exact:.3f}")
    axes.axvline(DIM, color="black", lw=0.7, ls=":", label="n = dimension")
    axes.set_xscale("log")
    axes.set_xticks(SIZES[::2], [f"{size:,}" for size in SIZES[::2]])
    axes.minorticks_off()
    axes.set(xlabel="number of points n", ylabel="score", ylim=(0, None))
    axes.set_title(f"Gaussian in {DIM} dimensions")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure


if __name__ == "__main__":
    main()
