"""Pre-training of small BERTs: what is held out, the figures, the lines."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from finetuning import data

pytest.importorskip("keras_hub")
pytest.importorskip("tensorflow_text")
pretraining = pytest.importorskip("pretraining")

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the example masks words and feeds through TensorFlow",
)
WORDS = "red blue green small big old new cat dog bird sees likes".split()


@pytest.fixture
def folder(tmp_path):
    """A task of sentences that names its test part."""
    rng = np.random.default_rng(0)
    for part, number in {"train": 70, "dev": 8, "test": 9}.items():
        lines = [
            f"{i % 2}\t{' '.join(rng.choice(WORDS, 12))}" for i in range(number)
        ]
        path = tmp_path / f"{part}.tsv"
        path.write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def run(folder, capsys, *methods, steps=2, size=60, tasks=None):
    output = folder / "lines.jsonl"
    pretraining.main(
        ["--output", str(output), "--tasks", *(tasks or [str(folder)])]
        + ["--vocabulary-size", str(size), "--steps", str(steps)]
        + ["--seeds", "1", "--methods", *methods]
    )
    lines = output.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], capsys.readouterr().out


def test_runs_are_recorded_once_and_shown(folder, capsys, monkeypatch):
    monkeypatch.setattr(pretraining, "NUM_LAYERS", 1)
    lines, shown = run(folder, capsys, "not pre-trained", "target=0.3")
    other, trained = lines
    assert set(trained) - set(other) == {
        *("perplexity", "isoscore_union", "isoscore_last")
    }
    for line in lines:
        assert 0.0 <= line["accuracy"] <= 1.0
        assert 0.0 <= line["probe_accuracy"] <= 1.0
    # After two steps, which words are masked is still a guess.
    task = data.load(str(folder))
    size = pretraining.Sentences.of([task], 60).tokenizer.vocabulary_size()
    assert trained["perplexity"] == pytest.approx(size, rel=0.3)
    capsys.readouterr()
    # One layer, so the union is that one; the last is in no other row.
    assert trained["isoscore_union"] == pytest.approx(
        trained["isoscore_last"], rel=1e-5
    )
    assert 0.0 < trained["isoscore_union"] < 1.0
    assert f"{trained['perplexity']:.3f}" in shown

    def fail(*arguments):
        raise AssertionError("a run was repeated")

    monkeypatch.setattr(pretraining, "learn", fail)
    again, table = run(folder, capsys, "target=0.3", "not pre-trained")
    assert again == lines
    assert shown.endswith(table)
    assert "nan" not in table


def test_runs_of_other_settings_are_other_runs(folder, capsys, monkeypatch):
    trained = []

    def learn(sentences, task, method, seed, steps):
        trained.append(method)
        return {"accuracy": len(trained) / 10}

    monkeypatch.setattr(pretraining, "learn", learn)
    run(folder, capsys, "none", "none")
    assert trained == ["none"]  # A method that is named twice has one run.
    run(folder, capsys, "none")
    assert trained == ["none"]
    run(folder, capsys, "none", steps=3)
    run(folder, capsys, "none", size=61)
    lines, shown = run(folder, capsys, "none", tasks=[str(folder)] * 2)
    assert len(trained) == len(lines) == 4
    found = [(x["steps"], x["vocabulary_size"], x["tasks"]) for x in lines]
    assert found == [
        (2, 60, str(folder)),
        (3, 60, str(folder)),
        (2, 61, str(folder)),
        (2, 60, f"{folder} {folder}"),
    ]
    *_, one, two, three, four = shown.splitlines()
    for row, accuracy in zip((one, two, three, four), "1234", strict=True):
        assert row.startswith("none") and row.endswith(f"0.{accuracy}00      1")


def test_probe_reads_the_mean_of_real_tokens():
    """Classes that differ in their tokens alone, with other padding."""
    rng = np.random.default_rng(0)
    inputs = {
        name: keras.Input((4,), dtype="int32", name=name)
        for name in ("token_ids", "padding_mask")
    }
    table = keras.layers.Embedding(100, 3)
    backbone = keras.Model(
        inputs, {"sequence_output": table(inputs["token_ids"])}
    )
    # Two tokens of the class, then two that say the other one.
    labels = np.arange(60) % 2
    table.set_weights([np.outer(np.arange(100) % 2, [1.0, -2.0, 0.5])])
    own = labels[:, None] + 2 * rng.integers(50, size=(60, 2))

    def preprocess(places):
        ids = own[np.asarray(places)]
        return {
            "token_ids": np.concatenate([ids, 1 - ids % 2], axis=1),
            "padding_mask": np.tile([1, 1, 0, 0], (len(ids), 1)),
        }

    task = data.TextData(
        "task",
        ("a", "b"),
        ("accuracy",),
        data.Examples(list(range(40)), list(labels[:40])),
        None,
        data.Examples(list(range(40, 60)), list(labels[40:])),
    )
    assert pretraining.probe(backbone, preprocess, task) == 1.0


def test_no_text_to_learn_from_is_part_of_one_held_out(folder, tmp_path):
    (folder / "test.tsv").write_text("0\tThe red cat, it sees!\n1\tno dog")
    train = ["red cat", "The RED cat (it sees)", "cat it sees a", "dog no"]
    lines = [f"{i % 2}\t{text}" for i, text in enumerate(train)]
    (folder / "train.tsv").write_text("\n".join(lines * 9))
    task = data.load(str(folder))
    one, two = (pretraining.Sentences.of([task, task], 60) for _ in range(2))
    assert set(one.train) == set(train[2:])
    inputs, labels, weights = one.held_out
    assert len(labels) == 2 * len(task.test.texts)
    # Masks are at random, and the same for all runs.
    for mine, other in zip(
        keras.tree.flatten(one.held_out),
        keras.tree.flatten(two.held_out),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, other)
    masked = np.take_along_axis(
        inputs["token_ids"], inputs["mask_positions"], axis=1
    )
    changed = masked[weights > 0] != labels[weights > 0]
    assert changed.any()


def test_table_has_means_over_seeds():
    scores = {"none": (0.5, 0.7), "target=0.3": (0.25, 0.25)}
    settings = {"steps": 1, "tasks": "a b", "vocabulary_size": 9}
    lines = [
        {"method": name, "seed": seed, **settings, "accuracy": values[seed]}
        for name, values in scores.items()
        for seed in range(2)
    ]

    def rows():
        found = pretraining.table(lines).splitlines()
        return [" ".join(row.split()) for row in found]

    assert rows()[2:] == [
        "none 0.600 ± 0.141 2",  # The difference over the square root of 2.
        "target=0.3 0.250 ± 0.000 2",
    ]
    lines.append(lines[0] | {"steps": 8, "accuracy": 0.9})
    assert rows()[1:] == [
        "method steps",
        "none 1 0.600 ± 0.141 2",
        "target=0.3 1 0.250 ± 0.000 2",
        "none 8 0.900 1",
    ]


def test_published_runs_are_those_of_the_defaults(monkeypatch, tmp_path):
    published = Path(pretraining.__file__).parent / "results/pretraining.jsonl"
    path = tmp_path / "lines.jsonl"
    path.write_bytes(published.read_bytes())

    def fail(*arguments):
        raise AssertionError("a run was repeated")

    monkeypatch.setattr(data, "load", fail)
    pretraining.main(["--output", str(path)])
    assert path.read_bytes() == published.read_bytes()


@pytest.mark.parametrize("content", ["no JSON", "[1]", '{"seed": 0}', "\x80"])
def test_files_of_others_are_left_alone(content, tmp_path, capsys):
    path = tmp_path / "notes.txt"
    text = '{"method": "none", "seed": 0}\n' + content
    path.write_text(text, encoding="latin-1")
    with pytest.raises(SystemExit) as error:
        pretraining.main(["--output", str(path)])
    assert error.value.code == 2
    message = f"line 2 of {path} is not from this program: choose another"
    assert message in capsys.readouterr().err
    assert path.read_text(encoding="latin-1") == text


def test_only_what_cannot_be_written_is_said_to_be(folder, monkeypatch):
    def load(*arguments):
        raise OSError("no memory")

    monkeypatch.setattr(data, "load", load)
    with pytest.raises(OSError, match="no memory"):
        pretraining.main(["--output", str(folder / "lines.jsonl")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "."], "cannot write to .: "),
        (["--output", "missing/lines.jsonl"], "cannot write to missing"),
        (["--output", "lines.jsonl", "--tasks", "nothing"], "no such task"),
    ],
)
def test_what_users_can_mend_is_one_line(
    options, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        pretraining.main(options)
    assert error.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown and len(shown.splitlines()) == 1


def test_pairs_of_sentences_are_refused(folder):
    for part in ("train", "dev", "test"):
        path = folder / f"{part}.tsv"
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join(f"{line}\tand more" for line in lines))
    with pytest.raises(pretraining.UserError, match="`tasks` must have single"):
        pretraining.Sentences.of([data.load(str(folder))], 60)
