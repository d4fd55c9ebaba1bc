"""The main example, from options to figures and files, on a tiny encoder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import finetune
import keras
import numpy as np
import oracle
import pytest
from finetuning import data

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the examples feed and log through TensorFlow",
)
ROOT = Path(__file__).parents[2]
TFDS = ROOT.parent / "shared" / "tfds"
ROW = r"^([a-z]\w+|IsoScore \w+) +(-?[\d.]+) +(-?[\d.]+)$"


def read_table(output):
    """The figures before and after by the name of their row."""
    rows = re.findall(ROW, output, flags=re.MULTILINE)
    return {name: (float(old), float(new)) for name, old, new in rows}


@pytest.fixture
def run(preset, table_file, capsys):
    """Function that runs the example and returns what it prints."""

    def run(*options):
        arguments = ["--preset", preset, "--task", table_file]
        arguments += ["--sequence-length", "8", "--batch-size", "16"]
        finetune.main([*arguments, *(str(option) for option in options)])
        return capsys.readouterr().out

    return run


def check_saved(folder, figures, examples):
    """Compares a saved classifier with the last column, by NumPy."""
    hub = pytest.importorskip("keras_hub")
    task = hub.models.TextClassifier.from_preset(str(folder))
    assert type(task) is hub.models.BertTextClassifier
    answers = np.argmax(task.predict(examples.texts, verbose=0), axis=-1)
    inputs = task.preprocessor(examples.texts)
    blocks = [layer.output for layer in task.backbone.transformer_layers]
    states = keras.Model(task.backbone.inputs, blocks)(inputs)
    mask = np.asarray(inputs["padding_mask"]).astype(bool)
    clouds = [np.asarray(state, "float64")[mask] for state in states]
    expected = {"accuracy": np.mean(answers == examples.labels)}
    for name, cloud in {
        "union": np.concatenate(clouds),
        **{f"layer_{i}": cloud for i, cloud in enumerate(clouds)},
    }.items():
        expected[f"IsoScore {name}"] = oracle.score(oracle.covariance(cloud))
    after = {name: new for name, (_, new) in figures.items()}
    assert after == pytest.approx(expected, abs=6e-4)  # Rounded when printed.
    assert not any("istar" in x.read_text() for x in folder.glob("*.json"))


@pytest.mark.parametrize(
    ("regularizer", "own_tag"),
    [
        ("istar", "epoch_istar_penalty"),
        pytest.param("isobn", "epoch_isobn_isoscore", marks=pytest.mark.slow),
        pytest.param("cosreg", "epoch_cosine", marks=pytest.mark.slow),
        pytest.param("none", "epoch_loss", marks=pytest.mark.slow),
    ],
)
def test_from_options_to_table_logs_and_plain_preset(
    regularizer, own_tag, run, table_file, tmp_path
):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    output, logs = tmp_path / "output", tmp_path / "logs"
    options = ["--regularizer", regularizer, "--epochs", 3]
    options += ["--learning-rate", 0.02, "--output", output, "--log-dir", logs]
    options += ["--strength", 5] if regularizer == "istar" else []
    printed = run(*options)
    figures = read_table(printed)
    check_saved(output, figures, data.load(table_file).test)
    if regularizer == "istar":
        old, new = figures["IsoScore union"]
        assert new > old + 0.05
        assert "istar, strength 5, shrinkage 0.2, 27 steps, 16 test" in printed
    head, rest = printed.split("The test part before fine-tuning")
    assert "Training the head" in head and "accuracy" in head
    assert "- isoscore" not in head and "penalty" not in head
    assert "a pass over the training texts" in " ".join(rest.split())
    assert list((logs / "validation").iterdir())
    tags = {
        tag
        for folder in (logs, logs / "train")
        for tag in accumulator.EventAccumulator(str(folder))
        .Reload()
        .Tags()["tensors"]
    }
    assert tags > {
        *("isotropy/isoscore_union", "isotropy/report", "epoch_isoscore"),
        own_tag,
    }


def test_a_loss_that_is_not_finite_is_not_hidden(run):
    with pytest.raises(RuntimeError, match="NaN or Inf loss"):
        run("--learning-rate", 1e38)


def test_table_shows_the_scores_of_the_task():
    from finetuning.recipe import Evaluation
    from finetuning.recipe import Figures

    def evaluation(matthews, isoscore):
        states = {"layer_3": isoscore - 0.1, "union": isoscore}
        return Evaluation(
            {"matthews": matthews},
            {name: {"isoscore": x} for name, x in states.items()},
        )

    figures = Figures(
        evaluation(-0.01, 0.2), evaluation(0.3, 0.5), [], 7, {"test": 9}, 1.0
    )
    options = finetune.Options(task="glue/cola", regularizer="cosreg")
    assert finetune.table(figures, options).splitlines() == [
        "glue/cola: cosreg, strength 1, 7 steps, 9 test examples",
        "                        before   after",
        "matthews                -0.010   0.300",
        "IsoScore union           0.200   0.500",
        "IsoScore layer_3         0.100   0.400",
    ]


@pytest.mark.skipif(not TFDS.is_dir(), reason="no prepared GLUE data")
@pytest.mark.parametrize(
    ("task", "scores"),
    [("mrpc", ["accuracy", "f1"]), ("stsb", ["pearson", "spearman"])],
)
@pytest.mark.slow
def test_sentence_pairs_of_glue(run, task, scores):
    options = ["--task", f"glue/{task}", "--data-dir", TFDS, "--limit", 32]
    printed = run(*options, "--momentum", 0.9, "--layers", 0, "-1")
    rows = ["IsoScore union", "IsoScore layer_0", "IsoScore layer_1"]
    assert list(read_table(printed)) == [*scores, *rows]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strength", "much"], "--strength: must be a finite number"),
        (["--strength", "nan"], "--strength: must be a finite number"),
        (["--shrinkage", "1.5"], "--shrinkage: must be a number between 0"),
        (["--momentum", "1"], "--momentum: must be a number strictly between"),
        (["--epochs", "0"], "--epochs: must be a whole number above 0"),
        (["--limit", "-1"], "--limit: must be a whole number, 0 or above"),
        (["--seed", str(2**32)], r"--seed: must be a whole number from 0 to"),
        (["--learning-rate", "0"], "--learning-rate: must be a finite number"),
        (["--unknown"], "unrecognized arguments: --unknown"),
        (
            ["--task", "missing.tsv"],
            "no such task, file or folder: 'missing.tsv'. Tasks are film-",
        ),
        (["--task", "glue/ax"], "'glue/ax'. Tasks are film-reviews, glue/"),
        (["--task", "cola"], "or folder: 'cola'"),
        (["--output", f"{__file__}/x"], "cannot write to"),
        (["--preset", "./missing"], r"cannot load the preset '\./missing'"),
        (["--layers", "7"], "`layers` must hold indices from -2 to 1"),
        (
            ["--layers", "7", "--regularizer", "none"],
            "`layers` must hold indices from -2 to 1",
        ),
        (["--sequence-length", "33"], "longer than the 32 positions"),
        (
            ["--target", "0.3", "--strength", "-1"],
            "`strength` must be at least 0 with a `target`",
        ),
        (
            ["--tpu", "local"],
            "--tpu must be given with --strategy tpu. Received: --tpu local "
            "--strategy none",
        ),
        (
            ["--virtual-devices", "2", "--strategy", "tpu"],
            "--virtual-devices must be given with --strategy mirrored or data-"
            "parallel. Received: --virtual-devices 2 --strategy tpu",
        ),
        (
            ["--strategy", "mirrored", "--batch-size", "64"],
            "`batch_size` must be at most the number of examples of each part. "
            r"Received: batch_size=64, parts of \[\d+, \d+, \d+, \d+\]",
        ),
        (
            ["--task", "squad", "--regularizer", "isobn"],
            "isobn scales sentence embeddings, .* task squad",
        ),
        *(
            (
                ["--regularizer", regularizer, option, "0.5"],
                f"{option} must not be given with --regularizer {regularizer}. "
                f"Received: {option} 0.5",
            )
            for regularizer, option in [
                ("cosreg", "--shrinkage"),
                ("cosreg", "--momentum"),
                ("isobn", "--strength"),
                ("none", "--strength"),
            ]
        ),
    ],
)
def test_wrong_options_end_with_one_line(
    options, message, preset, table_file, capsys
):
    right = ["--preset", preset, "--task", table_file]
    right += ["--sequence-length", "8"]
    with pytest.raises(SystemExit) as caught:
        finetune.main(right + options)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert re.match(f"finetune.py: error: .*{message}", lines[-1])


def run_alone(*options, **environment):
    return subprocess.run(
        [sys.executable, ROOT / "examples" / "finetune.py", *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


def test_script_without_a_network_says_so_and_nothing_else(tmp_path):
    done = run_alone(KERAS_ISTAR_CACHE=str(tmp_path), PIP_NO_INDEX="1")
    assert done.returncode == 2
    assert re.fullmatch(
        r"finetune.py: error: pip could not download .*\n", done.stderr
    )


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("data-parallel", "--strategy data-parallel needs KERAS_BACKEND=jax"),
        pytest.param("tpu", "cannot find the TPU", marks=pytest.mark.slow),
    ],
)
def test_devices_that_are_not_there(strategy, message, run, table_file):
    options = ["--task", table_file, "--strategy", strategy]
    done = run_alone(*options, KERAS_BACKEND="tensorflow")
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


# Replicas of TensorFlow draw their own dropout.
@pytest.mark.parametrize(
    ("backend", "strategy", "tolerance"),
    [("tensorflow", "mirrored", 0.1), ("jax", "data-parallel", 2e-3)],
)
@pytest.mark.slow
def test_two_devices_give_the_figures_of_one(
    preset, table_file, backend, strategy, tolerance
):
    pytest.importorskip(backend)
    results = []
    for devices in ("1", "2"):
        options = ["--preset", preset, "--task", table_file]
        options += ["--batch-size", "8", "--sequence-length", "8"]
        options += ["--strategy", strategy, "--virtual-devices", devices]
        done = run_alone(*options, KERAS_BACKEND=backend)
        assert done.returncode == 0, done.stderr[-2000:]
        results.append(read_table(done.stdout))
    alone, together = results
    assert set(alone) > {"accuracy", "IsoScore union", "IsoScore layer_1"}
    # Few test sentences: an accuracy is a multiple of one in sixteen.
    del alone["accuracy"], together["accuracy"]
    for name, figures in alone.items():
        assert together[name] == pytest.approx(figures, abs=tolerance), name
