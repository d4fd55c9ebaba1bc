"""Peak memory of a train step, each side in a process of its own.

    python examples/benchmark_memory.py "MiniLM size" "plain step"

prints the peak of one step above what is held between steps, in bytes.
"""

import statistics
import sys

from benchmark_models import BERT_BASE
from benchmark_models import MINILM
from benchmark_models import TINY
from benchmark_models import TextbookPenalty
from benchmark_models import batch
from benchmark_models import classifier
from benchmark_models import compiled
from benchmark_peak import measured_apart
from benchmark_peak import peak_above_rest
from benchmark_report import Row
from benchmark_report import memory_row

import keras_istar

_PLAIN = "plain step"
_TEXTBOOK = "concatenate, covariance, eigenvalues, autodiff"
_SIDES = {
    "every token": ({}, 1.03),
    "max_tokens=2048": ({"max_tokens": 2048}, 1.03),
}
_STEPS = 3


def run(quick: bool) -> list[Row]:
    """Rows for each size; every side is a process."""
    rows = []
    for encoder in (TINY,) if quick else (MINILM, BERT_BASE):
        peaks = {
            side: measured_apart(__file__, encoder.name, side)
            for side in (_PLAIN, *_SIDES, _TEXTBOOK)
        }
        case = f"{encoder}, TensorFlow"
        for side, (_, at_most) in _SIDES.items():
            rows.append(memory_row(case, peaks, side, _PLAIN, at_most=at_most))
        rows.append(memory_row(case, peaks, _TEXTBOOK, _PLAIN))
    return rows


def peak_of_step(encoder_name: str, side: str) -> float:
    """Median over some steps, in bytes."""
    encoder = {e.name: e for e in (TINY, MINILM, BERT_BASE)}[encoder_name]
    model = classifier(
        encoder, TextbookPenalty() if side == _TEXTBOOK else None
    )
    if side in _SIDES:
        keras_istar.attach(model, **_SIDES[side][0])
    compiled(model)
    x, y = batch(encoder)
    for _ in range(2):  # Tracing and the optimizer's slots are not the step's.
        model.train_on_batch(x, y)
    return statistics.median(
        peak_above_rest(lambda: model.train_on_batch(x, y))
        for _ in range(_STEPS)
    )


if __name__ == "__main__":
    print(peak_of_step(*sys.argv[1:]))
