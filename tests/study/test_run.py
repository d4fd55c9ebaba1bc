"""Single runs of the study, and the study as a process, on a tiny encoder."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from finetuning.command_line import UserError
from finetuning.data import Examples
from finetuning.data import TextData
from study import __main__ as program
from study.grid import parse_method

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the study feeds and trains through TensorFlow",
)
WORDS = "a the film plot cast is was very".split()
SIZES = (40, 16, 24)


def sentences(size, rng):
    labels = [i % 2 for i in range(size)]
    texts = [
        " ".join([*rng.choice(WORDS, size=i % 5 + 1), ("bad", "good")[y]])
        for i, y in enumerate(labels)
    ]
    return Examples(texts, labels)


def numbers(size, rng):
    texts = sentences(size, rng).texts
    labels = [float(x) for x in rng.uniform(0, 5, size)]
    return Examples((texts, texts[::-1]), labels)


@pytest.fixture(scope="module")
def tasks():
    rng = np.random.default_rng(0)
    classes = [sentences(size, rng) for size in SIZES]
    scores = [numbers(size, rng) for size in SIZES]
    return {
        "sst2": TextData("sst2", ("bad", "good"), ("accuracy",), *classes),
        "stsb": TextData("stsb", (), ("pearson", "spearman"), *scores),
    }


@pytest.fixture(scope="module")
def make_run(preset):
    """Function that makes a run from the regularizer's spec."""

    def make(spec, task="sst2", **options):
        defaults = dict(preset=preset, sequence_length=12, limit=32, epochs=2)
        defaults |= dict(batch_size=8, learning_rate=0.01)
        method = parse_method(spec)
        (run,) = program.Options(
            output="x",
            tasks=(task,),
            seeds=1,
            regularizers=(method,),
            **(defaults | options),
        ).runs
        recipe = dataclasses.replace(run.recipe, measured_texts=20)
        if recipe.head_steps:  # So many would take most of the time.
            recipe = dataclasses.replace(recipe, head_steps=12)
        return dataclasses.replace(run, recipe=recipe)

    return make


@pytest.fixture(scope="module")
def starts():
    """By run, what the training of everything has started with."""
    from finetuning import recipe

    found = {}
    fit = recipe.fit

    def recorded(task, train, batches, settings, seed, *arguments):
        inner = {id(weight) for weight in task.backbone.weights}
        batch_ids = [
            x["token_ids"] for x, _ in batches.for_training(train, seed)
        ]
        seeds = [
            variable
            for variable in task.variables
            if "seed" in variable.path and "istar" not in variable.path
        ]
        shared = [*task.backbone.trainable_weights, *seeds, *batch_ids]
        head = [w for w in task.trainable_weights if id(w) not in inner]
        found[len(found)] = (
            [np.asarray(x) for x in shared],
            [np.asarray(x) for x in head],
        )
        return fit(task, train, batches, settings, seed, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "fit", recorded)
        yield found


@pytest.fixture(scope="module")
def execute(tasks, starts):
    """Function that does a run."""
    from study import run as study_run

    return lambda run: study_run.execute(run, tasks[run.task])


def without_times(figures):
    return {k: v for k, v in figures.items() if k != "seconds"}


def test_methods_of_a_seed_start_alike(execute, starts, make_run):
    starts.clear()
    specs = ["istar:1", "none", "isobn"]
    records = [execute(make_run(spec)) for spec in specs]
    shared, head = zip(*starts.values(), strict=True)
    assert len(shared[0]) > 30 and len(head[0]) > 1
    for i, spec in enumerate(specs):
        assert len(shared[i]) == len(shared[0]), spec
        assert all(map(np.array_equal, shared[i], shared[0])), spec
        is_same = all(map(np.array_equal, head[i], head[0]))
        assert is_same == (spec != "isobn"), spec
    assert records[0]["test"]["head"] == records[1]["test"]["head"]
    assert records[0]["epochs"] != records[1]["epochs"]
    check_record(json.loads(json.dumps(records[0], allow_nan=False)))


def check_record(record):
    assert record["examples"] == {
        "train": 32,
        "validation": 16,
        "test": 24,
        "measured": 20,
    }
    assert set(record["test"]["end"]) == {"score", "accuracy"}
    assert len(record["epochs"]) == 2
    assert {"loss", "val_accuracy", "isoscore", "isoscore_layer_1"} <= set(
        record["epochs"][0]
    )
    assert list(record["isotropy"]["before"]) == ["layer_0", "layer_1", "union"]
    assert "twonn_dimension" in record["isotropy"]["after"]["union"]
    assert list(record["first_tokens"]) == ["layer_0", "layer_1", "union"]
    assert np.any(record["mean_activation"])


def test_further_figures_are_those_of_the_trained_model(preset):
    """By NumPy, from all texts in one batch with all of its padding."""
    from finetuning.classifiers import load_classifier
    from finetuning.tokens import Batches
    from finetuning.tokens import tokenize
    from study import run as study_run

    skdim = pytest.importorskip("skdim")
    pairs = itertools.product(WORDS, WORDS[:4])
    texts = [" ".join(pair) + " the" * (i % 3) for i, pair in enumerate(pairs)]
    task = load_classifier(preset, 2, 12)
    tokens = tokenize(task.preprocessor, Examples(texts, [0] * len(texts)))
    task.preprocessor = None  # As while it is trained.
    found = study_run.observe(task, Batches(8).for_inference(tokens))
    blocks = [layer.output for layer in task.backbone.transformer_layers]
    states = keras.Model(task.backbone.input, blocks)(tokens.inputs)
    mask = tokens.inputs["padding_mask"].astype(bool)
    assert not mask.all()
    means = np.asarray(states[-1], "float64")[mask].mean(axis=0)
    np.testing.assert_allclose(found["mean_activation"], means, atol=6e-5)
    for i, state in enumerate(states):
        first = np.asarray(state)[:, 0]
        expected = skdim.id.TwoNN().fit(first).dimension_
        row = found["first_tokens"][f"layer_{i}"]
        assert (row["tokens"], row["twonn_tokens"]) == (32, 32)
        assert row["twonn_dimension"] == pytest.approx(expected, rel=1e-3)


