"""Matrix products on the units that accelerators have for them."""

import functools
from typing import Any

import keras
from keras import ops

from keras_istar._src.types import Tensor


def matmul(a: Any, b: Any) -> Any:
    """`a @ b`, to the digits of float32 or nearly so, also on an accelerator.

    bfloat16 operands give a float32 product. One bfloat16 pass over float32
    operands would put the score off by up to 2e-5 and its gradient by 2e-3,
    even though deviations from the mean are multiplied; three passes, or the
    TF32 of recent GPUs, are as good as float32. TensorFlow has no such choice
    for one product: on a TPU, turn off
    `tf.config.experimental.enable_tensor_float_32_execution` for all.
    """
    if keras.backend.backend() == "jax":
        from jax import numpy

        if _is_bfloat16(a):
            return numpy.matmul(a, b, preferred_element_type="float32")
        return numpy.matmul(a, b, precision="high")
    if keras.backend.backend() == "torch":
        return _torch_matmul(ops.convert_to_tensor(a), ops.convert_to_tensor(b))
    return ops.matmul(a, b)


def product_dtype(tokens: Tensor) -> str:
    """Type in which deviations of these tokens from their mean are multiplied.

    That is float64 for float64, float32 for all others, but for bfloat16 on a
    GPU: bfloat16, which multiplies at twice the rate of TF32 and moves half the
    bytes. Rounding a deviation y to b significant bits puts it off by at most
    2⁻ᵇ |y|, and y² adds up to no more than the squares of the tokens do: so it
    costs at most as much, in the mean square, as rounding the tokens to b bits
    has cost already. Not so on a CPU, which would widen the operands again, and
    not with float16, whose range deviations and their gradient may leave: TF32
    has as many bits as float16.

    The platform is that of the device which JAX takes by default. A program
    that is compiled for another one is right as well, if not as quick.
    """
    dtype = keras.backend.standardize_dtype(tokens.dtype)
    if dtype == "bfloat16" and is_on_gpu(tokens):
        return "bfloat16"
    return "float64" if dtype == "float64" else "float32"


_STATES_AT_ONCE = 4


def states_at_once(tokens: Tensor) -> int:
    """Number of states like this one whose deviations make one product.

    The product of a state has few tiles for the many cores of a GPU, but to
    put deviations of states together takes a copy of them.
    """
    return _STATES_AT_ONCE if is_on_gpu(tokens) else 1


def is_on_gpu(tokens: Tensor) -> bool:
    """Whether JAX or PyTorch computes with these tokens on a GPU."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() == "gpu"
    if keras.backend.backend() == "torch":
        return tokens.is_cuda
    return False


def _is_bfloat16(x):
    return keras.backend.standardize_dtype(x.dtype) == "bfloat16"


def _torch_matmul(a, b):
    import torch

    if torch.is_grad_enabled() or not (a.is_cuda and _torch_widens()):
        # Autodiff would differentiate the rounding as well.
        wide = torch.promote_types(a.dtype, torch.float32)
        return torch.matmul(a.to(wide), b.to(wide))
    if a.dtype == torch.float32:
        # What `high` precision is elsewhere, in one product: PyTorch has TF32
        # for the whole program only.
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
    """Whether this PyTorch multiplies bfloat16 into float32."""
    import torch

    return hasattr(torch.ops.aten.mm, "dtype")
