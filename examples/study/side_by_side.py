"""Fine-tunes an encoder many times side by side on one GPU, in JAX.

    python examples/study/arrays.py --output arrays --tasks rte cola
    python examples/study/side_by_side.py --arrays arrays --tasks rte cola \
        --output results.jsonl
    python examples/study/side_by_side.py --output results.jsonl --summarize

The first command needs TensorFlow and a CPU, the second only JAX and a GPU. All
runs of a task are lanes of one `jax.vmap`: they share compiled code and differ
in numbers. Runs of one seed start from the same head, trained on the features
of the encoder as it is, and have the same examples in the same order and the
same dropout. Several processes, one for each task, can share the GPU.

A method is written as in `python examples/study`: `none`, `istar:-0.1`,
`istar:target=0.3,strength=100`, `istar:target=0.1..0.3`, `istar:target=0.5x`.
The stable estimate is always a moving average, of `momentum=0.9` unless given.
Options are `seeds`, the number of runs; `per_layer`; and `centered`, which
subtracts the mean of each layer in the union. A target has three more:
`error=batch` measures the distance to it by the score of the batch instead of
the moving average; `at=inference` scales the score by the ratio, at the start,
of the scores without and with dropout; `ramp` is the part of the steps in which
the target moves from the start to its value.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finetuning import command_line  # noqa: E402
from finetuning.command_line import Parser  # noqa: E402
from finetuning.command_line import UserError  # noqa: E402
from finetuning.command_line import option  # noqa: E402
from finetuning.settings import TARGET_DEFAULTS  # noqa: E402

from study import grid  # noqa: E402

_METHODS = """
none,seeds=5
istar:target=0.5x,strength=100,seeds=3
istar:target=1x,strength=100,seeds=3
istar:target=0.75x,strength=100,seeds=3
istar:target=0.5x,strength=100,per_layer,seeds=3
istar:-0.1,seeds=3
istar:-0.03,seeds=3
istar:target=0.5x,strength=400
istar:target=0.5x,strength=100,error=batch
istar:target=0.3,strength=100
istar:target=0.1,strength=100
istar:-1
istar:target=1x,strength=100,per_layer,seeds=3
istar:target=0.5x,seeds=3
istar:target=0.75x,seeds=3
istar:target=0.75x,strength=1,seeds=4
istar:target=0.5x,strength=100,ramp=0.5,seeds=3
istar:target=0.3,strength=100,at=inference
istar:target=0.1,strength=100,at=inference
istar:target=0.3
istar:target=0.3,strength=400
istar:target=0.3,strength=100,error=batch
istar:target=0.5x,strength=5
istar:target=0.5x,strength=1000
istar:target=0.5x,strength=100,momentum=0.99
istar:target=0.5x,strength=100,centered
istar:target=0.5x,strength=400,per_layer
istar:target=0.3,strength=100,per_layer
istar:-0.01
istar:0.1
istar:0.5
"""
_BATCH_SIZE = 32
_HEAD_STEPS = 500
_HEAD_LEARNING_RATE = 5e-3
_DROPOUT = 0.1
_SHRINKAGE = 0.2  # The paper's ζ.
# The least that a group of runs may take, relative to the one before: it is
# faster when processes that share the GPU have ended.
_LEAST_TIME = 0.6
_CLOUDS = ("union", "centered")  # And each layer.


class Plan(NamedTuple):
    """How long to train on a task, and how fast."""

    steps: int = 550
    learning_rate: float = 5e-5


_PLANS = {"cola": Plan(800), "sst2": Plan(1500, 3e-5)}


@dataclasses.dataclass(frozen=True)
class Method:
    """A term to add to the loss, see the docstring of this file.

    Attributes:
        strength: Factor of the term.
        low: Lower end of the target, None for the plain term.
        high: Upper end of the target.
        is_relative: Whether the target is in units of the score at the start.
        of: `"union"`, `"centered"` or `"layers"`.
        error: `"batch"` or `"running"`.
        at: `"dropout"` or `"inference"`.
        ramp: Part of the steps in which the target moves to its value.
        momentum: Of the moving average that keeps Σ_S.
        seeds: Number of runs.
    """

    strength: float = 0.0
    low: float | None = None
    high: float | None = None
    is_relative: bool = False
    of: str = "union"
    error: str = "running"
    at: str = "dropout"
    ramp: float = 0.0
    momentum: float = 0.9
    seeds: int = 1

    def __str__(self):
        names: tuple[str, ...] = ("momentum",)
        if self.low is None:
            if not self.strength:
                return "none"
            words = [f"{self.strength:g}"]
        else:
            bounds = (self.low, self.high)
            target = self.low if self.low == self.high else bounds
            words = [f"target={grid.spell_target(target, self.is_relative)}"]
            if self.strength != _HELD.strength:
                words.append(f"strength={self.strength:g}")
            names = ("error", "at", "ramp", "momentum")
        words += [flag for flag, of in _FLAGS.items() if of == self.of]
        words += [
            f"{name}={value}" if isinstance(value, str) else f"{name}={value:g}"
            for name in names
            if (value := getattr(self, name)) != getattr(_HELD, name)
        ]
        return f"istar:{','.join(words)}"


_HELD = Method(TARGET_DEFAULTS["strength"])
# Clouds that a method acts on, by its option.
_FLAGS = {"per_layer": "layers", "centered": "centered"}
_OPTIONS = {
    "target": grid.parse_target,
    "strength": command_line.real,
    **dict.fromkeys(_FLAGS, grid.flag),
    "error": grid.one_of("batch", "running"),
    "at": grid.one_of("dropout", "inference"),
    "ramp": command_line.fraction,
    "momentum": command_line.open_fraction,
}


def parse_method(text: str) -> Method:
    """Reads a method from its text, see the docstring of this file.

    Raises:
        argparse.ArgumentTypeError: If the text is not a method.
    """
    regularizer, *words = text.replace(":", ",", 1).split(",")
    if regularizer not in ("none", "istar"):
        raise argparse.ArgumentTypeError(
            f"must be none or istar:STRENGTH. Received: {text!r}"
        )
    known = {"seeds": command_line.positive_int}
    if regularizer == "istar":
        known |= _OPTIONS
    options = grid.parse_options(regularizer, words, known)
    flags = [name for name in _FLAGS if options.pop(name, False)]
    if len(flags) > 1:
        raise argparse.ArgumentTypeError(
            f"must be {' or '.join(_FLAGS)}, not both. Received: {text!r}"
        )
    if flags:
        options["of"] = _FLAGS[flags[0]]
    if "target" in options:
        target, options["is_relative"] = options.pop("target")
        bounds = target if isinstance(target, tuple) else (target, target)
        options["low"], options["high"] = bounds
        options.setdefault("strength", _HELD.strength)
    return Method(**options)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    output: str = option(
        "results", "file to which a line for each run is added", required=True
    )
    summarize: bool = option(
        "results",
        "do no run; write a table and a figure of all results beside the file",
        False,
        action="store_true",
    )
    arrays: str = option("runs", "folder that arrays.py has written", "arrays")
    tasks: tuple[str, ...] = option(
        "runs", "tasks of that folder, one after the other", (), nargs="+"
    )
    methods: tuple[Method, ...] = option(
        "runs",
        "what to add to the loss, most important first (default: "
        f"{' '.join(_METHODS.split())})",
        tuple(map(parse_method, _METHODS.split())),
        nargs="+",
        type=parse_method,
    )
    side_by_side: int = option(
        "runs",
        "runs that train at once; the others follow (default: %(default)s)",
        28,
        type=command_line.positive_int,
    )
    seconds: float = option(
        "runs",
        "begin no runs that would not end within this time, and give up those "
        "that do not (default: %(default)s)",
        math.inf,
        type=command_line.positive_real,
    )
    steps: int | None = option(
        "runs",
        "training steps (default: by the task)",
        type=command_line.positive_int,
    )
    log_every: int = option(
        "runs",
        "steps whose mean scores are logged (default: %(default)s)",
        50,
        type=command_line.positive_int,
    )
    dtype_policy: str = option(
        "runs",
        "Keras dtype policy (default: %(default)s)",
        "mixed_bfloat16",
    )


class Run(NamedTuple):
    """A line of the results: a method and a seed."""

    method: Method
    seed: int


def run(options: Options) -> None:
    """Does the runs, or shows the table of those that were done."""
    if options.summarize:
        from study import side_by_side_summary

        print(side_by_side_summary.write(options.output))
        return
    start = time.monotonic()
    runs = [
        Run(method, seed)
        for method in options.methods
        for seed in range(method.seeds)
    ]
    if not options.tasks:
        raise UserError("`--tasks` must name a task. Received: none")
    import keras

    keras.config.set_dtype_policy(options.dtype_policy)
    # It has no dropout of attention, which training needs.
    keras.config.disable_flash_attention()
    for task in options.tasks:
        if time.monotonic() - start > options.seconds:
            print(f"{task}: no time left", flush=True)
            return
        Experiment(task, options, start).execute(runs)


class Experiment:
    """All runs of a task.

    Args:
        task: Name of the task.
        options: Options of the command line.
        start: When the program started, by `time.monotonic`.
    """

    def __init__(self, task: str, options: Options, start: float):
        import keras
        import numpy as np

        from study import arrays

        self.task = task
        self.options = options
        self.started = start
        plan = _PLANS.get(task, Plan())
        steps = options.steps or plan.steps
        self.log_every = min(options.log_every, steps)
        # Whole pieces, so that one function is compiled.
        self.steps = steps // self.log_every * self.log_every
        self.learning_rate = plan.learning_rate
        self.data = arrays.load(options.arrays, task)
        self.train, self.test = self.data.train, self.data.test
        self.is_number = self.data.classes == 0
        self.model, self.head = build(self.data)
        self.trainable = [np.asarray(x) for x in self.model.trainable_variables]
        self.others = [
            np.asarray(x) for x in self.model.non_trainable_variables
        ]
        heads = {id(x) for x in self.head.trainable_variables}
        self.head_places = [
            i
            for i, x in enumerate(self.model.trainable_variables)
            if id(x) in heads
        ]
        warmup = max(self.steps // 10, 1)
        self.optimizer = keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(
                0.0,
                max(self.steps - warmup, 1),
                warmup_target=self.learning_rate,
                warmup_steps=warmup,
            )
        )
        self.optimizer.build(self.model.trainable_variables)
        # As many training examples are measured as there are for the test.
        self.num_measured = len(self.test.labels)
        self.num_clouds = len(_CLOUDS) + self.data.config["num_layers"]

    def execute(self, runs: list[Run]) -> None:
        """Trains all runs, in groups that are trained side by side."""
        size = min(self.options.side_by_side, len(runs))
        groups = [runs[i : i + size] for i in range(0, len(runs), size)]
        self.seeds = sorted({run.seed for run in runs})
        names = cloud_names(self.num_clouds)
        self.start = dict.fromkeys(
            ("dropout", "train"), dict.fromkeys(names, 1.0)
        )
        self._prepare(size)
        self._say("compiled")
        last = 0.0
        for number, group in enumerate(groups):
            begin = time.monotonic()
            if self._elapsed() + _LEAST_TIME * last > self.options.seconds:
                self._say(f"no time for {len(groups) - number} groups of runs")
                return
            # All groups have one size, so that one function is compiled.
            padded = group + group[:1] * (size - len(group))
            trained = self._train(padded)
            if trained is None:
                self._say("out of time, gave up a group of runs")
                return
            trained_seconds = time.monotonic() - begin
            self._record(group, *trained, trained_seconds)
            trained = None  # Frees its memory for the next group.
            last = time.monotonic() - begin
            self._say(
                f"{len(group)} runs of {self.steps} steps in "
                f"{trained_seconds:.1f} s, figures of them in "
                f"{last - trained_seconds:.1f} s"
            )

    def _elapsed(self):
        return time.monotonic() - self.started

    def _say(self, text):
        print(f"[{self._elapsed():6.1f}] {self.task}: {text}", flush=True)

    def _prepare(self, size):
        """Compiles all functions, trains heads and measures the start.

        The step of training takes longest to compile, in a thread of its own.
        """
        import jax
        import jax.numpy as jnp
        import numpy as np

        state = self._state([self.seeds[0]] * size)
        lanes = self._lanes([Run(Method(), self.seeds[0])] * size)
        lane = jnp.asarray(0, "int32")
        first = self._measured(self.train)
        with concurrent.futures.ThreadPoolExecutor() as pool:

            def compile_soon(function, *arguments, **options):
                lowered = jax.jit(function, **options).lower(*arguments)
                return pool.submit(lowered.compile)

            chunk = compile_soon(
                self._chunk, state, lanes, self._batches(0), donate_argnums=0
            )
            observers = [
                compile_soon(
                    functools.partial(
                        observe_lane, self.model, training=training
                    ),
                    state.trainable,
                    state.others,
                    lane,
                    first,
                )
                for training in (False, True)
            ]
            self.observe, observe_training = (x.result() for x in observers)

            def observe(examples, function=self.observe):
                return function(state.trainable, state.others, lane, examples)

            inference = observe(first)
            dropout = observe(first, observe_training)
            self.start_covariances = np.asarray(dropout.covariances)
            self.start = {
                "dropout": scores_of(dropout),
                "train": scores_of(inference),
                "test": scores_of(observe(self._measured(self.test))),
            }
            self.start_share = float(inference.share_between)
            number = min(len(self.train.labels), _HEAD_STEPS * _BATCH_SIZE)
            pieces = [
                observe(self._measured(self.train, i)).pooled
                for i in range(0, number, self.num_measured)
            ]
            self.heads = train_heads(
                self.head,
                np.concatenate(pieces)[:number],
                self.train.labels[:number],
                self.seeds,
                min(_HEAD_STEPS, 4 * self.steps),
                functools.partial(task_loss, self.is_number),
            )
            self._say("heads trained")
            self.chunk = chunk.result()

    def _measured(self, part, first=0):
        """Examples in a fixed number; those without a length do not count."""
        import numpy as np

        taken = part.take(slice(first, first + self.num_measured))
        missing = self.num_measured - len(taken.labels)
        filled = (
            np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in taken
        )
        return type(part)(*filled)

    def _state(self, seeds, heads=None, covariances=None):
        """Variables of all lanes."""
        import jax.numpy as jnp
        import numpy as np

        dim = self.data.config["hidden_dim"]
        if covariances is None:
            covariances = np.zeros((self.num_clouds, dim, dim), "float32")
        optimizer = [np.asarray(x) for x in self.optimizer.variables]
        first = State(self.trainable, self.others, optimizer, covariances)
        trainable, others, optimizer, covariances = repeat(first, len(seeds))
        if heads is not None:
            lanes = np.array([self.seeds.index(seed) for seed in seeds])
            for place, value in zip(self.head_places, heads, strict=True):
                trainable[place] = jnp.asarray(value[lanes])
        for i, x in enumerate(self.others):
            if x.dtype == np.uint32 and x.shape == (2,):  # Of a dropout.
                x = np.stack([[7919 * (s + 1) + i, 0] for s in seeds])
                others[i] = jnp.asarray(x, "uint32")
        return State(trainable, others, optimizer, covariances)

    def _lanes(self, runs):
        """Settings of all lanes as arrays."""
        import jax.numpy as jnp
        import numpy as np

        start, inference = (
            np.array(list(self.start[name].values()))
            for name in ("dropout", "train")
        )
        rows = [
            settings(
                method, self.seeds.index(seed), start, inference, self.steps
            )
            for method, seed in runs
        ]
        columns = Lane(*(np.stack(x) for x in zip(*rows, strict=True)))
        arrays = Lane(*(jnp.asarray(x, "float32") for x in columns))
        return arrays._replace(seed=jnp.asarray(columns.seed, "int32"))

    def _batches(self, first_step):
        """The batches of some steps, `(steps, seeds, batch, ...)`."""
        import jax
        import jax.numpy as jnp
        import numpy as np

        number = len(self.train.labels)
        size = min(_BATCH_SIZE, number)
        per_epoch = number // size

        def place(seed, step):
            epoch, i = divmod(step, per_epoch)
            order = _order(seed, epoch, number)
            return order[i * size : (i + 1) * size]

        steps = range(first_step, first_step + self.log_every)
        index = np.array(
            [[place(seed, step) for seed in self.seeds] for step in steps]
        )
        batches = jax.tree.map(jnp.asarray, self.train.take(index))
        return jnp.asarray(np.array(steps), "float32"), batches

    def _chunk(self, state, lanes, batches):
        """Some steps of all lanes: the new state, and the logs of each step."""
        import jax

        def step(state, batch):
            return jax.vmap(self._step, (0, 0, None))(state, lanes, batch)

        return jax.lax.scan(step, state, batches)

    def _step(self, state, lane, batch):
        """A step of one lane."""
        import jax

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
        import jax

        from keras_istar import isoscore_from_covariance
        from keras_istar._src.score import moments

        inputs, mask = model_inputs(examples)
        outputs, others = self.model.stateless_call(
            trainable, others, inputs, training=True
        )
        *states, _, logits = outputs
        batch, _ = cloud_covariances(states, mask, train=True)
        shrunk = moments.shrink(batch, covariances, _SHRINKAGE)
        score = jax.vmap(isoscore_from_covariance)
        scores = score(shrunk)
        covariances = lane.momentum * covariances + (
            1.0 - lane.momentum
        ) * jax.lax.stop_gradient(batch)
        running_scores = score(covariances)
        penalty, _ = added_term(lane, step, scores, running_scores)
        loss = task_loss(self.is_number, logits, examples.labels)
        logs = Logs(loss, scores, running_scores)
        return loss + penalty, (others, covariances, logs)

    def _train(self, runs):
        """Trains a group; its state and logs, None if there was no time."""
        import jax
        import numpy as np

        state = self._state(
            [run.seed for run in runs], self.heads, self.start_covariances
        )
        lanes = self._lanes(runs)
        logs = []
        for first in range(0, self.steps, self.log_every):
            state, log = self.chunk(state, lanes, self._batches(first))
            logs.append(log)
            if len(logs) > 1:  # One piece waits while the GPU does another.
                jax.block_until_ready(logs[-2])
            if self._elapsed() > self.options.seconds:
                return None
        logs = jax.tree.map(lambda *x: np.concatenate(x), *logs)
        return state, logs

    def _record(self, runs, state, logs, seconds):
        """Adds the lines of a group to the results."""
        import jax
        import jax.numpy as jnp
        import numpy as np

        train, test = self._measured(self.train), self._measured(self.test)
        lines = []
        for i, run in enumerate(runs):
            lane = jnp.asarray(i, "int32")
            on_train, on_test = (
                self.observe(state.trainable, state.others, lane, examples)
                for examples in (train, test)
            )
            own = jax.tree.map(lambda x, i=i: x[:, i], logs)
            logits = np.asarray(on_test.logits)
            names = cloud_names(self.num_clouds)
            means = {
                "batch": own.scores[-100:].mean(axis=0),
                "running": own.running_scores[-100:].mean(axis=0),
            }
            method = dataclasses.asdict(run.method)
            del method["seeds"]
            lines.append(
                {
                    "task": self.task,
                    "method": str(run.method),
                    "seed": run.seed,
                    "settings": {**method, "shrinkage": _SHRINKAGE},
                    **self._scores(logits),
                    "start": self.start,
                    "end": {
                        **{
                            name: _by_name(names, mean)
                            for name, mean in means.items()
                        },
                        "train": scores_of(on_train),
                        "test": scores_of(on_test),
                    },
                    "share_between_layers": {
                        "start": _rounded(self.start_share),
                        "end": _rounded(float(on_test.share_between)),
                    },
                    "loss": _rounded(float(own.loss[-100:].mean())),
                    "is_finite": bool(
                        np.isfinite(own.loss).all()
                        and np.isfinite(logits).all()
                    ),
                    "steps": self.steps,
                    "batch_size": _BATCH_SIZE,
                    "learning_rate": self.learning_rate,
                    "examples": {
                        "train": len(self.train.labels),
                        "test": len(self.test.labels),
                    },
                    "seconds_of_group": round(seconds, 1),
                    "device": jax.devices()[0].device_kind,
                    "jax": jax.__version__,
                }
            )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        with open(self.options.output, "a", encoding="utf-8") as file:
            file.write(text)

    def _scores(self, logits):
        from finetuning.scores import score

        try:
            scores = score(self.data.scores, logits, self.test.labels)
        except RuntimeError:  # Not finite, which the line says as well.
            return {"score": None, "scores": {}}
        mean = sum(scores.values()) / len(scores)
        return {"score": _rounded(mean), "scores": scores}


class State(NamedTuple):
    """State that training changes, of one lane or, stacked, of all."""

    trainable: list
    others: list
    optimizer: list
    covariances: Any  # Σ_S of each cloud, `(clouds, dim, dim)`.


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


def settings(
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
    import numpy as np

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


def repeat(state: State, size: int) -> State:
    """Repeats a state for a number of lanes."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def stack(state):
        return jax.tree.map(
            lambda x: jnp.broadcast_to(x, (size, *x.shape)), state
        )

    return stack(state)


