import sys
import warnings

import numpy as np
import pytest

DIM = 12  # Of `make_report`.

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture
def report(make_report):
    return make_report(isoscore_star=0.4)


def line(axes, label):
    (found,) = [x for x in axes.get_lines() if x.get_label() == label]
    return found


def test_panels(report):
    figure = report.plot()
    assert [axes.get_title() for axes in figure.axes] == [
        "Isotropy",
        "Spectrum",
        "Outlier dimensions",
    ]
    width, height = figure.get_size_inches() * 25.4
    assert width == pytest.approx(180, abs=0.2) and height < 90


def test_isotropy_by_layer(report):
    axes = report.plot().axes[0]
    expected = [row.values["isoscore"] for row in report.rows[:-1]]
    np.testing.assert_array_equal(line(axes, "IsoScore").get_ydata(), expected)
    assert set(line(axes, "IsoScore*").get_ydata()) == {0.4}
    ticks = [text.get_text() for text in axes.get_xticklabels()]
    assert ticks == ["0", "1"]


def test_spectrum_as_shares_on_a_log_scale(report):
    axes = report.plot().axes[1]
    assert axes.get_yscale() == "log"
    spectrum = np.array(report.rows[0].spectrum)
    ranks, shares = line(axes, "layer_0").get_data()
    np.testing.assert_array_equal(ranks, np.arange(1, DIM + 1))
    np.testing.assert_allclose(shares, spectrum / spectrum.sum())
    assert len(line(axes, "union").get_ydata()) == DIM


def test_outlier_dimensions(report):
    axes = report.plot().axes[2]
    expected = [
        row.variances[3] / np.mean(row.variances) for row in report.rows[:-1]
    ]
    np.testing.assert_allclose(line(axes, "3").get_ydata(), expected)


def set_variances(row, variances):
    """Replaces the variances of a row, and which dimensions stand out."""
    row.variances[:] = variances
    average = np.mean(variances)
    row.outlier_dimensions[:] = [
        d for d in range(DIM) if variances[d] > 5 * average
    ]


def test_dead_dimensions_leave_the_scale_and_the_band(report):
    live = [1.0] * 10
    set_variances(report.rows[0], [*live, 0.0, 30.0])
    set_variances(report.rows[1], [*live, 0.0, 0.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = report.plot()
        figure.draw_without_rendering()
    axes = figure.axes[2]
    lowest, highest = axes.get_ylim()
    assert lowest == 1e-3 and highest > 8
    # What is below the scale is not drawn as if it were on its edge.
    assert 0 < line(axes, "11").get_ydata()[1] < lowest
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == lowest and heights.max() > 0.3
    (text,) = [x for x in axes.texts if "90%" in x.get_text()]
    assert lowest < text.get_position()[1] < heights.max()


def test_outlier_dimensions_stay_on_the_scale(make_report):
    report = make_report(["layer_0", "layer_1", "union"])
    quiet = [1.0] * (DIM - 1)
    set_variances(report.rows[0], [*quiet, 30.0])
    set_variances(report.rows[1], [*quiet, 0.02])  # Below the middle 90 %.
    axes = report.plot().axes[2]
    lowest, highest = axes.get_ylim()
    drawn = line(axes, str(DIM - 1)).get_ydata()
    assert lowest < drawn.min() < 0.03 and drawn.max() < highest


def test_legend_says_how_many_outlier_dimensions_there_are(make_report):
    report = make_report([f"layer_{i}" for i in range(8)] + ["union"])
    for i, row in enumerate(report.rows):
        set_variances(row, np.where(np.arange(DIM) == i, 30.0 + i, 1.0))
    legend = report.plot().axes[2].get_legend()
    assert legend.get_title().get_text() == "the widest 6 of 8 dimensions"
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["7", "6", "5", "4", "3", "2"]
    legend = make_report().plot().axes[2].get_legend()
    assert legend.get_title().get_text() == "dimension"


def test_every_panel_says_what_is_on_its_axes(report):
    labels = [axes.get_ylabel() for axes in report.plot().axes]
    assert labels == [
        "score",
        "share of variance",
        "variance / average variance",
    ]


@pytest.mark.parametrize(
    "names", [["layer_0"], ["dense", "top"], [f"layer_{i}" for i in range(40)]]
)
def test_any_number_of_layers(make_report, names, tmp_path):
    figure = make_report([*names, "union"]).plot()
    figure.savefig(tmp_path / "figure.pdf")
    assert len(figure.axes[0].get_xticks()) <= 14


def test_plotting_leaves_the_settings_of_matplotlib_alone(report):
    before = dict(matplotlib.rcParams)
    report.plot()
    assert dict(matplotlib.rcParams) == before


def test_figure_needs_matplotlib(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = r"needs matplotlib: `pip install keras-istar\[report\]`\.$"
    with pytest.raises(ImportError, match=message):
        report.plot()
