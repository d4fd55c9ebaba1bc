"""Single runs of the study, on a tiny encoder."""

import json

import finetune
import glue
import keras
import numpy as np
import pytest
import study
import study_grid
import study_options
import text_tasks
from text_tasks import Examples

import keras_istar

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the study feeds and trains through TensorFlow",
)
WORDS = "a the film plot cast is was very not good bad fine dull".split()
DIM = 8


def sentences(size, rng):
    labels = [i % 2 for i in range(size)]
    texts = [
        " ".join([*rng.choice(WORDS[:8], size=i % 5 + 1), ("bad", "good")[y]])
        for i, y in enumerate(labels)
    ]
    return Examples(texts, labels)


def numbers(size, rng):
    examples = sentences(size, rng)
    pairs = (examples.texts, examples.texts[::-1])
    return Examples(pairs, [float(x) for x in rng.uniform(0, 5, size)])


@pytest.fixture(scope="module")
def tasks():
    rng = np.random.default_rng(0)
    sizes = (40, 16, 24)
    return {
        "sst2": text_tasks.TextTask(
            "sst2", ("bad", "good"), *(sentences(n, rng) for n in sizes)
        ),
        "stsb": text_tasks.TextTask(
            "stsb", (), *(numbers(n, rng) for n in sizes)
        ),
    }


@pytest.fixture(scope="module")
def make_run(preset):
    """Function that makes a run from the regularizer's spec."""

    def make(spec, *options, task="sst2"):
        command = ["--output", "x", "--tasks", task, "--seeds", "1"]
        command += ["--preset", preset, "--sequence-length", "12"]
        command += ["--limit", "32", "--epochs", "2", "--batch-size", "8"]
        command += ["--measured-texts", "20", "--learning-rate", "0.01"]
        command += ["--regularizers", spec, *options]
        (run,) = study_grid.grid(
            study_options.make_parser("").parse_args(command)
        )
        return run

    return make


@pytest.fixture(scope="module")
def runner(tasks):
    from study_run import Runner

    return Runner(tasks)


def without_times(figures):
    return {k: v for k, v in figures.items() if k != "seconds"}


@pytest.mark.slow
def test_a_run_does_not_depend_on_those_before_it(tasks, make_run):
    from study_run import Runner

    run = make_run("istar:2")
    first = Runner(tasks)(run)
    runner = Runner(tasks)
    runner(make_run("isobn"))
    runner(make_run("istar:-2", "--first-seed", "3"))
    assert without_times(runner(run)) == without_times(first)


@pytest.mark.slow
def test_methods_of_a_seed_start_alike(runner, make_run, monkeypatch):
    import study_run

    starts, heads = {}, {}

    class Record(keras.callbacks.Callback):
        def __init__(self, name, data):
            super().__init__()
            self.name, self.data = name, data

        def on_train_begin(self, logs=None):
            seeds = [
                variable.numpy()
                for variable in self.model.variables
                if "seed" in variable.path and "istar" not in variable.path
            ]
            encoder = self.model.backbone.trainable_weights
            batches = [x["token_ids"].numpy() for x, _ in self.data]
            weights = [weight.numpy() for weight in encoder]
            starts[self.name] = [*weights, *seeds, *batches]
            heads[self.name] = [
                weight.numpy()
                for weight in self.model.trainable_weights
                if not any(weight is other for other in encoder)
            ]

    fit = study_run._fit

    def recorded(task, parts, run, callbacks):
        data = study_run.study_tasks.training_batches(
            parts.train, run.recipe.batch_size, run.seed
        )
        record = Record(str(run.method), data)
        return fit(task, parts, run, [*callbacks, record])

    monkeypatch.setattr(study_run, "_fit", recorded)
    specs = ["none", "istar:0", "cosreg:1", "isobn"]
    figures = [runner(make_run(spec)) for spec in specs]
    expected = starts.pop("none")
    assert len(expected) > 30
    for spec, start in starts.items():
        assert len(start) == len(expected), spec
        assert all(map(np.array_equal, start, expected)), spec
    for spec in specs[1:]:
        is_same = all(map(np.array_equal, heads[spec], heads["none"]))
        assert len(heads[spec]) == len(heads["none"]) > 1, spec
        assert is_same == (spec != "isobn"), spec
    scores = [f["test"]["head"] for f in figures[:3]]
    assert scores == [scores[0]] * 3
    plain, zero = figures[0]["epochs"][-1], figures[1]["epochs"][-1]
    for name in ("loss", "isoscore_layer_1", "isoscore_union"):
        assert plain[name] == pytest.approx(zero[name], rel=1e-5), name


def test_head_is_trained_with_isobn_where_fine_tuning_has_it(make_run, rng):
    """DistilBERT's head has a dense layer before the sentence embedding."""
    import study_head
    import study_tasks

    hub = pytest.importorskip("keras_hub")
    backbone = hub.models.DistilBertBackbone(
        vocabulary_size=20,
        num_layers=1,
        num_heads=2,
        hidden_dim=DIM,
        intermediate_dim=16,
        max_sequence_length=6,
    )

    def make_classifier():
        return hub.models.DistilBertTextClassifier(
            backbone, num_classes=1, activation=None, dropout=0.0
        )

    inputs = {
        "token_ids": rng.integers(0, 20, size=(24, 6)).astype("int32"),
        "padding_mask": np.ones((24, 6), "int32"),
    }
    tokens = study_tasks.Tokens(inputs, rng.uniform(0, 5, size=24))
    run = make_run("isobn", task="stsb")
    head = study_head.train(make_classifier(), tokens, tokens, run)
    classifier = make_classifier()
    head.give_to(classifier)
    layer = keras_istar.IsotropicBatchNormalization()
    keras_istar.attach_regularizer(classifier, layer)
    layer.set_weights(head.normalization)
    found = classifier.predict(inputs, verbose=0)
    scores = study_tasks.scores("stsb", found, tokens.labels)
    assert scores == pytest.approx(head.scores, rel=1e-4)


