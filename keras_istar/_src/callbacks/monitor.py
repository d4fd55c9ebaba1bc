"""The callback that logs isotropy: passes over data, logs, TensorBoard."""

import contextlib
import copy
import os
import warnings
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_istar._src import validation
from keras_istar._src.attach.attach import probed
from keras_istar._src.attach.find_states import Layers
from keras_istar._src.attach.padding import Mask
from keras_istar._src.attach.pooling import Pooling
from keras_istar._src.attach.pooling import check_pooling
from keras_istar._src.callbacks.tensorboard import Dashboard
from keras_istar._src.compat import keras_data
from keras_istar._src.compat.distribution import is_chief
from keras_istar._src.measure import measures as table
from keras_istar._src.measure.layer_isotropy import LayerIsotropy
from keras_istar._src.measure.report import as_float64
from keras_istar._src.measure.report import describe
from keras_istar._src.measure.report import measure_values
from keras_istar._src.measure.report import share_between
from keras_istar._src.measure.running_statistics import RunningMoments
from keras_istar._src.measure.running_statistics import RunningTokenStatistics
from keras_istar._src.measure.running_statistics import TokenStatistics
from keras_istar._src.measure.running_statistics import unite
from keras_istar._src.measure.streaming_pass import StatesPass

Logs = dict[str, Any] | None

_SAMPLE_TOKENS = 2_000
_SEED = 0
_SHRINKAGE = 0.2  # Of `isoscore_star`, as in `measure`.

# A model has collapsed when a score of the union falls below this share of
# what it was at the start of training.
_COLLAPSED = 0.1
_SIGNS_OF_COLLAPSE = {
    "isoscore": "IsoScore",
    "effective_rank": "effective rank",
}


