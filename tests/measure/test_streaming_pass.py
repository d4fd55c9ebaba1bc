import sys

import keras
import numpy as np
import oracle
import pytest

import keras_istar
from keras_istar._src.measure.streaming_pass import StatesPass
from keras_istar._src.score import moments


def _model(**kwargs):
    inputs = keras.Input((None, 5))
    masked = keras.layers.Masking()(inputs)
    states = keras.layers.Dense(4, name="encoder")(masked)
    model = keras.Model(inputs, keras.layers.Dense(1)(states))
    return model, keras_istar.attach(model, "encoder", **kwargs)


@pytest.fixture
def x(rng):
    x = rng.normal(size=(20, 6, 5)).astype("float32")
    x[rng.random((20, 6)) < 0.3] = 0.0
    return x


def _tokens(model, x):
    states = np.asarray(model.get_layer("encoder")(x))
    return states[np.any(x != 0, axis=-1)]


def _run(model, layer, x, max_tokens=10**6, batch_size=8):
    states = StatesPass(model, [layer], x, max_tokens, batch_size, False)
    (seen,) = states.run()[layer]
    return states, seen


def _assert_moments(seen, tokens):
    assert int(seen.count) == len(tokens)
    expected = oracle.covariance(tokens)
    np.testing.assert_allclose(
        moments.covariance(seen), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("batch_size", [1, 8, 20, 64])
def test_moments_of_all_unmasked_tokens(x, batch_size):
    model, layer = _model()
    _, seen = _run(model, layer, x, batch_size=batch_size)
    _assert_moments(seen, _tokens(model, x))


def test_every_pass_starts_anew(x):
    model, layer = _model()
    states, _ = _run(model, layer, x)
    (again,) = states.run()[layer]
    _assert_moments(again, _tokens(model, x))
    kernel = model.get_layer("encoder").kernel
    kernel.assign(3 * kernel)
    (changed,) = states.run()[layer]
    _assert_moments(changed, _tokens(model, x))


def test_pass_stops_early(x):
    model, layer = _model()
    first = _tokens(model, x[:8])
    _, seen = _run(model, layer, x, max_tokens=len(first))
    _assert_moments(seen, first)
    _, seen = _run(model, layer, x, max_tokens=len(first) + 1)
    _assert_moments(seen, _tokens(model, x[:16]))


def test_layer_called_twice_counts_both_calls(x):
    inner, layer = _model()
    inputs = [keras.Input((None, 5)), keras.Input((None, 5))]
    difference = inner(inputs[0]) - inner(inputs[1])
    model = keras.Model(inputs, difference)
    _, seen = _run(model, layer, (x, 2 * x))
    tokens = np.concatenate([_tokens(inner, x), _tokens(inner, 2 * x)])
    _assert_moments(seen, tokens)


def test_model_is_in_inference_mode(x):
    inputs = keras.Input((None, 5))
    dropped = keras.layers.Dropout(0.9)(inputs)
    states = keras.layers.Dense(4, name="encoder")(dropped)
    model = keras.Model(inputs, keras.layers.Dense(1)(states))
    layer = keras_istar.attach(model, "encoder", momentum=0.5)
    _, seen = _run(model, layer, x)
    states = np.asarray(model.get_layer("encoder")(x)).reshape(-1, 4)
    _assert_moments(seen, states)
    assert float(layer.has_shrinkage_covariance.value) == 0


def test_long_passes_draw_a_bar(x, capsys, monkeypatch):
    from keras_istar._src.measure import streaming_pass

    monkeypatch.setattr(streaming_pass, "_SECONDS_BEFORE_PROGRESS", -1.0)
    model, layer = _model()
    for show in (False, True):
        StatesPass(model, [layer], x, 10**6, 8, show).run()
        assert ("/1000000" in capsys.readouterr().out) is show


@pytest.mark.parametrize("max_tokens", [9, 10**6])
def test_a_bar_ends_its_line_once(x, capsys, monkeypatch, max_tokens):
    from keras_istar._src.measure import streaming_pass

    monkeypatch.setattr(streaming_pass, "_SECONDS_BEFORE_PROGRESS", -1.0)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    model, layer = _model()
    StatesPass(model, [layer], x, max_tokens, 8, show_progress=True).run()
    out = capsys.readouterr().out
    assert out.endswith("\n")
    assert out.count("\n") == 1