def build(data: Any) -> tuple[Any, Any]:
    """The model, and its head alone.

    Args:
        data: What `arrays.load` has returned.

    Returns:
        A model of hidden states of all layers, pooled output and logits, and
        one from the pooled output to logits.
    """
    import keras
    import keras_hub

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
    import jax.numpy as jnp

    length = examples.tokens.shape[-1]
    lengths = examples.lengths.astype("int32")[..., None]
    mask = jnp.arange(length) < lengths
    inputs = {
        "token_ids": examples.tokens.astype("int32"),
        "segment_ids": examples.segments.astype("int32"),
        "padding_mask": mask.astype("int32"),
    }
    return inputs, mask


def cloud_covariances(states: list, mask: Any, train: bool) -> tuple[Any, Any]:
    """Covariances of all clouds, and the share of variance between layers.

    Args:
        states: Hidden states of the layers.
        mask: Of their tokens.
        train: Whether gradients will be taken.

    Returns:
        Covariances `(clouds, dim, dim)` of the union, of the union with the
        mean of each layer removed, and of each layer; and the part of the
        variance of the union that lies between the means of layers.
    """
    import jax.numpy as jnp

    from keras_istar._src.score import moments

    parts = [moments.token_moments(x, mask, train=train) for x in states]
    union = moments.combine(parts)
    within = sum(part.scatter for part in parts)
    centered = union._replace(scatter=within)
    clouds = [moments.covariance(x) for x in (union, centered, *parts)]
    share = 1.0 - jnp.trace(within) / jnp.trace(union.scatter)
    return jnp.stack(clouds), share


