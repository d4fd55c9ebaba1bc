"""Pictures of results that are made up."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from study import figures
from study_runs import make_records


def curves(figure):
    """Color of every curve by its label."""
    lines, labels = figure.axes[0].get_legend_handles_labels()
    return {
        label: to_rgb(line.get_color())
        for line, label in zip(lines, labels, strict=True)
    }


def test_every_method_has_a_color_of_its_own():
    methods = ["istar:-2", "istar:-0.5", "istar:0", "istar:0.1", "istar:20"]
    methods += [f"istar:1,shrinkage=0.{i}" for i in range(3, 9)]
    methods += [f"cosreg:{i}" for i in range(1, 6)]
    records = list(make_records(1, methods).values())
    found = curves(figures.draw(records)["score_by_isotropy"])
    colors = [found[name] for name in methods]
    assert len(set(colors)) == len(methods)
    for red, _, blue in colors[:2]:
        assert red > blue
    assert colors[2] == (0.0, 0.0, 0.0)
    for red, _, blue in colors[3:5]:
        assert blue > red


def test_other_tokens_are_not_in_the_curves_of_training():
    methods = ["none", "istar:1", "istar:1,layers=-1", "istar:1,padding=count"]
    records = list(make_records(1, methods).values())
    drawn = figures.draw(records)
    assert set(curves(drawn["isotropy_by_epoch"])) == {"none", "istar:1"}
    assert set(curves(drawn["dimension_by_layer"])) == set(methods)
    for record in records:
        record["epochs"] = [{"loss": 0.5}]
    assert "isotropy_by_epoch" not in figures.draw(records)


def test_scores_stand_above_the_isoscore_of_the_tables():
    (record,) = make_records(1, ["istar:1"]).values()
    (axis,) = figures.draw([record])["score_by_isotropy"].axes
    (x, *_), *_ = axis.lines[0].get_data()
    assert x == record["isotropy"]["after"]["union"]["isoscore"]
    assert axis.get_xlabel().startswith("IsoScore of")


def test_equal_curves_of_many_methods_all_show():
    methods = [f"istar:1,shrinkage=0.{i}" for i in range(3, 9)]
    methods += ["istar:0", "istar:1"]
    records = list(make_records(1, methods).values())
    for record in records:
        record["epochs"] = [{"isoscore_union": 0.2}] * 3
    (axis,) = figures.draw(records)["isotropy_by_epoch"].axes
    starts = sorted(line.get_xdata()[0] for line in axis.lines)
    assert len(starts) == 8 and np.diff(starts).min() > 0.03
    assert 0.5 < starts[0] and starts[-1] < 1.5


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_ticks_of_epochs_are_whole_and_few(epochs):
    records = list(make_records(2).values())
    for record in records:
        record["epochs"] = [{"isoscore_union": 0.2}] * epochs
    (axis,) = figures.draw(records)["isotropy_by_epoch"].axes
    low, high = axis.get_xlim()
    ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
    assert 1 <= len(ticks) <= 7
    assert all(tick == int(tick) for tick in ticks)


def test_figures_of_first_tokens_and_means_need_lines_that_have_them():
    records = list(make_records(2, ("none", "istar:1", "cosreg:1")).values())
    older = {"score_by_isotropy", "dimension_by_layer", "isotropy_by_epoch"}
    assert set(figures.draw(records)) == older
    for record in records:
        if "istar" not in record["name"]:  # That of istar is an older line.
            record["first_tokens"] = {
                "layer_0": {"twonn_dimension": 3.0},
                "layer_1": {"twonn_dimension": None},
                "union": {"twonn_dimension": 9.0},
            }
            sign = 1.0 if "seed 0" in record["name"] else -0.5
            record["mean_activation"] = [-0.1, 0.0, 0.4 * sign]
    drawn = figures.draw(records)
    assert len(drawn) == 5
    (axis,) = drawn["first_token_dimension_by_layer"].axes
    lines, labels = axis.get_legend_handles_labels()
    assert labels == ["none", "cosreg:1"]
    np.testing.assert_array_equal(lines[0].get_ydata(), [3.0, np.nan])
    (axis,) = drawn["mean_activation"].axes
    line = axis.lines[0]
    # The mean over both seeds of each dimension, then its size.
    np.testing.assert_allclose(line.get_ydata(), [0.1, 0.1, 0.0], atol=1e-12)
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    (legend,) = drawn["mean_activation"].legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named == ["none", "cosreg:1"]


def test_titles_of_many_settings_do_not_run_into_each_other():
    records = [*make_records(1, ["none"]).values()] * 2
    other = {"learning_rate": 1e-5, "optimizer": "adamw", "batch_size": 64}
    run = records[1]["run"]
    recipe = {**run["recipe"], **other}
    records[1] = {**records[1], "run": {**run, "recipe": recipe}}
    for axis in figures.draw(records)["score_by_isotropy"].axes:
        lines = axis.get_title().splitlines()
        assert len(lines) > 1
        assert max(map(len, lines)) <= 36
