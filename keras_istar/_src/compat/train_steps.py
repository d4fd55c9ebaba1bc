"""Hooks of train steps: logs on JAX, lost penalties, warnings of unused ones.

On JAX, Keras runs the forward pass of a train step without the state of
metrics, so a layer cannot log from its call
(https://github.com/keras-team/keras/issues/21639). If a layer is called twice,
Keras keeps only its last loss. Hooks hand logs and losses over to
`compute_loss`, which runs in the same trace. Remove when Keras gives the
forward pass on JAX the state of metrics and keeps all losses.

On any backend, a `train_step` or `compute_loss` that calls the model once more,
such as that of KerasHub's SigLIP, makes Keras forget the losses of the forward
pass. Models that override one of them are therefore hooked too. Remove when a
call of a model no longer clears the losses of the call before.

Such a method may also leave the losses of layers out, as may that of a model
around the hooked one. So penalties are watched: layers are told of those that
get no gradient.
"""

import contextlib
import contextvars
import functools
import threading
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from typing import NamedTuple

import keras

from keras_istar._src.compat import keras_private
from keras_istar._src.compat.custom_gradients import when_differentiated
from keras_istar._src.types import Tensor

_HOOKS = ("train_step", "compute_loss")


class Call(NamedTuple):
    """One call of a layer within a train step.

    Attributes:
        log: Function that updates the metrics; None if they are up to date. Its
            argument says whether this is the first call of the layer in a step.
        metric: One of these metrics.
        penalty: Number that the layer added to the loss; None if it added none.
        collected: The losses that `stateless_call` is going to return, as they
            are now and as they will be; None if it returns none.
    """

    log: Callable[[bool], None] | None
    metric: keras.metrics.Metric
    penalty: Tensor | None
    collected: list[Tensor] | None


class TrainStep:
    """The train step of a hooked model that is being traced.

    Attributes:
        model: The model.
        is_own: Whether the model overrides `train_step`.
        calls: Calls of layers that `compute_loss` has not handled yet.
        metrics: `id` of the metric of every call.
        at_rest: Functions that tell layers that they have done nothing.
    """

    def __init__(self, model: keras.Model, is_own: bool):
        self.model = model
        self.is_own = is_own
        self.calls: list[Call] = []
        self.metrics: set[int] = set()
        self.at_rest: list[Callable[[], None]] = []


class _Watched(threading.local):
    """Watched penalties without a gradient, for each replica, so each thread.

    Attributes:
        penalties: What tells the layer of each.
    """

    def __init__(self):
        self.penalties: dict[object, Callable[[], None]] = {}


_watched = _Watched()
_step: contextvars.ContextVar[TrainStep | None] = contextvars.ContextVar(
    "keras_istar_train_step", default=None
)


def is_needed() -> bool:
    """Whether layers need hooks to log."""
    return keras.backend.backend() == "jax"


def current_step() -> TrainStep | None:
    """The train step that is being traced; None outside of any."""
    return _step.get()


def log_call(
    log: Callable[[bool], None],
    metric: keras.metrics.Metric,
    is_first_call: bool = True,
    penalty: Tensor | None = None,
) -> bool:
    """Logs the call of a layer, now or when `compute_loss` runs.

    Args:
        log: Function that updates the metrics. Its argument says whether this
            is the first call of the layer in a step.
        metric: One of these metrics.
        is_first_call: Whether this is the first call of the layer in a step, as
            far as the caller knows.
        penalty: Number that the layer added to the loss.

    Returns:
        Whether the penalty is certain to enter the loss.
    """
    step = current_step()
    if not is_needed():
        if step is not None:  # Calls whose losses are added up together.
            is_first_call = all(
                call.metric is not metric for call in step.calls
            )
        log(is_first_call)
    elif step is None:
        return False
    if step is not None:
        later = log if is_needed() else None
        collected = keras_private.collected_losses()
        step.calls.append(Call(later, metric, penalty, collected))
        step.metrics.add(id(metric))
    return True


