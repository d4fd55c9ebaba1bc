"""Every example runs by itself and shows what its docstring promises."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
_STRICT = ("-W", "error::DeprecationWarning:__main__")


def run(name, folder):
    """What an example prints, run in a folder of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("KERAS_BACKEND", None)
    done = subprocess.run(
        # Examples are copied from, so that none uses a name that will go.
        [sys.executable, *_STRICT, EXAMPLES / f"{name}.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout


def figures(output):
    """Numbers with a decimal point in every line `label: numbers`."""
    lines = re.findall(r"^([^:\n]+): +(.*)$", output, re.MULTILINE)
    return {
        label: [float(number) for number in re.findall(r"-?\d+\.\d+", text)]
        for label, text in lines
    }


def assert_rises(first_and_last, by):
    first, last = first_and_last
    assert last > first + by


def change(shown, name):
    """By how much a number rose that is printed before and after."""
    (before,) = shown[f"{name} before"]
    (after,) = shown[f"{name} after"]
    return after - before


def assert_same(shown, one, two):
    """Lines of two trainings that end in different words."""
    labels = [label for label in shown if label.endswith(one)]
    assert labels
    for label in labels:
        other = shown[label.removesuffix(one) + two]
        assert shown[label] == pytest.approx(other, rel=1e-4)
        assert shown[label]


# One function for each example, of the same name.


def quickstart(output, folder):
    shown = figures(output)
    before = shown["before training"]
    *plain, plain_accuracy = shown["without"]
    *held, accuracy = shown["with a target"]
    for i in range(2):
        assert 0.2 < held[i] < 0.4
        assert plain[i] < 0.6 * before[i]
    assert plain_accuracy > 0.85
    assert accuracy > plain_accuracy - 0.05


def kerashub_classifier(output, folder):
    shown = figures(output)
    for layer in ("layer_0", "layer_1", "union"):
        assert change(shown, f"IsoScore of {layer}") > 0.1
    for moment in ("before", "after"):
        (accuracy,) = shown[f"accuracy {moment}"]
        assert accuracy > 0.95


def measure_and_compare(output, folder):
    shown = figures(output)
    rows = re.findall(r"^(block_1|block_2|union) .*$", output, re.MULTILINE)
    assert rows == ["block_1", "block_2", "union"] * 2  # Report, comparison.
    differences = output.split("After minus before:")[1]
    for layer in rows[:3]:
        before, after = shown[f"IsoScore of {layer}"]
        assert after < before - 0.05
        (difference,) = re.findall(rf"^{layer} +(\S+)", differences, re.M)
        assert float(difference) == pytest.approx(after - before, abs=2e-3)
    assert output.endswith("The least isotropic is block_2.\n")
    assert {file.name for file in folder.iterdir()} == {
        "before.json",
        "after.json",
    }


def subclassed_model(output, folder):
    shown = figures(output)
    assert_rises(shown["isoscore_layer_0"], by=0.1)
    assert_rises(shown["isoscore_layer_1"], by=0.1)
    assert_rises(shown["accuracy"], by=0.2)


def own_regularizer(output, folder):
    shown = figures(output)
    plain, plain_accuracy = shown["Decorrelation 0.0"]
    decorrelated, accuracy = shown["Decorrelation 1.0"]
    assert decorrelated < plain / 2
    assert accuracy > plain_accuracy - 0.05
    plain, _ = shown["SpectralEntropy 0.0"]
    even, accuracy = shown["SpectralEntropy 1.0"]
    assert even > 2 * plain
    assert accuracy > 0.85


def tensorboard_logs(output, folder):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    shown = figures(output)
    for plain, rounder in zip(
        shown["strength 0.0"], shown["strength 1.0"], strict=True
    ):
        assert rounder > plain + 0.2
    for strength in (0.0, 1.0):
        log_dir = folder / "logs" / f"strength {strength}"
        tags = {
            tag
            for path in (log_dir, log_dir / "train")
            for tag in accumulator.EventAccumulator(str(path))
            .Reload()
            .Tags()["tensors"]
        }
        assert tags > {
            "epoch_isoscore",
            "epoch_loss",
            "isotropy/isoscore_union",
            "isotropy/report",
            "isotropy/spectrum_union",
        }


def mirrored_strategy(output, folder):
    shown = figures(output)
    assert_same(shown, "on one device", "on two devices")
    for name in ("isoscore", "isoscore_block_1", "isoscore_block_2"):
        assert_rises(shown[f"{name} on two devices"], by=0.05)


def multi_worker(output, folder):
    shown = figures(output)
    assert_same(shown, "worker 0", "worker 1")
    assert_rises(shown["isoscore on worker 0"], by=0.2)


def jax_data_parallel(output, folder):
    shown = figures(output)
    assert_same(shown, "devices=1", "devices=4")
    for name in ("isoscore", "isoscore_block_1", "isoscore_block_2"):
        assert_rises(shown[f"{name}, devices=4"], by=0.05)


def torch_ddp(output, folder):
    shown = figures(output)
    assert_same(shown, "processes=1", "processes=2")
    assert_rises(shown["isoscore, processes=2"], by=0.2)


def masked_language_model(output, folder):
    shown = figures(output)
    for layer in ("layer_0", "layer_1", "union"):
        assert change(shown, f"IsoScore of {layer}") > 0.1
    assert change(shown, "masked words found") > 0.1


def decoder_with_lora(output, folder):
    shown = figures(output)
    for layer in ("layer_0", "layer_1", "union"):
        assert change(shown, f"IsoScore of {layer}") < -0.02
    assert abs(change(shown, "loss")) < 0.05
    trained, everything = map(
        int, re.search(r"weights that train: (\d+) of (\d+)", output).groups()
    )
    assert 0 < trained < everything / 10
    # Greedy words of the grammar: article, thing, full stop.
    assert len(re.findall(r"^text \w+: .+ (the|a) \w+ \.$", output, re.M)) == 2


def vision_transformer(output, folder):
    shown = figures(output)
    assert "States taken: layer_0, layer_1, layer_2\n" in output
    for plain, rounder in zip(
        shown["strength 0.0, IsoScore"],
        shown["strength 1.0, IsoScore"],
        strict=True,
    ):
        assert rounder > plain + 0.05
    for strength in (0.0, 1.0):
        (accuracy,) = shown[f"strength {strength}, accuracy"]
        assert accuracy > 0.7  # One of ten classes.


def strength_search(output, folder):
    shown = figures(output)
    (best,) = shown.pop("best strength")
    accuracies = [accuracy for accuracy, _ in shown.values()]
    assert len(shown) == 4
    assert accuracies == sorted(accuracies, reverse=True)
    assert shown[f"strength {best}"][0] == max(accuracies)
    assert shown["strength 1.0"][1] > shown["strength 0.0"][1] + 0.1
    assert list(folder.iterdir()) == []


needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs PyTorch"
)
SHOWS = [
    pytest.param(quickstart, marks=pytest.mark.slow),
    pytest.param(kerashub_classifier, marks=pytest.mark.slow),
    pytest.param(measure_and_compare, marks=pytest.mark.slow),
    subclassed_model,
    own_regularizer,
    pytest.param(tensorboard_logs, marks=pytest.mark.slow),
    pytest.param(mirrored_strategy, marks=pytest.mark.slow),
    pytest.param(jax_data_parallel, marks=pytest.mark.slow),
    pytest.param(torch_ddp, marks=needs_torch),
    pytest.param(multi_worker, marks=pytest.mark.slow),
    pytest.param(masked_language_model, marks=pytest.mark.slow),
    pytest.param(decoder_with_lora, marks=pytest.mark.slow),
    pytest.param(vision_transformer, marks=pytest.mark.slow),
    pytest.param(strength_search, marks=pytest.mark.slow),
]
NAMES = [getattr(shows, "values", [shows])[0].__name__ for shows in SHOWS]


@pytest.mark.parametrize("shows", SHOWS, ids=NAMES)
def test_example_shows_what_it_promises(shows, tmp_path):
    shows(run(shows.__name__, tmp_path), tmp_path)


def test_readme_lists_the_examples():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[`(\w+)\.py`\]\(\1\.py\) ", text, re.MULTILINE)
    assert set(listed) - {"finetune"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_example_is_short_and_stands_alone(name):
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert 20 <= len(source.splitlines()) <= 80
    tree = ast.parse(source)
    assert 2 <= len(ast.get_docstring(tree).splitlines()) <= 6
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert "keras_istar" in imported
    beside = {path.stem for path in EXAMPLES.iterdir()} | {"argparse"}
    assert not {name.partition(".")[0] for name in imported} & beside
