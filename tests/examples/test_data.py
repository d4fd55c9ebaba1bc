"""The tasks: which examples are in which part, and what is refused."""

import contextlib
import hashlib
import socket

import numpy as np
import pytest
from finetuning import data
from finetuning.command_line import UserError


def place(key):
    return int(hashlib.sha256(str(key).encode()).hexdigest()[:12], 16) / 16**12


def test_film_reviews_have_clear_labels_and_fixed_parts(monkeypatch, tmp_path):
    ratings = [f"{rating / 100}" for rating in range(-399, 400, 2)] + ["0.5"]
    rows = [f"{i}\t{rating}\ttext {i}" for i, rating in enumerate(ratings)]
    file = tmp_path / "movieReviewSnippets_GroundTruth.txt"
    file.write_bytes("\r\n".join(rows).encode())
    monkeypatch.setattr(data, "fetch", lambda package: tmp_path)
    task = data.load("film-reviews")
    bounds = {"test": (0, 0.1), "validation": (0.1, 0.2), "train": (0.2, 1)}
    for part, (low, high) in bounds.items():
        keys = [
            key
            for key, rating in enumerate(ratings)
            if abs(float(rating)) >= 0.5 and low <= place(key) < high
        ]
        keys.sort(key=place)
        texts, labels = getattr(task, part)
        assert texts == [f"text {key}" for key in keys]
        assert labels == [int(float(ratings[key]) > 0) for key in keys]
    assert task.classes == ("negative", "positive")
    assert task.scores == ("accuracy",)


def glue_columns(names, labels):
    """A split of made-up texts as TFDS gives it."""
    size = len(labels)
    columns = {
        name: np.array([f"{name} {i}".encode() for i in range(size)])
        for name in names
    }
    return {**columns, "idx": np.arange(size), "label": labels}


def test_glue_holds_out_train_and_tests_on_validation(monkeypatch):
    def read(name, splits, data_dir):
        assert (name, splits) == ("glue/qnli", ["train", "validation"])
        return ("entailment", "not_entailment"), [
            glue_columns(("question", "sentence"), np.arange(size) % 2)
            for size in (200, 20)
        ]

    monkeypatch.setattr(data, "read_glue", read)
    task = data.load("glue/qnli", limit=15)
    order = sorted(range(200), key=place)
    held_out = [i for i in order if place(i) < 0.1]
    kept = [i for i in order if place(i) >= 0.1]
    tested = sorted(range(20), key=place)
    parts = (task.train, task.validation, task.test)
    for part, keys in zip(parts, (kept, held_out, tested), strict=True):
        keys = keys[:15]
        questions, sentences = part.texts
        assert questions == [f"question {i}" for i in keys]
        assert sentences == [f"sentence {i}" for i in keys]
        assert part.labels == [i % 2 for i in keys]


def test_a_task_of_numbers_has_no_classes(monkeypatch):
    labels = np.arange(50, dtype="float32") / 10
    split = glue_columns(("sentence1", "sentence2"), labels)
    monkeypatch.setattr(data, "read_glue", lambda *_: ((), [split, split]))
    task = data.load("glue/stsb")
    assert task.classes == () and task.scores == ("pearson", "spearman")
    assert sorted(task.test.labels) == pytest.approx(labels.tolist())


@pytest.mark.parametrize(
    ("task", "scores"),
    [
        ("cola", ("matthews",)),
        ("mrpc", ("accuracy", "f1")),
        ("qqp", ("accuracy", "f1")),
        ("sst2", ("accuracy",)),
        ("rte", ("accuracy",)),
    ],
)
def test_scores_of_a_task_are_those_of_glue(task, scores):
    assert data.find_task(f"glue/{task}").scores == scores


def test_file_of_pairs(tmp_path):
    path = tmp_path / "pairs.tsv"
    lines = [f"{'yn'[i % 2]}\tone {i}\ttwo {i}\n" for i in range(100)]
    path.write_text("".join(lines), encoding="utf-8")
    task = data.load(str(path))
    assert task.classes == ("n", "y")
    parts = (task.train, task.validation, task.test)
    sizes = [len(part.labels) for part in parts]
    assert sum(sizes) == 100 and sizes[0] > 60
    for part in parts:
        assert sorted(zip(*part.texts, part.labels, strict=True)) == sorted(
            (f"one {i}", f"two {i}", (i + 1) % 2)
            for i in (int(text.split()[1]) for text in part.texts[0])
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold examples of two classes"),
        (b"a\tone\nb\ttwo\n", "some for each of train, validation and test"),
        (b"a\tone\nb\ttwo\tthree\n", r"lines of \[2, 3\] fields"),
        (b"a one\n", r"lines of \[1\] fields"),
        (b"a\t\xff\n", "cannot read"),
    ],
)
def test_broken_file(content, message, tmp_path):
    path = tmp_path / "broken.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        data.load(str(path))


@pytest.mark.parametrize("has_folder", [True, False])
def test_glue_without_data_says_how_to_get_it(
    has_folder, monkeypatch, tmp_path
):
    tfds = pytest.importorskip("tensorflow_datasets")

    def builder(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tfds, "builder", builder)
    folder = tmp_path if has_folder else tmp_path / "missing"
    with pytest.raises(UserError) as caught:
        data.load("glue/rte", data_dir=str(folder))
    message = str(caught.value)
    assert message.endswith(f"tfds build glue/rte --data_dir {folder}")
    reason = "no route to host" if has_folder else "no such data folder"
    assert reason in message


@contextlib.contextmanager
def silent_server():
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def no_server():
    with silent_server() as url:
        pass
    yield url


@pytest.mark.parametrize("host", [no_server, silent_server])
def test_glue_without_a_network_does_not_try_for_long(
    host, monkeypatch, tmp_path
):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(data, "SECONDS_TO_ANSWER", 0.5)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with host() as url:
        monkeypatch.setattr(data, "GLUE_HOST", url)
        with pytest.raises(UserError, match=f"no answer from {url}"):
            data.load("glue/sst2", data_dir=str(tmp_path))
    assert not list(tmp_path.rglob("*.tfrecord*"))
