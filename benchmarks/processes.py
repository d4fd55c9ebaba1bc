"""Work in a process of its own, and its peak memory.

On a GPU, memory is that of the backend's allocator. On a CPU it is the
process's resident memory, whose peak Linux can reset (`VmHWM`); TensorFlow is
told to use the C library's allocator and that to give large blocks back at
once, so that resident memory follows live tensors.
"""

import concurrent.futures
import importlib
import multiprocessing
import os
import pathlib
import unittest.mock
from collections.abc import Callable
from typing import Any

_ALLOCATION = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
    "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1",
}


def apart(function: Callable, *arguments: Any, **environment: str) -> Any:
    """Calls `function(*arguments)` in a new process.

    Args:
        function: A function of a module, other than `__main__`.
        *arguments: Its arguments.
        **environment: Variables that the process has in addition.
    """
    spawn = multiprocessing.get_context("spawn")
    with (
        unittest.mock.patch.dict(os.environ, environment),
        concurrent.futures.ProcessPoolExecutor(1, spawn) as pool,
    ):
        return pool.submit(function, *arguments).result()


def call(name: str, *arguments: Any) -> Any:
    """Calls a function by its name, `"penalty.rows"`.

    The caller need not import its module, and Keras with it.
    """
    module, function = name.split(".")
    module = importlib.import_module(f"benchmarks.{module}")
    return getattr(module, function)(*arguments)


def apart_for_memory(function: Callable, *arguments: Any) -> Any:
    """Calls `function` in a new process that can measure its memory."""
    return apart(function, *arguments, **_ALLOCATION)


def held() -> float:
    """MB that are held now."""
    memory = _gpu_memory()
    return _resident("VmRSS") if memory is None else memory[0]


def peak_above(rest: float, run: Callable[[int], object]) -> float:
    """MB held at the peak of `run(1)`, above `rest`.

    They are at least one page, the unit in which a CPU's memory becomes
    resident.

    Raises:
        RuntimeError: On a GPU with JAX, whose allocator cannot forget a peak,
            if more was held at some time before.
    """
    before = _gpu_memory(forget_peak=True)
    if before is None:
        # Writing 5 makes the peak the present resident memory.
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        run(1)
        peak = _resident("VmHWM")
    else:
        run(1)
        _, peak = _gpu_memory()
        if peak <= before[1]:
            raise RuntimeError(
                "The peak is hidden by an earlier one. "
                f"Received: before={before[1]} MB, peak={peak} MB"
            )
    return max(peak - rest, os.sysconf("SC_PAGE_SIZE") / 1e6)


def _gpu_memory(forget_peak=False):
    """MB in use and at the peak so far, None if there is no GPU."""
    from benchmarks import backends

    if not backends.gpu_name():
        return None
    if backends.BACKEND == "jax":
        stats = backends.jax.devices()[0].memory_stats()
        return stats["bytes_in_use"] / 1e6, stats["peak_bytes_in_use"] / 1e6
    cuda = backends.torch.cuda
    if forget_peak:
        cuda.reset_peak_memory_stats()
    return cuda.memory_allocated() / 1e6, cuda.max_memory_allocated() / 1e6


def _resident(field):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1]) / 1e6
    raise OSError(f"/proc/self/status has no {field}")
