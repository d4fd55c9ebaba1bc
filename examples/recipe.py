"""Fine-tuning a KerasHub classifier with I-STAR, from preset to figures.

The new head is trained first, on the features of the encoder as it is. While
the head is random, the task's gradient is no match for that of the penalty,
and a negative strength erases features before the head has found them. See
Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", ICLR 2022.
"""

import argparse
import math
from collections.abc import Sequence
from typing import Any

import classifiers
import devices
import keras
import tensorflow as tf
from classifiers import Evaluation
from command_line import UserError
from text_tasks import Examples
from text_tasks import TextTask

import keras_istar

_HEAD_LEARNING_RATE = 5e-3


def finetune(
    data: TextTask, options: argparse.Namespace
) -> tuple[Evaluation, Evaluation]:
    """Loads, attaches, trains and saves a classifier.

    Args:
        data: What to learn.
        options: The options of `finetune.py`.

    Returns:
        Figures on the test part, with the head trained, and with all trained.

    Raises:
        UserError: If the options do not fit each other or the model.
    """
    scope = devices.prepare(options)
    keras.utils.set_random_seed(options.seed)
    with scope:
        task = classifiers.load_classifier(
            options.preset, len(data.classes), options.sequence_length
        )
        if devices.needs_static_shapes(options):
            classifiers.use_integer_masks(task)
        regularizer = attach(task, options)
        print("\nTraining the head:")
        train_head(task, data, options)
        classifiers.compile_classifier(
            task, options.learning_rate, options.epochs * steps(data, options)
        )
    test = batches(data.test, options)
    print("\nThe test part before fine-tuning:")
    before = classifiers.evaluate(task, options.layers, test)
    print("\nFine-tuning:")
    train(task, data, options)
    print("\nThe test part after fine-tuning:")
    after = classifiers.evaluate(task, options.layers, test)
    if options.output is not None:
        if regularizer is not None:
            detach(task, regularizer)
        task.save_to_preset(options.output)
    return before, after


def train_head(
    task: keras.Model, data: TextTask, options: argparse.Namespace
) -> None:
    """Fits all but the encoder, in one pass over the training part."""
    task.backbone.trainable = False
    classifiers.compile_classifier(
        task, _HEAD_LEARNING_RATE, steps(data, options)
    )
    task.fit(
        batches(data.train, options, options.seed),
        shuffle=False,  # `batches` has done it.
        callbacks=[keras.callbacks.TerminateOnNaN(raise_error=True)],
    )
    task.backbone.trainable = True


def attach(task: keras.Model, options: argparse.Namespace) -> Any:
    """Attaches what the options ask for.

    Returns:
        The regularizer; or what only logs; or None if nothing is attached.
    """
    try:
        if options.regularizer == "istar":
            return keras_istar.attach(
                task,
                options.layers,
                options.strength,
                options.shrinkage,
                options.momentum,
            )
        regularizer = _make_baseline(options)
        if regularizer is not None:
            keras_istar.attach_regularizer(task, regularizer)
        if options.log_dir is None:
            return regularizer
        observer = keras_istar.attach(task, options.layers, strength=0.0)
        return observer if regularizer is None else regularizer
    except ValueError as error:
        raise UserError(str(error)) from error


def _make_baseline(options):
    if options.regularizer == "cosreg":
        return keras_istar.CosineRegularization(options.strength)
    if options.regularizer == "isobn":
        return keras_istar.IsotropicBatchNormalization()
    return None


def detach(task: keras.Model, regularizer: Any) -> None:
    """Leaves a plain KerasHub classifier that answers as before.

    Args:
        task: The classifier.
        regularizer: What `attach` has returned.
    """
    if isinstance(regularizer, keras_istar.IsotropicBatchNormalization):
        # x ↦ (θ∘x) W is x ↦ x (diag(θ) W), and dropout in between commutes.
        *_, head = (x for x in task.layers if isinstance(x, keras.layers.Dense))
        scale = keras.ops.cast(regularizer.scale(), head.kernel.dtype)
        head.kernel.assign(scale[:, None] * head.kernel)
    keras_istar.detach(task)


def train(
    task: keras.Model,
    data: TextTask,
    options: argparse.Namespace,
    more_callbacks: Sequence[keras.callbacks.Callback] = (),
) -> keras.callbacks.History:
    """Fits a compiled and attached classifier; raises if the loss is NaN."""
    callbacks = [
        keras.callbacks.TerminateOnNaN(raise_error=True),
        *more_callbacks,
    ]
    if options.regularizer == "istar" or options.log_dir is not None:
        callbacks.insert(
            0,
            keras_istar.IStarCallback(
                batches(data.train, options), log_dir=options.log_dir
            ),
        )
    if options.log_dir is not None:
        callbacks.append(keras.callbacks.TensorBoard(options.log_dir))
    return task.fit(
        batches(data.train, options, options.seed),
        validation_data=batches(data.validation, options),
        epochs=options.epochs,
        shuffle=False,
        callbacks=callbacks,
    )


def batches(
    examples: Examples,
    options: argparse.Namespace,
    shuffle_seed: int | None = None,
) -> tf.data.Dataset:
    """Batches as the options and the devices want them."""
    return classifiers.batches(
        examples,
        options.batch_size,
        shuffle_seed,
        drop_remainder=devices.needs_static_shapes(options),
    )


def steps(data: TextTask, options: argparse.Namespace) -> int:
    """Number of training steps in an epoch."""
    number = len(data.train.labels) / options.batch_size
    is_cut = devices.needs_static_shapes(options)
    return math.floor(number) if is_cut else math.ceil(number)


def table(
    before: Evaluation,
    after: Evaluation,
    data: TextTask,
    options: argparse.Namespace,
) -> str:
    """Lines with what was done, and the figures before and after it."""
    numbers = {
        name: getattr(options, name)
        for name in ("strength", "shrinkage", "momentum")
    }
    method = [
        options.regularizer,
        *(f"{name} {x:g}" for name, x in numbers.items() if x is not None),
    ]
    lines = [
        f"{data.name}: {', '.join(method)}, "
        f"{options.epochs * steps(data, options)} steps, "
        f"{len(data.test.labels)} test examples",
        f"{'':<22}{'before':>8}{'after':>8}",
        f"{'accuracy':<22}{before.accuracy:8.3f}{after.accuracy:8.3f}",
    ]
    for name, score in before.isotropy.items():
        row = f"IsoScore {name}"
        lines.append(f"{row:<22}{score:8.3f}{after.isotropy[name]:8.3f}")
    return "\n".join(lines)
