"""The summary of results, made up and committed, as files."""

from pathlib import Path

import pytest
from finetuning.command_line import UserError
from study import __main__ as program
from study import summary
from study.work import ResultFolder
from study_runs import make_records

RESULTS = Path(program.__file__).parent / "results"


def test_files(tmp_path):
    records = make_records(tasks=("rte", "mrpc"))
    failed = next(iter(records.values()))
    failed |= {"status": "failed", "error": "RuntimeError: NaN loss"}
    text = summary.write(records, tmp_path)
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == text
    assert f"- {failed['name']}: RuntimeError: NaN loss" in text
    assert text.count("| istar:0 | 6 | ") == 2
    names = ("score_by_isotropy", "dimension_by_layer", "isotropy_by_epoch")
    for name in names:
        png = (tmp_path / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("name", ["study", "ablation", "sst5"])
def test_committed_summary_is_that_of_the_committed_results(name, capsys):
    folder = RESULTS / name
    lines = (folder / "results.jsonl").read_text().splitlines()
    records = ResultFolder(folder).read()
    assert len(records) == len(lines) and "damaged" not in (
        capsys.readouterr().out
    )
    text = summary.markdown(records)
    assert (folder / "summary.md").read_text(encoding="utf-8") == text
    assert not (folder / "locks").exists()


def test_nothing_to_summarize(tmp_path, capsys):
    with pytest.raises(UserError, match="no finished run"):
        summary.write({}, tmp_path)
    with pytest.raises(SystemExit) as stopped:
        program.main(["--output", str(tmp_path), "--summarize"])
    assert stopped.value.code == 2
    assert "no finished run" in capsys.readouterr().err
