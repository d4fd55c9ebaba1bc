"""Fine-tunes with many regularizers, tasks and seeds, and keeps the figures.

    python examples/study --output results

fine-tunes on the film reviews with every regularizer of `--regularizers` and
every seed, and writes a line of JSON for each run to `results/results.jsonl`.
It can be stopped at any time: the same command goes on where it was. If it is
started twice, the two processes share the work. All runs of one task and seed
have the same examples in the same order, the same encoder, dropout and head,
except that the head of isobn is trained through IsoBN.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finetuning import data  # noqa: E402
from finetuning.command_line import Parser  # noqa: E402

from study import grid  # noqa: E402
from study import work  # noqa: E402
from study.options import Options  # noqa: E402
from study.result_folder import ResultFolder  # noqa: E402


def main(argv: list[str] | None = None) -> None:
    """Runs the program; a user error ends it with one line, exit code 2."""
    parser = Parser("study", __doc__, Options)
    try:
        parser.run(run, argv)
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on from here\n")


def run(options: Options) -> None:
    """Does the runs that are left, or shows them."""
    now = work.timestamp()
    runs = options.runs
    data.check_data_dir(options.data_dir)
    folder = ResultFolder(options.output)
    records = folder.read()
    if options.summarize:
        from study import summary

        print(summary.write(records, folder.path))
    elif options.dry_run:
        print(work.plan(runs, records))
    else:
        retry_before = now if options.retry_failed else None
        rest = work.to_do(runs, records, retry_before)
        execute = make_runner(rest, options.data_dir)
        work.work(runs, folder, execute, retry_before)


def make_runner(runs: list[grid.Run], data_dir: str | None) -> work.Execute:
    """A function that does one of these runs, with the data loaded."""
    task_data = {
        task: data.load(grid.data_name(task), data_dir)
        for task in dict.fromkeys(run.task for run in runs)
    }
    for run in runs:
        grid.check_refresh(run, len(task_data[run.task].train.labels))
    if runs:
        # TensorFlow takes seconds to import; mistakes so far are reported
        # first.
        from study.run import execute
        from study.run import make_reproducible

        make_reproducible()
    return lambda run: execute(run, task_data[run.task])


if __name__ == "__main__":
    main()
