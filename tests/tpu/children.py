"""Runs the programs of this folder, each in a process with its own backend."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

_FOLDER = pathlib.Path(__file__).parent
_ROOT = _FOLDER.parents[1]


@functools.cache
def run(program, backend, *arguments):
    """What the `main(*arguments)` of a program returns, by way of JSON.

    Args:
        program: Name of a module in this folder.
        backend: Keras backend to run it with.
        *arguments: Strings.
    """
    code = (
        f"import json, sys, {program}\n"
        f"result = {program}.main(*sys.argv[2:])\n"
        "open(sys.argv[1], 'w').write(json.dumps(result))"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "result.json")
        child = subprocess.run(
            [sys.executable, "-c", code, str(path), *arguments],
            env=_environment(backend),
            capture_output=True,
            text=True,
        )
        if child.returncode:
            raise RuntimeError(f"{program} failed:\n{child.stderr[-4000:]}")
        return json.loads(path.read_text())


def _environment(backend):
    paths = [str(_ROOT), str(_FOLDER), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "KERAS_BACKEND": backend,
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
