"""The settings of a fine-tuning: a method and a recipe."""

import dataclasses
from typing import Any

from finetuning.command_line import UserError
from finetuning.data import find_task

SKIP_PADDING = "skip"
COUNT_PADDING = "count"
REFRESH_EPOCH = "epoch"
REFRESH_NEVER = "never"

DEFAULTS: dict[str, dict[str, Any]] = {
    "none": {},
    "istar": {
        "strength": -1.0,
        "shrinkage": 0.2,
        "layers": ("all",),
        "momentum": None,
        "refresh": REFRESH_EPOCH,
        "padding": SKIP_PADDING,
        "target": None,
        "relative": False,
        "per_layer": False,
    },
    "cosreg": {"strength": 1.0, "layers": (-1,)},
    "isobn": {},
}
# With a target the layer keeps Σ_S itself.
TARGET_DEFAULTS = {"strength": 20.0, "momentum": 0.9}


@dataclasses.dataclass(frozen=True)
class Method:
    """A regularizer with its options; None for those that it does not have.

    Attributes:
        regularizer: `"istar"`, `"cosreg"`, `"isobn"` or `"none"`.
        strength: Factor of the penalty, the paper's λ.
        shrinkage: The paper's ζ.
        layers: Indices and names of layers, or `("all",)`.
        momentum: Of the moving average that keeps Σ_S, instead of passes.
        refresh: When a pass renews Σ_S: `"epoch"`, a number of steps, or
            `"never"` after the one before training.
        padding: Whether padding counts as tokens: `"skip"` or `"count"`.
        target: IsoScore to hold, instead of a push, or an interval of it.
        relative: Whether the target is in multiples of the IsoScore at the
            start.
        per_layer: Whether each layer is a cloud of its own, not their union.
    """

    regularizer: str
    strength: float | None = None
    shrinkage: float | None = None
    layers: tuple[int | str, ...] | None = None
    momentum: float | None = None
    refresh: int | str | None = None
    padding: str | None = None
    target: float | tuple[float, float] | None = None
    relative: bool = False
    per_layer: bool = False

    @classmethod
    def make(cls, regularizer: str, **options: Any) -> "Method":
        """A method with the defaults of its regularizer for other options."""
        defaults = DEFAULTS[regularizer]
        if options.get("target") is not None:
            defaults = defaults | TARGET_DEFAULTS
        method = cls(regularizer, **(defaults | options))
        if method.momentum is None:
            return method
        return dataclasses.replace(method, refresh=None)


def check_method(method: Method, task: str) -> None:
    """Raises a `UserError` if a method does not fit the models of a task.

    Args:
        method: The method.
        task: Name of the task, as `data.load` takes it.
    """
    if method.regularizer == "isobn" and find_task(task).has_spans:
        raise UserError(
            "isobn scales sentence embeddings, and answers to questions are "
            f"found without any. Received: isobn with the task {task}"
        )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of training and measuring, the same for all methods.

    Attributes:
        preset: Of the encoder, see `classifiers.load_classifier`.
        limit: Number of training examples, drawn by the seed, None for all.
        validation_limit: Number of examples scored after every epoch.
        test_limit: Number of examples for the final figures, None for all.
        epochs: Passes over the training examples, after those for the head.
        batch_size: Examples in a training batch.
        learning_rate: Peak of the optimizer's.
        sequence_length: Tokens to which texts are cut, or of a window, see
            `spans`.
        max_tokens: Number of tokens in a pass for Σ_S, counted once in every
            state.
        measured_texts: Number of test examples, or windows of them, whose
            states are measured.
        head_steps: Least number of steps, in whole passes, that the head is
            trained for by itself; 0 leaves it random.
        optimizer: `"adam"` with a warm-up over the first tenth of the steps and
            a fall to 0, half a cosine; or `"adamw"` with a constant rate.
    """

    preset: str = "minilm"
    limit: int | None = None
    validation_limit: int | None = None
    test_limit: int | None = None
    epochs: int = 3
    batch_size: int = 16
    learning_rate: float = 3e-5
    sequence_length: int = 48
    max_tokens: int = 100_000
    measured_texts: int | None = None
    head_steps: int = 500
    optimizer: str = "adam"


RECIPES = {
    "probe-first": Recipe(),
    # Rudman and Eickhoff, "Stable Anisotropic Regularization", ICLR 2024.
    "paper": Recipe(
        epochs=4,
        batch_size=32,
        learning_rate=1e-5,
        max_tokens=250_000,
        head_steps=0,
        optimizer="adamw",
    ),
}
