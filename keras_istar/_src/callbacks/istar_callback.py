"""The callback that keeps Σ_S and logs isotropy."""

import contextlib
import os
import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_istar._src import validation
from keras_istar._src.callbacks.monitor import IsotropyMonitor
from keras_istar._src.callbacks.monitor import Logs
from keras_istar._src.callbacks.monitor import rows_of
from keras_istar._src.compat import keras_private
from keras_istar._src.compat import train_steps
from keras_istar._src.layers.base import name_logs
from keras_istar._src.layers.istar import IStarRegularization
from keras_istar._src.measure.report import as_float64


class IStarCallback(IsotropyMonitor):
    """Keeps the shrinkage covariance Σ_S of every attached layer, and logs.

    It is an `IsotropyMonitor` of what attached layers are given.

    At the start of training, after every epoch, and every `update_freq`
    batches if that is a number, the model runs in inference mode over `data`
    until `max_tokens` tokens have been seen, and their covariance becomes Σ_S.
    The pass streams: its memory does not depend on `max_tokens`. Layers with
    `momentum` maintain Σ_S themselves and are only logged. With
    `update_freq="start"` the pass at the start is the only one.

    The logs of every epoch receive the IsoScore of those tokens: of the union
    of all states as `isoscore_union`, and of each state as `isoscore_layer_0`
    and so on, by the index of the block or the name of the layer. They also
    receive `between_layers`, see `IsotropyMonitor`. If the union collapses, a
    warning says so once. `History` sees all of this, and so do callbacks that
    come later in the list. So put this one first, and `EarlyStopping(
    "isoscore_union", mode="max")` or others after it. A layer of `strength=0`
    only logs: attach it beside another regularizer, or to a model that has
    none, to see the isotropy of that training.

    An estimate that is not finite causes a warning and is not used; the last
    good Σ_S stays. Put `TerminateOnNaN(raise_error=True)` before the callbacks
    that save: by default, Keras still ends the epoch, and these callbacks
    replace good weights by NaN.

    With `BackupAndRestore` a restarted run goes on with the Σ_S it had. But
    Keras writes that backup in place: a run that is killed meanwhile may not
    start again, or may repeat an epoch on newer weights. Use `AtomicBackup`
    instead.

    With `log_dir`, TensorBoard shows after every epoch, under "isotropy":

    - as scalars, what the logs receive, and the `strength`, `shrinkage` and
      `target` in force, so that their schedules can be seen;
    - as histograms named `spectrum_union`, `spectrum_layer_0` and so on, log10
      of the eigenvalues of the covariance;
    - as an image named `report`, the figure of `IsotropyReport.plot`, with
      isotropy, spectrum and outlier dimensions by layer.

    All of this comes from the pass after the epoch. The step is the epoch, as
    for `keras.callbacks.TensorBoard`, which also shows the scalars if it comes
    after this callback. Of several processes that train together, the first one
    writes. If `log_dir` cannot be written to, a warning says so and training
    goes on.

    Args:
        data: What the model's `fit` takes as `x`: arrays, pandas columns,
            nested dicts and lists of them, raw strings if the model is a
            KerasHub task, or a `tf.data` dataset, with or without labels. It is
            read anew at every pass, from its start; copies of the callback
            share it.
        max_tokens: Number of tokens to use. Each counts once for every state:
            with 12 states, 250,000 are about 21,000 tokens of text. The
            pass ends with the batch that reaches it. None uses all.
        update_freq: `"epoch"`, or the number of batches between passes, counted
            anew in every epoch. With `"start"`, the pass at the start of
            training is the only one: Σ_S stays as it was then, and the logs
            receive no scores from passes.
        batch_size: Examples in a batch, where `data` does not come in batches,
            rounded up to a multiple of the model's replicas.
        verbose: 0 is silent; 1 draws a progress bar for passes longer than a
            few seconds and says once if `data` is smaller than `max_tokens`.
        log_dir: None, or the folder for TensorBoard's event files. It is made
            when the first epoch ends, and must be None with
            `update_freq="start"`. Without matplotlib, which the extra `report`
            brings, a warning says that the image is left out.
        measures: Names of the measures to log, see `measure`, or `"all"`.

    Raises:
        ValueError: If an argument is out of range; at the start of training,
            if `data` is empty or the model has no `IStarRegularization`.
        ImportError: If a measure lacks its package; or if `log_dir` is given on
            a backend other than TensorFlow, and TensorFlow or TensorBoard is
            not installed.

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
        measures: str | Sequence[str] = ("isoscore",),
    ):
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
        super().__init__(
            data,
            measures=measures,
            max_tokens=max_tokens,
            batch_size=batch_size,
            verbose=verbose,
            log_dir=log_dir,
        )
        self.update_freq = update_freq

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        # `attach` has not hooked a model that calls layers of ours by itself.
        self._has_hooked = not train_steps.is_hooked(model)
        train_steps.hook(model)
        self._join_layers(model)

    def _join_layers(self, model):
        layers = keras_private.find_layers(model, IStarRegularization)
        # Steps of the whole that were traced before lack a layer that was
        # attached to a part of it.
        if any(model not in layer.joined_models() for layer in layers):
            keras_private.retrace(model)
        for layer in layers:
            layer.join(model)

    def _find_watched(self):
        layers = self._attached()
        if not layers:
            raise ValueError(
                "`IStarCallback` needs a model with an `IStarRegularization` "
                "layer; call `keras_istar.attach(model)` first, on the model "
                "that is fitted: one made from the tensors of an attached "
                "model does not call its layer. "
                f"Received: model={self.model.name!r}"
            )
        name_logs(self.model)
        return layers

    def _shown(self):
        return contextlib.nullcontext()

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        self._first_batch = batch

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        # With `steps_per_execution`, several batches end at once. They count
        # from the start of the epoch, where a restarted run goes on.
        if isinstance(self.update_freq, int) and (
            self._first_batch // self.update_freq
            != (batch + 1) // self.update_freq
        ):
            self._observe()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if self.update_freq != "start":
            super().on_epoch_end(epoch, logs)
        elif self._attached() != self._watched:
            self._observe()

    def on_train_end(self, logs: Logs = None) -> None:
        super().on_train_end(logs)
        if self._has_hooked:
            train_steps.unhook(self.model)

    def _attached(self):
        return keras_private.find_layers(self.model, IStarRegularization)

    def _observe(self):
        layers = self._attached()
        if not layers:  # They were detached since training began.
            return {}
        if layers == self._watched:
            return super()._observe()
        self._join_layers(self.model)
        return self._watch()

    def _run_pass(self):
        """Runs a pass, and sets Σ_S of every layer."""
        found = super()._run_pass()
        for layer, states in found.items():
            parts = [x.moments for name, x in states.items() if name != "union"]
            self._update(layer, layer.estimate(parts))
        return found

    def _update(self, layer, estimate):
        if layer.momentum is not None:
            return
        if not bool(ops.all(ops.isfinite(estimate))):
            warnings.warn(
                f"IStarCallback: the covariance of layer '{layer.name}' is "
                "not finite; the last one that was stays in use. "
                f"{validation.see_guide('what-the-logs-say')}",
                stacklevel=2,
            )
            return
        layer.set_shrinkage_covariance(estimate)

    def _settings(self):
        return {
            layer.log_name(name): value
            for layer in self._watched
            for name, value in layer.numbers_in_force().items()
        }

    def _rows(self, layer, states):
        # Copies: a variable that a strategy mirrors is not a tensor.
        target = None
        has_target = bool(ops.copy(layer.has_shrinkage_covariance.value) > 0)
        if has_target and not layer.per_layer:
            target = as_float64(ops.copy(layer.shrinkage_covariance.value))
        names = ["isoscore", "isoscore_star"]
        return rows_of(
            states,
            names[:1] if target is None else names,
            layer.value_in_force("shrinkage"),
            target,
        )

    def _remedy(self, layer, score):
        numbers = layer.numbers_in_force()
        strength = numbers["strength"]
        if layer.target is None and strength < 0:
            return (
                f"The strength is {strength:g}: use a `target`, which does not "
                "push beyond itself, or a strength nearer to 0."
            )
        if strength == 0 or layer.target is None:
            return (
                f"The strength is {strength:g}, so this is what training "
                "itself does: a lower learning rate, or a `target`, helps."
            )
        target = numbers.get("target", numbers.get("target_low", 0.0))
        if score < target and not layer.per_layer:
            return (
                f"The IsoScore of their union, {score:.2g}, is already below "
                f"the target, {target:.2g}: use a lower learning rate, or "
                f"another `strength` than {strength:g}."
            )
        return "Use a higher `target`, or a lower learning rate."
