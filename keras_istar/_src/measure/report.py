"""The report that `measure` returns: rows, table, file and figure."""

import json
import math
import os
import pathlib
import textwrap
import uuid
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import TYPE_CHECKING
from typing import Any

import numpy as np
from keras import ops

from keras_istar._src import validation
from keras_istar._src.measure import measures
from keras_istar._src.measure.layer_isotropy import LayerIsotropy
from keras_istar._src.measure.measures import COLUMNS
from keras_istar._src.measure.measures import MEASURES
from keras_istar._src.measure.measures import OUTLIER_RULE
from keras_istar._src.measure.measures import MeasureInputs
from keras_istar._src.measure.running_statistics import TokenStatistics
from keras_istar._src.score.moments import Moments
from keras_istar._src.version import __version__

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

ISOTROPIC_TARGET = "the isotropic covariance of the same trace"
_FORMAT = "keras_istar.IsotropyReport"
_VERSION = 2
_PAGES = (".html", ".htm")
_MOST_OUTLIERS = 8  # Named for each layer; `to_frame` has all.
_WIDTH = 79


@dataclass(frozen=True, repr=False)
class IsotropyReport:
    """Isotropy of a model's hidden states, as `keras_istar.measure` found it.

    Attributes:
        model: Name of the model.
        dim: Width of its hidden states.
        rows: One `LayerIsotropy` for each state, then one for their union.
        shrinkage: ζ of IsoScore*.
        shrinkage_target: What Σ_S of IsoScore* was, in words.
        notes: Further sentences for the reader.
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
    ...     model, data, layers="encoder", measures=["isoscore"], verbose=0
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
            validation.check_text(name, getattr(self, name))
        validation.check_positive_int("dim", self.dim)
        _check_rows(self.rows, self.dim)
        validation.check_fraction("shrinkage", self.shrinkage)
        validation.check_tuple("notes", self.notes, str, "a tuple of texts")

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a frame with a row for each state and for their union.

        The index `layer` holds the names. Besides the columns of `measure`
        there are `tokens`, and `outlier_dimensions`, which are lists.

        Raises:
            ImportError: If pandas is not installed.
        """
        pandas = _import_pandas()
        records = [
            {
                "layer": row.layer,
                "tokens": row.tokens,
                **row.values,
                "outlier_dimensions": row.outlier_dimensions,
            }
            for row in self.rows
        ]
        return pandas.DataFrame.from_records(records).set_index("layer")

    @property
    def between_layers(self) -> float:
        """Share of the union's variance that lies between the states' means.

        The rest lies within the states. Moving the means apart changes the
        isotropy of the union, but not of any state.
        """
        *states, union = [
            (row.tokens - 1) * sum(row.variances) for row in self.rows
        ]
        return share_between(sum(states), union)

    def compare(self, other: "IsotropyReport") -> "pandas.DataFrame":
        """Subtracts this report from `other`: positive where `other` has more.

        Args:
            other: Report on another model, or on the same one later.

        Returns:
            A frame of the states and measures that both reports have, without
            IsoScore* if its shrinkage or the target of that differs.

        Raises:
            ValueError: If they have no state or no measure in common.
            ImportError: If pandas is not installed.
        """
        if not isinstance(other, IsotropyReport):
            raise ValueError(
                "`other` must be an `IsotropyReport`. "
                f"Received: other={other!r:.200}"
            )
        here, there = _measures_frame(self), _measures_frame(other)
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
        """Draws isotropy, spectrum and outlier dimensions by layer.

        Returns:
            A Matplotlib figure with three panels, 180 mm wide, as wide as a
            page of a paper.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        from keras_istar._src.measure import plots

        return plots.report_figure(self.rows)

    def save(
        self,
        path: str | os.PathLike,
        before: "IsotropyReport | None" = None,
    ) -> None:
        """Writes the report as JSON, or as a page if `path` ends in `.html`.

        `load` reads back the very same numbers from JSON. The page has figures,
        tables and words, and needs no other file or network. An existing file
        is replaced only when the new one is complete.

        Args:
            path: File to write. An ending of `.htm`, or of capitals, makes a
                page as well; digits are no ending, as in `"minilm-v1.0"`.
            before: An earlier report that the page shows beside this one, with
                the differences. For `.html` only.

        Raises:
            ValueError: If `path` is no path or has another ending, or
                `before` is no report or is given for another kind of file.
            FileNotFoundError: If the folder does not exist.
            ImportError: If a package that the page needs is not installed.
        """
        name = validation.check_path("path", path).lower()
        suffix = pathlib.Path(name).suffix
        if suffix[1:].isdigit():  # A version: "minilm-v1.0".
            suffix = ""
        if suffix not in ("", ".json", *_PAGES):
            raise ValueError(
                "`path` must end in .json, or in .html for a page. "
                f"Received: path={path!r}"
            )
        is_page = suffix in _PAGES
        if before is None:
            reports = [self]
        elif is_page and isinstance(before, IsotropyReport):
            reports = [before, self]
        else:
            raise ValueError(
                "`path` must end in .html where `before` is given, and "
                "`before` must be an `IsotropyReport`. "
                f"Received: path={path!r}, before={before!r:.200}"
            )
        if is_page:
            from keras_istar._src.measure import report_page

            _write_whole(path, report_page.render(reports))
        else:
            _write_whole(path, _to_json(asdict(self)))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "IsotropyReport":
        """Reads a report that `save` has written.

        Args:
            path: File to read.

        Raises:
            ValueError: If `save` has not written the file, or a later version
                has.
        """
        content = _read(path)
        try:
            rows = tuple(LayerIsotropy(**row) for row in content.pop("rows"))
            version = content.pop("package_version")
            return cls(rows=rows, package_version=version, **content)
        except (KeyError, TypeError, ValueError) as e:
            raise _not_a_report(path) from e

    def __str__(self):
        return _text(self)

    def __repr__(self):
        return (
            f"<IsotropyReport model={self.model!r} "
            f"layers={[row.layer for row in self.rows]}>"
        )


def _measures_frame(report: IsotropyReport) -> "pandas.DataFrame":
    frame = report.to_frame()
    return frame[[name for name in frame.columns if name in COLUMNS]]


def describe(
    layer: str,
    names: Sequence[str],
    tokens: TokenStatistics,
    shrinkage: float,
    shrinkage_covariance: np.ndarray | None = None,
) -> LayerIsotropy:
    """The named measures of tokens, their spectrum and their dimensions.

    Args:
        layer: Name of the hidden state.
        names: Names of measures, as `measures.choose` gives them.
        tokens: Statistics of the tokens, all that the measures need.
        shrinkage: ζ of IsoScore*.
        shrinkage_covariance: Σ_S of IsoScore*, `(dim, dim)`; None for the
            isotropic matrix of the same trace.

    Raises:
        ValueError: If the covariance of the tokens is not finite.
    """
    mean, inputs = _mean_and_inputs(
        layer, tokens, shrinkage, shrinkage_covariance
    )
    variances = np.diag(inputs.covariance)
    return LayerIsotropy(
        layer=layer,
        tokens=inputs.count,
        values=measures.compute(names, inputs),
        spectrum=measures.spectrum(inputs.covariance).tolist(),
        means=mean.tolist(),
        variances=variances.tolist(),
        outlier_dimensions=measures.outlier_dimensions(variances).tolist(),
    )


def measure_values(
    layer: str, names: Sequence[str], tokens: TokenStatistics, shrinkage: float
) -> dict[str, float]:
    """The numbers that `describe` finds, without the rest of the row."""
    _, inputs = _mean_and_inputs(layer, tokens, shrinkage, None)
    return measures.compute(names, inputs)


def _mean_and_inputs(layer, tokens, shrinkage, shrinkage_covariance):
    mean, covariance = mean_and_covariance(tokens.moments)
    if not np.all(np.isfinite(covariance)):
        raise ValueError(
            "The hidden states of `model` must be small enough to be squared "
            f"in float32. Received: a covariance that is not in {layer!r}"
        )
    if shrinkage_covariance is None:
        dim = len(covariance)
        shrinkage_covariance = np.trace(covariance) / dim * np.eye(dim)
    shrunk = (1.0 - shrinkage) * covariance + shrinkage * shrinkage_covariance
    inputs = MeasureInputs(int(tokens.moments.count), covariance, shrunk)
    if tokens.directions is not None:
        norm_sum, unit_sum, num_nonzero, _ = tokens.directions
        inputs = replace(
            inputs,
            norm_sum=norm_sum,
            unit_sum=unit_sum,
            num_nonzero=num_nonzero,
        )
    if tokens.sample is not None:
        inputs = replace(inputs, sample=as_float64(tokens.sample))
    return mean, inputs


def share_between(within: float, total: float) -> float:
    """Share of a sum of squares that is not within the parts of a cloud."""
    return max(0.0, 1.0 - within / total) if total > 0 else 0.0


def mean_and_covariance(tokens: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Mean `(dim,)` and covariance `(dim, dim)` of tokens, in float64.

    Dimensions that are constant to rounding have covariance 0. Neither is
    finite where the moments are not.
    """
    count, center, offset, scatter = map(as_float64, tokens)
    mean = center + offset
    covariance = scatter / max(count - 1.0, 1.0)
    with np.errstate(invalid="ignore"):
        return mean, _resolved(covariance, mean)


