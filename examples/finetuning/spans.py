"""Questions whose answers are spans of a context, as in SQuAD.

A context that is too long for the encoder is read through several windows,
which overlap. For each token of a window the model says how likely an answer
starts there, and ends there; the answer to a question is the best span of all
its windows. Lengths are those of Devlin et al., "BERT: Pre-training of Deep
Bidirectional Transformers for Language Understanding", NAACL 2019, and scores
those of Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine
Comprehension of Text", EMNLP 2016.
"""

import collections
import dataclasses
import re
import string
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np
import tokenizers

from finetuning.classifiers import load_classifier
from finetuning.command_line import UserError
from finetuning.data import Answer
from finetuning.data import Examples
from finetuning.tokens import Tokens

_LONGEST_QUESTION = 64  # Tokens; what is longer is cut.
_LONGEST_ANSWER = 30
_OVERLAP = 128  # Tokens that a window of a context shares with the next.
_SHORTEST_WINDOW = 8  # With fewer tokens there is no room for a context.
_QUESTIONS_AT_ONCE = 1000  # The details of their windows fill 40 MB.
_IMPOSSIBLE = -1e9  # Logit of a token outside of the context.


class SpanFinder(keras_hub.models.Task):
    """An encoder with a head that says where an answer starts and ends.

    Outputs have the shape `(batch, 2, length)`: the logits of every token that
    the answer starts there, and that it ends there. Tokens that
    `context_mask` leaves out are impossible.

    Args:
        backbone: Model that returns the states of the last layer.
        preprocessor: What the tokenizer and the length of windows are taken
            from.
    """

    def __init__(self, backbone: keras.Model, preprocessor: keras.layers.Layer):
        self.backbone = backbone
        self.preprocessor = preprocessor
        context = keras.Input((None,), dtype="int32", name="context_mask")
        head = keras.layers.Dense(
            2,
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            dtype="float32",
            name="span_logits",
        )
        logits = keras.ops.transpose(head(backbone(backbone.input)), (0, 2, 1))
        is_possible = keras.ops.expand_dims(context > 0, axis=1)
        super().__init__(
            inputs={**backbone.input, "context_mask": context},
            outputs=keras.ops.where(is_possible, logits, _IMPOSSIBLE),
            compile=False,
        )

    def save_to_preset(self, preset_dir: str) -> None:
        """Saves `model.keras`, with the head, and `tokenizer.json`.

        These two need neither this class nor a preset: what
        `tokenizers.Tokenizer.from_file` loads makes the windows of a question
        and its context, and what `keras.models.load_model` loads, once
        `keras_hub` is imported, takes them.
        """
        folder = Path(preset_dir)
        model = keras.Model(self.input, self.output, name=self.name)
        model.save(folder / "model.keras")
        tokenizer = _make_tokenizer(self.preprocessor.tokenizer)
        _set_windows(tokenizer, self.preprocessor)
        tokenizer.save(str(folder / "tokenizer.json"))


def load_span_finder(preset: str, sequence_length: int) -> SpanFinder:
    """A span finder with a new head on a pretrained encoder.

    Args:
        preset: As for `load_classifier`.
        sequence_length: Tokens of a window, with those of the question.

    Raises:
        UserError: If the preset cannot be loaded, its tokenizer is not of the
            kind that BERT has, or `sequence_length` does not suit it.
    """
    if sequence_length < _SHORTEST_WINDOW:
        raise UserError(
            f"windows must have {_SHORTEST_WINDOW} tokens or more. Received: "
            f"sequence_length={sequence_length}"
        )
    classifier = load_classifier(preset, 1, sequence_length)
    tokenizer = classifier.preprocessor.tokenizer
    if not isinstance(tokenizer, keras_hub.tokenizers.WordPieceTokenizer):
        raise UserError(
            "questions need an encoder with a WordPiece tokenizer, such as "
            f"BERT or DistilBERT. Received: preset={preset!r} with a "
            f"{type(tokenizer).__name__}"
        )
    backbone = classifier.backbone
    if isinstance(backbone.output, dict):  # BERT has a pooler, for classifiers.
        states = backbone.output["sequence_output"]
        backbone = keras.Model(backbone.input, states, name=backbone.name)
    return SpanFinder(backbone, classifier.preprocessor)


