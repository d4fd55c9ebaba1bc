"""Fine-tuning a KerasHub encoder, from data to figures.

The new head is trained first, on the features of the encoder as it is. While
the head is random, the gradient of the task is weak beside that of the penalty,
and a negative strength erases features before the head has learned to use them.
See Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", ICLR 2022.
"""

import math
import time
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
import numpy as np

import keras_istar
from finetuning import regularizers
from finetuning import spans
from finetuning import tokens
from finetuning.classifiers import load_classifier
from finetuning.command_line import UserError
from finetuning.data import Examples
from finetuning.data import TextData
from finetuning.optimizers import adam
from finetuning.settings import Method
from finetuning.settings import Recipe
from finetuning.tokens import Batches
from finetuning.tokens import Tokens

_HEAD_LEARNING_RATE = 5e-3
_FEATURES_AT_ONCE = 2**28  # Numbers: one GiB.


class Evaluation(NamedTuple):
    """Figures of a classifier on the test part.

    Attributes:
        scores: The task's scores, by name.
        isotropy: Measures of the `union` of the states and of each of them.
    """

    scores: dict[str, float]
    isotropy: dict[str, dict[str, float]]


class Figures(NamedTuple):
    """Figures of a fine-tuning.

    Attributes:
        before: With the head trained, and the encoder as it was.
        after: With all trained.
        epochs: The logs of every epoch.
        num_steps: Training steps.
        num_examples: Examples of each part.
        seconds: Time of the training, without that of the head.
        observed: Result of `observe`, see `finetune`.
    """

    before: Evaluation
    after: Evaluation
    epochs: list[dict[str, float]]
    num_steps: int
    num_examples: dict[str, int]
    seconds: float
    observed: Any = None


def load_task(data: TextData, preset: str, sequence_length: int) -> Any:
    """A pretrained encoder with a new head that fits the data.

    Args:
        data: Data that it is to learn.
        preset: See `classifiers.load_classifier`.
        sequence_length: Tokens to which texts are cut or padded, or of a
            window, see `spans.load_span_finder`.

    Raises:
        UserError: As these two do.
    """
    if data.has_spans:
        return spans.load_span_finder(preset, sequence_length)
    return load_classifier(preset, len(data.classes) or 1, sequence_length)


class _Parts(NamedTuple):
    train: Tokens
    validation: Tokens
    test: Tokens
    measured: Tokens


