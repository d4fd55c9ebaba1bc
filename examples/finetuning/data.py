"""Tasks of texts, or pairs of them: film reviews, GLUE, and files."""

import dataclasses
import hashlib
import threading
from pathlib import Path
from typing import Any
from typing import NamedTuple

from finetuning.command_line import UserError
from finetuning.command_line import summarize
from finetuning.downloads import Member
from finetuning.downloads import Package
from finetuning.downloads import fetch

_FILM_REVIEWS = Package(
    "vaderSentiment==3.3.2",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    (
        Member(
            (
                "vaderSentiment-3.3.2/additional_resources/"
                "hutto_ICWSM_2014.tar.gz",
                "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
            ),
            "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
        ),
    ),
)
_NEUTRAL = 0.5  # Ratings nearer to 0 have no clear label.
GLUE_HOST = "https://dl.fbaipublicfiles.com"
SECONDS_TO_ANSWER = 8.0


@dataclasses.dataclass(frozen=True)
class Task:
    """Facts about a task, known before its data are read.

    Attributes:
        columns: Names of the columns of TFDS that hold the texts.
        sequence_length: Tokens that hold nearly all of its texts.
        scores: Names of its scores, of those in `scores.SCORES`.
        validation: Name of its validation split in TFDS.
    """

    columns: tuple[str, ...] = ()
    sequence_length: int = 48
    scores: tuple[str, ...] = ("accuracy",)
    validation: str = "validation"


_SENTENCES = ("sentence1", "sentence2")
_CORRELATIONS = ("pearson", "spearman")
TASKS = {
    "film-reviews": Task(),
    "cola": Task(("sentence",), 32, ("matthews",)),
    "mnli": Task(
        ("premise", "hypothesis"), 80, validation="validation_matched"
    ),
    "mrpc": Task(_SENTENCES, 80, ("accuracy", "f1")),
    "qnli": Task(("question", "sentence"), 96),
    "qqp": Task(("question1", "question2"), 64, ("accuracy", "f1")),
    "rte": Task(_SENTENCES, 96),
    "sst2": Task(("sentence",)),
    "stsb": Task(_SENTENCES, 64, _CORRELATIONS),
    "wnli": Task(_SENTENCES, 96),
}
GLUE = tuple(f"glue/{name}" for name, task in TASKS.items() if task.columns)


class Examples(NamedTuple):
    """Examples of a task.

    Attributes:
        texts: A list of texts; for sentence pairs a tuple of two lists.
        labels: Index of the class of each, or a number to predict.
    """

    texts: list[str] | tuple[list[str], list[str]]
    labels: list[int] | list[float]


class TextData(NamedTuple):
    """The data of a task.

    Attributes:
        name: As given to `load`.
        classes: Names of the classes; none if labels are numbers to predict.
        scores: Names of the task's scores, see `Task`.
        train: Examples to train on.
        validation: Examples to watch while training.
        test: Examples for the final figures.
    """

    name: str
    classes: tuple[str, ...]
    scores: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples


class _Row(NamedTuple):
    key: str  # Decides the part and the place of the example.
    texts: tuple[str, ...]
    label: int | float


def find_task(name: str) -> Task:
    """The task of a name as `load` takes it.

    Raises:
        UserError: If there is no such task or file.
    """
    task = TASKS.get(name.removeprefix("glue/"))
    if task is not None and bool(task.columns) == name.startswith("glue/"):
        return task
    if not Path(name).is_file():
        raise UserError(
            f"no such task or file: {name!r}. Tasks are film-reviews, "
            f"{', '.join(GLUE)}"
        )
    return Task()


def load(
    name: str, data_dir: str | None = None, limit: int | None = None
) -> TextData:
    """Loads the data of a task.

    Every example has a place in [0, 1), a hash of its id, the same on every
    machine and in every run. Places below 0.1 are the test part, those below
    0.2 the validation part, the others the training part; all parts are in
    the order of places. GLUE hides its test labels: there the official
    validation split is the test part, and places below 0.1 of the official
    training split are the validation part.

    Args:
        name: `"film-reviews"`, `"glue/<task>"`, or the path of a file of
            lines `label <tab> text` or `label <tab> text <tab> second text`,
            in UTF-8. The id of a line is its texts.
        data_dir: Folder of TFDS data, for GLUE.
        limit: Largest number of examples in each part, None for all.

    Raises:
        UserError: If there is no such task or file, it cannot be downloaded or
            read, or a part would be empty.
    """
    task = find_task(name)
    if name == "film-reviews":
        classes, parts = _film_reviews()
    elif task.columns:
        classes, parts = _glue(name, task, data_dir)
    else:
        classes, parts = _file(name)
    if not all(parts) or len(classes) == 1:
        raise UserError(
            f"{name} must hold examples of two classes or more, and some for "
            "each of train, validation and test. Received: "
            f"{len(classes)} classes, {[len(part) for part in parts]} examples"
        )
    examples = (_examples(part[:limit]) for part in parts)
    return TextData(name, tuple(classes), task.scores, *examples)


