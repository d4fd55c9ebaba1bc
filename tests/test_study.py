"""The grid and the result folder of the study, with runs that do nothing."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import study
import study_grid
import study_loop
import study_method
import study_options
import study_results
import study_time
from command_line import UserError
from study_results import ResultFolder

EXAMPLES = Path(__file__).parents[1] / "examples"
REGULARIZERS = "none istar:-1 istar:1,shrinkage=0.8 cosreg:1 isobn".split()


def make_grid(*options):
    parsed = study_options.make_parser("").parse_args(
        ["--output", "x", *options]
    )
    return study_grid.grid(parsed)


@pytest.fixture
def runs():
    return make_grid("--regularizers", *REGULARIZERS, "--seeds", "2")


def figures(run):
    score = len(str(run)) / 100
    return {
        "test": {"end": {"score": score}},
        "isotropy": {"after": {"union": {"isoscore": score}}},
    }


def results(folder):
    """Lines of the result file, without times."""
    lines = (folder / "results.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        del record["started"], record["seconds"]
    return records


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
    ],
)
def test_method_is_parsed_and_shown(spec, expected):
    method = study_method.parse(spec)
    assert method == study_method.Method(*expected)
    assert study_method.parse(str(method)) == method


def test_grid_is_the_product_each_run_once_in_order():
    options = ["--regularizers", "isobn", "none", "istar:1", "istar:-1"]
    grid = make_grid(*options, "none", "--seeds", "2", "--tasks", "sst2", "rte")
    assert [(run.task, run.seed, str(run.method)) for run in grid] == [
        (task, seed, method)
        for task in ("rte", "sst2")
        for seed in (0, 1)
        for method in ("none", "istar:-1", "istar:1", "isobn")
    ]
    assert grid[0].recipe.sequence_length == 96
    assert grid[-1].recipe.sequence_length == 48


def test_ids_tell_every_option_and_survive_a_file(runs):
    other = make_grid("--regularizers", *REGULARIZERS, "--epochs", "4")
    assert len({run.id for run in [*runs, *other]}) == len(runs) + len(other)
    for run in runs:
        copy = study_grid.Run.from_dict(json.loads(json.dumps(run.as_dict())))
        assert copy == run and copy.id == run.id


def test_ids_are_the_same_in_another_process(runs):
    code = "import test_study as t; print([r.id for r in t.make_grid()])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment() | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[0] == str([run.id for run in make_grid()])


def test_results_are_sorted_whatever_the_order(runs, tmp_path):
    for name, order in (("a", runs), ("b", runs[::-1])):
        study_loop.work(order, ResultFolder(tmp_path / name), figures)
    assert results(tmp_path / "a") == results(tmp_path / "b")
    assert [r["id"] for r in results(tmp_path / "a")] == [r.id for r in runs]


def test_finished_runs_are_not_repeated(runs, tmp_path):
    done = []

    def execute(run):
        done.append(run)
        return figures(run)

    folder = ResultFolder(tmp_path)
    study_loop.work(runs[2:5], folder, execute)
    study_loop.work(runs, folder, execute)
    assert done == runs[2:5] + runs[:2] + runs[5:]


def test_failures_are_recorded_and_repeated_on_demand(runs, tmp_path):
    def fail(run):
        if run == runs[1]:
            raise RuntimeError("NaN or Inf loss\nencountered")
        return figures(run)

    folder = ResultFolder(tmp_path)
    study_loop.work(runs, folder, fail)
    failed = folder.read()[runs[1].id]
    assert failed["status"] == "failed"
    assert failed["error"] == "RuntimeError: NaN or Inf loss encountered"
    assert len(folder.read()) == len(runs)
    study_loop.work(runs, folder, figures)
    assert folder.read()[runs[1].id]["status"] == "failed"
    now = study_loop.timestamp()
    study_loop.work(runs, folder, fail, retry_before=now)
    assert study_loop.to_do(runs, folder.read(), now) == []
    now = study_loop.timestamp()
    study_loop.work(runs, folder, figures, retry_before=now)
    assert {r["status"] for r in folder.read().values()} == {"ok"}


def test_what_the_user_can_mend_is_not_recorded(runs, tmp_path):
    def fail(run):
        raise UserError("no such layer")

    folder = ResultFolder(tmp_path)
    with pytest.raises(UserError, match="no such layer"):
        study_loop.work(runs, folder, fail)
    assert folder.read() == {}


WORKER = """
    import sys, time
    import study_loop, test_study
    from study_results import ResultFolder

    print("ready", flush=True)
    sys.stdin.readline()

    def execute(run):
        print("begins", flush=True)
        time.sleep(0.05)
        return test_study.figures(run)

    grid = test_study.make_grid("--regularizers", *test_study.REGULARIZERS)
    study_loop.work(grid, ResultFolder(sys.argv[1]), execute)