def finetune(
    task: Any,
    data: TextData,
    recipe: Recipe,
    method: Method,
    seed: int,
    *,
    layers: Sequence[int | str] = ("all",),
    measures: Sequence[str] = ("isoscore",),
    observe: Callable[[Any, Any], Any] | None = None,
    are_alike: bool = False,
    log_dir: str | None = None,
    verbose: int = 1,
) -> Figures:
    """Trains a new model, and leaves it without a regularizer.

    Args:
        task: What `load_task` has returned.
        data: Data that it learns.
        recipe: How to train.
        method: The regularizer to train with.
        seed: Of the subset of the examples and their order. The seed of the
            head and of dropout is that of Keras.
        layers: The states to measure, and to log the isotropy of if the method
            is not I-STAR, as for `keras_istar.attach`.
        measures: Measures of them, as for `keras_istar.measure`.
        observe: Function of the trained classifier and batches of the examples
            that are measured, for further figures.
        are_alike: Whether all batches must have one shape, see `Batches`.
        log_dir: Where to write TensorBoard's logs, None for nowhere.
        verbose: 0 prints nothing, 1 what is done and how far it is.

    Raises:
        UserError: If the method does not fit the model, or `are_alike` leaves
            no batch of a part.
        RuntimeError: If the loss is not finite.
    """
    layer = regularizers.attach(task, method, layers)
    preprocessor, task.preprocessor = task.preprocessor, None
    parts = _tokenize(preprocessor, data, recipe, seed)
    batches = Batches(recipe.batch_size, are_alike)
    _check_batches(parts, batches)

    def evaluate():
        scores = predict_and_score(task, data, parts.test, batches, verbose)
        measured = batches.for_inference(parts.measured)
        return Evaluation(scores, measure(task, measured, layers, measures))

    say = print if verbose else _say_nothing
    if recipe.head_steps:
        say("\nTraining the head, on features of the training texts:")
        train_head(task, parts.train, batches, recipe, verbose)
    say("\nThe test part before fine-tuning:")
    before = evaluate()
    say(
        "\nFine-tuning. Before the first epoch and after each, a pass over the "
        "training texts takes\nthe covariance of their hidden states:"
    )
    passes = regularizers.callbacks_for(
        method,
        layer,
        batches.for_inference(parts.train),
        recipe.max_tokens,
        verbose=verbose,
        log_dir=log_dir,
    )
    validation = _Validation(data, parts.validation, batches)
    callbacks = [*passes, validation, *_tensorboard(log_dir)]
    start = time.monotonic()
    epochs = fit(task, parts.train, batches, recipe, seed, callbacks, verbose)
    seconds = time.monotonic() - start
    # IsoScore* now shrinks towards the same target, the isotropic one, after
    # all methods.
    regularizers.detach(task, layer)
    say("\nThe test part after fine-tuning:")
    after = evaluate()
    observed = observe and observe(task, batches.for_inference(parts.measured))
    task.preprocessor = preprocessor
    sizes = {name: part.num_examples for name, part in parts._asdict().items()}
    num_steps = recipe.epochs * batches.count(parts.train)
    return Figures(before, after, epochs, num_steps, sizes, seconds, observed)


def _say_nothing(text):
    pass


def _check_batches(parts, batches):
    if not all(map(batches.count, parts)):
        raise UserError(
            "where incomplete batches are dropped, `batch_size` must be at "
            "most the number of examples of each part. Received: "
            f"batch_size={batches.size}, parts of "
            f"{[len(part.labels) for part in parts]}"
        )


def _tokenize(preprocessor, data, recipe, seed):
    tokenize = spans.tokenize if data.has_spans else tokens.tokenize
    train, validation, test = (
        tokenize(preprocessor, examples)
        for examples in (
            subset(data.train, recipe.limit, seed),
            first(data.validation, recipe.validation_limit),
            first(data.test, recipe.test_limit),
        )
    )
    if data.has_spans:
        train = train.with_answers()
    measured = test.take(slice(recipe.measured_texts))
    return _Parts(
        train, validation.by_length(), test.by_length(), measured.by_length()
    )


def subset(examples: Examples, limit: int | None, seed: int) -> Examples:
    """Examples drawn at random; those of a lower limit come first."""
    order = np.random.default_rng(seed).permutation(len(examples.labels))
    return _choose(examples, order[:limit])


def first(examples: Examples, limit: int | None) -> Examples:
    """The first examples, the same in every run."""
    return _choose(examples, range(len(examples.labels))[:limit])


def _choose(examples, order):
    texts, labels = examples
    if isinstance(texts, tuple):
        chosen = tuple([column[i] for i in order] for column in texts)
    else:
        chosen = [texts[i] for i in order]
    return Examples(chosen, [labels[i] for i in order])


def train_head(
    task: Any, train: Tokens, batches: Batches, recipe: Recipe, verbose: int
) -> None:
    """Trains all but the encoder, through IsoBN if that is attached.

    The encoder runs once, without dropout; its features then serve for as many
    steps as the head needs, which with few examples are many passes. If the
    features are too many to be kept, as those of all tokens are, they are
    computed in blocks of examples. The penalty is left out: it depends only on
    the encoder.
    """
    features = _first_head_layer(task).input
    own = [name for name in task.input if name not in task.backbone.input]
    encoder = keras.Model(task.inputs, features)
    head = keras.Model(
        [features, *(task.input[name] for name in own)], task.output
    )
    epochs = math.ceil(recipe.head_steps / batches.count(train))
    steps = epochs * batches.count(train)
    _compile(head, adam(_HEAD_LEARNING_RATE, steps), batches)
    for block in _blocks(train, features.shape, batches):
        found = encoder.predict(batches.for_inference(block), verbose=verbose)
        size = len(found)
        head.fit(
            [found, *(block.inputs[name][:size] for name in own)],
            block.labels[:size],
            batch_size=batches.size,
            epochs=epochs,
            verbose=verbose,
            callbacks=[keras.callbacks.TerminateOnNaN(raise_error=True)],
        )


