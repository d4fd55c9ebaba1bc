"""A Keras train step under a real `TPUStrategy`, traced without TPUs.

The strategy object is TensorFlow's, the chips come from a resolver that makes
them up. The step is only traced: neither compiled nor run. That every operation
has a TPU kernel is judged by `tpu_kernels.txt`, a list read from the registry
of TensorFlow's build for TPUs, since other builds register no such kernels.
"""

import collections
import pathlib

import children
import pytest
import sizes

pytestmark = pytest.mark.tpu

REPLICAS = 4
TABLE = ("float32", (sizes.DIM + 2 * REPLICAS, sizes.DIM + 1))
STEPS = ["{}", '{"momentum": 0.9}', '{"max_tokens": 256}']
CONTROLS = [
    "one_sum_a_state",
    "eigenvalues",
    "any_eigenvalues",
    "singular_values",
    "float64",
    "dynamic_shape",
    "host_function",
]
# What `strategy.run` puts around a step, for the compiler to take away.
SCAFFOLD = {
    "Placeholder",
    "TPUCompilationResult",
    "TPUReplicateMetadata",
    "TPUReplicatedInput",
    "TPUReplicatedOutput",
}
EIGEN_SOLVERS = {"Eig", "Qr", "SelfAdjointEigV2", "Svd", "XlaSelfAdjointEig"}


@pytest.fixture(scope="module")
def traced(keras_hub, tensorflow):
    """Operations of every program, by its name."""
    names = ["null", *STEPS, *CONTROLS]
    programs = children.run("strategy_tf", "tensorflow", *names)
    return dict(zip(names, programs, strict=True))


@pytest.mark.parametrize("step", STEPS)
def test_one_sum_of_the_moments_and_one_of_their_gradient(traced, step):
    extra = _cross_replica_sums(traced[step])
    extra.subtract(_cross_replica_sums(traced["null"]))
    expected = {TABLE: 2}
    if "max_tokens" in step:  # How many tokens there are to draw from.
        expected[(TABLE[0], ())] = 1
    assert {table: n for table, n in extra.items() if n} == expected


@pytest.mark.parametrize("step", STEPS)
def test_does_nothing_that_a_tpu_forbids(traced, step):
    assert _problems(traced[step]) == []


@pytest.mark.parametrize(
    "control, expected",
    [
        ("eigenvalues", ["eigen solver"]),
        ("any_eigenvalues", ["eigen solver", "no kernel: Eig"]),
        ("singular_values", ["eigen solver"]),
        ("float64", ["float64"]),
        ("dynamic_shape", ["dynamic shape"]),
        ("host_function", ["dynamic shape", "no kernel: EagerPyFunc"]),
    ],
)
def test_forbidden_operations_are_noticed(traced, control, expected):
    assert _problems(traced[control]) == expected


def test_a_sum_for_each_state_is_noticed(traced):
    sums = _cross_replica_sums(traced["one_sum_a_state"])
    assert sums == {TABLE: 2 * sizes.LAYERS}


def _cross_replica_sums(operations):
    return collections.Counter(
        (output["dtype"], tuple(output["shape"]))
        for operation in operations
        for output in operation["outputs"]
        if operation["type"] == "CrossReplicaSum"
    )


def _problems(operations):
    """What a TPU forbids and these operations do."""
    types = {operation["type"] for operation in operations}
    outputs = [
        output
        for operation in operations
        # Known sizes, as a list whose length is not: a constant to XLA.
        if operation["type"] != "BroadcastGradientArgs"
        for output in operation["outputs"]
    ]
    checks = {
        "dynamic shape": any(
            output["shape"] is None or None in output["shape"]
            for output in outputs
        ),
        "eigen solver": types & EIGEN_SOLVERS,
        "float64": any(output["dtype"] == "float64" for output in outputs),
    }
    problems = [problem for problem, is_there in checks.items() if is_there]
    missing = sorted(types - _tpu_kernels() - SCAFFOLD)
    return problems + [f"no kernel: {operation}" for operation in missing]


def _tpu_kernels():
    text = pathlib.Path(__file__).with_name("tpu_kernels.txt").read_text()
    return {line for line in text.splitlines() if not line.startswith("#")}