def observe_lane(
    model: Any,
    trainable: list,
    others: list,
    lane: Any,
    examples: Any,
    training: bool,
) -> Observation:
    """Observes the model of a lane on some examples."""
    inputs, mask = model_inputs(examples)
    outputs, _ = model.stateless_call(
        [x[lane] for x in trainable],
        [x[lane] for x in others],
        inputs,
        training=training,
    )
    *states, pooled, logits = outputs
    covariances, share = cloud_covariances(states, mask, train=False)
    return Observation(pooled.astype("float32"), logits, covariances, share)


def scores_of(observation: Observation) -> dict[str, float]:
    """IsoScore of each cloud, by name."""
    import numpy as np

    from keras_istar import isoscore_from_covariance

    covariances = np.asarray(observation.covariances)
    names = cloud_names(len(covariances))
    if not np.isfinite(covariances).all():
        return dict.fromkeys(names, math.nan)
    scores = [float(isoscore_from_covariance(x)) for x in covariances]
    return _by_name(names, scores)


def cloud_names(num_clouds: int) -> list[str]:
    """The names of the clouds."""
    layers = range(num_clouds - len(_CLOUDS))
    return [*_CLOUDS, *(f"layer_{i}" for i in layers)]


def cloud_weights(of: str, num_clouds: int) -> Any:
    """The weights of clouds in the term that is added to the loss."""
    import numpy as np

    weights = np.zeros(num_clouds)
    if of == "layers":
        weights[len(_CLOUDS) :] = 1.0 / (num_clouds - len(_CLOUDS))
    else:
        weights[_CLOUDS.index(of)] = 1.0
    return weights


