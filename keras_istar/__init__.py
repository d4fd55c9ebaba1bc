from keras_istar.versions import check_versions

check_versions()

from keras_istar.callbacks import IStarCallback
from keras_istar.cosine import CosineRegularization
from keras_istar.isobn import IsotropicBatchNormalization
from keras_istar.isoscore_metric import IsoScore
from keras_istar.layer import IStarRegularization
from keras_istar.measurement import measure
from keras_istar.report import IsotropyReport
from keras_istar.scores import isoscore
from keras_istar.scores import isoscore_from_covariance
from keras_istar.scores import isoscore_star
from keras_istar.surgery import attach
from keras_istar.surgery import attach_regularizer
from keras_istar.surgery import detach
from keras_istar.version import __version__

__all__ = [
    "__version__",
    "CosineRegularization",
    "IStarCallback",
    "IStarRegularization",
    "IsoScore",
    "IsotropicBatchNormalization",
    "IsotropyReport",
    "attach",
    "attach_regularizer",
    "detach",
    "isoscore",
    "isoscore_from_covariance",
    "isoscore_star",
    "measure",
]
