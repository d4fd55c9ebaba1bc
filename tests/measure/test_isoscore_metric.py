import keras
import numpy as np
import oracle
import pytest

from keras_istar._src.measure.isoscore_metric import IsoScore


@pytest.fixture
def points(rng):
    """Off-centre points of unequal spread, `(37, 5, 4)`."""
    return rng.normal(size=(37, 5, 4)) * [1, 2, 3, 9] + [0, 100, 0, 0]


def score(points):
    return oracle.score(oracle.covariance(points))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("batch_size", [1, 8, 37])
def test_is_the_score_of_all_points(points, ndim, batch_size):
    points = points if ndim == 3 else points[:, 0]
    metric = IsoScore()
    for start in range(0, len(points), batch_size):
        metric.update_state(None, points[start : start + batch_size])
    result = metric.result()
    assert tuple(result.shape) == ()
    expected = score(points.reshape(-1, 4))
    assert float(result) == pytest.approx(expected, rel=1e-4)


def test_reset_forgets_all(points):
    metric = IsoScore()
    assert float(metric.result()) == 0.0
    metric.update_state(None, points * [100, 1, 1, 1])
    metric.reset_state()
    assert float(metric.result()) == 0.0
    metric.update_state(None, points)
    expected = score(points.reshape(-1, 4))
    assert float(metric.result()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shape", [(37,), (37, 5)])
def test_weights_choose_points(points, rng, shape):
    weights = rng.integers(0, 3, size=shape) * 0.5
    metric = IsoScore()
    metric.update_state(None, points, weights)
    chosen = np.broadcast_to(
        (weights > 0).reshape(*shape, *[1] * (2 - len(shape))), (37, 5)
    )
    expected = score(points[chosen])
    assert float(metric.result()) == pytest.approx(expected, rel=1e-4)


def model_of(points, metrics, **options):
    inputs = keras.Input(points.shape[1:])
    masked = keras.layers.Masking()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(6)(masked))
    model.compile(keras.optimizers.SGD(0.0), "mse", metrics=metrics, **options)
    return model


def test_evaluate_leaves_masked_outputs_out(points):
    points[:20, 2:] = 0
    model = model_of(points, [IsoScore()])
    logs = model.evaluate(
        points, np.zeros((37, 5, 6)), 8, verbose=0, return_dict=True
    )
    outputs = model.predict(points, verbose=0)[np.any(points != 0, axis=-1)]
    assert logs["isoscore"] == pytest.approx(score(outputs), rel=1e-4)


def test_fit_logs_every_epoch_anew(points):
    model = model_of(points[:, :1], [], weighted_metrics=[IsoScore("space")])
    weights = (np.arange(37) % 3 > 0).astype("float32")[:, None]
    history = model.fit(
        points[:, :1],
        np.zeros((37, 1, 6)),
        8,
        epochs=2,
        verbose=0,
        sample_weight=weights,
        validation_data=(points[:9, :1], np.zeros((9, 1, 6))),
    ).history
    outputs = model.predict(points[:, :1], verbose=0).reshape(-1, 6)
    expected = score(outputs[weights[:, 0] > 0])
    assert history["space"] == pytest.approx([expected] * 2, rel=1e-4)
    expected = score(outputs[:9])
    assert history["val_space"] == pytest.approx([expected] * 2, rel=1e-4)


def test_config():
    metric = IsoScore(name="space", dtype="float64")
    copy = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert isinstance(copy, IsoScore)
    assert copy.get_config() == metric.get_config()
    assert (copy.name, copy.dtype) == ("space", "float64")


def test_saved_model_keeps_the_metric(points, tmp_path):
    x, y = points[:, 0], np.zeros((37, 6))
    model = model_of(x, [IsoScore()])
    before = model.evaluate(x, y, verbose=0, return_dict=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(x, y, verbose=0, return_dict=True) == before