@pytest.mark.slow
def test_isotropy_follows_the_strength(runner, make_run):
    specs = ["istar:-5", "none", "istar:5"]
    figures = [runner(make_run(spec, "--epochs", "6")) for spec in specs]
    scores = [f["isotropy"]["after"]["union"]["isoscore"] for f in figures]
    assert scores == sorted(scores) and scores[-1] > scores[0] + 0.1
    before = [f["isotropy"]["before"] for f in figures]
    assert before == [before[0]] * len(specs)
    assert list(before[0]) == ["layer_0", "layer_1", "union"]


@pytest.mark.parametrize(
    "spec",
    ["istar:2,refresh=never", "istar:2,padding=count", "istar:2,refresh=1"],
)
@pytest.mark.slow
def test_ablations_make_a_difference(spec, runner, make_run):
    plain, other = runner(make_run("istar:2")), runner(make_run(spec))
    assert plain["epochs"][-1]["loss"] != other["epochs"][-1]["loss"]


def test_a_record_fits_into_json_and_says_how_it_was_made(runner, make_run):
    run = make_run("istar:1")
    record = json.loads(json.dumps(runner(run), allow_nan=False))
    assert record["examples"] == {
        "train": 32,
        "validation": 16,
        "test": 24,
        "measured": 20,
    }
    assert set(record["test"]["end"]) == {"score", "accuracy"}
    assert len(record["epochs"]) == 2
    assert {"loss", "val_score", "isoscore", "isoscore_layer_1"} <= set(
        record["epochs"][0]
    )
    assert "twonn_dimension" in record["isotropy"]["after"]["union"]


@pytest.mark.slow
def test_regression_has_one_output_and_correlations(runner, make_run):
    record = runner(make_run("istar:1", task="stsb"))
    assert set(record["test"]["end"]) == {"score", "pearson", "spearman"}


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_an_error(runner, make_run):
    with pytest.raises(RuntimeError, match="NaN or Inf loss|not finite"):
        runner(make_run("none", "--learning-rate", "1e38"))


@pytest.mark.slow
def test_a_layer_that_is_not_there_is_the_users_error(runner, make_run):
    with pytest.raises(study.UserError, match="indices from -2 to 1"):
        runner(make_run("istar:1,layers=7"))


def test_subsets_are_nested_and_differ_by_seed(tasks):
    import study_tasks

    examples = tasks["stsb"].train
    few, more, other = (
        study_tasks.subset(examples, limit, seed)
        for limit, seed in ((10, 1), (20, 1), (20, 2))
    )
    assert few.texts == tuple(column[:10] for column in more.texts)
    assert few.labels == more.labels[:10]
    assert set(more.labels) != set(other.labels)
    rows = list(zip(*examples.texts, examples.labels, strict=True))
    chosen = list(zip(*more.texts, more.labels, strict=True))
    assert len(chosen) == 20 and set(chosen) <= set(rows)


def test_scores_are_those_of_glue(rng):
    import study_tasks

    outputs, labels = rng.normal(size=(50, 2)), rng.integers(2, size=50)
    answers = outputs.argmax(axis=-1)
    table = np.array(
        [
            [np.sum((answers == i) & (labels == j)) for j in (0, 1)]
            for i in (0, 1)
        ]
    )
    (tn, fn), (fp, tp) = table
    accuracy = (tp + tn) / 50
    f1 = 2 * tp / (2 * tp + fp + fn)
    matthews = (tp * tn - fp * fn) / np.sqrt(
        (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    )
    for task, expected in {
        "sst2": {"score": accuracy, "accuracy": accuracy},
        "mrpc": {"score": (accuracy + f1) / 2, "accuracy": accuracy, "f1": f1},
        "cola": {"score": matthews, "matthews": matthews},
    }.items():
        found = study_tasks.scores(task, outputs, labels)
        assert found == pytest.approx(expected)


def test_correlations_are_those_of_glue(rng):
    import study_tasks

    outputs, labels = rng.normal(size=(30, 1)), rng.normal(size=30)
    pearson = np.corrcoef(outputs[:, 0], labels)[0, 1]
    ranks = [x.argsort().argsort() for x in (outputs[:, 0], labels)]
    spearman = np.corrcoef(*ranks)[0, 1]
    found = study_tasks.scores("stsb", outputs, labels)
    assert found == pytest.approx(
        {
            "score": (pearson + spearman) / 2,
            "pearson": pearson,
            "spearman": spearman,
        }
    )
    constant = study_tasks.scores("stsb", 0 * outputs, labels)
    assert constant == {"score": 0.0, "pearson": 0.0, "spearman": 0.0}


def test_regression_is_for_those_who_ask(monkeypatch):
    def read(name, splits, data_dir):
        columns = {
            "sentence1": np.array([b"one"] * 50),
            "sentence2": np.array([b"two"] * 50),
            "idx": np.arange(50),
            "label": np.arange(50, dtype="float32") / 10,
        }
        return (), [columns, columns]

    monkeypatch.setattr(glue, "read", read)
    task = text_tasks.load("glue/stsb", with_scores=True)
    assert task.classes == ()
    assert sorted(task.test.labels) == pytest.approx(np.arange(50) / 10)
    with pytest.raises(finetune.UserError, match="no such classification"):
        text_tasks.load("glue/stsb")