def _resolved(covariance, mean):
    """The covariance with 0 for dimensions constant to float32's rounding."""
    rounding = 4 * np.finfo("float32").eps * np.abs(mean)
    varies = np.diag(covariance) > rounding**2
    return covariance * varies * varies[:, None]


def as_float64(tensor: Any) -> np.ndarray:
    """Array of the values of a tensor."""
    return np.asarray(ops.convert_to_numpy(tensor), "float64")


def _to_json(content: dict[str, Any]) -> str:
    """The text of a file that `_read` reads.

    Floats are written with all their digits. JSON has no NaN: the numbers in
    `content["rows"][...]["values"]` may be NaN, and become null.
    """
    content = {"format": _FORMAT, "version": _VERSION, **content}
    return json.dumps(_without_nan(content), allow_nan=False, indent=1)


def _write_whole(path: str | os.PathLike, text: str) -> None:
    """Writes a file; if that fails, a file that was there stays."""
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            "The folder of `path` must exist: make it first. "
            f"Received: path={str(path)!r}"
        )
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        # A name may hold characters that UTF-8 cannot encode.
        temporary.write_bytes(text.encode("utf-8", "replace"))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: str | os.PathLike) -> dict[str, Any]:
    """Reads what `_to_json` has made.

    Raises:
        ValueError: If the file holds something else, or is of a later version.
    """
    path = validation.check_path("path", path)
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as e:
        raise _not_a_report(path) from e
    if not isinstance(content, dict) or content.pop("format", "") != _FORMAT:
        raise _not_a_report(path)
    version = content.pop("version", None)
    if type(version) is not int or version < 1 or not content.get("rows"):
        raise _not_a_report(path)
    if version > _VERSION:
        raise ValueError(
            "`path` must not be of a later version than this keras_istar "
            f"reads, {_VERSION}. Received: version={version}"
        )
    try:
        if isinstance(content["notes"], list):
            content["notes"] = tuple(content["notes"])
        for row in content["rows"]:
            if version == 1:
                _rename_points(row)
            row["values"] = {
                name: math.nan if value is None else value
                for name, value in row["values"].items()
            }
    except (AttributeError, KeyError, TypeError) as e:
        raise _not_a_report(path) from e
    return content


