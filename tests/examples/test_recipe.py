"""The parts of the recipe: subsets, batches, heads, optimizers and scores."""

import keras
import numpy as np
import pytest
from finetuning.data import Examples
from finetuning.data import TextData
from finetuning.scores import score
from finetuning.settings import RECIPES
from finetuning.settings import Method
from finetuning.settings import Recipe

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the examples feed and log through TensorFlow",
)


def test_subsets_are_nested_and_differ_by_seed():
    from finetuning.recipe import subset

    texts = [f"text {i}" for i in range(40)]
    examples = Examples((texts, texts[::-1]), list(range(40)))
    few, more, other = (
        subset(examples, limit, seed)
        for limit, seed in ((10, 1), (20, 1), (20, 2))
    )
    assert few.texts == tuple(column[:10] for column in more.texts)
    assert few.labels == more.labels[:10]
    assert set(more.labels) != set(other.labels)
    assert len(set(more.labels)) == 20
    for i, one, two in zip(more.labels, *more.texts, strict=True):
        assert (one, two) == (f"text {i}", f"text {39 - i}")


def test_batches_are_cut_to_their_longest_example(rng):
    from finetuning.tokens import Batches
    from finetuning.tokens import Tokens

    lengths = rng.integers(1, 9, size=20)
    mask = (np.arange(10) < lengths[:, None]).astype("int32")
    tokens = Tokens({"token_ids": 7 * mask, "padding_mask": mask}, lengths)
    seen = []
    for inputs, labels in Batches(8).for_training(tokens, seed=3):
        assert inputs["token_ids"].shape == (len(labels), max(labels))
        np.testing.assert_array_equal(
            np.sum(inputs["padding_mask"], axis=-1), labels
        )
        seen += labels.numpy().tolist()
    assert sorted(seen) == sorted(lengths) and seen != lengths.tolist()
    alike = list(Batches(8, are_alike=True).for_inference(tokens))
    assert [x["token_ids"].shape for x, _ in alike] == [(8, 10)] * 2
    assert (Batches(8).count(tokens), Batches(8, True).count(tokens)) == (3, 2)
    assert tokens.by_length().labels.tolist() == sorted(lengths)
    # Outputs for every token are put together, so that none are cut.
    pairs = Tokens(tokens.inputs, np.stack([lengths, lengths], axis=-1)).take(
        lengths < 8
    )
    (whole,) = Batches(8).for_inference(pairs)
    assert whole[0]["token_ids"].shape[1] == 10


@pytest.mark.parametrize(
    "regularizer", ["isobn", pytest.param("none", marks=pytest.mark.slow)]
)
def test_head_is_trained_as_the_classifier_will_use_it(regularizer, rng):
    """DistilBERT's head has a dense layer before the sentence embedding."""
    from finetuning import recipe
    from finetuning import regularizers
    from finetuning.tokens import Batches
    from finetuning.tokens import Tokens

    hub = pytest.importorskip("keras_hub")
    backbone = hub.models.DistilBertBackbone(
        vocabulary_size=20,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=6,
    )
    task = hub.models.DistilBertTextClassifier(
        backbone, num_classes=1, activation=None, dropout=0.0
    )
    inputs = {
        "token_ids": rng.integers(0, 20, size=(24, 6)).astype("int32"),
        "padding_mask": np.ones((24, 6), "int32"),
    }
    labels = backbone.predict(inputs, verbose=0)[:, 0, 0]
    tokens, batches = Tokens(inputs, labels), Batches(8)
    method = Method.make(regularizer)
    layer = regularizers.attach(task, method, ["all"])
    encoder = [weight.numpy() for weight in backbone.weights]
    recipe.train_head(task, tokens, batches, Recipe(head_steps=200), 0)
    for before, after in zip(encoder, backbone.weights, strict=True):
        np.testing.assert_array_equal(before, after.numpy())
    data = TextData("x", (), ("pearson",), *[None] * 3)
    found = recipe.predict_and_score(task, data, tokens, batches)["pearson"]
    assert found > 0.9
    attached = task.predict(inputs, verbose=0)
    if regularizer == "isobn":
        scale = keras.ops.convert_to_numpy(layer.scale())
        assert scale.max() > 1.01 * scale.min()
    regularizers.detach(task, layer)
    assert not [x for x in task.layers if "isotropic" in x.name]
    np.testing.assert_allclose(
        task.predict(inputs, verbose=0), attached, rtol=1e-4, atol=1e-5
    )


def test_optimizers_of_the_recipes():
    from finetuning.recipe import make_optimizer

    adam = make_optimizer(RECIPES["probe-first"], steps=100)
    assert type(adam) is keras.optimizers.Adam
    rates = []
    for step in (0, 5, 10, 55, 100):
        adam.iterations.assign(step)
        rates.append(float(adam.learning_rate))
    cosine = 3e-5 * (1 + np.cos(np.pi / 2)) / 2
    expected = [0, 1.5e-5, 3e-5, cosine, 0]
    assert rates == pytest.approx(expected, abs=1e-10)
    adamw = make_optimizer(RECIPES["paper"], steps=100)
    assert type(adamw) is keras.optimizers.AdamW
    assert float(adamw.learning_rate) == pytest.approx(1e-5)


def test_scores_are_those_of_glue(rng):
    outputs, labels = rng.normal(size=(50, 2)), rng.integers(2, size=50)
    answers = outputs.argmax(axis=-1)
    (tn, fn), (fp, tp) = (
        [np.sum((answers == i) & (labels == j)) for j in (0, 1)] for i in (0, 1)
    )
    expected = {
        "accuracy": (tp + tn) / 50,
        "f1": 2 * tp / (2 * tp + fp + fn),
        "matthews": (tp * tn - fp * fn)
        / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
    }
    assert score(tuple(expected), outputs, labels) == pytest.approx(expected)


def test_correlations_are_those_of_glue(rng):
    outputs, labels = rng.normal(size=(30, 1)), rng.normal(size=30)
    ranks = [x.argsort().argsort() for x in (outputs[:, 0], labels)]
    names = ("pearson", "spearman")
    assert score(names, outputs, labels) == pytest.approx(
        {
            "pearson": np.corrcoef(outputs[:, 0], labels)[0, 1],
            "spearman": np.corrcoef(*ranks)[0, 1],
        }
    )
    constant = score(names, 0 * outputs, labels)
    assert constant == dict.fromkeys(names, 0.0)
    with pytest.raises(RuntimeError, match="not finite"):
        score(names, np.nan * outputs, labels)
