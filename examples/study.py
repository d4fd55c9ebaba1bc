"""Fine-tunes with many regularizers, tasks and seeds, and keeps the figures.

    python examples/study.py --output study

does, on the film reviews, every regularizer of `--regularizers` with every
seed, and writes a line of JSON for each run to `study/results.jsonl`. Stop it
at any time: the same command goes on where it was. Start it twice, and the two
processes share the work. Runs of one task and seed have the same examples in
the same order, the same encoder and the same dropout, whatever the regularizer,
and the same head; that of isobn is another, trained through IsoBN.
"""

import argparse
import os
import sys

import glue
import study_grid
import study_loop
import study_options
import text_tasks
from command_line import UserError
from study_results import ResultFolder

# Keras keeps the graph of every training for as long as the process lives:
# with MiniLM, 0.4 GB a run.
_MAX_RUNS = 12


def main(argv: list[str] | None = None) -> None:
    """Runs the program; exit code 2 and one line for what users can mend."""
    parser = study_options.make_parser(__doc__)
    argv = sys.argv[1:] if argv is None else argv
    options = parser.parse_args(argv)
    try:
        if not run(options):
            _start_anew(argv, options)
    except UserError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on from here\n")


def run(options: argparse.Namespace) -> bool:
    """Does the runs that are left, or shows them.

    Returns:
        Whether nothing is left that this process should have done.
    """
    options.tasks = [study_grid.parse_task(task) for task in options.tasks]
    glue.check_data_dir(options.data_dir)
    runs = study_grid.grid(options)
    folder = ResultFolder(options.output)
    records = folder.read()
    if options.summarise:
        import study_report

        print(study_report.write(records, folder.path))
        return True
    if options.dry_run:
        print(study_loop.plan(runs, records))
        return True
    rest = study_loop.to_do(runs, records, options.retry_failed)
    if rest:
        folder.check_space()
    execute = _make_runner(rest, options) if rest else None
    return study_loop.work(
        runs, folder, execute, options.retry_failed, _MAX_RUNS
    )


def _start_anew(argv, options):
    """Replaces this process by a new one that goes on from here."""
    if options.retry_failed is not None:  # But not what has failed since.
        argv = [*argv, "--retry-failed", options.retry_failed]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, __file__, *argv])


def _make_runner(runs, options):
    tasks = {
        task: text_tasks.load(
            study_grid.data_name(task), options.data_dir, with_scores=True
        )
        for task in dict.fromkeys(run.task for run in runs)
    }
    for run in runs:
        study_grid.check_refresh(run, len(tasks[run.task].train.labels))
    # TensorFlow takes seconds to import; what is wrong so far is said at once.
    import study_run

    study_run.make_reproducible()
    return study_run.Runner(tasks)


if __name__ == "__main__":
    main()