def watch_gradient(penalty: Tensor, tell: Callable[[], None]) -> Tensor:
    """Watches whether a penalty of a train step gets a gradient.

    Calls by hand are not watched.

    Args:
        penalty: Number that a layer is to add to the loss.
        tell: What `tell_of_no_gradient` calls if it gets none.

    Returns:
        The penalty, for the layer to add.
    """
    if current_step() is None and not keras_private.is_traced():
        return penalty
    # The gradient may come in another thread.
    penalties, key = _watched.penalties, object()
    penalties[key] = tell
    return when_differentiated(penalty, lambda: penalties.pop(key, None))


def tell_of_no_gradient() -> None:
    """Tells the layers whose penalties have got none, where a step may end.

    A hooked step tells them itself, when it has ended.
    """
    if current_step() is None:
        penalties = list(_watched.penalties.values())
        forget_gradients()
        for tell in penalties:
            tell()


def forget_gradients() -> None:
    """Forgets what was watched before. A step, or an epoch, begins here."""
    _watched.penalties.clear()


def note_rest(tell: Callable[[], None]) -> None:
    """Notes that the current train step has called a layer in inference.

    Args:
        tell: What to call if no layer of ours is called in training as well,
            and the train step is one of the user's.
    """
    step = current_step()
    if step is not None and step.is_own:
        step.at_rest.append(tell)


def has_logged(metric: keras.metrics.Metric) -> bool:
    """Whether the current train step has updated `metric`, or is going to."""
    step = current_step()
    return step is not None and id(metric) in step.metrics


def calling_model(layer: keras.layers.Layer) -> keras.layers.Layer | None:
    """The model whose train step calls `layer`; None if that is not known."""
    if not is_needed():
        return keras_private.calling_model(layer)
    step = current_step()
    return None if step is None else step.model


def hook(model: keras.Model) -> None:
    """Makes train steps of `model` see the calls of our layers, if needed."""
    own = keras_private.overridden_methods(model, _HOOKS)
    if not (is_needed() or own) or is_hooked(model):
        return
    train_step, compute_loss = model.train_step, model.compute_loss
    reference = weakref.ref(model)

    @functools.wraps(train_step)
    def hooked_train_step(*args, **kwargs):
        with _train_step(reference(), "train_step" in own):
            return train_step(*args, **kwargs)

    @functools.wraps(compute_loss)
    def hooked_compute_loss(*args, **kwargs):
        loss = compute_loss(*args, **kwargs)
        step = current_step()
        return loss if step is None else _finish(step, loss)

    keras_private.override(model, "train_step", hooked_train_step)
    keras_private.override(model, "compute_loss", hooked_compute_loss)


def unhook(model: keras.Model) -> None:
    """Undoes `hook`, except where users have replaced the methods since."""
    for name in _HOOKS:
        keras_private.restore(model, name)


def is_hooked(model: keras.Model) -> bool:
    """Whether `hook` has been called on `model`."""
    return any(keras_private.is_overridden(model, name) for name in _HOOKS)


def sync(model: keras.Model) -> None:
    """Brings the variables of a model up to date in the middle of an epoch."""
    if is_needed():
        model.jax_state_sync()


@contextlib.contextmanager
def _train_step(model: keras.Model, is_own: bool) -> Iterator[None]:
    step = TrainStep(model, is_own)
    token = _step.set(step)
    forget_gradients()
    try:
        yield
        silent = [] if step.metrics else step.at_rest
        for tell in [*_watched.penalties.values(), *silent]:
            tell()
    finally:
        # Nothing must outlive the trace.
        _step.reset(token)
        forget_gradients()


def _finish(step, loss):
    """Logs the calls of a step; adds penalties that Keras has lost."""
    calls, step.calls = step.calls, []
    entered = {id(x) for x in step.model.losses}
    logged = set()
    for call in calls:
        if _is_lost(step, call, entered):
            loss = loss + keras_private.additional_loss(
                step.model, call.penalty
            )
        if call.log is None:
            continue
        if keras_private.has_state(call.metric.variables[0]):
            call.log(id(call.metric) not in logged)
            logged.add(id(call.metric))
    return loss


def _is_lost(step, call, entered):
    """Whether neither `compute_loss` nor the user's step has the penalty."""
    if call.penalty is None or id(call.penalty) in entered:
        return False
    returned = (call.collected or []) if step.is_own else []
    return all(x is not call.penalty for x in returned)
