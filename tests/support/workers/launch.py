"""Runs worker scripts, each in a process of its own, and collects results.

A worker is started as `worker.py OUTPUT ARGUMENTS...` and saves arrays to the
`.npz` file OUTPUT.
"""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

_FOLDER = pathlib.Path(__file__).parent
_ROOT = _FOLDER.parents[2]


def run_worker(folder, script, *arguments, python=sys.executable, **variables):
    """Arrays that one worker has saved."""
    job = [*arguments], variables
    return run_workers(folder, script, [job], python=python)[0]


def run_workers(folder, script, jobs, python=sys.executable):
    """Arrays that workers have saved which run at the same time.

    Args:
        folder: Where outputs go.
        script: Name of the worker, without `.py`.
        jobs: For each worker its arguments and its environment variables.
        python: Interpreter.
    """
    started = [
        _start(folder / f"{script}_{i}.npz", script, *job, python)
        for i, job in enumerate(jobs)
    ]
    logs = [process.communicate()[0] for process, _ in started]
    for (process, _), log in zip(started, logs, strict=True):
        assert process.returncode == 0, log[-6000:]
    return [_load(output) for _, output in started]


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _start(output, script, arguments, variables, python):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_FOLDER)]),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "CUDA_VISIBLE_DEVICES": "-1",
        **variables,
    }
    command = [python, _FOLDER / f"{script}.py", output, *map(str, arguments)]
    process = subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return process, output


def _load(path):
    with np.load(path) as file:
        return dict(file)