def added_term(
    lane: Lane, step: Any, scores: Any, running_scores: Any
) -> tuple[Any, Any]:
    """A term with the gradient of what a method adds to the loss.

    The gradient of strength * error**2 is that of the score times a factor,
    here a constant. So the error can be that of another score.

    Args:
        lane: The method.
        step: Number of the step.
        scores: Those of the batch, of each cloud.
        running_scores: Those of the moving average of covariances.

    Returns:
        The term, and the factor.
    """
    import jax
    import jax.numpy as jnp

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
    return jnp.sum(jax.lax.stop_gradient(slope) * scores), jnp.sum(slope)


def task_loss(is_number: bool, logits: Any, labels: Any) -> Any:
    """Mean squared error of numbers, cross-entropy of classes."""
    import jax
    import jax.numpy as jnp

    if is_number:
        return jnp.mean(jnp.square(logits[..., 0] - labels))
    places = labels.astype("int32")[..., None]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), places, axis=-1)
    return -jnp.mean(chosen)


def train_heads(
    head: Any,
    features: Any,
    labels: Any,
    seeds: list[int],
    steps: int,
    loss: Any,
) -> list[Any]:
    """Trains a head for each seed, side by side, without dropout.

    Args:
        head: Model from features to logits.
        features: Of the examples.
        labels: Of the examples.
        seeds: The seeds.
        steps: Number of steps.
        loss: Function of logits and labels.

    Returns:
        The weights of the heads, each stacked over the seeds.
    """
    import jax
    import jax.numpy as jnp
    import keras
    import numpy as np

    optimizer = keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(_HEAD_LEARNING_RATE, steps)
    )
    optimizer.build(head.trainable_variables)
    others = [np.asarray(x) for x in head.non_trainable_variables]
    first = [
        np.stack(
            [
                np.random.default_rng([seed, 1]).normal(0.0, 0.02, x.shape)
                if len(x.shape) > 1
                else np.zeros(x.shape)
                for seed in seeds
            ]
        ).astype("float32")
        for x in head.trainable_variables
    ]
    size = min(_BATCH_SIZE, len(labels))
    index = np.stack(
        [
            np.random.default_rng([seed, 2]).integers(
                len(labels), size=(steps, size)
            )
            for seed in seeds
        ]
    )

    @jax.jit
    def train(first, index):
        def step(state, chosen):
            def compute(weights):
                logits, _ = head.stateless_call(
                    weights, others, features[chosen], training=False
                )
                return loss(logits, labels[chosen])

            weights, variables = state
            gradients = jax.grad(compute)(weights)
            return optimizer.stateless_apply(variables, gradients, weights), ()

        variables = [jnp.asarray(x) for x in optimizer.variables]
        return jax.lax.scan(step, (first, variables), index)[0][0]

    features, labels = jnp.asarray(features), jnp.asarray(labels)
    return [np.asarray(x) for x in jax.vmap(train)(first, index)]


@functools.cache
def _order(seed, epoch, number):
    """The order of the examples in an epoch."""
    import numpy as np

    return np.random.default_rng([seed, 0, epoch]).permutation(number)


def _by_name(names, values):
    return dict(zip(names, map(_rounded, map(float, values)), strict=True))


def _rounded(value):
    return round(value, 6)


def main(argv: list[str] | None = None) -> None:
    """Runs the program; a user error ends it with one line, exit code 2."""
    Parser("side_by_side.py", __doc__, Options).run(run, argv)


if __name__ == "__main__":
    # Keras, which reads it, is imported later.
    os.environ.setdefault("KERAS_BACKEND", "jax")
    main()
