"""The HTML page of a report, one or two models on it."""

import base64
import dataclasses
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import keras
import numpy as np
import oracle
import pytest

import keras_istar
from keras_istar._src.measure import report_page

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Elements, tables and text of a page whose tags all match."""

    def __init__(self, path):
        super().__init__()
        self.open, self.elements, self.tables, self.text = [], [], [], ""
        self.source = Path(path).read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if self.open and self.open[-1] in ("th", "td"):
            self.tables[-1][-1][-1] += data

    def all(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]

    def column(self, heading, table=0):
        names, *rows = self.tables[table]
        return {row[0]: row[names.index(heading)] for row in rows}


def measured(scale):
    """A report on two layers, the second with other weights, and its states."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 4))
    hidden = keras.layers.Dense(6, activation="tanh", name="first")(inputs)
    hidden = keras.layers.Dense(6, activation="tanh", name="second")(hidden)
    model = keras.Model(inputs, hidden, name="tiny")
    kernel, bias = model.layers[2].get_weights()
    model.layers[2].set_weights([kernel * scale, bias])
    x = np.random.default_rng(0).normal(size=(40, 8, 4)).astype("float32")
    names = ["first", "second"]
    states = keras.Model(inputs, [model.get_layer(n).output for n in names])
    report = keras_istar.measure(model, x, names, verbose=0)
    return report, [s.reshape(-1, 6) for s in states.predict(x, verbose=0)]


def scores(states):
    clouds = {
        "first": states[0],
        "second": states[1],
        "union": np.concatenate(states),
    }
    return {k: oracle.score(oracle.covariance(v)) for k, v in clouds.items()}


@pytest.fixture(scope="module")
def both():
    return measured(1.0), measured(4.0)


@pytest.fixture(scope="module")
def page(both, tmp_path_factory):
    (report, _), _ = both
    path = tmp_path_factory.mktemp("page") / "page.html"
    report.save(path)
    return Page(path)


def values(column):
    return {name: float(v.replace("−", "-")) for name, v in column.items()}


def test_page_shows_every_score(both, page):
    (_, states), _ = both
    assert values(page.column("IsoScore")) == pytest.approx(
        scores(states), abs=6e-4
    )


def test_comparison_shows_both_and_the_difference(both, tmp_path):
    (before, old), (after, new) = both
    after.save(tmp_path / "page.html", before=before)
    shown = Page(tmp_path / "page.html")
    old, new = scores(old), scores(new)
    difference = {name: new[name] - old[name] for name in old}
    assert max(map(abs, difference.values())) > 0.01
    for place, expected in enumerate([difference, old, new]):
        column = values(shown.column("IsoScore", place))
        assert column == pytest.approx(expected, abs=6e-4)
    verb = "rises" if difference["union"] > 0 else "falls"
    assert f"together {verb} from" in shown.text
    # Two models of one name can be told apart.
    assert "in tiny (before) to" in shown.text
    assert "in tiny (after)" in shown.text


def test_page_needs_nothing_else(page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:"), tag
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "iframe", "object", "form"})
    style = page.source.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    (policy,) = [
        meta["content"] for meta in page.all("meta") if "http-equiv" in meta
    ]
    assert policy.startswith("default-src 'none'")
    for picture in page.all("img"):
        kind, data = picture["src"].split(",")
        assert kind == "data:image/svg+xml;base64"
        svg = base64.b64decode(data).decode()
        links = re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', svg)
        assert all("".join(link).startswith("#") for link in links)


def test_page_is_for_everyone(page):
    assert page.source.startswith("<!DOCTYPE html>")
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == 1
    names = [meta.get("name") for meta in page.all("meta")]
    assert "viewport" in names
    assert "prefers-color-scheme: dark" in page.source
    assert len(page.all("img")) == 3
    assert all(len(img["alt"]) > 20 for img in page.all("img"))
    assert {th.get("scope") for th in page.all("th")} == {"col", "row"}
    regions = [div for div in page.all("div") if "role" in div]
    assert all(region["aria-label"] for region in regions) and regions


def test_every_measure_is_explained(page):
    headings = page.tables[0][0][2:]
    assert len(headings) == 12
    meanings = page.text.split("What the measures mean")[1]
    for heading in headings:
        assert f"\n{heading}\n" in meanings
    assert "{" not in page.text


def test_names_are_text_wherever_they_are(make_report, tmp_path):
    names = ['"><script>', "' onerror=y x='", "&lt;b>", "{{ version }}"]
    every = " ".join(names)
    made = make_report(
        [*names, "union"], participation_ratio=4.3, average_cosine=0.25
    )
    made = dataclasses.replace(
        made, model=every, shrinkage_target=every, notes=(every,)
    )
    made.save(tmp_path / "page.html", before=made)
    shown = Page(tmp_path / "page.html")
    assert {tag for tag, _ in shown.elements}.isdisjoint({"script", "b"})
    assert all("onerror" not in attributes for _, attributes in shown.elements)
    for name in names:
        assert shown.text.count(name) > 10
        assert name in shown.all("img")[0]["alt"]


@pytest.mark.parametrize("name", ["page.html", "page.HTML", "page.htm"])
def test_the_same_report_gives_the_same_page(name, both, page, tmp_path):
    (report, _), _ = both
    report.save(tmp_path / name)
    assert Page(tmp_path / name).source == page.source


