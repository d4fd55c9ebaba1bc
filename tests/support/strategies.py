"""Points, masks and numbers that hypothesis makes up."""

import keras
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import ops

BACKEND = keras.backend.backend()
WIDEST = "float32" if BACKEND == "jax" else "float64"
DTYPES = ["float16", "bfloat16", "float32", "float64"]
if BACKEND == "jax":  # There, float64 is off by default.
    DTYPES.remove("float64")


def scales(dtype):
    """Powers of ten that the squares of deviations do not leave."""
    low, high = (-3, 2) if dtype == "float16" else (-18, 18)
    return st.integers(low, high).map(lambda power: 10.0**power)


# Multiples of one thousandth: squares and products of them do not underflow.
units = st.integers(-1000, 1000).map(lambda n: n / 1000)
fractions = st.integers(0, 1000).map(lambda n: n / 1000)


@st.composite
def clouds(draw, dtypes=tuple(DTYPES), furthest=1e3, min_tokens=1):
    """Points `(batch, length, dim)`, all values of a dtype, and its name.

    Their means are up to `furthest` times the widest deviation.
    """
    shape = (
        draw(st.integers(1, 4)),
        draw(st.integers(min_tokens, 12)),
        draw(st.integers(2, 8)),
    )
    dtype = draw(st.sampled_from(dtypes))
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        points = rng.normal(size=shape) * np.exp(2 * rng.normal(size=shape[2:]))
    else:  # Equal tokens, lines, zeros.
        points = draw(arrays("float64", shape, elements=units))
    points = points - np.mean(points, axis=(0, 1))
    widest = np.max(np.abs(points))
    points = points / widest if widest > 1e-9 else np.zeros(shape)
    furthest = min(furthest, 1.0 if dtype == "float16" else np.inf)
    directions = arrays("float64", shape[2:], elements=units)
    points = points + furthest * draw(st.just(0.0) | directions)
    return rounded(draw(scales(dtype)) * points, dtype), dtype


@st.composite
def masked_clouds(draw, **kwargs):
    """Points, a mask `(batch, length)`, and the dtype's name."""
    points, dtype = draw(clouds(**kwargs))
    everything = np.ones(points.shape[:2], bool)
    mask = draw(st.just(everything) | arrays(bool, points.shape[:2]))
    return points, mask, dtype


strengths = st.integers(-1000, 1000).map(lambda n: n / 10)


def as_tensor(points, dtype):
    return ops.cast(ops.convert_to_tensor(points), dtype)


def rounded(points, dtype):
    numbers = ops.cast(as_tensor(points, dtype), WIDEST)
    return ops.convert_to_numpy(numbers).astype("float64")
