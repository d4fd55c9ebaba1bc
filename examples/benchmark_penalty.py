"""The penalty alone, forward and backward, against floor and other ways."""

import importlib.util
from collections.abc import Callable

import numpy as np
from benchmark_compile import compiled_gradient
from benchmark_compile import compiled_product
from benchmark_models import singular_values
from benchmark_models import textbook_score
from benchmark_report import Row
from benchmark_report import timing_row
from benchmark_timing import alternate
from keras import ops

import keras_istar

_OURS = "keras_istar"
_FLOOR = "arithmetic floor"
_EIGH = "concatenate, covariance, eigenvalues, autodiff"
_SVD = "concatenate, covariance, singular values, autodiff"
_PYPI = "IsoScore 2.0.1 (PyTorch on CPU)"

_TOKENS_IN_A_STATE = 4096  # A batch of 32 sentences of length 128.


def run(quick: bool) -> list[Row]:
    """Rows for each number of tokens and width."""
    sizes = (64, 128) if quick else (512, 4096, 49_152)
    widths = (8, 16) if quick else (384, 768, 2048)
    edge = 64 if quick else 3072
    return [row for n in sizes for dim in widths for row in _case(n, dim, edge)]


def penalty(states: list) -> Callable[[list], object]:
    """The attached layer's penalty as a function of states like these."""
    layer = keras_istar.IStarRegularization(strength=1.0)
    layer(states)  # Builds it.

    def function(states):
        layer(states, training=True)
        return layer.losses[-1]

    return function


def hidden_states(n: int, dim: int, width: int = _TOKENS_IN_A_STATE) -> list:
    """Random states with `n` tokens in all, at most `width` in each."""
    rng = np.random.default_rng(0)
    spread = np.exp(rng.normal(size=dim))
    shape = (max(1, n // width), min(n, width), dim)
    return list((spread * rng.normal(size=shape)).astype("float32"))


def _case(n, dim, edge):
    points = hidden_states(n, dim)
    states = [ops.convert_to_tensor(state) for state in points]
    square = ops.convert_to_tensor(np.ones((edge, edge), "float32"))
    sides = {
        _OURS: compiled_gradient(penalty(states), states),
        _FLOOR: compiled_product(square, square),
        _EIGH: compiled_gradient(textbook_score, states),
        _SVD: compiled_gradient(_score_by_svd, states),
    }
    if importlib.util.find_spec("IsoScore") is not None:
        sides[_PYPI] = _isoscore_package(points)
    seconds = alternate(sides, rounds=25, budget=20.0)
    case = f"n = {n:,}, d = {dim:,}"
    # 4 n d² operations, at the rate of the large product's 2 edge³.
    floor = 4 * n * dim**2 / (2 * edge**3)
    at_most = 1.5 if n > 40_000 else None
    at_least = 3.0 if n == 4096 else 1.0
    rows = [timing_row(case, seconds, _OURS, _FLOOR, floor, at_most=at_most)]
    for other in (_EIGH, _SVD, _PYPI):
        if other in seconds:
            rows.append(
                timing_row(case, seconds, other, _OURS, at_least=at_least)
            )
    return rows


def _score_by_svd(states):
    return textbook_score(states, spectrum=singular_values)


def _isoscore_package(points):
    """The published implementation of I-STAR's score, and its gradient."""
    import torch
    from IsoScore.IsoScore import istar

    cloud = torch.tensor(np.concatenate(points))
    identity = torch.eye(cloud.shape[1])
    score = istar().IsoScore_star

    def run():
        leaf = cloud.clone().requires_grad_()
        score(leaf, identity, 0.2, is_eval=False).backward()

    return run
