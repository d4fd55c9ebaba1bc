"""What `attach` has chosen, to be shown."""

from typing import NamedTuple


class Attachment(NamedTuple):
    """The hidden states that an attached layer is given.

    Attributes:
        owner: Name of the model in whose graph the layer is called.
        names: A name for each hidden state.
        shapes: The shape of each.
        masks: For each, in words, where its padding mask comes from.
        left_out: Sentences about what one might have expected, and is not
            taken.
    """

    owner: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    masks: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def describe(self) -> str:
        """Several lines of text: the owner, and a line for each state."""
        width = max(len(name) for name in self.names)
        states = [
            f"  {name:<{width}}  {_shape_text(shape)}  padding: {mask}"
            for name, shape, mask in zip(
                self.names, self.shapes, self.masks, strict=True
            )
        ]
        lines = [f"attached to {self.owner!r}, hidden states:", *states]
        return "\n".join(lines + [f"  ({x})" for x in self.left_out])


def _shape_text(shape):
    axes = [
        "batch",
        *("?" if size is None else str(size) for size in shape[1:]),
    ]
    return f"({', '.join(axes)})"
