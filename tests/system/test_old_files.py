"""Files that version 0.1 wrote, in tests/data/version_0_1, still load.

Each `.npz` file there holds inputs, what the model of the same name predicted
for them, and the Σ_S of its I-STAR layer.
"""

import json
import pathlib

import keras
import numpy as np
import pytest

import keras_istar

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "version_0_1"


def recorded(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def check_predictions(model, expected):
    actual = model.predict(expected["x"], verbose=0)
    np.testing.assert_allclose(actual, expected["prediction"], rtol=1e-5)


def check_shrinkage_covariance(layer, expected):
    actual = keras.ops.convert_to_numpy(layer.shrinkage_covariance.value)
    np.testing.assert_array_equal(actual, expected["shrinkage_covariance"])
    assert np.any(actual)
    assert float(layer.has_shrinkage_covariance.value) == 1


def test_model_with_layers_of_the_package():
    model = keras.models.load_model(FOLDER / "by_hand.keras")
    check_predictions(model, recorded("by_hand"))
    layer = model.get_layer("istar")
    assert type(layer) is keras_istar.IStarRegularization
    assert (layer.strength, layer.shrinkage, layer.momentum) == (0.5, 0.3, 0.9)
    check_shrinkage_covariance(layer, recorded("by_hand"))
    cosine = model.get_layer("cosreg")
    assert type(cosine) is keras_istar.CosineRegularization
    assert cosine.strength == 0.25
    isobn = model.get_layer("isobn")
    assert type(isobn) is keras_istar.IsotropicBatchNormalization
    x, y = np.ones((8, 4, 3)), np.ones((8, 2))
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert "isoscore" in logs  # The metric that the model was compiled with.
    assert set(model.fit(x, y, verbose=0).history) > set(logs)


def test_model_that_was_attached():
    model = keras.models.load_model(FOLDER / "attached.keras")
    check_predictions(model, recorded("attached"))
    layer = keras_istar.attach(model, "block", strength=1.0)
    model.load_weights(FOLDER / "attached.weights.h5")
    check_predictions(model, recorded("attached"))
    check_shrinkage_covariance(layer, recorded("attached"))


@pytest.fixture
def old():
    """The report as version 0.1 wrote it, with `points` for tokens."""
    return json.loads((FOLDER / "report.json").read_text())


def test_report(old, tmp_path):
    report = keras_istar.IsotropyReport.load(FOLDER / "report.json")
    for name in ("model", "dim", "shrinkage", "shrinkage_target"):
        assert getattr(report, name) == old[name]
    assert [row.layer for row in report.rows] == ["block", "union"]
    for row, before in zip(report.rows, old["rows"], strict=True):
        assert row.tokens == before["points"] == 128
        assert list(row.values.values()) == list(before["values"].values())
        assert not any("points" in name for name in row.values)
        for name in ("spectrum", "means", "variances", "outlier_dimensions"):
            assert getattr(row, name) == before[name]
    report.save(tmp_path / "report.json")
    assert keras_istar.IsotropyReport.load(tmp_path / "report.json") == report
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["version"] == 2
    assert "points" not in (tmp_path / "report.json").read_text()


def test_report_compares_with_a_new_one():
    pytest.importorskip("pandas")
    old = keras_istar.IsotropyReport.load(FOLDER / "report.json")
    model = keras.models.load_model(FOLDER / "attached.keras")
    x = recorded("attached")["x"]
    new = keras_istar.measure(model, x, "block", verbose=0)
    difference = old.compare(new)
    # It shrank towards the estimate of the layer that was attached.
    assert "isoscore_star" not in difference.columns
    for name in difference.columns:
        assert difference.loc["block", name] == (
            new.rows[0].values[name] - old.rows[0].values[name]
        )
