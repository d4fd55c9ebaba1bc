"""The study as a process of its own, on a tiny encoder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the study feeds and trains through TensorFlow",
)
STUDY = Path(__file__).parents[1] / "examples" / "study.py"


@pytest.fixture
def start(preset, table_file, tmp_path):
    """Function that starts a study of two runs."""
    options = ["--tasks", table_file, "--preset", preset, "--seeds", "1"]
    options += ["--regularizers", "none", "istar:1", "--sequence-length", "12"]
    options += ["--limit", "96", "--epochs", "1", "--batch-size", "4"]

    def start(name):
        return subprocess.Popen(
            [sys.executable, STUDY, "--output", tmp_path / name, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    return start


def _records(folder):
    """The lines of the result file, without times."""
    lines = (folder / "results.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        del record["started"], record["seconds"]
    return records


def test_a_killed_study_ends_as_if_it_had_not_been(start, tmp_path):
    whole, killed = start("whole"), start("killed")
    while not killed.stdout.readline().startswith("[1/2]"):
        assert killed.poll() is None
    time.sleep(0.5)  # In the second run.
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    whole.communicate()
    first, second = _records(tmp_path / "whole")
    assert [record["status"] for record in (first, second)] == ["ok", "ok"]
    assert _records(tmp_path / "killed") == [first]
    resumed = start("killed")
    assert resumed.communicate()[0].startswith("[2/2]")
    assert resumed.returncode == 0
    assert _records(tmp_path / "killed") == [first, second]
