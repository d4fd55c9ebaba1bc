import argparse
import re

import matplotlib.image
import numpy as np
import oracle
import pandas
import pytest
import stability
import stability_curves
import stability_picture
import stability_spaces
import text_tasks
from command_line import UserError
from test_examples import hidden_tokens
from test_examples import needs_tensorflow  # noqa: F401


@pytest.fixture
def gaussian(rng):
    return stability_spaces.gaussian(64, rng)


def options_of(preset):
    return argparse.Namespace(preset=preset, sequence_length=8)


def test_gaussian_is_what_it_says(gaussian):
    variances = np.exp(-5 * np.arange(64) / 64)
    assert gaussian.score == pytest.approx(
        oracle.score(np.diag(variances)), abs=1e-6
    )
    points = gaussian.draw(20_000)
    assert points.shape == (20_000, 64) and points.dtype == "float32"
    for covariance in (gaussian.target, np.cov(points, rowvar=False)):
        np.testing.assert_allclose(np.diag(covariance), variances, rtol=0.06)
        assert oracle.score(covariance) == pytest.approx(
            gaussian.score, rel=0.02
        )


def test_gaussian_of_the_paper_scores_in_the_middle():
    variances = np.exp(-5 * np.arange(768) / 768)
    assert oracle.score(np.diag(variances)) == pytest.approx(0.394, abs=5e-4)


@pytest.mark.parametrize(
    "dim, expected",
    [
        (768, [24, 48, 96, 192, 384, 768, 1536, 3072, 6144, 12288]),
        (8, [2, 4, 8, 16, 32, 64, 128]),
    ],
)
def test_sizes(dim, expected):
    assert stability_curves.sizes(dim) == expected


def test_scores_are_those_of_the_samples(gaussian):
    drawn = []

    def draw(count):
        drawn.append(gaussian.draw(count))
        return drawn[-1]

    scores = stability_curves.measure(
        gaussian._replace(draw=draw), [0.3, 1.0], repeats=2
    )
    assert list(scores.columns) == ["IsoScore", "ζ = 0.3", "ζ = 1"]
    expected = [
        [n]
        + [
            oracle.score(oracle.shrunk(points[:n], shrinkage, gaussian.target))
            for shrinkage in (0.0, 0.3, 1.0)
        ]
        for points in drawn
        for n in stability_curves.sizes(64)
    ]
    np.testing.assert_allclose(
        scores.reset_index().to_numpy(), expected, rtol=1e-4, atol=1e-6
    )


def test_what_the_picture_is_to_show(gaussian):
    scores = stability_curves.measure(gaussian, [0.5, 0.95], repeats=5)
    share = stability_curves.quantile(scores, 0.5) / gaussian.score
    assert share["IsoScore"][8] < 0.4 and share["IsoScore"][2] < 0.1
    assert share["IsoScore"][1024] > 0.95
    assert (share["ζ = 0.95"] > 0.9).all()
    assert (share["ζ = 0.5"] > share["IsoScore"]).all()


def test_quantiles_are_of_each_size():
    scores = pandas.DataFrame(
        {"points": [2, 4] * 3, "IsoScore": [1, 10, 2, 20, 4, 40]}
    ).set_index("points")
    middle = stability_curves.quantile(scores, 0.5)
    assert middle["IsoScore"].to_dict() == {2: 2, 4: 20}


def test_hidden_states_are_tokens_of_all_layers(preset, table_file, rng):
    hub = pytest.importorskip("keras_hub")
    data = text_tasks.load(table_file)
    space = stability_spaces.hidden_states(data, options_of(preset), rng)
    task = hub.models.TextClassifier.from_preset(preset, num_classes=2)
    task.preprocessor.sequence_length = 8
    train, test = (
        np.concatenate(hidden_tokens(task, part.texts))
        for part in (data.train, data.test)
    )
    assert space.score == pytest.approx(
        oracle.score(oracle.covariance(train)), rel=1e-4
    )
    np.testing.assert_allclose(
        space.target, oracle.covariance(test), rtol=1e-3, atol=1e-5
    )
    sample = space.draw(100)
    distances = np.abs(sample[:, None] - train).max(axis=-1)
    nearest = np.argmin(distances, axis=1)
    assert np.max(np.min(distances, axis=1)) < 1e-5
    assert len(np.unique(sample, axis=0)) > 50
    assert np.ptp(nearest) > len(train) / 2


