"""Tasks of texts, or pairs of them: film reviews, GLUE, SQuAD, and files."""

import collections
import dataclasses
import hashlib
import itertools
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
SQUAD_HOST = "https://rajpurkar.github.io"
SECONDS_TO_ANSWER = 8.0
_INSTALL = 'In a clone of the repository: pip install ".[examples]"'
# The files of a folder: the names that each part may have.
_PART_NAMES = (("train",), ("validation", "dev"), ("test",))
_SUFFIXES = (".txt", ".tsv")


@dataclasses.dataclass(frozen=True)
class Task:
    """Facts about a task, known before its data are read.

    Attributes:
        columns: Names of the columns of TFDS that hold the texts.
        sequence_length: Tokens that hold nearly all of its texts; or of a
            window of them, if it has spans.
        scores: Names of its scores, of those in `scores.SCORES`, or in
            `spans.SCORES` if it has spans.
        validation: Name of its validation split in TFDS.
        has_spans: Whether answers are spans of the second text.
    """

    columns: tuple[str, ...] = ()
    sequence_length: int = 48
    scores: tuple[str, ...] = ("accuracy",)
    validation: str = "validation"
    has_spans: bool = False


_SENTENCES = ("sentence1", "sentence2")
_CORRELATIONS = ("pearson", "spearman")
TASKS = {
    "film-reviews": Task(),
    "glue/cola": Task(("sentence",), 32, ("matthews",)),
    "glue/mnli": Task(
        ("premise", "hypothesis"), 80, validation="validation_matched"
    ),
    "glue/mrpc": Task(_SENTENCES, 80, ("accuracy", "f1")),
    "glue/qnli": Task(("question", "sentence"), 96),
    "glue/qqp": Task(("question1", "question2"), 64, ("accuracy", "f1")),
    "glue/rte": Task(_SENTENCES, 96),
    "glue/sst2": Task(("sentence",)),
    "glue/stsb": Task(_SENTENCES, 64, _CORRELATIONS),
    "glue/wnli": Task(_SENTENCES, 96),
    "squad": Task(
        ("question", "context"), 384, ("exact_match", "f1"), has_spans=True
    ),
}
TFDS_TASKS = tuple(name for name, task in TASKS.items() if task.columns)


class Answer(NamedTuple):
    """An answer to a question.

    Attributes:
        answer_start: Place of its first character in the context.
        text: Its characters.
    """

    answer_start: int
    text: str


class Examples(NamedTuple):
    """Examples of a task.

    Attributes:
        texts: A list of texts; for sentence pairs, or questions and their
            contexts, a tuple of two lists.
        labels: Index of the class of each, or a number to predict, or all
            right answers.
    """

    texts: list[str] | tuple[list[str], list[str]]
    labels: list[int] | list[float] | list[tuple[Answer, ...]]


class TextData(NamedTuple):
    """The data of a task.

    Attributes:
        name: As given to `load`.
        classes: Names of the classes; none if labels are numbers to predict,
            or answers.
        scores: Names of the task's scores, see `Task`.
        train: Examples to train on.
        validation: Examples to watch while training.
        test: Examples for the final figures.
        has_spans: Whether labels are answers, spans of the second text.
    """

    name: str
    classes: tuple[str, ...]
    scores: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    has_spans: bool = False


class _Row(NamedTuple):
    key: str  # Decides the part and the place of the example.
    texts: tuple[str, ...]
    label: int | float | tuple[Answer, ...]


def find_task(name: str) -> Task:
    """The task of a name as `load` takes it.

    Raises:
        UserError: If there is no such task, file or folder.
    """
    if name in TASKS:
        return TASKS[name]
    if not Path(name).exists():
        raise UserError(
            f"no such task, file or folder: {name!r}. Tasks are "
            f"{', '.join(TASKS)}"
        )
    return Task()


def load(
    name: str, data_dir: str | None = None, limit: int | None = None
) -> TextData:
    """Loads the data of a task.

    Every example has a place in [0, 1), a hash of its id, the same on every
    machine and in every run. Places below 0.1 are the test part, those below
    0.2 the validation part, the others the training part; all parts are in
    the order of places. GLUE hides its test labels, and SQuAD its test part:
    there the official validation split is the test part, and places below 0.1
    of the official training split are the validation part. A folder has all
    three parts; they stay as they are, but for the order.

    Args:
        name: `"film-reviews"`, `"glue/<task>"`, `"squad"`, which is version
            1.1, or a path. A file has lines `label <tab> text` or
            `label <tab> text <tab> second text`, in UTF-8. The id of a line is
            its texts. A folder has such a file for each part: `train`,
            `validation` or `dev`, and `test`, each `.txt` or `.tsv`. There, a
            line without a tab is `label text`, as in the public files of
            SST-5.
        data_dir: Folder of TFDS data, for GLUE and SQuAD.
        limit: Largest number of examples in each part, None for all.

    Raises:
        UserError: If there is no such task, file or folder, it cannot be
            downloaded or read, or a part would be empty.
    """
    task = find_task(name)
    if name == "film-reviews":
        classes, parts = _film_reviews()
    elif task.columns:
        classes, parts = _tfds(name, task, data_dir)
    elif Path(name).is_dir():
        classes, parts = _folder(Path(name))
    else:
        classes, parts = _file(name)
    if not all(parts) or len(classes) == 1:
        raise UserError(
            f"{name} must hold examples of two classes or more, and some for "
            "each of train, validation and test. Received: "
            f"{len(classes)} classes, {[len(part) for part in parts]} examples"
        )
    examples = (_examples(part[:limit]) for part in parts)
    return TextData(
        name, tuple(classes), task.scores, *examples, task.has_spans
    )


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
    lines = [line.split("\t") for line in _read_lines(path)]
    _check_widths(path, lines)
    _refuse_header(path, lines)
    classes = sorted({label for label, *_ in lines})
    return classes, _split(_table_rows(lines, classes))


