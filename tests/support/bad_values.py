"""Wrong values of all kinds of arguments, and what is said of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

NAN, INF = np.nan, np.inf
POINTS = np.random.default_rng(0).normal(size=(4, 3, 5)).astype("float32")
DATA = np.random.default_rng(1).normal(size=(8, 6, 4)).astype("float32")


class Unknown:
    """Nothing that anybody expects, of the same text in every process."""

    def __repr__(self):
        return "<unknown>"


UNKNOWN = Unknown()


def rule(argument, text, value):
    return f"`{argument}` must be {text}. Received: {argument}={value!r:.200}"


def no_tensors(argument):
    """Wrong types of a tensor, and what is said of them."""
    values = [
        None,
        "text",
        b"text",
        UNKNOWN,
        len,
        {"a": 1},
        [[1, 2], [3]],
        [[10**400, 1], [2, 3]],
        np.ones((4, 5), "complex64"),
        np.array([["a", "b"], ["c", "d"]]),
        np.array([[1, None], [2, 3]]),
        keras.Input((5,), name="symbolic"),
        tf.sparse.from_dense([[1.0, 0.0], [0.0, 1.0]]),
    ]
    text = "a tensor or array of numbers"
    return [(value, rule(argument, text, value)) for value in values]


def no_reals(argument):
    """Wrong types, NaN, infinity and huge numbers."""
    kinds = {
        "a real number": ["1", UNKNOWN, True, 1j, [0.1], np.ones(2), {}],
        "a finite number": [NAN, INF, -INF],
        "a number that float32 can hold": [1e39, -1e39, 10**400],
    }
    return [
        (value, rule(argument, text, value))
        for text, values in kinds.items()
        for value in values
    ]


def no_fractions(argument, text="between 0 and 1", ends=()):
    return no_reals(argument) + [
        (value, rule(argument, text, value)) for value in (-0.1, 1.1, 9, *ends)
    ]


def no_positive_ints(argument, text="a positive integer", at_most=2147483647):
    return [
        (value, rule(argument, text, value))
        for value in ("1", UNKNOWN, True, 1.0, NAN, INF, [1], 0, -1)
    ] + [
        (value, rule(argument, f"at most {at_most}", value))
        for value in (at_most + 1, 10**400)
    ]


def no_seeds():
    text = "an integer from 0 to 2147483647"
    return [
        (value, rule("seed", text, value))
        for value in ("1", UNKNOWN, True, 1.0, NAN, [1], -1, 2**31, 10**400)
    ]


def no_choices(argument, text):
    return [
        (value, rule(argument, text, value))
        for value in ("yes", UNKNOWN, 2, -1, NAN, [1], 10**400)
    ]


def no_points(argument):
    short = f"`{argument}` must have at least two dimensions, `(..., dim)`. "
    narrow = f"`{argument}` must have a last axis of known size, at least 2. "
    return no_tensors(argument) + [
        (array, f"{text}Received: {argument}.shape={np.shape(array)}")
        for text, array in [
            (short, 1.0),
            (short, []),
            (short, np.ones(5)),
            (narrow, np.ones((4, 1))),
            (narrow, np.ones((4, 0))),
        ]
    ]


def no_covariances(argument):
    square = f"`{argument}` must be a square matrix `(dim, dim)`. "
    narrow = f"`{argument}` must have a last axis of known size, at least 2. "
    return no_tensors(argument) + [
        (array, f"{text}Received: {argument}.shape={np.shape(array)}")
        for text, array in [
            (square, 1.0),
            (square, []),
            (square, np.ones(5)),
            (square, np.ones((5, 4))),
            (square, np.ones((5, 5, 5))),
            (narrow, np.ones((1, 1))),
            (narrow, np.ones((0, 0))),
        ]
    ]


def no_shrinkage_covariances(argument):
    fit = f"`{argument}` must have shape (5, 5) to fit dim=5. "
    return no_covariances(argument) + [
        (np.eye(4), f"{fit}Received: {argument}.shape=(4, 4)")
    ]


def no_values_of_covariances(argument):
    finite = f"`{argument}` must be finite. "
    lopsided, negative = np.eye(5), np.diag([2.0, 1.0, 1.0, -0.5, 1.0])
    lopsided[0, 1] = 0.5
    return [
        (value, f"{finite}Received: NaN or infinity in {argument}")
        for value in (np.full((5, 5), NAN), np.diag([1, 1, INF, 1, 1]))
    ] + [
        (
            lopsided,
            f"`{argument}` must be symmetric. Received: {argument}[0, 1]=0.5, "
            f"{argument}[1, 0]=0.0",
        ),
        (
            negative,
            f"`{argument}` must have no variance below 0 on its diagonal. "
            f"Received: {argument}[3, 3]=-0.5",
        ),
    ]


def no_masks(name):
    fit = f"`mask` must have the shape of `{name}` without its last axis, "
    return [
        (np.ones(shape), f"{fit}(4, 3). Received: mask.shape={shape}")
        for shape in [(), (0,), (4,), (3, 4), (4, 3, 5)]
    ]


def no_keras_arguments():
    text = (
        "`**kwargs` must be arguments of `keras.layers.Layer`, such as `name` "
        "and `dtype`. Received: "
    )
    return [
        (kwargs, f"{text}{kwargs!r:.200}")
        for kwargs in [
            {"strenght": 1.0},
            {"autocast": True},
            {"dtype": "float7"},
            {"dtype": 5},
            {"name": 5},
            {"trainable": "yes"},
        ]
    ]


def rows(function, argument, cases):
    """One row of the table for each wrong value of an argument."""
    return [
        pytest.param(
            function, {argument: value}, text, id=f"{argument}-{value!r:.20}"
        )
        for value, text in cases
    ]


def unpacked(function, cases):
    return [pytest.param(function, kwargs, text) for kwargs, text in cases]
