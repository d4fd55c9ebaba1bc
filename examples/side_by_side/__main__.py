"""Fine-tunes an encoder many times side by side on one GPU, in JAX.

    python examples/side_by_side/arrays.py --output arrays --tasks rte cola
    python examples/side_by_side --arrays arrays --tasks rte cola \
        --output results.jsonl
    python examples/side_by_side --output results.jsonl --summarize

The first command needs TensorFlow and a CPU, the second only JAX and a GPU. All
runs of a task are lanes of one `jax.vmap`: they share compiled code and differ
in numbers. Runs of one seed start from the same head, trained on the features
of the encoder as it is, and have the same examples in the same order and the
same dropout. Several processes, one for each task, can share the GPU. Runs
that are in the file of results are not done again; another encoder needs
another file.

Nothing is trained on the validation part. The summary chooses methods by it, in
each seed that all methods have, and judges them on the test part.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finetuning import command_line  # noqa: E402
from finetuning.command_line import Parser  # noqa: E402
from finetuning.command_line import UserError  # noqa: E402
from finetuning.command_line import option  # noqa: E402
from finetuning.files import append  # noqa: E402

from side_by_side import lines  # noqa: E402
from side_by_side import methods  # noqa: E402
from side_by_side.methods import Method  # noqa: E402
from side_by_side.methods import Run  # noqa: E402
from side_by_side.methods import parse_method  # noqa: E402

_METHODS = """
none,seeds=5
istar:target=0.5x,strength=100,seeds=3
istar:target=1x,strength=100,seeds=3
istar:target=0.75x,strength=100,seeds=3
istar:target=0.5x,strength=100,per_layer,seeds=3
istar:-0.1,seeds=3
istar:-0.03,seeds=3
istar:target=0.5x,strength=400
istar:target=0.5x,strength=100,error=batch
istar:target=0.3,strength=100
istar:target=0.1,strength=100
istar:-1
istar:target=1x,strength=100,per_layer,seeds=3
istar:target=0.5x,seeds=3
istar:target=0.75x,seeds=3
istar:target=0.75x,strength=1,seeds=4
istar:target=0.5x,strength=100,ramp=0.5,seeds=3
istar:target=0.3,strength=100,at=inference
istar:target=0.1,strength=100,at=inference
istar:target=0.3
istar:target=0.3,strength=400
istar:target=0.3,strength=100,error=batch
istar:target=0.5x,strength=5
istar:target=0.5x,strength=1000
istar:target=0.5x,strength=100,momentum=0.99
istar:target=0.5x,strength=100,centered
istar:target=0.5x,strength=400,per_layer
istar:target=0.3,strength=100,per_layer
istar:-0.01
istar:0.1
istar:0.5
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    output: str = option(
        "results", "file to which a line for each run is added", required=True
    )
    summarize: bool = option(
        "results",
        "do no run; write a table and a figure of all results beside the file",
        False,
        action="store_true",
    )
    arrays: str = option("runs", "folder that arrays.py has written", "arrays")
    tasks: tuple[str, ...] = option(
        "runs", "tasks of that folder, one after the other", (), nargs="+"
    )
    methods: tuple[Method, ...] = option(
        "runs",
        "what to add to the loss, most important first (default: "
        f"{' '.join(_METHODS.split())})",
        tuple(map(parse_method, _METHODS.split())),
        nargs="+",
        type=parse_method,
    )
    side_by_side: int = option(
        "runs",
        "runs that train at once; the others follow (default: %(default)s)",
        28,
        type=command_line.positive_int,
    )
    steps: int | None = option(
        "runs",
        "training steps (default: by the task)",
        type=command_line.positive_int,
    )
    dtype_policy: str = option(
        "runs",
        "Keras dtype policy (default: %(default)s)",
        lines.DTYPE_POLICY,
    )


def run(options: Options) -> None:
    """Does the runs, or shows the table of those that were done."""
    if options.summarize:
        from side_by_side import summary

        print(summary.write(options.output))
        return
    if not options.tasks:
        raise UserError("`--tasks` must name a task. Received: none")
    path = Path(options.output)
    # Fails before training if the file cannot be written, or read.
    append(path, "")
    lines.read(path)
    # They need a backend, which is chosen by now.
    import keras

    from side_by_side.experiment import Experiment
    from side_by_side.experiment import make_plan

    keras.config.set_dtype_policy(options.dtype_policy)
    # It has no dropout of attention, which training needs.
    keras.config.disable_flash_attention()
    for task in dict.fromkeys(options.tasks):
        plan = make_plan(task, options.steps)
        setting = lines.setting(task, plan.steps, options.dtype_policy)
        runs = {
            (setting, str(method), seed): Run(method, seed)
            for method in options.methods
            for seed in range(method.seeds)
        }
        done = set(map(lines.key_of, lines.read(path)))
        missing = [run for key, run in runs.items() if key not in done]
        if not missing:
            print(f"{setting}: {path} holds all runs")
            continue
        experiment = Experiment(
            task, missing, options.arrays, options.side_by_side, plan
        )
        for group in experiment.execute():
            append(path, "".join(json.dumps(line) + "\n" for line in group))


def main(argv: list[str] | None = None) -> None:
    """Runs the program; a user error ends it with one line, exit code 2."""
    text = f"{__doc__}\n{methods.__doc__}"
    Parser("side_by_side", text, Options).run(run, argv)


if __name__ == "__main__":
    # Keras, which reads it, is imported later.
    os.environ.setdefault("KERAS_BACKEND", "jax")
    main()
