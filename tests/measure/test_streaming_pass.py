import itertools
import re
import sys
import time

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
    return model, keras_istar.attach(
        model, "encoder", **({"strength": -1.0} | kwargs)
    )


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
    layer = keras_istar.attach(model, "encoder", momentum=0.5, strength=-1.0)
    _, seen = _run(model, layer, x)
    states = np.asarray(model.get_layer("encoder")(x)).reshape(-1, 4)
    _assert_moments(seen, states)
    assert float(layer.has_shrinkage_covariance.value) == 0


def _drawn(capsys, monkeypatch, data, max_tokens, batch_size=8, passes=1):
    """For each time the bar is drawn, where it stands and where it ends."""
    from keras_istar._src.measure import streaming_pass

    monkeypatch.setattr(streaming_pass, "_SECONDS_BEFORE_PROGRESS", -1.0)
    monkeypatch.setattr(time, "time", itertools.count().__next__)
    model, layer = _model()
    states = StatesPass(model, [layer], data, max_tokens, batch_size, True)
    for _ in range(passes):
        capsys.readouterr()
        states.run()
    return re.findall(r"(\d+)/(\d+|Unknown)", capsys.readouterr().out)


@pytest.mark.parametrize("batch_size", [8, 10])
@pytest.mark.parametrize("max_tokens", [None, 110, 10**6])
def test_bar_ends_at_the_tokens_that_there_are(
    capsys, monkeypatch, batch_size, max_tokens
):
    x = np.ones((20, 6, 5), "float32")  # 120 tokens.
    drawn = _drawn(capsys, monkeypatch, x, max_tokens, batch_size)
    end = 110 if max_tokens == 110 else 120
    seen = [min(6 * n, end) for n in (*range(batch_size, 20, batch_size), 20)]
    assert drawn == [(f"{n}", f"{end}") for n in (*seen, seen[-1])]


def test_bar_follows_what_examples_hold(capsys, monkeypatch):
    x = np.ones((20, 6, 5), "float32")
    x[10:, 2:] = 0  # 60 tokens, then 20.
    drawn = _drawn(capsys, monkeypatch, x, None, batch_size=10, passes=2)
    assert drawn == [("60", "80"), ("80", "80"), ("80", "80")]
    first = _drawn(capsys, monkeypatch, x, None, batch_size=10)
    assert first == [("60", "120"), ("80", "80"), ("80", "80")]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_bar_of_a_dataset(capsys, monkeypatch, known):
    tf = pytest.importorskip("tensorflow")

    x = np.ones((24, 6, 5), "float32")  # 144 tokens.
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(12)
    if not known:
        dataset = dataset.filter(lambda x: True)
    end = "144" if known else "Unknown"
    drawn = _drawn(capsys, monkeypatch, dataset, None)
    assert drawn == [("72", end), ("144", end), ("144", "144")]
    drawn = _drawn(capsys, monkeypatch, dataset, 100)
    assert drawn == [("72", "100"), ("100", "100"), ("100", "100")]


def test_short_passes_draw_no_bar(x, capsys):
    model, layer = _model()
    StatesPass(model, [layer], x, 10**6, 8, show_progress=True).run()
    assert capsys.readouterr().out == ""


def test_all_tokens(x):
    model, layer = _model()
    _, seen = _run(model, layer, x, max_tokens=None)
    _assert_moments(seen, _tokens(model, x))


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
