"""How precisely the penalty computes, on every device."""

from typing import Any

import keras
from keras import ops


def matmul(a: Any, b: Any) -> Any:
    """`a @ b`, where a TPU would take float32 for bfloat16.

    One bfloat16 pass would put the score off by up to 2e-5 and its gradient by
    2e-3, even though deviations from the mean are multiplied; three passes, or
    the TF32 of recent GPUs, are as good as float32. TensorFlow has no such
    choice for one product: on a TPU, turn off
    `tf.config.experimental.enable_tensor_float_32_execution` for all.
    """
    if keras.backend.backend() == "jax":
        from jax import numpy

        return numpy.matmul(a, b, precision="high")
    return ops.matmul(a, b)


def moments_dtype(dtype: Any) -> str:
    """float64 for float64 states, float32 for every narrower type."""
    is_double = keras.backend.standardize_dtype(dtype) == "float64"
    return "float64" if is_double else "float32"
