"""Fair comparison of functions that run one after the other."""

import fcntl
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

DEADLINE = "KERAS_ISTAR_BENCHMARK_DEADLINE"
# A folder, and the number of commands that share a GPU and leave a file there
# when nothing is left but to time.
TURNS = "KERAS_ISTAR_BENCHMARK_TURNS"
_LATEST_TURN = 50.0


def is_late(reserve: float = 0.0) -> bool:
    """Whether fewer than `reserve` seconds are left, if there is a limit."""
    deadline = float(os.environ.get(DEADLINE, "inf"))
    return time.time() + reserve > deadline


def wait_for_turn() -> None:
    """Waits until all commands have compiled, and nobody else is timing.

    The turn ends with the process.
    """
    folder, _, number = os.environ.get(TURNS, "").rpartition(":")
    if not folder:
        return
    folder = pathlib.Path(folder)
    (folder / f"ready-{os.getpid()}").touch()
    while not is_late(_LATEST_TURN):
        if len(list(folder.glob("ready-*"))) >= int(number):
            break
        time.sleep(0.05)
    _turn.append((folder / "turn").open("w"))
    fcntl.flock(_turn[0], fcntl.LOCK_EX)


_turn = []


class Seconds(NamedTuple):
    """Time of one call: on the clock, and of all cores together."""

    wall: float
    cpu: float

    def times(self, factor: float) -> "Seconds":
        """Returns `factor` times as long."""
        return Seconds(factor * self.wall, factor * self.cpu)


class Ratio(NamedTuple):
    """How one side compares with another, run by run.

    Attributes:
        median: Median of the ratios of neighboring runs, on the clock.
        low: Their lower quartile.
        high: Their upper quartile.
        cpu: Median ratio of processor time, which other programs on the same
            machine disturb less.
        rounds: Number of runs of each side.
    """

    median: float
    low: float
    high: float
    cpu: float
    rounds: int


def alternate(
    sides: dict[str, Callable[[int], object]],
    rounds: int,
    budget: float = float("inf"),
    shortest: float = 0.0,
) -> dict[str, list[Seconds]]:
    """Runs every side once a round, so that all share the machine's moods.

    Every second round goes backwards, which cancels a steady drift.

    Args:
        sides: Functions of a number of calls, which return when so many calls
            are done.
        rounds: Number of rounds after two that warm up.
        budget: Seconds after which no further round starts, if three are done.
        shortest: Seconds that a run should take. Quicker sides are called
            several times in a run, so that the wait for the device at its end
            weighs little.

    Returns:
        Time of one call, for each run of each side.
    """
    calls = {}
    for name, run in sides.items():
        run(1)
        calls[name] = max(1, round(shortest / _measure(run, 1).wall))
    seconds = {name: [] for name in sides}
    start = time.perf_counter()
    for i in range(rounds):
        for name in list(sides)[:: -1 if i % 2 else 1]:
            seconds[name].append(_measure(sides[name], calls[name]))
        if i >= 2 and (is_late() or time.perf_counter() - start > budget):
            break
    return seconds


def compare(side: list[Seconds], reference: list[Seconds]) -> Ratio:
    """Compares `side` with `reference`, run by run."""
    pairs = list(zip(side, reference, strict=True))
    ratios = [a.wall / b.wall for a, b in pairs]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    cpu = statistics.median(a.cpu / b.cpu if b.cpu else 1.0 for a, b in pairs)
    return Ratio(median, low, high, cpu, len(pairs))


def milliseconds(side: list[Seconds]) -> float:
    """Median on the clock."""
    return 1e3 * statistics.median(s.wall for s in side)


def _measure(run, calls):
    wall, cpu = time.perf_counter(), time.process_time()
    run(calls)
    seconds = Seconds(time.perf_counter() - wall, time.process_time() - cpu)
    return seconds.times(1 / calls)
