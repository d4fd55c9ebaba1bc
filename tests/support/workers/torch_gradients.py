"""The gradient that the package brings, beside that of autodiff, on PyTorch."""

import os
import sys
import unittest.mock

os.environ["KERAS_BACKEND"] = "torch"

import numpy as np
import torch

import keras_istar
from keras_istar._src.compat import products
from keras_istar._src.score import moments

TOKENS, DIM = 7, 5


def make_states(dtype, count=6):
    """States far from zero, some of whose tokens are masked."""
    generator = torch.Generator().manual_seed(0)
    states = [
        3.0 * index + torch.randn(TOKENS, DIM, generator=generator).double()
        for index in range(count)
    ]
    masks = [None, torch.arange(TOKENS) < 5] * (count // 2)
    return [state.to(dtype).requires_grad_() for state in states], masks


def moments_of(masks, centered):
    """Mean and scatter as a function of the states."""

    def function(*states):
        found = moments.union_moments([*states], masks, centered=centered)
        return found.center + found.offset, found.scatter

    return function


def score(masks):
    """IsoScore of all unmasked tokens, as a function of the states."""

    def function(*states):
        found = moments.union_moments([*states], masks)
        return keras_istar.isoscore_from_covariance(moments.covariance(found))

    return function


def finite_differences(results):
    """Compares first and second derivatives with them, in float64."""
    for centered in (False, True):
        states, masks = make_states(torch.float64, 2)
        function = moments_of(masks, centered)
        name = "centered" if centered else "together"
        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            check(function, states)
            results[f"{check.__name__}/{name}"] = np.array(True)


def gradients(function, states):
    value = function(*states)
    found = torch.autograd.grad(value, states)
    assert all(g.dtype == s.dtype for g, s in zip(found, states, strict=True))
    rows = torch.stack([gradient.double() for gradient in found])
    return np.append(rows.numpy().ravel(), value.item())


def by_autodiff(function, states):
    with unittest.mock.patch.object(
        moments,
        "_sums_for_training",
        moments._sums,  # noqa: SLF001
    ):
        return gradients(function, states)


def main(output):
    results = {}
    finite_differences(results)
    for name, dtype, is_on_gpu in (
        ("float32 on a CPU", torch.float32, False),
        ("bfloat16 on a CPU", torch.bfloat16, False),
        ("float32 on a GPU", torch.float32, True),
        ("bfloat16 on a GPU", torch.bfloat16, True),
        ("float16 on a GPU", torch.float16, True),
    ):
        states, masks = make_states(dtype)
        function = score(masks)
        with unittest.mock.patch.object(
            products, "is_on_gpu", lambda tokens, answer=is_on_gpu: answer
        ):
            results[f"custom/{name}"] = gradients(function, states)
            results[f"autodiff/{name}"] = by_autodiff(function, states)
            if dtype == torch.bfloat16:
                compiled = torch.compile(function, backend="aot_eager")
                results[f"compiled/{name}"] = gradients(compiled, states)
    np.savez(output, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
