"""What the penalty costs, in time and memory, against what it must cost.

    python benchmarks
    python benchmarks --only train-step,callback
    python benchmarks --device gpu

prints tables and writes them to `cpu.md` and `cpu.json`, or `gpu.md` and
`gpu.json`, as each section ends; sections that are there already, from the same
machine and versions, stay unless asked for. Sides run in turns in one process;
a ratio is the median over neighboring runs, with its quartiles beside it.
Processor time is given too: it counts all cores, and hardly moves when
something else runs on the machine. Sections:

    train-step  train step with and without the attached layer
    penalty     forward and backward of the penalty alone, against its
                arithmetic (4 n d² operations at the rate of a large matrix
                product), reading and writing the states at the rate of a
                copy, the textbook way, and the PyPI package IsoScore if it
                is installed
    accuracy    score and gradient of the penalty against NumPy float64 (GPU)
    memory      peak memory of the train step
    growth      exponents of the cost in layers, tokens and width (CPU)
    callback    the callback's pass against `predict` (CPU)
    sampling    error that `max_tokens` brings, on pretrained MiniLM (CPU)
    counts      operations, bytes, products and fusions of the compiled
                programs, exactly, with JAX (CPU)
    gpu-programs
                kernels, bytes, memory and collectives of what JAX compiles
                for GPUs, on a machine without one (CPU)

Targets on a CPU are for two cores, where everything takes one to two hours and
12 GB of memory. A GPU needs JAX or PyTorch, but no TensorFlow, and is meant to
take less than six minutes. No case starts later than `--seconds` allows:

    python benchmarks --device gpu --seconds 300 --backend jax --variants

leaves out what PyTorch would run, and times the kernel with other choices too.
On JAX these are one state or twelve in a product instead of four, the gradients
of four states in a product instead of one, and float32 products of bfloat16
states. They are in `benchmarks/variants.py`.
"""

import argparse
import importlib.util
import pathlib
import platform
import sys
import tempfile
import time
import traceback
from typing import NamedTuple

if not __package__:  # `python benchmarks` puts this very folder on the path.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from benchmarks import report
from benchmarks import timing
from benchmarks.processes import apart
from benchmarks.processes import call


class _Section(NamedTuple):
    """Backends for each device; of `"a or b"`, the first that is installed."""

    function: str
    cpu: tuple[str, ...]
    gpu: tuple[str, ...] = ()


_SECTIONS = {
    "train-step": _Section(
        "train_step.rows", ("tensorflow", "jax"), ("jax or torch",)
    ),
    "penalty": _Section("penalty.rows", ("tensorflow",), ("jax", "torch")),
    "accuracy": _Section("accuracy.rows", (), ("jax or torch",)),
    "memory": _Section("train_step.memory", ("tensorflow",), ("jax or torch",)),
    "growth": _Section("penalty.growth", ("tensorflow",)),
    "callback": _Section("callback.rows", ("tensorflow",)),
    "sampling": _Section("sampling.rows", ("tensorflow",)),
    "counts": _Section("counts.rows", ("jax",)),
    "gpu-programs": _Section("gpu_programs.rows", ("jax",)),
}


def main() -> None:
    """Runs what the command line asks for."""
    options = _options()
    if options.render is not None:
        print(report.write(options.render, *report.read(options.render)))
        return
    with tempfile.TemporaryDirectory() as cache:
        _run(options, cache)


