"""Compiles for a TPU slice that is not there, with the compiler in libtpu.

Runs in a child process, see `children.py`: import it before JAX.
"""

import os

# Compiling takes no TPU, but libtpu locks it for one process unless told.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
# Otherwise libtpu asks the cloud's metadata server what machine this is.
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-4"

import time  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec  # noqa: E402


def chips(topology):
    """Devices of a slice such as `"v5e:2x2"`."""
    return topologies.get_topology_desc(
        platform="tpu", topology_name=topology
    ).devices


def shardings(topology):
    """Shardings of replicated arrays and of arrays with a batch axis."""
    mesh = Mesh(np.array(chips(topology)).reshape(-1), ("data",))
    return (
        NamedSharding(mesh, PartitionSpec()),
        NamedSharding(mesh, PartitionSpec("data")),
    )


def compile_jax(function, *arguments, donate=()):
    """What the compiler makes of a function of `jax.ShapeDtypeStruct`s."""
    lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
    start = time.monotonic()
    compiled = lowered.compile()
    return {
        "lowered": lowered.as_text(),
        "compiled": compiled.as_text(),
        "flops": compiled.cost_analysis()["flops"],
        "seconds": time.monotonic() - start,
    }


def compile_mhlo(text, topology):
    """What the compiler makes of MHLO, one program for all chips as replicas.

    JAX has no public way in for programs that are not its own.
    """
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax._src.lib import _jax
    from jax._src.lib import xla_client
    from jax._src.lib.mlir import ir

    devices = chips(topology)
    client = devices[0].client
    options = compiler.get_compile_options(
        num_replicas=len(devices),
        num_partitions=1,
        device_assignment=np.array([[device.id] for device in devices]),
        backend=client,
    )
    options.executable_build_options.use_shardy_partitioner = False
    with mlir.make_ir_context():
        module = ir.Module.parse(_jax.mlir.mhlo_to_stablehlo(text.encode()))
        start = time.monotonic()
        program = client.compile(
            module,
            executable_devices=xla_client.DeviceList(tuple(devices)),
            compile_options=options,
        )
        return {
            "lowered": str(module),
            "compiled": program.hlo_modules()[0].to_string(),
            "flops": program.cost_analysis()["flops"],
            "seconds": time.monotonic() - start,
        }
