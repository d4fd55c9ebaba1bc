"""What the runs of a study say: a table of means and paired tests.

Every method is compared with the baseline of its setting, seed by seed, by a
paired t-test; Holm's correction is over all comparisons of the study.
"""

from typing import Any

import numpy as np
import pandas as pd
import study_settings
from scipy import stats
from statsmodels.stats.multitest import multipletests
from study_grid import Run

LEVEL = 0.05
_BASELINES = ("none", "istar:0")  # Both train without a penalty.


def run_table(records: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """One row for each run that has not failed, in the order of the records.

    Columns are `setting` (see `study_settings.names`), `method`, `strength`
    (NaN if it is not I-STAR with its defaults), `seed`, `score`, and on test
    texts after training `isoscore` and `isoscore_star` of all layers, and
    `dimension` of the last one by TwoNN.
    """
    finished = [r for r in records.values() if r["status"] == "ok"]
    runs = [Run.from_dict(record["run"]) for record in finished]
    names = study_settings.names(runs)
    rows = [
        {"setting": names[study_settings.setting(run)], **_row(run, record)}
        for run, record in zip(runs, finished, strict=True)
    ]
    return pd.DataFrame(rows)


def _row(run, record):
    states = record["isotropy"]["after"]
    *_, last = (state for name, state in states.items() if name != "union")
    return {
        "method": str(run.method),
        "strength": run.method.strength if run.method.is_plain else np.nan,
        "seed": run.seed,
        "score": record["test"]["end"]["score"],
        "isoscore": states["union"]["isoscore"],
        "isoscore_star": states["union"]["isoscore_star"],
        "dimension": last["twonn_dimension"],
    }


def compare(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting and method.

    Columns: `seeds`, mean and standard deviation of `score`, mean `isoscore`
    and `dimension`, and against the baseline over the seeds that both have:
    `pairs`, `difference` of the score with `low` and `high` end of its 95 %
    confidence interval, `p`, and `p_holm`. These are NaN for the baseline
    itself, and without two pairs that differ.
    """
    rows = []
    for name, group in runs.groupby("setting", sort=False):
        scores = group.pivot(index="seed", columns="method", values="score")
        reference = baseline(group)
        for method, own in group.groupby("method", sort=False):
            rows.append(
                {
                    "setting": name,
                    "method": method,
                    "seeds": len(own),
                    "score": own["score"].mean(),
                    "deviation": own["score"].std(),
                    "isoscore": own["isoscore"].mean(),
                    "dimension": own["dimension"].astype("float64").mean(),
                    **_paired(scores, method, reference),
                }
            )
    table = pd.DataFrame(rows)
    table["p_holm"] = _holm(table["p"])
    return table


def baseline(group: pd.DataFrame) -> str | None:
    """The method of a setting that trains without a penalty, if there is."""
    present = set(group["method"])
    return next((name for name in _BASELINES if name in present), None)


def _paired(scores, method, reference):
    nothing = dict.fromkeys(("difference", "low", "high", "p"), np.nan)
    if reference is None or method == reference:
        return {"pairs": 0, **nothing}
    pairs = scores[[method, reference]].dropna()
    differences = pairs[method] - pairs[reference]
    # Scores are fractions: equal differences are so but for rounding.
    if len(pairs) < 2 or np.ptp(differences) < 1e-12:
        mean = differences.mean()
        return {"pairs": len(pairs), **nothing, "difference": mean}
    test = stats.ttest_rel(pairs[method], pairs[reference])
    interval = test.confidence_interval(0.95)
    return {
        "pairs": len(pairs),
        "difference": differences.mean(),
        "low": interval.low,
        "high": interval.high,
        "p": test.pvalue,
    }


def _holm(p):
    corrected = pd.Series(np.nan, index=p.index)
    is_tested = p.notna()
    if is_tested.any():
        corrected[is_tested] = multipletests(p[is_tested], LEVEL, "holm")[1]
    return corrected
