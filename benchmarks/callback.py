"""The callback's pass and `predict`, over the same data."""

import tensorflow as tf

import keras_istar
from benchmarks import models
from benchmarks import processes
from benchmarks.backends import repeated
from benchmarks.report import Row
from benchmarks.report import number_row
from benchmarks.report import timing_row
from benchmarks.timing import alternate

_PLAIN = "predict"
_ATTACHED = "predict, attached"
_PASS = "callback's pass"


def rows(device: str, tiny: bool) -> list[Row]:
    """Times and peaks for each size."""
    sizes = {models.MINILM: 250_000, models.BERT_BASE: 100_000}
    found = []
    for encoder, tokens in ({models.TINY: 1_000} if tiny else sizes).items():
        found += processes.apart(_time_rows, encoder, tokens)
        found += _memory_rows(encoder, tokens)
    return found


def _time_rows(encoder, tokens):
    data = _data(encoder, tokens)
    plain, attached = _model(encoder), _model(encoder)
    keras_istar.attach(attached, strength=-1.0)
    sides = {
        _PLAIN: _predict(plain, data),
        _ATTACHED: _predict(attached, data),
        _PASS: _callback_pass(attached, data),
    }
    seconds = alternate(sides, rounds=15, budget=60.0)
    case = f"{encoder}, {tokens:,} token vectors, TensorFlow"
    return [
        timing_row(case, seconds, _PASS, _PLAIN, at_most=1.15),
        timing_row(case, seconds, _ATTACHED, _PLAIN, at_most=1.01),
    ]


def _memory_rows(encoder, tokens):
    sides = [(_PASS, tokens), (_PASS, tokens // 4), (_PLAIN, tokens)]
    many, few, predict = names = [
        f"{side}, {count:,} token vectors" for side, count in sides
    ]
    peaks = {
        name: processes.apart_for_memory(_peak, encoder, count, side)
        for name, (side, count) in zip(names, sides, strict=True)
    }
    case = f"{encoder}, peak memory, TensorFlow"
    return [
        number_row(case, peaks, many, few, "MB", at_most=1.05),
        number_row(case, peaks, many, predict, "MB"),
    ]


def _peak(encoder, tokens, side):
    """Peak of one pass or `predict` above what a plain model holds, in MB.

    The sums that the pass keeps from one epoch to the next count, too.
    """
    data = _data(encoder, tokens)
    model = _model(encoder)
    run = _predict(model, data)
    run(1)
    rest = processes.held()
    if side == _PASS:
        keras_istar.attach(model, strength=-1.0)
        run = _callback_pass(model, data)
        run(1)
    return processes.peak_above(rest, run)


def _model(encoder):
    model = models.classifier(encoder)
    models.compile_classifier(model)
    return model


def _data(encoder, tokens):
    """Batches with about so many tokens, counted in every state."""
    x, _ = models.batch(encoder)
    per_batch = encoder.layers * x["padding_mask"].sum()
    batches = max(1, round(tokens / per_batch))
    x, _ = models.batch(encoder, examples=batches * encoder.batch)
    data = tf.data.Dataset.from_tensor_slices(x).batch(encoder.batch)
    options = tf.data.Options()
    # Its thread sleeps twice as long every time, and `predict` does not return
    # before it wakes: up to twice as late.
    options.autotune.enabled = False
    return data.with_options(options)


def _predict(model, data):
    return repeated(lambda: model.predict(data, verbose=0))


def _callback_pass(model, data):
    """The pass at the end of an epoch; the one at the start is done here."""
    callback = keras_istar.IStarCallback(data, max_tokens=None, verbose=0)
    callback.set_model(model)
    callback.on_train_begin()
    return repeated(lambda: callback.on_epoch_end(0, {}))
