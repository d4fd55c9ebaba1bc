"""Which runs the options of the study ask for, and what they are called."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import study_runs
from finetuning.settings import Method
from study import grid
from study_runs import EXAMPLES
from study_runs import METHODS
from study_runs import make_runs

HELD = ("istar", 20.0, 0.2, ("all",), 0.9, None, "skip")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("none", ("none",)),
        ("isobn", ("isobn",)),
        ("cosreg:1", ("cosreg", 1.0, None, (-1,))),
        ("cosreg:2,layers=all", ("cosreg", 2.0, None, ("all",))),
        ("istar:-1", ("istar", -1.0, 0.2, ("all",), None, "epoch", "skip")),
        (
            "istar:0.5,shrinkage=1,layers=0+-1+top,refresh=50,padding=count",
            ("istar", 0.5, 1.0, (0, -1, "top"), None, 50, "count"),
        ),
        (
            "istar:5,momentum=0.99",
            ("istar", 5.0, 0.2, ("all",), 0.99, None, "skip"),
        ),
        (
            "istar:5,refresh=never",
            ("istar", 5.0, 0.2, ("all",), None, "never", "skip"),
        ),
        ("istar:target=0.3", (*HELD, 0.3)),
        (
            "istar:target=0.75x,strength=1,momentum=0.5",
            ("istar", 1.0, 0.2, ("all",), 0.5, None, "skip", 0.75, True),
        ),
        (
            "istar:target=0.5..1.5x,per_layer",
            (*HELD, (0.5, 1.5), True, True),
        ),
        ("istar:target=0..0.25", (*HELD, (0.0, 0.25))),
    ],
)
def test_method_is_parsed_and_spelled(spec, expected):
    method = grid.parse_method(spec)
    assert method == Method(*expected)
    assert grid.spell(method) == spec
    assert grid.parse_method(spec) == method


@pytest.mark.parametrize(
    ("text", "shortest"),
    [
        ("istar:20,target=0.3", "istar:target=0.3"),
        ("istar:target=0.3x,strength=20,momentum=0.9", "istar:target=0.3x"),
        ("istar:target=0.3..0.3", "istar:target=0.3"),
        ("istar:per_layer,strength=-0", "istar:0,per_layer"),
    ],
)
def test_methods_that_are_the_same_have_one_name(text, shortest):
    method = grid.parse_method(text)
    assert method == grid.parse_method(shortest)
    assert grid.spell(method) == shortest


def test_grid_is_the_product_each_run_once_in_order():
    methods = ("isobn", "none", "istar:1", "istar:-1", "none")
    runs = make_runs(
        regularizers=methods, seeds=2, tasks=("glue/sst2", "rte", "rte")
    )
    assert [(run.task, run.seed, grid.spell(run.method)) for run in runs] == [
        (task, seed, method)
        for task in ("rte", "sst2")
        for seed in (0, 1)
        for method in ("none", "istar:-1", "istar:1", "isobn")
    ]
    assert runs[0].recipe.sequence_length == 96
    assert runs[-1].recipe.sequence_length == 48


def test_tasks_are_named_as_in_the_results(tmp_path):
    folder = tmp_path / "sst5"
    folder.mkdir()
    names = ["glue/sst2", "rte", "squad", f"{folder}/"]
    tasks = [grid.parse_task(name) for name in names]
    assert tasks == ["sst2", "rte", "squad", str(folder)]
    read = [grid.data_name(task) for task in tasks]
    assert read == ["glue/sst2", "glue/rte", "squad", str(folder)]
    (run,) = make_runs(tasks=("squad",), regularizers=("none",), seeds=1)
    assert run.recipe.sequence_length == 384


def test_ids_tell_every_option_and_survive_a_file():
    targets = ("0.3", "0.3x", "0.1..0.3", "0.1..0.3x", "0.3,per_layer")
    methods = (*METHODS, *(f"istar:target={text}" for text in targets))
    runs = [
        run
        for options in ({}, {"epochs": 4}, {"recipe": "paper"}, {"limit": 9})
        for run in make_runs(regularizers=methods, **options)
    ]
    assert len({run.id for run in runs}) == len(runs)
    for run in runs:
        copy = grid.Run.from_dict(json.loads(json.dumps(run.as_dict())))
        assert copy == run and copy.id == run.id


def test_ids_are_the_same_in_another_process():
    code = "import study_runs as t; print([r.id for r in t.make_runs()])"
    path = os.pathsep.join(
        [str(EXAMPLES), str(Path(study_runs.__file__).parent)]
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str([run.id for run in make_runs()])


def test_settings_name_what_differs_within_a_task():
    runs = [
        run
        for options in ({}, {"limit": None, "epochs": 4})
        for run in make_runs(tasks=("rte", "sst2"), seeds=1, **options)
    ]
    sst2 = [run for run in runs if run.task == "sst2"]
    assert list(grid.settings([*runs[:1], *sst2]).values()) == [
        "rte, 512 examples",
        "sst2, 512 examples, epochs=3",
        "sst2, all examples, epochs=4",
    ]
