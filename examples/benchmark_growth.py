"""How the penalty's cost grows: exponents fitted to measured times."""

import numpy as np
from benchmark_compile import compiled_gradient
from benchmark_penalty import hidden_states
from benchmark_penalty import penalty
from benchmark_report import Row
from benchmark_timing import alternate
from benchmark_timing import milliseconds
from keras import ops


def run(quick: bool) -> list[Row]:
    """One row for each of layers, tokens and width."""
    if quick:
        series = {
            "layers": [(k, k, 32, 8) for k in (1, 2)],
            "tokens": [(n, 1, n, 8) for n in (32, 64)],
            "width": [(d, 1, 32, d) for d in (8, 16)],
        }
    else:
        series = {
            "layers": [(k, k, 4096, 384) for k in (3, 6, 12, 24)],
            "tokens": [(n, 1, n, 768) for n in (4096, 8192, 16_384, 32_768)],
            "width": [(d, 1, 8192, d) for d in (512, 768, 1024, 1536, 2048)],
        }
    return [_fit(what, points) for what, points in series.items()]


def _fit(what, points):
    """Slope of the logarithm of time over that of what grows."""
    sides = {grown: _gradient(*shape) for grown, *shape in points}
    seconds = alternate(sides, rounds=15, budget=30.0)
    times = [milliseconds(seconds[grown]) for grown in sides]
    slope = np.polyfit(np.log(list(sides)), np.log(times), 1)[0]
    case = f"{what} from {points[0][0]:,} to {points[-1][0]:,}"
    side = ", ".join(f"{time:.3g}" for time in times) + " ms"
    return Row(case, side, float(slope), "exponent")


def _gradient(layers, tokens, dim):
    points = hidden_states(layers * tokens, dim, tokens)
    states = [ops.convert_to_tensor(state) for state in points]
    return compiled_gradient(penalty(states), states)
