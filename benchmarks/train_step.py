"""Train step with and without the attached layer: its time and its memory."""

import statistics
from collections.abc import Callable

import keras

import keras_istar
from benchmarks import backends
from benchmarks import models
from benchmarks import processes
from benchmarks import variants
from benchmarks.backends import BACKEND
from benchmarks.backends import FRAMEWORK
from benchmarks.report import Row
from benchmarks.report import number_row
from benchmarks.report import said
from benchmarks.report import timing_row
from benchmarks.timing import alternate
from benchmarks.timing import is_late
from benchmarks.timing import wait_for_turn

PLAIN = "plain step"
ATTACHED = {
    "every token": {},
    "max_tokens=2048": {"max_tokens": 2048},
    "momentum=0.99": {"momentum": 0.99},
}
_ON_CPU = (models.MINILM, models.BERT_BASE)
ON_GPU = (
    models.BERT_BASE._replace(batch=32),
    models.BERT_BASE._replace(batch=64, length=256),
)
# Seconds for compiling and timing what has been traced.
_RESERVE = 75.0
GPU_POLICY = "mixed_bfloat16"


def rows(device: str, tiny: bool) -> list[Row]:
    """Times for each size, on TensorFlow with and without XLA."""
    if device == "gpu":
        return _gpu_rows(tiny)
    compilations = (False,)
    if BACKEND == "tensorflow" and not tiny:
        compilations += (True,)
    found = []
    for encoder in _encoders(device, tiny):
        for jit_compile in compilations:
            # Models in one process share too much to be freed.
            found += processes.apart(_time_rows, encoder, tiny, jit_compile)
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


def make_model(
    encoder: models.Encoder, side: str, jit_compile: bool = False
) -> keras.Model:
    """One side's compiled model, plain or attached."""
    keras.utils.set_random_seed(0)
    model = models.classifier(encoder)
    if side != PLAIN:
        keras_istar.attach(model, strength=-1.0, **ATTACHED.get(side, {}))
    models.compile_classifier(model, jit_compile)
    return model


def make_step(
    encoder: models.Encoder, side: str, jit_compile: bool = False
) -> Callable[[int], None]:
    """One side's train step, plain or attached."""
    model = make_model(encoder, side, jit_compile)
    with variants.variant(side):
        return backends.train_step(model, *models.batch(encoder))


def _encoders(device, tiny):
    if tiny:
        return (models.TINY,)
    return _ON_CPU if device == "cpu" else ON_GPU


def _case(encoder, device, framework=FRAMEWORK):
    policy = "" if device == "cpu" else f"{GPU_POLICY}, "
    return f"{encoder}, {policy}{framework}"


def _gpu_rows(tiny):
    """Times every size; the steps of all are compiled side by side."""
    keras.config.set_dtype_policy(GPU_POLICY)
    encoders = _encoders("gpu", tiny)
    steps = {
        encoder: {
            side: make_step(encoder, side, True)
            for side in (PLAIN, "every token")
        }
        for encoder in encoders
    }
    more = () if tiny else tuple(ATTACHED)[1:]
    if variants.IS_ASKED_FOR:
        more = variants.NAMES + more
    for side in more:
        if not is_late(_RESERVE):
            steps[encoders[0]][side] = make_step(encoders[0], side, True)
    for sides in steps.values():
        for run in sides.values():
            run(1)
    wait_for_turn()
    found = []
    for encoder, sides in steps.items():
        if is_late():
            break
        seconds = alternate(sides, 3 if tiny else 30, 6.0, 0.0 if tiny else 0.1)
        limits = {"every token": 1.03 if encoder.length == 128 else 1.02}
        case = _case(encoder, "gpu")
        found += said(_rows_against_plain(case, seconds, limits))
        if BACKEND == "jax":
            peaks = {side: step.peak() for side, step in sides.items()}
            memory = _memory_rows(f"{case}, memory as compiled", peaks, "gpu")
            found += said(memory)
    return found


def _rows_against_plain(case, seconds, limits):
    return [
        timing_row(case, seconds, side, PLAIN, at_most=limits.get(side))
        for side in seconds
        if side != PLAIN
    ]


def _time_rows(encoder, tiny, jit_compile):
    """Times the sides in turns, on a CPU."""
    limits = dict.fromkeys(ATTACHED, 1.04) | {"max_tokens=2048": 1.015}
    attached = ("every token",) if tiny else ATTACHED
    steps = {
        side: make_step(encoder, side, jit_compile)
        for side in (PLAIN, *attached)
    }
    seconds = alternate(steps, 3 if tiny else 30, budget=120.0)
    case = _case(encoder, "cpu", FRAMEWORK + " with XLA" * jit_compile)
    return _rows_against_plain(case, seconds, limits)


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
        keras.config.set_dtype_policy(GPU_POLICY)
    step = make_step(encoder, side)
    if BACKEND == "jax":  # Compiled ahead.
        return processes.peak_above(processes.held(), step)
    step(2)  # Tracing and the optimizer's slots are not the step's.
    return statistics.median(
        processes.peak_above(processes.held(), step) for _ in range(3)
    )
