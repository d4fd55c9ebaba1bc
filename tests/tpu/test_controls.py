"""The checks of compiled programs, on programs that they must object to."""

import children
import hlo
import pytest
import sizes

pytestmark = pytest.mark.tpu

NAMES = [
    "penalty",
    "one_matrix_a_state",
    "plain_autodiff",
    "singular_values",
    "eigenvalues",
    "float64",
    "host_function",
    "unknown_kernel",
]
MATRIX = f"f32[{sizes.DIM},{sizes.DIM}]"


@pytest.fixture(scope="module")
def programs(tpu_compiler):
    return children.run("controls_jax", "jax", *NAMES)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("penalty", []),
        ("singular_values", ["eigen solver", "loop"]),
        ("eigenvalues", ["eigen solver"]),
        ("float64", ["float64"]),
        ("host_function", ["host"]),
    ],
)
def test_forbidden_operations_are_noticed(programs, name, expected):
    assert hlo.problems(programs[name]) == expected


def test_a_kernel_that_a_tpu_lacks_is_refused(programs):
    refusal = programs["unknown_kernel"]["refused"]
    assert "no_such_kernel not found" in refusal


@pytest.mark.parametrize(
    "name, is_cheap", [("penalty", True), ("plain_autodiff", False)]
)
def test_a_second_product_back_is_noticed(programs, name, is_cheap):
    expected = pytest.approx(sizes.PENALTY_FLOPS, rel=0.1)
    assert (programs[name]["flops"] == expected) == is_cheap


@pytest.mark.parametrize(
    "name, matrices", [("penalty", 1), ("one_matrix_a_state", sizes.LAYERS)]
)
def test_a_matrix_for_each_state_is_noticed(programs, name, matrices):
    carried = sum(hlo.all_reduces(programs[name]["compiled"]), start=[])
    assert carried.count(MATRIX) == matrices
