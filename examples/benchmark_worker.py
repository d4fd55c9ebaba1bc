"""Runs one section of the benchmark on one backend, in its own process.

KERAS_BACKEND=jax python examples/benchmark_worker.py penalty rows.json
"""

import importlib
import json
import pathlib
import sys

from benchmark_report import as_dict


def main(section: str, path: str, *options: str) -> None:
    """Writes the rows of the section to `path`."""
    quick = "--quick" in options
    rows = importlib.import_module(f"benchmark_{section}").run(quick)
    if quick:  # Targets mean nothing at toy sizes.
        rows = [row._replace(at_most=None, at_least=None) for row in rows]
    pathlib.Path(path).write_text(json.dumps(list(map(as_dict, rows))))


if __name__ == "__main__":
    main(*sys.argv[1:])
