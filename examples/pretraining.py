"""For pre-training: small BERTs with and without I-STAR, and what they learn.

    python examples/pretraining.py --output pretraining.jsonl

trains BERTs of four layers from random weights as masked language models, on
sentences of film reviews and of SST-2, one for each method and seed. What they
have learned is shown by their perplexity of masked words in held-out sentences,
and by two accuracies on the film reviews: of a logistic regression on the mean
of the last hidden state, and after fine-tuning without a regularizer. Beside
them stands a BERT that is not pre-trained. Each run adds a line to the file,
and runs that it holds, with the same options, are not repeated. The table at
the end is of all runs in the file. A run takes five minutes on a CPU core.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import NamedTuple

import keras
import keras_hub
import numpy as np
import pandas as pd
import tensorflow as tf
from finetuning import data
from finetuning.command_line import Parser
from finetuning.command_line import UserError
from finetuning.command_line import option
from finetuning.command_line import positive_int
from finetuning.files import append
from finetuning.optimizers import adam
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import keras_istar

NOT_PRETRAINED = "not pre-trained"
METHODS = {
    NOT_PRETRAINED: None,
    "none": None,
    "target=0.1": {"target": 0.1},
    "target=0.3": {"target": 0.3},
    "target=0.6": {"target": 0.6},
    "strength=-1": {"strength": -1.0, "momentum": 0.99},
    "strength=1": {"strength": 1.0, "momentum": 0.99},
}
# Options that change results; each line of the output holds them.
SETTINGS = ("steps", "tasks", "vocabulary_size")
RESERVED = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NUM_LAYERS = 4
LENGTH = 24  # Tokens of a sentence; the mean is 15.
MASKED = 0.3  # Part of the words; the more, the more a short training learns.
BATCH_SIZE = 32
FINETUNING_EPOCHS = 2


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    output: str = option(
        "results",
        "file to which each run adds a line of JSON; runs that it holds are "
        "not repeated",
        required=True,
    )
    methods: tuple[str, ...] = option(
        "runs",
        f"some of {', '.join(map(repr, METHODS))} (default: all)",
        tuple(METHODS),
        nargs="+",
        choices=list(METHODS),
        metavar="METHOD",
    )
    seeds: int = option(
        "runs", "number of seeds (default: %(default)s)", 2, type=positive_int
    )
    steps: int = option(
        "runs",
        "steps of pre-training (default: %(default)s)",
        2_000,
        type=positive_int,
    )
    tasks: tuple[str, ...] = option(
        "data",
        "tasks of single sentences, as --task of finetune.py takes them: "
        "pre-training learns from the sentences of all of them, fine-tuning "
        "is on the first (default: film-reviews glue/sst2)",
        ("film-reviews", "glue/sst2"),
        nargs="+",
    )
    data_dir: str | None = option(
        "data", "folder of tensorflow-datasets, for GLUE (default: its own)"
    )
    vocabulary_size: int = option(
        "data",
        "word pieces to make of the sentences (default: %(default)s)",
        5_000,
        type=positive_int,
    )

    @property
    def settings(self) -> dict[str, int | str]:
        """What their lines say of all of these runs."""
        settings = {name: getattr(self, name) for name in SETTINGS}
        return settings | {"tasks": " ".join(self.tasks)}


def run(options: Options) -> None:
    """Does the runs that are left, and prints the table."""
    path = Path(options.output)
    append(path, "")  # Fails before training if it cannot be written.
    done = read(path)
    runs = [
        {"method": method, "seed": seed, **options.settings}
        for seed in range(options.seeds)
        for method in dict.fromkeys(options.methods)
    ]
    runs = [x for x in runs if not is_done(x, done)]
    if runs:
        tasks = [data.load(x, options.data_dir) for x in options.tasks]
        sentences = Sentences.of(tasks, options.vocabulary_size)
    for line in runs:
        method, seed = line["method"], line["seed"]
        line |= learn(sentences, tasks[0], method, seed, options.steps)
        append(path, json.dumps(line) + "\n")
        print(line, flush=True)
    print(table(read(path)))


def is_done(run: dict, lines: list[dict]) -> bool:
    """Whether one of the lines is of this run."""
    return any(run.items() <= line.items() for line in lines)


def read(path: Path) -> list[dict]:
    """The lines of the file; settings that a line lacks had their defaults.

    Raises:
        UserError: If a line is not from this program.
    """
    defaults = Options(str(path)).settings
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = []
    for number, content in enumerate(text.splitlines(), start=1):
        try:
            line = defaults | json.loads(content)
        except (ValueError, TypeError):
            line = {}
        if not {"method", "seed"} <= line.keys():
            raise UserError(
                f"line {number} of {path} is not from this program: choose "
                f"another --output, or remove it. Received: {content:.80}"
            )
        lines.append(line)
    return lines


def table(lines: list[dict]) -> str:
    """Means and standard deviations over the seeds, by method.

    Runs whose settings differ have rows of their own, which name them.
    """
    frame = pd.DataFrame(lines).drop(columns="seed")
    alike = [x for x in SETTINGS if frame[x].nunique() == 1]
    keys = ["method", *(x for x in SETTINGS if x not in alike)]
    groups = frame.drop(columns=alike).groupby(keys, sort=False)
    shown = groups.agg(_mean_and_deviation)
    return shown.assign(seeds=groups.size()).to_string(sparsify=False)


def _mean_and_deviation(values):
    if values.isna().all():
        return ""
    spread = f" ± {values.std():.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread}"


class Sentences(NamedTuple):
    """Sentences to learn from, and those held out.

    Attributes:
        tokenizer: Of a vocabulary made of the sentences to learn from.
        train: Sentences to learn from.
        held_out: Inputs, labels and weights of a masked language model: the
            same masks for all runs.
    """

    tokenizer: keras_hub.tokenizers.Tokenizer
    train: list[str]
    held_out: tuple[dict, np.ndarray, np.ndarray]

    @classmethod
    def of(
        cls, tasks: Sequence[data.TextData], vocabulary_size: int
    ) -> "Sentences":
        """The sentences of some tasks.

        Args:
            tasks: Their test parts are held out. No text to learn from is
                part of a held-out sentence: SST-2 has phrases, and it has
                sentences in common with the film reviews.
            vocabulary_size: Word pieces to make.

        Raises:
            UserError: If texts are not single sentences.
        """
        for task in tasks:
            if not isinstance(task.train.texts, list):
                raise UserError(
                    "`tasks` must have single sentences. Received: "
                    f"tasks={task.name}"
                )
        held_out = [text for task in tasks for text in task.test.texts]
        all_held_out = "\n".join(map(_letters, held_out))
        train = [
            text
            for task in tasks
            for text in task.train.texts
            if _letters(text) not in all_held_out
        ]
        print("Making a vocabulary of", len(train), "sentences", flush=True)
        vocabulary = keras_hub.tokenizers.compute_word_piece_vocabulary(
            tf.data.Dataset.from_tensor_slices(train).batch(1_000),
            vocabulary_size,
            lowercase=True,
            strip_accents=True,
            reserved_tokens=RESERVED,
        )
        tokenizer = keras_hub.tokenizers.BertTokenizer(
            vocabulary, lowercase=True
        )
        keras.utils.set_random_seed(0)
        masked = make_masker(tokenizer)(tf.constant(held_out))
        masked = keras.tree.map_structure(np.asarray, masked)
        return cls(tokenizer, train, masked)


def _letters(text):
    return "".join(filter(str.isalpha, text.lower()))


def make_masker(
    tokenizer: keras_hub.tokenizers.Tokenizer,
) -> keras_hub.models.BertMaskedLMPreprocessor:
    """Makes a preprocessor that masks words at random, anew in every call."""
    return keras_hub.models.BertMaskedLMPreprocessor(
        tokenizer,
        sequence_length=LENGTH,
        mask_selection_rate=MASKED,
        mask_selection_length=int(MASKED * LENGTH),
    )


def learn(
    sentences: Sentences,
    task: data.TextData,
    method: str,
    seed: int,
    steps: int,
) -> dict[str, float]:
    """Pre-trains and fine-tunes a model, and returns the figures."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.BertBackbone(
        sentences.tokenizer.vocabulary_size(),
        num_layers=NUM_LAYERS,
        num_heads=4,
        hidden_dim=128,
        intermediate_dim=512,
        max_sequence_length=LENGTH,
        dropout=0.0,  # Too short a training to overfit.
    )
    figures = {}
    if method != NOT_PRETRAINED:
        figures = pretrain(backbone, sentences, METHODS[method], seed, steps)
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        sentences.tokenizer, sequence_length=LENGTH
    )
    return {
        **figures,
        "probe_accuracy": probe(backbone, preprocessor, task),
        "accuracy": finetune(backbone, preprocessor, task),
    }


