"""Lanes: models of one shape that train side by side, in JAX.

Keras chooses its backend as this file is imported.
"""

import functools
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import keras
import keras_hub
import numpy as np
from finetuning.optimizers import adam

from keras_istar import isoscore_from_covariance
from side_by_side.methods import Method

BATCH_SIZE = 32
SHRINKAGE = 0.2  # The paper's ζ.
_HEAD_LEARNING_RATE = 5e-3
_DROPOUT = 0.1
_CLOUDS = ("union", "centered")  # And each layer.


class Lane(NamedTuple):
    """Settings of one run, or, stacked, of all, as numbers."""

    seed: Any  # Place among the seeds.
    strength: Any
    is_plain: Any
    uses_running: Any
    weights: Any  # Of each cloud.
    scale: Any  # Of the score of each cloud.
    start: Any  # That at the start, to scale.
    low: Any  # For each cloud.
    high: Any
    ramp_steps: Any
    momentum: Any


class State(NamedTuple):
    """State that training changes, of one lane or, stacked, of all."""

    trainable: list
    others: list
    optimizer: list
    covariances: Any  # Σ_S of each cloud, `(clouds, dim, dim)`.


class Logs(NamedTuple):
    """Logs of a step."""

    loss: Any  # Of the task.
    scores: Any  # IsoScore* of the batch, of each cloud.
    running_scores: Any  # IsoScore of Σ_S after the step, of each cloud.


class Observation(NamedTuple):
    """Outputs of a model for some examples, and their covariances."""

    pooled: Any
    logits: Any
    covariances: Any  # `(clouds, dim, dim)`
    share_between: Any


class Trainer:
    """The model, its optimizer, and a step of training, which all lanes share.

    Args:
        data: What `arrays.load` has returned.
        steps: Number of training steps.
        learning_rate: The highest one, after a tenth of the steps.
    """

    def __init__(self, data: Any, steps: int, learning_rate: float):
        self.model, self.head = build(data)
        self.optimizer = adam(learning_rate, steps)
        self.optimizer.build(self.model.trainable_variables)
        self.loss = functools.partial(task_loss, data.classes == 0)
        num_clouds = len(_CLOUDS) + data.config["num_layers"]
        dim = data.config["hidden_dim"]
        self.start = State(
            _arrays(self.model.trainable_variables),
            _arrays(self.model.non_trainable_variables),
            _arrays(self.optimizer.variables),
            np.zeros((num_clouds, dim, dim), "float32"),
        )

    def state(self, seeds: list[int], heads: list | None = None) -> State:
        """The start of a lane for each of these seeds.

        Args:
            seeds: Of the dropout, and any number of times the same.
            heads: Weights of the head, each stacked over the lanes.
        """
        state = _repeat(self.start, len(seeds))
        if heads is not None:
            own = {id(x) for x in self.head.trainable_variables}
            variables = self.model.trainable_variables
            places = [i for i, x in enumerate(variables) if id(x) in own]
            for place, weights in zip(places, heads, strict=True):
                state.trainable[place] = jnp.asarray(weights)
        for i, x in enumerate(self.start.others):
            if x.dtype == np.uint32 and x.shape == (2,):  # Of a dropout.
                x = np.stack([[7919 * (s + 1) + i, 0] for s in seeds])
                state.others[i] = jnp.asarray(x, "uint32")
        return state

    def keep_covariances(self, covariances: Any) -> None:
        """Lets Σ_S of each cloud start at these."""
        self.start = self.start._replace(covariances=np.asarray(covariances))

    def train(self, state: State, lanes: Lane, batches: Any) -> Any:
        """Some steps of all lanes: the new state, and the logs of each step.

        Args:
            state: Of all lanes.
            lanes: Of all lanes.
            batches: Number of each step, and examples `(steps, seeds, ...)`.
        """

        def step(state, batch):
            return jax.vmap(self._step, (0, 0, None))(state, lanes, batch)

        return jax.lax.scan(step, state, batches)

    def _step(self, state, lane, batch):
        """A step of one lane."""
        step, examples = batch
        examples = type(examples)(*(x[lane.seed] for x in examples))
        compute = functools.partial(self._loss, lane, step, examples)
        (_, rest), gradients = jax.value_and_grad(compute, has_aux=True)(
            state.trainable, state.others, state.covariances
        )
        others, covariances, logs = rest
        trainable, optimizer = self.optimizer.stateless_apply(
            state.optimizer, gradients, state.trainable
        )
        return State(trainable, others, optimizer, covariances), logs

    def _loss(self, lane, step, examples, trainable, others, covariances):
        inputs, mask = model_inputs(examples)
        outputs, others = self.model.stateless_call(
            trainable, others, inputs, training=True
        )
        *states, _, logits = outputs
        batch, _ = cloud_covariances(states, mask)
        score = jax.vmap(isoscore_from_covariance)
        scores = score((1.0 - SHRINKAGE) * batch + SHRINKAGE * covariances)
        covariances = lane.momentum * covariances + (
            1.0 - lane.momentum
        ) * jax.lax.stop_gradient(batch)
        running_scores = score(covariances)
        penalty = added_term(lane, step, scores, running_scores)
        loss = self.loss(logits, examples.labels)
        logs = Logs(loss, scores, running_scores)
        return loss + penalty, (others, covariances, logs)

    def observe(
        self, training: bool, lane: State, examples: Any
    ) -> Observation:
        """Observes the model of one lane."""
        inputs, mask = model_inputs(examples)
        outputs, _ = self.model.stateless_call(
            lane.trainable, lane.others, inputs, training=training
        )
        *states, pooled, logits = outputs
        covariances, share = cloud_covariances(states, mask)
        pooled = pooled.astype("float32")
        return Observation(pooled, logits, covariances, share)

    def train_heads(
        self, features: Any, labels: Any, seeds: list[int], steps: int
    ) -> list[Any]:
        """Trains a head for each seed, side by side, without dropout.

        Args:
            features: Pooled outputs of the examples.
            labels: Of the examples.
            seeds: The seeds.
            steps: Number of steps.

        Returns:
            The weights of the heads, each stacked over the seeds.
        """
        optimizer = keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(_HEAD_LEARNING_RATE, steps)
        )
        optimizer.build(self.head.trainable_variables)
        others = _arrays(self.head.non_trainable_variables)
        variables = _arrays(optimizer.variables)
        features, labels = jnp.asarray(features), jnp.asarray(labels)

        def step(state, chosen):
            def compute(weights):
                logits, _ = self.head.stateless_call(
                    weights, others, features[chosen], training=False
                )
                return self.loss(logits, labels[chosen])

            weights, variables = state
            gradients = jax.grad(compute)(weights)
            return optimizer.stateless_apply(variables, gradients, weights), ()

        @jax.jit
        @jax.vmap
        def train(first, index):
            return jax.lax.scan(step, (first, variables), index)[0][0]

        first = [
            np.stack([_initial(x.shape, seed) for seed in seeds])
            for x in self.head.trainable_variables
        ]
        shape = steps, min(BATCH_SIZE, len(labels))
        index = [
            np.random.default_rng([seed, 2]).integers(len(labels), size=shape)
            for seed in seeds
        ]
        return _arrays(train(first, np.stack(index)))


