"""Several threads, one process."""

import copy
import threading

import keras
import numpy as np
import pytest
from private_keras import all_layers

import keras_istar
from keras_istar._src.compat.replica_losses import ReplicaLosses

THREADS = 4


def make_model(encoder=None):
    """A model of its own head, and of `encoder` if there is one."""
    inputs = keras.Input((6, 4))
    if encoder is None:
        hidden = keras.layers.Dense(5, name="encoder")(inputs)
        encoder = keras.Model(inputs, hidden, name="tower")
    outputs = keras.layers.Dense(1, name="head")(encoder(inputs))
    return keras.Model(inputs, outputs)


def in_threads(*functions):
    """What the functions return or raise, run at the same time."""
    results = [None] * len(functions)
    start = threading.Barrier(len(functions))

    def run(place, function):
        start.wait()
        try:
            results[place] = function()
        except Exception as error:
            results[place] = error

    threads = [
        threading.Thread(target=run, args=item) for item in enumerate(functions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def x(rng):
    return rng.normal(size=(32, 6, 4)).astype("float32")


def fitted(model, x, callbacks=()):
    """Losses and weights after two epochs without chance."""
    model.compile(keras.optimizers.SGD(0.1), "mse")
    history = model.fit(
        x,
        x[..., :1],
        8,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )
    return history.history, [w.numpy() for w in model.trainable_weights]


def assert_same(actual, expected):
    assert actual[0].keys() == expected[0].keys()
    for key, values in expected[0].items():
        np.testing.assert_allclose(actual[0][key], values, rtol=1e-5)
    for weight, value in zip(actual[1], expected[1], strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-7)


def test_attach_to_models_of_their_own(x):
    models = [make_model() for _ in range(THREADS)]
    layers = in_threads(
        *[
            lambda m=m: keras_istar.attach(m, "encoder", strength=-1.0)
            for m in models
        ]
    )
    for model, layer in zip(models, layers, strict=True):
        assert isinstance(layer, keras_istar.IStarRegularization)
        assert layer in all_layers(model)
        assert "isoscore" in fitted(model, x)[0]
        keras_istar.detach(model)


@pytest.mark.parametrize("shared", ["model", "encoder"])
def test_attach_to_one_model_succeeds_once(x, shared):
    first = make_model()
    encoder = first.get_layer("tower")
    models = [first] * THREADS
    if shared == "encoder":
        models = [make_model(encoder) for _ in range(THREADS)]
    results = in_threads(
        *[
            lambda m=m: keras_istar.attach(m, "encoder", strength=-1.0)
            for m in models
        ]
    )
    (layer,) = [r for r in results if not isinstance(r, Exception)]
    for result in results:
        if result is not layer:
            assert type(result) is ValueError
            assert "`model` is already attached" in str(result)
    attached = models[results.index(layer)]
    assert len(fitted(attached, x)[0]["isoscore"]) == 2
    keras_istar.detach(attached)
    assert set(fitted(attached, x)[0]) == {"loss"}


def test_attach_and_detach_and_measure_at_the_same_time(x):
    model = make_model()
    expected = keras_istar.measure(
        model, x, "encoder", measures="isoscore", verbose=0
    )

    def attach_and_detach():
        for _ in range(20):
            keras_istar.attach(model, "encoder", strength=-1.0)
            keras_istar.detach(model)

    def measure():
        return keras_istar.measure(
            model, x, "encoder", measures="isoscore", verbose=0
        )

    before = set(vars(model)), model.get_config()
    outcome, *reports = in_threads(attach_and_detach, measure, measure)
    assert outcome is None
    assert reports == [expected] * 2
    assert (set(vars(model)), model.get_config()) == before
    assert set(fitted(model, x)[0]) == {"loss"}


class Leaving(keras_istar.CosineRegularization):
    """Another thread detaches it while the model calls it."""

    def __init__(self, model):
        super().__init__(strength=1.0)
        self.leave = lambda: keras_istar.detach(model)

    def call(self, hidden_states, mask=None, training=None):
        if self.leave is not None:
            (outcome,) = in_threads(self.leave)
            assert outcome is None, outcome
            self.leave = None
        return super().call(hidden_states, mask, training)


def test_detach_while_the_model_runs_takes_nothing_from_measure(x):
    model = make_model()
    expected = keras_istar.measure(
        model, x, "encoder", measures="isoscore", verbose=0
    )
    layer = Leaving(model)
    leave, layer.leave = layer.leave, None  # Attaching calls it, too.
    keras_istar.attach_regularizer(model, layer, "encoder")
    layer.leave = leave
    report = keras_istar.measure(
        model, x, "encoder", measures="isoscore", verbose=0
    )
    assert layer.leave is None
    assert report == expected


def test_two_trainings_are_as_good_as_one_after_the_other(x):
    def train(model, strength):
        keras_istar.attach(model, "encoder", strength=strength)
        callback = keras_istar.IStarCallback(x, verbose=0)
        return fitted(model, x, [callback])

    strengths = (-1.0, 2.0)
    models = [make_model() for _ in strengths]
    twins = [make_model() for _ in strengths]
    for model, twin in zip(models, twins, strict=True):
        twin.set_weights(model.get_weights())
    expected = [train(*pair) for pair in zip(twins, strengths, strict=True)]
    actual = in_threads(
        *[
            lambda m=m, s=s: train(m, s)
            for m, s in zip(models, strengths, strict=True)
        ]
    )
    for one, other in zip(actual, expected, strict=True):
        assert not isinstance(one, Exception), one
        assert_same(one, other)
    assert not np.allclose(expected[0][1][0], expected[1][1][0])


def test_losses_of_replicas_are_a_list_in_each_thread():
    losses = ReplicaLosses()
    losses.append(0.0)

    def use():
        losses.extend([1.0, 2.0, 3.0])
        losses[0] = 4.0
        del losses[1]
        return list(losses), type(copy.deepcopy(losses))

    assert in_threads(use, use) == [([4.0, 3.0], list)] * 2
    assert list(losses) == [0.0]
    losses.clear()
    assert len(losses) == 0
