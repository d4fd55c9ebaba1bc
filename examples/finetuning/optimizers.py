"""The optimizer of trainings that have a fixed number of steps."""

import keras


def adam(learning_rate: float, steps: int) -> keras.optimizers.Adam:
    """Adam with a warm-up over a tenth of the steps and a fall to 0.

    Args:
        learning_rate: The highest one, after the warm-up; then it falls by half
            a cosine.
        steps: Number of training steps.
    """
    warmup = max(steps // 10, 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        max(steps - warmup, 1),
        warmup_target=learning_rate,
        warmup_steps=warmup,
    )
    return keras.optimizers.Adam(schedule)
