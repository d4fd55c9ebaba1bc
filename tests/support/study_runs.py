"""Runs of the study, as its options ask for them, and made-up results."""

from pathlib import Path

import numpy as np
from study import __main__ as program
from study import grid

EXAMPLES = Path(program.__file__).parents[1]
METHODS = ("none", "istar:-1", "istar:1,shrinkage=0.8", "cosreg:1", "isobn")
COMPARED = ("istar:-5", "istar:0", "istar:5", "cosreg:1")
_EFFECTS = {"istar:-5": -0.1, "istar:5": 0.1}


def make_runs(**options):
    if "regularizers" in options:
        methods = map(grid.parse_method, options["regularizers"])
        options["regularizers"] = tuple(methods)
    return program.Options(output="x", **options).runs


def make_records(seeds=6, methods=COMPARED, tasks=("rte",), noise=0.01):
    rng = np.random.default_rng(0)
    runs = make_runs(seeds=seeds, tasks=tasks, regularizers=methods)
    easy = rng.normal(size=seeds)
    return {
        run.id: _make_record(run, easy, noise * rng.normal()) for run in runs
    }


def _make_record(run, easy, noise):
    isoscore = 0.3 + 0.02 * (run.method.strength or 0.0)
    state = {"isoscore": isoscore, "isoscore_star": isoscore + 0.1}
    states = {
        name: {**state, "twonn_dimension": dimension}
        for name, dimension in (("layer_0", 5), ("layer_1", 4.2), ("union", 6))
    }
    effect = _EFFECTS.get(grid.spell(run.method), 0.0)
    score = 0.6 + 0.1 * easy[run.seed] + effect + noise
    return {
        "status": "ok",
        "name": str(run),
        "run": run.as_dict(),
        "test": {"end": {"score": score, "accuracy": score}},
        "epochs": [
            {"isoscore_union": 0.2, "val_accuracy": 0.7},
            {"isoscore_union": 0.3, "val_accuracy": 0.6},
        ],
        "isotropy": {"before": states, "after": states},
    }


def make_ended(scores, validation, isoscores=None):
    """Records of runs by method and seed, with these figures.

    Args:
        scores: Test scores of all seeds by method.
        validation: Validation scores after each epoch of all seeds by method;
            None for a run that has failed.
        isoscores: Of all seeds by method.
    """
    records = make_records(len(scores["none"]), tuple(scores))
    for record in records.values():
        run = grid.Run.from_dict(record["run"])
        name, seed = grid.spell(run.method), run.seed
        score, epochs = scores[name][seed], validation[name][seed]
        record["test"]["end"] = {"score": score, "accuracy": score}
        if epochs is None:
            record["status"] = "failed"
            del record["test"], record["isotropy"]
        else:
            record["epochs"] = [{"val_accuracy": value} for value in epochs]
        if isoscores:
            union = record["isotropy"]["after"]["union"]
            union["isoscore"] = isoscores[name][seed]
    return records
