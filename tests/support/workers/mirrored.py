"""Trains on R replicas of a `MirroredStrategy`, or on one device for R = 0."""

import contextlib
import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
from small_models import bert_classifier
from small_models import flat_weights
from small_models import token_batches

import keras_istar

BATCH = 8


def make_strategy(replicas):
    if not replicas:
        return None
    devices = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        devices[0], [tf.config.LogicalDeviceConfiguration()] * replicas
    )
    return tf.distribute.MirroredStrategy(
        [f"/cpu:{i}" for i in range(replicas)]
    )


class Experiments:
    """Each method trains one model and returns what it measured."""

    def __init__(self, replicas):
        self._strategy = make_strategy(replicas)

    def _scope(self):
        if self._strategy is None:
            return contextlib.nullcontext()
        return self._strategy.scope()

    def _bert(self, **options):
        with self._scope():
            model = bert_classifier()
            self._layer = keras_istar.attach(model, **options)
            model.compile(
                keras.optimizers.SGD(0.05),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
            )
        return model

    def _fit(self, model, examples, **options):
        x, y = token_batches(examples, BATCH)
        before = flat_weights(model)
        history = model.fit(
            x, y, batch_size=BATCH, shuffle=False, verbose=0, **options
        ).history
        after = flat_weights(model)
        return {
            "weights": after,
            "change": after - before,
            **{name: np.array(value) for name, value in history.items()},
        }

    def even(self):
        model = self._bert(strength=-3.0)
        result = self._fit(model, 10 * BATCH)
        x, y = token_batches(3 * BATCH, BATCH, seed=1)
        metrics = model.evaluate(x, y, batch_size=BATCH, return_dict=True)
        result["predictions"] = model.predict(x, batch_size=BATCH, verbose=0)
        result["evaluate_names"] = np.array(sorted(metrics))
        result["evaluate_loss"] = metrics["loss"]
        return result

    def empty_replica(self):
        """In the last batch of three, the penalty alone drives the weights."""
        model = self._bert(strength=-3.0, momentum=0.8, shrinkage=0.5)
        examples = 9 * BATCH + 3
        weight = (np.arange(examples) < 9 * BATCH).astype("float32")
        result = self._fit(model, examples, sample_weight=weight)
        return {**result, **self._shrinkage_covariances()}

    def _shrinkage_covariances(self):
        variable = self._layer.shrinkage_covariance.value
        values = getattr(variable, "values", [variable])  # One a replica.
        return {"shrinkage_covariances": np.stack([v.numpy() for v in values])}

    def empty_replica_sum(self):
        """The task loss is a sum over examples, which replicas add up."""
        return self._dense(
            one_tower,
            examples=9 * BATCH + 3,
            loss=keras.losses.MeanSquaredError(reduction="sum"),
            rate=0.005,
        )

    def plain_uneven(self):
        return self._dense(plain_tower, examples=9 * BATCH + 3)

    def callback(self):
        model = self._bert(strength=-3.0)
        x, _ = token_batches(37, BATCH, seed=2)
        callback = keras_istar.IStarCallback(
            x, max_tokens=10**6, batch_size=BATCH, verbose=0
        )
        result = self._fit(model, 4 * BATCH, callbacks=[callback])
        return {**result, **self._shrinkage_covariances()}

    def _dense(
        self, make_model, examples=4 * BATCH, loss="mse", rate=0.05, **options
    ):
        with self._scope():
            keras.utils.set_random_seed(3)
            model = make_model(**options)
            model.compile(keras.optimizers.SGD(rate), loss, metrics=["mse"])
        rng = np.random.default_rng(4)
        x = rng.standard_normal((examples, 6, 8)) * np.linspace(0.2, 2, 8)
        y = rng.standard_normal((examples, 1))
        before = flat_weights(model)
        history = model.fit(
            x, y, batch_size=BATCH, shuffle=False, verbose=0, epochs=2
        ).history
        after = flat_weights(model)
        return {
            "weights": after,
            "change": after - before,
            **{name: np.array(value) for name, value in history.items()},
        }

    def two_towers(self):
        return self._dense(two_towers)

    def synchronized_batch_norm(self):
        return self._dense(batch_norm_head, synchronized=True)

    def batch_norm(self):
        return self._dense(batch_norm_head, synchronized=False)

    def other_losses(self):
        return self._dense(activity_regularizers, strength=-2.0)

    def cosine(self):
        return self._dense(cosine_tower)

    def isobn(self):
        return self._dense(isobn_tower)

    def isobn_other_losses(self):
        penalty = keras.regularizers.L2(1)
        return self._dense(isobn_tower, penalty=penalty)

    def no_sync(self):
        return self._dense(one_tower, sync=False)

    def sync(self):
        return self._dense(one_tower, sync=True)

    def target(self):
        """After 20 steps, towards half of the isotropy that they measured."""
        options = {"target": (0.2, 0.5), "relative": True}
        return self._dense(two_states, examples=12 * BATCH, **options)

    def per_layer(self):
        return self._dense(two_states, target=[0.1, (0.8, 0.9)])

    def centered(self):
        return self._dense(two_states, strength=-2.0, centered=True)


