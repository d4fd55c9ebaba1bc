"""Products as a GPU is given them, computed on a CPU.

What a GPU itself makes of them, `python benchmarks --device gpu` compares with
float64 as well.
"""

import re

import keras
import numpy as np
import oracle
import pytest
from keras import ops

import keras_istar
from keras_istar._src.compat import products
from keras_istar._src.score import moments

BACKEND = keras.backend.backend()
ON_CPU, ON_GPU = False, True
# Half the distance of 1 to the next number.
UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
# So that no gradient leaves float16's range, as in training with it.
LOSS_SCALE = 2.0**10
SHRINKAGE = 0.2

on_torch = pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch alone")
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="reads programs of JAX")
narrow_or_not = pytest.mark.parametrize("dtype", UNIT)


@pytest.fixture
def gpu(monkeypatch):
    """Makes the choices for a GPU."""
    if BACKEND == "tensorflow":
        pytest.skip("TensorFlow multiplies in one way on all devices")
    monkeypatch.setattr(products, "is_on_gpu", lambda tokens: ON_GPU)


def _penalty(states, mask=None, **options):
    """The penalty of states like these, as a function of them."""
    layer = keras_istar.IStarRegularization(
        LOSS_SCALE, shrinkage=SHRINKAGE, **options
    )
    layer.build([x.shape for x in states])

    def penalty(states):
        layer(states, mask=mask, training=True)
        return layer.losses[-1]

    return penalty


def _states(rng, dtype, mean):
    """Six states, two groups of those that are multiplied at once."""
    spread = np.exp(rng.normal(size=24))
    x = spread * (mean + rng.normal(size=(6, 8, 16, 24)))
    states = ops.cast(x.astype("float32"), dtype)
    return states, rng.random((8, 16)) < 0.8


def _float64(x):
    return ops.convert_to_numpy(ops.cast(x, "float32")).astype("float64")


def _gradient_matrix(points):
    """M of the penalty's gradient, which is the deviations times M."""
    mixed = oracle.shrunk(points, SHRINKAGE)
    dim, trace, square = len(mixed), np.trace(mixed), np.sum(mixed**2)
    by_mixed = 2 * trace / square * (np.eye(dim) - trace / square * mixed)
    by_mixed /= dim - 1
    # The target's trace is that of the covariance.
    by_covariance = (1 - SHRINKAGE) * by_mixed
    by_covariance += SHRINKAGE * np.trace(by_mixed) / dim * np.eye(dim)
    return -LOSS_SCALE * 2 / (len(points) - 1) * by_covariance


# At 1e4 standard deviations neighboring bfloat16 numbers are 64 apart, and
# those of float16 8: states there have no spread left to be measured.
@pytest.mark.parametrize(
    "dtype, mean",
    [
        *[("float32", mean) for mean in (0.0, 50.0, 1e4)],
        *[("bfloat16", mean) for mean in (0.0, 50.0)],
        *[("float16", mean) for mean in (0.0, 50.0)],
    ],
)
def test_error_is_within_that_of_rounding(gpu, rng, gradient, dtype, mean):
    """Bounds of score and gradient, to first order in the rounding.

    Let Y be the deviations and G = Y M the gradient, and let p be the unit of
    the product's type. Rounding each number of Y by at most p puts the penalty
    off by at most p |G| |Y|. Operands of G are Y and M, both rounded, and M is
    that of a covariance of rounded deviations: 3 p |Y| |M|. The gradient is
    rounded to the unit u of the states' own type: u |G|. In float32, sums of n
    products are off by at most n 2⁻²⁴ of the sum of their absolute values,
    whatever their order. |.| is the Frobenius norm.
    """
    states, mask = _states(rng, dtype, mean)
    clouds = _float64(states)
    points = oracle.unmasked(clouds, [mask] * 6)
    matrix = _gradient_matrix(points)
    expected = (clouds - points.mean(axis=0)) @ matrix * mask[..., None]
    deviations = points - points.mean(axis=0)
    size = np.linalg.norm(deviations) * np.linalg.norm(matrix)
    product = UNIT["bfloat16" if dtype == "bfloat16" else "float32"]
    product += len(points) * UNIT["float32"]

    tensors = list(ops.unstack(states))
    penalty = _penalty(tensors, ops.convert_to_tensor(mask))
    score = oracle.penalty(points, LOSS_SCALE, SHRINKAGE)
    found = float(penalty(tensors))
    slope = np.linalg.norm(expected)
    width = np.linalg.norm(deviations)
    assert abs(found - score) <= product * slope * width

    def of_float32(x):  # NumPy has no bfloat16 for the gradient.
        return penalty(list(ops.unstack(ops.cast(x, dtype))))

    found = _float64(gradient(of_float32, ops.cast(states, "float32")))
    error = np.linalg.norm(found - expected)
    assert error <= UNIT[dtype] * slope + 3 * product * size


def _forced(is_forced, monkeypatch):
    monkeypatch.setattr(products, "is_on_gpu", lambda tokens: is_forced)


