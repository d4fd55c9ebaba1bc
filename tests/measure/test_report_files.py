"""Files that hold no report, or cannot be written."""

import json

import pytest

from keras_istar import IsotropyReport
from keras_istar import LayerIsotropy

ROW = {
    "layer": "encoder",
    "tokens": 4,
    "values": {"isoscore": 0.5},
    "spectrum": [1.0] * 5,
    "means": [0.0] * 5,
    "variances": [1.0] * 5,
    "outlier_dimensions": [3],
}


@pytest.fixture
def report():
    return IsotropyReport(
        model="functional",
        dim=5,
        rows=(LayerIsotropy(**ROW),),
        shrinkage=0.2,
        shrinkage_target="a target",
    )


@pytest.mark.parametrize("method", ["save", "load"])
def test_paths_that_the_system_refuses(report, method, tmp_path):
    for path in (tmp_path, tmp_path / "missing" / "report.json"):
        with pytest.raises(OSError):
            getattr(report, method)(path)
    assert list(tmp_path.iterdir()) == []


def test_version_in_the_name_is_no_ending(report, tmp_path):
    path = tmp_path / "minilm-v1.0"
    report.save(path)
    assert IsotropyReport.load(path) == report


DAMAGE = [
    {},
    {"rows": 5},
    {"rows": []},
    {"rows": ["row"]},
    {"rows": [{"layer": "encoder"}]},
    {"rows": [{"values": {}}]},
    {"notes": None},
    {"more": 1},
    {"version": "new"},
    {"version": None},
    {"version": True},
    {"version": 0},
    {"model": None},
    {"dim": 4},
    {"dim": "5"},
    {"shrinkage": "0.2"},
    {"shrinkage": 9.0},
    {"notes": "text"},
    {"notes": [5]},
    {"package_version": None},
    *[
        {"rows": [ROW | damage]}
        for damage in (
            {"layer": 5},
            {"tokens": "4"},
            {"tokens": 4.0},
            {"values": None},
            {"values": {"isoscore": "1"}},
            {"spectrum": None},
            {"spectrum": [None] * 5},
            {"means": [0.0]},
            {"variances": float("inf")},
            {"outlier_dimensions": [5]},
        )
    ],
    {"rows": [ROW, ROW | {"values": {"isoscore_star": 0.5}}]},
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_files_that_are_no_reports(report, damage, tmp_path):
    path = tmp_path / "report.json"
    report.save(path)
    content = json.loads(path.read_text())
    content = content | damage if damage else {"format": content["format"]}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError) as error:
        IsotropyReport.load(path)
    assert str(error.value) == (
        "`path` must be a file that `IsotropyReport.save` has written as JSON; "
        "a page cannot be read. "
        f"Received: path={str(path)!r}"
    )


DEEP = b"[" * 100_000
OTHERS = [b"", b"text", b"5", b"[]", b"\xff\x00", DEEP, b'{"a":' * 100_000]


@pytest.mark.parametrize("content", OTHERS, ids=lambda x: repr(x[:9]))
def test_other_files_are_no_reports(content, tmp_path):
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="`path` must be a file that"):
        IsotropyReport.load(path)


def test_files_too_deep_to_be_shown(report, tmp_path):
    path = tmp_path / "report.json"
    report.save(path)
    text = path.read_text()
    assert '"model": "functional"' in text
    for depth in range(700, 1000):  # Somewhere there is the limit.
        deep = "[" * depth + "]" * depth
        path.write_text(text.replace('"functional"', deep, 1))
        with pytest.raises(ValueError, match="`path` must be a file that"):
            IsotropyReport.load(path)
