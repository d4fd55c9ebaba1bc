"""The result folder and its processes, with runs that do nothing."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import study_runs
from finetuning.command_line import UserError
from study import work
from study.work import ResultFolder
from study_runs import EXAMPLES
from study_runs import METHODS
from study_runs import make_runs


@pytest.fixture
def runs():
    return make_runs(regularizers=METHODS, seeds=2)


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


def test_runs_are_done_once_and_results_sorted(runs, tmp_path):
    done = []

    def execute(run):
        done.append(run)
        return figures(run)

    for part in (runs[2:5][::-1], runs):
        work.work(part, ResultFolder(tmp_path), execute)
    assert done == runs[2:5][::-1] + runs[:2] + runs[5:]
    assert [r["id"] for r in results(tmp_path)] == [run.id for run in runs]


def test_failures_are_recorded_and_repeated_on_demand(runs, tmp_path, capsys):
    def fail(run):
        if run == runs[1]:
            raise RuntimeError("NaN or Inf loss\nencountered")
        return figures(run)

    folder = ResultFolder(tmp_path)
    work.work(runs, folder, fail)
    failed = folder.read()[runs[1].id]
    assert failed["status"] == "failed"
    assert failed["error"] == "RuntimeError: NaN or Inf loss encountered"
    assert failed["versions"].keys() > {"keras-istar", "tensorflow"}
    assert "10 of 10 runs have a result, 1 of them a failure" in (
        capsys.readouterr().out
    )
    work.work(runs, folder, figures)
    assert folder.read()[runs[1].id]["status"] == "failed"
    work.forget_failures(runs[2:], folder)
    assert len(folder.read()) == len(runs)
    work.forget_failures(runs, folder)
    assert len(folder.read()) == len(runs) - 1
    work.work(runs, folder, figures)
    assert {r["status"] for r in folder.read().values()} == {"ok"}


def test_what_the_user_can_mend_is_not_recorded(runs, tmp_path):
    def fail(run):
        raise UserError("no such layer")

    with pytest.raises(UserError, match="no such layer"):
        work.work(runs, ResultFolder(tmp_path), fail)
    assert not list(tmp_path.glob("*.jsonl"))


WORKER = """
    import sys, time
    import test_work
    from study import work
    from study.work import ResultFolder

    print("ready", flush=True)
    sys.stdin.readline()

    def execute(run):
        print("begins", flush=True)
        time.sleep(0.05)
        return test_work.figures(run)

    runs = test_work.make_runs(regularizers=test_work.METHODS)
    work.work(runs, ResultFolder(sys.argv[1]), execute)
"""


def start_worker(folder):
    """A process that has loaded everything and waits for a line."""
    here = Path(__file__).parent
    support = Path(study_runs.__file__).parent
    path = os.pathsep.join(map(str, [EXAMPLES, here, support]))
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WORKER), str(folder)],
        env=os.environ | {"PYTHONPATH": path},
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
    runs = make_runs(regularizers=METHODS)
    work.work(runs, ResultFolder(tmp_path / "whole"), figures)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


def test_two_processes_share_the_work_and_count_together(tmp_path):
    workers = [start_worker(tmp_path), start_worker(tmp_path)]
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    printed = [worker.communicate()[0].splitlines() for worker in workers]
    runs = make_runs(regularizers=METHODS)
    begun = [lines.count("begins") for lines in printed]
    assert sum(begun) == len(runs) and min(begun) > 0
    assert [r["id"] for r in results(tmp_path)] == [run.id for run in runs]
    numbers = [
        int(line[1:].split("/")[0])
        for lines in printed
        for line in lines
        if line.startswith("[")
    ]
    assert sorted(numbers) == list(range(1, len(runs) + 1))
    closings = [lines[-1] for lines in printed]
    assert "25 of 25 runs have a result" in closings
    for closing in closings:
        assert closing.endswith(("a result", "in work by other processes"))


def test_a_run_in_work_elsewhere_is_left_alone(runs, tmp_path, capsys):
    folder = ResultFolder(tmp_path)
    with folder.claim(runs[0]) as is_mine:
        assert is_mine
        work.work(runs, folder, figures)
    assert [r["id"] for r in results(tmp_path)] == [r.id for r in runs[1:]]
    assert capsys.readouterr().out.endswith(
        "9 of 10 runs have a result; the others are in work by other "
        "processes\n"
    )


def test_a_run_that_another_process_has_finished_is_not_repeated(
    runs, tmp_path
):
    folder, done = ResultFolder(tmp_path), []

    def execute(run):
        done.append(run)
        if run == runs[0]:
            work.work(runs[1:], ResultFolder(tmp_path), figures)
        return figures(run)

    work.work(runs, folder, execute)
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
def test_a_damaged_last_line_is_kept_and_its_run_repeated(
    damage, runs, tmp_path, capsys
):
    work.work(runs, ResultFolder(tmp_path), figures)
    file = tmp_path / "results.jsonl"
    *lines, last = file.read_bytes().splitlines(keepends=True)
    torn = damage(last.rstrip())
    assert torn != last.rstrip()
    file.write_bytes(b"".join(lines) + torn)
    capsys.readouterr()
    work.work(runs, ResultFolder(tmp_path), figures)
    assert "1 lines are damaged" in capsys.readouterr().out
    assert file.read_bytes().splitlines()[-1] == torn
    assert list(ResultFolder(tmp_path).read()) == [run.id for run in runs]


def test_of_two_lines_of_a_run_the_success_counts(runs, tmp_path):
    folder = ResultFolder(tmp_path)
    work.work(runs, folder, figures)
    file = tmp_path / "results.jsonl"
    lines = file.read_bytes().splitlines()
    failed = [line.replace(b'"ok"', b'"failed"') for line in lines]
    file.write_bytes(b"\n".join([failed[3], *lines, failed[4], lines[0]]))
    assert [r["status"] for r in folder.read().values()] == ["ok"] * len(runs)
