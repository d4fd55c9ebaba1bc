"""Train step with and without the attached layer: its time and its memory."""

import statistics
from collections.abc import Callable

import keras

import keras_istar
from benchmarks import backends
from benchmarks import models
from benchmarks import processes
from benchmarks.backends import BACKEND
from benchmarks.backends import FRAMEWORK
from benchmarks.report import Row
from benchmarks.report import number_row
from benchmarks.report import timing_row
from benchmarks.timing import alternate

PLAIN = "plain step"
ATTACHED = {
    "every token": {},
    "max_tokens=2048": {"max_tokens": 2048},
    "momentum=0.99": {"momentum": 0.99},
}
_ON_CPU = (models.MINILM, models.BERT_BASE)
_ON_GPU = (
    models.BERT_BASE._replace(batch=32),
    models.BERT_BASE._replace(batch=64, length=256),
)
_GPU_POLICY = "mixed_bfloat16"


def rows(device: str, tiny: bool) -> list[Row]:
    """Times for each size, on TensorFlow with and without XLA."""
    compilations = (False,)
    if BACKEND == "tensorflow" and not tiny:
        compilations += (True,)
    found = []
    for encoder in _encoders(device, tiny):
        for jit_compile in compilations:
            # Models in one process share too much to be freed.
            found += processes.apart(
                _time_rows, encoder, device, tiny, jit_compile
            )
    return found


def memory(device: str, tiny: bool) -> list[Row]:
    """Peaks for each size; every side has a process of its own."""
    encoders = _encoders(device, tiny)
    sides = (PLAIN, "every token", "max_tokens=2048")
    if tiny or device == "gpu":  # There each process compiles for long.
        encoders, sides = encoders[:1], sides[:2]
    found = []
    for encoder in encoders:
        peaks = {
            side: processes.apart_for_memory(_peak, encoder, device, side)
            for side in sides
        }
        found += _memory_rows(_case(encoder, device), peaks, device)
    return found


def make_step(
    encoder: models.Encoder, side: str, jit_compile: bool = False
) -> Callable[[int], None]:
    """One side's train step, plain or attached."""
    keras.utils.set_random_seed(0)
    model = models.classifier(encoder)
    if side != PLAIN:
        keras_istar.attach(model, strength=-1.0, **ATTACHED[side])
    models.compile_classifier(model, jit_compile)
    return backends.train_step(model, *models.batch(encoder))


def _encoders(device, tiny):
    if tiny:
        return (models.TINY,)
    return _ON_CPU if device == "cpu" else _ON_GPU


def _case(encoder, device, framework=FRAMEWORK):
    policy = "" if device == "cpu" else f"{_GPU_POLICY}, "
    return f"{encoder}, {policy}{framework}"


def _time_rows(encoder, device, tiny, jit_compile):
    """Times the sides in turns."""
    if device == "gpu":
        keras.config.set_dtype_policy(_GPU_POLICY)
        limits = {"every token": 1.03 if encoder.length == 128 else 1.02}
        budget, shortest = 8.0, 0.0 if tiny else 0.2
    else:
        limits = dict.fromkeys(ATTACHED, 1.04) | {"max_tokens=2048": 1.015}
        budget, shortest = 120.0, 0.0
    attached = ("every token",) if tiny else ATTACHED
    steps = {
        side: make_step(encoder, side, jit_compile)
        for side in (PLAIN, *attached)
    }
    seconds = alternate(steps, 3 if tiny else 30, budget, shortest)
    case = _case(encoder, device, FRAMEWORK + " with XLA" * jit_compile)
    found = [
        timing_row(case, seconds, side, PLAIN, at_most=limits.get(side))
        for side in attached
    ]
    if device == "gpu" and BACKEND == "jax":
        peaks = {side: step.peak() for side, step in steps.items()}
        found += _memory_rows(f"{case}, memory as compiled", peaks, device)
    return found


def _memory_rows(case, peaks, device):
    limit = 1.03 if device == "cpu" else 1.01
    return [
        number_row(case, peaks, side, PLAIN, "MB", at_most=limit)
        for side in peaks
        if side != PLAIN
    ]


def _peak(encoder, device, side):
    """MB at the peak of one step, above those held between steps."""
    if device == "gpu":
        keras.config.set_dtype_policy(_GPU_POLICY)
    step = make_step(encoder, side)
    if BACKEND == "jax":  # Compiled ahead.
        return processes.peak_above(processes.held(), step)
    step(2)  # Tracing and the optimizer's slots are not the step's.
    return statistics.median(
        processes.peak_above(processes.held(), step) for _ in range(3)
    )
