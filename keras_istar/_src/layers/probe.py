"""Hands out the hidden states that layers receive in a forward pass."""

import contextlib
import contextvars
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras

from keras_istar._src.types import Tensor


class HiddenState(NamedTuple):
    """Hidden states `(batch, length, dim)` and their mask, if there is one."""

    states: Tensor
    mask: Tensor | None


class Recorder:
    """Receives the hidden states that layers see in one forward pass."""

    def __init__(self):
        self._calls = {}

    def record(self, layer, states: list[Tensor], masks: list) -> None:
        """Adds one call of `layer`."""
        call = map(HiddenState, states, masks)
        self._calls.setdefault(id(layer), []).append(list(call))

    def calls_of(self, layer) -> list[list[HiddenState]]:
        """The states of each call of `layer`; a siamese model has several."""
        return self._calls.get(id(layer), [])


# Stands for passes in which our layers do nothing, not even record.
SILENT = Recorder()
_recorder: contextvars.ContextVar[Recorder | None] = contextvars.ContextVar(
    "keras_istar_recorder", default=None
)


@contextlib.contextmanager
def record_states() -> Iterator[Recorder]:
    """Records the hidden states that layers are given within this scope."""
    with _recorded_by(Recorder()) as recorder:
        yield recorder


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Lets our layers do nothing within this scope."""
    with _recorded_by(SILENT):
        yield


@contextlib.contextmanager
def _recorded_by(recorder):
    token = _recorder.set(recorder)
    try:
        yield recorder
    finally:
        _recorder.reset(token)


def current_recorder() -> Recorder | None:
    """The recorder of this thread's forward pass, if there is one."""
    return _recorder.get()


class Probe(keras.layers.Layer):
    """Shows the states that it is given to the recorder, and does nothing else.

    Attributes:
        state_names: One name for each state.
        dim: Width of the states.
    """

    def __init__(self, state_names: Sequence[str], dim: int):
        super().__init__(autocast=False)
        self.supports_masking = True
        self.state_names = tuple(state_names)
        self.dim = dim

    def build(self, input_shape: Any) -> None:
        pass

    def log_name(self, quantity: str) -> str:
        """Key of a quantity of these states in the logs."""
        return quantity

    def call(
        self, hidden_states: list[Tensor], mask: list | None = None
    ) -> Tensor:
        recorder = current_recorder()
        if recorder is not None:
            masks = [None] * len(hidden_states) if mask is None else mask
            recorder.record(self, hidden_states, masks)
        return hidden_states[-1]
