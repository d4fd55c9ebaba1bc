"""Tests of the runs that train side by side in JAX."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from scipy import stats
from study import grid
from study import side_by_side
from study import side_by_side_summary
from study.side_by_side import Method

jax = pytest.importorskip("jax")

_CLOUDS = 5  # The union, that without means, and three layers.
_START = np.array([0.3, 0.25, 0.4, 0.2, 0.1])
_INFERENCE = 0.9 * _START


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none,seeds=5", Method(seeds=5)),
        ("istar:-0.1", Method(-0.1)),
        ("istar:target=0.3", Method(20.0, 0.3, 0.3)),
        (
            "istar:target=0.1..0.3,strength=2,per_layer,error=batch",
            Method(2.0, 0.1, 0.3, of="layers", error="batch"),
        ),
        (
            "istar:target=0.5..1x,centered",
            Method(20.0, 0.5, 1.0, True, of="centered"),
        ),
        (
            "istar:target=0.75x,strength=1,at=inference,ramp=0.5,momentum=0.99",
            Method(
                1.0, 0.75, 0.75, True, at="inference", ramp=0.5, momentum=0.99
            ),
        ),
    ],
)
def test_methods_are_read(text, expected):
    method = side_by_side.parse_method(text)
    assert method == expected
    # Its name in the results is the text, without the number of runs.
    assert str(method) == text.removesuffix(",seeds=5")


@pytest.mark.parametrize(
    "text",
    [
        *("none", "istar:-0.1", "istar:0.5,per_layer", "istar:target=0.3"),
        "istar:target=0.75x,strength=1,per_layer,momentum=0.5",
        "istar:target=0.1..0.3x",
    ],
)
def test_methods_are_written_as_in_the_grid(text):
    assert str(side_by_side.parse_method(text)) == text
    assert grid.spell(grid.parse_method(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "istar",
        "istar:x",
        "some",
        "istar:target=0.1..0.2..0.3",
        "none,per_layer",
        "none,color=red",
        "none,seeds=0",
        "istar:target=0.3,error=mean",
        "istar:target=0.3,strength=-1",
        "istar:target=0.3,per_layer,centered",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="Received"):
        side_by_side.parse_method(text)


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="needs the backend of the runs"
)
def test_covariances_of_clouds(rng):
    states = rng.normal(size=(3, 2, 6, 4)) + rng.normal(size=(3, 1, 1, 4))
    mask = np.arange(6) < np.array([[6], [4]])
    covariances, share = side_by_side.cloud_covariances(
        list(states.astype("float32")), mask, train=False
    )
    layers = [state[mask] for state in states]
    centered = [x - x.mean(axis=0) for x in layers]
    expected = [
        np.cov(np.concatenate(layers).T),
        np.cov(np.concatenate(centered).T),
        *(np.cov(x.T) for x in layers),
    ]
    np.testing.assert_allclose(covariances, expected, rtol=1e-5, atol=1e-6)
    within = sum(np.square(x).sum() for x in centered)
    total = np.trace(expected[0]) * (3 * mask.sum() - 1)
    np.testing.assert_allclose(share, 1 - within / total, rtol=1e-5)


@pytest.mark.parametrize("of", ["", ",centered", ",per_layer"])
@pytest.mark.parametrize("target", ["0.5x", "0.2..0.35", "0.3", "0.2..2x"])
def test_term_pulls_like_the_squared_distance(rng, of, target):
    method = side_by_side.parse_method(f"istar:target={target}{of}")
    lane = side_by_side.settings(method, 0, _START, _INFERENCE, 100)
    weights = side_by_side.cloud_weights(method.of, _CLOUDS)
    unit = _START if method.is_relative else np.ones(_CLOUDS)

    def squared_distance(scores):
        nearest = jax.numpy.clip(scores, method.low * unit, method.high * unit)
        return 20.0 * (weights * (scores - nearest) ** 2).sum()

    scores = rng.uniform(0.05, 0.6, _CLOUDS).astype("float32")

    def term(scores):
        return side_by_side.added_term(lane, 7.0, scores, scores)[0]

    np.testing.assert_allclose(
        jax.grad(term)(scores),
        jax.grad(squared_distance)(scores),
        rtol=1e-5,
        atol=1e-6,
    )


def test_plain_term_is_the_published_one(rng):
    lane = side_by_side.settings(Method(-0.5), 0, _START, _INFERENCE, 100)
    scores = rng.uniform(size=_CLOUDS).astype("float32")

    def term(scores):
        return side_by_side.added_term(lane, 0.0, scores, scores)[0]

    # strength * (1 - score) of the union.
    expected = np.eye(_CLOUDS)[0] * 0.5
    np.testing.assert_allclose(jax.grad(term)(scores), expected, rtol=1e-6)


def test_error_may_be_that_of_the_running_score():
    method = side_by_side.parse_method("istar:target=0.3,strength=10")
    lane = side_by_side.settings(method, 0, _START, _INFERENCE, 100)
    scores = np.full(_CLOUDS, 0.9, "float32")
    running = np.full(_CLOUDS, 0.25, "float32")
    _, slope = side_by_side.added_term(lane, 0.0, scores, running)
    np.testing.assert_allclose(slope, 2 * 10 * (0.25 - 0.3), rtol=1e-5)


def test_score_can_be_that_of_inference():
    method = side_by_side.parse_method(
        "istar:target=0.27,strength=1,at=inference"
    )
    lane = side_by_side.settings(method, 0, _START, _INFERENCE, 100)
    # 0.3 with dropout is 0.27 without.
    scores = np.full(_CLOUDS, 0.3, "float32")
    _, slope = side_by_side.added_term(lane, 0.0, scores, scores)
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)


def test_target_moves_to_its_value():
    method = side_by_side.parse_method("istar:target=0.5x,strength=1,ramp=0.5")
    lane = side_by_side.settings(method, 0, _START, _INFERENCE, 100)
    scores = np.full(_CLOUDS, 0.3, "float32")
    slopes = [
        float(side_by_side.added_term(lane, step, scores, scores)[1])
        for step in (0.0, 25.0, 50.0, 99.0)
    ]
    # The union starts at 0.3, and the target is 0.15 after half of the steps.
    np.testing.assert_allclose(slopes, [0, 0.15, 0.3, 0.3], atol=1e-6)


def _line(method, seed, score, test):
    settings = dataclasses.asdict(side_by_side.parse_method(method))
    del settings["seeds"]
    settings["shrinkage"] = 0.2
    scores = dict(zip(["union", "centered", "layer_0"], test, strict=True))
    start = {"union": 0.2, "centered": 0.2, "layer_0": 0.1}
    return {
        "task": "rte",
        "method": method,
        "seed": seed,
        "settings": settings,
        "score": score,
        "start": {"dropout": start, "train": start, "test": start},
        "end": dict.fromkeys(["batch", "running", "train", "test"], scores),
        "share_between_layers": {"start": 0.04, "end": 0.05},
        "steps": 550,
    }


def test_table_pairs_runs_by_seed(tmp_path):
    lines = [
        _line("none", 0, 0.50, [0.2, 0.2, 0.3]),
        _line("none", 1, 0.60, [0.2, 0.2, 0.3]),
        _line("none", 2, 0.99, [0.2, 0.2, 0.3]),
        _line("istar:target=0.75x,strength=1", 1, 0.57, [0.15, 0.1, 0.05]),
        _line("istar:target=0.75x,strength=1", 0, 0.49, [0.17, 0.1, 0.05]),
    ]
    # As an older version has named it.
    lines[-1]["method"] = "target:0.75x,strength=1,error=running"
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    *_, none, target = side_by_side_summary.write(str(path)).splitlines()
    assert none.startswith("| none | 3 |")
    cells = [cell.strip() for cell in target.strip("|").split("|")]
    # Differences are -0.01 and -0.03: t = -0.02 / 0.01 with one degree of
    # freedom, where p = 1 - 2 arctan(2) / pi.
    p = 1 - 2 * np.arctan(2.0) / np.pi
    assert cells[:5] == [
        "istar:target=0.75x,strength=1",
        "2",
        "0.530 ± 0.057",
        f"-0.020 ({p:.3f})",
        "0.150",
    ]
    assert cells[-3:] == ["0.160", "0.050", "5%"]
    written = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert written.splitlines()[-1] == target


def test_p_is_corrected_over_all_tests_of_the_file():
    scores = {"none": 0.0, "istar:-1": -0.1, "istar:1": 0.05}
    spread = {"none": 0.0, "istar:-1": 1e-3, "istar:1": 0.05}
    runs = [
        _line(name, seed, 0.5 + score + seed * spread[name], [0.2, 0.2, 0.1])
        for name, score in scores.items()
        for seed in range(3)
    ]
    table = side_by_side_summary.markdown(runs)
    # Differences are -0.1, -0.099 and -0.098: t = 99 sqrt(3), and Holm's p of
    # the smaller of two is twice its own.
    p = 2 * stats.t.sf(99 * np.sqrt(3), df=2)
    assert f"-0.099 ({p:.3f}, Holm {2 * p:.3f})" in table
    assert table.count("Holm 0.") == 1


def test_figure_shows_every_method():
    runs = [
        _line("none", 0, 0.5, [0.2, 0.2, 0.3]),
        _line("istar:-1", 0, 0.47, [0.1, 0.1, 0.05]),
        _line("istar:target=0.75x", 0, 0.30, [0.15, 0.1, 0.05]),
    ]
    axis, *_ = side_by_side_summary.draw(runs).axes
    drawn = [line.get_xydata().ravel() for line in axis.lines]
    points = [xy for xy in drawn if len(xy) == 2]
    expected = [[0.2, 0.0], [0.1, -3.0], [0.15, -8.0]]  # At the edge: -20.
    np.testing.assert_allclose(points, expected, atol=1e-9)


def test_table_needs_results(tmp_path):
    path = tmp_path / "results.jsonl"
    with pytest.raises(side_by_side.UserError, match="cannot read"):
        side_by_side_summary.write(str(path))
    path.write_text("")
    with pytest.raises(side_by_side.UserError, match="no results"):
        side_by_side_summary.write(str(path))


def _write_arrays(folder, rng):
    """A small encoder, and sentences whose class is that of a token."""
    keras_hub = pytest.importorskip("keras_hub")
    config = {
        "vocabulary_size": 12,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 8,
        "intermediate_dim": 16,
        "max_sequence_length": 6,
        "num_segments": 2,
    }
    backbone = keras_hub.models.BertBackbone(**config)
    weights = [keras.ops.convert_to_numpy(x) for x in backbone.weights]
    np.savez(folder / "encoder.npz", *weights)
    (folder / "encoder.json").write_text(json.dumps(config))
    arrays = {"classes": 2, "scores": np.array(["accuracy"])}
    for part, number in (("train", 64), ("test", 16)):
        tokens = rng.integers(12, size=(number, 6)).astype("uint16")
        arrays |= {
            f"{part}_tokens": tokens,
            f"{part}_segments": np.zeros((number, 6), "uint8"),
            f"{part}_lengths": rng.integers(3, 7, number).astype("uint16"),
            f"{part}_labels": (tokens[:, 1] > 5).astype("float32"),
        }
    np.savez(folder / "toy.npz", **arrays)


@pytest.mark.slow
def test_runs_of_a_small_encoder(tmp_path, rng):
    _write_arrays(tmp_path, rng)
    output = tmp_path / "results.jsonl"
    command = [
        *(sys.executable, side_by_side.__file__),
        *("--arrays", tmp_path, "--output", output, "--tasks", "toy"),
        *("--steps", "40", "--log-every", "20", "--side-by-side", "3"),
        *("--dtype-policy", "float32", "--methods", "none,seeds=2"),
        *("istar:target=0.5x,strength=1000", "istar:-100"),
    ]
    subprocess.run(
        command, env=os.environ | {"KERAS_BACKEND": "jax"}, check=True
    )
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["method"], line["seed"]) for line in lines] == [
        ("none", 0),
        ("none", 1),
        ("istar:target=0.5x,strength=1000", 0),
        ("istar:-100", 0),
    ]
    assert all(line["is_finite"] for line in lines)
    assert lines[0]["loss"] != lines[1]["loss"]
    none, target, plain = (lines[i]["end"]["test"]["union"] for i in (0, 2, 3))
    goal = 0.5 * lines[0]["start"]["dropout"]["union"]
    assert abs(target - goal) < abs(none - goal)
    assert plain < none
    table = side_by_side_summary.write(str(output))
    assert "**toy**, 40 steps" in table
