"""One run of the study: options -> figures.

Runs of one task and seed share the encoder, the head, the order of examples
and the seeds of dropout: they differ in the regularizer alone. Only with IsoBN
the head is another one, trained on normalized features.
"""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from finetuning.data import TextData
from finetuning.recipe import finetune
from finetuning.recipe import load_task

from study.grid import Run

_MEASURES = ("isoscore", "isoscore_star", "twonn")


def make_reproducible() -> None:
    """Makes this process compute the same figures every time, to the bit."""
    tf.config.experimental.enable_op_determinism()


def execute(run: Run, data: TextData) -> dict[str, Any]:
    """Fine-tunes, and returns what to record.

    Args:
        run: The run; it does not depend on those before it in this process.
        data: The data of its task.

    Raises:
        UserError: If the options do not fit the model or the task.
        RuntimeError: If the loss is not finite.
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(run.seed)
    recipe = run.recipe
    task = load_task(data, recipe.preset, recipe.sequence_length)
    figures = finetune(
        task,
        data,
        recipe,
        run.method,
        run.seed,
        measures=_MEASURES,
        verbose=0,
    )
    before, after = figures.before, figures.after
    return {
        "test": {
            "head": _with_mean(before.scores),
            "end": _with_mean(after.scores),
        },
        "epochs": figures.epochs,
        "isotropy": {
            "before": _for_json(before.isotropy),
            "after": _for_json(after.isotropy),
        },
        "examples": figures.num_examples,
        "seconds": {"fit": round(figures.seconds, 2)},
    }


def _with_mean(scores):
    """The scores and, as in the table of GLUE, their mean as `score`."""
    return {"score": float(np.mean(list(scores.values()))), **scores}


def _for_json(isotropy):
    """The measures with None for NaN, which JSON has not."""
    return {
        state: {k: x if math.isfinite(x) else None for k, x in values.items()}
        for state, values in isotropy.items()
    }
