"""Compiled functions on the backend in use, and the device that runs them.

Functions that do some work take a number of calls, and return when these are
done.
"""

import concurrent.futures
import importlib.metadata
import os
import platform
from collections.abc import Callable
from typing import Any

import keras

import keras_istar

BACKEND = keras.backend.backend()
FRAMEWORK = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}[
    BACKEND
]
_compilers = concurrent.futures.ThreadPoolExecutor()
_PACKAGES = ("keras", "keras-hub", "tensorflow", "jax", "torch", "IsoScore")

if BACKEND == "jax":
    import jax
elif BACKEND == "torch":
    import torch
else:
    import tensorflow as tf


def machine() -> dict[str, str | int]:
    """Names the GPU in use, empty if there is none, and all versions."""
    names = {
        "device": gpu_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "keras-istar": keras_istar.__version__,
    }
    for package in _PACKAGES:
        try:
            names[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            names[package] = "not installed"
    return names


def gpu_name() -> str:
    """Name of the GPU in use, empty if there is none."""
    if BACKEND == "jax" and jax.default_backend() == "gpu":
        return jax.devices()[0].device_kind
    if BACKEND == "torch" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return ""


def compiled(function: Callable, *arguments: Any) -> Callable[[int], None]:
    """Compiles `function(*arguments)`; PyTorch runs it as it is."""
    if BACKEND == "jax":
        return _compiled_ahead(function, *arguments)
    if BACKEND == "torch":
        call = torch.no_grad()(function)
    else:
        call = tf.function(function)
    return repeated(lambda: call(*arguments))


def compiled_gradient(
    function: Callable, states: list, torch_compile: bool = False
) -> Callable[[int], None]:
    """Compiles the scalar `function(states)` and its gradient.

    PyTorch runs them as they are unless `torch_compile` is true.
    """
    if BACKEND == "jax":
        return _compiled_ahead(jax.value_and_grad(function), states)
    if BACKEND == "torch":
        leaves = [state.detach().requires_grad_() for state in states]
        forward = torch.compile(function) if torch_compile else function
        return repeated(lambda: torch.autograd.grad(forward(leaves), leaves))

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(states)
            value = function(states)
        return value, tape.gradient(value, states)

    return repeated(gradient)


def _compiled_ahead(function, *arguments):
    """Traces at once; compiles on another core while others are traced."""
    lowered = jax.jit(function).lower(*arguments)
    program = _compilers.submit(lowered.compile)
    return repeated(lambda: program.result()(*arguments))


def value_and_gradient(function: Callable) -> Callable[[list], tuple]:
    """Returns value and gradients for given states, on JAX and PyTorch."""
    if BACKEND == "jax":
        return jax.jit(jax.value_and_grad(function))

    def call(states):
        leaves = [state.detach().requires_grad_() for state in states]
        value = function(leaves)
        return value.detach(), torch.autograd.grad(value, leaves)

    return call


def train_step(model: keras.Model, x: dict, y: Any) -> Callable[[int], None]:
    """Compiles the train step of a compiled model on one batch."""
    if BACKEND == "jax":
        return JaxStep(model, x, y)
    return repeated(lambda: model.train_on_batch(x, y))


def repeated(call: Callable[[], object]) -> Callable[[int], None]:
    """Makes a function of a number of calls out of one of a single call."""

    def run(calls):
        for _ in range(calls):
            result = call()
        if BACKEND == "jax":
            jax.block_until_ready(result)
        elif BACKEND == "torch" and torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


class JaxStep:
    """The train step of Keras, compiled ahead, with its state kept by JAX.

    `train_on_batch` would hand over the state of every variable in each step;
    `fit` does so once an epoch. The model is of no use afterwards: its
    variables' memory belongs to the step.

    Attributes:
        traced: The step as traced.
        program: The step as compiled, on another core in the meantime.
    """

    def __init__(self, model: keras.Model, x: dict, y: Any):
        self._batch = jax.device_put((x, y))
        self._state = step_state(model)
        step = jax.jit(model.train_step, donate_argnums=0)
        self.traced = step.trace(self._state, self._batch)
        self._program = _compilers.submit(self.traced.lower().compile)

    @property
    def program(self):
        return self._program.result()

    def __call__(self, steps: int) -> None:
        program = self.program
        for _ in range(steps):
            _, self._state = program(self._state, self._batch)
        jax.block_until_ready(self._state)

    def peak(self) -> float:
        """MB at the peak by the compiler's plan, weights included."""
        return planned_memory(self.program)


def step_state(model: keras.Model) -> tuple:
    """What a train step of Keras takes and returns, on JAX."""
    model.optimizer.build(model.trainable_variables)
    return tuple(
        [variable.value for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    )


def planned_memory(program: Any) -> float:
    """MB at the peak of a program of JAX by its compiler's plan."""
    plan = program.memory_analysis()
    arguments_and_results = (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes  # Results in the place of arguments.
    )
    return (arguments_and_results + plan.temp_size_in_bytes) / 1e6