def test_a_target_reaches_the_layer():
    from finetuning import regularizers

    inputs = keras.Input((6, 4))
    hidden = keras.layers.Dense(8, name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    text = "istar:target=0.5..1x,strength=3,per_layer,layers=hidden"
    layer = regularizers.attach(model, parse_method(text), ["hidden"])
    assert (layer.target, layer.relative) == ((0.5, 1.0), True)
    assert (layer.strength, layer.momentum) == (3.0, 0.9)
    assert layer.per_layer


@pytest.mark.slow
def test_strength_0_leaves_the_training_of_keras_alone(
    execute, make_run, monkeypatch
):
    from finetuning import regularizers

    run = make_run("none", learning_rate=1e-3)
    observed = execute(run)
    monkeypatch.setattr(regularizers, "attach", lambda *_: None)
    monkeypatch.setattr(regularizers, "callbacks_for", lambda *_, **__: [])
    monkeypatch.setattr(regularizers, "detach", lambda *_: None)
    bare = execute(run)
    for one, two in zip(observed["epochs"], bare["epochs"], strict=True):
        assert "isoscore" in one and "isoscore" not in two
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)
    one, two = (x["isotropy"]["after"]["union"] for x in (observed, bare))
    assert one == pytest.approx(two, rel=1e-5)


@pytest.mark.slow
def test_a_run_does_not_depend_on_those_before_it(execute, make_run):
    first = execute(make_run("istar:2"))
    execute(make_run("isobn"))
    other = make_run("istar:-2")
    execute(dataclasses.replace(other, seed=3))
    again = execute(make_run("istar:2"))
    assert without_times(again) == without_times(first)


# At this learning rate, -5 may go so far.
@pytest.mark.filterwarnings("ignore:.* are collapsing:UserWarning")
@pytest.mark.slow
def test_isotropy_follows_the_strength(execute, make_run):
    specs = ["istar:-5", "none", "istar:5"]
    figures = [execute(make_run(spec, epochs=6)) for spec in specs]
    scores = [f["isotropy"]["after"]["union"]["isoscore"] for f in figures]
    assert scores == sorted(scores) and scores[-1] > scores[0] + 0.1
    before = [f["isotropy"]["before"] for f in figures]
    assert before == [before[0]] * len(specs)


@pytest.mark.parametrize(
    "spec",
    ["istar:2,refresh=never", "istar:2,padding=count", "istar:2,refresh=1"],
)
@pytest.mark.slow
def test_ablations_make_a_difference(spec, execute, make_run):
    plain, other = execute(make_run("istar:2")), execute(make_run(spec))
    assert plain["epochs"][-1]["loss"] != other["epochs"][-1]["loss"]


def test_recipe_of_the_paper_trains_numbers_from_a_random_head(
    execute, make_run
):
    record = execute(make_run("istar:1", "stsb", recipe="paper"))
    assert set(record["test"]["end"]) == {"score", "pearson", "spearman"}
    assert {"val_pearson", "val_spearman"} <= set(record["epochs"][0])


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_an_error(execute, make_run):
    with pytest.raises(RuntimeError, match="NaN or Inf loss|not finite"):
        execute(make_run("none", learning_rate=1e38))


def test_a_layer_that_is_not_there_is_the_users_error(execute, make_run):
    with pytest.raises(UserError, match="indices from -2 to 1"):
        execute(make_run("istar:1,layers=7"))


@pytest.fixture
def start(preset, table_file, tmp_path):
    """Function that starts a study of two runs."""
    options = ["--tasks", table_file, "--preset", preset, "--seeds", "1"]
    options += ["--regularizers", "none", "istar:1", "--sequence-length", "12"]
    options += ["--limit", "96", "--epochs", "1", "--batch-size", "4"]
    command = [sys.executable, str(Path(program.__file__).parent)]

    def start(name):
        return subprocess.Popen(
            [*command, "--output", tmp_path / name, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    return start


def read_records(folder):
    """The lines of the result file, without times."""
    lines = (folder / "results.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        del record["started"], record["seconds"]
    return records


@pytest.mark.slow
def test_a_killed_study_ends_as_if_it_had_not_been(start, tmp_path):
    whole, killed = start("whole"), start("killed")
    while not killed.stdout.readline().startswith("[1/2]"):
        assert killed.poll() is None
    time.sleep(0.5)  # In the second run.
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    whole.communicate()
    first, second = read_records(tmp_path / "whole")
    assert [record["status"] for record in (first, second)] == ["ok", "ok"]
    assert read_records(tmp_path / "killed") == [first]
    resumed = start("killed")
    assert resumed.communicate()[0].startswith("[2/2]")
    assert resumed.returncode == 0
    assert read_records(tmp_path / "killed") == [first, second]