class IsotropyMonitor(keras.callbacks.Callback):
    """Logs how isotropic hidden states are, and changes nothing.

    At the start of training and after every epoch, the model runs in inference
    mode over `data` until `max_tokens` tokens have been seen. The pass streams:
    its memory does not depend on `max_tokens`. The model may be any Functional
    one; it needs no layer of this package, and keeps none.

    The logs of every epoch receive each measure of each state and of the union
    of all, `isoscore_layer_0` and `effective_rank_union` for example, so that
    `History`, TensorBoard and callbacks that come after this one in the list
    see them. With several states they also receive `between_layers`, the share
    of the union's variance that lies between the means of the states. It says
    how far apart the layers are, not how their clouds are shaped.

    A warning is given once if representations collapse: if IsoScore or
    effective rank of the union falls below a tenth of its value at the start.

    With `log_dir`, TensorBoard shows after every epoch, under "isotropy", what
    the logs receive; the spectra of the covariances as histograms; and the
    figure of `IsotropyReport.plot` as an image. If `log_dir` cannot be written
    to, a warning says so and training goes on.

    Args:
        data: What the model's `fit` takes as `x`: arrays, pandas columns,
            nested dicts and lists of them, raw strings if the model is a
            KerasHub task, or a `tf.data` dataset, with or without labels. It is
            read anew at every pass, from its start; copies of the callback
            share it.
        layers: Which hidden states, as in `attach`.
        measures: Names of measures, see `measure`, or `"all"`.
        max_tokens: Number of tokens to use. Each counts once for every state:
            with 12 states, 250,000 are about 21,000 tokens of text. The
            pass ends with the batch that reaches it. None uses all.
        batch_size: Examples in a batch, where `data` does not come in batches,
            rounded up to a multiple of the model's replicas.
        verbose: 0 is silent; 1 draws a progress bar for passes longer than a
            few seconds and says once if `data` is smaller than `max_tokens`.
        log_dir: None, or the folder for TensorBoard's event files.
        mask: Which tokens count, as in `attach`.
        pooling: None to measure tokens, or how the tokens of an example become
            one embedding, as in `attach`.

    Raises:
        ValueError: If an argument is out of range; at the start of training,
            if `data` is empty or the model has no such layers.
        ImportError: If a measure lacks its package; or if `log_dir` is given on
            a backend other than TensorFlow, and TensorFlow or TensorBoard is
            not installed.

    Example:

    >>> inputs = keras.Input((8, 4))
    >>> hidden = keras.layers.Dense(16, name="encoder")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    >>> model.compile("sgd", "mse")
    >>> x, y = np.random.rand(64, 8, 4), np.random.rand(64, 8, 1)
    >>> monitor = keras_istar.IsotropyMonitor(
    ...     x, layers="encoder", measures=["effective_rank"], verbose=0
    ... )
    >>> history = model.fit(x, y, verbose=0, callbacks=[monitor]).history
    >>> sorted(history)
    ['effective_rank_encoder', 'effective_rank_union', 'loss']
    """

    def __init__(
        self,
        data: Any,
        layers: Layers = "all",
        measures: str | Sequence[str] = (
            "isoscore",
            "effective_rank",
            "average_cosine",
            "outliers",
            "mean_norm",
        ),
        max_tokens: int | None = 250_000,
        batch_size: int = 32,
        verbose: int = 1,
        log_dir: str | os.PathLike | None = None,
        mask: Mask = None,
        pooling: Pooling = None,
    ):
        super().__init__()
        self.measures, _ = table.choose(measures)
        keras_data.check_repeatable(data)
        self.data = data
        self.layers = layers
        self.mask = mask
        check_pooling(pooling)
        self.pooling = pooling
        self.max_tokens = validation.check_optional_positive_int(
            "max_tokens", max_tokens
        )
        self.batch_size = validation.check_positive_int(
            "batch_size", batch_size
        )
        self.verbose = validation.check_verbose(verbose)
        self.log_dir = validation.check_optional_path("log_dir", log_dir)
        self._pass: StatesPass | None = None
        self._dashboard = self._make_dashboard()

    def __deepcopy__(self, memo: dict[int, Any]) -> "IsotropyMonitor":
        # A `tf.data` dataset cannot be copied. A copy shares `data`, which is
        # only read, and gets its model and pass from the `fit` that uses it.
        own: dict[str, Any] = dict.fromkeys(
            ["_model", "_pass", "_dashboard", "_watched", "_start"]
        )
        copied = copy.copy(self)
        memo |= {id(self): copied, id(self.data): self.data}
        shared = {k: v for k, v in vars(self).items() if k not in own}
        own["_dashboard"] = self._make_dashboard()
        copied.__dict__.update(copy.deepcopy(shared, memo) | own)
        return copied

    def on_train_begin(self, logs: Logs = None) -> None:
        self._close_dashboard()  # After a training that was interrupted.
        keras_data.check_data(self.model, self.data)
        if keras_data.count_examples(self.model, self.data) == 0:
            raise self._empty_data_error()
        self._said_fewer = self._said_collapse = False
        self._start: dict[Any, dict[str, float]] = {}
        self._watch()

    def _watch(self) -> dict[Any, dict[str, TokenStatistics]]:
        """Finds the layers to watch; runs the pass that they begin with."""
        self._watched = self._find_watched()
        make_statistic: Callable[..., Any] = RunningMoments
        if not table.needs_only_moments(self.measures):
            make_statistic = self._make_statistic
        self._pass = StatesPass(
            self.model,
            list(self._watched),
            self.data,
            self.max_tokens,
            self.batch_size,
            show_progress=bool(self.verbose),
            make_statistic=make_statistic,
        )
        found = self._run_pass()
        for layer, states in found.items():
            self._start.setdefault(layer, _signs_of_collapse(states))
        return found

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        found = self._observe()
        if not found:
            return
        numbers: dict[str, float] = {}
        for layer, states in found.items():
            numbers |= self._numbers(layer, states)
            self._warn_of_collapse(layer, states)
        if logs is not None:
            logs.update(numbers)
        if self._dashboard is not None and is_chief(self.model):
            self._dashboard.show(
                epoch,
                numbers,
                self._settings(),
                {
                    layer: self._rows(layer, states)
                    for layer, states in found.items()
                },
            )

    def on_train_end(self, logs: Logs = None) -> None:
        self._pass = None
        self._close_dashboard()

    def _find_watched(self) -> list[Any]:
        """Layers that show their states to a pass."""
        with probed(self.model, self.layers, self.mask, self.pooling) as probe:
            return [probe]

    def _shown(self) -> contextlib.AbstractContextManager:
        """Makes the model call the watched layers within this scope."""
        (probe,) = self._watched
        return probed(
            self.model, self.layers, self.mask, self.pooling, probe=probe
        )

    def _observe(self) -> dict[Any, dict[str, TokenStatistics]]:
        """Runs a pass over what is to be watched now; empty if that is none."""
        return self._run_pass()

    def _run_pass(self) -> dict[Any, dict[str, TokenStatistics]]:
        """Runs a pass; returns each layer's statistics of its states and union.

        The union comes last, as `"union"`.
        """
        # On JAX, `self.model` brings the variables up to date.
        assert self.model is not None and self._pass is not None
        with self._shown():
            passed = self._pass.run()
        found = {}
        for layer, values in passed.items():
            states = [
                x if isinstance(x, TokenStatistics) else TokenStatistics(x)
                for x in values
            ]
            union = unite(
                states,
                self._sample_size(),
                _SEED,
                centered=getattr(layer, "centered", False),
            )
            self._report_count(int(union.moments.count))
            named = zip(layer.state_names, states, strict=True)
            found[layer] = {**dict(named), "union": union}
        return found

    def _make_statistic(self, variables, dim):
        size = self._sample_size()
        return RunningTokenStatistics(variables, dim, size, _SEED)

    def _sample_size(self):
        return _SAMPLE_TOKENS if table.need_sample(self.measures) else 0

    def _numbers(self, layer, states):
        """Numbers for the logs, by key."""
        numbers = {}
        for name, tokens in states.items():
            values = _values(name, self.measures, tokens)
            for column in table.columns_of(self.measures):
                value = float(values.get(column, float("nan")))
                numbers[layer.log_name(f"{column}_{name}")] = value
        if len(states) > 2:
            *parts, union = (
                np.trace(as_float64(x.moments.scatter)) for x in states.values()
            )
            share = share_between(sum(parts), union)
            numbers[layer.log_name("between_layers")] = float(share)
        return numbers

    def _settings(self) -> dict[str, float]:
        """Numbers of the watched layers that TensorBoard shows."""
        return {}

    def _rows(self, layer, states) -> list[LayerIsotropy]:
        """Rows of the pictures, one for each state, if all are finite."""
        return rows_of(states, ["isoscore"], _SHRINKAGE)

    def _warn_of_collapse(self, layer, states):
        if self._said_collapse:
            return
        start = self._start[layer]
        signs = _signs_of_collapse(states)
        for name, value in signs.items():
            if value < _COLLAPSED * start.get(name, 0.0):
                self._said_collapse = True
                warnings.warn(
                    f"The hidden states of {self.model.name!r} are collapsing: "
                    f"the {_SIGNS_OF_COLLAPSE[name]} of their union is "
                    f"{value:.2g}, it was {start[name]:.2g} at the start of "
                    f"training. {self._remedy(layer, signs['isoscore'])} "
                    f"{validation.see_guide('what-the-logs-say')}",
                    stacklevel=2,
                )
                return

    def _remedy(self, layer, score: float) -> str:
        return "A lower learning rate, or a regularizer with a target, helps."

    def _report_count(self, count):
        if count == 0:
            raise self._empty_data_error()
        is_fewer = self.max_tokens is not None and count < self.max_tokens
        if is_fewer and self.verbose and not self._said_fewer:
            print(
                f"{type(self).__name__}: `data` holds {count:,} tokens, fewer "
                f"than max_tokens={self.max_tokens:,}; all are used."
            )
            self._said_fewer = True

    def _make_dashboard(self):
        return None if self.log_dir is None else Dashboard(self.log_dir)

    def _close_dashboard(self):
        if self._dashboard is not None:
            self._dashboard.close()

    def _empty_data_error(self):
        return ValueError(
            "`data` must hold at least one example with an unmasked token. "
            f"Received: data of type {type(self.data).__name__}, empty"
        )


def rows_of(
    states: Mapping[str, TokenStatistics],
    measures: Sequence[str],
    shrinkage: float,
    shrinkage_covariance: np.ndarray | None = None,
) -> list[LayerIsotropy]:
    """A row of a report for each state; none if any cannot be measured."""
    if not all(map(_can_be_measured, states.values())):
        return []
    return [
        describe(
            name,
            measures,
            TokenStatistics(tokens.moments),
            shrinkage,
            shrinkage_covariance,
        )
        for name, tokens in states.items()
    ]


def _values(name, measures, tokens):
    """Numbers by column; none where they cannot be measured."""
    if not _can_be_measured(tokens):
        return {}
    return measure_values(name, measures, tokens, _SHRINKAGE)


def _can_be_measured(tokens):
    """Whether there are enough tokens, and all are finite."""
    is_finite = np.all(np.isfinite(as_float64(tokens.moments.scatter)))
    return bool(is_finite) and int(tokens.moments.count) >= 2


def _signs_of_collapse(states: Mapping[str, TokenStatistics]):
    union = TokenStatistics(states["union"].moments)
    return _values("union", list(_SIGNS_OF_COLLAPSE), union)