@on_jax
@narrow_or_not
@pytest.mark.parametrize("is_on_gpu", [ON_CPU, ON_GPU])
def test_number_and_types_of_products(monkeypatch, rng, dtype, is_on_gpu):
    """Types as the program asks for them, numbers as optimized.

    The compiler for CPUs widens bfloat16 operands, so the types of the
    optimized program would say nothing about a GPU.
    """
    import jax

    _forced(is_on_gpu, monkeypatch)
    states = [*ops.unstack(_states(rng, dtype, 0.0)[0])]
    lowered = jax.jit(jax.grad(_penalty(states))).lower(states)
    asked = re.findall(
        r"dot_general .*: \(tensor<(\w+)>, tensor<(\w+)>\) -> tensor<(\w+)>",
        lowered.as_text(),
    )
    kind = "bf16" if dtype == "bfloat16" and is_on_gpu else "f32"
    clouds = ["4x128x24", "2x128x24"] if is_on_gpu else ["128x24"] * 6
    expected = [
        (f"{cloud}x{kind}", f"{cloud}x{kind}", "24x24xf32") for cloud in clouds
    ]
    expected += [(f"128x24x{kind}", f"24x24x{kind}", "128x24xf32")] * 6
    assert sorted(asked) == sorted(expected)
    optimized = lowered.compile().as_text()
    assert len(re.findall(r" dot\(", optimized)) == len(expected)


@on_jax
@narrow_or_not
def test_nothing_of_token_size_is_kept_in_float32_on_a_gpu(gpu, rng, dtype):
    import jax

    states = [*ops.unstack(_states(rng, dtype, 0.0)[0])]
    _, backward = jax.vjp(_penalty(states), states)
    large = [x for x in jax.tree.leaves(backward) if x.size >= states[0].size]
    assert {str(x.dtype) for x in large} == {dtype}
    assert len(large) == len(states)


@pytest.mark.parametrize(
    "dtype, expected",
    [("float32", "float32"), ("bfloat16", "float32"), ("float16", "float32")],
)
def test_choices_without_a_gpu(dtype, expected):
    tokens = ops.ones((3, 2), dtype)
    assert products.product_dtype(tokens) == expected
    assert products.states_at_once(tokens) == 1


def test_gradient_reaches_the_mean_of_each_part(gpu, rng, gradient):
    """Deviations are rounded to bfloat16; what merging adds is not."""
    parts = rng.normal(size=(2, 40, 6)) + [[[0.0]], [[3.0]]]
    parts = _float64(ops.cast(parts, "bfloat16"))
    weights = rng.normal(size=(6, 6))

    def weighed_scatter(x):
        halves = ops.unstack(ops.cast(x, "bfloat16"))
        union = moments.combine([moments.token_moments(x) for x in halves])
        return ops.sum(ops.cast(weights, "float32") * union.scatter)

    found = _float64(gradient(weighed_scatter, ops.cast(parts, "float32")))
    expected = (parts - parts.mean((0, 1))) @ (weights + weights.T)
    error = np.linalg.norm(found - expected)
    assert error <= 4 * UNIT["bfloat16"] * np.linalg.norm(expected)


@on_jax
@narrow_or_not
def test_second_derivative_knows_that_the_mean_moves(gpu, rng, dtype):
    import jax

    states = _states(rng, dtype, 0.0)[0]
    weights = rng.normal(size=(24, 24))
    direction = 3.0 + rng.normal(size=states.shape)

    def weighed_scatter(x):
        union = moments.union_moments([*x.astype(dtype)], [None] * 6)
        return (weights.astype("float32") * union.scatter).sum()

    def slope(x):
        gradient = jax.grad(weighed_scatter)(x)
        return (gradient * direction.astype("float32")).sum()

    found = _float64(jax.grad(slope)(ops.cast(states, "float32")))
    expected = direction - direction.mean((0, 1, 2))
    expected = expected @ (weights + weights.T)
    error = np.linalg.norm(found - expected)
    assert error <= 8 * UNIT[dtype] * np.linalg.norm(expected) + 1e-4


@on_torch
@pytest.mark.parametrize("number", [1, 6])
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"target": 0.75, "relative": True}],
    ids=["penalty", "target"],
)
def test_a_gpu_waits_for_no_number_of_the_host(
    gpu, rng, number, is_masked, options
):
    """PyTorch waits for all that a GPU has to do before it copies a number."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    names = []

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    states, mask = _states(rng, "float32", 0.0)
    states = [x.requires_grad_() for x in ops.unstack(states)[:number]]
    mask = ops.convert_to_tensor(mask) if is_masked else None
    penalty = _penalty(states, mask, **options)
    penalty(states)
    with Operations():
        torch.autograd.grad(penalty(states), states)
    assert "aten.mm.default" in names
    waits = ("lift_fresh", "_local_scalar_dense")  # Of a number, and for one.
    assert not [x for x in names if any(wait in x for wait in waits)]


@on_torch
@pytest.mark.parametrize("shape", [(3, 40, 6), (1, 6), (40, 6)])
def test_float32_numbers_as_two_bfloat16_ones(monkeypatch, rng, shape):
    """Three products of halves: 16 bits of each operand, sums in float32."""
    monkeypatch.setattr(products, "_torch_splits", lambda x: True)
    monkeypatch.setattr(
        products,
        "_torch_widening_product",  # CPUs have none.
        lambda a, b: a.float() @ b.float(),
    )
    vectors = rng.normal(size=shape) * np.geomspace(0.01, 100.0, 6)
    matrix = rng.normal(size=(6, 6))
    rows = vectors.reshape(-1, 6)
    given = ops.cast(vectors, "float32")
    for found, expected in (
        (products.sum_of_outer_products(given), rows.T @ rows),
        (
            products.matmul(given, ops.cast(matrix, "float32")),
            vectors @ matrix,
        ),
    ):
        assert str(found.dtype) == "torch.float32"
        assert tuple(found.shape) == expected.shape
        error = np.linalg.norm(_float64(found) - expected)
        size = np.linalg.norm(rows) * max(
            np.linalg.norm(rows), np.linalg.norm(matrix)
        )
        # Rounding of the next bits, twice, and the product of these.
        assert error <= 3 * 2.0**-16 * size
        assert error <= 2.0**-14 * np.linalg.norm(expected)
