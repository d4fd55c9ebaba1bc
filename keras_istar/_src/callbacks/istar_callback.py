"""The callback that keeps Σ_S and logs isotropy."""

import copy
import os
import warnings
from typing import Any

import keras
from keras import ops

from keras_istar._src import validation
from keras_istar._src.callbacks.tensorboard import Dashboard
from keras_istar._src.compat import jax_trainer
from keras_istar._src.compat import keras_data
from keras_istar._src.compat import keras_graph
from keras_istar._src.compat.distribution import is_chief
from keras_istar._src.layers.base import name_logs
from keras_istar._src.layers.istar import IStarRegularization
from keras_istar._src.measure.streaming_pass import StatesPass
from keras_istar._src.score import moments
from keras_istar._src.score.isoscore import unchecked_isoscore

Logs = dict[str, Any] | None


class IStarCallback(keras.callbacks.Callback):
    """Keeps the shrinkage covariance Σ_S of every attached layer, and logs.

    At the start of training, after every epoch, and every `update_freq`
    batches if that is a number, the model runs in inference mode over `data`
    until `max_tokens` tokens have been seen, and their covariance becomes Σ_S.
    The pass streams: its memory does not depend on `max_tokens`. Layers with
    `momentum` maintain Σ_S themselves and are only logged. With
    `update_freq="start"` the pass at the start is the only one.

    The logs of every epoch receive the IsoScore of those tokens, of the union
    of all states as `isoscore_union` and of each state as `isoscore_layer_0`
    and so on (after the index of the block, or the name of a layer attached by
    name). Callbacks that come after this one in the list see them, so put it
    first: `callbacks=[IStarCallback(...), EarlyStopping("isoscore_union"),
    CSVLogger(...)]`. `History` always does. A layer of `strength=0` only logs:
    attached beside another regularizer, or to a model that has none, it shows
    the isotropy of what they train.

    An estimate that is not finite is reported by a warning and not used; the
    last good Σ_S stays. Put `TerminateOnNaN(raise_error=True)` before the
    callbacks that save: by default, Keras ends the epoch and saves weights that
    are NaN over good ones.

    With `BackupAndRestore` a restarted run goes on with the Σ_S it had. Keras
    writes that backup in place: a run that is killed meanwhile may not start
    again, or may repeat an epoch on newer weights; `AtomicBackup` takes its
    place.

    With `log_dir`, TensorBoard shows after every epoch, under "isotropy":

    - as scalars what the logs receive, and the `strength` and `shrinkage` in
      force, so that a schedule of them can be seen;
    - as histograms, named `spectrum_union` and `spectrum_layer_0` and so on,
      log10 of the eigenvalues of the covariance;
    - as image the figure of `IsotropyReport.plot`, named `report`, with
      isotropy, spectrum and outlier dimensions by layer.

    All of it comes from the pass that is made anyway. Its step is the epoch, as
    with `keras.callbacks.TensorBoard`, which shows the scalars by itself when
    it comes after this callback. Of several processes that train together, the
    first one writes. If `log_dir` cannot be written to, a warning says so and
    training goes on.

    Args:
        data: What the model's `fit` takes as `x`: arrays, pandas columns,
            nested dicts and lists of them, raw strings if the model is a
            KerasHub task, or a `tf.data` dataset, with or without labels. It is
            read anew at every pass, from its start; copies of the callback
            share it.
        max_tokens: Number of tokens to use, counted once in every state. The
            pass ends with the batch that reaches it. None uses all.
        update_freq: `"epoch"`, or the number of batches between passes,
            counted anew in every epoch. With `"start"` no pass is made after
            the one at the start of training: Σ_S stays as it was there, and
            the logs receive none of the scores that come from a pass.
        batch_size: Examples in a batch, where `data` does not come in batches,
            rounded up to a multiple of the model's replicas.
        verbose: 0 is silent; 1 draws a progress bar for passes longer than a
            few seconds and says once if `data` is smaller than `max_tokens`.
        log_dir: None, or the folder for TensorBoard's event files. It is made
            when the first epoch ends, so never with `update_freq="start"`.
            Without matplotlib, which the extra `report` brings, a warning says
            that the image is left out.

    Raises:
        ValueError: If an argument is out of range; at the start of training,
            if `data` is empty or the model has no `IStarRegularization`.
        ImportError: If `log_dir` is given on a backend other than TensorFlow,
            and TensorFlow or TensorBoard is not installed.

    Example:

    >>> inputs = keras.Input((8, 4))
    >>> hidden = keras.layers.Dense(16, name="encoder")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    >>> layer = keras_istar.attach(model, layers="encoder", strength=1.0)
    >>> model.compile("sgd", "mse")
    >>> x, y = np.random.rand(64, 8, 4), np.random.rand(64, 8, 1)
    >>> callback = keras_istar.IStarCallback(x, max_tokens=500, verbose=0)
    >>> history = model.fit(x, y, verbose=0, callbacks=[callback]).history
    >>> "isoscore_union" in history and "isoscore_encoder" in history
    True

    Reference:
        Rudman and Eickhoff, "Stable Anisotropic Regularization", ICLR 2024.
    """

    @validation.renamed_arguments(max_points="max_tokens")
    def __init__(
        self,
        data: Any,
        max_tokens: int | None = 250_000,
        update_freq: str | int = "epoch",
        batch_size: int = 32,
        verbose: int = 1,
        log_dir: str | os.PathLike | None = None,
    ):
        super().__init__()
        is_text = isinstance(update_freq, str)
        if not is_text or update_freq not in ("start", "epoch"):
            update_freq = validation.check_positive_int(
                "update_freq",
                update_freq,
                "'start', 'epoch' or a positive integer",
            )
        if update_freq == "start" and log_dir is not None:
            raise ValueError(
                "`log_dir` must be `None` with `update_freq='start'`, which "
                "makes no pass after an epoch that could be written. "
                f"Received: log_dir={log_dir!r:.200}"
            )
        keras_data.check_repeatable(data)
        self.data = data
        self.max_tokens = validation.check_optional_positive_int(
            "max_tokens", max_tokens
        )
        self.update_freq = update_freq
        self.batch_size = validation.check_positive_int(
            "batch_size", batch_size
        )
        self.verbose = validation.check_verbose(verbose)
        self.log_dir = validation.check_optional_path("log_dir", log_dir)
        self._pass: StatesPass | None = None
        self._dashboard = self._make_dashboard()

    def __deepcopy__(self, memo: dict[int, Any]) -> "IStarCallback":
        # No `tf.data` dataset can be copied. A copy shares `data`, which is
        # only read, and gets its model and pass from the `fit` it is for.
        own: dict[str, Any] = dict.fromkeys(["_model", "_pass", "_dashboard"])
        copied = copy.copy(self)
        memo |= {id(self): copied, id(self.data): self.data}
        shared = {k: v for k, v in vars(self).items() if k not in own}
        own["_dashboard"] = self._make_dashboard()
        copied.__dict__.update(copy.deepcopy(shared, memo) | own)
        return copied

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        # A model that holds layers of ours without having been attached.
        self._has_hooked = not jax_trainer.is_hooked(model)
        jax_trainer.hook(model)
        for layer in keras_graph.find_layers(model, IStarRegularization):
            layer.join(model)

    def on_train_begin(self, logs: Logs = None) -> None:
        self._close_dashboard()  # After a training that was interrupted.
        layers = keras_graph.find_layers(self.model, IStarRegularization)
        if not layers:
            raise ValueError(
                "`IStarCallback` needs a model with an `IStarRegularization` "
                "layer; call `keras_istar.attach(model)` first. "
                f"Received: model={self.model.name!r}"
            )
        keras_data.check_data(self.model, self.data)
        if keras_data.count_examples(self.model, self.data) == 0:
            raise self._empty_data_error()
        if not all(layer.built for layer in layers):
            keras_data.run_once(self.model, self.data, self.batch_size)
        name_logs(self.model)
        self._said_fewer = False
        self._pass = StatesPass(
            self.model,
            layers,
            self.data,
            self.max_tokens,
            self.batch_size,
            show_progress=bool(self.verbose),
        )
        self._estimate()

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        self._first_batch = batch

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        # With `steps_per_execution`, several batches end at once. They count
        # from the start of the epoch, where a restarted run goes on.
        if isinstance(self.update_freq, int) and (
            self._first_batch // self.update_freq
            != (batch + 1) // self.update_freq
        ):
            self._estimate()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if self.update_freq == "start":
            return
        clouds = self._estimate()
        scores = _scores(clouds)
        if logs is not None:
            logs.update(scores)
        if self._dashboard is not None and is_chief(self.model):
            self._dashboard.show(epoch, scores, clouds)

    def on_train_end(self, logs: Logs = None) -> None:
        self._pass = None
        self._close_dashboard()
        if self._has_hooked:
            jax_trainer.unhook(self.model)

    def _estimate(self):
        """Sets Σ_S of every layer; returns moments by layer and state."""
        # On JAX, `self.model` brings the variables up to date.
        assert self.model is not None and self._pass is not None
        clouds = {}
        for layer, states in self._pass.run().items():
            union = moments.combine(states)
            self._report_count(int(union.count))
            self._update(layer, layer.estimate(states))
            named = zip(layer.state_names, states, strict=True)
            clouds[layer] = {"union": union, **dict(named)}
        return clouds

    def _update(self, layer, estimate):
        needs_start = layer.relative and not layer.has_start
        if layer.momentum is not None and not needs_start:
            return
        if not bool(ops.all(ops.isfinite(estimate))):
            warnings.warn(
                f"IStarCallback: the covariance of layer '{layer.name}' is "
                "not finite; the last one that was stays in use.",
                stacklevel=2,
            )
            return
        if needs_start:
            layer.set_start(estimate)
        if layer.momentum is None:
            layer.set_shrinkage_covariance(estimate)

    def _report_count(self, count):
        if count == 0:
            raise self._empty_data_error()
        is_fewer = self.max_tokens is not None and count < self.max_tokens
        if is_fewer and self.verbose and not self._said_fewer:
            print(
                f"IStarCallback: `data` holds {count:,} tokens, fewer than "
                f"max_tokens={self.max_tokens:,}; all are used."
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


def _scores(clouds):
    """IsoScore of every state and union, by its name in the logs."""
    return {
        layer.log_name(f"isoscore_{name}"): float(
            unchecked_isoscore(moments.covariance(tokens))
        )
        for layer, states in clouds.items()
        for name, tokens in states.items()
    }
