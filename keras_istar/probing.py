"""Shows the hidden states of a model for a while, and leaves it as it was."""

import contextlib
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras

from keras_istar import functional_graph
from keras_istar.distribution import strategy_scope
from keras_istar.hidden_states import find_states
from keras_istar.moments import Tensor
from keras_istar.observation import current_observer


class Probe(keras.layers.Layer):
    """Shows the states that it is given to the observer, and does no more.

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

    def call(
        self, hidden_states: list[Tensor], mask: list | None = None
    ) -> Tensor:
        observer = current_observer()
        if observer is not None:
            masks = [None] * len(hidden_states) if mask is None else mask
            observer.record(self, hidden_states, masks)
        return hidden_states[-1]


@contextlib.contextmanager
def probed(
    model: keras.Model, layers: str | int | Sequence[int | str]
) -> Iterator[Probe]:
    """Within this scope, `model` shows the chosen states to a `Probe`.

    Args:
        model: KerasHub task or backbone, or any Functional model.
        layers: Which hidden states, as in `attach`.

    Raises:
        ValueError: As `attach`.
    """
    with functional_graph.surgery:
        states = find_states(model, layers)
        probe = Probe(states.names, states.tensors[0].shape[-1])
        attribute = f"istar_probe_{id(probe)}"
        with strategy_scope(model):
            functional_graph.add_observer(
                states.owner,
                attribute,
                probe,
                states.tensors,
                mask=states.masks,
            )
        # States cannot leave a model that is recomputed as a whole.
        functional_graph.suspend_recomputation(model)
    try:
        yield probe
    finally:
        with functional_graph.surgery:
            functional_graph.remove_observer(states.owner, attribute)
            # What others suspend stays suspended.
            if not any(
                functional_graph.observers(nested)
                for nested in functional_graph.nested_models(model)
            ):
                functional_graph.resume_recomputation(model)
