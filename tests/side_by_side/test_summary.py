"""The table and the figure of runs side by side that are made up."""

import dataclasses
import json

import numpy as np
import pytest
from finetuning.command_line import UserError
from scipy import stats
from side_by_side import summary
from side_by_side.methods import parse_method


def _line(method, seed, score, test=(0.2, 0.2, 0.3), **options):
    settings = dataclasses.asdict(parse_method(method))
    del settings["seeds"]
    settings["shrinkage"] = 0.2
    scores = dict(zip(["union", "centered", "layer_0"], test, strict=True))
    start = {"union": 0.2, "centered": 0.2, "layer_0": 0.1}
    return {
        "task": "rte",
        "method": method,
        "seed": seed,
        "settings": settings,
        "score": score,
        "start": {"dropout": start, "train": start, "test": start},
        "end": dict.fromkeys(["batch", "running", "train", "test"], scores),
        "share_between_layers": {"start": 0.04, "end": 0.05},
        "steps": 550,
        **options,
    }


def test_table_pairs_runs_by_seed(tmp_path):
    lines = [
        _line("none", 0, 0.50, [0.2, 0.2, 0.3]),
        _line("none", 1, 0.60, [0.2, 0.2, 0.3]),
        _line("none", 2, 0.99, [0.2, 0.2, 0.3]),
        _line("istar:target=0.75x,strength=1", 1, 0.57, [0.15, 0.1, 0.05]),
        _line("istar:target=0.75x,strength=1", 0, 0.49, [0.17, 0.1, 0.05]),
    ]
    # As an older version has named it.
    lines[-1]["method"] = "target:0.75x,strength=1,error=running"
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    *_, none, target = summary.write(str(path)).splitlines()
    assert none.startswith("| none | 3 |")
    cells = [cell.strip() for cell in target.strip("|").split("|")]
    # Differences are -0.01 and -0.03: t = -0.02 / 0.01 with one degree of
    # freedom, where p = 1 - 2 arctan(2) / pi.
    p = 1 - 2 * np.arctan(2.0) / np.pi
    assert cells[:5] == [
        "istar:target=0.75x,strength=1",
        "2",
        "0.530 ± 0.057",
        f"-0.020 ({p:.3f})",
        "0.150",
    ]
    assert cells[-3:] == ["0.160", "0.050", "5%"]
    written = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert written.splitlines()[-1] == target


def test_p_is_corrected_over_all_tests_of_the_file():
    scores = {"none": 0.0, "istar:-1": -0.1, "istar:1": 0.05}
    spread = {"none": 0.0, "istar:-1": 1e-3, "istar:1": 0.05}
    runs = [
        _line(name, seed, 0.5 + score + seed * spread[name], [0.2, 0.2, 0.1])
        for name, score in scores.items()
        for seed in range(3)
    ]
    table = summary.markdown(runs)
    # Differences are -0.1, -0.099 and -0.098: t = 99 sqrt(3), and Holm's p of
    # the smaller of two is twice its own.
    p = 2 * stats.t.sf(99 * np.sqrt(3), df=2)
    assert f"-0.099 ({p:.3f}, Holm {2 * p:.3f})" in table
    assert table.count("Holm 0.") == 1


_VALIDATION = {
    "none": [0.9, 0.9, 0.9],
    "istar:-1": [0.6, 0.6, 0.8],
    "istar:target=0.75x": [0.7, 0.7, 0.7],
}
_SCORES = {
    "none": [0.50, 0.60, 0.70],
    "istar:-1": [0.99, 0.99, 0.73],
    "istar:target=0.75x": [0.51, 0.62, 0.01],
}


def _held_out():
    return [
        _line(name, seed, _SCORES[name][seed], validation=validation[seed])
        for name, validation in _VALIDATION.items()
        for seed in range(3)
    ]


def test_validation_chooses_and_the_test_part_judges():
    table = summary.markdown(_held_out()).splitlines()
    # Scores are 0.51, 0.62 and 0.73, differences 0.01, 0.02 and 0.03 with
    # t = 2 sqrt(3). With two degrees of freedom, p = 1 - t / sqrt(t**2 + 2).
    half = stats.t.ppf(0.975, 2) * 0.01 / np.sqrt(3)
    p = 1 - np.sqrt(12 / 14)
    place = table.index("**Chosen on validation**")
    assert "after the last step" in table[place + 2]
    assert table[place + 6] == (
        "| rte, 550 steps, validation part held out | I-STAR | 2 | "
        "istar:-1 (1); istar:target=0.75x (2) | 3 | 0.620 ± 0.110 | "
        f"+0.020 ({0.02 - half:+.3f} to {0.02 + half:+.3f}) | "
        f"{p:.3f} | {p:.3f} |"
    )
    assert table[place + 7] == ""


