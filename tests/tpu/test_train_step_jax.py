"""A whole Keras train step on the JAX backend, compiled for TPUs.

A small KerasHub BERT classifier, dropout, AdamW and metrics included, with the
batch sharded over a slice of 4 and 8 chips. Compiled ahead of time with libtpu,
with the layer attached and without; nothing runs.
"""

import collections
import itertools
import json

import children
import hlo
import pytest
import sizes

pytestmark = pytest.mark.tpu

OPTIONS = json.dumps({"max_tokens": 256, "momentum": 0.9})
STEPS = [
    ("v5e:2x2", "float32"),
    ("v5e:2x4", "mixed_bfloat16"),
    pytest.param(("v5e:2x2", "mixed_bfloat16"), marks=pytest.mark.slow),
    pytest.param(("v5e:2x4", "float32"), marks=pytest.mark.slow),
]


@pytest.fixture(params=STEPS, ids="-".join)
def steps(request, tpu_compiler, keras_hub):
    """Compiled steps without the layer, and with it."""
    return children.run("step_jax", "jax", *request.param, "null", "{}")


def test_does_nothing_that_a_tpu_forbids(steps):
    without, attached = steps
    assert hlo.problems(attached) == []
    assert hlo.custom_calls(attached["lowered"]) == hlo.custom_calls(
        without["lowered"]
    )


def test_options_do_nothing_that_a_tpu_forbids(tpu_compiler, keras_hub):
    (step,) = children.run("step_jax", "jax", *STEPS[0], OPTIONS)
    assert hlo.problems(step) == []


def test_moments_of_all_layers_travel_as_one_matrix(steps):
    without, attached = (hlo.all_reduces(step["compiled"]) for step in steps)
    extra = _count_shapes(attached) - _count_shapes(without)
    matrices = {s: n for s, n in extra.items() if s.count(",") == 1}
    dim = sizes.DIM
    assert matrices.pop(f"f32[{dim},{dim}]") == 1
    # The means of the layers, which center the tokens, and the offsets.
    assert set(matrices) <= {f"f32[1,{dim}]", f"f32[{sizes.LAYERS},{dim}]"}
    # One all-reduce for the means, then one for the matrix and the offsets.
    assert len(attached) - len(without) <= 2


def test_costs_one_product_forward_and_one_back(steps):
    without, attached = steps
    extra = attached["flops"] - without["flops"]
    assert extra == pytest.approx(sizes.PENALTY_FLOPS, rel=0.1)


def _count_shapes(all_reduces):
    return collections.Counter(itertools.chain.from_iterable(all_reduces))
