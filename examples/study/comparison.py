"""Means of the runs of a study, and paired tests.

Every method is compared with the baseline of its setting, seed by seed, by a
paired t-test; Holm's correction is over all comparisons of the study. The
choices of the validation part in each family are compared in the same way, with
Holm's correction over these choices only. The tables of runs are those of
`run_table`.
"""

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests

from study.grid import Run
from study.grid import is_plain
from study.grid import settings
from study.grid import spell
from study.work import Records

_BASELINES = ("none", "istar:0")  # Both train without a penalty.
_NO_PENALTY = "no penalty"
_ISTAR = "I-STAR"
_FAMILIES = {"istar": _ISTAR, "cosreg": "CosReg", "isobn": "IsoBN"}
_ROUNDING = 1e-12  # Scores are fractions: equal ones are so but for rounding.


def run_table(records: Records) -> pd.DataFrame:
    """One row for each run that has ended, in the order of the records.

    Columns are `setting` (see `grid.settings`), `method`, `family` of methods,
    `strength` (NaN if it is not I-STAR with its defaults), `seed`, and after
    training `validation`, the mean of the scores on the validation part, and
    on the test part `score`, `isoscore` of all layers, and `dimension` of the
    last one by TwoNN. Of a failed run, figures are NaN, and `validation`
    is below that of any other.
    """
    runs = [Run.from_dict(record["run"]) for record in records.values()]
    names = settings(runs)
    rows = [
        {
            "setting": names[run.task, run.recipe],
            "method": spell(run.method),
            "family": family(run.method.regularizer, run.method.strength),
            "strength": run.method.strength if is_plain(run.method) else np.nan,
            "seed": run.seed,
            **_figures(record),
        }
        for run, record in zip(runs, records.values(), strict=True)
    ]
    return pd.DataFrame(rows).astype({"dimension": "float64"})


def family(regularizer: str, strength: float | None) -> str:
    """The family of a method, for `choose`."""
    has_penalty = regularizer != "none" and strength != 0.0
    return _FAMILIES[regularizer] if has_penalty else _NO_PENALTY


def _figures(record):
    if record["status"] == "failed":
        missing = dict.fromkeys(("score", "isoscore", "dimension"), np.nan)
        return {"validation": -np.inf, **missing}
    states = record["isotropy"]["after"]
    *_, last = (state for name, state in states.items() if name != "union")
    scores = record["test"]["end"]
    # After the last epoch: of the model that is tested, not of the best one.
    logs = record["epochs"][-1]
    logged = [logs.get(f"val_{name}") for name in scores if name != "score"]
    return {
        "validation": pd.Series(logged, dtype="float64").mean(skipna=False),
        "score": scores["score"],
        "isoscore": states["union"]["isoscore"],
        "dimension": last["twonn_dimension"],
    }


