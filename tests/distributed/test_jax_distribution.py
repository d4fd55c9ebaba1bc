"""`keras.distribution` on the JAX backend trains as one device does."""

import importlib.util
import os
import re

import numpy as np
import pytest
from workers.launch import free_port
from workers.launch import run_workers
from workers.small_models import WIDTH

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("jax", "keras_hub"))),
    reason="needs JAX and KerasHub",
)

SCRIPT = "jax_distribution"
STEPS = "*jit_train_step*after_optimizations.txt"
KINDS = [
    "data",
    "data_as_gpus",
    "model",
    pytest.param("process_0", marks=pytest.mark.slow),
    pytest.param("process_1", marks=pytest.mark.slow),
]
COLLECTIVE = re.compile(
    r"= (?P<shapes>.*?) "
    r"(?P<kind>all-reduce|all-gather|all-to-all|collective-permute)(-start)?\("
    r".*?(?P<source>op_name=.*)?$",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def dumps(tmp_path_factory):
    """Folders for compiled programs."""
    kinds = ("single", "data", "data_as_gpus", "model")
    return {kind: tmp_path_factory.mktemp(kind) for kind in kinds}


@pytest.fixture(scope="module")
def results(tmp_path_factory, dumps):
    """What a program measured on one device, and on four in three ways."""
    folder = tmp_path_factory.mktemp("jax")
    flags = f"{os.environ['XLA_FLAGS']} --xla_dump_hlo_module_re=train_step"
    jobs = [
        ([kind], {"XLA_FLAGS": f"{flags} --xla_dump_to={dumps[kind]}"})
        for kind in dumps
    ]
    measured = run_workers(folder, SCRIPT, jobs)
    return dict(zip(dumps, measured, strict=True))


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes measured that trained together."""
    folder = tmp_path_factory.mktemp("processes")
    address = f"127.0.0.1:{free_port()}"
    jobs = [(["processes", address, index], {}) for index in (0, 1)]
    measured = run_workers(folder, SCRIPT, jobs)
    return dict(zip(("process_0", "process_1"), measured, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["callback", "target"])
def test_everything_is_as_on_one_device(request, results, kind, case):
    if kind not in results:
        results = results | request.getfixturevalue("processes")
    expected, actual = results["single"], results[kind]
    assert set(actual) == set(expected)
    names = [name for name in expected if name.startswith(f"{case}/")]
    names.remove(f"{case}/sharded_weights")
    assert {f"{case}/change", f"{case}/loss", f"{case}/isoscore"} < set(names)
    for name in names:
        np.testing.assert_allclose(
            actual[name],
            expected[name],
            rtol=1e-5,
            # A share of the variance, here a small one, left by subtraction.
            atol=1e-6
            if name.endswith("between_layers")
            else 3e-5 * np.abs(expected[name]).max(),
            err_msg=name,
        )


def test_model_parallelism_shards_the_encoder(results):
    assert results["model"]["callback/sharded_weights"] >= 10
    assert results["data"]["callback/sharded_weights"] == 0


@pytest.mark.parametrize("kind", ["data", "data_as_gpus", "model"])
def test_moments_travel_in_one_all_reduce(results, dumps, kind):
    steps = dumps[kind].glob(STEPS)
    program = max((path.read_text() for path in steps), key=len)
    ours = [
        found
        for found in COLLECTIVE.finditer(program)
        if "i_star_regularization" in (found["source"] or "")
    ]
    assert {found["kind"] for found in ours} == {"all-reduce"}
    matrix = f"f32[{WIDTH},{WIDTH}]"
    assert sum(matrix in found["shapes"] for found in ours) == 1
    states = re.compile(rf"all-gather.*\[\d+,(\d+,)?{WIDTH}\]")
    assert not any(states.search(found[0]) for found in ours)


def test_program_of_one_device_has_no_collectives(results, dumps):
    steps = list(dumps["single"].glob(STEPS))
    assert steps
    assert not any(COLLECTIVE.search(path.read_text()) for path in steps)
