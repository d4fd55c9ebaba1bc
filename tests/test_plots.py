import subprocess
import sys

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


def test_importing_the_package_does_not_import_the_extra():
    code = (
        "import sys, keras, tensorflow\n"
        "before = set(sys.modules)  # Keras itself imports pandas.\n"
        "import keras_istar.measurement\n"
        "print(*set(sys.modules) - before)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    extra = {"pandas", "matplotlib", "skdim", "keras_hub"}
    assert "keras_istar.report" in result.stdout.split()
    assert extra.isdisjoint(result.stdout.split())
