"""What the penalty costs, in time and memory, against what it must cost.

    python examples/benchmark.py
    python examples/benchmark.py --only train-step,callback

prints tables and writes them to `benchmark.md` and `benchmark.json` as each
section ends; sections that are there already, from the same machine and
versions, stay unless asked for. Sides run in turns in one process; a ratio is
the median over neighbouring runs, with its quartiles beside it. Processor time
is given too: it counts all cores, and hardly moves when something else runs on
the machine. Sections:

    train-step  train step with and without the attached layer
    penalty     forward and backward of the penalty alone, against its
                arithmetic (4 n d² operations at the rate of a large matrix
                product), the textbook way, and the PyPI package IsoScore if
                it is installed
    memory      peak memory of the train step
    growth      exponents of the cost in layers, tokens and width
    callback    the callback's pass against `predict`
    sampling    error that `max_tokens` brings, on pretrained MiniLM

Where a backend sees a GPU, it runs there; targets are for two CPU cores, where
it takes one to two hours and 12 GB of memory.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

from benchmark_report import from_dict
from benchmark_report import markdown

import keras_istar

_HERE = pathlib.Path(__file__).parent
_SECTIONS = {
    "train-step": ("Train step", ("tensorflow", "jax")),
    "penalty": ("Penalty alone, forward and backward", ("tensorflow",)),
    "memory": ("Peak memory of a train step", ("tensorflow",)),
    "growth": ("Growth of the penalty's cost", ("tensorflow",)),
    "callback": ("Callback's pass, and inference", ("tensorflow",)),
    "sampling": ("Error of a random subset of tokens", ("tensorflow",)),
}
_GPU_NAMES = {  # Programs: a GPU a line.
    "tensorflow": """
import tensorflow as tf
for gpu in tf.config.list_physical_devices("GPU"):
    print(tf.config.experimental.get_device_details(gpu)["device_name"])
""",
    "jax": """
import jax
for gpu in jax.devices("gpu"):
    print(gpu.device_kind)
""",
}
_PACKAGES = ("keras", "keras-hub", "tensorflow", "jax", "torch", "IsoScore")


def main() -> None:
    options = _options()
    machine = _machine()
    sections = _finished(options.output, machine)
    for name in options.only:
        sections[name] = []
        for backend in _SECTIONS[name][1]:
            sections[name] += _run_section(name, backend, options.quick)
            _write(options.output, machine, sections)
    print(_report(machine, sections))


def _options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--only",
        type=_section_names,
        default=list(_SECTIONS),
        help="sections to run, with commas between them",
    )
    parser.add_argument(
        "--quick", action="store_true", help="toy sizes, to see that it runs"
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("."),
        help="folder for benchmark.md and benchmark.json",
    )
    return parser.parse_args()


def _section_names(text):
    names = text.split(",")
    unknown = sorted(set(names) - set(_SECTIONS))
    if unknown:
        raise argparse.ArgumentTypeError(
            f"sections are {', '.join(_SECTIONS)}. Received: {text}"
        )
    return names


def _finished(folder, machine):
    """Rows of the sections in the folder, if they are of this machine."""
    path = folder / "benchmark.json"
    if not path.exists():
        return {}
    record = json.loads(path.read_text())
    return record["sections"] if record["machine"] == machine else {}


def _run_section(name, backend, quick):
    """The worker's rows; none if the backend is not installed."""
    if importlib.util.find_spec(backend) is None:
        print(f"{name}: {backend} is not installed, left out", flush=True)
        return []
    print(f"{name}: running on {backend}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.json"
        worker = _HERE / "benchmark_worker.py"
        arguments = [name.replace("-", "_"), path, *["--quick"] * quick]
        subprocess.run(
            [sys.executable, worker, *arguments],
            env=os.environ
            | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"},
            check=True,
        )
        return json.loads(path.read_text())


def _machine():
    machine = {
        "device": _accelerator() or _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "keras-istar": keras_istar.__version__,
    }
    for package in _PACKAGES:
        try:
            machine[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            machine[package] = "not installed"
    return machine


def _accelerator():
    """Name of the first GPU that a backend sees, empty if there is none."""
    for program in _GPU_NAMES.values():
        # In a process that ends: JAX takes most of a GPU's memory at once.
        names = subprocess.run(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ).stdout.splitlines()
        if names:
            return names[0]
    return ""


def _processor():
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _write(folder, machine, sections):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.md").write_text(_report(machine, sections))
    text = json.dumps({"machine": machine, "sections": sections}, indent=2)
    (folder / "benchmark.json").write_text(text + "\n")


def _report(machine, sections):
    titled = {
        title: [from_dict(row) for row in sections[name]]
        for name, (title, _) in _SECTIONS.items()
        if name in sections
    }
    return markdown(machine, titled)


if __name__ == "__main__":
    main()
