"""The penalty and its gradient, lowered by TensorFlow and compiled for TPUs.

Compiled ahead of time with libtpu for slices of 4 and 8 chips, one replica a
chip; nothing runs. The sums over replicas are the operation that `TPUStrategy`
uses, which `test_tpu_strategy.py` sees in a traced train step.
"""

import children
import hlo
import pytest
import sizes

pytestmark = pytest.mark.tpu

CHIPS = {"v5e:2x2": 4, "v5e:2x4": 8}
PROGRAMS = [
    ("v5e:2x2", "float32"),
    ("v5e:2x4", "bfloat16"),
    pytest.param(("v5e:2x2", "bfloat16"), marks=pytest.mark.slow),
    pytest.param(("v5e:2x4", "float32"), marks=pytest.mark.slow),
]


@pytest.fixture(params=PROGRAMS, ids="-".join)
def topology_and_program(request, tpu_compiler, tensorflow):
    topology, dtype = request.param
    return topology, children.run("penalty_tf", "tensorflow", topology, dtype)


def test_does_nothing_that_a_tpu_forbids(topology_and_program):
    _, program = topology_and_program
    assert hlo.problems(program) == []
    assert hlo.custom_calls(program["lowered"]) == set()


def test_one_sum_of_the_moments_and_one_of_their_gradient(
    topology_and_program,
):
    topology, program = topology_and_program
    # Rows: the scatter, and a center and an offset from each replica.
    table = f"f32[{sizes.DIM + 2 * CHIPS[topology]},{sizes.DIM + 1}]"
    assert hlo.all_reduces(program["compiled"]) == [[table], [table]]


def test_costs_one_product_forward_and_one_back(topology_and_program):
    _, program = topology_and_program
    assert program["flops"] == pytest.approx(sizes.PENALTY_FLOPS, rel=0.1)