def _blocks(train, shape, batches):
    """Whole batches of examples whose features are not too many."""
    length = next(iter(train.inputs.values())).shape[1]
    numbers = batches.size * math.prod(x or length for x in shape[1:])
    size = max(_FEATURES_AT_ONCE // numbers, 1) * batches.size
    for start in range(0, batches.count(train) * batches.size, size):
        yield train.take(slice(start, start + size))


def _first_head_layer(task):
    """The first layer of the task that is neither its input nor its encoder."""
    return next(
        layer
        for layer in task.layers
        if layer is not task.backbone
        and not isinstance(layer, keras.layers.InputLayer)
    )


def fit(
    task: Any,
    train: Tokens,
    batches: Batches,
    recipe: Recipe,
    seed: int,
    callbacks: Sequence[keras.callbacks.Callback],
    verbose: int,
) -> list[dict[str, float]]:
    """Trains everything, and returns the logs of every epoch."""
    steps = recipe.epochs * batches.count(train)
    _compile(task, make_optimizer(recipe, steps), batches)
    history = task.fit(
        batches.for_training(train, seed),
        epochs=recipe.epochs,
        shuffle=False,  # The batches are in a new order every epoch.
        verbose=verbose,
        callbacks=[
            *callbacks,
            keras.callbacks.TerminateOnNaN(raise_error=True),
        ],
    ).history
    return [
        {name: float(values[epoch]) for name, values in history.items()}
        for epoch in range(recipe.epochs)
    ]


def _tensorboard(log_dir):
    return [] if log_dir is None else [keras.callbacks.TensorBoard(log_dir)]


def _compile(model, optimizer, batches):
    is_number = model.output.shape[-1] == 1
    model.compile(
        optimizer=optimizer,
        loss="mse"
        if is_number
        else keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[] if is_number else ["accuracy"],
        # XLA would compile for every length of a batch.
        jit_compile="auto" if batches.are_alike else False,
    )


def make_optimizer(recipe: Recipe, steps: int) -> keras.optimizers.Optimizer:
    """The optimizer of a recipe for a number of steps."""
    if recipe.optimizer == "adamw":
        return keras.optimizers.AdamW(recipe.learning_rate)
    return adam(recipe.learning_rate, steps)


class _Validation(keras.callbacks.Callback):
    """Logs the scores of the validation part after every epoch."""

    def __init__(self, data, part, batches):
        super().__init__()
        self._arguments = data, part, batches

    def on_epoch_end(self, epoch, logs=None):
        scores = predict_and_score(self.model, *self._arguments, verbose=0)
        logs.update({f"val_{name}": value for name, value in scores.items()})


def predict_and_score(
    model: keras.Model,
    data: TextData,
    part: Tokens,
    batches: Batches,
    verbose: int = 0,
) -> dict[str, float]:
    """Scores of a model on some examples, by name."""
    outputs = model.predict(batches.for_inference(part), verbose=verbose)
    return part.score(data.scores, outputs)


def measure(
    model: keras.Model,
    batches: Any,
    layers: Sequence[int | str],
    measures: Sequence[str],
    **options: Any,
) -> dict[str, dict[str, float]]:
    """Measures of each state and of their union, by name."""
    report = keras_istar.measure(
        model,
        batches,
        list(layers),
        measures=list(measures),
        max_tokens=None,
        verbose=0,
        **options,
    )
    return {
        row.layer: {"tokens": row.tokens, **row.values} for row in report.rows
    }
