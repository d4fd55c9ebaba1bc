"""Runs one section of the benchmark on one backend, in its own process.

KERAS_BACKEND=jax python examples/benchmark_worker.py penalty rows.json
"""

import importlib
import json
import pathlib
import sys

from benchmark_report import as_dict

import keras_istar


def main(section: str, path: str, *options: str) -> None:
    """Writes the rows of the section, and facts of the machine, to `path`."""
    quick = "--quick" in options
    rows = importlib.import_module(f"benchmark_{section}").run(quick)
    if quick:  # Targets mean nothing at toy sizes.
        rows = [row._replace(at_most=None, at_least=None) for row in rows]
    machine = {"device": _device(), "keras-istar": keras_istar.__version__}
    text = json.dumps({"machine": machine, "rows": list(map(as_dict, rows))})
    pathlib.Path(path).write_text(text)


def _device():
    """Name of the accelerator in use, None if there is none."""
    import tensorflow as tf

    for device in tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_device_details(device)["device_name"]
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
