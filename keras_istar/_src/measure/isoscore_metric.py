"""IsoScore of a model's outputs as a Keras metric."""

import functools
from typing import Any

import keras
from keras import ops

from keras_istar._src import validation
from keras_istar._src.compat import keras_private
from keras_istar._src.layers.probe import HiddenState
from keras_istar._src.measure.running_statistics import RunningMoments
from keras_istar._src.score import moments
from keras_istar._src.score.isoscore import unchecked_isoscore
from keras_istar._src.types import Tensor


@keras.saving.register_keras_serializable(package="keras_istar")
class IsoScore(keras.metrics.Metric):
    """IsoScore of all outputs of an epoch: how evenly they fill space.

    The score of `keras_istar.isoscore` for the cloud of all outputs since the
    last reset, exact over batches and replicas: it is not a mean of their
    scores. Labels are ignored. The metric needs memory for one matrix
    `(dim, dim)`.

    Outputs are `(batch, dim)` embeddings or `(batch, length, dim)` hidden
    states. Tokens that the Keras mask of the outputs leaves out do not count;
    on the JAX backend, Keras shows masks to metrics in `evaluate` but not in
    `fit`.

    Args:
        name: Key in the logs.
        dtype: Dtype of the result. The arithmetic is in float32.

    Call arguments of `update_state`:
        y_true: Ignored.
        y_pred: Tensor of shape `(..., dim)`, `dim` at least 2.
        sample_weight: Optional tensor `(...)`, which may lack the last of these
            axes. A point counts once where its weight is not zero. Keras passes
            sample weights only to `weighted_metrics` of `compile`.

    Raises:
        ValueError: If `y_pred` has fewer than two axes, `dim` is less than 2
            or changes, or `sample_weight` does not fit.

    Example:

    >>> metric = keras_istar.IsoScore()
    >>> points = np.random.default_rng(0).normal(size=(10_000, 8))
    >>> metric.update_state(None, points[:5_000])
    >>> metric.update_state(None, points[5_000:])
    >>> round(float(metric.result()), 1)
    1.0

    With a model:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model.compile("sgd", "mse", metrics=[keras_istar.IsoScore()])
    >>> x, y = np.random.rand(32, 4), np.random.rand(32, 8)
    >>> sorted(model.evaluate(x, y, return_dict=True, verbose=0))
    ['isoscore', 'loss']

    Reference:
        Rudman et al., "IsoScore: Measuring the Uniformity of Embedding Space
        Utilization", Findings of ACL 2022.
    """

    def __init__(self, name: str = "isoscore", dtype: Any = None):
        if not isinstance(name, str):
            raise ValueError(f"`name` must be text. Received: name={name!r}")
        try:
            super().__init__(name=name, dtype=dtype)
            validation.check_float_dtypes("dtype", [self.dtype])
        except (TypeError, ValueError) as e:
            raise ValueError(
                "`dtype` must be `None` or the name of a float type. "
                f"Received: dtype={dtype!r}"
            ) from e
        self._dim: int | None = None

    def update_state(
        self,
        y_true: Any,
        y_pred: Tensor,
        sample_weight: Tensor | None = None,
    ) -> None:
        keras_mask = keras_private.keras_mask(y_pred)
        points = validation.check_tensor("y_pred", y_pred)
        if len(points.shape) < 2:
            raise ValueError(
                "`y_pred` must have at least two dimensions, `(..., dim)`. "
                f"Received: y_pred.shape={tuple(points.shape)}"
            )
        validation.check_width("y_pred", points.shape)
        self._build(points.shape[-1])
        masks = [
            _fit(weights, points)
            for weights in (sample_weight, keras_mask)
            if weights is not None
        ]
        mask = functools.reduce(ops.logical_and, masks) if masks else None
        self._moments.add(HiddenState(points, mask))

    def result(self) -> Tensor:
        """The score, a scalar in [0, 1]; 0 for fewer than two points."""
        if self._dim is None:
            return ops.zeros((), self.dtype)
        covariance = moments.covariance(self._moments.value())
        return ops.cast(unchecked_isoscore(covariance), self.dtype)

    def shared(self, name: str, shape: tuple) -> keras.Variable:
        """A variable to which every replica assigns the same value."""
        return self.add_variable(
            shape, "zeros", "float32", "only_first_replica", name
        )

    def _build(self, dim):
        # Keras already gets here in its symbolic call before the first batch.
        if self._dim is None:
            self._dim = dim
            self._moments = RunningMoments(self, dim)
        elif self._dim != dim:
            raise ValueError(
                f"`y_pred` must keep its width, {self._dim}. "
                f"Received: y_pred of width {dim}"
            )


def _fit(weights, points):
    """Weights of examples or tokens as a mask of `points`."""
    weights = ops.not_equal(
        validation.check_tensor("sample_weight", weights), 0
    )
    leading, ndim = points.shape[:-1], len(weights.shape)
    fits = ndim <= len(leading) and all(
        w is None or p is None or w == p
        for w, p in zip(weights.shape, leading, strict=False)
    )
    if not fits:
        raise ValueError(
            "`sample_weight` must have the shape of `y_pred` without its last "
            f"axis, {tuple(leading)}, or leave out last axes of that. "
            f"Received: sample_weight.shape={tuple(weights.shape)}"
        )
    for _ in leading[ndim:]:
        weights = ops.expand_dims(weights, -1)
    return ops.broadcast_to(weights, ops.shape(points)[:-1])
