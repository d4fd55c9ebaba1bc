"""The main example on several devices, and with the other regularizers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import finetune
import keras
import pytest

ROOT = Path(__file__).parents[1]
WORDS = "a the film plot cast is was very not good bad fine dull".split()
ROW = r"^(accuracy|IsoScore \w+) +([\d.]+) +([\d.]+)$"

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="chooses its backends itself",
)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A tiny preset and a file of sentences, as options."""
    hub = pytest.importorskip("keras_hub")
    keras.utils.set_random_seed(1)
    folder = tmp_path_factory.mktemp("preset")
    tokenizer = hub.tokenizers.BertTokenizer(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS], lowercase=True
    )
    backbone = hub.models.BertBackbone(
        vocabulary_size=5 + len(WORDS),
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        dropout=0.0,
        max_sequence_length=16,
    )
    backbone.save_to_preset(str(folder))
    tokenizer.save_to_preset(str(folder))
    table = folder / "sentences.tsv"
    lines = [
        f"{word}\tthe {WORDS[i % 8]} {i} was {word}"
        for i in range(90)
        for word in ("good", "bad")
    ]
    table.write_text("\n".join(lines), encoding="utf-8")
    arguments = ["--preset", folder, "--task", table, "--batch-size", 8]
    return [str(x) for x in [*arguments, "--sequence-length", 8]]


def figures(output):
    rows = re.findall(ROW, output, flags=re.MULTILINE)
    return {name: float(after) for name, _, after in rows}


def run_alone(options, backend):
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "finetune.py"), *options],
        env=os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


# Replicas of TensorFlow draw their own dropout.
@pytest.mark.parametrize(
    "backend, strategy, tolerance",
    [
        pytest.param("tensorflow", "mirrored", 0.1, marks=pytest.mark.slow),
        pytest.param("jax", "data-parallel", 2e-3, marks=pytest.mark.slow),
    ],
)
def test_two_devices_give_the_figures_of_one(
    options, backend, strategy, tolerance
):
    if backend == "jax":
        pytest.importorskip("jax")
    results = []
    for devices in ("1", "2"):
        chosen = ["--strategy", strategy, "--virtual-devices", devices]
        done = run_alone([*options, *chosen], backend)
        assert done.returncode == 0, done.stderr[-2000:]
        results.append(figures(done.stdout))
    alone, together = results
    assert set(alone) > {"accuracy", "IsoScore union", "IsoScore layer_1"}
    # Few test sentences: an accuracy is a multiple of one in twenty.
    del alone["accuracy"], together["accuracy"]
    assert together == pytest.approx(alone, abs=tolerance)


@pytest.mark.parametrize(
    "regularizer, method",
    [
        ("cosreg", "cosreg, strength 1"),
        ("isobn", "isobn"),
        ("none", "none"),
    ],
)
@pytest.mark.slow
def test_other_regularizers(options, regularizer, method, capsys):
    finetune.main([*options, "--regularizer", regularizer])
    output = capsys.readouterr().out
    assert re.search(rf": {method}, \d+ steps, ", output)
    assert 0 < figures(output)["IsoScore union"] < 1


@pytest.mark.parametrize(
    "strategy, message",
    [
        ("data-parallel", "--strategy data-parallel needs KERAS_BACKEND=jax"),
        ("tpu", "cannot find the TPU"),
    ],
)
def test_devices_that_are_not_there(options, strategy, message):
    done = run_alone([*options, "--strategy", strategy], "tensorflow")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
