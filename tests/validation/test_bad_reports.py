"""What reports say to every kind of wrong argument."""

import dataclasses
import json

import pytest
from bad_values import INF
from bad_values import UNKNOWN
from bad_values import no_fractions
from bad_values import no_positive_ints
from bad_values import rule

import keras_istar
from keras_istar._src.measure.report import LayerIsotropy

ROW = {
    "layer": "encoder",
    "points": 4,
    "values": {"isoscore": 0.5},
    "spectrum": [1.0] * 5,
    "means": [0.0] * 5,
    "variances": [1.0] * 5,
    "outlier_dimensions": [3],
}


@pytest.fixture
def report():
    return keras_istar.IsotropyReport(
        model="functional",
        dim=5,
        rows=(LayerIsotropy(**ROW),),
        shrinkage=0.2,
        shrinkage_target="a target",
    )


NO_PATHS = [
    (v, rule("path", "a path", v)) for v in (None, 5, UNKNOWN, b"x", "")
]


@pytest.mark.parametrize("path, message", NO_PATHS)
@pytest.mark.parametrize("method", ["save", "load"])
def test_what_is_no_path(report, method, path, message):
    with pytest.raises(ValueError) as error:
        getattr(report, method)(path)
    assert str(error.value) == message


@pytest.mark.parametrize("method", ["save", "load"])
def test_paths_that_the_system_refuses(report, method, tmp_path):
    for path in (tmp_path, tmp_path / "missing" / "report.json"):
        with pytest.raises(OSError):
            getattr(report, method)(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [None, "report", UNKNOWN, {"rows": ()}])
def test_what_is_no_report(report, bad):
    with pytest.raises(ValueError) as error:
        report.compare(bad)
    assert str(error.value) == rule("other", "an `IsotropyReport`", bad)


NO_NUMBERS = (None, 5, "text", {}, [None], ["1"], [True], [INF], [[1.0]])
NO_ROWS = [
    *[("layer", v, rule("layer", "text", v)) for v in (None, 5, ["encoder"])],
    *[("points", *case) for case in no_positive_ints("points")[:-2]],
    *[
        ("values", v, rule("values", "a dict of numbers by name", v))
        for v in (
            *(None, 5, ["isoscore"], {"isoscore": None}, {"isoscore": "1"}),
            *({"isoscore": True}, {"isoscore": [0.5]}, {5: 0.5}),
            {"isoscore": 10**400},
        )
    ],
    *[
        (name, v, rule(name, "a list of finite numbers", v))
        for name in ("spectrum", "means", "variances")
        for v in NO_NUMBERS
    ],
    (
        "means",
        [0.0] * 4,
        "`spectrum`, `means` and `variances` must be of one length. "
        "Received: lengths=[5, 4, 5]",
    ),
    *[
        (
            "outlier_dimensions",
            v,
            rule("outlier_dimensions", "a list of integers from 0 to 4", v),
        )
        for v in (None, 3, "3", [5], [-1], [1.0], [True])
    ],
]


@pytest.mark.parametrize("name, value, message", NO_ROWS)
def test_what_is_no_row_of_a_report(name, value, message):
    with pytest.raises(ValueError) as error:
        LayerIsotropy(**(ROW | {name: value}))
    assert str(error.value) == message


NARROW = LayerIsotropy("narrow", 4, {}, [1.0, 1.0], [0, 0], [1, 1], [])
ROWS = "`rows` must be one or more of `dim` numbers, dim=5. Received: rows of "
NO_REPORTS = [
    *[
        (name, v, rule(name, "text", v))
        for name in ("model", "shrinkage_target", "package_version")
        for v in (None, 5, b"x")
    ],
    *[("dim", *case) for case in no_positive_ints("dim")],
    *[("shrinkage", *case) for case in no_fractions("shrinkage")],
    *[
        ("rows", v, rule("rows", "a tuple of LayerIsotropy", v))
        for v in (None, 5, "text", [], (ROW,))
    ],
    ("rows", (), ROWS + "[] numbers"),
    ("rows", (LayerIsotropy(**ROW), NARROW), ROWS + "[5, 2] numbers"),
    (
        "rows",
        (LayerIsotropy(**ROW), LayerIsotropy(**(ROW | {"values": {}}))),
        "`rows` must have the same values. "
        "Received: rows with values=[['isoscore'], []]",
    ),
    *[
        ("notes", v, rule("notes", "a tuple of texts", v))
        for v in (None, "text", ["text"], (5,))
    ],
]


@pytest.mark.parametrize("name, value, message", NO_REPORTS)
def test_what_makes_no_report(report, name, value, message):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(report, **{name: value})
    assert str(error.value) == message


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
            {"points": "4"},
            {"points": 4.0},
            {"values": None},
            {"values": {"isoscore": "1"}},
            {"spectrum": None},
            {"spectrum": [None] * 5},
            {"means": [0.0]},
            {"variances": INF},
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
        keras_istar.IsotropyReport.load(path)
    assert str(error.value) == (
        "`path` must be a file that `IsotropyReport.save` has written. "
        f"Received: path={str(path)!r}"
    )


DEEP = b"[" * 100_000
OTHERS = [b"", b"text", b"5", b"[]", b"\xff\x00", DEEP, b'{"a":' * 100_000]


@pytest.mark.parametrize("content", OTHERS, ids=lambda x: repr(x[:9]))
def test_other_files_are_no_reports(content, tmp_path):
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="`path` must be a file that"):
        keras_istar.IsotropyReport.load(path)


def test_files_too_deep_to_be_shown(report, tmp_path):
    path = tmp_path / "report.json"
    report.save(path)
    text = path.read_text()
    assert '"model": "functional"' in text
    for depth in range(700, 1000):  # Somewhere there is the limit.
        deep = "[" * depth + "]" * depth
        path.write_text(text.replace('"functional"', deep, 1))
        with pytest.raises(ValueError, match="`path` must be a file that"):
            keras_istar.IsotropyReport.load(path)
