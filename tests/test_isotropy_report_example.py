import base64
import dataclasses
import functools
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import isotropy_report
import numpy as np
import output_file
import pytest
import report_words
import text_tasks
from command_line import UserError
from test_examples import TFDS
from test_examples import eigenvalue_isoscore
from test_examples import hidden_tokens
from test_examples import needs_tensorflow  # noqa: F401
from vocabulary import VOCABULARY

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
report_page = pytest.importorskip("report_page")

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


@pytest.fixture(scope="module")
def tuned(preset, tmp_path_factory):
    """A preset like the other one, with other weights in its blocks."""
    hub = pytest.importorskip("keras_hub")
    task = hub.models.TextClassifier.from_preset(preset, num_classes=3)
    rng = np.random.default_rng(0)
    for block in task.backbone.transformer_layers:
        block.set_weights(
            [w * rng.uniform(0, 3, w.shape) for w in block.get_weights()]
        )
    folder = tmp_path_factory.mktemp("tuned")
    task.save_to_preset(str(folder))
    return str(folder)


def write_texts(path):
    lines = [
        " ".join(np.roll(VOCABULARY[5:], i)[: 3 + i % 4]) for i in range(40)
    ]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_page(preset, output, *options):
    """Runs the example and reads its page."""
    arguments = ["--preset", preset, "--sequence-length", "8"]
    arguments += ["--output", output, *options]
    isotropy_report.main([str(argument) for argument in arguments])
    return Page(output)


@pytest.fixture
def show(preset, tmp_path):
    """Function that takes options and returns the page."""
    return functools.partial(read_page, preset, tmp_path / "page.html")


@pytest.fixture
def texts_file(tmp_path):
    return write_texts(tmp_path / "texts.txt")


@pytest.fixture(scope="module")
def page(preset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    texts = write_texts(folder / "texts.txt")
    return read_page(preset, folder / "page.html", "--texts", texts)


def scores(folder, texts):
    """IsoScore of each layer and of their union by NumPy."""
    hub = pytest.importorskip("keras_hub")
    task = hub.models.TextClassifier.from_preset(folder, num_classes=2)
    task.preprocessor.sequence_length = 8
    states = hidden_tokens(task, texts)
    clouds = {f"layer_{i}": state for i, state in enumerate(states)}
    clouds["union"] = np.concatenate(states)
    return {name: eigenvalue_isoscore(c) for name, c in clouds.items()}


def numbers(column):
    return {name: float(v.replace("−", "-")) for name, v in column.items()}


def test_page_and_table_show_the_test_part(
    show,
    preset,
    table_file,
    capsys,
):
    page = show("--task", table_file)
    texts = text_tasks.load(table_file).test.texts
    expected = scores(preset, texts)
    shown = numbers(page.column("IsoScore"))
    assert shown == pytest.approx(expected, abs=6e-4)
    output = capsys.readouterr().out
    printed = dict(re.findall(r"^(\w+) +[\d,]+ +([\d.]+)", output, re.M))
    assert numbers(printed) == shown
    assert f"{len(texts)} texts, the test part of {table_file}," in page.text


@pytest.mark.skipif(not TFDS.is_dir(), reason="no prepared GLUE data")
def test_sentence_pairs_of_glue(show, capsys):
    data = ["--task", "glue/mrpc", "--data-dir", TFDS, "--limit", 20]
    page = show(*data, "--layers", 0)
    assert "20 pairs of texts, the test part of glue/mrpc," in page.text
    assert page.column("Tokens")["layer_0"] == f"{20 * 8}"


def test_texts_are_lines_of_a_file(show, texts_file, preset):
    page = show("--texts", texts_file, "--limit", 30, "--layers", -1)
    lines = texts_file.read_text(encoding="utf-8").split("\n\n")
    expected = scores(preset, lines[:30])["layer_1"]
    assert list(page.column("IsoScore")) == ["layer_1", "union"]
    assert float(page.column("IsoScore")["layer_1"]) == pytest.approx(
        expected, abs=6e-4
    )
    assert "30 of 40 lines of texts.txt" in page.text


def test_comparison_shows_both_and_the_difference(
    show,
    preset,
    tuned,
    texts_file,
    capsys,
):
    page = show("--texts", texts_file, "--compare", tuned)
    texts = [t for t in texts_file.read_text().split("\n") if t]
    before, after = scores(preset, texts), scores(tuned, texts)
    difference = {name: after[name] - before[name] for name in before}
    assert max(map(abs, difference.values())) > 0.01
    for place, expected in enumerate([difference, before, after]):
        shown = numbers(page.column("IsoScore", place))
        assert shown == pytest.approx(expected, abs=6e-4)
    headings = [table[0] for table in page.tables]
    assert headings[1] == headings[2] == ["Layer", "Tokens", *headings[0][1:]]
    verb = "rises" if difference["union"] > 0 else "falls"
    assert f"together {verb} from" in page.text
    assert f"{tuned} minus {preset}:" in capsys.readouterr().out


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


def test_names_of_files_are_text(show, texts_file):
    named = texts_file.with_name("<script>alert(1)<.txt")
    texts_file.rename(named)
    page = show("--texts", named)
    assert f"lines of {named.name}," in page.text
    assert "script" not in {tag for tag, _ in page.elements}


@pytest.mark.parametrize(
    "name", ['"><script>', "' onerror=y x='", "&lt;b>", "{{ version }}"]
)
def test_names_are_text_wherever_they_are(make_report, tmp_path, name):
    made = make_report(
        [name, "union"], participation_ratio=4.3, average_cosine=0.25
    )
    made = dataclasses.replace(made, model=name, shrinkage_target=name)
    made = dataclasses.replace(made, notes=(name,))
    path = tmp_path / "page.html"
    path.write_bytes(report_page.render([made, made], name, 8))
    page = Page(path)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "b"})
    assert all("onerror" not in attributes for _, attributes in page.elements)
    assert page.text.count(name) > 10
    assert name in page.all("img")[0]["alt"]


