"""One streaming pass over data: hidden states in inference -> moments."""

import time
from typing import Any

import keras
from keras import ops

from keras_istar import hub
from keras_istar import moments
from keras_istar.distribution import strategy_scope
from keras_istar.distribution import sum_over_replicas
from keras_istar.layer import IStarRegularization
from keras_istar.moments import Moments
from keras_istar.observation import observe

_SECONDS_BEFORE_PROGRESS = 5.0


class MomentsPass:
    """Runs a model in inference mode and accumulates moments of its states.

    It is an `evaluate` of its own, so that Keras takes care of data, devices
    and strategies. Memory does not grow with the number of tokens.

    Args:
        model: Model that calls `layers`.
        layers: Built `IStarRegularization` layers of `model`.
        data: What `fit` of `model` takes as `x`; must be iterable repeatedly.
        max_points: Stop after the batch in which every layer has seen so many
            tokens, counted in each of its states.
        batch_size: Examples in a batch, where `data` does not say.
        show_progress: Whether to draw a bar when the pass takes long.
    """

    def __init__(
        self,
        model: keras.Model,
        layers: list[IStarRegularization],
        data: Any,
        max_points: int,
        batch_size: int,
        show_progress: bool,
    ):
        self._layers = layers
        self._data, self._batch_size = hub.preprocessed(model, data, batch_size)
        self._monitor = _Monitor(max_points, show_progress)
        with strategy_scope(model):
            self._accumulator = _Accumulator(model, layers)
            self._accumulator.compile(
                run_eagerly=model.run_eagerly, jit_compile=model.jit_compile
            )

    def run(self) -> dict[IStarRegularization, list[Moments]]:
        """Moments of each state of each layer, over this pass alone."""
        self._accumulator.reset()
        self._accumulator.evaluate(
            self._data,
            batch_size=self._batch_size,
            verbose=0,
            callbacks=[self._monitor],
        )
        return {
            layer: self._accumulator.states_of(layer) for layer in self._layers
        }


class _Accumulator(keras.Model):
    """Adds up the moments of the states that `model` shows to `layers`."""

    def __init__(self, model, layers):
        super().__init__(name="moments_pass")
        self.model = model
        self._observed = tuple(layers)
        self._totals = {
            id(layer): [
                _RunningMoments(self, layer.shrinkage_covariance.shape[0])
                for _ in layer.state_names
            ]
            for layer in layers
        }
        self.built = True

    def call(self, inputs, training=False):
        with observe() as observer:
            self.model(inputs, training=False)
        for layer in self._observed:
            for states in observer.calls_of(layer):
                for total, state in zip(
                    self._totals[id(layer)], states, strict=True
                ):
                    total.add(state)
        return ops.zeros((1,))

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=False
    ):
        return ops.zeros(())

    def reset_metrics(self):
        # They belong to the model, which may be in the middle of an epoch.
        pass

    def reset(self):
        for totals in self._totals.values():
            for total in totals:
                total.reset()

    def states_of(self, layer):
        return [total.value() for total in self._totals[id(layer)]]

    def tokens_seen(self):
        """Tokens that every layer has seen, at least."""
        return min(
            sum(int(total.count) for total in totals)
            for totals in self._totals.values()
        )


class _RunningMoments:
    """Moments as variables of `model`."""

    def __init__(self, model, dim):
        shapes = Moments(
            count=(), center=(dim,), offset=(dim,), scatter=(dim, dim)
        )
        self._variables = [
            model.add_weight(
                name=name,
                shape=shape,
                initializer="zeros",
                dtype="float32",
                trainable=False,
                # Every replica adds the sum over all.
                aggregation="only_first_replica",
            )
            for name, shape in shapes._asdict().items()
        ]
        self.count = self._variables[0]

    def value(self):
        return Moments(*(variable.value for variable in self._variables))

    def add(self, state):
        seen = sum_over_replicas(moments.token_moments(*state))
        self._assign(moments.combine([self.value(), seen]))

    def reset(self):
        self._assign([ops.zeros(v.shape) for v in self._variables])

    def _assign(self, values):
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value)


class _Monitor(keras.callbacks.Callback):
    """Ends the pass when it has seen enough; says how far it is."""

    def __init__(self, max_points, show_progress):
        super().__init__()
        self._max_points = max_points
        self._show_progress = show_progress

    def on_test_begin(self, logs=None):
        self._start = time.monotonic()
        self._bar = None

    def on_test_batch_end(self, batch, logs=None):
        seen = self.model.tokens_seen()
        if seen >= self._max_points:
            self.model.stop_evaluating = True
        if self._show_progress:
            self._draw(min(seen, self._max_points))

    def _draw(self, seen):
        elapsed = time.monotonic() - self._start
        if self._bar is None and elapsed > _SECONDS_BEFORE_PROGRESS:
            self._bar = keras.utils.Progbar(self._max_points, unit_name="token")
        if self._bar is not None:
            self._bar.update(seen)
