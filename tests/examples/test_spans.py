"""Questions with spans for answers: windows, spans, scores, and a training."""

import math
import re
import types

import finetune
import keras
import numpy as np
import pytest
import tokenizers
from finetuning import data
from finetuning.command_line import UserError
from finetuning.data import Answer
from finetuning.data import Examples
from finetuning.settings import Recipe
from scipy import special
from vocabulary import VOCABULARY

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the examples feed and log through TensorFlow",
)
hub = pytest.importorskip("keras_hub")
# Accents, signs, other scripts, unknown words, and words of several tokens.
WORDS = "film, plot. “good” (bad) Zoë's café €5 1990s 東京 Łódź dull–".split()
PIECES = "zo ##e cafe 1990 ##s € ##5 , . “ ” ( ) ' s 東 –".split()


@pytest.fixture(scope="module")
def preprocessor():
    """KerasHub's, of windows of 24 tokens."""
    tokenizer = hub.tokenizers.BertTokenizer(
        [*VOCABULARY, *PIECES], lowercase=True, strip_accents=True
    )
    return hub.models.BertTextClassifierPreprocessor(
        tokenizer, sequence_length=24
    )


def make_examples(rng, size=40):
    """Questions on texts of up to 40 words whose answers are some of these."""
    questions, contexts, labels = [], [], []
    for i in range(size):
        words = rng.choice(WORDS, size=rng.integers(1, 41))
        first = rng.integers(len(words))
        last = min(first + rng.integers(4), len(words) - 1)
        spaces = rng.choice([" ", "  ", "\n"], size=len(words))
        parts = [*zip(words, spaces, strict=True)]
        before = "".join(x + y for x, y in parts[:first])
        text = "".join(x + y for x, y in parts[first : last + 1]).strip()
        start = len(before)
        if i % 2:  # Between signs, or the beginning of a word.
            inner = re.search(r"[^\W\d]+|\d+", text)
            start, text = start + inner.start(), inner[0]
        contexts.append("".join(x + y for x, y in parts))
        labels.append((Answer(start, text), Answer(0, "wrong")))
        questions.append(" ".join(["which film?"] * (1 + i % 5)))
    return Examples((questions, contexts), labels)


@pytest.fixture(scope="module")
def windows(preprocessor):
    """Windows of questions, of which many need several."""
    from finetuning import spans

    examples = make_examples(np.random.default_rng(0))
    found = spans.tokenize(preprocessor, examples)
    assert len(found.labels) > 2 * len(examples.labels)
    return found


def test_labels_are_the_characters_of_the_answer(windows):
    """Of every question, in one window or more."""
    found = windows.with_answers()
    assert set(found.questions) == set(range(40))
    for (first, last), question, characters in zip(
        found.labels, found.questions, found.characters, strict=True
    ):
        context = windows.examples.texts[1][question]
        answer = windows.examples.labels[question][0]
        assert characters[first, 0] == answer.answer_start
        assert context[characters[first, 0] : characters[last, 1]] == (
            answer.text
        )


