"""Train step with and without the attached layer."""

import keras
from benchmark_models import BERT_BASE
from benchmark_models import MINILM
from benchmark_models import TINY
from benchmark_models import batch
from benchmark_models import classifier
from benchmark_models import compiled
from benchmark_report import Row
from benchmark_report import timing_row
from benchmark_timing import alternate

import keras_istar

_PLAIN = "plain step"
_SIDES = {
    "every token": ({}, 1.04),
    "max_tokens=2048": ({"max_tokens": 2048}, 1.015),
    "momentum=0.99": ({"momentum": 0.99}, 1.04),
}


def run(quick: bool) -> list[Row]:
    """Rows for each size, with and without XLA where there is a choice."""
    encoders = (TINY,) if quick else (MINILM, BERT_BASE)
    on_jax = keras.backend.backend() == "jax"
    rows = []
    for encoder in encoders:
        for jit_compile in (True,) if on_jax else (False, True):
            rows += _compare(encoder, jit_compile, quick)
            keras.backend.clear_session()
    return rows


def _compare(encoder, jit_compile, quick):
    steps = {_PLAIN: _train_step(encoder, jit_compile, None)}
    for side, (options, _) in _SIDES.items():
        steps[side] = _train_step(encoder, jit_compile, options)
    seconds = alternate(steps, 3 if quick else 30, budget=90.0)
    case = f"{encoder}, {_framework(jit_compile)}"
    return [
        timing_row(case, seconds, side, _PLAIN, at_most=at_most)
        for side, (_, at_most) in _SIDES.items()
    ]


def _train_step(encoder, jit_compile, options):
    keras.utils.set_random_seed(0)
    model = classifier(encoder)
    if options is not None:
        keras_istar.attach(model, strength=-1.0, **options)
    compiled(model, jit_compile)
    x, y = batch(encoder)
    return lambda: model.train_on_batch(x, y)


def _framework(jit_compile):
    if keras.backend.backend() == "jax":
        return "JAX"
    return "TensorFlow with XLA" if jit_compile else "TensorFlow"