def pretrain(
    backbone: keras.Model,
    sentences: Sentences,
    options: dict | None,
    seed: int,
    steps: int,
) -> dict[str, float]:
    """Trains an encoder as a masked language model.

    Args:
        backbone: The encoder.
        sentences: What to learn from.
        options: Of `keras_istar.attach`, None for no regularizer.
        seed: Of the order of sentences.
        steps: Training steps.

    Returns:
        Perplexity of held-out masked words, and IsoScore of the union of all
        layers and of the last layer.
    """
    masked_lm = keras_hub.models.BertMaskedLM(backbone)
    if options is not None:
        keras_istar.attach(masked_lm, **options)
    masked_lm.compile(
        adam(1e-3, steps),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[
            keras.metrics.SparseCategoricalCrossentropy(
                name="cross_entropy", from_logits=True
            )
        ],
    )
    batches = (
        tf.data.Dataset.from_tensor_slices(sentences.train)
        .shuffle(len(sentences.train), seed=seed)
        .repeat()
        .batch(BATCH_SIZE)
        .map(make_masker(sentences.tokenizer), tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )
    masked_lm.fit(batches, steps_per_epoch=steps, verbose=0)
    inputs, labels, weights = sentences.held_out
    logs = masked_lm.evaluate(
        inputs,
        labels,
        BATCH_SIZE,
        sample_weight=weights,
        verbose=0,
        return_dict=True,
    )
    if options is not None:
        keras_istar.detach(masked_lm)
    report = keras_istar.measure(
        backbone,
        {name: inputs[name] for name in backbone.input},
        measures=["isoscore"],
        verbose=0,
    )
    isoscore = {row.layer: row.values["isoscore"] for row in report.rows}
    return {
        "perplexity": math.exp(logs["cross_entropy"]),
        "isoscore_union": isoscore["union"],
        "isoscore_last": isoscore[f"layer_{NUM_LAYERS - 1}"],
    }


def probe(
    backbone: keras.Model, preprocessor: Any, task: data.TextData
) -> float:
    """Test accuracy of a logistic regression on frozen sentence embeddings."""
    parts = []
    for texts, labels in (task.train, task.test):
        inputs = preprocessor(tf.constant(texts))
        states = backbone.predict(inputs, BATCH_SIZE, verbose=0)
        mask = np.asarray(inputs["padding_mask"])[..., None]
        total = np.sum(states["sequence_output"] * mask, axis=1)
        parts.append((total / mask.sum(axis=1), labels))
    # Scaled, as the widths of dimensions are what a regularizer changes.
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2_000))
    return model.fit(*parts[0]).score(*parts[1])


def finetune(
    backbone: keras.Model, preprocessor: Any, task: data.TextData
) -> float:
    """Fine-tunes an encoder as a classifier, and returns its test accuracy."""
    classifier = keras_hub.models.BertTextClassifier(
        backbone, len(task.classes), preprocessor=preprocessor
    )
    texts, labels = map(np.asarray, task.train)
    steps = FINETUNING_EPOCHS * math.ceil(len(texts) / BATCH_SIZE)
    classifier.compile(
        adam(3e-4, steps),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    classifier.fit(
        texts, labels, BATCH_SIZE, epochs=FINETUNING_EPOCHS, verbose=0
    )
    texts, labels = map(np.asarray, task.test)
    logs = classifier.evaluate(
        texts, labels, BATCH_SIZE, verbose=0, return_dict=True
    )
    return logs["accuracy"]


def main(argv: list[str] | None = None) -> None:
    """Runs the program; a user error ends it with one line, exit code 2."""
    Parser("pretraining.py", __doc__, Options).run(run, argv)


if __name__ == "__main__":
    main()
