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


def _trials(tmp_path):
    files = Path(tmp_path / "search" / "istar").glob("trial_*/trial.json")
    return [json.loads(file.read_text()) for file in files]


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
