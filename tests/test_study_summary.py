"""What a study concludes from results that are made up."""

import contextlib
import dataclasses
import resource
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import study
import study_figures
import study_grid
import study_options
import study_report
import study_sentences
import study_settings
import study_summary
from command_line import UserError
from matplotlib.colors import to_rgb
from scipy import stats
from study_results import ResultFolder

RESULTS = Path(__file__).parents[1] / "examples" / "results"
METHODS = ("istar:-5", "istar:0", "istar:5", "cosreg:1")
EFFECTS = {"istar:-5": -0.1, "istar:0": 0.0, "istar:5": 0.1, "cosreg:1": 0.0}


def make_records(seeds=6, methods=METHODS, tasks=("rte",), noise=0.01):
    rng = np.random.default_rng(0)
    runs = study_grid.grid(
        study_options.make_parser("").parse_args(
            ["--output", "x", "--seeds", str(seeds), "--tasks", *tasks]
            + ["--regularizers", *methods]
        )
    )
    easy = rng.normal(size=seeds)
    return {run.id: _record(run, easy, noise * rng.normal()) for run in runs}


def _record(run, easy, noise):
    name = str(run.method)
    isoscore = 0.3 + 0.02 * (run.method.strength or 0.0)
    state = {"isoscore": isoscore, "isoscore_star": isoscore + 0.1}
    states = {
        layer: {**state, "twonn_dimension": dimension}
        for layer, dimension in (("layer_0", 5.0), ("layer_1", 4.2))
    }
    states["union"] = {**state, "twonn_dimension": 6.0}
    score = 0.6 + 0.1 * easy[run.seed] + EFFECTS.get(name, 0.0) + noise
    return {
        "status": "ok",
        "name": str(run),
        "run": run.as_dict(),
        "test": {"end": {"score": score}},
        "epochs": [{"isoscore_union": 0.2}, {"isoscore_union": 0.3}],
        "isotropy": {"before": states, "after": states},
    }


def make_tables(records):
    runs = study_summary.run_table(records)
    return runs, study_summary.compare(runs)


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
    _, table = make_tables(records)
    assert table["dimension"].tolist() == pytest.approx([4.2] * len(METHODS))
    first["isotropy"]["after"]["layer_1"]["twonn_dimension"] = None
    runs, table = make_tables(records)
    assert table["dimension"].tolist() == pytest.approx([4.2] * len(METHODS))
    assert "| 4.2 |" in study_report.markdown(runs, table, records)


def test_sentences():
    runs, table = make_tables(make_records())
    verdict, order = study_sentences.sentences(runs, table)
    assert verdict == (
        "rte, 512 examples: istar:5 better than the baseline; istar:-5 worse "
        "than the baseline; cosreg:1 not distinguishable from the baseline."
    )
    assert order == (
        "rte, 512 examples: IsoScore rises with the strength (-5, 0, 5) in 6 "
        "of 6 seeds."
    )


def test_differences_that_are_equal_claim_nothing():
    _, table = make_tables(make_records(seeds=20, noise=0.0))
    row = table.set_index("method").loc["istar:5"]
    assert row.difference == pytest.approx(0.1)
    assert np.isnan([row.p, row.low, row.high]).all()


def test_one_seed_claims_nothing():
    runs, table = make_tables(make_records(seeds=1))
    assert table["p"].isna().all()
    assert study_sentences.sentences(runs, table)[0] == (
        "rte, 512 examples: istar:-5, istar:5, cosreg:1 without two seeds to "
        "compare with the baseline."
    )


def test_sentences_name_every_method():
    """Without noise, two differ by one amount, and cosreg:1 by none."""
    runs, table = make_tables(make_records(seeds=2, noise=0.0))
    assert study_sentences.sentences(runs, table)[0] == (
        "rte, 512 examples: istar:-5, istar:5 as far from the baseline in one "
        "seed as in any other, which is not tested; cosreg:1 equal to the "
        "baseline in every seed."
    )
    runs, table = make_tables(make_records(methods=("istar:5", "cosreg:1")))
    assert study_sentences.sentences(runs, table)[0] == (
        "rte, 512 examples: no baseline to compare istar:5, cosreg:1 with."
    )


def test_seeds_that_one_side_lacks_are_left_out():
    records = make_records()
    lost = next(
        key
        for key, record in records.items()
        if record["name"].endswith("istar:5 seed 3")
    )
    del records[lost]
    row = make_tables(records)[1].set_index("method").loc["istar:5"]
    assert (row.seeds, row.pairs) == (5, 5)


@pytest.mark.parametrize(
    ("methods", "expected"),
    [(METHODS, "istar:0"), (("none", "istar:0"), "none"), (("isobn",), None)],
)
def test_baseline(methods, expected):
    group = pd.DataFrame({"method": methods})
    assert study_summary.baseline(group) == expected


@pytest.mark.parametrize(
    "field", [field.name for field in dataclasses.fields(study_grid.Recipe)]
)
def test_recipes_are_not_mixed(field):
    records = make_records(seeds=2)
    for record in list(records.values()):
        other = _with_recipe(record, field)
        records[study_grid.Run.from_dict(other["run"]).id] = other
    _, table = make_tables(records)
    assert table["setting"].nunique() == 2
    assert set(table["seeds"]) == {2}
    for figure in study_figures.draw(list(records.values())).values():
        titles = [axis.get_title() for axis in figure.axes]
        assert titles == list(table["setting"].unique())