def test_windows_cover_the_context_with_an_overlap(windows, preprocessor):
    tokenizer = preprocessor.tokenizer
    inputs = windows.inputs
    questions, contexts = windows.examples.texts
    for i, (question, context) in enumerate(
        zip(questions, contexts, strict=True)
    ):
        own = np.flatnonzero(windows.questions == i)
        ids, mask, segments, is_context = (
            inputs[name][own]
            for name in (
                "token_ids",
                "padding_mask",
                "segment_ids",
                "context_mask",
            )
        )
        parts = [
            x[m > 0].tolist() for x, m in zip(ids, is_context, strict=True)
        ]
        joined = parts[0]
        for part in parts[1:]:  # The next one shares 24 // 3 tokens.
            assert joined[-8:] == part[:8]
            joined = joined + part[8:]
        assert joined == np.asarray(tokenizer(context)).tolist()
        start = np.asarray(tokenizer(question)).tolist()[: 24 // 4]
        for row, part in zip(ids, parts, strict=True):
            whole = [tokenizer.cls_token_id, *start, tokenizer.sep_token_id]
            whole += [*part, tokenizer.sep_token_id]
            assert row.tolist() == whole + [0] * (24 - len(whole))
        np.testing.assert_array_equal(mask, ids != tokenizer.pad_token_id)
        np.testing.assert_array_equal(
            segments, mask * (np.arange(24) >= len(start) + 2)
        )
    assert windows.take(slice(9)).num_examples == len(
        set(windows.questions[:9])
    )


def noise(windows, rng):
    """Logits at random, impossible outside of the context."""
    logits = rng.normal(size=(len(windows.labels), 2, 24))
    mask = windows.inputs["context_mask"][:, None] > 0
    return np.where(mask, logits, -1e9)


def test_who_knows_the_spans_has_full_scores(windows, rng):
    """In any window that holds the answer; without it, half are wrong."""
    logits = noise(windows, rng)
    shuffled = windows.take(rng.permutation(len(logits)))
    names = ("exact_match", "f1")
    known = noise(shuffled, rng)
    for i, (first, last) in enumerate(shuffled.labels):
        if last:
            known[i, [0, 1], [first, last]] += 20.0
    assert shuffled.score(names, known) == {"exact_match": 1.0, "f1": 1.0}
    guessed = windows.score(names, logits)
    assert guessed["exact_match"] <= guessed["f1"] < 0.5
    known[0, 0, 0] = np.nan
    with pytest.raises(RuntimeError, match="not finite"):
        shuffled.score(names, known)


def test_best_span_is_the_best_of_all(rng):
    from finetuning import spans

    logits = rng.normal(size=(5, 2, 50))
    found = zip(*spans.best_spans(logits), strict=True)
    for (start, end), (first, last, total) in zip(logits, found, strict=True):
        sums = {
            (i, j): start[i] + end[j]
            for i in range(50)
            for j in range(i, min(i + 30, 50))
        }
        assert (first, last) == max(sums, key=sums.get)
        assert total == pytest.approx(max(sums.values()))


@pytest.mark.parametrize(
    ("answer", "right", "exact", "f1"),
    [
        ("The Cat!", "a cat", 1, 1),
        ("  U.S.\n", "us", 1, 1),
        ("then", "n", 0, 0),  # No article within a word.
        ("cat", "dog", 0, 0),
        ("the", "a", 1, 0),  # No word is left.
        ("black cat", "cat", 0, 2 / 3),
        ("cat cat dog", "cat bird", 0, 2 / 5),
        ("", "cat", 0, 0),
    ],
)
def test_scores_of_an_answer_are_those_of_squad(answer, right, exact, f1):
    from finetuning import spans

    assert spans.exact_match(answer, right) == exact
    assert spans.f1(answer, right) == pytest.approx(f1)


def squad_columns(size, rng):
    """As TFDS gives them: which word that judges is in the context?"""
    words = [w for w in VOCABULARY[5:] if w not in ("good", "bad")]
    contexts, starts, texts = [], [], []
    for i in range(size):
        answer = ("good", "bad")[i % 2]
        others = rng.choice(words, size=rng.integers(4, 20)).tolist()
        others.insert(rng.integers(len(others)), answer)
        contexts.append(" ".join(others))
        starts.append([contexts[-1].index(answer), 0])
        texts.append([answer.encode(), b""])
    return {
        "id": np.array([f"id {i}".encode() for i in range(size)]),
        "question": np.array([b"good or bad film"] * size),
        "context": np.array([x.encode() for x in contexts]),
        "answers": {
            "answer_start": np.array(starts, "int32"),
            "text": np.array(texts),
        },
    }


@pytest.fixture
def toy_squad(monkeypatch, rng):
    """Takes the place of SQuAD."""
    splits = [squad_columns(size, rng) for size in (160, 24)]

    def read(name, names, data_dir):
        assert (name, names) == ("squad", ["train", "validation"])
        return (), splits

    monkeypatch.setattr(data, "read_tfds", read)
    return data.load("squad")


def read_table(output):
    rows = r"^([a-z]\w+|IsoScore \w+) +(-?[\d.]+) +(-?[\d.]+)$"
    found = re.findall(rows, output, flags=re.MULTILINE)
    return {name: (float(old), float(new)) for name, old, new in found}


def test_from_options_to_table_and_saved_model(
    toy_squad, preset, capsys, tmp_path
):
    from finetuning import spans

    options = ["--task", "squad", "--preset", preset, "--strength", "1"]
    options += ["--sequence-length", "16", "--learning-rate", "0.03"]
    options += ["--epochs", "3", "--batch-size", "16"]
    finetune.main([*options, "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "squad: istar, strength 1" in printed and "24 test" in printed
    head, rest = printed.split("The test part before fine-tuning")
    assert "Training the head" in head and "penalty" not in head
    assert "val_exact_match" in rest and "istar_penalty" in rest
    figures = read_table(printed)
    assert list(figures)[:2] == ["exact_match", "f1"]
    before, after = figures["exact_match"]
    assert after > max(before, 0.8)
    old, new = figures["IsoScore union"]
    assert new > old
    # What was saved answers as the table says, without the example's classes.
    model = keras.models.load_model(tmp_path / "model.keras")
    assert type(model).__name__ == "Functional"
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    task = spans.load_span_finder(preset, 16)
    learned = spans.tokenize(task.preprocessor, toy_squad.train).with_answers()
    assert f"{3 * math.ceil(len(learned.labels) / 16)} steps" in printed
    found = spans.tokenize(task.preprocessor, toy_squad.test)
    windows = [
        part
        for pair in zip(*toy_squad.test.texts, strict=True)
        for encoding in [tokenizer.encode(*pair)]
        for part in (encoding, *encoding.overflowing)
    ]
    inputs = found.inputs | {
        "token_ids": np.array([window.ids for window in windows]),
        "padding_mask": np.array([w.attention_mask for w in windows]),
        "segment_ids": np.array([window.type_ids for window in windows]),
    }
    scores = found.score(toy_squad.scores, np.asarray(model(inputs)))
    assert scores["exact_match"] == pytest.approx(after, abs=6e-4)


def test_head_alone_learns_in_blocks(toy_squad, preset, monkeypatch):
    """As if the features of all windows were too many to be kept."""
    from finetuning import recipe
    from finetuning import spans
    from finetuning.tokens import Batches

    sizes = []

    class Recorded(Batches):
        def for_inference(self, part):
            sizes.append(len(part.labels))
            return super().for_inference(part)

    task = recipe.load_task(toy_squad, preset, 16)
    train = spans.tokenize(task.preprocessor, toy_squad.train).with_answers()
    task.preprocessor = None
    encoder = [weight.numpy() for weight in task.backbone.weights]
    # Of 16 tokens, 8 wide.
    monkeypatch.setattr(recipe, "_FEATURES_AT_ONCE", 70 * 16 * 8)
    recipe.train_head(task, train, Recorded(16), Recipe(head_steps=150), 0)
    assert len(sizes) > 2 and set(sizes[:-1]) == {64}
    assert sum(sizes) == len(train.labels)
    for old, new in zip(encoder, task.backbone.weights, strict=True):
        np.testing.assert_array_equal(old, new.numpy())
    logits = np.asarray(task(train.inputs))
    right = np.take_along_axis(logits, train.labels[:, :, None], axis=-1)
    loss = np.mean(special.logsumexp(logits, axis=-1) - right[:, :, 0])
    counts = train.inputs["context_mask"].sum(axis=-1)
    assert loss < 0.96 * np.mean(np.log(counts))  # That of knowing nothing.


def patch_classifier(monkeypatch, backbone, tokenizer):
    from finetuning import spans

    def load(preset, num_outputs, sequence_length):
        preprocessor = hub.models.DistilBertTextClassifierPreprocessor(
            tokenizer, sequence_length=sequence_length
        )
        return types.SimpleNamespace(
            backbone=backbone, preprocessor=preprocessor
        )

    monkeypatch.setattr(spans, "load_classifier", load)


def test_encoder_without_segments(toy_squad, monkeypatch):
    from finetuning import spans

    backbone = hub.models.DistilBertBackbone(
        vocabulary_size=len(VOCABULARY),
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=16,
    )
    tokenizer = hub.tokenizers.DistilBertTokenizer(VOCABULARY)
    patch_classifier(monkeypatch, backbone, tokenizer)
    task = spans.load_span_finder("distilbert", 16)
    windows = spans.tokenize(task.preprocessor, toy_squad.test)
    task.preprocessor = None
    logits = task.predict(windows.inputs, verbose=0)
    assert logits.shape == (len(windows.labels), 2, 16)
    is_possible = np.repeat(windows.inputs["context_mask"][:, None], 2, axis=1)
    np.testing.assert_array_equal(logits > -1e8, is_possible > 0)


def test_encoder_with_other_tokens_is_refused(monkeypatch):
    from finetuning import spans

    patch_classifier(monkeypatch, None, keras.layers.Identity())
    with pytest.raises(UserError, match="WordPiece.*'bpe' with a Identity"):
        spans.load_span_finder("bpe", 16)


def test_windows_that_are_too_short(preset, toy_squad):
    from finetuning import spans

    with pytest.raises(UserError, match="8 tokens or more. Received: .*=7"):
        spans.load_span_finder(preset, 7)
    task = spans.load_span_finder(preset, 8)
    text = "good good good good"
    examples = Examples((["who?"], [text]), [(Answer(0, text),)])
    windows = spans.tokenize(task.preprocessor, examples)
    with pytest.raises(UserError, match="no window holds a whole answer"):
        windows.with_answers()


def test_study_observes_questions(preset, toy_squad):
    from finetuning import recipe
    from finetuning import spans
    from finetuning.tokens import Batches
    from study.run import observe

    task = recipe.load_task(toy_squad, preset, 16)
    windows = spans.tokenize(task.preprocessor, toy_squad.test)
    task.preprocessor = None
    found = observe(task, Batches(16).for_inference(windows))
    inputs = {name: windows.inputs[name] for name in task.backbone.input}
    states = task.backbone.predict(inputs, verbose=0).astype("float64")
    tokens = states[windows.inputs["padding_mask"] > 0]
    np.testing.assert_allclose(
        found["mean_activation"], tokens.mean(axis=0), atol=1e-4
    )
    counts = [x["tokens"] for x in found["first_tokens"].values()]
    assert counts == [len(states), len(states), 2 * len(states)]
