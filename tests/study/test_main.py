"""The options of the study, and the program with runs that do nothing."""

import contextlib
import resource

import pytest
from finetuning.settings import DEFAULTS
from finetuning.settings import RECIPES
from study import __main__ as program
from study import work
from study.work import ResultFolder
from study_runs import METHODS
from study_runs import make_runs

STATE = {"isoscore": 0.2, "isoscore_star": 0.3, "twonn_dimension": 5.0}
FIGURES = {
    "test": {"end": {"score": 0.5}},
    "epochs": [{"isoscore_union": 0.2}],
    "isotropy": {"after": {"layer_0": STATE, "union": STATE}},
}


@pytest.fixture
def runs():
    return make_runs(regularizers=METHODS, seeds=2)


def execute(run):
    return FIGURES


def test_recipe_of_the_paper_and_options_over_it():
    (run,) = make_runs(regularizers=("none",), seeds=1, recipe="paper")
    recipe = run.recipe
    assert (recipe.optimizer, recipe.learning_rate) == ("adamw", 1e-5)
    assert (recipe.epochs, recipe.batch_size, recipe.head_steps) == (4, 32, 0)
    (run,) = make_runs(
        regularizers=("none",), seeds=1, recipe="paper", epochs=2
    )
    assert (run.recipe.epochs, run.recipe.optimizer) == (2, "adamw")


def test_every_difference_to_the_paper_can_be_an_option():
    """So that an ablation can go from one recipe to the other, step by step."""
    ours = {
        name: getattr(RECIPES["probe-first"], name)
        for name in (
            *("epochs", "batch_size", "learning_rate", "head_steps"),
            *("optimizer", "max_tokens"),
        )
    }
    ids = [run.id for run in make_runs()]
    assert [run.id for run in make_runs(recipe="paper", **ours)] == ids
    for name, value in ours.items():
        changed = make_runs(recipe="paper", **{name: value})
        assert {getattr(run.recipe, name) for run in changed} == {value}
        assert [run.id for run in changed] != ids


def test_default_methods_are_of_all_families():
    methods = [run.method for run in make_runs(seeds=1)]
    names = [method.regularizer for method in methods]
    assert set(names) == set(DEFAULTS) and len(methods) == 9
    targets = [x.target for x in methods if x.target is not None]
    assert targets == [0.75, 0.5]  # In order of the strength.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--tasks", "sst5"],
            "no such task, file or folder: 'sst5'. Tasks are film-",
        ),
        (["--tasks", "squad"], "Received: isobn with the task squad"),
        (["--data-dir", "./missing"], "no such data folder: ./missing. Leave"),
        (["--output", f"{__file__}/x"], "cannot use the result folder"),
        (["--regularizers", "dropout"], "must be one of none, istar"),
        (["--regularizers", "istar"], "istar needs a strength"),
        (["--regularizers", "none:1"], "options of none are []"),
        (["--regularizers", "istar:inf"], "must be a finite number"),
        (["--regularizers", "istar:1,zeta=1"], "options of istar are"),
        (["--regularizers", "isobn,layers=1"], "options of isobn are"),
        (["--regularizers", "istar:1,shrinkage=2"], "between 0 and 1"),
        (["--regularizers", "istar:1,refresh=0"], "above 0"),
        (["--regularizers", "istar:1,padding=no"], "skip or count"),
        (["--regularizers", "istar:1,strength=2"], "each once"),
        (["--regularizers", "istar:target=1.1"], "an IsoScore from 0 to 1"),
        (["--regularizers", "istar:target=0.3..0.1"], "an interval, as"),
        (["--regularizers", "istar:target=1..2..3x"], "0.5..1x. Received"),
        (["--regularizers", "istar:target=0.3,strength=-1"], "is at least 0"),
        (["--regularizers", "istar:target=0.3,refresh=5"], "leave refresh out"),
        (
            ["--regularizers", "istar:1,per_layer=no"],
            "this option has no value",
        ),
        (["--regularizers", "cosreg:1,target=0.3"], "options of cosreg are"),
        (
            ["--regularizers", "istar:1,momentum=0.9,refresh=5"],
            "with momentum or a target nothing is refreshed",
        ),
        (["--seeds", "0"], "--seeds: must be a whole number above 0"),
    ],
)
def test_wrong_options_end_with_one_line(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        program.main(["--output", str(tmp_path), "--dry-run", *options])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("study: error: ") and error.count("\n") == 1
    assert message in error


@contextlib.contextmanager
def no_large_files():
    """Scope in which no file can grow above 100 bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("options", [[], ["--summarize"]])
def test_a_full_disk_is_one_line_and_loses_nothing(
    options, runs, tmp_path, monkeypatch, capsys
):
    work.work(runs[:3], ResultFolder(tmp_path), execute)
    (tmp_path / "summary.md").write_text("old")
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    monkeypatch.setattr(program, "make_runner", lambda *_: execute)
    options = [*options, "--output", str(tmp_path), "--seeds", "2"]
    with no_large_files(), pytest.raises(SystemExit) as caught:
        program.main([*options, "--regularizers", *METHODS])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "File too large" in error
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def test_dry_run_shows_the_grid_and_what_is_done(runs, tmp_path, capsys):
    work.work(runs[:2], ResultFolder(tmp_path), execute)
    options = ["--output", str(tmp_path), "--seeds", "2", "--dry-run"]
    capsys.readouterr()
    program.main([*options, "--regularizers", *METHODS])
    *lines, last = capsys.readouterr().out.splitlines()
    states = ["ok    "] * 2 + ["to do "] * (len(runs) - 2)
    assert lines == [f"{s} {r}" for s, r in zip(states, runs, strict=True)]
    assert last == "10 runs, 8 to do"


@pytest.mark.parametrize("option", ["--summarize", "--dry-run"])
def test_looking_makes_no_folder(option, tmp_path):
    with contextlib.suppress(SystemExit):
        program.main(["--output", str(tmp_path / "mistyped"), option])
    assert not list(tmp_path.iterdir())
