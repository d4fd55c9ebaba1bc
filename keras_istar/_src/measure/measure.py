"""Model and data -> report: `measure`."""

import contextlib
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras

from keras_istar._src import validation
from keras_istar._src.attach.attach import probed
from keras_istar._src.attach.find_states import Layers
from keras_istar._src.attach.padding import Mask
from keras_istar._src.attach.pooling import Pooling
from keras_istar._src.attach.pooling import check_pooling
from keras_istar._src.compat import keras_data
from keras_istar._src.compat import keras_private
from keras_istar._src.layers.base import HiddenStateRegularization
from keras_istar._src.measure import running_statistics
from keras_istar._src.measure.measures import choose
from keras_istar._src.measure.measures import need_sample
from keras_istar._src.measure.report import ISOTROPIC_TARGET
from keras_istar._src.measure.report import IsotropyReport
from keras_istar._src.measure.report import describe
from keras_istar._src.measure.running_statistics import RunningTokenStatistics
from keras_istar._src.measure.running_statistics import TokenStatistics
from keras_istar._src.measure.streaming_pass import StatesPass

_MOST_SAMPLE_TOKENS = 100_000


@validation.renamed_arguments(
    max_points="max_tokens",
    metrics="measures",
    sample_points="sample_tokens",
)
def measure(
    model: keras.Model,
    data: Any,
    layers: Layers = "all",
    max_tokens: int | None = 250_000,
    measures: str | Sequence[str] = "all",
    *,
    mask: Mask = None,
    pooling: Pooling = None,
    centered: bool = False,
    shrinkage: float = 0.2,
    sample_tokens: int = 2_000,
    batch_size: int = 32,
    seed: int = 0,
    verbose: int = 1,
) -> IsotropyReport:
    """Measures how isotropic the hidden states of a model are.

    The model runs in inference mode over `data`, on its own devices and under
    its own strategy, and is left as it was, attached or not. The pass streams:
    memory does not depend on `max_tokens`. Padding is left out as by `attach`.

    Each state, and the union of all, gets these measures, with λ the
    eigenvalues of the covariance Σ. They are named as in `measures`; columns of
    the report that have other names are in brackets.

    - `isoscore`: IsoScore, see `keras_istar.isoscore`.
    - `isoscore_star`: IsoScore* of (1 − ζ) Σ + ζ Σ_S, where Σ_S is always the
      isotropic matrix tr(Σ)/dim · I, so that reports before and after `attach`
      can be compared.
    - `participation_ratio`: (Σλ)² / Σλ², how many directions are in use.
    - `effective_rank`: exp of the entropy of λ/Σλ (Roy and Vetterli 2007).
    - `average_cosine`: mean cosine of all pairs of different tokens, exactly.
    - `partition_isotropy` [also `partition_tokens`]: min Z(a)/max Z(a) over
      the eigenvectors ±a of XᵀX, Z(a) = Σ exp(aᵀx) (Mu and Viswanath 2018),
      on a sample.
    - `top_variance` [`top_1_variance`, `top_3_variance`, `top_10_variance`]:
      share of the 1, 3 and 10 widest dimensions in the total variance.
    - `outliers`: number of dimensions with over 5 times the average variance
      (Rudman, Chen and Eickhoff 2023). The report says which.
    - `mean_norm`: mean Euclidean norm of the tokens.
    - `twonn` [`twonn_dimension`, `twonn_tokens`]: intrinsic dimension (Facco et
      al. 2017) of the distinct tokens of a sample, by scikit-dimension; NaN for
      fewer than 10 of them.

    Args:
        model: KerasHub `Task` or `Backbone`, or any Functional or built
            Sequential Keras model; or a subclassed one that calls a regularizer
            such as `IStarRegularization` itself: the states that the layer is
            given are measured.
        data: What the model's `fit` takes as `x`: arrays, pandas columns,
            nested dicts and lists of them, raw strings if the model is a
            KerasHub task, or a `tf.data` dataset, with or without labels.
        layers: Which hidden states, as in `attach`; for a subclassed model with
            several such layers, the name of one.
        max_tokens: Number of tokens to use. Each counts once for every state:
            with 12 states, 250,000 are about 21,000 tokens of text. The
            pass ends with the batch that reaches it. None uses all.
        measures: `"all"`, or names of measures; others are not computed.
            `"all"` leaves `twonn` out, with a note in the report, where
            scikit-dimension is not installed.
        mask: Which tokens count, as in `attach`.
        pooling: None to measure tokens, or how the tokens of an example become
            one embedding, as in `attach`.
        centered: Whether the mean of each state is subtracted from its tokens
            before they join the union. `between_layers` of a report without
            `centered` is the share of the union's variance that this removes.
        shrinkage: ζ of IsoScore*, in [0, 1].
        sample_tokens: Size of the sample of each state, drawn uniformly from
            all of its tokens; at most 100,000, since it is kept in memory and
            `twonn` searches it for neighbors. The sample of the union takes
            from each state its share.
        batch_size: Examples in a batch, where `data` does not come in batches,
            rounded up to a multiple of the model's replicas.
        seed: Seed of the samples, an integer from 0 to 2³¹ − 1.
        verbose: 0 is silent; 1 draws a progress bar if the pass takes longer
            than a few seconds.

    Returns:
        An `IsotropyReport`.

    Raises:
        ValueError: If an argument is out of range, `model` is not Functional,
            has no such layers or has them in several widths, `data` holds
            fewer than two unmasked tokens, or hidden states are not finite.
        ImportError: If `measures` names `twonn` and scikit-dimension is not
            installed.

    Example:

    >>> inputs = keras.Input((8, 4))
    >>> hidden = keras.layers.Dense(16, name="encoder")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    >>> x = np.random.default_rng(0).normal(size=(64, 8, 4))
    >>> report = keras_istar.measure(
    ...     model, x, layers="encoder", measures=["isoscore", "outliers"]
    ... )
    >>> [row.layer for row in report.rows]
    ['encoder', 'union']
    >>> 0.0 < report.rows[0].values["isoscore"] < 0.25  # 4 of 16 directions
    True
    """
    names, left_out = choose(measures)
    validation.check_fraction("shrinkage", shrinkage)
    validation.check_bool("centered", centered)
    check_pooling(pooling)
    validation.check_optional_positive_int("max_tokens", max_tokens)
    validation.check_positive_int(
        "sample_tokens", sample_tokens, at_most=_MOST_SAMPLE_TOKENS
    )
    validation.check_positive_int("batch_size", batch_size)
    validation.check_seed(seed)
    validation.check_verbose(verbose)
    keras_data.check_data(model, data)
    sample_size = sample_tokens if need_sample(names) else 0
    with _shown(model, layers, mask, pooling) as probe:
        if keras_data.count_examples(model, data) == 0:
            # A layer that was never called has no names for its states.
            raise _too_few_tokens((probe.state_names or [probe.name])[0], 0)
        states_pass = StatesPass(
            model,
            [probe],
            data,
            max_tokens,
            batch_size,
            show_progress=bool(verbose),
            make_statistic=lambda variables, dim: RunningTokenStatistics(
                variables, dim, sample_size, seed
            ),
        )
        states = dict(
            zip(probe.state_names, states_pass.run()[probe], strict=True)
        )
    _check_states(states)
    union = running_statistics.unite(
        list(states.values()), sample_size, seed, centered
    )
    return IsotropyReport(
        model=model.name,
        dim=probe.dim,
        rows=tuple(
            describe(layer, names, statistics, shrinkage)
            for layer, statistics in {**states, "union": union}.items()
        ),
        shrinkage=float(shrinkage),
        shrinkage_target=ISOTROPIC_TARGET,
        notes=tuple(
            f"Left out, as its package is not installed: {name} "
            "(pip install keras-istar[report])."
            for name in left_out
        ),
    )


