"""Searches for the strength, shrinkage and layers that suit a task.

    python examples/tune_strength.py --output search

fine-tunes all-MiniLM-L6-v2 on film reviews with settings that KerasTuner
proposes, keeps every trial in `search`, and prints them, the best on the
validation part first. Stopped and started again with the same command, it goes
on with the trials that are left. The test part is scored once, for the best.
"""

import argparse
import json
from pathlib import Path

import command_line
import finetune
import output_file
import text_tasks
from command_line import UserError

_MAY_CHANGE = ("trials", "output", "data_dir")


def main(argv: list[str] | None = None) -> None:
    """Runs the program; exit code 2 and one line for what users can mend."""
    make_parser().run(run, argv)


def run(options: argparse.Namespace) -> None:
    """Searches, and prints the table of trials."""
    finetune.make_folders(options.output)
    data = text_tasks.load(
        options.task, options.data_dir, options.limit or None
    )
    _keep_options(options)
    # TensorFlow takes seconds to import; what is wrong so far is said at once.
    import tuning

    print(tuning.search(data, options))


def _keep_options(options):
    """Writes them to the folder, or refuses trials made with others."""
    folder = Path(options.output)
    file = folder / "options.json"
    values = {k: v for k, v in vars(options).items() if k not in _MAY_CHANGE}
    if file.exists():
        known = _read(file)
    else:
        known = {} if any(folder.iterdir()) else values
    changed = [name for name in values if known.get(name) != values[name]]
    if changed:
        received = ", ".join(f"{name}={values[name]!r}" for name in changed)
        raise UserError(
            f"`output` holds trials with other options, or other files: take "
            f"another folder for these. Received: output={options.output}, "
            f"{received}"
        )
    output_file.write(str(file), json.dumps(values, indent=2).encode())


def _read(file):
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}") from error


def make_parser() -> command_line.Parser:
    """The options."""
    parser = command_line.Parser(
        prog="tune_strength.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    finetune.add_data_options(parser)
    finetune.add_training_options(parser)
    group = parser.add_argument_group("search")
    group.add_argument(
        "--trials",
        type=command_line.positive_int,
        default=12,
        metavar="N",
        help="number of settings to try (default: 12)",
    )
    group.add_argument(
        "--max-strength",
        type=command_line.positive_real,
        default=5.0,
        metavar="LAMBDA",
        help="strengths are searched between minus this and this (default: 5)",
    )
    group.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        help="folder of the trials, new or of an earlier start with the same "
        "options; --trials and --data-dir may change",
    )
    parser.set_defaults(
        strategy="none", regularizer="istar", momentum=None, log_dir=None
    )
    return parser


if __name__ == "__main__":
    main()
