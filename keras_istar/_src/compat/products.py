"""Matrix products in the types that accelerators multiply fast."""

import functools
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
    shape = *a.shape[:-1], b.shape[-1]
    return _torch_product(a.flatten(0, -2), b).reshape(shape)


def _torch_product(a, b):
    import torch

    if torch.is_grad_enabled() or not (a.is_cuda and _torch_widens()):
        # Autodiff would differentiate the rounding as well.
        wide = torch.promote_types(a.dtype, torch.float32)
        return torch.matmul(a.to(wide), b.to(wide))
    if a.dtype == torch.float32:
        # The three passes of JAX's `precision="high"` in one product. PyTorch
        # can choose TF32 only for the whole program.
        (a, a_rest), (b, b_rest) = _torch_halves(a), _torch_halves(b)
        a = torch.cat([a, a, a_rest], dim=1)
        b = torch.cat([b, b_rest, b])
    if a.dtype == torch.bfloat16:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.matmul(a, b)


def _torch_halves(x):
    """The leading bits of float32 numbers, and the next, as bfloat16."""
    import torch

    leading = x.to(torch.bfloat16)
    return leading, (x - leading).to(torch.bfloat16)


@functools.cache
def _torch_widens():
    """Whether this PyTorch can multiply bfloat16 into float32."""
    import torch

    return hasattr(torch.ops.aten.mm, "dtype")
