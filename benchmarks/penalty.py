"""The penalty alone, forward and backward, against floors and other ways."""

import functools
import importlib.util
import traceback
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

import keras_istar
from benchmarks import backends
from benchmarks import variants
from benchmarks.backends import BACKEND
from benchmarks.report import Row
from benchmarks.report import said
from benchmarks.report import timing_row
from benchmarks.timing import alternate
from benchmarks.timing import is_late
from benchmarks.timing import milliseconds
from benchmarks.timing import wait_for_turn

OURS = "keras_istar"
_ARITHMETIC = "arithmetic floor"
TRAFFIC = "reading and writing the states"
_TORCH_COMPILE = "keras_istar, torch.compile"
REWRITE = "a few lines of JAX, bfloat16 products"
_EIGH = "concatenate, covariance, eigenvalues, autodiff"
_ISOSCORE = "IsoScore 2.0.1"
# Seconds for timing what has been compiled.
_RESERVE = 60.0
TOKENS_IN_A_STATE = 4096  # A batch of 32 sentences of length 128.

if BACKEND == "jax":
    from benchmarks import jax_rewrite


class _Case(NamedTuple):
    tokens: int
    dim: int
    dtype: str = "float32"
    ours: str = OURS


def rows(device: str, tiny: bool) -> list[Row]:
    """Rows for each number of tokens, width and dtype."""
    # At this size of a product, and of a copy, the device shows its rates.
    edge = 64 if tiny else 8192 if device == "gpu" else 3072
    floors, found = {}, []

    def sides(case):
        if case.dtype not in floors:
            floors[case.dtype] = _floors(case.dtype, edge)
        return floors[case.dtype] | _sides(case, device)

    cases = _cases(device, tiny)
    if device == "cpu":
        for case in cases:
            found += said(_case_rows(case, device, edge, sides(case)))
        return found
    # Nothing is timed while something is compiled.
    prepared = [(c, sides(c)) for c in cases if not is_late(_RESERVE)]
    prepared = [(c, _those_that_run(c, able)) for c, able in prepared]
    wait_for_turn()
    for case, able in prepared:
        if case.ours in able and not is_late():
            found += said(_case_rows(case, device, edge, able))
    return found


def _cases(device, tiny):
    if device == "cpu":
        sizes = (64, 128) if tiny else (512, 4096, 49_152)
        widths = (8, 16) if tiny else (384, 768, 2048)
        return [_Case(n, dim) for n in sizes for dim in widths]
    sizes = [(4096, 768), (49_152, 768), (49_152, 2048)]
    if BACKEND == "torch":
        sizes = [(64, 8), (12_288, 8)] if tiny else sizes
        return [
            _Case(*size, ours=ours)
            for ours in (OURS, _TORCH_COMPILE)
            for size in sizes
        ]
    # Those that the targets are about, first.
    sizes = [(49_152, 768), (49_152, 2048), (4096, 768)]
    sizes += [(49_152, 384), (49_152, 4096), (393_216, 768)]
    if tiny:
        sizes = [(64, 8), (12_288, 8)]
    cases = [_Case(*size, "bfloat16") for size in sizes]
    return cases + [_Case(*size) for size in sizes[:2]]


def _floors(dtype, edge):
    """A large product and a large copy, of random numbers: zeros are faster."""
    a, b, copied = (
        ops.cast(keras.random.normal(shape, seed=seed), dtype)
        for seed, shape in enumerate([(edge, edge)] * 2 + [(4 * edge, edge)])
    )
    return {
        _ARITHMETIC: backends.compiled(ops.matmul, a, b),
        TRAFFIC: backends.compiled(lambda x: x * 2, copied),
    }


def _sides(case, device):
    """Functions that compute the penalty, ours first."""
    states = hidden_states(case.tokens, case.dim, case.dtype)
    ours = backends.compiled_gradient(
        penalty(states), states, torch_compile=case.ours == _TORCH_COMPILE
    )
    return {case.ours: ours} | _other_ways(case, device, states)


def _those_that_run(case, sides):
    """Sides, compiled and warm; those that fail are shown and left out."""
    able = {}
    for name, run in sides.items():
        if is_late(_RESERVE):
            break
        try:
            run(1)
        except Exception:  # The others are worth having.
            print(f"{case}, {name} fails:", flush=True)
            traceback.print_exc()
        else:
            able[name] = run
    return able


def _case_rows(case, device, edge, sides):
    budget, shortest = (20.0, 0.0) if device == "cpu" else (1.5, 0.01)
    seconds = alternate(sides, 25, budget, shortest)
    # 4 n d² operations at the rate of the large product's 2 edge³.
    size = case.tokens * case.dim
    _scale(seconds, _ARITHMETIC, 2 * size * case.dim / edge**3)
    # Both passes read n d numbers, and the backward pass writes as many; the
    # copy reads and writes.
    _scale(seconds, TRAFFIC, 1.5 * size / (4 * edge**2))
    floors = (_ARITHMETIC, TRAFFIC)
    higher = max(floors, key=lambda side: milliseconds(seconds[side]))
    name = f"n = {case.tokens:,}, d = {case.dim:,}"
    if device == "gpu":
        name += f", {case.dtype}, {backends.FRAMEWORK}"
    rows = []
    for floor in floors:
        limit = _at_most(case, device) if floor == higher else None
        rows.append(timing_row(name, seconds, case.ours, floor, at_most=limit))
    for side in sides:
        if side in (case.ours, *floors):
            continue
        is_other = side in (_EIGH, _ISOSCORE)
        limit = _at_least(case, device) if is_other else None
        rows.append(timing_row(name, seconds, side, case.ours, at_least=limit))
    return rows


