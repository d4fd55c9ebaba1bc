"""One run of the study: options -> figures.

As in `recipe.py`, the head is trained first, on the encoder as it is. Runs of
one task and seed share the encoder, the head, the order of examples and the
seeds of dropout: they differ in the regularizer alone. Only with IsoBN the head
is another one, trained on normalized features.
"""

import math
import time
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import classifiers
import keras
import study_head
import study_tasks
import tensorflow as tf
from study_attach import attach
from study_attach import callbacks_for
from study_grid import Run
from study_tasks import Tokens
from text_tasks import TextTask

import keras_istar

_MEASURES = ("isoscore", "isoscore_star", "twonn")
_SAMPLE_POINTS = 2_000  # Of each state, for TwoNN.


class Runner:
    """Does runs one after the other; none depends on those before it.

    What runs have in common is computed once, as long as it is asked for in
    a row.

    Args:
        tasks: The data by the name of the task.
    """

    def __init__(self, tasks: dict[str, TextTask]):
        self._tasks = tasks
        self._parts, self._untrained, self._head = _Last(), _Last(), _Last()

    def __call__(self, run: Run) -> dict[str, Any]:
        """Fine-tunes, and returns what to record.

        Raises:
            UserError: If the options do not fit the model or the task.
            RuntimeError: If the loss is not finite.
        """
        common = (run.task, run.recipe)
        parts = self._parts.get(
            (*common, run.seed), lambda: _tokenize(run, self._data(run))
        )
        before = self._untrained.get(
            common, lambda: _measure(self._classifier(run), parts, run)
        )
        is_normalized = run.method.regularizer == "isobn"
        head = self._head.get(
            (*common, run.seed, is_normalized),
            lambda: study_head.train(
                self._classifier(run), parts.train, parts.test, run
            ),
        )
        figures = _fine_tune(self._classifier(run), head, parts, run)
        after = figures.pop("isotropy")
        return {
            "test": {"head": head.scores, **figures.pop("test")},
            **figures,
            "isotropy": {"before": before, "after": after},
            "examples": {
                name: len(part.labels) for name, part in parts._asdict().items()
            },
        }

    def _data(self, run):
        return self._tasks[run.task]

    def _classifier(self, run):
        return _new_classifier(run, len(self._data(run).classes))


def make_reproducible() -> None:
    """Makes this process compute the same figures every time, to the bit."""
    tf.config.experimental.enable_op_determinism()


class _Parts(NamedTuple):
    train: Tokens
    validation: Tokens
    test: Tokens
    measured: Tokens


class _Last:
    """Keeps the value that was made last."""

    def __init__(self):
        self._key = self._value = None

    def get(self, key, make: Callable[[], Any]):
        if self._key != key:
            self._value = make()
            self._key = key
        return self._value


def _tokenize(run, data):
    recipe = run.recipe
    task = _new_classifier(run, len(data.classes), keep_preprocessor=True)
    train, validation, test = (
        study_tasks.tokenize(task.preprocessor, examples)
        for examples in (
            study_tasks.subset(data.train, recipe.limit, run.seed),
            study_tasks.first(data.validation, recipe.validation_limit),
            study_tasks.first(data.test, recipe.test_limit),
        )
    )
    measured = test.first(recipe.measured_texts)
    return _Parts(
        train, validation.by_length(), test.by_length(), measured.by_length()
    )


def _new_classifier(run, num_classes, keep_preprocessor=False):
    """A classifier as if it were the first in this process."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(run.seed)
    task = classifiers.load_classifier(
        run.recipe.preset, num_classes or 1, run.recipe.sequence_length
    )
    if not keep_preprocessor:
        task.preprocessor = None  # Data are arrays of tokens.
    return task


def _fine_tune(task, head, parts, run):
    recipe = run.recipe
    head.give_to(task)
    layer = attach(task, run.method)
    if head.normalization is not None:
        layer.set_weights(head.normalization)
    _compile(task, parts, run)
    data = study_tasks.inference_batches(parts.train)
    callbacks = callbacks_for(run.method, layer, data, recipe.max_points)
    start = time.monotonic()
    history = _fit(task, parts, run, callbacks)
    seconds = time.monotonic() - start
    test = _scores(task, run.task, parts.test)
    if run.method.regularizer != "none":
        keras_istar.detach(task)
    isotropy = _measure(task, parts, run)
    return {
        "test": {"end": test},
        "epochs": history,
        "isotropy": isotropy,
        "seconds": {"fit": round(seconds, 2)},
    }


def _compile(task, parts, run):
    steps = math.ceil(len(parts.train.labels) / run.recipe.batch_size)
    task.compile(
        optimizer=classifiers.optimizer(
            run.recipe.learning_rate, run.recipe.epochs * steps
        ),
        loss=study_tasks.loss(task.output.shape[-1]),
        # Batches differ in length, and XLA would compile for each: on two CPU
        # cores its steps are no faster, and the first takes longer.
        jit_compile=False,
    )


def _fit(task, parts, run, callbacks):
    """Trains, and returns a dict for each epoch."""
    history = task.fit(
        study_tasks.training_batches(
            parts.train, run.recipe.batch_size, run.seed
        ),
        epochs=run.recipe.epochs,
        shuffle=False,  # The batches are in a new order every epoch.
        verbose=0,
        callbacks=[
            *callbacks,
            _Validation(run.task, parts.validation),
            keras.callbacks.TerminateOnNaN(raise_error=True),
        ],
    ).history
    return [
        {name: float(values[epoch]) for name, values in history.items()}
        for epoch in range(run.recipe.epochs)
    ]


class _Validation(keras.callbacks.Callback):
    """Logs the scores of the validation part after every epoch."""

    def __init__(self, task, tokens):
        super().__init__()
        self._task, self._tokens = task, tokens

    def on_epoch_end(self, epoch, logs=None):
        scores = _scores(self.model, self._task, self._tokens)
        logs.update({f"val_{name}": value for name, value in scores.items()})


def _scores(model, task, tokens):
    outputs = model.predict(study_tasks.inference_batches(tokens), verbose=0)
    return study_tasks.scores(task, outputs, tokens.labels)


def _measure(task, parts, run):
    """Isotropy and dimension of each state and of their union, by name.

    Nothing is attached any more, so that IsoScore* shrinks towards the same
    target, the isotropic one, whatever the method.
    """
    report = keras_istar.measure(
        task,
        study_tasks.inference_batches(parts.measured),
        metrics=_MEASURES,
        sample_points=_SAMPLE_POINTS,
        max_points=2**31 - 1,  # All there are.
        verbose=0,
    )
    return {
        row.layer: {
            "points": row.points,
            **{k: _or_none(value) for k, value in row.values.items()},
        }
        for row in report.rows
    }


def _or_none(value):
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
