import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest

from keras_istar._src.measure.report import IsotropyReport
from keras_istar._src.version import __version__


def test_frame_has_a_row_a_layer(make_report):
    pytest.importorskip("pandas")
    report = make_report(twonn_dimension=3.5, twonn_tokens=99)
    frame = report.to_frame()
    assert list(frame.index) == ["layer_0", "layer_1", "union"]
    assert frame.index.name == "layer"
    assert list(frame.columns) == [
        "tokens",
        "isoscore",
        "mean_norm",
        "twonn_dimension",
        "twonn_tokens",
        "outlier_dimensions",
    ]
    for row in report.rows:
        assert frame.loc[row.layer, "isoscore"] == row.values["isoscore"]
        assert frame.loc[row.layer, "outlier_dimensions"] == [3]
    assert frame["tokens"].dtype.kind == "i"
    assert frame["twonn_tokens"].dtype.kind == "i"


def test_frame_needs_pandas(make_report, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    message = r"needs pandas: `pip install keras-istar\[report\]`\.$"
    with pytest.raises(ImportError, match=message):
        make_report().to_frame()


def test_comparison_is_other_minus_this(make_report):
    pytest.importorskip("pandas")
    before = make_report(outliers=3, twonn_tokens=50)
    after = make_report(("layer_1", "extra", "union"), outliers=1)
    difference = before.compare(after)
    assert list(difference.index) == ["layer_1", "union"]
    assert list(difference.columns) == ["isoscore", "mean_norm", "outliers"]
    assert difference.loc["union", "isoscore"] == (
        after.rows[2].values["isoscore"] - before.rows[2].values["isoscore"]
    )
    assert difference.loc["layer_1", "outliers"] == -2


@pytest.mark.parametrize(
    "other, has_score",
    [
        ({}, True),
        ({"shrinkage": 0.3}, False),
        ({"shrinkage_target": "another target"}, False),
    ],
)
def test_comparison_leaves_out_scores_towards_other_targets(
    make_report, other, has_score
):
    pytest.importorskip("pandas")
    before = make_report(isoscore_star=0.5)
    after = dataclasses.replace(make_report(isoscore_star=0.6), **other)
    columns = list(before.compare(after).columns)
    assert columns == list(after.compare(before).columns)
    assert ("isoscore_star" in columns) == has_score
    assert {"isoscore", "mean_norm"} <= set(columns)


def test_comparison_needs_something_in_common(make_report):
    pytest.importorskip("pandas")
    with pytest.raises(ValueError, match="`other` must share layers"):
        make_report().compare(make_report(["elsewhere"]))


class TestFile:
    def test_round_trip_is_exact(self, make_report, tmp_path):
        report = make_report(partition_isotropy=1e-300, outliers=1)
        report.save(tmp_path / "report.json")
        loaded = IsotropyReport.load(tmp_path / "report.json")
        assert loaded == report
        assert loaded.package_version == __version__
        assert str(loaded) == str(report)

    def test_undefined_numbers_are_null(self, make_report, tmp_path):
        path = tmp_path / "report.json"
        make_report(twonn_dimension=float("nan")).save(path)
        content = json.loads(path.read_text(), parse_constant=pytest.fail)
        assert content["rows"][0]["values"]["twonn_dimension"] is None
        loaded = IsotropyReport.load(str(path))
        assert np.isnan(loaded.rows[0].values["twonn_dimension"])

    @pytest.mark.parametrize("name", ["report.json", "report.html"])
    def test_missing_folder(self, make_report, tmp_path, name):
        path = tmp_path / "missing" / name
        with pytest.raises(FileNotFoundError) as error:
            make_report().save(path)
        assert str(error.value) == (
            "The folder of `path` must exist: make it first. "
            f"Received: path={str(path)!r}"
        )
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["report.txt", "report.htm1", "r.csv"])
    def test_other_kinds_of_files(self, make_report, tmp_path, name):
        with pytest.raises(ValueError, match="must end in .json, or in .html"):
            make_report().save(tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    def test_failure_leaves_the_old_file(
        self, make_report, tmp_path, monkeypatch
    ):
        path = tmp_path / "report.json"
        make_report().save(path)
        before = path.read_bytes()

        def fill_the_disk(self, content):
            with open(self, "wb") as file:
                file.write(content[:100])
            raise OSError("no space left")

        monkeypatch.setattr(pathlib.Path, "write_bytes", fill_the_disk)
        with pytest.raises(OSError, match="no space left"):
            make_report().save(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_two_writers_do_not_share_a_temporary_file(
        self, make_report, tmp_path, monkeypatch
    ):
        reports = [make_report(mean_norm=float(i)) for i in range(2)]
        paths = []
        write_bytes = pathlib.Path.write_bytes

        def write_both(self, *args, **kwargs):
            paths.append(self)
            write_bytes(self, *args, **kwargs)
            if len(paths) == 1:  # Another thread comes in between.
                reports[1].save(tmp_path / "report.json")
                assert IsotropyReport.load(tmp_path / "report.json") in reports

        monkeypatch.setattr(pathlib.Path, "write_bytes", write_both)
        reports[0].save(tmp_path / "report.json")
        assert len(set(paths)) == 2
        assert IsotropyReport.load(tmp_path / "report.json") == reports[0]
        assert list(tmp_path.iterdir()) == [tmp_path / "report.json"]

    def test_nothing_is_written_of_what_json_cannot_hold(
        self, make_report, tmp_path
    ):
        with pytest.raises(ValueError, match="not JSON compliant"):
            make_report(mean_norm=float("inf")).save(tmp_path / "report.json")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other"}'])
    def test_foreign_files(self, tmp_path, text):
        (tmp_path / "file").write_text(text)
        with pytest.raises(ValueError, match="`path` must be a file that"):
            IsotropyReport.load(tmp_path / "file")

    def test_later_version(self, make_report, tmp_path):
        path = tmp_path / "report.json"
        make_report().save(path)
        content = json.loads(path.read_text()) | {"version": 3}
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="later version.*version=3"):
            IsotropyReport.load(path)

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            IsotropyReport.load(tmp_path / "none.json")


class TestPrint:
    def test_columns_are_aligned(self, make_report):
        report = make_report(participation_ratio=123.456, outliers=1)
        lines = str(report).splitlines()
        assert lines[0] == "Isotropy of 'tiny', 12 dimensions"
        header, *rows = lines[2:6]
        assert header.split() == [
            "layer",
            "tokens",
            "IsoScore",
            "part.ratio",
            "outliers",
            "norm",
        ]
        assert {len(line) for line in rows} == {len(header)}
        assert rows[2].split()[:2] == ["union", "1,234"]
        assert rows[2].split()[3:5] == ["123.5", "1"]

    @pytest.mark.parametrize(
        "value, text",
        [(0.25, "0.250"), (2e-9, "2e-09"), (-0.1, "-0.100"), (0.0, "0.000")],
    )
    def test_small_numbers_keep_their_meaning(self, make_report, value, text):
        report = make_report(partition_isotropy=value)
        assert text in str(report).splitlines()[3].split()

    def test_short_form(self, make_report):
        assert repr(make_report(["dense", "union"])) == (
            "<IsotropyReport model='tiny' layers=['dense', 'union']>"
        )

    def test_says_what_the_reader_has_to_know(self, make_report):
        text = str(make_report(isoscore_star=0.5, twonn_dimension=float("nan")))
        assert "shrinkage 0.2 towards a target." in text
        assert "over 5 times the average variance" in text
        assert text.endswith("A note.")
        assert "nan" not in text

    def test_says_how_large_samples_were(self, make_report):
        report = make_report(
            partition_isotropy=0.5,
            partition_tokens=2000,
            twonn_dimension=3.5,
            twonn_tokens=1990,
        )
        report.rows[-1].values["twonn_tokens"] = 1995
        text = str(report)
        assert "\npartition: from a sample of 2,000 tokens.\n" in text
        assert "\nTwoNN: from a sample of 1,990 to 1,995 tokens.\n" in text
        assert "sample" not in str(make_report())

    def test_says_which_dimensions_are_outliers(self, make_report):
        report = make_report()
        report.rows[0].outlier_dimensions[:] = [3, 11]
        report.rows[1].outlier_dimensions.clear()
        report.rows[2].outlier_dimensions[:] = list(range(10))
        lines = str(report).splitlines()
        (first,) = [i for i, x in enumerate(lines) if x.startswith("Outliers")]
        assert " ".join(map(str.strip, lines[first:-1])) == (
            "Outliers: dimensions with over 5 times the average variance: "
            "layer_0 3, 11; union 0, 1, 2, 3, 4, 5, 6, 7 and 2 more."
        )
        assert max(map(len, lines[first:])) < 80
