"""What was measured: table, file, comparison, print."""

import os
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from typing import TYPE_CHECKING

from keras_istar import checks
from keras_istar import report_file
from keras_istar import report_text
from keras_istar.layer_isotropy import LayerIsotropy
from keras_istar.layer_isotropy import check_rows
from keras_istar.report_text import HEADINGS
from keras_istar.version import __version__

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas


@dataclass(frozen=True, repr=False)
class IsotropyReport:
    """Isotropy of a model's hidden states, as `keras_istar.measure` found it.

    Attributes:
        model: Name of the model.
        dim: Width of its hidden states.
        rows: One `LayerIsotropy` for each state, then one for their union.
        shrinkage: ζ of IsoScore*.
        shrinkage_target: What Σ_S of IsoScore* was, in words.
        notes: What the reader has to know besides.
        package_version: Version of keras_istar that measured.

    Raises:
        ValueError: If an attribute is of another type, or the rows differ in
            their values or are not of `dim` dimensions.

    Example:

    >>> inputs = keras.Input((8, 4))
    >>> hidden = keras.layers.Dense(16, name="encoder")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    >>> data = np.random.default_rng(0).normal(size=(32, 8, 4))
    >>> report = keras_istar.measure(
    ...     model, data, layers="encoder", metrics=["isoscore"], verbose=0
    ... )
    >>> 0 < float(report.to_frame().loc["union", "isoscore"]) < 1
    True
    """

    model: str
    dim: int
    rows: tuple[LayerIsotropy, ...]
    shrinkage: float
    shrinkage_target: str
    notes: tuple[str, ...] = ()
    package_version: str = field(default=__version__)

    def __post_init__(self):
        for name in ("model", "shrinkage_target", "package_version"):
            checks.check_text(name, getattr(self, name))
        checks.check_positive_int("dim", self.dim)
        check_rows(self.rows, self.dim)
        checks.check_fraction("shrinkage", self.shrinkage)
        checks.check_tuple("notes", self.notes, str, "a tuple of texts")

    def to_frame(self) -> "pandas.DataFrame":
        """One row a state and one for the union, one column a number.

        The index `layer` holds the names. Besides the columns of `measure`
        there are `points` and `outlier_dimensions`, the latter lists. Needs
        pandas.
        """
        pandas = _import_pandas()
        records = [
            {
                "layer": row.layer,
                "points": row.points,
                **row.values,
                "outlier_dimensions": row.outlier_dimensions,
            }
            for row in self.rows
        ]
        return pandas.DataFrame.from_records(records).set_index("layer")

    def compare(self, other: "IsotropyReport") -> "pandas.DataFrame":
        """`other` minus this report: above zero where `other` has more.

        Args:
            other: Report on another model, or on the same one later.

        Returns:
            Frame of the states and measures that both reports have, without
            IsoScore* if they name different shrinkages or targets of it. Needs
            pandas.

        Raises:
            ValueError: If they have no state or no measure in common.
        """
        if not isinstance(other, IsotropyReport):
            raise ValueError(
                "`other` must be an `IsotropyReport`. "
                f"Received: other={other!r:.200}"
            )
        here, there = self._measures_frame(), other._measures_frame()
        if (self.shrinkage, self.shrinkage_target) != (
            other.shrinkage,
            other.shrinkage_target,
        ):
            here = here.drop(columns="isoscore_star", errors="ignore")
        layers = [name for name in here.index if name in there.index]
        columns = [name for name in here.columns if name in there.columns]
        if not layers or not columns:
            raise ValueError(
                "`other` must share layers and measures with this report. "
                f"Received: other with layers={list(there.index)}, "
                f"measures={list(there.columns)}"
            )
        return there.loc[layers, columns] - here.loc[layers, columns]

    def plot(self) -> "matplotlib.figure.Figure":
        """Isotropy, spectrum and outlier dimensions by layer, as one figure.

        Returns:
            Matplotlib figure with three panels, 180 mm wide, as a page of a
            paper is. Needs matplotlib.
        """
        from keras_istar import plots

        return plots.report_figure(self.rows)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the report as JSON; `load` reads back the very same numbers.

        A file that is there already is replaced only when the new one is
        complete.

        Args:
            path: File to write.
        """
        report_file.write(path, asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "IsotropyReport":
        """Reads a report that `save` has written.

        Args:
            path: File to read.

        Raises:
            ValueError: If the file is none of `save`, or of a later version.
        """
        content = report_file.read(path)
        try:
            rows = tuple(LayerIsotropy(**row) for row in content.pop("rows"))
            version = content.pop("package_version")
            return cls(rows=rows, package_version=version, **content)
        except (KeyError, TypeError, ValueError) as e:
            raise report_file.not_a_report(path) from e

    def __str__(self):
        return report_text.text(self)

    def __repr__(self):
        return (
            f"<IsotropyReport model={self.model!r} "
            f"layers={[row.layer for row in self.rows]}>"
        )

    def _measures_frame(self):
        frame = self.to_frame()
        measures = [n for n in frame.columns if n in HEADINGS]
        return frame[measures]


def _import_pandas():
    try:
        import pandas
    except ImportError as e:
        raise ImportError(
            "`IsotropyReport.to_frame` needs pandas: "
            "`pip install keras-istar[report]`."
        ) from e
    return pandas
