"""Lets a forward pass hand out the hidden states that layers are given."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

from keras_istar.moments import Tensor


class HiddenState(NamedTuple):
    """Hidden states `(batch, length, dim)` and their mask, if there is one."""

    states: Tensor
    mask: Tensor | None


class Observer:
    """What the layers of one forward pass were given."""

    def __init__(self):
        self._calls = {}

    def record(self, layer, states: list[Tensor], masks: list) -> None:
        """Adds one call of `layer`."""
        call = map(HiddenState, states, masks)
        self._calls.setdefault(id(layer), []).append(list(call))

    def calls_of(self, layer) -> list[list[HiddenState]]:
        """For each call of `layer`, several in a siamese model, its states."""
        return self._calls.get(id(layer), [])


_observer: contextvars.ContextVar[Observer | None] = contextvars.ContextVar(
    "keras_istar_observer", default=None
)


@contextlib.contextmanager
def observe() -> Iterator[Observer]:
    """Within this scope, layers show what they are given to the observer."""
    observer = Observer()
    token = _observer.set(observer)
    try:
        yield observer
    finally:
        _observer.reset(token)


def current_observer() -> Observer | None:
    """The observer of this thread's forward pass, if there is one."""
    return _observer.get()
