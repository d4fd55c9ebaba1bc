"""The benchmark's arithmetic, and that it runs. Its figures are no test."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import oracle
import pytest

import keras_istar
from benchmarks import report
from benchmarks import timing
from benchmarks.timing import Seconds
from benchmarks.timing import alternate
from benchmarks.timing import compare
from keras_istar._src.score import moments

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the benchmark starts backends by itself",
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command at toy sizes and returns its output and its sections."""

    def run(*arguments, device="cpu", tensorflow=True):
        if not tensorflow:
            module = tmp_path / "hidden" / "tensorflow" / "__init__.py"
            module.parent.mkdir(parents=True)
            module.write_text("raise ModuleNotFoundError('tensorflow')")
            monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hidden"))
        arguments += ("--device", device, "--tiny", "--output", tmp_path)
        done = _command(*arguments)
        assert done.returncode == 0, done.stderr
        machine, sections = report.read(tmp_path / f"{device}-tiny.json")
        assert {"device", "keras", "keras-istar"} <= set(machine)
        table = (tmp_path / f"{device}-tiny.md").read_text()
        assert table == report.markdown(machine, sections)
        assert not any(
            row.target[0] for rows in sections.values() for row in rows
        )
        return done.stdout, sections

    return run


def _command(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks", *arguments],
        capture_output=True,
        text=True,
    )


def test_gpu_without_tensorflow(run):
    pytest.importorskip("jax")
    _, sections = run(
        *("--only", "penalty,train-step"), device="gpu", tensorflow=False
    )
    sides = [row.side for row in sections["penalty"] if "JAX" in row.case]
    eigenvalues = "concatenate, covariance, eigenvalues, autodiff"
    assert {"keras_istar", eigenvalues} <= set(sides)
    assert {row.against for row in sections["penalty"]} >= {
        "arithmetic floor",
        "reading and writing the states",
    }
    time, memory = sections["train-step"]
    assert time.case == "tiny 2×32, 4×16, mixed_bfloat16, JAX"
    assert (time.side, time.unit, memory.unit) == ("every token", "ms", "MB")
    assert time.value > 0
    # Weights of the embeddings alone: (50 + 128 + 2) × 32 float32, and two
    # moments of Adam.
    assert memory.reference > 3 * 180 * 32 * 4 / 1e6


@pytest.mark.slow
def test_variants_and_one_backend(run):
    pytest.importorskip("jax")
    _, sections = run(
        *("--only", "penalty", "--backend", "jax", "--variants"), device="gpu"
    )
    rows = sections["penalty"]
    assert {row.case.split()[-1] for row in rows} == {"JAX"}
    sides = {"64": set(), "12,288": set()}
    for row in rows:
        if "bfloat16" in row.case:
            sides[row.case.split(", d")[0].removeprefix("n = ")].add(row.side)
    together = {f"keras_istar, {n} at once" for n in ("1 state", "12 states")}
    assert together <= sides["12,288"]
    assert not together & sides["64"]  # There is one state.
    assert all("keras_istar, float32 products" in s for s in sides.values())


def test_backend_leaves_out_what_others_run(run):
    pytest.importorskip("jax")
    output, sections = run("--only", "counts", "--backend", "torch")
    assert sections == {"counts": []}
    assert "counts: jax" not in output


def test_no_section_starts_late(tmp_path):
    pytest.importorskip("jax")
    done = _command(
        *("--device", "gpu", "--tiny", "--output", tmp_path),
        *("--only", "accuracy", "--backend", "jax", "--seconds", "0"),
    )
    assert done.returncode == 1
    assert "Failed: accuracy on jax, for want of time" in done.stderr
    _, sections = report.read(tmp_path / "gpu-tiny.json")
    assert sections == {"accuracy": []}


def test_no_case_starts_late(monkeypatch):
    monkeypatch.setattr(timing.time, "time", lambda: 100.0)
    assert not timing.is_late()
    monkeypatch.setenv(timing.DEADLINE, "110.0")
    assert not timing.is_late()
    assert not timing.is_late(reserve=10.0)
    assert timing.is_late(reserve=10.5)


def test_variants_hold_inside_alone():
    variants = pytest.importorskip("benchmarks.variants")
    tokens = keras.ops.ones((3, 2), "bfloat16")
    before = moments.states_at_once(tokens), moments.product_dtype(tokens)
    found = {}
    for name in variants.NAMES:
        with variants.variant(name):
            found[name] = (
                moments.states_at_once(tokens),
                moments.product_dtype(tokens),
            )
    assert found["1 state at once"] == (1, before[1])
    assert found["12 states at once"] == (12, before[1])
    assert found["float32 products"] == (before[0], "float32")
    after = moments.states_at_once(tokens), moments.product_dtype(tokens)
    assert after == before


