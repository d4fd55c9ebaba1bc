"""The tasks: which examples are in which part, and what is refused."""

import contextlib
import hashlib
import json
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from finetuning import data
from finetuning.command_line import UserError

SST5 = Path(__file__).parents[3] / "shared" / "sst5"


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

    monkeypatch.setattr(data, "read_tfds", read)
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
    monkeypatch.setattr(data, "read_tfds", lambda *_: ((), [split, split]))
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


def test_mark_of_spreadsheets_is_no_part_of_a_label(tmp_path):
    path = tmp_path / "table.tsv"
    lines = [f"{'yn'[i % 2]}\tone {i}\n" for i in range(100)]
    path.write_text("".join(lines), encoding="utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbfy")
    assert data.load(str(path)).classes == ("n", "y")


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
        (
            b"label\ttext\n0\tone\n1\ttwo\n0\tthree\n1\tfour\n",
            "if it is a header, .* Received: label <tab> text",
        ),
        (b"a\t\xff\n", "cannot read"),
    ],
)
def test_broken_file(content, message, tmp_path):
    path = tmp_path / "broken.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        data.load(str(path))


def write_parts(folder, **parts):
    for name, lines in parts.items():
        name = name.replace("_", ".")
        (folder / name).write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("validation", ["dev_txt", "validation_tsv"])
def test_folder_has_the_parts_of_its_files(validation, tmp_path):
    sizes = {"train_tsv": 30, validation: 7, "test_txt": 9}
    # With a space in place of the tab in .txt, as in SST-5.
    files = {
        name: [
            f"{i % 3}{' ' if name.endswith('txt') else chr(9)}a {name} {i}"
            for i in range(size)
        ]
        for name, size in sizes.items()
    }
    write_parts(tmp_path, labels_txt=["no part"], **files)
    task = data.load(str(tmp_path), limit=8)
    assert task.classes == ("0", "1", "2") and task.scores == ("accuracy",)
    parts = (task.train, task.validation, task.test)
    for part, (name, size) in zip(parts, sizes.items(), strict=True):
        keys = sorted((f"a {name} {i}" for i in range(size)), key=place)[:8]
        assert part.texts == keys
        assert part.labels == [int(key.split()[-1]) % 3 for key in keys]


def test_folder_of_pairs(tmp_path):
    lines = ["y\tone\ttwo", "n\tthree\tfour"]
    write_parts(tmp_path, train_tsv=lines, dev_tsv=lines, test_tsv=lines[:1])
    task = data.load(str(tmp_path))
    assert task.test == ((["one"], ["two"]), [1])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"test_txt": None}, r"test\.txt, test\.tsv\. Received: none of them"),
        (
            {"dev_tsv": ["0 a"]},
            r"of validation\.txt, validation\.tsv, dev\.txt, dev\.tsv\. "
            r"Received: validation\.txt and dev\.tsv",
        ),
        ({"test_txt": ["0 a", "2 b"]}, r"Received: \['2'\], where .*'0', '1'"),
        ({"test_txt": []}, r"2 classes, \[2, 2, 0\] examples"),
        (
            {"train_txt": ["label text", "0 a", "0 b", "1 a", "1 c"]},
            "the only one with its label",
        ),
        ({"train_txt": ["0 a", "1"]}, r"lines of \[1, 2\] fields"),
        ({"test_txt": ["0\ta\tb"]}, r"lines of \[2, 3\] fields"),
    ],
)
def test_broken_folder(parts, message, tmp_path):
    right = dict.fromkeys(("train_txt", "validation_txt", "test_txt"))
    right = {name: ["0 a", "1 b"] for name in right} | parts
    files = {k: lines for k, lines in right.items() if lines is not None}
    write_parts(tmp_path, **files)
    with pytest.raises(UserError, match=message):
        data.load(str(tmp_path))


@pytest.mark.skipif(not SST5.is_dir(), reason="no files of SST-5")
def test_sst5_has_its_official_parts():
    task = data.load(str(SST5))
    assert task.classes == ("0", "1", "2", "3", "4")
    parts = (task.train, task.validation, task.test)
    assert [len(part.labels) for part in parts] == [8544, 1101, 2210]
    lines = (SST5 / "test.txt").read_text(encoding="utf-8").splitlines()
    found = zip(task.test.labels, task.test.texts, strict=True)
    assert sorted(f"{label} {text}" for label, text in found) == sorted(lines)


def make_squad(context, **answers):
    """A file of SQuAD with a question for each key."""
    questions = [
        {
            "id": key,
            "question": f"Which {key}?",
            "answers": [
                {"text": x, "answer_start": context.index(x)} for x in texts
            ],
        }
        for key, texts in answers.items()
    ]
    paragraphs = [{"context": context, "qas": questions}]
    return {"data": [{"title": "Any", "paragraphs": paragraphs}]}


def test_squad_as_tfds_gives_it(monkeypatch, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    context = "Zoë paid “20 €” in the café, not in Łódź."
    answers = {f"q{i}": [context.split()[i % 6]] for i in range(30)}
    files = {
        "train": make_squad(context, **answers),
        "dev": make_squad(context, one=["Zoë"], two=["20 €", "“20 €”", "20"]),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(
        tfds.download.DownloadManager,
        "download_and_extract",
        lambda self, urls: {name: tmp_path / name for name in urls},
    )
    monkeypatch.setattr(data, "_check_connection", lambda url: None)
    task = data.load("squad", data_dir=str(tmp_path))
    assert task.classes == () and task.has_spans
    assert task.test.texts == (
        [f"Which {key}?" for key in sorted(("one", "two"), key=place)],
        [context] * 2,
    )
    right = {"one": ["Zoë"], "two": ["20 €", "“20 €”", "20"]}
    for question, found in zip(
        task.test.texts[0], task.test.labels, strict=True
    ):
        assert [x.text for x in found] == right[question[6:-1]]
        for start, text in found:
            assert context[start : start + len(text)] == text
    held_out = {f"Which {key}?" for key in answers if place(key) < 0.1}
    assert held_out == set(task.validation.texts[0])
    assert len(task.train.labels) == 30 - len(held_out)


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


def test_glue_without_its_packages_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match="cannot load .* pip install"):
        data.load("glue/rte")


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
