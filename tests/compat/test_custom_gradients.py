"""A custom gradient holds nothing longer than autodiff would."""

import gc
import weakref

import keras
import numpy as np
import pytest

from keras_istar._src.score import moments

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="TensorFlow alone registers gradients",
)


def _graph_of_a_score(points):
    """A graph with the moments of a variable, and its gradient, still alive."""
    import tensorflow as tf

    variable = tf.Variable(points)

    @tf.function
    def total():
        scatter = moments.token_moments(variable).scatter
        return tf.reduce_sum(tf.linalg.diag_part(scatter))

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            value = total()
        return tape.gradient(value, variable)

    return total, gradient


def test_graph_goes_with_its_function(rng):
    points = rng.normal(size=(6, 3)).astype("float32")
    total, gradient = _graph_of_a_score(points)
    # d sum_i |x_i - m|² / d x_i = 2 (x_i - m)
    expected = 2 * (points - points.mean(axis=0, dtype="float64"))
    np.testing.assert_allclose(gradient(), expected, atol=1e-5)
    graph = weakref.ref(total.get_concrete_function().graph)
    gc.collect()
    assert graph() is not None
    del total, gradient
    gc.collect()
    assert graph() is None


def test_gradient_taken_late(rng):
    """What is registered must live as long as the graph may ask for it."""
    import tensorflow as tf

    points = rng.normal(size=(6, 3)).astype("float32")
    total, gradient = _graph_of_a_score(points)
    total()
    gc.collect()
    np.testing.assert_allclose(
        tf.reduce_sum(gradient(), axis=0), [0.0] * 3, atol=1e-5
    )


def test_graph_that_is_differentiated_as_such(rng):
    """TensorFlow then looks the gradient up by the name in the graph."""
    import tensorflow as tf

    points = rng.normal(size=(6, 3)).astype("float32")
    graph = tf.Graph()
    with graph.as_default():
        tokens = tf.constant(points)
        scatter = moments.token_moments(tokens).scatter
        (gradient,) = tf.gradients(tf.linalg.trace(scatter), [tokens])
        with tf.compat.v1.Session(graph=graph) as session:
            found = session.run(gradient)
    expected = 2 * (points - points.mean(axis=0, dtype="float64"))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_gradients_of_others_are_left_alone():
    """Even where one of their variables has no value yet."""
    import tensorflow as tf

    from keras_istar._src.compat.custom_gradients import free_with_graph

    def register():
        def others(op, upstream):
            return upstream * factor

        tf.RegisterGradient("GradientOfOthers")(others)

    register()
    with tf.Graph().as_default() as graph:
        free_with_graph(lambda upstream: upstream)
        gc.collect()
        factor = 2.0
        x = tf.constant(3.0)
        with graph.gradient_override_map({"Identity": "GradientOfOthers"}):
            y = tf.identity(x)
        (gradient,) = tf.gradients(y, x)
        with tf.compat.v1.Session(graph=graph) as session:
            assert session.run(gradient) == 2.0


def test_models_are_not_kept(rng):
    """As in a program that measures one model after the other."""
    import tensorflow as tf

    import keras_istar

    graph = tf.function(lambda: 0).get_concrete_function().graph
    kind_of_graph = type(graph)
    del graph

    x = rng.normal(size=(8, 4, 6)).astype("float32")

    def measure():
        inputs = keras.Input((4, 6))
        hidden = keras.layers.Dense(5, name="hidden")(inputs)
        model = keras.Model(inputs, hidden)
        keras_istar.measure(
            model, x, layers="hidden", measures=["isoscore"], verbose=0
        )

    def graphs():
        keras.backend.clear_session()
        gc.collect()
        return sum(isinstance(item, kind_of_graph) for item in gc.get_objects())

    before = graphs()
    measure()
    assert graphs() <= before
