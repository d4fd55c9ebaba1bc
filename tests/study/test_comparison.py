"""Conclusions from results that are made up."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from finetuning.settings import Recipe
from scipy import stats
from study import comparison
from study import figures
from study import grid
from study import summary
from study_runs import COMPARED
from study_runs import make_ended
from study_runs import make_records

TARGET = "istar:target=0.5x"


def make_tables(records):
    runs = comparison.run_table(records)
    return runs, comparison.compare(runs)


def test_comparison_is_paired():
    """Seeds differ by far more than methods do: only pairs can tell."""
    runs, table = make_tables(make_records())
    scores = {
        name: group.sort_values("seed")["score"].to_numpy()
        for name, group in runs.groupby("method")
    }
    row = table.set_index("method").loc["istar:5"]
    differences = scores["istar:5"] - scores["istar:0"]
    error = differences.std(ddof=1) / np.sqrt(6)
    t = stats.t(df=5)
    half = t.ppf(0.975) * error
    assert row.difference == pytest.approx(differences.mean())
    assert row.low == pytest.approx(differences.mean() - half)
    assert row.high == pytest.approx(differences.mean() + half)
    assert row.p == pytest.approx(2 * t.sf(differences.mean() / error))
    assert row.deviation == pytest.approx(scores["istar:5"].std(ddof=1))
    unpaired = stats.ttest_ind(scores["istar:5"], scores["istar:0"]).pvalue
    assert row.p < 0.001 < unpaired


def test_holm_counts_all_comparisons():
    """p sorted, the smallest times their number, the next times one less."""
    _, table = make_tables(make_records(tasks=("rte", "mrpc")))
    tested = table.dropna(subset="p").sort_values("p")
    assert len(tested) == 6
    expected = np.maximum.accumulate(tested["p"] * np.arange(6, 0, -1))
    np.testing.assert_allclose(tested["p_holm"], np.minimum(expected, 1.0))


def test_dimension_is_that_of_the_last_layer():
    records = make_records(seeds=2)
    first = next(iter(records.values()))
    for value in (4.2, None):
        first["isotropy"]["after"]["layer_1"]["twonn_dimension"] = value
        runs, table = make_tables(records)
        assert table["dimension"].tolist() == pytest.approx([4.2] * 4)
    assert "| 4.2 |" in summary.markdown(records)


def test_order_of_isotropy_is_told():
    runs, _ = make_tables(make_records())
    assert comparison.orders(runs) == [
        "rte, 512 examples: IsoScore rises with the strength (-5, 0, 5) in 6 "
        "of 6 seeds."
    ]
    assert comparison.orders(runs[runs["strength"] != -5.0]) != []
    assert comparison.orders(runs[runs["method"] == "cosreg:1"]) == []


@pytest.mark.parametrize(
    "options", [{"seeds": 1}, {"methods": ("istar:5", "cosreg:1")}]
)
def test_without_pairs_nothing_is_claimed(options):
    records = make_records(**options)
    _, table = make_tables(records)
    assert table["p"].isna().all() and table["p_holm"].isna().all()
    text = summary.markdown(records)
    assert "nan" not in text


def test_differences_that_are_equal_claim_nothing():
    runs, table = make_tables(make_records(seeds=20, noise=0.0))
    (slope,) = comparison.slopes(runs).itertuples()
    assert slope.slope == pytest.approx(0.1 / 0.1)
    assert np.isnan([slope.low, slope.high]).all()
    row = table.set_index("method").loc["istar:5"]
    assert row.difference == pytest.approx(0.1)
    assert np.isnan([row.p, row.low, row.high]).all()


def test_seeds_that_one_side_lacks_are_left_out():
    records = {
        key: record
        for key, record in make_records().items()
        if not record["name"].endswith("istar:5 seed 3")
    }
    runs, table = make_tables(records)
    row = table.set_index("method").loc["istar:5"]
    scores = runs.pivot(index="seed", columns="method", values="score")
    differences = (scores["istar:5"] - scores["istar:0"]).drop(3)
    assert row.seeds == 5
    assert row.difference == pytest.approx(differences.mean())
    assert row.p == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue)


def test_validation_chooses_in_every_seed_and_the_test_part_judges():
    """The last epoch decides: the best ones would choose istar:-1 twice."""
    validation = {
        "none": [[0.5, 0.9]] * 3,
        "istar:-1": [[0.9, 0.6], [0.9, 0.6], [0.5, 0.8]],
        TARGET: [[0.5, 0.7], [0.5, 0.7], [0.9, 0.7]],
        "cosreg:1": [[0.5, 0.1]] * 3,
    }
    scores = {
        "none": [0.50, 0.60, 0.70],
        "istar:-1": [0.99, 0.99, 0.73],
        TARGET: [0.51, 0.62, 0.01],
        "cosreg:1": [0.50, 0.58, 0.69],
    }
    records = make_ended(scores, validation)
    table = comparison.choose(comparison.run_table(records))
    istar, cosreg = table.itertuples()
    assert (istar.family, istar.methods, istar.seeds) == ("I-STAR", 2, 3)
    assert istar.chosen == f"istar:-1 (1); {TARGET} (2)"
    assert (cosreg.family, cosreg.chosen) == ("CosReg", "cosreg:1 (3)")
    assert istar.score == pytest.approx((0.51 + 0.62 + 0.73) / 3)
    # Differences 0.01, 0.02, 0.03 and 0, -0.02, -0.01: mean 0.02 and -0.01,
    # deviation 0.01. With two degrees of freedom, p = 1 - t / sqrt(t**2 + 2).
    half = stats.t.ppf(0.975, 2) * 0.01 / np.sqrt(3)
    assert (istar.low, istar.high) == pytest.approx((0.02 - half, 0.02 + half))
    p = [1 - t / np.sqrt(t**2 + 2) for t in (2 * np.sqrt(3), np.sqrt(3))]
    assert table["p"].tolist() == pytest.approx(p)
    assert table["p_holm"].tolist() == pytest.approx([2 * p[0], p[1]])
    text = summary.markdown(records)
    assert (
        f"| rte, 512 examples | I-STAR | 2 | istar:-1 (1); {TARGET} (2) | 3 | "
        "0.620 ± 0.110 | +0.020 (-0.005 to +0.045) | 0.074 | 0.148 |"
    ) in text.splitlines()


def test_methods_that_tie_share_the_choice():
    scores = {"none": [0.5], "istar:-1": [0.6], "istar:1": [0.4], TARGET: [0.9]}
    ends = {"none": 0.5, "istar:-1": 0.7, "istar:1": 0.7 + 1e-16, TARGET: 0.6}
    validation = {name: [[end]] for name, end in ends.items()}
    records = make_ended(scores, validation)
    (row,) = comparison.choose(comparison.run_table(records)).itertuples()
    assert row.chosen == "istar:-1 (1); istar:1 (1)"
    assert row.score == pytest.approx(0.5)
    assert row.difference == pytest.approx(0.0)


def test_a_failed_run_is_not_chosen_and_a_missing_one_leaves_its_seed_out():
    scores = {"none": [0.5] * 3, "istar:-1": [0.6] * 3, "istar:1": [0.7] * 3}
    validation = {name: [[0.5]] * 3 for name in scores}
    validation["istar:1"] = [None, [0.9], [0.9]]
    records = make_ended(scores, validation)
    missing = next(
        key for key, x in records.items() if x["name"] == "rte istar:-1 seed 2"
    )
    del records[missing]
    (row,) = comparison.choose(comparison.run_table(records)).itertuples()
    assert row.seeds == 2
    assert row.chosen == "istar:-1 (1); istar:1 (1)"
    assert row.score == pytest.approx((0.6 + 0.7) / 2)
    # Where nothing was logged, nothing is chosen.
    for record in records.values():
        record["epochs"] = [{"isoscore_union": 0.2}]
        record.setdefault("error", "RuntimeError: NaN loss")
    assert comparison.choose(comparison.run_table(records)).empty
    assert "Chosen" not in summary.markdown(records)


def test_slope_is_within_seeds(rng):
    """Seeds as fixed effect: with equal IsoScores, the mean of their slopes."""
    isoscores = {"istar:-5": 0.1, "none": 0.2, "istar:5": 0.4, "cosreg:1": 0.9}
    easy, own = rng.normal(size=4), np.array([0.1, 0.3, -0.1, 0.2])
    scores = {
        name: easy + own * x + 0.01 * rng.normal(size=4)
        for name, x in isoscores.items()
    }
    records = make_ended(
        scores,
        {name: [[0.5]] * 4 for name in scores},
        {name: [x] * 4 for name, x in isoscores.items()},
    )
    (row,) = comparison.slopes(comparison.run_table(records)).itertuples()
    names = ["istar:-5", "none", "istar:5"]  # CosReg is not meant.
    x = [isoscores[name] for name in names]
    slopes = [
        np.polyfit(x, [scores[name][seed] for name in names], 1)[0]
        for seed in range(4)
    ]
    half = stats.t.ppf(0.975, 3) * np.std(slopes, ddof=1) / 2
    assert (row.runs, row.seeds) == (12, 4)
    assert row.slope == pytest.approx(np.mean(slopes))
    assert row.low == pytest.approx(np.mean(slopes) - half)
    assert row.high == pytest.approx(np.mean(slopes) + half)
    text = summary.markdown(records)
    assert f"0.1 higher, the score is {np.mean(slopes) / 10:+.3f} (95 %" in text


def test_slope_of_seeds_that_differ_in_isotropy():
    """Sums over seeds of products within them; one seed has no interval."""
    names = ("none", "istar:-1")
    isoscores = dict(
        zip(names, ([0.2, 0.3, 0.2], [0.1, 0.1, 0.2]), strict=True)
    )
    scores = dict(zip(names, ([0.5, 0.6, 0.7], [0.6, 0.4, 0.1]), strict=True))
    validation = {name: [[0.5]] * 3 for name in names}
    records = make_ended(scores, validation, isoscores)
    runs = comparison.run_table(records)
    (row,) = comparison.slopes(runs).itertuples()
    # Differences 0.1 and 0.2 of IsoScore, -0.1 and 0.2 of the score. In the
    # third seed there is no difference of IsoScore.
    assert row.slope == pytest.approx((-0.01 + 0.04) / (0.01 + 0.04))
    assert (row.runs, row.seeds) == (4, 2)
    (row,) = comparison.slopes(runs[runs["seed"] == 1]).itertuples()
    assert row.slope == pytest.approx(0.04 / 0.04)
    assert np.isnan([row.low, row.high]).all()
    assert comparison.slopes(runs[runs["seed"] == 2]).empty


@pytest.mark.parametrize(
    ("methods", "expected"),
    [(COMPARED, "istar:0"), (("none", "istar:0"), "none"), (("isobn",), None)],
)
def test_baseline(methods, expected):
    group = pd.DataFrame({"method": methods})
    assert comparison.baseline(group) == expected


@pytest.mark.parametrize(
    "field", [field.name for field in dataclasses.fields(Recipe)]
)
def test_recipes_are_not_mixed(field):
    records = make_records(seeds=2)
    for record in list(records.values()):
        run = grid.Run.from_dict(record["run"])
        value = getattr(run.recipe, field)
        other = "other" if isinstance(value, str) else (value or 6) + 1
        recipe = dataclasses.replace(run.recipe, **{field: other})
        run = dataclasses.replace(run, recipe=recipe)
        records[run.id] = {**record, "run": run.as_dict()}
    _, table = make_tables(records)
    assert table["setting"].nunique() == 2
    assert set(table["seeds"]) == {2}
    if field == "limit":
        for figure in figures.draw(list(records.values())).values():
            titles = [axis.get_title() for axis in figure.axes]
            assert titles == list(table["setting"].unique())
