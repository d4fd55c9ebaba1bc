"""One run of the study: options -> figures.

Runs of one task and seed share the encoder, the head, the order of examples and
the seeds of dropout: they differ only in the regularizer. With IsoBN the head
differs as well: it is trained on normalized features.
"""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from finetuning.data import TextData
from finetuning.recipe import finetune
from finetuning.recipe import load_task
from finetuning.recipe import measure

from study.grid import Run

_DIGITS = 4  # Of mean activations, which are many.


def execute(run: Run, data: TextData) -> dict[str, Any]:
    """Fine-tunes, and returns what to record: the same figures every time.

    Args:
        run: The run; it does not depend on those before it in this process.
        data: The data of its task.

    Raises:
        UserError: If the options do not fit the model or the task.
        RuntimeError: If the loss is not finite.
    """
    tf.config.experimental.enable_op_determinism()
    keras.backend.clear_session()
    keras.utils.set_random_seed(run.seed)
    figures = finetune(
        load_task(data, run.recipe.preset, run.recipe.sequence_length),
        data,
        run.recipe,
        run.method,
        run.seed,
        measures=("isoscore", "isoscore_star", "twonn"),
        observe=observe,
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
        **figures.observed,
        "examples": figures.num_examples,
        "seconds": {"fit": round(figures.seconds, 2)},
    }


def observe(task: Any, measured: Any) -> dict[str, Any]:
    """Further figures of the trained model, to record.

    Args:
        task: The classifier.
        measured: Batches of tokens.

    Returns:
        `first_tokens`, the intrinsic dimension of first tokens by layer; and
        `mean_activation` of each dimension of the last layer over all tokens.
    """
    dimensions = measure(task, measured, ["all"], ["twonn"], pooling="first")
    states = task.backbone.output
    if isinstance(states, dict):
        states = states["sequence_output"]
    encoder = keras.Model(task.backbone.input, states)
    total, count = 0.0, 0.0
    for inputs, _ in measured:
        # Of a span finder, they are more than the encoder takes.
        own = {name: inputs[name] for name in task.backbone.input}
        tokens = keras.ops.convert_to_numpy(encoder(own, training=False))
        mask = inputs.get("padding_mask", np.ones(tokens.shape[:2]))
        mask = np.asarray(mask, "float64")
        total = total + np.einsum("bld,bl->d", tokens, mask)
        count += mask.sum()
    return {
        "first_tokens": _for_json(dimensions),
        "mean_activation": np.round(total / count, _DIGITS).tolist(),
    }


def _with_mean(scores):
    """The scores and, as in the table of GLUE, their mean as `score`."""
    return {"score": float(np.mean(list(scores.values()))), **scores}


def _for_json(isotropy):
    """The measures with None for NaN, which JSON does not have."""
    return {
        state: {k: x if math.isfinite(x) else None for k, x in values.items()}
        for state, values in isotropy.items()
    }
