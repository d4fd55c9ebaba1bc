"""Kills training, saving and downloads at random moments, and runs them again.

    python tests/faults/kill.py --kills 30 --seed 0

Every scenario ends with a run that nobody kills, whose result must be that of
a run that never was. Needs the TensorFlow backend and `os.fork`.
"""

import argparse
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "examples"), str(Path(__file__).parent)]

import victims  # noqa: E402

MAX_DELAY = 0.05  # Seconds between a victim's word and its end.
SILENCE = 600.0  # Seconds after which a victim is stuck.


def start(victim, folder):
    """A child process at work; its id and a pipe with its words, one a line."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    code = 1
    try:
        os.close(reading)
        victim(folder, lambda word: os.write(writing, f"{word}\n".encode()))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def words(reading):
    """What the victim says, as it says it, until it ends."""
    said = b""
    while True:
        if not select.select([reading], [], [], SILENCE)[0]:
            raise AssertionError("the victim is stuck")
        chunk = os.read(reading, 4096)
        if not chunk:
            return
        *lines, said = (said + chunk).split(b"\n")
        yield from (line.decode() for line in lines)


def run(victim, folder):
    """Runs a victim to its end; everything it has said."""
    child, reading = start(victim, folder)
    said = list(words(reading))
    os.close(reading)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "the victim failed"
    return said


def kill(victim, folder, word, count, delay):
    """Kills a victim some time after it said `word` for the nth time.

    Returns:
        Whether it was still at work.
    """
    child, reading = start(victim, folder)
    for said in words(reading):
        count -= said == word
        if count == 0:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            break
    os.close(reading)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"the victim failed by itself: {code}"
    return code != 0


def campaign(victim, folder, kills, rng):
    """Kills a victim again and again, then lets it end.

    Returns:
        The words after which it was killed.
    """
    whole, damaged = folder / "whole", folder / "killed"
    for path in (whole, damaged):
        path.mkdir(parents=True)
    places = run(victim, whole)
    # All places alike, however often a victim comes by.
    kinds = sorted(set(places))
    done = []
    while len(done) < kills:
        word = kinds[len(done) % len(kinds)]
        count = rng.randint(1, places.count(word))
        if kill(victim, damaged, word, count, rng.uniform(0, MAX_DELAY)):
            done.append(word)
        elif (damaged / "result.npz").exists():
            compare(whole, damaged)
            shutil.rmtree(damaged)
            damaged.mkdir()
    run(victim, damaged)
    compare(whole, damaged)
    return done


def compare(whole, damaged):
    with np.load(whole / "result.npz") as expected:
        with np.load(damaged / "result.npz") as actual:
            assert set(actual) == set(expected)
            for name in expected:
                np.testing.assert_array_equal(actual[name], expected[name])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    rng = random.Random(options.seed)
    scenarios = victims.scenarios()
    with tempfile.TemporaryDirectory() as folder:
        for i, scenario in enumerate(scenarios):
            kills = len(range(i, options.kills, len(scenarios)))
            own = Path(folder) / scenario.name
            places = Counter(campaign(scenario.victim, own, kills, rng))
            listed = ", ".join(f"{n} after {x!r}" for x, n in places.items())
            print(f"{scenario.name}: {kills} kills, {listed}", flush=True)
    print(f"{options.kills} kills, every run ended as if there had been none")


if __name__ == "__main__":
    main()