def test_too_few_hidden_states(preset, table_file, rng):
    data = text_tasks.load(table_file, limit=5)
    with pytest.raises(UserError, match="at least 256 hidden states"):
        stability_spaces.hidden_states(data, options_of(preset), rng)


def test_pairs_of_texts_stay_pairs():
    pairs = ([f"a{i}" for i in range(600)], [f"b{i}" for i in range(600)])
    chunks = list(stability_spaces.chunks(pairs))
    assert [len(first) for first, _ in chunks] == [256, 256, 88]
    for column, parts in zip(pairs, zip(*chunks, strict=True), strict=True):
        assert [text for part in parts for text in part] == column


def test_picture(gaussian):
    scores = stability_curves.measure(gaussian, [0.5], repeats=3)
    figure = stability_picture.draw([(gaussian, scores)] * 2)
    panel, other = figure.axes
    assert panel.get_xscale() == "log"
    assert panel.get_ylim() == other.get_ylim()
    assert panel.get_ylim()[0] == 0
    assert 64 in panel.get_xticks()
    lines = {line.get_label(): line for line in panel.get_lines()}
    for name in ("IsoScore", "IsoScore*, ζ = 0.5"):
        column = name.removeprefix("IsoScore*, ")
        expected = scores.groupby("points")[column].median()
        sizes, medians = lines[name].get_data()
        np.testing.assert_array_equal(sizes, expected.index)
        np.testing.assert_array_equal(medians, expected)


def test_program(preset, table_file, tmp_path, capsys):
    output = tmp_path / "stability.png"
    arguments = ["--preset", preset, "--task", table_file]
    arguments += ["--sequence-length", "8", "--dim", "16", "--repeats", "3"]
    stability.main([*arguments, "--output", str(output)])
    printed = capsys.readouterr().out
    assert "Gaussian, 16 dimensions, exact IsoScore: 0.3" in printed
    assert f"Hidden states of {preset}, 8 dimensions" in printed
    rows = re.findall(r"^(\d+)((?: +[\d.]+){5})$", printed, re.M)
    sizes = stability_curves.sizes(16) + stability_curves.sizes(8)
    assert [int(size) for size, _ in rows] == sizes
    picture = matplotlib.image.imread(output)
    assert picture.shape[1] == 1418 and np.ptp(picture) == 1.0
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    "options, message",
    [
        (["--shrinkage", "0.5", "2"], "--shrinkage: must be between 0 and 1"),
        (["--repeats", "0"], "--repeats: must be above 0"),
        (["--dim", "1"], "--dim: must be 2 or above"),
        (["--task", "missing.tsv"], "no such task or file"),
        (["--preset", "./missing"], r"cannot load the preset '\./missing'"),
        (["--output", "missing/x.png"], "cannot write missing/x.png"),
    ],
)
def test_wrong_options_end_with_one_line_and_keep_the_file(
    preset,
    table_file,
    tmp_path,
    options,
    message,
    capsys,
):
    output = tmp_path / "stability.png"
    output.write_text("kept")
    right = ["--preset", preset, "--task", table_file, "--dim", "4"]
    with pytest.raises(SystemExit) as caught:
        stability.main([*right, "--output", str(output), *options])
    assert caught.value.code == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert re.match(f"stability.py: error: .*{message}", last)
    assert output.read_text() == "kept"
    assert not list(tmp_path.glob(".*"))
