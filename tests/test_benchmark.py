"""The benchmark's arithmetic, and that it runs. Its figures are no test."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from benchmark_report import Row
from benchmark_report import as_dict
from benchmark_report import from_dict
from benchmark_report import markdown
from benchmark_report import timing_row
from benchmark_timing import Seconds
from benchmark_timing import alternate
from benchmark_timing import compare

BENCHMARK = Path(__file__).parents[1] / "examples" / "benchmark.py"

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the benchmark starts backends by itself",
)


def _benchmark(*arguments):
    return subprocess.run(
        [sys.executable, BENCHMARK, *arguments],
        capture_output=True,
        text=True,
    )


def test_sections_are_added_to_those_in_the_folder(tmp_path):
    for sections in ("growth", "sampling"):
        options = ("--quick", "--only", sections, "--output", tmp_path)
        done = _benchmark(*options)
        assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "benchmark.json").read_text())
    rows = record["sections"]
    assert [row["unit"] for row in rows["growth"]] == ["exponent"] * 3
    assert [row["side"] for row in rows["sampling"]] == [
        *["max_tokens=8"] * 2,
        *["max_tokens=16"] * 2,
    ]
    assert all(0 < row["value"] < 1000 for row in rows["sampling"])
    assert {"device", "keras", "keras-istar"} <= set(record["machine"])
    table = (tmp_path / "benchmark.md").read_text()
    assert table in done.stdout
    assert table.count("| max_tokens=8 |") == 2


def test_unknown_section():
    done = _benchmark("--only", "growth,speed")
    assert done.returncode == 2
    assert "Received: growth,speed" in done.stderr


def _seconds(*walls):
    return [Seconds(wall, 2 * wall) for wall in walls]


def test_ratio_is_the_median_of_neighbours():
    ratio = compare(_seconds(2, 6, 40), _seconds(1, 2, 10), scale=0.5)
    assert ratio == (6.0, 5.0, 7.0, 6.0, 3)


@pytest.mark.parametrize(
    "target, verdict",
    [
        ({}, ""),
        ({"at_most": 3.0}, "met"),
        ({"at_most": 2.9}, "missed"),
        ({"at_least": 3.0}, "met"),
        ({"at_least": 3.1}, "missed"),
    ],
)
def test_verdict(target, verdict):
    sides = {"ours": _seconds(3, 6, 9), "theirs": _seconds(1, 2, 3)}
    row = timing_row("case", sides, "ours", "theirs", **target)
    assert row.verdict == verdict
    assert from_dict(json.loads(json.dumps(as_dict(row)))) == row
    cells = [cell.strip() for cell in markdown({}, {"T": [row]}).split("|")]
    assert "**3.000**" in cells
    assert "6e+03 ms" in cells or "6,000 ms" in cells


def test_growth_has_no_ratio():
    row = Row("width", "1, 8 ms", 3.0, "exponent")
    assert from_dict(as_dict(row)) == row
    assert "| width | 1, 8 ms | 3 exponent |" in markdown({}, {"T": [row]})


def test_sides_take_turns():
    order = []
    sides = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = alternate(sides, rounds=4)
    assert "".join(order) == "ab" * 2 + "abba" * 2
    assert {name: len(runs) for name, runs in seconds.items()} == {
        "a": 4,
        "b": 4,
    }
