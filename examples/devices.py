"""The devices that a program trains on, as its options choose them."""

import argparse
import contextlib

import keras
from command_line import UserError


def needs_static_shapes(options: argparse.Namespace) -> bool:
    """Whether batches must all be of the same size."""
    return options.strategy != "none"


def prepare(options: argparse.Namespace) -> contextlib.AbstractContextManager:
    """Sets up the devices, before anything uses them.

    Returns:
        The scope in which the model has to be made and compiled.

    Raises:
        UserError: If the strategy is not one of the Keras backend in use, or
            there are no such devices.
    """
    backend = "jax" if options.strategy == "data-parallel" else "tensorflow"
    if options.strategy == "none":
        return contextlib.nullcontext()
    if keras.backend.backend() != backend:
        raise UserError(
            f"--strategy {options.strategy} needs KERAS_BACKEND={backend}. "
            f"Received: KERAS_BACKEND={keras.backend.backend()}"
        )
    if backend == "jax":
        return _data_parallel(options.virtual_devices)
    if options.strategy == "tpu":
        return _tpu(options.tpu)
    return _mirrored(options.virtual_devices)


def _mirrored(virtual_devices):
    import tensorflow as tf

    devices = None
    if virtual_devices is not None:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * virtual_devices,
        )
        devices = [device.name for device in tf.config.list_logical_devices()]
    return tf.distribute.MirroredStrategy(devices).scope()


def _tpu(name):
    import tensorflow as tf

    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name or "")
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise UserError(f"cannot find the TPU: {error}") from error
    keras.config.set_dtype_policy("mixed_bfloat16")
    # Only the penalty multiplies float32 then, and needs all of its digits.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    return tf.distribute.TPUStrategy(resolver).scope()


def _data_parallel(virtual_devices):
    import jax

    if virtual_devices is not None:
        jax.config.update("jax_num_cpu_devices", virtual_devices)
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(auto_shard_dataset=False)
    )
    return contextlib.nullcontext()