def _scale(seconds, side, factor):
    seconds[side] = [run.times(factor) for run in seconds[side]]


def _at_most(case, device):
    """Largest multiple of the higher floor."""
    if case.tokens < 49_152 or BACKEND == "torch":
        return None
    if device == "cpu" or case.dim >= 2048:
        return 1.5
    return 2.5 if case.dim >= 768 else None


def _at_least(case, device):
    """Smallest multiple of our time that other ways take."""
    if device == "cpu":
        return 3.0 if case.tokens == 4096 else 1.0
    if BACKEND == "torch":
        return 3.0
    return 20.0 if case.dim == 768 else None


def penalty(states: list) -> Callable[[list], object]:
    """The attached layer's penalty as a function of states like these."""
    layer = keras_istar.IStarRegularization(strength=1.0)
    layer.build([tuple(state.shape) for state in states])

    def function(states):
        layer(states, training=True)
        return layer.losses[-1]

    return function


def hidden_states(
    n: int, dim: int, dtype: str = "float32", width: int = TOKENS_IN_A_STATE
) -> list:
    """Random states with `n` tokens in all, at most `width` in each."""
    spread = ops.exp(keras.random.normal((dim,), seed=0))
    shape = (min(n, width), dim)
    return [
        ops.cast(spread * keras.random.normal(shape, seed=1 + i), dtype)
        for i in range(max(1, n // width))
    ]


def _other_ways(case, device, states):
    """Functions that compute the same, or nearly so."""
    ways = {}
    if BACKEND == "torch" and case.ours == OURS:
        ways |= _variants(case, states)
    if device == "gpu" and BACKEND == "jax":
        if case.dtype == "bfloat16":
            ways[REWRITE] = backends.compiled_gradient(
                jax_rewrite.isoscore, states
            )
            ways |= _variants(case, states)
        # The others would take longer than all the rest.
        if (case.tokens, case.dim) not in ((49_152, 768), (64, 8)):
            return ways
    ways[_EIGH] = backends.compiled_gradient(textbook_score, states)
    if case.dtype == "float32" and importlib.util.find_spec("IsoScore"):
        ways[_ISOSCORE] = _isoscore_package(states)
    return ways


def _variants(case, states):
    """The package's kernel with other choices, if they are asked for."""
    if not variants.IS_ASKED_FOR:
        return {}
    ways = {}
    for name in variants.NAMES:
        is_other = (
            case.tokens > TOKENS_IN_A_STATE
            if "at once" in name
            else case.dtype == "bfloat16"
        )
        if is_other:
            with variants.variant(name):
                run = backends.compiled_gradient(penalty(states), states)
            if BACKEND == "torch":  # Which traces nothing.
                run = _inside(name, run)
            ways[f"{OURS}, {name}"] = run
    return ways


def _inside(name, run):
    def run_inside(calls):
        with variants.variant(name):
            run(calls)

    return run_inside


def textbook_score(states: list):
    """IsoScore as published: one cloud, its covariance, its eigenvalues."""
    points = ops.cast(ops.concatenate(states), "float32")
    points = points - ops.mean(points, axis=0)
    n, dim = points.shape
    covariance = ops.matmul(ops.transpose(points), points) / (n - 1)
    values = ops.eigh(covariance)[0]
    normalized = np.sqrt(dim) * values / ops.norm(values)
    defect = ops.norm(normalized - 1.0) / np.sqrt(2.0 * (dim - np.sqrt(dim)))
    used = ops.square(dim - defect**2 * (dim - np.sqrt(dim))) / dim**2
    return (dim * used - 1.0) / (dim - 1.0)


def _isoscore_package(states):
    """The published implementation with its gradient, where PyTorch runs."""

    @functools.cache
    def cloud():
        import torch

        points = np.concatenate([ops.convert_to_numpy(s) for s in states])
        return torch.tensor(points, device=_torch_device())

    def call():
        import torch
        from IsoScore.IsoScore import istar

        leaf = cloud().clone().requires_grad_()
        identity = torch.eye(leaf.shape[1], device=leaf.device)
        istar().IsoScore_star(leaf, identity, 0.2, is_eval=False).backward()
        if leaf.is_cuda:
            torch.cuda.synchronize()

    return backends.repeated(call)


def _torch_device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def growth(device: str, tiny: bool) -> list[Row]:
    """Exponents fitted to times: a row each for layers, tokens and width."""
    if tiny:
        series = {
            "layers": [(k, k * 32, 8, 32) for k in (1, 2)],
            "tokens": [(n, n, 8, n) for n in (32, 64)],
            "width": [(d, 32, d, 32) for d in (8, 16)],
        }
    else:
        tokens = (4096, 8192, 16_384, 32_768)
        widths = (512, 768, 1024, 1536, 2048)
        series = {
            "layers": [(k, k * 4096, 384, 4096) for k in (3, 6, 12, 24)],
            "tokens": [(n, n, 768, n) for n in tokens],
            "width": [(d, 8192, d, 8192) for d in widths],
        }
    return [_fit(what, sizes) for what, sizes in series.items()]


def _fit(what, sizes):
    """Slope of the logarithm of time over that of what grows."""
    sides = {}
    for grown, n, dim, width in sizes:
        states = hidden_states(n, dim, width=width)
        sides[grown] = backends.compiled_gradient(penalty(states), states)
    seconds = alternate(sides, rounds=15, budget=30.0)
    times = [milliseconds(seconds[grown]) for grown in sides]
    slope = np.polyfit(np.log(list(sides)), np.log(times), 1)[0]
    case = f"{what} from {sizes[0][0]:,} to {sizes[-1][0]:,}"
    side = ", ".join(f"{time:.3g}" for time in times) + " ms"
    return Row(case, side, float(slope), "exponent")