def _with_recipe(record, field):
    """The same record, with another value in one field of its recipe."""
    run = study_grid.Run.from_dict(record["run"])
    value = getattr(run.recipe, field)
    other = "other" if isinstance(value, str) else (value or 6) + 1
    recipe = dataclasses.replace(run.recipe, **{field: other})
    return {**record, "run": dataclasses.replace(run, recipe=recipe).as_dict()}


def test_settings_name_what_differs_within_a_task():
    command = ["--output", "x", "--tasks", "rte", "sst2", "--seeds", "1"]
    runs = [
        run
        for options in ([], ["--limit", "0", "--epochs", "4"])
        for run in study_grid.grid(
            study_options.make_parser("").parse_args([*command, *options])
        )
    ]
    sst2 = [run for run in runs if run.task == "sst2"]
    assert list(study_settings.names([*runs[:1], *sst2]).values()) == [
        "rte, 512 examples",
        "sst2, 512 examples, epochs=3",
        "sst2, all examples, epochs=4",
    ]


def test_files(tmp_path):
    records = make_records(tasks=("rte", "mrpc"))
    failed = {**next(iter(records.values())), "status": "failed"}
    records["x"] = {**failed, "error": "RuntimeError: NaN loss"}
    text = study_report.write(records, tmp_path)
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == text
    assert f"- {failed['name']}: RuntimeError: NaN loss" in text
    assert text.count("| istar:0 | 6 | ") == 2
    csv = pd.read_csv(tmp_path / "summary.csv")
    assert len(csv) == 8
    for name in ("score_by_isotropy", "dimension_by_layer"):
        png = (tmp_path / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
    assert (tmp_path / "isotropy_by_epoch.png").exists()


def test_a_full_disk_keeps_the_old_summary(tmp_path, no_large_files):
    study_report.write(make_records(2), tmp_path)
    old = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with no_large_files(), pytest.raises(UserError, match="File too large"):
        study_report.write(make_records(3), tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == old


@pytest.fixture
def no_large_files():
    """Scope in which no file can grow above 100 bytes."""

    @contextlib.contextmanager
    def scope():
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return scope


def test_different_versions_are_named():
    records = make_records(seeds=2)
    runs, table = make_tables(records)
    for i, record in enumerate(records.values()):
        record["versions"] = {"keras": "3.15", "scipy": f"1.{i % 2}"}
    record["versions"]["tensorflow-text"] = "2.20"
    text = study_report.markdown(runs, table, records)
    assert text.endswith("\nRuns differ in versions: scipy 1.0 and 1.1.\n")
    for record in records.values():
        record["versions"]["scipy"] = "1.0"
    assert "versions" not in study_report.markdown(runs, table, records)


@pytest.mark.parametrize("name", ["study", "ablation"])
def test_committed_summary_is_that_of_the_committed_results(name):
    folder = RESULTS / name
    records = ResultFolder(folder).read()
    text = study_report.markdown(*make_tables(records), records)
    assert (folder / "summary.md").read_text(encoding="utf-8") == text
    assert not (folder / "locks").exists()


def test_nothing_to_summarise(tmp_path, capsys):
    with pytest.raises(UserError, match="no finished run"):
        study_report.write({}, tmp_path)
    with pytest.raises(SystemExit) as stopped:
        study.main(["--output", str(tmp_path), "--summarise"])
    assert stopped.value.code == 2
    assert "no finished run" in capsys.readouterr().err


def _curves(figure):
    """Style of every curve by its label."""
    return {
        label: (line.get_color(), line.get_marker())
        for line, label in zip(
            *figure.axes[0].get_legend_handles_labels(), strict=True
        )
    }


def test_figures_of_runs_that_logged_no_isotropy(tmp_path):
    records = make_records(methods=("istar:0", "cosreg:1"))
    for record in records.values():
        record["epochs"] = [{"loss": 0.5}]
    study_report.write(records, tmp_path)
    assert (tmp_path / "isotropy_by_epoch.png").exists()


def test_every_method_has_a_colour_of_its_own():
    methods = ["istar:-2", "istar:-0.5", "istar:0", "istar:0.1", "istar:20"]
    methods += [f"istar:1,shrinkage=0.{i}" for i in range(3, 9)]
    methods += [f"cosreg:{i}" for i in range(1, 6)]
    records = list(make_records(1, methods).values())
    styles = _curves(study_figures.draw(records)["score_by_isotropy"])
    colors = [tuple(to_rgb(styles[name][0])) for name in methods]
    assert len(set(colors)) == len(methods)
    for red, _, blue in colors[:2]:
        assert red > blue
    assert colors[2] == (0.0, 0.0, 0.0)
    for red, _, blue in colors[3:5]:
        assert blue > red


def test_other_tokens_are_not_in_the_curves_of_training():
    methods = ["none", "istar:1", "istar:1,layers=-1", "istar:1,padding=count"]
    records = list(make_records(1, methods).values())
    figures = study_figures.draw(records)
    assert set(_curves(figures["isotropy_by_epoch"])) == {"none", "istar:1"}
    assert set(_curves(figures["dimension_by_layer"])) == set(methods)
