"""Train step with and without the attached layer.

    python examples/benchmark_train_step.py "MiniLM size" "no jit"

prints the rows of one size as JSON.
"""

import json
import subprocess
import sys

import keras
from benchmark_models import BERT_BASE
from benchmark_models import MINILM
from benchmark_models import TINY
from benchmark_models import batch
from benchmark_models import classifier
from benchmark_models import compiled
from benchmark_report import Row
from benchmark_report import as_dict
from benchmark_report import from_dict
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
    on_jax = keras.backend.backend() == "jax"
    compilations = ("jit",) if on_jax else ("no jit", "jit")
    rows = []
    for encoder in (TINY,) if quick else (MINILM, BERT_BASE):
        for compilation in compilations:
            rows += _run_apart(encoder, compilation)
    return rows


def _run_apart(encoder, compilation):
    """Rows from a process of its own: models share too much to be freed."""
    done = subprocess.run(
        [sys.executable, __file__, encoder.name, compilation],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [from_dict(row) for row in json.loads(done.stdout.splitlines()[-1])]


def compare_sides(encoder_name: str, compilation: str) -> list[Row]:
    """Times the sides in turns."""
    encoder = {e.name: e for e in (TINY, MINILM, BERT_BASE)}[encoder_name]
    jit_compile = compilation == "jit"
    steps = {_PLAIN: _train_step(encoder, jit_compile, None)}
    for side, (options, _) in _SIDES.items():
        steps[side] = _train_step(encoder, jit_compile, options)
    seconds = alternate(
        steps, rounds=3 if encoder is TINY else 30, budget=120.0
    )
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


if __name__ == "__main__":
    print(json.dumps(list(map(as_dict, compare_sides(*sys.argv[1:])))))