def _rename_points(row):
    """Gives a row of version 1 the names of version 2."""
    row["tokens"] = row.pop("points")
    row["values"] = {
        name.replace("_points", "_tokens"): value
        for name, value in row["values"].items()
    }


def _not_a_report(path: str | os.PathLike) -> ValueError:
    """The error for a file that holds something else."""
    return ValueError(
        "`path` must be a file that `IsotropyReport.save` has written as "
        "JSON; a page cannot be read. "
        f"Received: path={os.fspath(path)!r}"
    )


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    is_nan = isinstance(value, float) and math.isnan(value)
    return None if is_nan else value


def _text(report: "IsotropyReport") -> str:
    """The report as text, as `print` shows it."""
    lines = [f"Isotropy of {report.model!r}, {report.dim} dimensions", ""]
    lines += [*_table(report.rows), ""]
    for sentence in [*_explanations(report), *report.notes]:
        lines += textwrap.wrap(sentence, _WIDTH, subsequent_indent="  ")
    return "\n".join(lines).rstrip()


def _table(rows):
    """Lines of text, columns aligned."""
    columns = [name for name in COLUMNS if name in rows[0].values]
    cells = [["layer", "tokens", *(COLUMNS[name].heading for name in columns)]]
    for row in rows:
        numbers = [_shown(name, row.values[name]) for name in columns]
        cells.append([row.layer, f"{row.tokens:,}", *numbers])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
        )
        for line in cells
    ]


