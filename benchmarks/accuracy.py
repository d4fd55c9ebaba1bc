"""Score and gradient on the device, against NumPy float64.

A bound stands beside each error. It follows from the rounding to which the
matrix products may put their operands: u is half the distance of 1 to the next
number. Rounding the deviations Y puts the score off by at most u |G| |Y|, with
the gradient G = Y M, and both operands of that product put G off by
2 u |Y| |M|₂ or less. Another u |Y| |M|₂ is for the M of a rounded covariance,
and u |G| for the type of the gradient. |·| is the root of the sum of squares,
|·|₂ the largest singular value.
"""

import numpy as np
from keras import ops

import keras_istar
from benchmarks import backends
from benchmarks.report import Row
from benchmarks.report import number_row
from benchmarks.report import said

_ERROR = "relative error"
_BOUND = "bound"
# Bits after the leading one, of TF32 in the place of float32.
_BITS = {"float32": 10, "bfloat16": 7, "float16": 10}
# So that no gradient leaves float16's range, as in training with it.
_LOSS_SCALE = 2.0**14


def rows(device: str, tiny: bool) -> list[Row]:
    """Rows for score and gradient with each type and distance of the mean."""
    shape = (3, 32, 8) if tiny else (3, 2048, 768)
    found = []
    for dtype in _BITS:
        run = None
        for mean in (0.0, 50.0):
            spread = np.exp(np.random.default_rng(0).normal(size=shape[-1]))
            normal = np.random.default_rng(1).normal(size=shape)
            states = [
                ops.cast(ops.convert_to_tensor(x.astype("float32")), dtype)
                for x in (normal + mean) * spread
            ]
            run = run or _value_and_gradient(states)
            found += said(_rows(dtype, mean, states, *run(states)))
    return found


def _rows(dtype, mean, states, score, gradients):
    points = _float64(states)
    deviations = points - points.mean(axis=0)
    wanted, by_covariance = _derivative(deviations)
    expected = deviations @ by_covariance
    found = _float64(gradients) / -_LOSS_SCALE
    unit = 2.0 ** -(_BITS[dtype] + 1)
    size, width = np.linalg.norm(deviations), np.linalg.norm(by_covariance, 2)
    norm = np.linalg.norm(expected)
    score = 1 - float(score) / _LOSS_SCALE
    values = {
        "score": (abs(score - wanted) / wanted, unit * norm * size / wanted),
        "gradient": (
            np.linalg.norm(found - expected) / norm,
            unit * (1 + 3 * size * width / norm),
        ),
    }
    return [
        number_row(
            f"{what}, {dtype}, mean {mean:g} standard deviations from 0, "
            f"{backends.FRAMEWORK}",
            dict(zip((_ERROR, _BOUND), map(float, pair), strict=True)),
            _ERROR,
            _BOUND,
            "relative",
            at_most=1.0,
        )
        for what, pair in values.items()
    ]


def _float64(tensors):
    arrays = [ops.convert_to_numpy(ops.cast(x, "float32")) for x in tensors]
    return np.concatenate(arrays).astype("float64")


def _derivative(deviations, shrinkage=0.2):
    """Score of the layer's default, and the gradient's matrix M."""
    degrees, dim = len(deviations) - 1, deviations.shape[1]
    covariance = deviations.T @ deviations / degrees
    trace, identity = np.trace(covariance), np.eye(dim)
    mixed = (1 - shrinkage) * covariance + shrinkage * trace / dim * identity
    square = np.sum(mixed**2)
    score = (trace**2 / square - 1) / (dim - 1)
    by_mixed = 2 * trace / square * identity - 2 * (trace / square) ** 2 * mixed
    by_mixed /= dim - 1
    by_covariance = (1 - shrinkage) * by_mixed
    by_covariance += shrinkage * np.trace(by_mixed) / dim * identity
    return score, 2 / degrees * by_covariance


def _value_and_gradient(states):
    layer = keras_istar.IStarRegularization(strength=_LOSS_SCALE)
    layer.build([x.shape for x in states])

    def penalty(states):
        layer(states, training=True)
        return layer.losses[-1]

    return backends.value_and_gradient(penalty)