def _film_reviews():
    """Film-review sentences and the mean of about 20 ratings in [-4, 4].

    Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment
    Analysis of Social Media Text", ICWSM 2014.
    """
    member = _FILM_REVIEWS.members[0]
    rows = []
    for line in _read_lines(fetch(_FILM_REVIEWS) / member.name):
        sentence_id, rating, text = line.split("\t")
        if abs(float(rating)) >= _NEUTRAL:
            label = int(float(rating) > 0)
            rows.append(_Row(sentence_id, (text.strip(),), label))
    return ("negative", "positive"), _split(rows)


def _file(path):
    """Rows of a tab-separated file."""
    fields = [line.split("\t") for line in _read_lines(path)]
    widths = {len(row) for row in fields}
    if widths - {2} and widths - {3}:
        raise UserError(
            f"{path} must have lines `label <tab> text`, or all of them with "
            f"a second text. Received: lines of {sorted(widths)} fields"
        )
    classes = sorted({label for label, *_ in fields})
    rows = [
        _Row("\t".join(texts), tuple(texts), classes.index(label))
        for label, *texts in fields
    ]
    return classes, _split(rows)


def _read_lines(path):
    """Lines of a file in UTF-8 that are not blank."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    # Not `splitlines`, which breaks texts at rarer characters too.
    return [line for line in text.split("\n") if line.strip()]


def _glue(name, task, data_dir):
    classes, columns = read_glue(name, ["train", task.validation], data_dir)
    official, test = (
        _in_order(_glue_rows(split, task.columns)) for split in columns
    )
    train = [row for row in official if _place(row) >= 0.1]
    validation = [row for row in official if _place(row) < 0.1]
    return classes, (train, validation, test)


def _glue_rows(split, columns):
    texts = zip(*(split[name] for name in columns), strict=True)
    for idx, fields, label in zip(
        split["idx"], texts, split["label"], strict=True
    ):
        # A NumPy number as Python's, of its kind.
        yield _Row(str(idx), tuple(f.decode() for f in fields), label.item())


def read_glue(
    name: str, splits: list[str], data_dir: str | None
) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """Names of the classes, and for each split a dict of NumPy columns."""
    check_data_dir(data_dir, name)
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.data_path.exists():
            _check_connection(GLUE_HOST)
            builder.download_and_prepare()
        columns = builder.as_dataset(split=splits, batch_size=-1)
    except Exception as error:  # TFDS has no common class for its errors.
        raise UserError(
            f"cannot load {name} with tensorflow-datasets from "
            f"{data_dir or 'its default folder'}: {summarize(error)}. "
            f"{_advice(name, data_dir)}"
        ) from error
    classes = getattr(builder.info.features["label"], "names", ())
    return tuple(classes), tfds.as_numpy(columns)


def _check_connection(url: str) -> None:
    """Raises if a host does not answer, where TFDS would go on for minutes.

    The request has a thread of its own, since nothing bounds the time that
    the look-up of a name takes.
    """
    import requests

    outcome: list[BaseException | None] = []

    def ask():
        try:
            requests.head(url, timeout=SECONDS_TO_ANSWER)
            outcome.append(None)
        except requests.RequestException as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS_TO_ANSWER)
    if not outcome or outcome[0] is not None:
        raise ConnectionError(f"no answer from {url}") from (
            outcome[0] if outcome else None
        )


def check_data_dir(folder: str | None, name: str = "glue/sst2") -> None:
    """Raises a `UserError` that says how to get data if there is no folder."""
    if folder is not None and not Path(folder).is_dir():
        raise UserError(
            f"no such data folder: {folder}. {_advice(name, folder)}"
        )


def _advice(name, folder):
    if folder is None:
        return "With a network connection, TFDS downloads it"
    return (
        "Leave out --data-dir, and tensorflow-datasets downloads GLUE to its "
        f"own folder; or make it: tfds build {name} --data_dir {folder}"
    )


def _split(rows):
    """Train, validation and test rows: 80 %, 10 % and 10 %."""
    rows = _in_order(rows)
    bounds = ((0.2, 1.0), (0.1, 0.2), (0.0, 0.1))
    return tuple(
        [row for row in rows if low <= _place(row) < high]
        for low, high in bounds
    )


def _in_order(rows):
    return sorted(rows, key=_place)


def _place(row):
    """A number in [0, 1), evenly spread over keys, the same everywhere."""
    digest = hashlib.sha256(row.key.encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _examples(rows):
    columns = tuple(map(list, zip(*(row.texts for row in rows), strict=True)))
    texts = columns[0] if len(columns) == 1 else columns
    return Examples(texts, [row.label for row in rows])