@dataclasses.dataclass(frozen=True)
class Windows(Tokens):
    """Windows of contexts, each behind its question.

    Labels are the first and last token of the answer, or 0 and 0 if the window
    does not hold all of it.

    Attributes:
        characters: Where the characters of each token start and end in the
            context; an array `(windows, length, 2)`.
        questions: Index of the question of each window.
        examples: All questions.
    """

    characters: np.ndarray
    questions: np.ndarray
    examples: Examples

    @property
    def num_examples(self) -> int:
        """Number of questions."""
        return len(np.unique(self.questions))

    def take(self, index: Any) -> "Windows":
        """The windows of a slice, or of an array of indices."""
        return dataclasses.replace(
            super().take(index),
            characters=self.characters[index],
            questions=self.questions[index],
        )

    def with_answers(self) -> "Windows":
        """The windows that hold their answers, to train on.

        Raises:
            UserError: If there are none.
        """
        found = self.take(np.flatnonzero(self.labels[:, 0]))
        if not len(found.labels):
            raise UserError(
                "no window holds a whole answer. Received: "
                f"sequence_length={self.characters.shape[1]}"
            )
        return found

    def score(
        self, names: Sequence[str], outputs: np.ndarray
    ) -> dict[str, float]:
        """Means of the scores of all questions, by name.

        Of several right answers to a question, the most similar counts.

        Args:
            names: Of `SCORES`.
            outputs: Of a `SpanFinder`.

        Raises:
            RuntimeError: If an output is not finite.
        """
        if not np.all(np.isfinite(outputs)):
            raise RuntimeError("the model's outputs are not finite")
        answers = self._answers(outputs)

        def mean(score):
            found = [
                max(score(text, right.text) for right in labels)
                for text, labels in answers
            ]
            return float(np.mean(found))

        return {name: mean(SCORES[name]) for name in names}

    def _answers(self, outputs):
        """The best span of each question, and all right answers to it."""
        (_, contexts), labels = self.examples
        first, last, sums = best_spans(outputs)
        answers = {}
        for window in np.argsort(sums, kind="stable"):  # The best one stays.
            question = self.questions[window]
            start = self.characters[window, first[window], 0]
            end = self.characters[window, last[window], 1]
            answers[question] = contexts[question][start:end], labels[question]
        return answers.values()


