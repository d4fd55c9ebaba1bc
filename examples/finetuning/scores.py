"""The scores of GLUE."""

from collections.abc import Sequence

import numpy as np
from scipy import stats
from sklearn import metrics


def score(
    names: Sequence[str], outputs: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Scores of the outputs of a model, by name.

    If outputs are all equal, correlations are 0, as in scikit-learn's
    `matthews_corrcoef`.

    Args:
        names: Of `SCORES`.
        outputs: Logits `(examples, classes)`, or numbers `(examples, 1)`.
        labels: Of shape `(examples,)`.

    Raises:
        RuntimeError: If an output is not finite.
    """
    if not np.all(np.isfinite(outputs)):
        raise RuntimeError("the model's outputs are not finite")
    is_number = outputs.shape[-1] == 1
    answers = outputs[:, 0] if is_number else np.argmax(outputs, axis=-1)
    return {name: float(SCORES[name](labels, answers)) for name in names}


def _correlation(function):
    def correlate(labels, answers):
        is_constant = np.ptp(answers) == 0 or np.ptp(labels) == 0
        return 0.0 if is_constant else function(labels, answers).statistic

    return correlate


SCORES = {
    "accuracy": metrics.accuracy_score,
    "f1": metrics.f1_score,
    "matthews": metrics.matthews_corrcoef,
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}