def _options():
    parser = argparse.ArgumentParser(
        prog="python benchmarks",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "gpu"), default="cpu", help="default: cpu")
    add("--only", help="sections to run, with commas between them")
    add(
        "--tiny",
        action="store_true",
        help="toy sizes, to see that it runs; a CPU does for --device gpu",
    )
    add(
        "--backend",
        choices=("tensorflow", "jax", "torch"),
        help="leave out what others than this one run",
    )
    add(
        "--seconds",
        type=float,
        default=float("inf"),
        help="time after which no further case starts (GPU)",
    )
    add(
        "--variants",
        action="store_true",
        help="also other choices than the kernel makes (GPU)",
    )
    add(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("costs"),
        help="folder for the figures (default: costs)",
    )
    add(
        "--render",
        type=pathlib.Path,
        metavar="FILE",
        help="run nothing, write the Markdown file beside this JSON file",
    )
    options = parser.parse_args()
    known = [n for n, s in _SECTIONS.items() if getattr(s, options.device)]
    given = known if options.only is None else options.only.split(",")
    if not set(given) <= set(known):
        parser.error(
            f"sections on a {options.device} are {', '.join(known)}. "
            f"Received: --only {options.only}"
        )
    options.only = given
    options.deadline = time.time() + options.seconds
    return options


def _run(options, cache):
    start = time.perf_counter()
    machine = _machine(options, cache)
    file = f"{options.device}{'-tiny' * options.tiny}.json"
    sections, failed = _finished(options.output / file, machine), []
    for name in options.only:
        sections[name] = []
        for names in getattr(_SECTIONS[name], options.device):
            backend = _installed(names, options)
            if options.backend not in (None, backend):
                continue
            if backend is None:
                print(f"{name}: {names} is not installed, left out", flush=True)
                continue
            if time.time() > options.deadline:
                failed.append(f"{name} on {backend}, for want of time")
                continue
            seconds = time.perf_counter() - start
            print(f"{seconds:4.0f} s, {name}: {backend}", flush=True)
            try:
                sections[name] += apart(
                    call,
                    _SECTIONS[name].function,
                    options.device,
                    options.tiny,
                    **_environment(options, backend, cache),
                )
            except Exception:  # The other sections are worth having.
                traceback.print_exc()
                failed.append(f"{name} on {backend}")
        if options.tiny:  # Targets mean nothing at toy sizes.
            sections[name] = [
                row._replace(at_most=None, at_least=None)
                for row in sections[name]
            ]
        report.write(options.output / file, machine, sections)
    print(report.markdown(machine, {n: sections[n] for n in options.only}))
    seconds = time.perf_counter() - start
    print(f"{seconds:.0f} s in all, written to {options.output / file}")
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}")


def _machine(options, cache):
    """The device and all versions."""
    names = " or ".join(
        backends
        for name in options.only
        for backends in getattr(_SECTIONS[name], options.device)
    )
    backend = _installed(names, options)
    if backend is None:
        sys.exit(f"These sections need {names}. Received: {options.only}")
    environment = _environment(options, backend, cache)
    machine = apart(call, "backends.machine", **environment)
    if options.device == "gpu" and not machine["device"] and not options.tiny:
        sys.exit(f"{backend} sees no GPU; --tiny tries everything on the CPU")
    machine["device"] = machine["device"] or _processor()
    return machine


def _processor():
    info = pathlib.Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _finished(path, machine):
    """Rows of the sections in the file, if they are of this machine."""
    if not path.exists():
        return {}
    measured_on, sections = report.read(path)
    return sections if measured_on == machine else {}


def _installed(names, options):
    names = names.split(" or ")
    if options.backend in names:
        names = [options.backend]
    for name in names:
        if importlib.util.find_spec(name) is not None:
            return name
    return None


def _environment(options, backend, cache):
    environment = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
    if options.tiny:  # Compiling would take nearly all the time.
        environment["XLA_FLAGS"] = (
            "--xla_backend_optimization_level=0 "
            "--xla_llvm_disable_expensive_passes=true"
        )
    if options.device == "cpu":
        hidden = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
        return environment | hidden
    return environment | {
        timing.DEADLINE: str(options.deadline),
        "KERAS_ISTAR_BENCHMARK_VARIANTS": str(int(options.variants)),
        # PyTorch needs some of the GPU's memory too.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        # Steps whose memory is measured were compiled before, for their times:
        # the compiler's trials would take more memory than the step.
        "JAX_COMPILATION_CACHE_DIR": cache,
    }


if __name__ == "__main__":
    main()
