"""Programs that a TPU, or the slice's links, would suffer from."""

import tpu_target  # First, it sets what JAX and libtpu read.

# isort: split
import jax
import numpy as np
from jax import numpy as jnp
from sizes import DIM
from sizes import LAYERS
from sizes import TOKENS_PER_CHIP

import keras_istar
from keras_istar._src.score import moments

TOPOLOGY = "v5e:2x2"


def main(*names):
    """Compiles programs by name; a refused one gives the compiler's words."""
    return {name: _compile(_PROGRAMS[name]) for name in names}


def _compile(function):
    _, sharded = tpu_target.shardings(TOPOLOGY)
    tokens = TOKENS_PER_CHIP * len(tpu_target.chips(TOPOLOGY))
    states = [
        jax.ShapeDtypeStruct((tokens, DIM), jnp.float32, sharding=sharded)
    ] * LAYERS
    try:
        return tpu_target.compile_jax(jax.value_and_grad(function), states)
    except jax.errors.JaxRuntimeError as error:
        return {"refused": str(error)}


def _score(joined):
    return keras_istar.isoscore_from_covariance(moments.covariance(joined))


def _penalty(states):
    return _score(moments.union_moments(states, [None] * LAYERS))


def _one_matrix_a_state(states):
    return sum(_score(moments.token_moments(state)) for state in states)


def _covariance(states):
    # Autodiff of the product makes two products of the same size.
    tokens = jnp.concatenate(states)
    tokens = tokens - jax.lax.stop_gradient(tokens.mean(axis=0))
    return tokens.T @ tokens / (tokens.shape[0] - 1)


def _plain_autodiff(states):
    return keras_istar.isoscore_from_covariance(_covariance(states))


def _singular_values(states):
    values = jnp.linalg.svd(_covariance(states), compute_uv=False)
    return jnp.sum(values) ** 2 / jnp.sum(values**2)


def _eigenvalues(states):
    values = jnp.linalg.eigvalsh(_covariance(states))
    return jnp.sum(values) ** 2 / jnp.sum(values**2)


def _float64(states):
    with jax.enable_x64(True):
        wide = states[0].astype("float64") * 2.0
        return wide.astype("float32").sum()


def _host_function(states):
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    norm = jax.pure_callback(
        lambda x: np.linalg.norm(x).astype("float32"),
        scalar,
        jax.lax.stop_gradient(states[0]),
    )
    return _penalty(states) + norm


def _unknown_kernel(states):
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    call = jax.ffi.ffi_call("no_such_kernel", scalar)
    return _penalty(states) + call(jax.lax.stop_gradient(states[0]))


_PROGRAMS = {
    "penalty": _penalty,
    "one_matrix_a_state": _one_matrix_a_state,
    "plain_autodiff": _plain_autodiff,
    "singular_values": _singular_values,
    "eigenvalues": _eigenvalues,
    "float64": _float64,
    "host_function": _host_function,
    "unknown_kernel": _unknown_kernel,
}
