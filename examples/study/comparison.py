"""Means of the runs of a study, and paired tests.

Every method is compared with the baseline of its setting, seed by seed, by a
paired t-test; Holm's correction is over all comparisons of the study.
"""

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from study.grid import Run
from study.grid import is_plain
from study.grid import settings
from study.grid import spell
from study.result_folder import Records

_LEVEL = 0.05
_BASELINES = ("none", "istar:0")  # Both train without a penalty.
_NOTHING = dict.fromkeys(("difference", "low", "high", "p"), np.nan)


def run_table(records: Records) -> pd.DataFrame:
    """One row for each run that has not failed, in the order of the records.

    Columns are `setting` (see `grid.settings`), `method`, `strength` (NaN if
    it is not I-STAR with its defaults), `seed`, `score`, and on test texts
    after training `isoscore` of all layers, and `dimension` of the last one by
    TwoNN.
    """
    finished = [r for r in records.values() if r["status"] == "ok"]
    runs = [Run.from_dict(record["run"]) for record in finished]
    names = settings(runs)
    return pd.DataFrame(
        {"setting": names[run.task, run.recipe], **_row(run, record)}
        for run, record in zip(runs, finished, strict=True)
    )


def _row(run, record):
    states = record["isotropy"]["after"]
    *_, last = (state for name, state in states.items() if name != "union")
    return {
        "method": spell(run.method),
        "strength": run.method.strength if is_plain(run.method) else np.nan,
        "seed": run.seed,
        "score": record["test"]["end"]["score"],
        "isoscore": states["union"]["isoscore"],
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
    table["p_holm"] = np.nan
    is_tested = table["p"].notna()
    if is_tested.any():
        p = table.loc[is_tested, "p"]
        table.loc[is_tested, "p_holm"] = multipletests(p, _LEVEL, "holm")[1]
    return table


def baseline(group: pd.DataFrame) -> str | None:
    """The method of a setting that trains without a penalty, if there is."""
    present = set(group["method"])
    return next((name for name in _BASELINES if name in present), None)


def _paired(scores, method, reference):
    if reference is None or method == reference:
        return {"pairs": 0, **_NOTHING}
    pairs = scores[[method, reference]].dropna()
    differences = pairs[method] - pairs[reference]
    found = {"pairs": len(pairs), **_NOTHING, "difference": differences.mean()}
    # Scores are fractions: equal differences are so but for rounding.
    if len(pairs) < 2 or np.ptp(differences) < 1e-12:
        return found
    test = stats.ttest_rel(pairs[method], pairs[reference])
    low, high = test.confidence_interval(0.95)
    return {**found, "low": low, "high": high, "p": test.pvalue}


def orders(runs: pd.DataFrame) -> list[str]:
    """For each setting, in how many seeds IsoScore rises with the strength.

    Args:
        runs: What `run_table` returns.
    """
    found = []
    for name, group in runs.groupby("setting", sort=False):
        ladder = group[group["strength"].notna()].pivot(
            index="seed", columns="strength", values="isoscore"
        )
        ladder = ladder.dropna().sort_index(axis=1)
        if ladder.shape[1] < 2 or ladder.empty:
            continue
        rises = (np.diff(ladder.to_numpy(), axis=1) > 0).all(axis=1).sum()
        strengths = ", ".join(f"{strength:g}" for strength in ladder.columns)
        found.append(
            f"{name}: IsoScore rises with the strength ({strengths}) in "
            f"{rises} of {len(ladder)} seeds."
        )
    return found
