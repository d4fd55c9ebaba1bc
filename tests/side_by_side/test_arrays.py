"""Arrays for the runs side by side."""

import numpy as np
import pytest
from finetuning.command_line import UserError
from finetuning.data import Examples
from finetuning.data import TextData
from side_by_side import arrays

_TEXTS = {
    "train": ["good film", "bad film", "a very good film"],
    "validation": ["a dull film"],
    "test": ["the film", "film"],
}
_LABELS = {"train": [1, 0, 1], "validation": [0], "test": [0, 1]}


@pytest.fixture
def folder(tmp_path, preset, monkeypatch):
    """Arrays of these texts with a tiny encoder."""
    parts = {name: Examples(_TEXTS[name], _LABELS[name]) for name in _TEXTS}
    task = TextData("glue/cola", ("no", "yes"), ("matthews",), **parts)
    monkeypatch.setattr(arrays.data, "load", lambda *_: task)
    folder = tmp_path / "arrays"
    arrays.write(arrays.Options(str(folder), ("cola",), preset))
    return folder


def test_parts_stay_apart(folder):
    loaded = arrays.load(str(folder), "cola")
    films, used = set(), set()
    for name, labels in _LABELS.items():
        tokens, _, lengths, found = getattr(loaded, name)
        np.testing.assert_array_equal(found, labels)
        # With [CLS] and [SEP].
        expected = [len(text.split()) + 2 for text in _TEXTS[name]]
        np.testing.assert_array_equal(lengths, expected)
        films |= {
            int(row[i - 2]) for row, i in zip(tokens, lengths, strict=True)
        }
        used |= set(tokens.ravel().tolist())
    assert len(films) == 1  # All texts end so, and parts share their tokens.
    # Those of padding, [CLS], [SEP], film, good, bad, a, very, dull and the.
    assert used == set(range(10)) and loaded.config["vocabulary_size"] == 10
    assert any(len(weights) == 10 for weights in loaded.weights)


def test_arrays_are_for_labels(tmp_path, capsys):
    output = tmp_path / "arrays"
    with pytest.raises(SystemExit):
        arrays.main(["--output", str(output), "--tasks", "rte", "squad"])
    assert "invalid choice: 'squad'" in capsys.readouterr().err
    assert not output.exists()


def test_missing_arrays_are_named(folder):
    with pytest.raises(UserError, match="arrays of mrpc in .* Write them with"):
        arrays.load(str(folder), "mrpc")
