"""One streaming pass over data: hidden states in inference -> statistics."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_istar._src.compat import keras_data
from keras_istar._src.compat import keras_private
from keras_istar._src.compat.distribution import number_of_replicas
from keras_istar._src.compat.distribution import strategy_scope
from keras_istar._src.layers.probe import record_states
from keras_istar._src.measure.running_statistics import RunningMoments
from keras_istar._src.measure.running_statistics import Variables

_SECONDS_BEFORE_PROGRESS = 5.0


class StatesPass:
    """Runs a model in inference mode, with a running statistic of each state.

    It is an `evaluate` of its own, so that Keras takes care of data, devices
    and strategies. Memory does not grow with the number of tokens.

    Args:
        model: Model that calls `layers`.
        layers: Layers of `model` that show their states to a recorder. Once
            built, `state_names` has a name for each, `dim` is their width.
        data: What `fit` of `model` takes as `x`; must be iterable repeatedly.
        max_tokens: The pass ends after the batch in which every layer has seen
            that many tokens, counted in each of its states; None for all
            tokens.
        batch_size: Examples in a batch, where `data` does not say. Rounded up
            to a multiple of the replicas.
        show_progress: Whether to draw a bar when the pass takes long.
        make_statistic: Function of `Variables` and the width of a state that
            makes its running statistic, an object with `add`, `reset`, `value`
            and `count`.
    """

    def __init__(
        self,
        model: keras.Model,
        layers: list[keras.layers.Layer],
        data: Any,
        max_tokens: int | None,
        batch_size: int,
        show_progress: bool,
        make_statistic: Callable[[Variables, int], Any] = RunningMoments,
    ):
        self._layers = layers
        if not model.built or _unnamed(layers):
            # What has no variables yet cannot be recorded.
            keras_data.run_once(model, data, batch_size)
        _check_called(model, _unnamed(layers))
        replicas = number_of_replicas(model)
        batch_size = -(-batch_size // replicas) * replicas
        self._data, self._batch_size = keras_data.preprocessed(
            model, data, batch_size
        )
        examples = keras_data.count_examples(model, data)
        self._monitor = _Monitor(
            max_tokens, show_progress, examples, batch_size
        )
        with strategy_scope(model):
            self._recording = _RecordingModel(model, layers, make_statistic)
            # On JAX an optimizer gets variables even for an evaluation. This
            # one has none that grow with the model.
            self._recording.compile(
                "sgd",
                run_eagerly=model.run_eagerly,
                jit_compile=model.jit_compile,
            )

    def run(self) -> dict[keras.layers.Layer, list[Any]]:
        """Runs the pass; returns the running statistic of each state."""
        self._recording.reset()
        with _expected_tracing():
            self._recording.evaluate(
                self._data,
                batch_size=self._batch_size,
                verbose=0,
                callbacks=[self._monitor],
            )
        _check_called(self._recording.model, self._recording.not_called)
        return {
            layer: self._recording.values_of(layer) for layer in self._layers
        }


@contextlib.contextmanager
def _expected_tracing() -> Iterator[None]:
    """Keeps TensorFlow from warning of retracing within this scope.

    Every `StatesPass` traces once, as every model does. If passes are short,
    TensorFlow takes the fifth trace for a mistake.
    """
    logger = logging.getLogger("tensorflow")

    def is_other(record):
        return "tf.function retracing" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _unnamed(layers):
    """Names of the layers that have never been called."""
    return [layer.name for layer in layers if layer.state_names is None]


def _check_called(model, not_called):
    if not_called:
        raise ValueError(
            f"`model` must call its layer {not_called[0]!r} on hidden states "
            "whenever it runs, in inference too. "
            f"Received: model={model.name!r}, which does not"
        )


class _RecordingModel(keras.Model):
    """Keeps running statistics of the states that `model` shows to `layers`."""

    def __init__(self, model, layers, make_statistic):
        super().__init__(name="states_pass")
        self.not_called: list[str] = []
        self.model = model
        self._watched = tuple(layers)
        self._state = Variables()
        self._totals = {
            id(layer): [
                make_statistic(self._state, layer.dim)
                for _ in layer.state_names
            ]
            for layer in layers
        }
        self.built = True
        keras_private.skip_build(self)

    def call(self, inputs, training=False):
        with record_states() as recorder:
            self.model(inputs, training=False)
        for layer in self._watched:
            calls = recorder.calls_of(layer)
            if not calls:
                self.not_called.append(layer.name)
            for states in calls:
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

    def values_of(self, layer):
        return [total.value() for total in self._totals[id(layer)]]

    def tokens_seen(self):
        """The smallest number of tokens that a layer has seen."""
        return min(
            sum(int(ops.copy(total.count.value)) for total in totals)
            for totals in self._totals.values()
        )


class _Monitor(keras.callbacks.Callback):
    """Ends the pass when it has seen enough; says how far it is.

    Args:
        max_tokens: Number of tokens that is enough; None for no limit.
        show_progress: Whether to draw a bar when the pass takes long.
        examples: Number of examples in the data, if known.
        batch_size: Examples in a batch, where `examples` is known.
    """

    def __init__(self, max_tokens, show_progress, examples, batch_size):
        super().__init__()
        self._max_tokens = math.inf if max_tokens is None else max_tokens
        self._show_progress = show_progress
        self._examples = examples
        self._batch_size = batch_size
        self._all_tokens = None  # Of the data, once a pass has reached its end.

    def on_test_begin(self, logs=None):
        self._start = time.monotonic()
        self._bar = None

    def on_test_batch_end(self, batch, logs=None):
        seen = self.model.tokens_seen()
        if seen >= self._max_tokens:
            self.model.stop_evaluating = True
        if self._show_progress:
            self._draw(seen, batches=batch + 1)

    def on_test_end(self, logs=None):
        seen = self.model.tokens_seen()
        if not self.model.stop_evaluating:
            self._all_tokens = seen
        if self._bar is not None:
            self._bar.target = seen = min(seen, self._max_tokens)
            self._bar.update(seen, finalize=True)

    def _draw(self, seen, batches):
        elapsed = time.monotonic() - self._start
        if self._bar is None and elapsed > _SECONDS_BEFORE_PROGRESS:
            self._bar = keras.utils.Progbar(None, unit_name="token")
        if self._bar is not None:
            expected = min(self._expected(seen, batches), self._max_tokens)
            self._bar.target = None if expected == math.inf else round(expected)
            self._bar.update(min(seen, self._max_tokens), finalize=False)

    def _expected(self, seen, batches):
        """Estimate of the tokens in the data, from those per example so far."""
        if self._all_tokens is not None:
            return max(self._all_tokens, seen)
        if self._examples is not None:
            examples = min(batches * self._batch_size, self._examples)
            return seen * self._examples / examples
        steps = self.params["steps"]
        return math.inf if steps is None else seen * steps / batches
