"""A search with KerasTuner on a tiny encoder, stopped and gone on with."""

import json
import re
from pathlib import Path

import keras
import pytest
import tune_strength

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the examples feed and log through TensorFlow",
)


@pytest.fixture
def search(preset, table_file, tmp_path, capsys):
    """Function that searches and returns the lines it prints last."""
    pytest.importorskip("keras_tuner")

    def search(trials):
        tune_strength.main(
            ["--preset", preset, "--task", table_file]
            + ["--sequence-length", "8", "--output", str(tmp_path / "search")]
            + ["--trials", str(trials)]
        )
        return capsys.readouterr().out.rsplit("strength", 1)[1].splitlines()

    return search


@pytest.fixture
def start(table_file, tmp_path, monkeypatch, capsys):
    """Function that starts a search for nothing; returns what went wrong."""
    pytest.importorskip("keras_tuner")
    import tuning

    monkeypatch.setattr(tuning, "search", lambda data, options: "a table")

    def start(*options):
        command = ["--task", table_file, "--output", str(tmp_path / "search")]
        try:
            tune_strength.main([*command, *options])
        except SystemExit:
            return capsys.readouterr().err

    return start


def test_trials_are_for_one_set_of_options(start, tmp_path):
    assert start("--epochs", "2") is None
    assert start("--epochs", "2", "--trials", "3") is None
    other = tmp_path / "other.tsv"
    other.write_bytes((tmp_path / "sentences.tsv").read_bytes())
    error = start("--epochs", "2", "--task", str(other))
    assert error.count("\n") == 1 and "trials with other options" in error
    assert error.endswith(f"task={str(other)!r}\n")
    assert error.count("=") == 2
    assert "epochs=1" in start()
    assert start("--epochs", "2") is None


@pytest.mark.parametrize("content", [None, b'{"task": "gl'])
def test_trials_of_unknown_options_are_left_alone(content, start, tmp_path):
    (tmp_path / "search" / "istar").mkdir(parents=True)
    if content is not None:
        (tmp_path / "search" / "options.json").write_bytes(content)
    assert start().count("\n") == 1


def _trials(tmp_path):
    files = Path(tmp_path / "search" / "istar").glob("trial_*/trial.json")
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.slow
def test_search_goes_on_where_it_was(search, tmp_path):
    search(2)
    first = _trials(tmp_path)
    assert [trial["status"] for trial in first] == ["COMPLETED"] * 2
    *rows, _, last = search(3)[1:]
    trials = _trials(tmp_path)
    assert len(trials) == 3
    assert all(trial in trials for trial in first)
    settings = [trial["hyperparameters"]["values"] for trial in trials]
    assert len({values["strength"] for values in settings}) == 3
    assert all(-5 <= values["strength"] <= 5 for values in settings)
    assert all(values["layers"] in ("all", "last") for values in settings)
    shown = [float(row.split()[-1]) for row in rows]
    assert shown == sorted(shown, reverse=True)
    scores = sorted((trial["score"] for trial in trials), reverse=True)
    assert shown == pytest.approx(scores, abs=5e-4)
    assert re.search(r"accuracy [01]\.\d{3} on the \d+ test examples", last)
