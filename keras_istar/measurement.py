"""Model and data -> report: `measure`."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_istar import checks
from keras_istar import functional_graph
from keras_istar import hub
from keras_istar import measures
from keras_istar import summaries
from keras_istar.estimation import StatesPass
from keras_istar.layer import IStarRegularization
from keras_istar.layer_isotropy import as_float64
from keras_istar.layer_isotropy import describe
from keras_istar.layer_isotropy import mean_and_covariance
from keras_istar.probing import probed
from keras_istar.report import IsotropyReport
from keras_istar.summaries import RunningSummary
from keras_istar.summaries import Summary

_MOST_SAMPLE_POINTS = 100_000


def measure(
    model: keras.Model,
    data: Any,
    layers: str | int | Sequence[int | str] = "all",
    max_points: int = 250_000,
    metrics: str | Sequence[str] = "all",
    *,
    shrinkage: float = 0.2,
    sample_points: int = 2_000,
    batch_size: int = 32,
    seed: int = 0,
    verbose: int = 1,
) -> IsotropyReport:
    """Measures how isotropic the hidden states of a model are.

    The model runs in inference mode over `data`, on its own devices and under
    its own strategy, and is left as it was, attached or not. The pass streams:
    memory does not depend on `max_points`. Padding is left out as by `attach`.

    Each state and the union of all get these measures, named as in `metrics`
    with the columns of the report in brackets where they differ. With λ the
    eigenvalues of the covariance Σ:

    - `isoscore`: IsoScore, see `keras_istar.isoscore`.
    - `isoscore_star`: IsoScore* of (1 − ζ) Σ + ζ Σ_S, where Σ_S is the
      `shrinkage_covariance` of the layer attached to the model, or else the
      isotropic matrix tr(Σ)/dim · I.
    - `participation_ratio`: (Σλ)² / Σλ², how many directions are in use.
    - `effective_rank`: exp of the entropy of λ/Σλ (Roy and Vetterli 2007).
    - `average_cosine`: mean cosine of all pairs of different tokens, exactly.
    - `partition_isotropy` [also `partition_points`]: min Z(a)/max Z(a) over
      the eigenvectors ±a of XᵀX, Z(a) = Σ exp(aᵀx) (Mu and Viswanath 2018),
      on a sample.
    - `top_variance` [`top_1_variance`, `top_3_variance`, `top_10_variance`]:
      share of the 1, 3 and 10 widest dimensions in the total variance.
    - `outliers`: number of dimensions with over 5 times the average variance
      (Rudman, Chen and Eickhoff 2023). The report says which.
    - `mean_norm`: mean Euclidean norm of the tokens.
    - `twonn` [`twonn_dimension`, `twonn_points`]: intrinsic dimension (Facco
      et al. 2017) of the distinct points of a sample, by scikit-dimension;
      NaN for fewer than 10 of them.

    Args:
        model: KerasHub `Task` or `Backbone`, or any Functional Keras model.
        data: What the model's `fit` takes as `x`: arrays, dicts, raw strings
            if the model is a KerasHub task, or a `tf.data` dataset, with or
            without labels.
        layers: Which hidden states, as in `attach`.
        max_points: Number of tokens to use, counted once in every state. The
            pass ends with the batch that reaches it.
        metrics: `"all"`, or names of measures. Others are not computed. `"all"`
            leaves `twonn` out, with a note in the report, where
            scikit-dimension is not installed.
        shrinkage: ζ of IsoScore*, in [0, 1].
        sample_points: Size of the sample of each state, drawn uniformly from
            all of its tokens, at most 100,000: it is kept in memory, and
            `twonn` looks for neighbors among all of its pairs. The union's
            takes from each state its share.
        batch_size: Examples in a batch, where `data` does not come in batches.
        seed: Seed of the samples, an integer from 0 to 2³¹ − 1.
        verbose: 0 is silent; 1 draws a progress bar if the pass takes longer
            than a few seconds.

    Returns:
        An `IsotropyReport`.

    Raises:
        ValueError: If an argument is out of range, `model` is not Functional,
            has no such layers or has them in several widths, `data` holds
            fewer than two unmasked tokens, or hidden states are not finite.
        ImportError: If `metrics` names `twonn` and scikit-dimension is not
            installed.

    Example:

    >>> inputs = keras.Input((8, 4))
    >>> hidden = keras.layers.Dense(16, name="encoder")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    >>> x = np.random.default_rng(0).normal(size=(64, 8, 4))
    >>> report = keras_istar.measure(
    ...     model, x, layers="encoder", metrics=["isoscore", "outliers"]
    ... )
    >>> [row.layer for row in report.rows]
    ['encoder', 'union']
    >>> 0.0 < report.rows[0].values["isoscore"] < 0.25  # 4 of 16 directions
    True
    """
    names, left_out = measures.choose(metrics)
    checks.check_fraction("shrinkage", shrinkage)
    checks.check_positive_int("max_points", max_points)
    checks.check_positive_int(
        "sample_points", sample_points, at_most=_MOST_SAMPLE_POINTS
    )
    checks.check_positive_int("batch_size", batch_size)
    checks.check_seed(seed)
    checks.check_verbose(verbose)
    hub.check_data(model, data)
    sample_size = sample_points if measures.need_sample(names) else 0
    with probed(model, layers) as probe:
        if hub.count_examples(data) == 0:
            raise _too_few_tokens(probe.state_names[0], 0)
        states_pass = StatesPass(
            model,
            [probe],
            data,
            max_points,
            batch_size,
            show_progress=bool(verbose),
            make_statistic=lambda variables, dim: RunningSummary(
                variables, dim, sample_size, seed
            ),
        )
        states = dict(
            zip(probe.state_names, states_pass.run()[probe], strict=True)
        )
    _check_states(states)
    union = summaries.unite(list(states.values()), sample_size, seed)
    target, target_name = _shrinkage_target(model, probe.dim)
    return IsotropyReport(
        model=model.name,
        dim=probe.dim,
        rows=tuple(
            _row(layer, summary, names, shrinkage, target)
            for layer, summary in {**states, "union": union}.items()
        ),
        shrinkage=float(shrinkage),
        shrinkage_target=target_name,
        notes=tuple(
            f"Left out, as its package is not installed: {name} "
            "(pip install keras-istar[report])."
            for name in left_out
        ),
    )


def _check_states(states: dict[str, Summary]) -> None:
    """Raises unless every state has two tokens or more, all of them finite."""
    for layer, summary in states.items():
        count = int(summary.moments.count)
        if count < 2:
            raise _too_few_tokens(layer, count)
    damaged = {
        layer: f"{summary.directions.num_nonfinite:,} of "
        f"{int(summary.moments.count):,} tokens"
        for layer, summary in states.items()
        if summary.directions.num_nonfinite > 0
    }
    if damaged:
        raise ValueError(
            "The hidden states of `model` must be finite. "
            f"Received: NaN or infinity in {damaged}"
        )


def _too_few_tokens(layer, count):
    return ValueError(
        "`data` must hold at least two unmasked tokens. "
        f"Received: data with {count} in {layer!r}"
    )


def _shrinkage_target(model, dim):
    """Σ_S of the layer attached to `model`, if it has one, and its name."""
    for layer in functional_graph.find_layers(model, IStarRegularization):
        # Copies, for what a strategy mirrors is not a tensor.
        target = as_float64(ops.copy(layer.shrinkage_covariance.value))
        is_set = bool(ops.copy(layer.has_shrinkage_covariance.value) > 0)
        if is_set and len(target) == dim:
            return target, f"the shrinkage covariance of layer {layer.name!r}"
    return None, "the isotropic covariance of the same trace"


def _row(layer, summary, names, shrinkage, target):
    """What the report says of one state or of the union."""
    mean, covariance = mean_and_covariance(summary.moments)
    if not np.all(np.isfinite(covariance)):
        raise ValueError(
            "The hidden states of `model` must be small enough to be squared "
            f"in float32. Received: a covariance that is not in {layer!r}"
        )
    if target is None:
        target = (
            np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        )
    norm_sum, unit_sum, num_nonzero, _ = summary.directions
    cloud = measures.Cloud(
        count=int(summary.moments.count),
        covariance=covariance,
        shrunk=(1.0 - shrinkage) * covariance + shrinkage * target,
        norm_sum=norm_sum,
        unit_sum=unit_sum,
        num_nonzero=num_nonzero,
        sample=None if summary.sample is None else as_float64(summary.sample),
    )
    return describe(layer, names, cloud, mean)
