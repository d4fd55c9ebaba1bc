"""Measures a model on R replicas, or on one device for R = 0.

Arguments: the file to write, and R.
"""

import contextlib
import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
from mirrored import make_strategy
from small_models import bert_classifier
from small_models import token_batches

import keras_istar
from keras_istar._src.measure.isoscore_metric import IsoScore
from keras_istar._src.measure.measure import measure


def measured(scope):
    """Every number of a report; 19 examples do not fill the last batch."""
    with scope:
        model = bert_classifier()
    layer = keras_istar.attach(model, strength=-1.0)
    layer.set_shrinkage_covariance(np.diag(np.arange(1.0, layer.dim + 1)))
    x, _ = token_batches(19, 8)
    report = measure(model, x, batch_size=8)
    return {
        f"{row.layer}_{name}": value
        for row in report.rows
        for name, value in {"tokens": row.tokens, **row.values}.items()
    }


def sampled(scope):
    """TwoNN from fewer points than there are."""
    with scope:
        model = bert_classifier()
    x, _ = token_batches(40, 8)
    report = measure(
        model, x, [0], measures="twonn", batch_size=8, sample_tokens=30
    )
    return report.rows[0].values


def metric(scope):
    """The metric in `evaluate` and `fit`, outputs off centre and masked."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(19, 5, 4)) * [1, 2, 3, 9] + [0, 100, 0, 0]
    x[:8, 2:] = 0
    y = np.zeros((19, 5, 6))
    keras.utils.set_random_seed(0)
    with scope:
        inputs = keras.Input((5, 4))
        masked = keras.layers.Masking()(inputs)
        model = keras.Model(inputs, keras.layers.Dense(6)(masked))
        model.compile(keras.optimizers.SGD(0.0), "mse", metrics=[IsoScore()])
    evaluated = model.evaluate(x, y, 8, verbose=0, return_dict=True)
    fitted = model.fit(x, y, 8, epochs=2, verbose=0).history["isoscore"]
    outputs = model.predict(x, verbose=0)[np.any(x != 0, axis=-1)]
    return {
        "evaluated": evaluated["isoscore"],
        "fitted": fitted,
        "outputs": outputs,
    }


if __name__ == "__main__":
    strategy = make_strategy(int(sys.argv[2]))
    results = {}
    for function in (measured, sampled, metric):
        scope = strategy.scope() if strategy else contextlib.nullcontext()
        for key, value in function(scope).items():
            results[f"{function.__name__}/{key}"] = value
    np.savez(sys.argv[1], **results)