def compare(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting and method.

    Columns: `seeds`, mean and standard deviation of `score`, mean `isoscore`
    and `dimension`, and against the baseline over the seeds that both have:
    `difference` of the score with `low` and `high` end of its 95 % confidence
    interval, `p`, and `p_holm`. These are NaN for the baseline itself, and
    without two pairs that differ.
    """
    rows = []
    for name, group in runs.groupby("setting", sort=False):
        scores = _by_seed(group, "score")
        reference = baseline(group)
        for method, own in group.groupby("method", sort=False):
            is_compared = reference not in (None, method)
            rows.append(
                {
                    "setting": name,
                    "method": method,
                    "isoscore": own["isoscore"].mean(),
                    "dimension": own["dimension"].mean(),
                    **_paired(
                        scores[method].dropna(),
                        scores[reference] if is_compared else None,
                    ),
                }
            )
    return _with_holm(rows)


def baseline(group: pd.DataFrame) -> str | None:
    """The method of a setting that trains without a penalty, if there is."""
    present = set(group["method"])
    return next((name for name in _BASELINES if name in present), None)


def _by_seed(group, values):
    return group.pivot(index="seed", columns="method", values=values)


def _paired(scores, reference):
    """Figures of scores by seed, and of their difference to the baseline."""
    found = {
        "seeds": len(scores),
        "score": scores.mean(),
        "deviation": scores.std(),
        **dict.fromkeys(("difference", "low", "high", "p"), np.nan),
    }
    if reference is None:
        return found
    differences = (scores - reference).dropna()
    found["difference"] = differences.mean()
    if len(differences) < 2 or np.ptp(differences) < _ROUNDING:
        return found
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(0.95)
    return {**found, "low": low, "high": high, "p": test.pvalue}


def _with_holm(rows):
    table = pd.DataFrame(rows)
    if rows:
        tested = table["p"].dropna()
        table["p_holm"] = np.nan
        if len(tested):
            corrected = multipletests(tested, method="holm")[1]
            table.loc[tested.index, "p_holm"] = corrected
    return table


def choose(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting and family: what the validation part chooses.

    In every seed anew, the method of the family that has the best validation
    score after its last epoch is chosen, and its test score counts: each seed
    repeats the whole search, as in the paper. So every seed, which has a
    baseline of its own, gives one difference. If methods tie, the mean of their
    test scores counts. A seed counts if all methods of the family have ended in
    it; one that has failed is not chosen.

    Columns: `methods`, their number; `chosen`, names with the number of seeds;
    and of the scores what `compare` has. Holm's correction is over the rows.
    """
    rows = []
    for name, group in runs.groupby("setting", sort=False):
        scores = _by_seed(group, "score")
        validation = _by_seed(group, "validation")
        reference = scores.get(baseline(group.dropna(subset="score")))
        searched = group[group["family"] != _NO_PENALTY]
        for searched_family, own in searched.groupby("family", sort=False):
            methods = own["method"].unique()
            seen = validation[methods].dropna()
            is_best = seen.ge(seen.max(axis=1) - _ROUNDING, axis=0)
            chosen = scores[methods].where(is_best).mean(axis=1).dropna()
            if chosen.empty:
                continue
            counts = is_best.loc[chosen.index].sum()
            names = [f"{x} ({n})" for x, n in counts[counts > 0].items()]
            rows.append(
                {
                    "setting": name,
                    "family": searched_family,
                    "methods": len(methods),
                    "chosen": "; ".join(names),
                    **_paired(chosen, reference),
                }
            )
    return _with_holm(rows)


def slopes(runs: pd.DataFrame) -> pd.DataFrame:
    """For each setting, the slope of the score on IsoScore within seeds.

    The runs are those of I-STAR and those without a penalty, whose isotropy
    nothing else changes. The slope is by least squares with the seed as a fixed
    effect: the mean of the seed is subtracted from both numbers. The errors are
    clustered by seed, so that runs which share examples and head do not count
    as independent evidence.

    Columns: `runs`, `seeds`, `slope`, and `low` and `high` end of its 95 %
    confidence interval, NaN without two seeds that differ.
    """
    is_meant = runs["family"].isin([_ISTAR, _NO_PENALTY])
    meant = runs[is_meant].dropna(subset=["score", "isoscore"])
    rows = []
    for name, group in meant.groupby("setting", sort=False):
        own = group.groupby("seed").filter(
            lambda runs: np.ptp(runs["isoscore"]) > _ROUNDING
        )
        if own.empty:
            continue
        both = own[["score", "isoscore"]]
        within = both - both.groupby(own["seed"]).transform("mean")
        model = OLS(within["score"], within["isoscore"])
        found = {
            "setting": name,
            "runs": len(own),
            "seeds": own["seed"].nunique(),
            "slope": model.fit().params.iloc[0],
            "low": np.nan,
            "high": np.nan,
        }
        if found["seeds"] > 1:
            fit = model.fit(
                cov_type="cluster", cov_kwds={"groups": own["seed"]}, use_t=True
            )
            if fit.bse.iloc[0] > _ROUNDING:
                found["low"], found["high"] = fit.conf_int().iloc[0]
        rows.append(found)
    return pd.DataFrame(rows)


def orders(runs: pd.DataFrame) -> list[str]:
    """For each setting, in how many seeds IsoScore rises with the strength."""
    found = []
    for name, group in runs.groupby("setting", sort=False):
        ladder = group.dropna(subset="strength").pivot(
            index="seed", columns="strength", values="isoscore"
        )
        ladder = ladder.dropna()
        if ladder.shape[1] < 2 or ladder.empty:
            continue
        rises = (np.diff(ladder.to_numpy(), axis=1) > 0).all(axis=1).sum()
        strengths = ", ".join(f"{strength:g}" for strength in ladder.columns)
        found.append(
            f"{name}: IsoScore rises with the strength ({strengths}) in "
            f"{rises} of {len(ladder)} seeds."
        )
    return found
