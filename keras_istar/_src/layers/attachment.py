"""A description of what `attach` has chosen."""

from typing import NamedTuple


class Attachment(NamedTuple):
    """The hidden states that an attached layer is given.

    Attributes:
        owner: Name of the model in whose graph the layer is called.
        names: A name for each hidden state.
        shapes: The shape of each.
        masks: For each, in words, where its padding mask comes from.
        left_out: Sentences about states that one might expect, but that are not
            taken.
        pooling: How the tokens of an example become one, if they do.
    """

    owner: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    masks: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    pooling: str | None = None

    def describe(self) -> str:
        """Several lines of text: the owner, and a line for each state."""
        width = max(len(name) for name in self.names)
        states = [
            f"  {name:<{width}}  {_shape_text(shape)}  padding: {mask}"
            for name, shape, mask in zip(
                self.names, self.shapes, self.masks, strict=True
            )
        ]
        what = "hidden states"
        if self.pooling is not None:
            what = f"the {self.pooling} of the tokens of hidden states"
        lines = [f"attached to {self.owner!r}, {what}:", *states]
        return "\n".join(lines + [f"  ({x})" for x in self.left_out])


def _shape_text(shape):
    axes = [
        "batch",
        *("?" if size is None else str(size) for size in shape[1:]),
    ]
    return f"({', '.join(axes)})"