def two_towers():
    inputs = keras.Input((6, 8))
    towers = []
    for name, strength in (("a", -2.0), ("b", 3.0)):
        hidden = keras.layers.Dense(12, "tanh", name=f"dense_{name}")(inputs)
        layer = keras_istar.IStarRegularization(strength, 0.5, 0.9, name=name)
        towers.append(layer(hidden))
    outputs = keras.layers.GlobalAveragePooling1D()(sum(towers))
    return keras.Model(inputs, keras.layers.Dense(1)(outputs))


def batch_norm_head(synchronized):
    inputs = keras.Input((6, 8))
    hidden = keras.layers.Dense(12, "tanh", name="hidden")(inputs)
    hidden = keras_istar.IStarRegularization(-2.0)(hidden)
    outputs = keras.layers.BatchNormalization(synchronized=synchronized)(hidden)
    outputs = keras.layers.GlobalAveragePooling1D()(outputs)
    return keras.Model(inputs, keras.layers.Dense(1)(outputs))


def activity_regularizers(**options):
    inputs = keras.Input((6, 8))
    hidden = keras.layers.Dense(
        12, "tanh", name="hidden", activity_regularizer=keras.regularizers.L2(1)
    )(inputs)
    outputs = keras.layers.GlobalAveragePooling1D()(hidden)
    outputs = keras.layers.Dense(
        1, activity_regularizer=keras.regularizers.L2(1)
    )(outputs)
    model = keras.Model(inputs, outputs)
    if options:
        keras_istar.attach(
            model, layers="hidden", **({"strength": -1.0} | options)
        )
    return model


def plain_tower():
    inputs = keras.Input((6, 8))
    hidden = keras.layers.Dense(12, "tanh", name="hidden")(inputs)
    outputs = keras.layers.GlobalAveragePooling1D()(hidden)
    return keras.Model(inputs, keras.layers.Dense(1)(outputs))


def one_tower(sync=True):
    model = plain_tower()
    options = {} if sync else {"sync": False}
    keras_istar.attach(model, layers="hidden", strength=-2.0, **options)
    return model


def two_states(**options):
    """Two hidden states whose means differ."""
    inputs = keras.Input((6, 8))
    first = keras.layers.Dense(12, "tanh", name="first")(inputs)
    second = keras.layers.Dense(12, "sigmoid", name="second")(first)
    outputs = keras.layers.GlobalAveragePooling1D()(second)
    model = keras.Model(inputs, keras.layers.Dense(1)(outputs))
    keras_istar.attach(model, ["first", "second"], **options)
    return model


def cosine_tower():
    model = plain_tower()
    cosine = keras_istar.CosineRegularization(2.0)
    keras_istar.attach_regularizer(model, cosine, layers="hidden")
    return model


def isobn_tower(penalty=None):
    inputs = keras.Input((6, 8))
    hidden = keras.layers.Dense(12, "tanh", activity_regularizer=penalty)
    outputs = keras.layers.GlobalAveragePooling1D()(hidden(inputs))
    outputs = keras.layers.Dense(1, activity_regularizer=penalty)(outputs)
    model = keras.Model(inputs, outputs)
    keras_istar.attach_regularizer(
        model, keras_istar.IsotropicBatchNormalization(momentum=0.8)
    )
    return model


def main(output, replicas, *cases):
    experiments = Experiments(int(replicas))
    results = {}
    for case in cases:
        for name, value in getattr(experiments, case)().items():
            results[f"{case}/{name}"] = value
    np.savez(output, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