@pytest.mark.slow
def test_gpu_memory(run):
    pytest.importorskip("jax")
    _, sections = run("--only", "memory", device="gpu", tensorflow=False)
    (row,) = sections["memory"]
    assert (row.side, row.against) == ("every token", "plain step")


def test_counts(run):
    pytest.importorskip("jax")
    output, sections = run("--only", "counts", tensorflow=False)
    rows = {(row.case, row.side): row for row in sections["counts"]}
    for dtype in ("float32", "bfloat16"):
        case = f"penalty, 3 states of 64 × 8, {dtype}"
        # At least a product of a state forward, and one backward.
        assert rows[case, "operations"].value >= 3 * 4 * 64 * 8**2
        assert rows[case, "products"].value >= 2
        assert rows[case, "bytes accessed"].value > 0
        assert rows[case, "fusions"].value > 0
    operations = "tiny 2×32, 4×16, mixed_bfloat16, operations"
    row = rows[operations, "every token"]
    assert row.value > row.reference > 0
    assert f"| {operations} | every token | {row.value:,.0f} |" in output


def test_products_are_counted_by_shape_and_type():
    jax = pytest.importorskip("jax")
    counts = pytest.importorskip("benchmarks.counts")

    def function(a, b):
        product = jax.jit(lambda a, b: a @ b)
        return product(a, b) + product(a, b), a @ a.T

    a = jax.numpy.ones((5, 3), "bfloat16")
    b = jax.numpy.ones((3, 4), "bfloat16")
    assert counts.products(jax.make_jaxpr(function)(a, b)) == {
        "bf16[5,3] · bf16[3,4] → bf16[5,4]": 2,
        "bf16[5,3] · bf16[3,5] → bf16[5,5]": 1,
    }
    program = jax.jit(lambda a: a @ a.T).lower(np.ones((5, 3), "f4")).compile()
    numbers = counts.program_counts(program)
    assert numbers["operations"] == 2 * 5 * 3 * 5
    assert numbers["products"] == 1


def test_gpu_programs_are_left_out_without_the_plugin(run):
    programs = pytest.importorskip("benchmarks.gpu_programs")
    if programs.has_plugin():
        pytest.skip("the plugin is installed")
    output, sections = run("--only", "gpu-programs")
    assert sections == {"gpu-programs": []}
    assert 'it needs `pip install "jax[cuda12]"`' in output


def test_gpu_programs(run):
    programs = pytest.importorskip("benchmarks.gpu_programs")
    if not programs.has_plugin():
        pytest.skip('needs `pip install "jax[cuda12]"`')
    _, sections = run("--only", "gpu-programs", tensorflow=False)
    rows = {(row.case, row.side): row for row in sections["gpu-programs"]}
    # The means, then the matrix; no tokens.
    case = "12 states of 8×16×8, bfloat16, on four GPUs"
    collectives = {key[1]: rows[key].value for key in rows if key[0] == case}
    assert collectives == {"all-reduce": 2}
    moved = rows["n = 64, d = 8, bfloat16, moved", "keras_istar"]
    assert moved.value > moved.reference == 3e-6 * 64 * 8 * 2


def test_kernels_of_a_program_and_what_they_move():
    programs = pytest.importorskip("benchmarks.gpu_programs")
    program = """HloModule main
%inner (p: f32[4]) -> f32[4] {
  ROOT %b = f32[4]{0} negate(%p)
}
ENTRY %main (a: f32[2,3], m: pred[2]) -> (bf16[2,3], s32[]) {
  %a = f32[2,3]{1,0} parameter(0)
  %m = pred[2]{0} parameter(1)
  %same = f32[6]{0} bitcast(%a)
  %both = (bf16[2,3]{1,0}, s32[]) fusion(%same, %m), kind=kLoop, calls=%inner
  %first = bf16[2,3]{1,0} get-tuple-element(%both), index=0
  ROOT %out = f32[2,2]{1,0} custom-call(%first, %first)
}"""
    # f32[6] and pred[2] to bf16[2,3] and s32[]; twice bf16[2,3] to f32[2,2].
    assert programs.kernels(program) == (2, (24 + 2 + 12 + 4) + (24 + 16))


