"""The callback's pass and `predict`, over the same data.

    python examples/benchmark_callback.py "MiniLM size" 64000 pass

prints the peak memory of that pass over so many tokens, in bytes.
"""

import sys

import keras
import tensorflow as tf
from benchmark_models import BERT_BASE
from benchmark_models import MINILM
from benchmark_models import TINY
from benchmark_models import batch
from benchmark_models import classifier
from benchmark_models import compiled
from benchmark_peak import held
from benchmark_peak import measured_apart
from benchmark_peak import peak_above
from benchmark_report import Row
from benchmark_report import memory_row
from benchmark_report import timing_row
from benchmark_timing import alternate

import keras_istar

_PLAIN = "predict"
_ATTACHED = "predict, attached"
_PASS = "callback's pass"


def run(quick: bool) -> list[Row]:
    """Rows for each size."""
    sizes = {TINY: 1_000} if quick else {MINILM: 250_000, BERT_BASE: 100_000}
    rows = []
    for encoder, points in sizes.items():
        rows += _times(encoder, points)
        keras.backend.clear_session()
        rows += _peaks(encoder, points)
    return rows


def _times(encoder, points):
    x = _data(encoder, points)
    plain, attached = _model(encoder), _model(encoder)
    keras_istar.attach(attached)
    sides = {
        _PLAIN: _predict(plain, x),
        _ATTACHED: _predict(attached, x),
        _PASS: _callback_pass(attached, x),
    }
    seconds = alternate(sides, rounds=15, budget=60.0)
    case = f"{encoder}, {points:,} token vectors, TensorFlow"
    return [
        timing_row(case, seconds, _PASS, _PLAIN, at_most=1.15),
        timing_row(case, seconds, _ATTACHED, _PLAIN, at_most=1.01),
    ]


def _peaks(encoder, points):
    few = points // 4
    sides = {
        f"{_PASS}, {count:,} token vectors": (count, _PASS)
        for count in (points, few)
    }
    sides[f"{_PLAIN}, {points:,} token vectors"] = (points, _PLAIN)
    peaks = {
        name: measured_apart(__file__, encoder.name, str(count), side)
        for name, (count, side) in sides.items()
    }
    many_name, few_name, predict_name = sides
    case = f"{encoder}, peak memory, TensorFlow"
    return [
        memory_row(case, peaks, many_name, few_name, at_most=1.05),
        memory_row(case, peaks, many_name, predict_name),
    ]


def peak(encoder_name: str, points: str, side: str) -> int:
    """Peak of one pass or `predict` above what a plain model holds, in bytes.

    The sums that the pass keeps from one epoch to the next count, too.
    """
    encoder = {e.name: e for e in (TINY, MINILM, BERT_BASE)}[encoder_name]
    x = _data(encoder, int(points))
    model = _model(encoder)
    work = _predict(model, x)
    work()
    rest = held()
    if side == _PASS:
        keras_istar.attach(model)
        work = _callback_pass(model, x)
        work()
    return peak_above(rest, work)


def _model(encoder):
    return compiled(classifier(encoder))


def _data(encoder, points):
    """Batches with about so many tokens, counted in every state."""
    x, _ = batch(encoder)
    per_batch = encoder.layers * x["padding_mask"].sum()
    batches = max(1, round(points / per_batch))
    x, _ = batch(encoder, examples=batches * encoder.batch)
    data = tf.data.Dataset.from_tensor_slices(x).batch(encoder.batch)
    options = tf.data.Options()
    # Its thread sleeps twice as long every time, and `predict` does not return
    # before it wakes: up to twice as late.
    options.autotune.enabled = False
    return data.with_options(options)


def _predict(model, x):
    return lambda: model.predict(x, verbose=0)


def _callback_pass(model, x):
    """The pass at the end of an epoch; the one at the start is done here."""
    callback = keras_istar.IStarCallback(x, max_points=10**9, verbose=0)
    callback.set_model(model)
    callback.on_train_begin()
    return lambda: callback.on_epoch_end(0, {})


if __name__ == "__main__":
    print(peak(*sys.argv[1:]))
