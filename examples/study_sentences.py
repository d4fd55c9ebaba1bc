"""What the comparisons of a study say, in plain sentences."""

import numpy as np
import pandas as pd
import study_summary


def sentences(runs: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """For each setting: what is better or worse, and if isotropy obeys.

    Args:
        runs: The table of `study_summary.run_table`.
        table: What `study_summary.compare` has made of it.
    """
    found = []
    for name, group in table.groupby("setting", sort=False):
        found.append(f"{name}: {_verdict(group)}")
        order = _order(runs[runs["setting"] == name])
        if order is not None:
            found.append(f"{name}: {order}")
    return found


def _verdict(group):
    """What is said of every method but the baseline."""
    reference = study_summary.baseline(group)
    others = group[group["method"] != reference]
    if reference is None:
        return f"no baseline to compare {_listed(others)} with."
    if others.empty:
        return "no method to compare with the baseline."
    is_tested = others["p_holm"].notna()
    is_clear = others["p_holm"] < study_summary.LEVEL
    is_alike = ~is_tested & (others["pairs"] > 1)
    said = [
        f"{_listed(others[which])} {verdict}"
        for verdict, which in {
            "better than the baseline": is_clear & (others["difference"] > 0),
            "worse than the baseline": is_clear & (others["difference"] < 0),
            "not distinguishable from the baseline": is_tested & ~is_clear,
            "as far from the baseline in one seed as in any other, which is "
            "not tested": is_alike & (others["difference"].abs() > 1e-12),
            "equal to the baseline in every seed": is_alike
            & (others["difference"].abs() <= 1e-12),
            "without two seeds to compare with the baseline": others["pairs"]
            < 2,
        }.items()
        if which.any()
    ]
    return "; ".join(said) + "."


def _listed(group):
    return ", ".join(group["method"])


def _order(runs):
    """Whether IsoScore rises with the strength, seed by seed."""
    ladder = runs[runs["strength"].notna()].pivot(
        index="seed", columns="strength", values="isoscore"
    )
    ladder = ladder.dropna().sort_index(axis=1)
    if ladder.shape[1] < 2 or ladder.empty:
        return None
    rises = (np.diff(ladder.to_numpy(), axis=1) > 0).all(axis=1).sum()
    strengths = ", ".join(f"{strength:g}" for strength in ladder.columns)
    return (
        f"IsoScore rises with the strength ({strengths}) in {rises} of "
        f"{len(ladder)} seeds."
    )
