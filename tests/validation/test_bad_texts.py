"""What is said of data that the preprocessor of a KerasHub task cannot take."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_istar
from keras_istar._src.compat import keras_data

TEXTS = ["a good film", "the plot is bad", "fine", "not very good"]


def dataset(x):
    return tf.data.Dataset.from_tensor_slices(x)


UNKNOWN = tf.data.Dataset.from_generator(
    lambda: [TEXTS, TEXTS[:2]], output_signature=tf.TensorSpec(None, "string")
)
TOKENIZER = (
    "`data` must hold one text an example, for the tokenizer of the KerasHub "
    "task. Received: "
)
NO_TEXTS = [
    *[
        (data, f"{TOKENIZER}{item} in data")
        for data, item in [
            (["a b", None], "None"),
            (["a b", float("nan")], "nan"),
            ([1, 2], "1"),
            ([["a"], ["b", "c"]], "['a']"),
            ((TEXTS, [*TEXTS[:3], 5]), "5"),
            ({"text": [*TEXTS, b"fine", ()]}, "()"),
        ]
    ],
    *[
        (data, f"{TOKENIZER}shape {shape} and dtype {dtype}")
        for data, shape, dtype in [
            (np.arange(4), "(4,)", "int64"),
            (np.ones((4, 3), "float32"), "(4, 3)", "float32"),
            (np.array([TEXTS]), "(1, 4)", "str480"),
            (np.array(["a b", None]), "(2,)", "object"),
            ({"token_ids": np.ones((2, 8), "int32")}, "(2, 8)", "int32"),
            (dataset(TEXTS), "()", "string"),
            (dataset(np.arange(4)).batch(2), "(None,)", "int64"),
            (dataset((TEXTS, TEXTS)), "()", "string"),
            (UNKNOWN, "<unknown>", "string"),
        ]
    ],
    (
        {"text": TEXTS},
        "`data` must be what the preprocessor of the KerasHub task takes. "
        "Received: data of type dict",
    ),
    (
        (TEXTS, TEXTS[:3]),
        "`data` must be of one length. Received: lengths=[4, 3]",
    ),
    *[
        (
            data,
            "`data` must be what the model's `fit` takes as `x`: arrays, "
            "nested tuples or dicts of them, a dataset, or strings if the "
            "model is a KerasHub task. "
            f"Received: data of type {type(data).__name__}",
        )
        for data in ("a b", b"a b", None, 5, {"a b"}, range(3), list)
    ],
]


def measure(task, data):
    keras_istar.measure(task, data, measures="isoscore", verbose=0)


def fit(task, data):
    keras_istar.attach(task)
    task.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
    try:
        callback = keras_istar.IStarCallback(data, verbose=0)
        task.fit(TEXTS, np.arange(4) % 2, verbose=0, callbacks=[callback])
    finally:
        keras_istar.detach(task)


@pytest.mark.parametrize("function", [measure, fit])
def test_data_that_are_no_texts(tiny_classifier, function):
    task = tiny_classifier()
    before = [weight.numpy() for weight in task.weights]
    for data, message in NO_TEXTS:
        with pytest.raises(ValueError) as error:
            function(task, data)
        assert str(error.value) == message
    assert not [name for name in vars(task) if "istar" in name]
    for weight, value in zip(task.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_data_that_are_texts(tiny_classifier):
    task = tiny_classifier()
    for data in (
        TEXTS,
        [text.encode() for text in TEXTS],
        np.array(TEXTS),
        np.array(TEXTS, "object"),
        np.array(TEXTS, "S"),
        (TEXTS, TEXTS),
        [],
        np.array([]),
        tf.constant(TEXTS),
        dataset(TEXTS).batch(2),
        dataset((TEXTS, [0, 1, 0, 1])).batch(2),
    ):
        keras_data.check_data(task, data)
