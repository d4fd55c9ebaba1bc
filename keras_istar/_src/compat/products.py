"""Matrix products in the types that accelerators multiply fast."""

from typing import Any

import keras
from keras import ops

from keras_istar._src.types import Tensor


def matmul(a: Any, b: Any) -> Any:
    """Returns `a @ b` in about the precision of float32, on any device.

    `a` has the shape `(..., k)` and two dimensions or more, `b` has `(k, m)`.

    bfloat16 operands give a float32 product. One bfloat16 pass over float32
    operands would put the score off by up to 2e-5 and its gradient by 2e-3,
    even though deviations from the mean are multiplied; three passes, or the
    TF32 of recent GPUs, are as good as float32. TensorFlow cannot choose the
    precision of one product; on a TPU, turn off
    `tf.config.experimental.enable_tensor_float_32_execution`, which holds for
    all products.
    """
    if keras.backend.backend() == "jax":
        from jax import numpy

        return numpy.matmul(a, b, **_jax_options(a))
    if keras.backend.backend() == "torch":
        return _torch_matmul(ops.convert_to_tensor(a), ops.convert_to_tensor(b))
    return ops.matmul(a, b)


def sum_of_outer_products(vectors: Tensor) -> Tensor:
    """Sum of the outer products of vectors with themselves, as by `matmul`.

    Args:
        vectors: `(..., dim)`. JAX may shard any axis but the last over devices,
            which then exchange nothing but their results.

    Returns:
        Tensor of shape `(dim, dim)`.
    """
    if keras.backend.backend() == "jax":
        from jax import numpy

        axes = tuple(range(vectors.ndim - 1))
        return numpy.tensordot(
            vectors, vectors, (axes, axes), **_jax_options(vectors)
        )
    if keras.backend.backend() == "torch":
        return _torch_sum_of_outer_products(vectors)
    flat = vectors
    if len(vectors.shape) > 2:
        flat = ops.reshape(vectors, (-1, vectors.shape[-1]))
    return matmul(ops.transpose(flat), flat)


def product_dtype(tokens: Tensor) -> str:
    """Type in which deviations of these tokens from their mean are multiplied.

    float64 for float64, bfloat16 for bfloat16 on a GPU, else float32.

    A GPU multiplies bfloat16 at twice the rate of TF32 and moves half the
    bytes. Rounding a deviation y to b significant bits changes it by at most
    2⁻ᵇ |y|. The squares of the deviations add up to no more than those of the
    tokens, so in the mean square this rounding costs at most as much as the
    rounding of the tokens to b bits did. A CPU would widen the operands again.
    Deviations of float16 tokens, and their gradient, may leave the range of
    float16; TF32 has as many bits.

    The platform is that of JAX's default device. A program that is compiled
    for another platform is correct, but may be slower.
    """
    dtype = keras.backend.standardize_dtype(tokens.dtype)
    if dtype == "bfloat16" and is_on_gpu(tokens):
        return "bfloat16"
    return "float64" if dtype == "float64" else "float32"


_STATES_AT_ONCE = 4
# 128 MB of deviations in float32; stacking them and their product take several
# times as much.
_NUMBERS_AT_ONCE = 2**25


def states_at_once(tokens: Tensor) -> int:
    """Number of hidden states like this one to multiply in one product.

    The product of one state has too few tiles for the many cores of a GPU.
    Joining states copies their deviations, so elsewhere each has its own.
    PyTorch joins more, for its time is that of launching operations.
    """
    if not is_on_gpu(tokens):
        return 1
    if keras.backend.backend() == "torch":
        return max(1, _NUMBERS_AT_ONCE // max(1, tokens.numel()))
    return _STATES_AT_ONCE


def gradients_at_once(tokens: Tensor) -> int:
    """Number of hidden states to compute the gradients of in one product.

    The product for one state has tiles enough, and XLA would copy each gradient
    out of a joint one.
    """
    return 1 if keras.backend.backend() == "jax" else states_at_once(tokens)


def is_on_gpu(tokens: Tensor) -> bool:
    """Whether JAX or PyTorch computes with these tokens on a GPU."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() == "gpu"
    if keras.backend.backend() == "torch":
        return tokens.is_cuda
    return False


def _jax_options(x):
    if keras.backend.standardize_dtype(x.dtype) == "bfloat16":
        return {"preferred_element_type": "float32"}
    return {"precision": "high"}


def _torch_matmul(a, b):
    import torch

    rows = a.flatten(0, -2)
    if not _torch_splits(a):
        wide = torch.promote_types(a.dtype, torch.float32)
        product = torch.matmul(rows.to(wide), b.to(wide))
    elif a.dtype == torch.bfloat16:
        product = _torch_widening_product(rows, b)
    else:
        # The three passes of JAX's `precision="high"` in one product. PyTorch
        # can choose TF32 only for the whole program.
        leading, rest = _torch_halves(b).chunk(2, dim=1)
        product = _torch_widening_product(
            _torch_halves(rows, copies=2), torch.cat([leading, rest, leading])
        )
    return product.reshape(*a.shape[:-1], b.shape[-1])


def _torch_sum_of_outer_products(vectors):
    import torch

    rows = vectors.flatten(0, -2)
    if rows.dtype != torch.float32 or not _torch_splits(rows):
        return _torch_matmul(rows.T, rows)
    # The same three passes, of which two are the transposes of each other.
    halves = _torch_halves(rows)
    leading, _ = halves.chunk(2, dim=1)
    square, cross = _torch_widening_product(leading.T, halves).chunk(2, dim=1)
    return square + cross + cross.T


def _torch_splits(x):
    """Whether to multiply numbers as bfloat16 ones, which GPUs do fast."""
    import torch

    # Autodiff would differentiate the rounding as well.
    return (
        x.is_cuda
        and x.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_grad_enabled()
        and hasattr(torch.ops.aten.mm, "dtype")  # It can widen the product.
    )


def _torch_widening_product(a, b):
    import torch

    return torch.mm(a, b, out_dtype=torch.float32)


def _torch_halves(x, copies=1):
    """Leading bits of float32 numbers, and the next ones, as bfloat16.

    Args:
        x: `(rows, dim)`.
        copies: How often to write the leading bits.

    Returns:
        Tensor of shape `(rows, (copies + 1) * dim)`, the next bits last.
    """
    import torch

    rows, dim = x.shape
    halves = x.new_empty((rows, (copies + 1) * dim), dtype=torch.bfloat16)
    *all_leading, rest = halves.chunk(copies + 1, dim=1)
    for leading in all_leading:
        leading.copy_(x)
    rest.copy_(x - all_leading[0])  # `torch.compile` knows no `out=` here.
    return halves
