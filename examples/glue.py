"""The tasks of GLUE, as tensorflow-datasets has them."""

from pathlib import Path
from typing import Any
from typing import NamedTuple

from command_line import UserError
from command_line import summarize


class GlueTask(NamedTuple):
    """A task of GLUE.

    Attributes:
        texts: Names of the columns that hold the texts.
        sizes: Numbers of examples in the training split and in the validation
            split, from https://www.tensorflow.org/datasets/catalog/glue.
        validation: Name of the validation split.
        is_scored: Whether labels are numbers to predict.
    """

    texts: tuple[str, ...]
    sizes: tuple[int, int]
    validation: str = "validation"
    is_scored: bool = False


_SENTENCES = ("sentence1", "sentence2")
TASKS = {
    "cola": GlueTask(("sentence",), (8_551, 1_043)),
    "mnli": GlueTask(
        ("premise", "hypothesis"), (392_702, 9_815), "validation_matched"
    ),
    "mrpc": GlueTask(_SENTENCES, (3_668, 408)),
    "qnli": GlueTask(("question", "sentence"), (104_743, 5_463)),
    "qqp": GlueTask(("question1", "question2"), (363_846, 40_430)),
    "rte": GlueTask(_SENTENCES, (2_490, 277)),
    "sst2": GlueTask(("sentence",), (67_349, 872)),
    "stsb": GlueTask(_SENTENCES, (5_749, 1_500), is_scored=True),
    "wnli": GlueTask(_SENTENCES, (635, 71)),
}


def check_data_dir(folder: str | None, name: str = "glue/sst2") -> None:
    """Raises a `UserError` that says how to get data if there is no folder."""
    if folder is not None and not Path(folder).is_dir():
        raise UserError(
            f"no such data folder: {folder}. {_advice(name, folder)}"
        )


def read(
    name: str, splits: list[str], data_dir: str | None
) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """Names of the classes, and for each split a dict of NumPy columns.

    Args:
        name: `glue/<task>`.
        splits: Names of the splits.
        data_dir: Folder of TFDS data, None for its own.

    Raises:
        UserError: If they can neither be found nor downloaded.
    """
    check_data_dir(data_dir, name)
    try:
        import tensorflow_datasets as tfds

        columns, info = tfds.load(
            name, split=splits, data_dir=data_dir, batch_size=-1, with_info=True
        )
    except Exception as error:  # TFDS has no common class for its errors.
        raise UserError(
            f"cannot load {name} with tensorflow-datasets from "
            f"{data_dir or 'its default folder'}: {summarize(error)}. "
            f"{_advice(name, data_dir)}"
        ) from error
    classes = getattr(info.features["label"], "names", ())
    return tuple(classes), tfds.as_numpy(columns)


def _advice(name, folder):
    if folder is None:
        return "With a network connection, TFDS downloads it"
    return (
        "Leave out --data-dir, and tensorflow-datasets downloads GLUE to its "
        f"own folder; or make it: tfds build {name} --data_dir {folder}"
    )