@pytest.mark.parametrize("measure", ["mean_norm", "isoscore", "outliers"])
def test_a_page_of_few_measures(both, tmp_path, measure):
    (report, _), _ = both
    rows = tuple(
        dataclasses.replace(row, values={measure: row.values[measure]})
        for row in report.rows
    )
    few = dataclasses.replace(report, rows=rows)
    few.save(tmp_path / "page.html", before=few)
    headings = Page(tmp_path / "page.html").tables[1][0]
    assert len(headings) == 3  # The layer, its tokens and the measure.


@pytest.mark.parametrize(
    "path, before", [("page.html", "x"), ("report.json", None)]
)
def test_wrong_comparisons_leave_the_file_alone(
    make_report, tmp_path, path, before
):
    report = make_report()
    target = tmp_path / path
    target.write_text("kept")
    with pytest.raises(
        ValueError, match="`path` must .* `before` .* Received: path="
    ):
        report.save(target, before=before or report)
    assert target.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [target]


def test_a_page_that_fails_leaves_the_file_alone(
    make_report, tmp_path, monkeypatch
):
    target = tmp_path / "page.html"
    target.write_text("kept")

    def fill_the_disk(path, content):
        with open(path, "wb") as file:
            file.write(content[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        make_report().save(target)
    assert target.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [target]


@pytest.fixture
def text_alone(monkeypatch):
    """Pages without pictures, which take most of the time."""
    monkeypatch.setattr(report_page, "_pictures", lambda x: [[]] * len(x))


def text_of(tmp_path, report, before=None):
    report.save(tmp_path / "page.html", before=before)
    return " ".join(Page(tmp_path / "page.html").text.split())


@pytest.mark.usefixtures("text_alone")
def test_summary(make_report, tmp_path):
    report = make_report(
        isoscore=0.3, participation_ratio=4.3, average_cosine=0.25
    )
    text = text_of(tmp_path, report)
    assert "fills 4 of them evenly" in text
    assert "IsoScore 0.300" in text
    assert "1 dimension stands out" in text and "layer: 3." in text
    assert "layer_1, have cosine 0.250" in text
    assert "tokens of all 2 layers" in text
    assert "Take care" not in text  # 1234 tokens, 12 dimensions.


@pytest.mark.usefixtures("text_alone")
def test_summary_of_one_layer(make_report, tmp_path):
    report = make_report(["top", "union"], participation_ratio=4.3)
    text = text_of(tmp_path, report)
    assert "The tokens of top spread over their 12" in text
    assert "the least" not in text


@pytest.mark.usefixtures("text_alone")
def test_few_tokens_are_a_warning(make_report, tmp_path):
    report = make_report()
    rows = tuple(dataclasses.replace(r, tokens=119) for r in report.rows)
    text = text_of(tmp_path, dataclasses.replace(report, rows=rows))
    assert "119 tokens are few for 12" in text


@pytest.mark.parametrize(
    "old, new, text",
    [
        (0.2, 0.35, "rises from 0.200 in tiny (before) to 0.350"),
        (0.35, 0.2, "falls from 0.350 in tiny (before) to 0.200"),
        (0.2, 0.2001, "as isotropic in both: IsoScore 0.200"),
    ],
)
@pytest.mark.usefixtures("text_alone")
def test_change(make_report, tmp_path, old, new, text):
    before, after = (make_report(isoscore=value) for value in (old, new))
    assert text in text_of(tmp_path, after, before)


@pytest.mark.parametrize(
    "column, value, signed, text",
    [
        ("isoscore", 0.25, False, "0.250"),
        ("isoscore", 0.25, True, "+0.250"),
        ("isoscore", -0.25, True, "−0.250"),
        ("isoscore", 0.0, True, "0.000"),
        ("partition_isotropy", 2e-9, False, "2e−09"),
        ("partition_isotropy", 2e-9, True, "+2e−09"),
        ("effective_rank", 12.34, False, "12.3"),
        ("effective_rank", -0.04, True, "0.0"),
        ("isoscore", -4e-4, True, "−4e−04"),
        ("outliers", 0, True, "0"),
        ("outliers", 2, False, "2"),
        ("outliers", -2, True, "−2"),
        ("twonn_dimension", float("nan"), False, "–"),
    ],
)
def test_numbers(column, value, signed, text):
    assert report_page.number(column, value, signed) == text


def test_compared_figures_have_the_same_scales(make_report):
    reports = [make_report(isoscore=value) for value in (0.1, 0.9)]
    figures = [report.plot() for report in reports]
    alone = [figure.axes[0].get_ylim() for figure in figures]
    report_page.share_scales(figures)
    for panels in zip(*(figure.axes for figure in figures), strict=True):
        assert panels[0].get_ylim() == panels[1].get_ylim()
    assert figures[0].axes[0].get_ylim() == alone[1] != alone[0]


def test_page_needs_jinja2_and_leaves_no_file(both, tmp_path, monkeypatch):
    (report, _), _ = both
    monkeypatch.setitem(sys.modules, "jinja2", None)
    message = r"needs jinja2: `pip install keras-istar\[report\]`\.$"
    with pytest.raises(ImportError, match=message):
        report.save(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
