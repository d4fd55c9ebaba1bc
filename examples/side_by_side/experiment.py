"""All runs of a task, in groups that train side by side, and their figures."""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from finetuning import scores

from side_by_side import arrays
from side_by_side.lanes import BATCH_SIZE
from side_by_side.lanes import SHRINKAGE
from side_by_side.lanes import Trainer
from side_by_side.lanes import by_cloud
from side_by_side.lanes import isoscores
from side_by_side.lanes import make_lane
from side_by_side.methods import Method
from side_by_side.methods import Run

_HEAD_STEPS = 500
# The least that a group of runs may take, relative to the one before: it is
# faster when processes that share the GPU have ended.
_LEAST_TIME = 0.6
_LAST_STEPS = slice(-100, None)  # Whose logs count as the end of training.


class Plan(NamedTuple):
    """How long to train on a task, and how fast."""

    steps: int = 550
    learning_rate: float = 5e-5


_PLANS = {"cola": Plan(800), "sst2": Plan(1500, 3e-5)}


class Experiment:
    """All runs of a task.

    Args:
        task: Name of the task.
        runs: Methods and seeds, most important first.
        options: Of the command line.
        started: When the program started, by `time.monotonic`.
    """

    def __init__(
        self, task: str, runs: list[Run], options: Any, started: float
    ):
        self.task = task
        self.runs = runs
        self.seeds = sorted({run.seed for run in runs})
        self.started = started
        self.seconds = options.seconds
        self.group_size = min(options.side_by_side, len(runs))
        plan = _PLANS.get(task, Plan())
        steps = options.steps or plan.steps
        self.log_every = min(options.log_every, steps)
        # Whole pieces, so that one function is compiled.
        self.steps = steps // self.log_every * self.log_every
        self.learning_rate = plan.learning_rate
        self.data = arrays.load(options.arrays, task)
        # As many training examples are measured as there are for the test.
        self.piece_size = len(self.data.test.labels)
        self.trainer = Trainer(self.data, self.steps, self.learning_rate)

    def execute(self) -> Iterator[list[dict[str, Any]]]:
        """Trains all runs; yields the lines of each group."""
        self._prepare()
        self._say("compiled")
        size, last = self.group_size, 0.0
        for first in range(0, len(self.runs), size):
            group = self.runs[first : first + size]
            begin = self._elapsed()
            if begin + _LEAST_TIME * last > self.seconds:
                number = -(-(len(self.runs) - first) // size)
                self._say(f"no time for {number} groups of runs")
                return
            # All groups have one size, so that one function is compiled.
            trained = self._train(group + group[:1] * (size - len(group)))
            if trained is None:
                self._say("out of time, gave up a group of runs")
                return
            seconds = self._elapsed() - begin
            yield [
                self._line(run, place, *trained, seconds)
                for place, run in enumerate(group)
            ]
            trained = None  # Frees its memory for the next group.
            last = self._elapsed() - begin
            self._say(
                f"{len(group)} runs of {self.steps} steps in {seconds:.1f} s, "
                f"figures of them in {last - seconds:.1f} s"
            )

    def _elapsed(self):
        return time.monotonic() - self.started

    def _say(self, text):
        print(f"[{self._elapsed():6.1f}] {self.task}: {text}", flush=True)

    def _prepare(self):
        """Compiles all functions, trains heads and measures the start.

        The step of training takes longest to compile, in a thread of its own.
        """
        size = self.group_size
        state = self.trainer.state(self.seeds[:1] * size)
        some_scores = np.ones(self.trainer.num_clouds)
        lane = make_lane(Method(), 0, some_scores, some_scores, self.steps)
        arguments = state, np.asarray(0, "int32"), self._piece(self.data.train)
        with concurrent.futures.ThreadPoolExecutor() as pool:

            def compile_soon(function, *arguments, **options):
                lowered = jax.jit(function, **options).lower(*arguments)
                return pool.submit(lowered.compile)

            train = compile_soon(
                self.trainer.train,
                *(state, _stack([lane] * size), self._batches(0)),
                donate_argnums=0,
            )
            observers = [
                compile_soon(
                    functools.partial(self.trainer.observe, training),
                    *arguments,
                )
                for training in (False, True)
            ]
            self.observe, observe_training = (x.result() for x in observers)
            self._measure_start(state, observe_training(*arguments))
            self._train_heads(state)
            self._say("heads trained")
            self.train = train.result()

    def _measure_start(self, state, with_dropout):
        """Keeps the scores before training, and where Σ_S starts."""
        on_train = self._observe(state, 0, self.data.train)
        on_test = self._observe(state, 0, self.data.test)
        covariances = np.asarray(with_dropout.covariances)
        self.trainer.start = self.trainer.start._replace(
            covariances=covariances
        )
        self.start = {
            "dropout": isoscores(covariances),
            "train": isoscores(on_train.covariances),
            "test": isoscores(on_test.covariances),
        }
        self.start_share = float(on_train.share_between)

    def _train_heads(self, state):
        """Trains the head of each seed on the features before training."""
        some = self.data.train.take(slice(_HEAD_STEPS * BATCH_SIZE))
        self.heads = self.trainer.train_heads(
            self._answers("pooled", state, 0, some),
            some.labels,
            self.seeds,
            min(_HEAD_STEPS, 4 * self.steps),
        )

    def _answers(self, name, state, place, examples):
        """An output of a lane for any number of examples."""
        number = len(examples.labels)
        pieces = [
            getattr(self._observe(state, place, examples, first), name)
            for first in range(0, number, self.piece_size)
        ]
        return np.concatenate(pieces)[:number]

    def _observe(self, state, place, examples, first=0):
        """Observes the lane in a place on a piece of the examples."""
        piece = self._piece(examples, first)
        return self.observe(state, np.asarray(place, "int32"), piece)

    def _piece(self, part, first=0):
        """Examples in a fixed number; those without a length do not count."""
        taken = part.take(slice(first, first + self.piece_size))
        missing = self.piece_size - len(taken.labels)
        filled = (
            np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in taken
        )
        return type(part)(*filled)

    def _batches(self, first_step):
        """The batches of some steps, `(steps, seeds, batch, ...)`."""
        number = len(self.data.train.labels)
        size = min(BATCH_SIZE, number)

        def place(seed, step):
            epoch, i = divmod(step, number // size)
            return _order(seed, epoch, number)[i * size : (i + 1) * size]

        steps = range(first_step, first_step + self.log_every)
        index = np.array(
            [[place(seed, step) for seed in self.seeds] for step in steps]
        )
        batches = jax.tree.map(jnp.asarray, self.data.train.take(index))
        return jnp.asarray(np.array(steps), "float32"), batches

    def _train(self, runs):
        """Trains a group; its state and logs, None if there was no time."""
        seeds = [run.seed for run in runs]
        places = [self.seeds.index(seed) for seed in seeds]
        state = self.trainer.state(seeds, [x[places] for x in self.heads])
        start, inference = (
            np.array(list(self.start[name].values()))
            for name in ("dropout", "train")
        )
        lanes = _stack(
            make_lane(run.method, place, start, inference, self.steps)
            for run, place in zip(runs, places, strict=True)
        )
        logs = []
        for first in range(0, self.steps, self.log_every):
            state, log = self.train(state, lanes, self._batches(first))
            logs.append(log)
            if len(logs) > 1:  # One piece waits while the GPU does another.
                jax.block_until_ready(logs[-2])
            if self._elapsed() > self.seconds:
                return None
        return state, jax.tree.map(lambda *x: np.concatenate(x), *logs)

    def _line(self, run, place, state, logs, seconds):
        """The line of a run in the results."""
        on_train = self._observe(state, place, self.data.train)
        on_test = self._observe(state, place, self.data.test)
        validation, _ = self._score(
            self._answers("logits", state, place, self.data.validation),
            self.data.validation,
        )
        score, by_name = self._score(np.asarray(on_test.logits), self.data.test)
        own = jax.tree.map(lambda x: x[:, place], logs)
        last = jax.tree.map(lambda x: x[_LAST_STEPS].mean(axis=0), own)
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
            "is_finite": bool(np.isfinite(own.loss).all())
            and None not in (score, validation),
            "steps": self.steps,
            "batch_size": BATCH_SIZE,
            "learning_rate": self.learning_rate,
            "examples": {
                part: len(getattr(self.data, part).labels)
                for part in arrays.PARTS
            },
            "seconds_of_group": round(seconds, 1),
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


def _stack(lanes):
    """Settings of all lanes, in arrays of float32, and int32 for seeds."""
    return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *lanes)


@functools.cache
def _order(seed, epoch, number):
    """The order of the examples in an epoch."""
    return np.random.default_rng([seed, 0, epoch]).permutation(number)