def _shown(name, value):
    if math.isnan(value):
        return "-"
    text = format(value, COLUMNS[name].format)
    # Three digits would show a small score as 0.
    return text if float(text) or not value else f"{value:.0e}"


def _explanations(report) -> Iterator[str]:
    if any("isoscore_star" in row.values for row in report.rows):
        yield (
            f"IsoScore*: shrinkage {report.shrinkage:g} towards "
            f"{report.shrinkage_target}."
        )
    for measure in MEASURES.values():
        column = measure.sample_column
        sizes = [r.values[column] for r in report.rows if column in r.values]
        if sizes:
            (shown,) = measure.columns.values()
            yield (f"{shown.heading}: from a sample of {_range(sizes)} tokens.")
    if len(report.rows) > 2:
        yield (
            f"Between layers: {report.between_layers:.0%} of the variance of "
            "the union lies between the means of the layers."
        )
    outliers = [
        f"{row.layer} {_listed(row.outlier_dimensions)}"
        for row in report.rows
        if row.outlier_dimensions
    ]
    if outliers:
        yield (
            f"Outliers: dimensions with over {OUTLIER_RULE:g} times the "
            f"average variance: {'; '.join(outliers)}."
        )


def _range(sizes):
    low, high = min(sizes), max(sizes)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _listed(dimensions):
    shown = ", ".join(map(str, dimensions[:_MOST_OUTLIERS]))
    more = len(dimensions) - _MOST_OUTLIERS
    return f"{shown} and {more} more" if more > 0 else shown


def _check_rows(rows: Any, dim: int) -> None:
    """Raises unless `rows` can be those of a report on `dim` dimensions."""
    validation.check_tuple(
        "rows", rows, LayerIsotropy, "a tuple of LayerIsotropy"
    )
    widths = [len(row.spectrum) for row in rows]
    if not rows or set(widths) != {dim}:
        raise ValueError(
            f"`rows` must be one or more of `dim` numbers, dim={dim}. "
            f"Received: rows of {widths} numbers"
        )
    names = [list(row.values) for row in rows]
    if any(set(other) != set(names[0]) for other in names):
        raise ValueError(
            "`rows` must have the same values. "
            f"Received: rows with values={names!r:.200}"
        )


def _import_pandas():
    try:
        import pandas
    except ImportError as e:
        raise ImportError(
            "`IsotropyReport.to_frame` needs pandas: "
            "`pip install keras-istar[report]`."
        ) from e
    return pandas