def test_choice_is_corrected_over_tasks():
    runs = _held_out()
    runs += [run | {"task": "mrpc"} for run in runs]
    rows = [
        line.split(" | ")[-2:]
        for line in summary.markdown(runs).splitlines()
        if "| I-STAR |" in line
    ]
    p = 1 - np.sqrt(12 / 14)
    assert rows == [[f"{p:.3f}", f"{2 * p:.3f} |"]] * 2


def test_trainings_on_the_validation_part_are_apart():
    """They have seen more examples, and nothing can be chosen of them."""
    older = [
        _line(name, seed, 0.9)
        for name in ("none", "istar:-1")
        for seed in range(3)
    ]
    assert "Chosen" not in summary.markdown(older)
    apart = summary.markdown(_held_out())
    both = summary.markdown(older + _held_out())
    choice = apart[apart.index("**Chosen") : apart.index("**rte")]
    assert choice in both
    table = apart[apart.index("**rte, 550 steps, validation part held out**") :]
    assert both.endswith(table)
    assert "**rte, 550 steps**; IsoScore" in both
    assert both.count("| none | 3 | 0.900 ± 0.000 |") == 1
    titles = [
        axis.get_title() for axis in summary.draw(older + _held_out()).axes
    ]
    assert titles == [
        "RTE, accuracy\n550 steps",
        "RTE, accuracy\n550 steps\nvalidation part held out",
    ]


def test_a_failed_run_is_not_chosen():
    runs = _held_out()
    for run in runs:
        if run["method"] == "istar:target=0.75x" and run["seed"] == 0:
            run |= {"score": None, "validation": None}
        if run["method"] == "istar:target=0.75x" and run["seed"] == 1:
            run |= {"score": None}
    table = summary.markdown(runs)
    # The scores of istar:-1 in all seeds but the last of the target.
    mean = (0.99 + 0.99 + 0.73) / 3
    assert f"| istar:-1 (3) | 3 | {mean:.3f} " in table


def test_figure_shows_every_method():
    runs = [
        _line("none", 0, 0.5, [0.2, 0.2, 0.3]),
        _line("istar:-1", 0, 0.47, [0.1, 0.1, 0.05]),
        _line("istar:target=0.75x", 0, 0.30, [0.15, 0.1, 0.05]),
    ]
    axis, *_ = summary.draw(runs).axes
    drawn = [line.get_xydata().ravel() for line in axis.lines]
    points = [xy for xy in drawn if len(xy) == 2]
    expected = [[0.2, 0.0], [0.1, -3.0], [0.15, -8.0]]  # At the edge: -20.
    np.testing.assert_allclose(points, expected, atol=1e-9)


def test_table_needs_results(tmp_path):
    path = tmp_path / "results.jsonl"
    with pytest.raises(UserError, match="cannot read"):
        summary.write(str(path))
    path.write_text("")
    with pytest.raises(UserError, match="no results"):
        summary.write(str(path))


def test_runs_of_other_lengths_or_dtypes_are_apart():
    runs = [
        _line("none", 0, 0.5, steps=steps, dtype_policy=dtype_policy)
        for dtype_policy in ("mixed_bfloat16", "float32")
        for steps in (550, 60)
    ]
    table = summary.markdown(runs)
    assert table.count("| none | 1 |") == 4
    assert "**rte, 60 steps**" in table
    assert "**rte, 60 steps, float32**" in table


DAMAGE = {
    "no JSON": '{"task": "rte"',
    "no object": "5",
    "another program": '{"task": "rte", "method": "none", "seed": 0}',
    "another method": json.dumps(
        _line("none", 0, 0.5) | {"settings": {"temperature": 1.0}}
    ),
    "the same run": json.dumps(_line("none", 0, 0.6)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_damaged_lines_are_named(damage, tmp_path):
    path = tmp_path / "results.jsonl"
    text = f"{json.dumps(_line('none', 0, 0.5))}\n\n{damage}\n"
    path.write_text(text)
    with pytest.raises(UserError, match="line 3 of .*: remove"):
        summary.write(str(path))
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]