def test_textbook_score_is_that_of_the_package():
    penalty = pytest.importorskip("benchmarks.penalty")
    states = penalty.hidden_states(60, 8, width=20)
    points = np.concatenate([keras.ops.convert_to_numpy(s) for s in states])
    assert points.shape == (60, 8)
    np.testing.assert_allclose(
        penalty.textbook_score(states), keras_istar.isoscore(points), rtol=1e-5
    )
    found = float(penalty.penalty(states)(states))
    assert found == pytest.approx(oracle.penalty(points, 1.0), rel=1e-4)


@pytest.mark.slow
def test_sections_are_added_to_those_in_the_folder(run):
    run("--only", "growth")
    output, sections = run("--only", "sampling")
    assert [row.unit for row in sections["growth"]] == ["exponent"] * 3
    sides = [row.side for row in sections["sampling"]]
    assert sides == ["max_tokens=8"] * 2 + ["max_tokens=16"] * 2
    assert all(0 < row.value < 1000 for row in sections["sampling"])
    assert output.count("| max_tokens=8 |") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "section, rows", [("train-step", 2), ("memory", 1), ("callback", 4)]
)
def test_sections_on_a_cpu(run, section, rows):
    _, sections = run("--only", section)
    assert len(sections[section]) == rows


def test_unknown_section():
    done = _command("--only", "growth,speed")
    assert done.returncode == 2
    assert "Received: --only growth,speed" in done.stderr


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_committed_results_are_rendered_as_they_are(tmp_path, device):
    results = ROOT / "benchmarks" / "results"
    path = tmp_path / f"{device}.json"
    path.write_text((results / path.name).read_text())
    done = _command("--render", path)
    assert done.returncode == 0, done.stderr
    rendered = (results / f"{device}.md").read_text()
    assert path.with_suffix(".md").read_text() == rendered
    assert json.loads(path.read_text()) == json.loads(
        (results / path.name).read_text()
    )


def _seconds(*walls):
    return [Seconds(wall, 2 * wall) for wall in walls]


def test_ratio_is_the_median_of_neighbors():
    reference = [seconds.times(0.5) for seconds in _seconds(1, 2, 10)]
    ratio = compare(_seconds(2, 6, 40), reference)
    assert ratio == (6.0, 5.0, 7.0, 6.0, 3)


@pytest.mark.parametrize(
    "target, verdict",
    [
        ({}, ""),
        ({"at_most": 3.0}, "met"),
        ({"at_most": 2.9}, "missed"),
        ({"at_least": 3.0}, "met"),
        ({"at_least": 3.1}, "missed"),
    ],
)
def test_verdict(tmp_path, target, verdict):
    sides = {"ours": _seconds(3, 6, 9), "theirs": _seconds(1, 2, 3)}
    row = report.timing_row("case", sides, "ours", "theirs", **target)
    assert row.target[1] == verdict
    text = report.write(tmp_path / "a.json", {}, {"penalty": [row]})
    assert report.read(tmp_path / "a.json") == ({}, {"penalty": [row]})
    cells = [cell.strip() for cell in text.split("|")]
    assert "**3.000**" in cells
    assert "6,000 ms" in cells


def test_growth_has_no_ratio(tmp_path):
    row = report.Row("width", "1, 8 ms", 3.0, "exponent")
    text = report.write(tmp_path / "a.json", {}, {"growth": [row]})
    assert report.read(tmp_path / "a.json") == ({}, {"growth": [row]})
    assert "| width | 1, 8 ms | 3 exponent |" in text


def test_sides_take_turns():
    order = []
    sides = {name: lambda calls, name=name: order.append(name) for name in "ab"}
    seconds = alternate(sides, rounds=4)
    assert "".join(order) == "aabb" + "abba" * 2
    assert {name: len(runs) for name, runs in seconds.items()} == {
        "a": 4,
        "b": 4,
    }


def test_quick_sides_are_called_several_times_in_a_run(monkeypatch):
    clock = [0.0]
    calls = {"quick": [], "slow": []}
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def side(name, seconds):
        def run(number):
            calls[name].append(number)
            clock[0] += number * seconds

        return run

    sides = {"quick": side("quick", 0.5), "slow": side("slow", 4.0)}
    seconds = alternate(sides, rounds=3, shortest=2.0)
    assert calls == {"quick": [1, 1, 4, 4, 4], "slow": [1, 1, 1, 1, 1]}
    assert [run.wall for run in seconds["quick"]] == [0.5] * 3