def test_names_that_are_not_utf8(make_report):
    made = make_report(participation_ratio=4.3, average_cosine=0.25)
    page = report_page.render([made], os.fsdecode(b"\xff.txt"), 8)
    assert "<dd>?.txt, cut" in page.decode("utf-8")


def test_the_same_texts_give_the_same_page(page, show, texts_file):
    assert show("--texts", texts_file).source == page.source


@pytest.mark.parametrize(
    "options, message",
    [
        (["--texts", "missing.txt"], "cannot read missing.txt"),
        (["--texts", os.devnull], "must hold a text"),
        (["--texts", "a", "--task", "b"], "not allowed with argument"),
        (["--task", "missing.tsv"], "no such task or file"),
        (["--preset", "./missing"], r"cannot load the preset '\./missing'"),
        (["--compare", "./missing"], r"cannot load the preset '\./missing'"),
        (["--layers", "7"], "`layers` must hold indices from -2 to 1"),
        (["--sequence-length", "17"], "longer than the 16 positions"),
        (["--shrinkage", "2"], "--shrinkage: must be between 0 and 1"),
        (["--output", os.path.dirname(__file__)], "it is not a plain file"),
        (["--output", "missing/page.html"], "cannot write missing/page.html"),
    ],
)
def test_wrong_options_end_with_one_line_and_keep_the_file(
    show, texts_file, tmp_path, options, message, capsys
):
    kept = tmp_path / "page.html"
    kept.write_text("kept")
    files = sorted(tmp_path.iterdir())
    if not {"--texts", "--task"} & set(options):
        options = ["--texts", texts_file, *options]
    with pytest.raises(SystemExit) as caught:
        show(*options)
    assert caught.value.code == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert re.match(f"isotropy_report.py: error: .*{message}", last)
    assert kept.read_text() == "kept"
    assert sorted(tmp_path.iterdir()) == files


def test_text_in_another_encoding(show, texts_file, capsys):
    texts_file.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(SystemExit):
        show("--texts", texts_file)
    assert "cannot read" in capsys.readouterr().err


