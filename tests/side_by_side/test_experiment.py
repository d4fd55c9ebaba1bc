"""Runs of a small encoder that train side by side, in JAX."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from side_by_side import __main__ as program
from side_by_side import summary


def _write_arrays(folder, rng):
    """A small encoder, and sentences with a number that a token decides.

    The validation part has the same examples three times, the test part twice.
    """
    keras_hub = pytest.importorskip("keras_hub")
    config = {
        "vocabulary_size": 12,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 8,
        "intermediate_dim": 16,
        "max_sequence_length": 6,
        "num_segments": 2,
    }
    backbone = keras_hub.models.BertBackbone(**config)
    weights = [keras.ops.convert_to_numpy(x) for x in backbone.weights]
    np.savez(folder / "encoder.npz", *weights)
    (folder / "encoder.json").write_text(json.dumps(config))
    tokens = rng.integers(12, size=(76, 6)).astype("uint16")
    fields = {
        "tokens": tokens,
        "segments": np.zeros((76, 6), "uint8"),
        "lengths": rng.integers(3, 7, 76).astype("uint16"),
        "labels": (tokens[:, 1] > 5).astype("float32"),
    }
    arrays = {"classes": 0, "scores": np.array(["pearson"])}
    for name, values in fields.items():
        own, others = values[:64], values[64:]
        arrays[f"train_{name}"] = own
        arrays[f"validation_{name}"] = np.concatenate([others] * 3)
        arrays[f"test_{name}"] = np.concatenate([others] * 2)
    np.savez(folder / "toy.npz", **arrays)


@pytest.mark.slow
def test_runs_of_a_small_encoder(tmp_path, rng):
    pytest.importorskip("jax")
    _write_arrays(tmp_path, rng)
    output = tmp_path / "results.jsonl"
    command = [
        *(sys.executable, Path(program.__file__).parent),
        *("--arrays", tmp_path, "--output", output, "--tasks", "toy", "toy"),
        *("--steps", "60", "--side-by-side", "3"),
        *("--dtype-policy", "float32", "--methods", "none,seeds=2"),
        *("istar:target=0.5x,strength=1000", "istar:-100", "istar:0"),
    ]
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    subprocess.run(command, env=environment, check=True)
    held = output.read_bytes()
    again = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    )
    assert f"{output} holds all runs" in again.stdout
    assert output.read_bytes() == held
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["method"], line["seed"]) for line in lines] == [
        ("none", 0),
        ("none", 1),
        ("istar:target=0.5x,strength=1000", 0),
        ("istar:-100", 0),
    ]
    assert all(line["is_finite"] for line in lines)
    for line in lines:
        assert line["examples"] == {"train": 64, "validation": 36, "test": 24}
        # The same examples: 36 of them are a piece of 24, and half of one.
        assert line["validation"] == pytest.approx(line["score"], abs=1e-5)
        assert abs(line["score"]) > 0.01
    assert lines[0]["loss"] != lines[1]["loss"]
    none, target, plain = (lines[i]["end"]["test"]["union"] for i in (0, 2, 3))
    goal = 0.5 * lines[0]["start"]["dropout"]["union"]
    assert abs(target - goal) < abs(none - goal)
    assert plain < none
    table = summary.write(str(output))
    assert "**toy, 60 steps, float32, validation part held out**;" in table
    assert "| I-STAR | 2 |" in table


def test_help_says_how_methods_are_written(capsys):
    with pytest.raises(SystemExit):
        program.main(["--help"])
    assert "`istar:target=0.3,strength=100`" in capsys.readouterr().out


def test_import_leaves_the_backend_alone():
    """Nor does it need one: what it imports is for the summary too."""
    code = (
        "import os, sys; import side_by_side.__main__, side_by_side.summary; "
        "assert 'KERAS_BACKEND' not in os.environ; "
        "assert not {'keras', 'jax', 'tensorflow'} & set(sys.modules)"
    )
    environment = {k: x for k, x in os.environ.items() if k != "KERAS_BACKEND"}
    folder = str(Path(program.__file__).parents[1])
    environment["PYTHONPATH"] = folder
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