def _arrays(variables):
    return [np.asarray(x) for x in variables]


def _initial(shape, seed):
    """Weights of a head before training: kernels by the seed, biases zero."""
    if len(shape) < 2:
        return np.zeros(shape, "float32")
    values = np.random.default_rng([seed, 1]).normal(0.0, 0.02, shape)
    return values.astype("float32")


@functools.partial(jax.jit, static_argnums=1)
def _repeat(state, size):
    """Repeats a state for a number of lanes."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *x.shape)), state)


def build(data: Any) -> tuple[Any, Any]:
    """The model, and its head alone.

    Args:
        data: What `arrays.load` has returned.

    Returns:
        A model of hidden states of all layers, pooled output and logits, and
        one from the pooled output to logits.
    """
    backbone = keras_hub.models.BertBackbone(dropout=_DROPOUT, **data.config)
    backbone.set_weights(data.weights)
    states = [
        backbone.get_layer(f"transformer_layer_{i}").output
        for i in range(data.config["num_layers"])
    ]
    pooled = backbone.output["pooled_output"]
    dense = keras.layers.Dense(
        data.classes or 1, dtype="float32", name="logits"
    )
    logits = dense(keras.layers.Dropout(_DROPOUT)(pooled))
    model = keras.Model(backbone.input, [*states, pooled, logits])
    return model, keras.Model(pooled, logits)


def model_inputs(examples: Any) -> tuple[dict[str, Any], Any]:
    """The inputs of a BERT, and the mask of tokens."""
    length = examples.tokens.shape[-1]
    lengths = examples.lengths.astype("int32")[..., None]
    mask = jnp.arange(length) < lengths
    inputs = {
        "token_ids": examples.tokens.astype("int32"),
        "segment_ids": examples.segments.astype("int32"),
        "padding_mask": mask.astype("int32"),
    }
    return inputs, mask


def task_loss(is_number: bool, logits: Any, labels: Any) -> Any:
    """Mean squared error of numbers, cross-entropy of classes."""
    if is_number:
        return jnp.mean(jnp.square(logits[..., 0] - labels))
    places = labels.astype("int32")[..., None]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), places, axis=-1)
    return -jnp.mean(chosen)


def make_lane(
    method: Method, seed: int, start: Any, inference: Any, steps: int
) -> Lane:
    """A method as numbers.

    Args:
        method: The method.
        seed: Place among the seeds.
        start: Scores of the clouds at the start of training.
        inference: The same without dropout.
        steps: Of training.
    """
    is_plain = method.low is None
    one = np.ones_like(start)
    scale = inference / start if method.at == "inference" else one
    unit = start * scale if method.is_relative else one
    low, high = (
        0.0 * unit if is_plain else bound * unit
        for bound in (method.low, method.high)
    )
    return Lane(
        seed=seed,
        strength=method.strength,
        is_plain=float(is_plain),
        uses_running=float(method.error == "running"),
        weights=cloud_weights(method.of, len(start)),
        scale=scale,
        start=start * scale,
        low=low,
        high=high,
        ramp_steps=method.ramp * steps,
        momentum=method.momentum,
    )


def added_term(lane: Lane, step: Any, scores: Any, running_scores: Any) -> Any:
    """A term with the gradient of what a method adds to the loss.

    The gradient of strength * error**2 is that of the score times a factor,
    here a constant. So the error can be that of another score.

    Args:
        lane: The method.
        step: Number of the step.
        scores: Those of the batch, of each cloud.
        running_scores: Those of the moving average of covariances.
    """
    held = jnp.where(lane.uses_running > 0, running_scores, scores)
    held = lane.scale * held
    progress = jnp.minimum(step / jnp.maximum(lane.ramp_steps, 1.0), 1.0)
    progress = jnp.where(lane.ramp_steps > 0, progress, 1.0)
    low, high = (
        lane.start + (bound - lane.start) * progress
        for bound in (lane.low, lane.high)
    )
    error = jnp.maximum(held - high, 0.0) - jnp.maximum(low - held, 0.0)
    slope = lane.weights * jnp.where(
        lane.is_plain > 0, -lane.strength, 2.0 * lane.strength * error
    )
    return jnp.sum(jax.lax.stop_gradient(slope) * scores)


def cloud_covariances(states: list, mask: Any) -> tuple[Any, Any]:
    """Covariances of all clouds, and the share of variance between layers.

    With m_k the mean of layer k, m that of all, S_k the scatter of layer k
    about m_k, and n tokens in each layer, the scatter of the union is

        sum_k S_k + n sum_k (m_k - m) (m_k - m)^T.

    Args:
        states: Hidden states of the layers.
        mask: Of their tokens.

    Returns:
        Covariances `(clouds, dim, dim)` of the union, of the union with the
        mean of each layer removed, and of each layer; and the part of the
        variance of the union that lies between the means of layers.
    """
    count = jnp.sum(mask)
    means, scatters = [], []
    for state in states:
        wide = jnp.where(mask[..., None], state.astype("float32"), 0.0)
        mean = jnp.sum(wide, axis=(0, 1)) / count
        means.append(mean)
        scatters.append(_scatter(jnp.where(mask[..., None], wide - mean, 0.0)))
    spread = jnp.stack(means) - sum(means) / len(means)
    within = sum(scatters)
    union = within + count * _scatter(spread)
    unions = jnp.stack([union, within]) / (len(states) * count - 1)
    share = 1.0 - jnp.trace(within) / jnp.trace(union)
    layers = jnp.stack(scatters) / (count - 1)
    return jnp.concatenate([unions, layers]), share


def _scatter(deviations):
    """Sum of outer products, about in the precision of float32."""
    flat = deviations.reshape(-1, deviations.shape[-1])
    return jnp.matmul(flat.T, flat, precision="high")


def cloud_weights(of: str, num_clouds: int) -> Any:
    """The weights of clouds in the term that is added to the loss."""
    weights = np.zeros(num_clouds)
    if of == "layers":
        weights[len(_CLOUDS) :] = 1.0 / (num_clouds - len(_CLOUDS))
    else:
        weights[_CLOUDS.index(of)] = 1.0
    return weights


def by_cloud(scores: Any) -> dict[str, float]:
    """Scores of all clouds by name, rounded."""
    layers = (f"layer_{i}" for i in range(len(scores) - len(_CLOUDS)))
    pairs = zip((*_CLOUDS, *layers), scores, strict=True)
    return {name: round(float(score), 6) for name, score in pairs}


def isoscores(covariances: Any) -> dict[str, float]:
    """IsoScore of each cloud by name, NaN if not all is finite."""
    if not np.isfinite(covariances).all():
        return by_cloud([math.nan] * len(covariances))
    return by_cloud([isoscore_from_covariance(x) for x in covariances])
