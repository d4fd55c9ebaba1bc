"""Train steps of one's own, in the forms that the guides of Keras teach.

In each of them the penalty has to enter the loss, and the metrics of the layer
have to take their values from the layer, whatever the step gives to them.
"""

import keras
import numpy as np
import oracle
import pytest

import keras_istar

BACKEND = keras.backend.backend()


def with_test_step(base):
    class Guide(base):
        """As the guides override evaluation beside training."""

        def test_step(self, data):
            x, y = data
            y_pred = self(x, training=False)
            loss = self.compute_loss(y=y, y_pred=y_pred)
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss)
                else:
                    metric.update_state(y, y_pred)
            return {m.name: m.result() for m in self.metrics}

    return Guide


class TensorFlowNew(keras.Model):
    """`compute_loss` and a loop over `self.metrics`."""

    def train_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return {m.name: m.result() for m in self.metrics}


class TensorFlowLowLevel(keras.Model):
    """Losses and trackers of one's own, `self.losses` added by hand."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tracker = keras.metrics.Mean(name="loss")
        self.mean_error = keras.metrics.MeanAbsoluteError(name="mae")
        self.function = keras.losses.MeanSquaredError()

    def train_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.function(y, y_pred) + sum(self.losses)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        self.tracker.update_state(loss)
        self.mean_error.update_state(y, y_pred)
        return {m.name: m.result() for m in self.metrics}

    @property
    def metrics(self):
        return [self.tracker, self.mean_error]


class JaxOld(keras.Model):
    """`stateless_call` and `compute_loss`, which Keras gives no losses."""

    def compute_loss_and_updates(
        self, trainable, non_trainable, x, y, training=False
    ):
        y_pred, non_trainable = self.stateless_call(
            trainable, non_trainable, x, training=training
        )
        loss = self.compute_loss(x, y, y_pred)
        return loss, (y_pred, non_trainable)

    def train_step(self, state, data):
        import jax

        trainable, non_trainable, optimizer, metrics = state
        x, y = data
        grad = jax.value_and_grad(self.compute_loss_and_updates, has_aux=True)
        (loss, (y_pred, non_trainable)), gradients = grad(
            trainable, non_trainable, x, y, training=True
        )
        trainable, optimizer = self.optimizer.stateless_apply(
            optimizer, gradients, trainable
        )
        new_metrics, logs = [], {}
        for metric in self.metrics:
            start = len(new_metrics)
            own = metrics[start : start + len(metric.variables)]
            if metric.name == "loss":
                own = metric.stateless_update_state(own, loss)
            else:
                own = metric.stateless_update_state(own, y, y_pred)
            logs[metric.name] = metric.stateless_result(own)
            new_metrics += own
        return logs, (trainable, non_trainable, optimizer, new_metrics)


class JaxNew(keras.Model):
    """`stateless_compute_loss`, which has the state of metrics."""

    def compute_loss_and_updates(
        self, trainable, non_trainable, metrics, x, y, training=False
    ):
        y_pred, non_trainable, losses = self.call_and_losses(
            trainable, non_trainable, x, training
        )
        loss, (_, _, metrics) = self.stateless_compute_loss(
            trainable, non_trainable, metrics, x, y, y_pred
        )
        return loss + sum(losses), (y_pred, non_trainable, metrics)

    def call_and_losses(self, *arguments):
        """Without `return_losses`, `compute_loss` has to add the penalty."""
        *arguments, training = arguments
        outputs = self.stateless_call(*arguments, training=training)
        return *outputs, []

    def train_step(self, state, data):
        import jax

        trainable, non_trainable, optimizer, metrics = state
        x, y = data
        grad = jax.value_and_grad(self.compute_loss_and_updates, has_aux=True)
        (loss, (y_pred, non_trainable, metrics)), gradients = grad(
            trainable, non_trainable, metrics, x, y, training=True
        )
        trainable, optimizer = self.optimizer.stateless_apply(
            optimizer, gradients, trainable
        )
        new_metrics, logs = [], {}
        for metric in self.metrics:
            start = len(new_metrics)
            own = metrics[start : start + len(metric.variables)]
            if metric.name == "loss":
                own = metric.stateless_update_state(own, loss)
            else:
                own = metric.stateless_update_state(own, y, y_pred)
            logs[metric.name] = metric.stateless_result(own)
            new_metrics += own
        return logs, (trainable, non_trainable, optimizer, new_metrics)


class JaxLosses(JaxNew):
    """Adds the losses that `stateless_call` returns by hand."""

    def call_and_losses(self, *arguments):
        *arguments, training = arguments
        return self.stateless_call(
            *arguments, training=training, return_losses=True
        )


class Torch(keras.Model):
    def train_step(self, data):
        import torch

        x, y = data
        self.zero_grad()
        y_pred = self(x, training=True)
        loss = self.compute_loss(y=y, y_pred=y_pred)
        loss.backward()
        weights = list(self.trainable_weights)
        with torch.no_grad():
            self.optimizer.apply([w.value.grad for w in weights], weights)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return {m.name: m.result() for m in self.metrics}


FORMS = {
    "tensorflow": [TensorFlowNew, TensorFlowLowLevel],
    "jax": [JaxOld, JaxNew, JaxLosses],
    "torch": [Torch],
}[BACKEND]


def build(kind):
    inputs = keras.Input((8, 4))
    hidden = keras.layers.Dense(6, activation="tanh", name="block")(inputs)
    pooled = keras.layers.GlobalAveragePooling1D()(hidden)
    return kind(inputs, keras.layers.Dense(1)(pooled))


@pytest.fixture
def data(rng):
    x = rng.normal(size=(32, 8, 4)).astype("float32")
    return x, x[:, 0, :1] + 5.0  # Labels that no score could be.


def penalty_of(model, x):
    block = model.get_layer("block").output
    states = keras.Model(model.input, block).predict(x, verbose=0)
    return oracle.penalty(states.reshape(-1, 6), strength=1.0)


@pytest.mark.parametrize("form", FORMS)
def test_penalty_enters_the_loss(form, data):
    model = build(form)
    keras_istar.attach(model, "block", strength=3.0)
    model.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mae"])
    x, y = data
    penalty = 3.0 * penalty_of(model, x)
    task = np.mean((model.predict(x, verbose=0) - y) ** 2)
    fit = model.fit(x, y, batch_size=32, verbose=0)
    logs = {key: values[-1] for key, values in fit.history.items()}
    np.testing.assert_allclose(logs["loss"], task + penalty, rtol=1e-5)
    mean_error = np.mean(np.abs(model.predict(x, verbose=0) - y))
    np.testing.assert_allclose(logs["mae"], mean_error, rtol=1e-5)
    # No state of metrics for `compute_loss`, or a list of metrics without ours.
    if form in (JaxOld, TensorFlowLowLevel):
        assert set(logs) == {"loss", "mae"}
    else:
        np.testing.assert_allclose(logs["istar_penalty"], penalty, rtol=1e-5)
        np.testing.assert_allclose(
            logs["isoscore"], 1 - penalty / 3.0, rtol=1e-5
        )


@pytest.mark.parametrize("form", FORMS)
def test_penalty_trains_the_model(form, data):
    """Weights after a step are those of the default step of Keras."""
    x, y = data
    weights = []
    for kind in (form, keras.Model):
        keras.utils.set_random_seed(0)
        model = build(kind)
        keras_istar.attach(model, "block", strength=3.0)
        model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
        model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for ours, default in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, default, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(BACKEND == "jax", reason="the form is not for JAX")
@pytest.mark.parametrize("form", FORMS)
def test_evaluation_of_ones_own_logs_no_training_values(form, data):
    model = build(with_test_step(form))
    keras_istar.attach(model, "block", strength=3.0)
    model.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mae"])
    fit = model.fit(*data, validation_data=data, verbose=0)
    assert {k for k in fit.history if k.startswith("val_")} <= {
        "val_loss",
        "val_mae",
    }


class CallsAgain(keras.Model):
    """Calls the model twice before it asks for the loss."""

    modes = (True, False)

    def train_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            outputs = [self(x, training=mode) for mode in self.modes]
            loss = self.compute_loss(y=y, y_pred=outputs[0])
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
        return {m.name: m.result() for m in self.metrics}


class CallsTwice(CallsAgain):
    modes = (True, True)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a step of TensorFlow")
@pytest.mark.parametrize("kind", [CallsAgain, CallsTwice])
def test_steps_that_call_the_model_twice(kind, rng):
    x = rng.normal(size=(8, 6, 4)).astype("float32")
    inputs = keras.Input((6, 4))
    hidden = keras.layers.Dense(5, name="block")(inputs)
    model = kind(inputs, keras.layers.Dense(1)(hidden))
    keras_istar.attach(model, "block", strength=2.0)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    y = model.predict(x, verbose=0)  # The task's own loss is 0.
    logs = model.fit(x, y, batch_size=8, verbose=0).history
    states = keras.ops.convert_to_numpy(model.get_layer("block")(x))
    expected = sum(kind.modes) * oracle.penalty(states.reshape(-1, 5), 2.0)
    assert logs["loss"] == [pytest.approx(expected, abs=1e-5)]
    assert logs["istar_penalty"] == [pytest.approx(expected, abs=1e-5)]


class LeavesLossesOut:
    def compute_loss(self, x, y, y_pred, *args, **kwargs):
        return keras.ops.mean(keras.ops.square(y - y_pred))


class AddsLosses(LeavesLossesOut):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs) + sum(self.losses)


class CallsSuper:
    def train_step(self, *args):
        return super().train_step(*args)


def model_of(*parts):
    """A class of models with the methods of `parts`, which come first."""
    return type("Model", (*parts, keras.Model), {})


class Around:
    """Calls a part `times` times, and a head."""

    def __init__(self, part, times):
        super().__init__()
        self.part = part
        self.times = times
        self.head = keras.layers.Dense(1)

    def call(self, x, training=None):
        factors = range(1, self.times + 1)
        states = [self.part(i * x, training=training) for i in factors]
        return self.head(keras.ops.mean(sum(states), axis=1))


def make_encoder():
    inputs = keras.Input((8, 4))
    hidden = keras.layers.Dense(6, activation="tanh", name="block")(inputs)
    return keras.Model(inputs, hidden)


def train(model, data, **options):
    model.compile(keras.optimizers.SGD(0.1), "mse", **options)
    model.fit(*data, batch_size=16, verbose=0)


def attached(form, **options):
    model = build(form)
    keras_istar.attach(model, "block", **{"strength": 3.0, **options})
    return model


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_warns_of_a_loss_that_leaves_the_penalty_out(data, run_eagerly):
    model = attached(model_of(LeavesLossesOut))
    with pytest.warns(UserWarning, match="trains nothing.*sum.self.losses"):
        train(model, data, run_eagerly=run_eagerly)


@pytest.mark.skipif(BACKEND == "torch", reason="nothing is traced")
@pytest.mark.parametrize("is_attached", [False, True])
def test_warns_in_a_model_around_what_adds_the_penalty(data, is_attached):
    """No callback, and nothing is attached to the model that is fitted."""
    part = keras_istar.IStarRegularization(strength=3.0)
    if is_attached:
        part = make_encoder()
        keras_istar.attach(part, "block", strength=3.0)
    with pytest.warns(UserWarning, match="trains nothing"):
        train(model_of(Around, LeavesLossesOut)(part, times=1), data)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a step of TensorFlow")
def test_warns_of_a_step_that_leaves_the_penalty_out(data):
    class Step(TensorFlowLowLevel):
        """Its metrics do not show that it ends."""

        @property
        def losses(self):
            return []

    model = attached(Step)
    with pytest.warns(UserWarning, match="trains nothing"):
        train(model, data)


@pytest.mark.skipif(BACKEND != "jax", reason="a step of JAX")
def test_warns_of_returned_losses_that_are_not_used(data):
    class Step(JaxLosses):
        def call_and_losses(self, *arguments):
            *outputs, losses = super().call_and_losses(*arguments)
            assert len(losses) == 1
            return *outputs, []

    model = attached(Step)
    with pytest.warns(UserWarning, match="return_losses=True.. returns"):
        train(model, data)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a step of TensorFlow")
def test_warns_of_the_first_of_two_calls(data):
    """`self.losses` holds the penalty of the last call alone."""

    class Contrastive(keras.Model):
        def train_step(self, data):
            import tensorflow as tf

            x, _ = data
            with tf.GradientTape() as tape:
                first, second = (self(i * x, training=True) for i in (1, 2))
                loss = tf.reduce_mean(first * second) + sum(self.losses)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            return {"loss": loss}

    model = attached(Contrastive)
    with pytest.warns(UserWarning, match="after each call"):
        train(model, data)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a step of TensorFlow")
def test_warns_of_a_step_that_calls_in_inference(data):
    class InInference(CallsAgain):
        modes = (None,)

    model = attached(InInference)
    with pytest.warns(UserWarning, match="Call it with `training=True`"):
        train(model, data)


@pytest.mark.skipif(BACKEND != "jax", reason="frozen variables get gradients")
def test_warns_of_layers_that_were_frozen_later(data):
    model = attached(keras.Model)
    model.get_layer("block").trainable = False
    with pytest.warns(UserWarning, match="are frozen"):
        train(model, data)


@pytest.mark.parametrize(
    "form",
    [keras.Model, model_of(AddsLosses), model_of(CallsSuper), *FORMS],
    ids=["Keras", "AddsLosses", "CallsSuper", *[x.__name__ for x in FORMS]],
)
@pytest.mark.filterwarnings("error")
def test_does_not_warn_of_penalties_that_train(form, data):
    train(attached(form), data)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a step of TensorFlow")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_does_not_warn_if_metrics_are_read_first(data, run_eagerly):
    class Early(keras.Model):
        def train_step(self, data):
            import tensorflow as tf

            x, y = data
            with tf.GradientTape() as tape:
                y_pred = self(x, training=True)
                loss = self.compute_loss(x, y, y_pred)
                logs = self.compute_metrics(x, y, y_pred)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            return logs

    train(attached(Early), data, run_eagerly=run_eagerly)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a step of TensorFlow")
@pytest.mark.filterwarnings("error")
def test_does_not_warn_of_a_teacher(data):
    class Distilled(TensorFlowNew):
        def train_step(self, data):
            x, y = data
            return super().train_step((x, y + teacher(x, training=False)))

    teacher = attached(keras.Model)
    train(attached(Distilled), data)


@pytest.mark.filterwarnings("error")
def test_does_not_warn_of_a_layer_that_only_logs(data):
    train(attached(model_of(LeavesLossesOut), strength=0.0), data)


@pytest.mark.parametrize("methods", [[], [CallsSuper]])
@pytest.mark.parametrize("has_callback", [False, True])
def test_part_that_is_called_twice(methods, has_callback, data):
    x, y = data
    part = make_encoder()
    keras_istar.attach(part, "block", strength=3.0, shrinkage=0.0)
    model = model_of(Around, *methods)(part, times=2)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    task = np.mean((model.predict(x, verbose=0) - y) ** 2)
    clouds = [part.predict(i * x, verbose=0).reshape(-1, 6) for i in (1, 2)]
    penalty = sum(oracle.penalty(cloud, 3.0, shrinkage=0.0) for cloud in clouds)
    callbacks = [keras_istar.IStarCallback(x, verbose=0)] * has_callback

    def fit():
        return model.fit(
            x, y, batch_size=32, verbose=0, callbacks=callbacks
        ).history["loss"]

    if BACKEND == "jax" and not has_callback:
        with pytest.warns(UserWarning, match="give `fit` an `IStarCallback`"):
            fit()
    else:
        assert fit() == [pytest.approx(task + penalty, rel=1e-5)]


@pytest.mark.skipif(BACKEND == "torch", reason="a step of the others")
def test_schedules_count_train_steps(data):
    is_twice = BACKEND == "tensorflow"
    model = build(CallsTwice if is_twice else model_of(CallsSuper))
    layer = keras_istar.attach(model, "block", strength=lambda steps: 2 * steps)
    train(model, data)
    assert layer.value_in_force("strength") == 4.0  # After two steps.