def best_spans(
    logits: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and last token of the best span of each window, and their sum.

    Args:
        logits: Of a `SpanFinder`.
    """
    starts, ends = logits[:, 0], logits[:, 1]
    length = starts.shape[-1]
    best = np.full(len(logits), -np.inf)
    first, last = np.zeros((2, len(logits)), "int64")
    for more in range(min(_LONGEST_ANSWER, length)):
        sums = starts[:, : length - more] + ends[:, more:]
        place = sums.argmax(axis=-1)
        found = np.take_along_axis(sums, place[:, None], axis=-1)[:, 0]
        is_better = found > best
        first = np.where(is_better, place, first)
        last = np.where(is_better, place + more, last)
        best = np.where(is_better, found, best)
    return first, last, best


def tokenize(preprocessor: Any, examples: Examples) -> Windows:
    """All windows of some questions, in their order.

    Args:
        preprocessor: That of a `SpanFinder`.
        examples: Questions and contexts with all right answers, the first of
            which becomes the label.
    """
    rows = collections.defaultdict(list)
    for question, window in _encode(preprocessor, *examples.texts):
        is_special = np.array(window.special_tokens_mask, "int32")
        segments = np.array(window.type_ids, "int32")
        context = segments * (1 - is_special)
        characters = np.array(window.offsets, "int32")
        answer, *_ = examples.labels[question]
        rows["token_ids"].append(np.array(window.ids, "int32"))
        rows["segment_ids"].append(segments)
        rows["padding_mask"].append(np.array(window.attention_mask, "int32"))
        rows["context_mask"].append(context)
        rows["characters"].append(characters)
        rows["labels"].append(_find(answer, characters, context))
        rows["questions"].append(question)
    arrays = {name: np.stack(values) for name, values in rows.items()}
    # DistilBERT has no segments.
    inputs = (*preprocessor([""]), "context_mask")
    return Windows(
        {name: arrays[name] for name in inputs},
        arrays["labels"],
        arrays["characters"],
        arrays["questions"],
        examples,
    )


def _encode(
    preprocessor: Any, questions: list[str], contexts: list[str]
) -> Iterator[tuple[int, tokenizers.Encoding]]:
    """Index of the question and tokens of each window."""
    tokenizer = _make_tokenizer(preprocessor.tokenizer)
    most = min(_LONGEST_QUESTION, preprocessor.sequence_length // 4)
    questions = _cut(tokenizer, questions, most)
    _set_windows(tokenizer, preprocessor)
    for start in range(0, len(questions), _QUESTIONS_AT_ONCE):
        block = slice(start, start + _QUESTIONS_AT_ONCE)
        pairs = list(zip(questions[block], contexts[block], strict=True))
        for i, window in enumerate(tokenizer.encode_batch(pairs), start):
            for part in (window, *window.overflowing):
                yield i, part


def _make_tokenizer(tokenizer):
    """KerasHub's tokenizer as one that knows the characters of each token.

    KerasHub alone puts compatibility characters into their normal form.
    """
    tokens = tokenizer.get_vocabulary()
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(
            {token: i for i, token in enumerate(tokens)},
            unk_token=tokenizer.oov_token,
            continuing_subword_prefix=tokenizer.suffix_indicator,
        )
    )
    made.normalizer = tokenizers.normalizers.BertNormalizer(
        handle_chinese_chars=tokenizer.split_on_cjk,
        strip_accents=tokenizer.strip_accents,
        lowercase=tokenizer.lowercase,
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(
        (tokenizer.end_token, tokenizer.end_token_id),
        (tokenizer.start_token, tokenizer.start_token_id),
    )
    return made


def _set_windows(tokenizer, preprocessor):
    """Lets a tokenizer make windows of one length, which overlap."""
    length = preprocessor.sequence_length
    tokenizer.enable_truncation(
        length, stride=min(_OVERLAP, length // 3), strategy="only_second"
    )
    tokenizer.enable_padding(
        length=length,
        pad_id=preprocessor.tokenizer.pad_token_id,
        pad_token=preprocessor.tokenizer.pad_token,
    )


def _cut(tokenizer, questions, most):
    """Questions without the tokens that would leave no room for contexts."""
    found = tokenizer.encode_batch(questions, add_special_tokens=False)
    return [
        question[: max((end for _, end in tokens.offsets[:most]), default=0)]
        for question, tokens in zip(questions, found, strict=True)
    ]


def _find(answer: Answer, characters, context):
    """First and last token of an answer; 0 and 0 if it is not all there."""
    start = answer.answer_start
    end = start + len(answer.text)
    tokens = np.flatnonzero(context)
    left, right = characters[tokens].T
    if not len(tokens) or left[0] > start or right[-1] < end:
        return 0, 0
    inside = tokens[(right > start) & (left < end)]
    return (inside[0], inside[-1]) if len(inside) else (0, 0)


def exact_match(answer: str, right: str) -> float:
    """1 if two answers have the same words, else 0."""
    return float(_words(answer) == _words(right))


def f1(answer: str, right: str) -> float:
    """Harmonic mean of precision and recall of the words of an answer."""
    words, right_words = _words(answer), _words(right)
    common = collections.Counter(words) & collections.Counter(right_words)
    total = len(words) + len(right_words)
    return 2 * common.total() / total if total else 0.0


def _words(text):
    """Words in lower case, without punctuation and articles."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


SCORES = {"exact_match": exact_match, "f1": f1}
