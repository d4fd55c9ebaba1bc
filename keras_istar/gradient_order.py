"""The order in which gradients of several hidden states are computed."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Tensor = Any  # A tensor of the active Keras backend.

# On JAX, XLA orders operations to save memory, and gradients may be sharded: to
# wait for one, devices would have to exchange a piece of it.
_ONE_AFTER_THE_OTHER = keras.backend.backend() != "jax"


def last_first(
    gradients: list[Callable[[Tensor | None], Tensor]],
    before: Tensor | None = None,
) -> list[Tensor]:
    """Gradients of states, one at a time where nothing else sees to it.

    A model wants that of its last state first, and by then frees what it keeps
    for the others: gradients of all states at once would be the peak of a train
    step.

    Args:
        gradients: For each state a function that returns the gradient,
            computed `after` the tensor it is given.
        before: What the first of them is given.

    Returns:
        A gradient for each state, in their order.
    """
    found: list[Tensor] = []
    for gradient in reversed(gradients):
        found.insert(0, gradient(before))
        if _ONE_AFTER_THE_OTHER:
            before = found[0]
    return found


def after(gradient: Tensor | None, value: Tensor) -> Tensor:
    """`value`, made to depend on a matrix `gradient` if there is one.

    What is then computed from it is not found to be known from the forward
    pass, and kept since. A NaN in the gradient would come out anyway.
    """
    if gradient is None:
        return value
    first = ops.sum(gradient[:1, :1])  # There may be no row.
    return ops.where(ops.isnan(first), ops.cast(first, value.dtype), value)
