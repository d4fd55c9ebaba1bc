"""Fair comparison of functions that run one after the other."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Seconds(NamedTuple):
    """What one call took: on the clock, and of all cores together."""

    wall: float
    cpu: float


class Ratio(NamedTuple):
    """How one side compares with another, run by run.

    Attributes:
        median: Median of the ratios of neighbouring runs, on the clock.
        low: Their lower quartile.
        high: Their upper quartile.
        cpu: Median ratio of processor time, which other programs on the same
            machine disturb less.
        rounds: How many runs of each side that is from.
    """

    median: float
    low: float
    high: float
    cpu: float
    rounds: int

    @classmethod
    def of_one(cls, ratio: float) -> "Ratio":
        """`ratio`, measured once, of something other than time."""
        return cls(ratio, ratio, ratio, ratio, rounds=1)


def alternate(
    sides: dict[str, Callable[[], object]],
    rounds: int,
    budget: float = float("inf"),
) -> dict[str, list[Seconds]]:
    """Runs every side once a round, so that all share the machine's moods.

    Every second round goes backwards, which cancels a steady drift.

    Args:
        sides: Functions that return when their work is done.
        rounds: Number of rounds after two that warm up.
        budget: Seconds after which no further round starts, if three are done.
    """
    for _ in range(2):
        for run in sides.values():
            run()
    seconds = {name: [] for name in sides}
    start = time.perf_counter()
    for i in range(rounds):
        order = list(sides) if i % 2 == 0 else list(reversed(sides))
        for name in order:
            seconds[name].append(_measure(sides[name]))
        if i >= 2 and time.perf_counter() - start > budget:
            break
    return seconds


def compare(
    side: list[Seconds], reference: list[Seconds], scale: float = 1.0
) -> Ratio:
    """Ratio of `side` to `scale` times `reference`."""
    pairs = list(zip(side, reference, strict=True))
    ratios = [a.wall / (scale * b.wall) for a, b in pairs]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    cpu = statistics.median(
        a.cpu / (scale * b.cpu) if b.cpu else 1.0 for a, b in pairs
    )
    return Ratio(median, low, high, cpu, len(pairs))


def milliseconds(side: list[Seconds]) -> float:
    """Median on the clock."""
    return 1e3 * statistics.median(s.wall for s in side)


def _measure(run):
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)
