"""All runs of a task, in groups that train side by side, and their figures."""

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np
from finetuning import scores

from side_by_side import arrays
from side_by_side.lanes import BATCH_SIZE
from side_by_side.lanes import SHRINKAGE
from side_by_side.lanes import Trainer
from side_by_side.lanes import by_cloud
from side_by_side.lanes import isoscores
from side_by_side.lanes import make_lane
from side_by_side.methods import Run

_HEAD_STEPS = 500
_STEPS_AT_ONCE = 50
_LAST_STEPS = slice(-100, None)  # Whose logs count as the end of training.


class Plan(NamedTuple):
    """How long to train on a task, and how fast."""

    steps: int = 550
    learning_rate: float = 5e-5


_PLANS = {"cola": Plan(800), "sst2": Plan(1500, 3e-5)}


def make_plan(task: str, steps: int | None = None) -> Plan:
    """The plan for a task, with another number of steps if one is given."""
    plan = _PLANS.get(task, Plan())
    return plan if steps is None else plan._replace(steps=steps)


class Experiment:
    """All runs of a task.

    Args:
        task: Name of the task.
        runs: Methods and seeds, most important first.
        folder: What `arrays.write` has written.
        group_size: Number of runs that train at once.
        plan: How long to train, and how fast.
    """

    def __init__(
        self,
        task: str,
        runs: list[Run],
        folder: str,
        group_size: int,
        plan: Plan,
    ):
        self.task = task
        self.runs = runs
        self.seeds = sorted({run.seed for run in runs})
        self.group_size = min(group_size, len(runs))
        self.steps = plan.steps
        self.learning_rate = plan.learning_rate
        self.data = arrays.load(folder, task)
        # As many training examples are measured as there are for the test.
        self.piece_size = len(self.data.test.labels)
        self.trainer = Trainer(self.data, self.steps, self.learning_rate)
        self._train_lanes = jax.jit(self.trainer.train, donate_argnums=0)
        self._observe_lane = jax.jit(self.trainer.observe, static_argnums=0)

    def execute(self) -> Iterator[list[dict[str, Any]]]:
        """Trains all runs; yields the lines of each group."""
        self._prepare()
        size = self.group_size
        for first in range(0, len(self.runs), size):
            group = self.runs[first : first + size]
            begin = time.monotonic()
            # All groups have one size, so that one function is compiled.
            state, logs = self._train(group + group[:1] * (size - len(group)))
            seconds = time.monotonic() - begin
            print(
                f"{self.task}: {len(group)} runs of {self.steps} steps in "
                f"{seconds:.0f} s, with the time to compile",
                flush=True,
            )
            yield [
                self._line(run, *_of_lane(place, state, logs))
                for place, run in enumerate(group)
            ]
            del state, logs  # Frees their memory for the next group.

    def _prepare(self):
        """Measures the start, where Σ_S starts as well, and trains heads."""
        lane = _take(0, self.trainer.state(self.seeds[:1]))
        with_dropout = self._observe(lane, self.data.train, training=True)
        on_train = self._observe(lane, self.data.train)
        on_test = self._observe(lane, self.data.test)
        self.trainer.keep_covariances(with_dropout.covariances)
        self.start = {
            "dropout": isoscores(with_dropout.covariances),
            "train": isoscores(on_train.covariances),
            "test": isoscores(on_test.covariances),
        }
        self.start_share = float(on_train.share_between)
        some = self.data.train.take(slice(_HEAD_STEPS * BATCH_SIZE))
        self.heads = self.trainer.train_heads(
            self._answers("pooled", lane, some),
            some.labels,
            self.seeds,
            min(_HEAD_STEPS, 4 * self.steps),
        )

    def _answers(self, name, lane, examples):
        """An output of a lane for any number of examples."""
        number = len(examples.labels)
        pieces = [
            getattr(self._observe(lane, examples, first), name)
            for first in range(0, number, self.piece_size)
        ]
        return np.concatenate(pieces)[:number]

    def _observe(self, lane, examples, first=0, training=False):
        """Observes a lane on a piece of the examples, of a fixed size."""
        taken = examples.take(slice(first, first + self.piece_size))
        missing = self.piece_size - len(taken.labels)
        # Examples without a length do not count.
        filled = (
            np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in taken
        )
        piece = type(examples)(*filled)
        return self._observe_lane(training, lane, piece)

    def _batches(self, steps):
        """The batches of some steps, `(steps, seeds, batch, ...)`."""
        number = len(self.data.train.labels)
        size = min(BATCH_SIZE, number)

        def place(seed, step):
            epoch, i = divmod(step, number // size)
            return _order(seed, epoch, number)[i * size : (i + 1) * size]

        index = np.array(
            [[place(seed, step) for seed in self.seeds] for step in steps]
        )
        batches = jax.tree.map(jnp.asarray, self.data.train.take(index))
        return jnp.asarray(steps, "float32"), batches

    def _train(self, runs):
        """Trains a group; its state, and logs `(steps, lanes, ...)`."""
        seeds = [run.seed for run in runs]
        places = [self.seeds.index(seed) for seed in seeds]
        state = self.trainer.state(seeds, [x[places] for x in self.heads])
        start, inference = (
            np.array(list(self.start[name].values()))
            for name in ("dropout", "train")
        )
        lanes = [
            make_lane(run.method, place, start, inference, self.steps)
            for run, place in zip(runs, places, strict=True)
        ]
        lanes = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *lanes)
        logs = []
        for first in range(0, self.steps, _STEPS_AT_ONCE):
            steps = range(first, min(first + _STEPS_AT_ONCE, self.steps))
            state, log = self._train_lanes(state, lanes, self._batches(steps))
            logs.append(log)
        return state, jax.tree.map(lambda *x: np.concatenate(x), *logs)

    def _line(self, run, lane, logs):
        """The line of a run in the results."""
        on_train = self._observe(lane, self.data.train)
        on_test = self._observe(lane, self.data.test)
        validation, _ = self._score(
            self._answers("logits", lane, self.data.validation),
            self.data.validation,
        )
        score, by_name = self._score(np.asarray(on_test.logits), self.data.test)
        last = jax.tree.map(lambda x: x[_LAST_STEPS].mean(axis=0), logs)
        settings = dataclasses.asdict(run.method)
        del settings["seeds"]
        return {
            "task": self.task,
            "method": str(run.method),
            "seed": run.seed,
            "settings": {**settings, "shrinkage": SHRINKAGE},
            "score": score,
            "scores": by_name,
            "validation": validation,
            "start": self.start,
            "end": {
                "batch": by_cloud(last.scores),
                "running": by_cloud(last.running_scores),
                "train": isoscores(on_train.covariances),
                "test": isoscores(on_test.covariances),
            },
            "share_between_layers": {
                "start": round(self.start_share, 6),
                "end": round(float(on_test.share_between), 6),
            },
            "loss": round(float(last.loss), 6),
            "is_finite": bool(np.isfinite(logs.loss).all())
            and None not in (score, validation),
            "steps": self.steps,
            "batch_size": BATCH_SIZE,
            "learning_rate": self.learning_rate,
            "dtype_policy": keras.config.dtype_policy().name,
            "examples": {
                part: len(getattr(self.data, part).labels)
                for part in arrays.PARTS
            },
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
        }

    def _score(self, logits, examples):
        """Mean of the scores, None if logits are not finite; and all scores."""
        try:
            found = scores.score(self.data.scores, logits, examples.labels)
        except RuntimeError:  # Not finite, which the line says as well.
            return None, {}
        return round(sum(found.values()) / len(found), 6), found


def _take(place, state):
    """The state of the lane in a place."""
    return jax.tree.map(lambda x: x[place], state)


def _of_lane(place, state, logs):
    return _take(place, state), jax.tree.map(lambda x: x[:, place], logs)


@functools.cache
def _order(seed, epoch, number):
    """The order of the examples in an epoch."""
    return np.random.default_rng([seed, 0, epoch]).permutation(number)
