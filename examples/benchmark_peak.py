"""Peak memory of a piece of work.

On a GPU it is what TensorFlow's allocator says. On a CPU it is the process's
peak resident memory, which Linux can reset (`VmHWM`); TensorFlow is told to use
the C library's allocator and that to give large blocks back at once, so that
resident memory follows live tensors.
"""

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

_ALLOCATION = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
    "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1",
}


def measured_apart(script: str, *arguments: str) -> float:
    """The number that `script` prints last, run in a process of its own."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(
        command,
        env=os.environ | _ALLOCATION,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def peak_above_rest(work: Callable[[], object]) -> int:
    """Bytes that `work` needs at its peak, above those held before it."""
    return peak_above(held(), work)


def peak_above(rest: int, work: Callable[[], object]) -> int:
    """Bytes that are held at the peak of `work`, above `rest`.

    At least one page, the unit in which a CPU's memory becomes resident.
    """
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.reset_memory_stats("GPU:0")
        work()
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    else:
        # Writing 5 makes the peak the present resident memory.
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        work()
        peak = _resident("VmHWM")
    return max(peak - rest, os.sysconf("SC_PAGE_SIZE"))


def held() -> int:
    """Bytes that are held now."""
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["current"]
    return _resident("VmRSS")


def _resident(field):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")
