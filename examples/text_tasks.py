"""Labelled texts, or pairs of them, as train, validation and test parts."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import glue
from command_line import UserError
from downloads import Member
from downloads import Package
from downloads import fetch

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


class Examples(NamedTuple):
    """Examples of a task, as `fit` of a KerasHub classifier takes them.

    Attributes:
        texts: A list of texts; for sentence pairs a tuple of two lists.
        labels: Index of the class of each, or a number to predict.
    """

    texts: list[str] | tuple[list[str], list[str]]
    labels: list[int] | list[float]


class TextTask(NamedTuple):
    """A classification task, or one of regression.

    Attributes:
        name: As given to `load`.
        classes: Names of the classes; none if labels are numbers to predict.
        train: Examples to train on.
        validation: Examples to watch while training.
        test: Examples for the final figures.
    """

    name: str
    classes: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples


class _Row(NamedTuple):
    key: str  # What decides the part and the place of the example.
    texts: tuple[str, ...]
    label: int | float


def load(
    name: str,
    data_dir: str | None = None,
    limit: int | None = None,
    with_scores: bool = False,
) -> TextTask:
    """Loads a task.

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
        with_scores: Whether the task may be one of regression.

    Returns:
        The task.

    Raises:
        UserError: If there is no such task or file, it cannot be downloaded or
            read, or a part would be empty.
    """
    if name == "film-reviews":
        classes, parts = _film_reviews()
    elif name.startswith("glue/"):
        classes, parts = _glue(name, data_dir, with_scores)
    else:
        classes, parts = _table(name)
    if not all(parts) or len(classes) == 1:
        raise UserError(
            f"{name} must hold examples of two classes or more, and some for "
            "each of train, validation and test. Received: "
            f"{len(classes)} classes, {[len(part) for part in parts]} examples"
        )
    return TextTask(
        name, tuple(classes), *(_examples(part[:limit]) for part in parts)
    )


def _film_reviews():
    """Film-review sentences and the mean of about 20 ratings in [-4, 4].

    Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment
    Analysis of Social Media Text", ICWSM 2014.
    """
    member = _FILM_REVIEWS.members[0]
    rows = []
    for line in read_lines(fetch(_FILM_REVIEWS) / member.name):
        sentence_id, rating, text = line.split("\t")
        if abs(float(rating)) >= _NEUTRAL:
            label = int(float(rating) > 0)
            rows.append(_Row(sentence_id, (text.strip(),), label))
    return ("negative", "positive"), _split(rows)


def _table(path):
    """Rows of a tab-separated file."""
    if not Path(path).is_file():
        raise UserError(
            f"no such task or file: {path!r}. Tasks are film-reviews and "
            f"{_tasks(with_scores=False)}"
        )
    fields = [line.split("\t") for line in read_lines(path)]
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


def read_lines(path: str | Path) -> list[str]:
    """Lines of a file in UTF-8 that are not blank."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    # Not `splitlines`, which breaks texts at rarer characters too.
    return [line for line in text.split("\n") if line.strip()]


def _tasks(with_scores):
    """Names of GLUE's tasks with classes, or of all, as in braces."""
    names = [
        name
        for name, task in glue.TASKS.items()
        if with_scores or not task.is_scored
    ]
    return f"glue/{{{','.join(names)}}}"


def _glue(name, data_dir, with_scores):
    task = glue.TASKS.get(name.removeprefix("glue/"))
    if task is None or task.is_scored and not with_scores:
        raise UserError(
            f"no such classification task with labels: {name!r}. There are "
            f"{_tasks(with_scores)}"
        )
    classes, columns = glue.read(name, ["train", task.validation], data_dir)
    official, test = (
        _in_order(_glue_rows(split, task.texts)) for split in columns
    )
    train = [row for row in official if _place(row.key) >= 0.1]
    validation = [row for row in official if _place(row.key) < 0.1]
    return classes, (train, validation, test)


def _glue_rows(columns, text_names):
    texts = zip(*(columns[name] for name in text_names), strict=True)
    for idx, fields, label in zip(
        columns["idx"], texts, columns["label"], strict=True
    ):
        # A NumPy number as Python's, of its kind.
        yield _Row(str(idx), tuple(f.decode() for f in fields), label.item())


def _split(rows):
    """Train, validation and test rows: 80 %, 10 % and 10 %."""
    rows = _in_order(rows)
    places = [_place(row.key) for row in rows]
    bounds = ((0.2, 1.0), (0.1, 0.2), (0.0, 0.1))
    return tuple(
        [
            row
            for row, place in zip(rows, places, strict=True)
            if low <= place < high
        ]
        for low, high in bounds
    )


def _in_order(rows: Iterable[_Row]) -> list[_Row]:
    return sorted(rows, key=lambda row: _place(row.key))


def _place(key):
    """A number in [0, 1), evenly spread over keys, the same everywhere."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _examples(rows):
    columns = tuple(map(list, zip(*(row.texts for row in rows), strict=True)))
    texts = columns[0] if len(columns) == 1 else columns
    return Examples(texts, [row.label for row in rows])
