"""What the preprocessor of a KerasHub task takes: texts, for most of them."""

from typing import Any


def are_texts(preprocessor: Any) -> bool:
    """Whether a preprocessor takes texts and nothing else."""
    others = ("audio_converter", "image_converter")
    return getattr(preprocessor, "tokenizer", None) is not None and all(
        getattr(preprocessor, name, None) is None for name in others
    )


def check_texts(texts: Any) -> None:
    """Raises unless a list, an array or the spec of one holds texts.

    Raises:
        ValueError: If one of the examples is no text.
    """
    if isinstance(texts, list):
        for text in texts:
            if not _is_text(text):
                raise _no_texts(f"{text!r:.200} in data")
        return
    shape = texts.shape
    rank = shape.rank if hasattr(shape, "rank") else len(shape)
    if rank != 1 or not _holds_texts(texts):
        raise _no_texts(f"shape {shape} and dtype {_dtype_name(texts)}")


def _no_texts(received):
    return ValueError(
        "`data` must hold one text an example, for the tokenizer of the "
        f"KerasHub task. Received: {received}"
    )


def _is_text(value):
    return isinstance(value, (bytes, str))


def _holds_texts(array):
    if getattr(array.dtype, "kind", "") == "O":
        return all(map(_is_text, array))
    return _dtype_name(array).startswith(("bytes", "str"))


def _dtype_name(array):
    return str(getattr(array.dtype, "name", array.dtype))