"""


def environment():
    path = os.pathsep.join([str(EXAMPLES), str(Path(__file__).parent)])
    return os.environ | {"PYTHONPATH": path}


def start_worker(folder):
    """A process that has loaded everything and waits for a line."""
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WORKER), str(folder)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout.readline() == "ready\n"
    return worker


def test_killed_again_and_again_it_ends_with_the_same_file(tmp_path):
    for number in range(1, 6):
        worker = start_worker(tmp_path / "killed")
        worker.stdin.write("go\n")
        worker.stdin.flush()
        for _ in range(number):
            while worker.stdout.readline() != "begins\n":
                pass
        time.sleep(0.01 * number)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    worker = start_worker(tmp_path / "killed")
    worker.communicate("go\n")
    assert worker.returncode == 0
    grid = make_grid("--regularizers", *REGULARIZERS)
    study_loop.work(grid, ResultFolder(tmp_path / "whole"), figures)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    files = {file.name for file in (tmp_path / "killed").rglob("*")}
    assert files == {"locks", "results.jsonl", "results.jsonl.lock"}


def test_two_processes_share_the_work(tmp_path):
    workers = [start_worker(tmp_path), start_worker(tmp_path)]
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    counts = [w.communicate()[0].count("begins\n") for w in workers]
    grid = make_grid("--regularizers", *REGULARIZERS)
    assert sum(counts) == len(grid) and min(counts) > 0
    assert [r["id"] for r in results(tmp_path)] == [run.id for run in grid]


def test_a_run_in_work_elsewhere_is_left_alone(runs, tmp_path, capsys):
    folder = ResultFolder(tmp_path)
    with folder.claim(runs[0].id) as is_mine:
        assert is_mine
        study_loop.work(runs, folder, figures)
    assert [r["id"] for r in results(tmp_path)] == [r.id for r in runs[1:]]
    assert "1 were in work by other processes" in capsys.readouterr().out


def test_a_run_that_another_process_has_finished_is_not_repeated(
    runs, tmp_path
):
    folder, done = ResultFolder(tmp_path), []

    def execute(run):
        done.append(run)
        if run == runs[0]:
            study_loop.work(runs[1:], ResultFolder(tmp_path), figures)
        return figures(run)

    study_loop.work(runs, folder, execute)
    assert done == runs[:1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[: len(line) // 2],
        lambda line: line.replace(b'"format": 1', b'"format": 99'),
        lambda line: line.replace(b'"seed": 1', b'"seed": 7'),
        lambda line: line.replace(b'"status": "ok", ', b""),
        lambda line: b"\xff\x00",
        lambda line: b"[]",
    ],
)
def test_a_damaged_last_line_is_set_aside(damage, runs, tmp_path, capsys):
    folder = ResultFolder(tmp_path)
    study_loop.work(runs, folder, figures)
    whole = results(tmp_path)
    file = tmp_path / "results.jsonl"
    *lines, last = file.read_bytes().splitlines(keepends=True)
    torn = damage(last.rstrip())
    assert torn != last.rstrip()
    file.write_bytes(b"".join(lines) + torn)
    capsys.readouterr()

    study_loop.work(runs, folder, figures)
    (aside,) = tmp_path.glob("results.damaged-*.jsonl")
    assert aside.read_bytes() == torn + b"\n"
    assert f"moved to {aside.name}" in capsys.readouterr().out
    assert results(tmp_path) == whole


@pytest.mark.parametrize("is_first", [True, False])
def test_of_two_lines_of_a_run_the_success_counts(is_first, runs, tmp_path):
    folder = ResultFolder(tmp_path)
    study_loop.work(runs, folder, figures)
    whole = results(tmp_path)
    file = tmp_path / "results.jsonl"
    lines = file.read_bytes().splitlines()
    failed = lines[3].replace(b'"ok"', b'"failed"')
    lines.insert(3 if is_first else 4, failed)
    file.write_bytes(b"\n".join([*lines, lines[0]]))
    assert [r["status"] for r in folder.read().values()] == ["ok"] * len(runs)
    assert results(tmp_path) == whole
    (aside,) = tmp_path.glob("results.damaged-*.jsonl")
    assert set(aside.read_bytes().splitlines()) == {failed, lines[0]}


def test_every_line_says_with_what_it_was_made(runs, tmp_path):
    import keras_istar

    def fail(run):
        raise RuntimeError("NaN or Inf loss encountered")

    folder = ResultFolder(tmp_path)
    study_loop.work(runs[:1], folder, fail)
    study_loop.work(runs[1:2], folder, figures)
    for record in folder.read().values():
        versions, cores = record["versions"], record["cores"]
        assert versions["keras-istar"] == keras_istar.__version__
        assert {"tensorflow-text", "tensorflow-datasets"} <= set(versions)
        assert cores == os.cpu_count()


def test_a_full_disk_is_one_line_and_loses_nothing(
    runs, tmp_path, monkeypatch, capsys
):
    study_loop.work(runs[:3], ResultFolder(tmp_path), figures)
    before = (tmp_path / "results.jsonl").read_bytes()
    options = ["--output", str(tmp_path), "--seeds", "2"]
    monkeypatch.setattr(study, "_make_runner", lambda *_: figures)

    def write(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(study_results, "_write_through", write)
    with pytest.raises(SystemExit) as caught:
        study.main([*options, "--regularizers", *REGULARIZERS])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "No space left on device" in error
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_dry_run_shows_the_grid_and_the_time(runs, tmp_path, capsys):
    folder = ResultFolder(tmp_path)
    study_loop.work(runs[:2], folder, figures)
    records = [{**r, "seconds": {"total": 600}} for r in folder.read().values()]
    for record in records:
        folder.add(record)
    options = ["--output", str(tmp_path), "--seeds", "2", "--dry-run"]
    study.main([*options, "--regularizers", *REGULARIZERS])
    *lines, last = capsys.readouterr().out.splitlines()[-len(runs) - 1 :]
    states = ["ok    "] * 2 + ["to do "] * (len(runs) - 2)
    assert lines == [f"{s} {r}" for s, r in zip(states, runs, strict=True)]
    assert "10 runs, 8 to do: about 1 h 20 min" in last


def test_every_few_runs_the_process_is_replaced(runs, tmp_path, monkeypatch):
    folder = ResultFolder(tmp_path)
    processes = []

    def execute(run):
        processes[-1] += 1
        if run == runs[-1]:
            raise RuntimeError("fails every time")
        return figures(run)

    def start(path, command):
        assert path == command[0] == sys.executable
        assert Path(command[1]) == EXAMPLES / "study.py"
        assert len(processes) < 10
        processes.append(0)
        study.main(command[2:])

    monkeypatch.setattr(study, "_make_runner", lambda *_: execute)
    monkeypatch.setattr(study, "_MAX_RUNS", 4)
    monkeypatch.setattr(study.os, "execv", start)
    options = ["--output", str(tmp_path), "--seeds", "2"]
    command = [sys.executable, str(EXAMPLES / "study.py"), *options]
    command += ["--regularizers", *REGULARIZERS]
    start(sys.executable, command)
    assert processes == [4, 4, 2]
    assert len(folder.read()) == len(runs)
    processes.clear()
    start(sys.executable, [*command, "--retry-failed"])
    assert processes == [1]


@pytest.mark.parametrize("option", ["--summarise", "--dry-run"])
def test_looking_makes_no_folder(option, tmp_path):
    with contextlib.suppress(SystemExit):
        study.main(["--output", str(tmp_path / "mistyped"), option])
    assert not list(tmp_path.iterdir())


def test_there_must_be_room_for_the_whole_file(runs, tmp_path, monkeypatch):
    folder, sizes = ResultFolder(tmp_path), []
    study_loop.work(runs, folder, figures)
    monkeypatch.setattr(
        study_results, "_write_through", lambda _, x: sizes.append(len(x))
    )
    folder.check_space()
    ResultFolder(tmp_path / "new").check_space()
    with_lines, without = sizes
    size = (tmp_path / "results.jsonl").stat().st_size
    assert with_lines == without + size and without > size


@pytest.mark.parametrize(
    ("task", "limit", "recorded"),
    [("mrpc", 256, 88), ("rte", 256, 111), ("sst2", 512, 85)],
)
def test_estimate_is_near_what_was_recorded(task, limit, recorded):
    """Median seconds of the runs in `examples/results/study`."""
    (run,) = make_grid(
        *("--tasks", task, "--limit", str(limit)),
        *("--regularizers", "istar:1", "--seeds", "1"),
    )
    assert study_time.estimate([run], {}) == pytest.approx(recorded, rel=0.3)


def test_estimate_without_a_limit_knows_the_size_of_the_task():
    def hours(*options):
        options = ["--regularizers", "none", "--seeds", "1", *options]
        (run,) = make_grid("--tasks", "mnli", *options)
        return study_time.estimate([run], {}) / 3600

    tokens = 80 * 3 * 0.9 * 392_702
    assert hours("--limit", "0") == pytest.approx(tokens / 8e6, rel=0.1)
    assert hours("--limit", "1000000") == hours("--limit", "0")
    assert hours("--test-limit", "9") < hours() - 0.01


def test_refreshing_no_oftener_than_every_epoch_is_refused(
    table_file, tmp_path, capsys
):
    """64 examples in batches of 16 are four steps."""
    with pytest.raises(SystemExit):
        study.main(
            ["--output", str(tmp_path / "x"), "--tasks", table_file]
            + ["--limit", "64", "--regularizers", "none", "istar:1,refresh=50"]
        )
    error = capsys.readouterr().err
    assert "`refresh` must be below the 4 steps of an epoch" in error
    assert error.endswith("Received: refresh=50\n")
    specs = ["istar:1,refresh=3", "istar:1,refresh=4"]
    three, four = make_grid("--regularizers", *specs, "--seeds", "1")
    study_grid.check_refresh(three, 64)
    with pytest.raises(UserError, match="refresh=4"):
        study_grid.check_refresh(four, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "sst5"], "no such task or file: 'sst5'. Tasks are cola,"),
        (["--data-dir", "./missing"], "no such data folder: ./missing. Leave"),
        (["--output", f"{__file__}/x"], "cannot use the result folder"),
        (["--regularizers", "dropout"], "must be one of none, istar"),
        (["--regularizers", "istar"], "istar needs a strength"),
        (["--regularizers", "none:1"], "none has no strength"),
        (["--regularizers", "istar:inf"], "must be a finite number"),
        (["--regularizers", "istar:1,zeta=1"], "options of istar are"),
        (["--regularizers", "isobn,layers=1"], "options of isobn are"),
        (["--regularizers", "istar:1,shrinkage=2"], "between 0 and 1"),
        (["--regularizers", "istar:1,refresh=0"], "above 0"),
        (["--regularizers", "istar:1,padding=no"], "skip or count"),
        (
            ["--regularizers", "istar:1,momentum=0.9,refresh=5"],
            "give momentum or refresh",
        ),
        (["--seeds", "0"], "--seeds: must be above 0"),
    ],
)
def test_wrong_options_end_with_one_line(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        study.main(["--output", str(tmp_path), "--dry-run", *options])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("study.py: error: ") and error.count("\n") == 1
    assert message in error
