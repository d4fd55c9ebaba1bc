import hashlib
import re
import subprocess
import sys
from pathlib import Path

import finetune
import glue
import keras
import numpy as np
import pytest
import text_tasks
from command_line import UserError

ROOT = Path(__file__).parents[1]
TFDS = ROOT.parent / "shared" / "tfds"


@pytest.fixture(scope="module", autouse=True)
def needs_tensorflow():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the examples feed and log through TensorFlow")


@pytest.fixture
def run(preset, capsys):
    """Function that runs the example and returns the figures it prints."""

    def run(*options):
        options = [str(option) for option in options]
        finetune.main(["--preset", preset, "--sequence-length", "8", *options])
        rows = re.findall(
            r"^(accuracy|IsoScore \w+) +([\d.]+) +([\d.]+)$",
            capsys.readouterr().out,
            flags=re.MULTILINE,
        )
        return {name: (float(old), float(new)) for name, old, new in rows}

    return run


def eigenvalue_isoscore(points):
    """IsoScore by the eigenvalues of the covariance, in float64."""
    dim = points.shape[-1]
    values = np.linalg.eigvalsh(np.cov(points, rowvar=False))
    values = np.sqrt(dim) * values / np.linalg.norm(values)
    defect = np.linalg.norm(values - 1) / np.sqrt(2 * (dim - np.sqrt(dim)))
    phi = (dim - defect**2 * (dim - np.sqrt(dim))) ** 2 / dim**2
    return (dim * phi - 1) / (dim - 1)


def hidden_tokens(task, texts):
    """Unpadded tokens of every block, `(tokens, dim)` each, in float64."""
    inputs = task.preprocessor(texts)
    backbone = task.backbone
    blocks = [layer.output for layer in backbone.transformer_layers]
    states = keras.Model(backbone.inputs, blocks)(inputs)
    mask = np.asarray(inputs["padding_mask"]).astype(bool)
    return [np.asarray(state, "float64")[mask] for state in states]


def accuracy_and_isotropy(folder, examples):
    """Figures of a saved classifier, by plain KerasHub and NumPy."""
    hub = pytest.importorskip("keras_hub")
    task = hub.models.TextClassifier.from_preset(str(folder))
    assert type(task) is hub.models.BertTextClassifier
    answers = np.argmax(task.predict(examples.texts, verbose=0), axis=-1)
    states = hidden_tokens(task, examples.texts)
    clouds = {"union": np.concatenate(states)}
    clouds |= {f"layer_{i}": state for i, state in enumerate(states)}
    return np.mean(answers == examples.labels), {
        name: eigenvalue_isoscore(cloud) for name, cloud in clouds.items()
    }


def test_finetune_from_options_to_a_plain_preset(run, table_file, tmp_path):
    output, logs = tmp_path / "output", tmp_path / "logs"
    options = ["--task", table_file, "--epochs", 3, "--batch-size", 16]
    options += ["--learning-rate", 0.02, "--strength"]
    baseline = run(*options, 0)
    figures = run(*options, 5, "--output", output, "--log-dir", logs)

    test = text_tasks.load(table_file).test
    accuracy, isotropy = accuracy_and_isotropy(output, test)
    rounding = 6e-4
    after = {name.split()[-1]: new for name, (_, new) in figures.items()}
    assert after.pop("accuracy") == pytest.approx(accuracy, abs=rounding)
    assert after == pytest.approx(isotropy, abs=rounding)
    assert after["union"] > baseline["IsoScore union"][1] + 0.05
    assert list(logs.rglob("events.out.tfevents*"))
    for config in output.glob("*.json"):
        assert "istar" not in config.read_text()


