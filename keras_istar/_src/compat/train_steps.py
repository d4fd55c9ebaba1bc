"""Train steps: what layers log on JAX, and which penalties Keras would lose.

Keras runs the forward pass of a train step on JAX without the state of
metrics, so a layer cannot log from its call
(https://github.com/keras-team/keras/issues/21639), and of a layer that is
called twice it keeps the last loss alone. A model that is hooked here hands
both over to `compute_loss`, which runs in the same trace. Remove when Keras
gives the forward pass on JAX the state of metrics and keeps all losses.

On any backend, a `compute_loss` that calls the model once more, as that of
KerasHub's SigLIP does, makes Keras forget the losses of the forward pass. So
models are also hooked that have a `compute_loss` of their own.
"""

import contextlib
import contextvars
import functools
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from typing import NamedTuple

import keras

from keras_istar._src.compat import keras_graph
from keras_istar._src.types import Tensor

_HOOKS = ("train_step", "compute_loss")


class Call(NamedTuple):
    """One call of a layer within a train step.

    Attributes:
        log: Function that updates metrics, if they have not been. It is told
            whether this is the first call of the layer in a step.
        metric: One of these metrics.
        penalty: What the layer has added to the loss, if anything.
    """

    log: Callable[[bool], None] | None
    metric: keras.metrics.Metric
    penalty: Tensor | None


class TrainStep:
    """The train step of a hooked model that is being traced.

    Attributes:
        model: The model.
        calls: Calls of layers that `compute_loss` has not seen yet.
        metrics: `id` of the metrics of all calls.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.calls: list[Call] = []
        self.metrics: set[int] = set()


_step: contextvars.ContextVar[TrainStep | None] = contextvars.ContextVar(
    "keras_istar_train_step", default=None
)


def is_needed() -> bool:
    """Whether layers need hooks to log."""
    return keras.backend.backend() == "jax"


def current_step() -> TrainStep | None:
    """The train step that calls this, None outside of any."""
    return _step.get()


def log_call(
    log: Callable[[bool], None],
    metric: keras.metrics.Metric,
    is_first_call: bool = True,
    penalty: Tensor | None = None,
) -> bool:
    """Logs the call of a layer, as soon as that can be done.

    Args:
        log: Function that updates metrics. It is told whether this is the
            first call of the layer in a step.
        metric: One of these metrics.
        is_first_call: Whether it is, where the caller knows.
        penalty: What the layer has added to the loss.

    Returns:
        Whether the penalty will be in the loss for sure.
    """
    step = current_step()
    if not is_needed():
        log(is_first_call)
    elif step is None:
        return False
    if step is not None:
        later = log if is_needed() else None
        step.calls.append(Call(later, metric, penalty))
        step.metrics.add(id(metric))
    return True


def has_logged(metric: keras.metrics.Metric) -> bool:
    """Whether the train step that calls this has logged a metric already."""
    step = current_step()
    return step is not None and id(metric) in step.metrics


def calling_model(layer: keras.layers.Layer) -> keras.layers.Layer | None:
    """The model whose train step calls `layer`, as far as that is known."""
    if not is_needed():
        return keras_graph.calling_model(layer)
    step = current_step()
    return None if step is None else step.model


def hook(model: keras.Model) -> None:
    """Makes train steps of `model` see the calls of our layers, if needed."""
    is_own = keras_graph.has_own_compute_loss(model)
    if not (is_needed() or is_own) or is_hooked(model):
        return
    train_step, compute_loss = model.train_step, model.compute_loss
    reference = weakref.ref(model)

    @functools.wraps(train_step)
    def hooked_train_step(*args, **kwargs):
        with _train_step(reference()):
            return train_step(*args, **kwargs)

    @functools.wraps(compute_loss)
    def hooked_compute_loss(*args, **kwargs):
        loss = compute_loss(*args, **kwargs)
        step = current_step()
        return loss if step is None else _finish(step, loss)

    _replace(model, "train_step", hooked_train_step)
    _replace(model, "compute_loss", hooked_compute_loss)


def unhook(model: keras.Model) -> None:
    """Undoes `hook`, unless users have put something in its place."""
    attributes = vars(model)
    for name in _HOOKS:
        if hasattr(attributes.get(name), "replaced"):
            replaced = attributes.pop(name).replaced
            if replaced is not None:
                attributes[name] = replaced


def is_hooked(model: keras.Model) -> bool:
    """Whether `hook` has been called on `model`."""
    return any(hasattr(vars(model).get(name), "replaced") for name in _HOOKS)


def _replace(model, name, function):
    # An attribute of the model itself, if users have given it one.
    function.replaced = vars(model).get(name)
    vars(model)[name] = function


def sync(model: keras.Model) -> None:
    """Brings the variables of a model up to date in the middle of an epoch."""
    if is_needed():
        model.jax_state_sync()


@contextlib.contextmanager
def _train_step(model: keras.Model) -> Iterator[None]:
    token = _step.set(TrainStep(model))
    try:
        yield
    finally:
        # Nothing outlives the trace.
        _step.reset(token)


def _finish(step, loss):
    """Logs the calls of a step; adds penalties that Keras has lost."""
    calls, step.calls = step.calls, []
    entered = {id(x) for x in step.model.losses}
    logged = set()
    for call in calls:
        if call.penalty is not None and id(call.penalty) not in entered:
            loss = loss + keras_graph.additional_loss(step.model, call.penalty)
        if call.log is None:
            continue
        if keras_graph.has_state(call.metric.variables[0]):
            call.log(id(call.metric) not in logged)
            logged.add(id(call.metric))
    return loss
