"""What XLA compiles for a GPU, which need not be there.

The plugin of `pip install "jax[cuda12]"` compiles for a GPU from a description
of it, here that of an H200 in OpenXLA's repository. What is missing are the
trials by which it chooses, on a real GPU, how to split up a product. Bytes are
those of all operands and results of kernels; caches are not looked at.
"""

import collections
import importlib.util
import re
import unittest.mock
from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from benchmarks import backends
from benchmarks import jax_rewrite
from benchmarks import models
from benchmarks import train_step
from benchmarks.penalty import OURS
from benchmarks.penalty import REWRITE
from benchmarks.penalty import TOKENS_IN_A_STATE
from benchmarks.penalty import TRAFFIC
from benchmarks.penalty import penalty
from benchmarks.report import Row
from benchmarks.report import number_row
from keras_istar._src.compat import products

_PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
_H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 151397597184
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H200"
"""
_INSTRUCTION = re.compile(
    r"^  (?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)", re.MULTILINE
)
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
    r"(?:-start)?\("
)
# They name what is there already.
_NO_KERNELS = (
    "parameter constant bitcast tuple get-tuple-element opt-barrier".split()
)


def rows(device: str, tiny: bool) -> list[Row]:
    """Rows of the penalty, on one and on four GPUs, and of train steps."""
    if not has_plugin():
        print('left out: it needs `pip install "jax[cuda12]"`', flush=True)
        return []
    wide = (64, 8) if tiny else (49_152, 768)
    sizes = [wide]
    if not tiny:
        sizes = [(4096, 768), wide, (49_152, 2048), (49_152, 4096)]
    encoders = (models.TINY,) if tiny else train_step.ON_GPU
    found = []
    with unittest.mock.patch.object(products, "is_on_gpu", lambda _: True):
        for tokens, dim in sizes:
            found += _penalty_rows(tokens, dim, "bfloat16")
        found += _penalty_rows(*wide, "float32")
        found += _collective_rows(*(8, 16, 8) if tiny else (32, 128, 768))
        keras.config.set_dtype_policy(train_step.GPU_POLICY)
        for encoder in encoders:
            found += _step_rows(encoder)
    return found


def has_plugin() -> bool:
    """Whether JAX can compile for a GPU."""
    return importlib.util.find_spec("jax_plugins") is not None and any(
        map(importlib.util.find_spec, _PLUGINS)
    )


def _penalty_rows(tokens, dim, dtype):
    shape = (min(tokens, TOKENS_IN_A_STATE), dim)
    states = [jax.ShapeDtypeStruct(shape, dtype)] * (tokens // shape[0])
    functions = {OURS: penalty(states)}
    if dtype == "bfloat16":
        functions[REWRITE] = jax_rewrite.isoscore
    case = f"n = {tokens:,}, d = {dim:,}, {dtype}"
    counted = {
        side: _counts(_compiled(jax.value_and_grad(function), states))
        for side, function in functions.items()
    }
    # Both passes read the states, and the backward pass writes as much.
    states_read = {TRAFFIC: 3e-6 * tokens * dim * states[0].dtype.itemsize}
    found = []
    for name, unit in (("kernels", ""), ("moved", "MB"), ("temporary", "MB")):
        values = {side: numbers[name] for side, numbers in counted.items()}
        against = REWRITE
        if name == "moved":
            values, against = values | states_read, TRAFFIC
        if against in values:
            found.append(
                number_row(f"{case}, {name}", values, OURS, against, unit)
            )
        else:
            found.append(Row(f"{case}, {name}", OURS, values[OURS], unit))
    return found


def _collective_rows(batch, length, dim):
    mesh = Mesh(np.array(_gpus(4)), ("batch",))
    own = NamedSharding(mesh, PartitionSpec("batch"))
    shape = (batch, length, dim)
    states = [jax.ShapeDtypeStruct(shape, "bfloat16", sharding=own)] * 12
    results = (NamedSharding(mesh, PartitionSpec()), [own] * len(states))
    function = jax.value_and_grad(penalty(states))
    program = jax.jit(function, out_shardings=results).lower(states).compile()
    kinds = collections.Counter(_COLLECTIVE.findall(program.as_text()))
    case = f"12 states of {batch}×{length}×{dim}, bfloat16, on four GPUs"
    return [Row(case, kind, number, "") for kind, number in kinds.items()]


def _step_rows(encoder):
    counted = {}
    for side in (train_step.PLAIN, "every token", "max_tokens=2048"):
        model = train_step.make_model(encoder, side, jit_compile=True)
        state = backends.step_state(model)
        program = _compiled(
            model.train_step, state, models.batch(encoder), donate_argnums=0
        )
        counted[side] = _counts(program)
    found = []
    for name, unit in (("kernels", ""), ("moved", "MB"), ("memory", "MB")):
        values = {side: numbers[name] for side, numbers in counted.items()}
        for side in list(counted)[1:]:
            limit = 1.01 if name == "memory" else None
            found.append(
                number_row(
                    f"{encoder}, {train_step.GPU_POLICY}, {name}",
                    values,
                    side,
                    train_step.PLAIN,
                    unit,
                    at_most=limit,
                )
            )
    return found


def _gpus(number):
    return topologies.get_topology_desc(
        "gpus", "cuda", target_config=_H200, topology=f"1x1x{number}"
    ).devices


def _compiled(function: Callable, *arguments: Any, **options: Any):
    (gpu,) = _gpus(1)
    place = jax.sharding.SingleDeviceSharding(gpu)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments
    )
    jitted = jax.jit(
        function, in_shardings=place, out_shardings=place, **options
    )
    return jitted.lower(*shapes).compile()


def _counts(program):
    number, moved = kernels(program.as_text())
    return {
        "kernels": number,
        "moved": moved / 1e6,
        "temporary": program.memory_analysis().temp_size_in_bytes / 1e6,
        "memory": backends.planned_memory(program),
    }


def kernels(program: str) -> tuple[int, int]:
    """Number of kernels of an optimized program, and bytes that they move."""
    sizes, number, moved = {}, 0, 0
    for name, result, operation, operands in _INSTRUCTION.findall(
        program[program.index("ENTRY") :]
    ):
        sizes[name] = _bytes(result)
        if operation not in _NO_KERNELS:
            number += 1
            read = re.findall(r"%([\w.-]+)", operands)
            moved += sizes[name] + sum(sizes.get(x, 0) for x in read)
    return number, moved


def _bytes(text):
    """Bytes of all arrays in a type, such as `(f32[2,3]{1,0}, pred[])`."""
    return sum(
        int(bits or 8) // 8 * np.prod([int(x) for x in shape.split(",") if x])
        for _, bits, shape in _ARRAY.findall(text)
    )