@contextlib.contextmanager
def _shown(
    model: keras.Model,
    layers: Layers,
    mask: Mask,
    pooling: Pooling,
) -> Iterator[Any]:
    """Yields a layer that `model` calls on the hidden states in this scope.

    Once built, the layer has `state_names` and `dim`.
    """
    held = []
    has_graph = keras_private.is_functional(model)
    if isinstance(model, keras.Model) and not has_graph:
        held = keras_private.find_layers(model, HiddenStateRegularization)
    if not held:
        with probed(model, layers, mask, pooling) as probe:
            yield probe
        return
    if layers != "all":
        held = [layer for layer in held if layer.name == layers]
    if len(held) != 1 or mask is not None or pooling is not None:
        known = keras_private.find_layers(model, HiddenStateRegularization)
        raise ValueError(
            "`layers` must name one of the layers that a subclassed model "
            f"calls on hidden states, {[layer.name for layer in known]}, and "
            "`mask` and `pooling` must be None: the layer is given its own. "
            f"Received: layers={layers!r:.200}, mask={mask!r:.200}, "
            f"pooling={pooling!r:.200}"
        )
    yield held[0]


def _check_states(states: dict[str, TokenStatistics]) -> None:
    """Raises unless every state has two tokens or more, all of them finite."""
    for layer, tokens in states.items():
        count = int(tokens.moments.count)
        if count < 2:
            raise _too_few_tokens(layer, count)
    damaged = {
        layer: f"{tokens.directions.num_nonfinite:,} of "
        f"{int(tokens.moments.count):,} tokens"
        for layer, tokens in states.items()
        if tokens.directions.num_nonfinite > 0
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
