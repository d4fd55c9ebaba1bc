"""What TensorBoard shows of an epoch: scores, numbers, spectra, a picture."""

import importlib.util
import warnings
from collections.abc import Iterator
from collections.abc import Mapping

import numpy as np
from keras import ops

from keras_istar import measures
from keras_istar import plots
from keras_istar.event_files import EventFiles
from keras_istar.event_files import Panel
from keras_istar.layer import IStarRegularization
from keras_istar.layer_isotropy import LayerIsotropy
from keras_istar.layer_isotropy import as_float64
from keras_istar.layer_isotropy import describe
from keras_istar.layer_isotropy import mean_and_covariance
from keras_istar.measures import Cloud
from keras_istar.moments import Moments

_GROUP = "isotropy"

_SCORE = "IsoScore of the hidden states, from 0 to 1, as in the logs."
_NUMBERS = {
    "strength": "λ, the factor of the penalty, at the end of the epoch.",
    "shrinkage": "ζ, the weight of Σ_S in the score, at the end of the epoch.",
}
_SPECTRUM = (
    "log10 of the eigenvalues of the covariance of the hidden states. Those "
    "that float32's rounding could make are left out."
)
_REPORT = "Isotropy, spectrum and outlier dimensions by layer."

Clouds = Mapping[IStarRegularization, Mapping[str, Moments]]


class Dashboard:
    """Shows epochs in TensorBoard.

    Args:
        log_dir: Folder of its event files.

    Raises:
        ImportError: If TensorFlow or TensorBoard is not installed.
    """

    def __init__(self, log_dir: str):
        self._files = EventFiles(log_dir)
        self._can_draw = importlib.util.find_spec("matplotlib") is not None
        if not self._can_draw:
            warnings.warn(
                "`log_dir` will hold no pictures, which need matplotlib: "
                "`pip install keras-istar[report]`.",
                stacklevel=3,
            )

    def show(
        self, epoch: int, scores: Mapping[str, float], clouds: Clouds
    ) -> None:
        """Writes one epoch.

        Args:
            epoch: Its index.
            scores: What is in the logs.
            clouds: For each layer the moments of its states by name, those of
                their union as `"union"`.
        """
        if self._files.has_failed:
            return
        panels = [_panel("scalar", *item, _SCORE) for item in scores.items()]
        for layer, states in clouds.items():
            panels += _numbers(layer)
            rows = _describe(layer, states)
            if rows:
                panels += _spectra(layer, rows)
                panels += self._picture(epoch, layer, rows)
        self._files.write(epoch, panels)

    def _picture(self, epoch, layer, rows) -> list[Panel]:
        """The picture of a layer, if it can be drawn."""
        if not self._can_draw:
            return []
        try:
            images = plots.report_image(rows)[None]
        except Exception as error:  # Training is worth more than a picture.
            self._can_draw = False
            warnings.warn(
                f"From step {epoch} on, no pictures are written to `log_dir`: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )
            return []
        return [_panel("image", layer.log_name("report"), images, _REPORT)]

    def close(self) -> None:
        """Ends the file, if there is one; `show` would begin another."""
        self._files.close()


def _panel(kind, name, value, description):
    return Panel(kind, f"{_GROUP}/{name}", value, description)


def _numbers(layer) -> Iterator[Panel]:
    for name, description in _NUMBERS.items():
        value = getattr(layer, name)
        yield _panel("scalar", layer.log_name(name), value, description)


def _spectra(layer, rows) -> Iterator[Panel]:
    for row in rows:
        name = layer.log_name(f"spectrum_{row.layer}")
        logarithms = np.log10(measures.above_rounding(row.spectrum))
        yield _panel("histogram", name, logarithms, _SPECTRUM)


def _describe(
    layer: IStarRegularization, states: Mapping[str, Moments]
) -> list[LayerIsotropy]:
    """A row for each state, the union last; none if any is not finite."""
    # Copies, for what a strategy mirrors is not a tensor.
    target = as_float64(ops.copy(layer.shrinkage_covariance.value))
    has_target = bool(ops.copy(layer.has_shrinkage_covariance.value) > 0)
    names = ["isoscore", "isoscore_star"] if has_target else ["isoscore"]
    rows = []
    for name in sorted(states, key="union".__eq__):
        mean, covariance = mean_and_covariance(states[name])
        if not np.all(np.isfinite(covariance)):
            return []
        shrunk = (1 - layer.shrinkage) * covariance + layer.shrinkage * target
        cloud = Cloud(int(states[name].count), covariance, shrunk)
        rows.append(describe(name, names, cloud, mean))
    return rows