def test_classifier_saved_of_isobn_is_the_one_evaluated(
    run, table_file, tmp_path, monkeypatch
):
    import recipe

    test = text_tasks.load(table_file).test
    attached = []
    detach = recipe.detach

    def predict_and_detach(task, regularizer):
        attached.append(task.predict(np.array(test.texts), verbose=0))
        detach(task, regularizer)

    monkeypatch.setattr(recipe, "detach", predict_and_detach)
    options = ["--task", table_file, "--regularizer", "isobn", "--epochs", 2]
    options += ["--batch-size", 16, "--learning-rate", 0.02]
    figures = run(*options, "--output", tmp_path)
    accuracy, isotropy = accuracy_and_isotropy(tmp_path, test)
    after = {name.split()[-1]: new for name, (_, new) in figures.items()}
    assert after == pytest.approx({"accuracy": accuracy, **isotropy}, abs=6e-4)
    hub = pytest.importorskip("keras_hub")
    saved = hub.models.TextClassifier.from_preset(str(tmp_path))
    np.testing.assert_allclose(
        saved.predict(np.array(test.texts), verbose=0),
        attached[0],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("regularizer", ["cosreg", "isobn", "none"])
def test_isotropy_of_other_regularizers_is_logged(
    run, table_file, tmp_path, regularizer
):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    output, logs = tmp_path / "output", tmp_path / "logs"
    options = ["--task", table_file, "--regularizer", regularizer]
    run(*options, "--output", output, "--log-dir", logs)
    tags = {
        tag
        for folder in (logs, logs / "train")
        for tag in accumulator.EventAccumulator(str(folder))
        .Reload()
        .Tags()["tensors"]
    }
    own = {"cosreg": "epoch_cosine", "isobn": "epoch_isobn_isoscore"}
    expected = {"isotropy/isoscore_union", "isotropy/report", "epoch_isoscore"}
    assert tags > expected | {own.get(regularizer, "epoch_loss")}
    assert list(output.glob("*.json"))


def test_strength_that_is_not_given():
    for regularizer, strength in [("istar", -1.0), ("cosreg", 1.0)]:
        parser = finetune.make_parser()
        options = parser.parse_args(["--regularizer", regularizer])
        finetune.complete(options)
        assert options.strength == strength


def test_finetune_does_not_hide_a_loss_that_is_not_finite(run, table_file):
    with pytest.raises(RuntimeError, match="NaN or Inf loss"):
        run("--task", table_file, "--learning-rate", 1e38, "--batch-size", 16)


@pytest.mark.skipif(not TFDS.is_dir(), reason="no prepared GLUE data")
@pytest.mark.slow
def test_finetune_on_sentence_pairs_of_glue(run):
    data = ["--task", "glue/mrpc", "--data-dir", TFDS, "--limit", 32]
    figures = run(*data, "--momentum", 0.9, "--layers", 0, "-1")
    assert list(figures) == [
        "accuracy",
        "IsoScore union",
        "IsoScore layer_0",
        "IsoScore layer_1",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strength", "much"], "--strength: must be a number"),
        (["--strength", "nan"], "--strength: must be a finite number"),
        (["--shrinkage", "1.5"], "--shrinkage: must be between 0 and 1"),
        (["--momentum", "1"], "--momentum: must be strictly between 0 and 1"),
        (["--epochs", "0"], "--epochs: must be above 0"),
        (["--limit", "-1"], "--limit: must be 0 or above"),
        (["--seed", str(2**32)], r"--seed: must be below 2\*\*32"),
        (["--learning-rate", "0"], "--learning-rate: must be above 0"),
        (["--unknown"], "unrecognized arguments: --unknown"),
        (["--task", "missing.tsv"], "no such task or file: 'missing.tsv'"),
        (["--task", "glue/stsb"], "no such classification task"),
        (["--output", f"{__file__}/x"], "cannot write to"),
        (["--preset", "./missing"], r"cannot load the preset '\./missing'"),
        (["--layers", "7"], "`layers` must hold indices from -2 to 1"),
        (["--sequence-length", "17"], "longer than the 16 positions"),
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
                ("isobn", "--momentum"),
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


def test_script_says_what_is_wrong_and_nothing_else():
    command = [sys.executable, ROOT / "examples" / "finetune.py"]
    done = subprocess.run(
        [*command, "--task", "missing.tsv"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"finetune.py: error: no such task.*\n", done.stderr)


def test_script_ends_with_one_line_where_there_is_no_network(tmp_path):
    command = [sys.executable, ROOT / "examples" / "finetune.py"]
    environment = {
        "KERAS_ISTAR_CACHE": str(tmp_path),
        "PIP_NO_INDEX": "1",
        "PATH": "",
    }
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2
    assert re.fullmatch(
        r"finetune.py: error: pip could not download .*\n", done.stderr
    )


def place(key):
    return int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) / 16**12


def test_film_reviews_have_clear_labels_and_fixed_parts(monkeypatch, tmp_path):
    ratings = [f"{rating / 100}" for rating in range(-399, 400, 2)] + ["0.5"]
    rows = [f"{i}\t{rating}\ttext {i}" for i, rating in enumerate(ratings)]
    file = tmp_path / "movieReviewSnippets_GroundTruth.txt"
    file.write_bytes("\r\n".join(rows).encode())
    monkeypatch.setattr(text_tasks, "fetch", lambda package: tmp_path)
    task = text_tasks.load("film-reviews")
    bounds = {"test": (0, 0.1), "validation": (0.1, 0.2), "train": (0.2, 1)}
    for part, (low, high) in bounds.items():
        keys = [
            key
            for key, rating in enumerate(ratings)
            if abs(float(rating)) >= 0.5 and low <= place(str(key)) < high
        ]
        keys.sort(key=lambda key: place(str(key)))
        texts, labels = getattr(task, part)
        assert texts == [f"text {key}" for key in keys]
        assert labels == [int(float(ratings[key]) > 0) for key in keys]
    assert task.classes == ("negative", "positive")


def test_glue_holds_out_train_and_tests_on_validation(monkeypatch):
    def columns(size):
        names = {"question": "q", "sentence": "s"}
        split = {
            name: np.array([f"{short}{i}".encode() for i in range(size)])
            for name, short in names.items()
        }
        return {**split, "idx": np.arange(size), "label": np.arange(size) % 2}

    def read(name, splits, data_dir):
        assert (name, splits) == ("glue/qnli", ["train", "validation"])
        return ["entailment", "not_entailment"], [columns(200), columns(20)]

    monkeypatch.setattr(glue, "read", read)
    task = text_tasks.load("glue/qnli", limit=15)
    order = sorted(range(200), key=lambda i: place(str(i)))
    held_out = [i for i in order if place(str(i)) < 0.1]
    kept = [i for i in order if place(str(i)) >= 0.1]
    tested = sorted(range(20), key=lambda i: place(str(i)))
    for part, keys in zip(task[2:], (kept, held_out, tested), strict=True):
        keys = keys[:15]
        assert part.texts == ([f"q{i}" for i in keys], [f"s{i}" for i in keys])
        assert part.labels == [i % 2 for i in keys]


def test_table_of_pairs(tmp_path):
    path = tmp_path / "pairs.tsv"
    lines = [f"{'yn'[i % 2]}\tone {i}\ttwo {i}\n" for i in range(100)]
    path.write_text("".join(lines), encoding="utf-8")
    task = text_tasks.load(str(path))
    assert task.classes == ("n", "y")
    sizes = [len(part.labels) for part in task[2:]]
    assert sum(sizes) == 100 and sizes[0] > 60
    for part in task[2:]:
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
def test_broken_table(content, message, tmp_path):
    path = tmp_path / "broken.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        text_tasks.load(str(path))


@pytest.mark.parametrize("has_folder", [True, False])
def test_glue_without_data_says_how_to_get_it(
    has_folder, monkeypatch, tmp_path
):
    tfds = pytest.importorskip("tensorflow_datasets")

    def load(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tfds, "load", load)
    folder = tmp_path if has_folder else tmp_path / "missing"
    with pytest.raises(UserError) as caught:
        text_tasks.load("glue/rte", data_dir=str(folder))
    message = str(caught.value)
    assert message.endswith(f"tfds build glue/rte --data_dir {folder}")
    reason = "no route to host" if has_folder else "no such data folder"
    assert reason in message
