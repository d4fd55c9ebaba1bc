"""Measures and controls the isotropy of a model's hidden representations.

`attach(model)` adds the I-STAR penalty to a Keras model in one line, and
`IStarCallback` keeps its shrinkage covariance and logs isotropy while the model
trains. `measure(model, data)` reports how isotropic each layer is.

Reference: Rudman and Eickhoff, "Stable Anisotropic Regularization", ICLR 2024.
"""

from keras_istar._src.attach.attach import attach
from keras_istar._src.attach.attach import attach_regularizer
from keras_istar._src.attach.attach import detach
from keras_istar._src.callbacks.atomic_backup import AtomicBackup
from keras_istar._src.callbacks.istar_callback import IStarCallback
from keras_istar._src.callbacks.monitor import IsotropyMonitor
from keras_istar._src.compat.keras_data import integer_masks
from keras_istar._src.layers.base import HiddenStateRegularization
from keras_istar._src.layers.cosine import CosineRegularization
from keras_istar._src.layers.isobn import IsotropicBatchNormalization
from keras_istar._src.layers.istar import IStarRegularization
from keras_istar._src.measure.isoscore_metric import IsoScore
from keras_istar._src.measure.layer_isotropy import LayerIsotropy
from keras_istar._src.measure.measure import measure
from keras_istar._src.measure.report import IsotropyReport
from keras_istar._src.score.isoscore import isoscore
from keras_istar._src.score.isoscore import isoscore_from_covariance
from keras_istar._src.score.isoscore import isoscore_star
from keras_istar._src.version import __version__

__all__ = [
    "__version__",
    "AtomicBackup",
    "CosineRegularization",
    "HiddenStateRegularization",
    "IStarCallback",
    "IStarRegularization",
    "IsoScore",
    "IsotropicBatchNormalization",
    "IsotropyMonitor",
    "IsotropyReport",
    "LayerIsotropy",
    "attach",
    "attach_regularizer",
    "detach",
    "integer_masks",
    "isoscore",
    "isoscore_from_covariance",
    "isoscore_star",
    "measure",
]