def _folder(path):
    """Rows of a folder with a file for each part."""
    parts = [
        [
            line.split("\t") if "\t" in line else line.split(" ", 1)
            for line in _read_lines(_find_part(path, names))
        ]
        for names in _PART_NAMES
    ]
    lines = list(itertools.chain(*parts))
    _check_widths(path, lines)
    _refuse_header(path, parts[0])
    classes = sorted({label for label, *_ in parts[0]})
    others = sorted({label for label, *_ in lines}.difference(classes))
    if others:
        raise UserError(
            f"every label in {path} must occur in its training part. "
            f"Received: {others}, where those of train are {classes}"
        )
    return classes, [_in_order(_table_rows(part, classes)) for part in parts]


def _find_part(folder, names):
    """The one file of a part."""
    allowed = [name + suffix for name in names for suffix in _SUFFIXES]
    found = [name for name in allowed if (folder / name).is_file()]
    if len(found) != 1:
        raise UserError(
            f"{folder} must hold one of {', '.join(allowed)}. Received: "
            f"{' and '.join(found) or 'none of them'}"
        )
    return folder / found[0]


def _check_widths(path, lines):
    widths = {len(fields) for fields in lines}
    if widths - {2} and widths - {3}:
        raise UserError(
            f"{path} must have lines `label <tab> text`, or all of them with "
            f"a second text. Received: lines of {sorted(widths)} fields"
        )


def _refuse_header(path, lines):
    """Refuses a header, whose first field would be a class of its own."""
    counts = collections.Counter(label for label, *_ in lines)
    first, *others = counts.values() or [0]
    if first == 1 and others and min(others) > 1:
        raise UserError(
            f"the first training line of {path} is the only one with its "
            "label: remove it if it is a header, else move it further down. "
            f"Received: {' <tab> '.join(lines[0]):.80}"
        )


def _table_rows(lines, classes):
    return [
        _Row("\t".join(texts), tuple(texts), classes.index(label))
        for label, *texts in lines
    ]


def _read_lines(path):
    """Lines of a file in UTF-8 that are not blank."""
    try:
        # A mark at its start, as spreadsheets write it, is no part of a label.
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    # Not `splitlines`, which breaks texts at rarer characters too.
    return [line for line in text.split("\n") if line.strip()]


def _tfds(name, task, data_dir):
    classes, columns = read_tfds(name, ["train", task.validation], data_dir)
    make_rows = _squad_rows if task.has_spans else _glue_rows
    official, test = (
        _in_order(make_rows(split, task.columns)) for split in columns
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


def _squad_rows(split, columns):
    texts = zip(*(split[name] for name in columns), strict=True)
    answers = zip(*(split["answers"][x] for x in Answer._fields), strict=True)
    for key, fields, found in zip(split["id"], texts, answers, strict=True):
        spans = (
            Answer(int(start), text.decode())
            for start, text in zip(*found, strict=True)
            if text  # TFDS fills up with empty ones.
        )
        yield _Row(
            key.decode(), tuple(f.decode() for f in fields), tuple(spans)
        )


def read_tfds(
    name: str, splits: list[str], data_dir: str | None
) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """Names of the classes, and for each split a dict of NumPy columns."""
    check_data_dir(data_dir, name)
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.data_path.exists():
            _check_connection(SQUAD_HOST if name == "squad" else GLUE_HOST)
            builder.download_and_prepare()
        columns = builder.as_dataset(split=splits, batch_size=-1)
    except Exception as error:  # TFDS has no common class for its errors.
        is_missing = isinstance(error, ImportError)
        raise UserError(
            f"cannot load {name} with tensorflow-datasets from "
            f"{data_dir or 'its default folder'}: {summarize(error)}. "
            f"{_INSTALL if is_missing else _advice(name, data_dir)}"
        ) from error
    features = builder.info.features
    label = features["label"] if "label" in features else None
    return tuple(getattr(label, "names", ())), tfds.as_numpy(columns)


def _check_connection(url: str) -> None:
    """Raises if a host does not answer; TFDS would try for minutes.

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
        "Leave out --data-dir, and tensorflow-datasets downloads to its own "
        f"folder; or make it: tfds build {name} --data_dir {folder}"
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