def test_states_that_are_not_finite(show, texts_file, tuned, capsys):
    hub = pytest.importorskip("keras_hub")
    task = hub.models.TextClassifier.from_preset(tuned, num_classes=2)
    block = task.backbone.transformer_layers[1]
    block.set_weights([w * np.nan for w in block.get_weights()])
    broken = texts_file.with_name("broken")
    task.save_to_preset(str(broken))
    with pytest.raises(SystemExit):
        show("--texts", texts_file, "--compare", broken)
    assert re.search("must be finite.*'layer_1'", capsys.readouterr().err)
    assert not texts_file.with_name("page.html").exists()


class TestWords:
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
    def test_numbers(self, column, value, signed, text):
        assert report_words.number(column, value, signed) == text

    def test_summary(self, make_report):
        report = make_report(
            isoscore=0.3, participation_ratio=4.3, average_cosine=0.25
        )
        text = " ".join(report_words.summary(report))
        assert "fills 4 of them evenly" in text
        assert "IsoScore 0.300" in text
        assert "1 dimension stands out" in text and "layer: 3." in text
        assert "layer_1, have cosine 0.250" in text
        assert "tokens of all 2 layers" in text
        assert "Take care" not in text  # 1234 tokens, 12 dimensions.

    def test_summary_of_one_layer(self, make_report):
        report = make_report(
            ["top", "union"], participation_ratio=4.3, average_cosine=0.25
        )
        text = " ".join(report_words.summary(report))
        assert text.startswith("The tokens of top spread over their 12")
        assert "least" not in text.split("average variance")[0]

    def test_few_tokens_are_a_warning(self, make_report):
        report = make_report(participation_ratio=4.3, average_cosine=0.25)
        rows = tuple(dataclasses.replace(r, points=119) for r in report.rows)
        few = dataclasses.replace(report, rows=rows)
        assert "119 tokens are few for 12" in report_words.summary(few)[-1]

    @pytest.mark.parametrize(
        "old, new, text",
        [
            (0.2, 0.35, "rises from 0.200 in tiny to 0.350 in tiny"),
            (0.35, 0.2, "falls from 0.350 in tiny to 0.200 in tiny"),
            (0.2, 0.2001, "as isotropic in both: IsoScore 0.200"),
        ],
    )
    def test_change(self, make_report, old, new, text):
        reports = [make_report(isoscore=value) for value in (old, new)]
        assert text in report_words.change(*reports)[0]


def test_compared_figures_have_the_same_scales(make_report):
    reports = [make_report(isoscore=value) for value in (0.1, 0.9)]
    figures = [report.plot() for report in reports]
    alone = [figure.axes[0].get_ylim() for figure in figures]
    report_page.share_scales(figures)
    for panels in zip(*(figure.axes for figure in figures), strict=True):
        assert panels[0].get_ylim() == panels[1].get_ylim()
    assert figures[0].axes[0].get_ylim() == alone[1] != alone[0]


class TestOutputFile:
    def test_failure_keeps_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "page.html"
        path.write_text("kept")

        def fill_the_disk(self, content):
            with open(self, "wb") as file:
                file.write(content[:3])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
        with pytest.raises(UserError, match="cannot write .*: No space left"):
            output_file.write(str(path), b"content")
        assert path.read_text() == "kept"
        assert list(tmp_path.iterdir()) == [path]

    def test_two_writers_do_not_share_a_temporary_file(
        self, tmp_path, monkeypatch
    ):
        path = tmp_path / "page.html"
        write_bytes, temporaries = Path.write_bytes, []

        def write_both(self, content):
            temporaries.append(self)
            write_bytes(self, content)
            if len(temporaries) == 1:  # Another thread comes in between.
                output_file.write(str(path), b"second")

        monkeypatch.setattr(Path, "write_bytes", write_both)
        output_file.write(str(path), b"first")
        assert len(set(temporaries)) == 2
        assert path.read_bytes() == b"first"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_link_stays_a_link(self, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "file")
        output_file.check(str(tmp_path / "link"))
        output_file.write(str(tmp_path / "link"), b"content")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "file").read_bytes() == b"content"

    @pytest.mark.skipif(os.name != "posix", reason="no named pipes")
    def test_what_is_no_file_stays(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UserError, match="it is not a plain file"):
            output_file.check(str(tmp_path / "pipe"))

    def test_check_leaves_nothing(self, tmp_path):
        output_file.check(str(tmp_path / "page.html"))
        assert list(tmp_path.iterdir()) == []
