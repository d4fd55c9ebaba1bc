"""Colours and markers of the methods in the pictures of a study."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib import color_sequences
from matplotlib import colormaps
from study_method import Method

Color = tuple[float, ...]

_BLUE_AND_ORANGE = 2  # The first colours of tab10: they mean strengths here.
_OTHER_COLORS = (
    *color_sequences["tab10"][_BLUE_AND_ORANGE:],
    *color_sequences["tab20b"],
)
_MARKERS = "osD^vP*X"


def styles(methods: Iterable[Method]) -> dict[str, dict[str, Any]]:
    """Colour and marker of every method by its name, in order of strength.

    I-STAR with its defaults is orange for strengths below 0, black for 0 and
    blue above, the darker the stronger.
    """
    ordered = sorted(set(methods), key=_rank)
    plain = [method for method in ordered if method.is_plain]
    colors = _strength_colors({method.strength for method in plain})
    others = [method for method in ordered if not method.is_plain]
    chosen = {method: colors[method.strength] for method in plain}
    for i, method in enumerate(others):
        chosen[method] = _OTHER_COLORS[i % len(_OTHER_COLORS)]
    return {
        str(method): {
            "color": chosen[method],
            "marker": _MARKERS[i % len(_MARKERS)],
        }
        for i, method in enumerate(ordered)
    }


def _rank(method):
    return (method.regularizer != "istar", method.strength or 0.0, str(method))


def _strength_colors(strengths: set[float]) -> dict[float, Color]:
    below = sorted(x for x in strengths if x < 0)
    above = sorted((x for x in strengths if x > 0), reverse=True)
    return {
        0.0: (0.0, 0.0, 0.0, 1.0),
        **_shades(below, "Oranges"),
        **_shades(above, "Blues"),
    }


def _shades(strengths, colormap):
    depths = np.linspace(0.9, 0.45, len(strengths))
    return dict(
        zip(strengths, map(tuple, colormaps[colormap](depths)), strict=True)
    )
