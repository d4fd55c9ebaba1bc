import subprocess
import sys

import keras
import numpy as np
import oracle
import pytest
import scipy.special
import scipy.stats

import keras_istar
from keras_istar._src.compat import keras_private
from keras_istar._src.layers.probe import HiddenState
from keras_istar._src.measure import measures
from keras_istar._src.measure.measure import measure
from keras_istar._src.measure.running_statistics import RunningSample
from keras_istar._src.measure.running_statistics import Variables


def masking_model(dim=6):
    """A model whose layer `states` outputs the inputs, zeros masked."""
    inputs = keras.Input((None, dim))
    states = keras.layers.Masking(name="states")(inputs)
    return keras.Model(inputs, keras.layers.Dense(1)(states))


@pytest.fixture
def x(rng):
    """Padded sequences in 6 dimensions, one of them wide, one off centre."""
    x = rng.normal(size=(40, 7, 6)) * [1, 2, 30, 1, 0.5, 1] + [0, 0, 0, 9, 0, 0]
    lengths = rng.integers(1, 8, size=40)
    return np.where(np.arange(7)[:, None] < lengths[:, None, None], x, 0.0)


@pytest.fixture
def points(x):
    return x[np.any(x != 0, axis=-1)]


def values_of(report, layer="states"):
    return {row.layer: row for row in report.rows}[layer].values


def measure_states(x, metrics="all", **options):
    return measure(masking_model(), x, "states", measures=metrics, **options)


def eigenvalues(points):
    return np.linalg.eigvalsh(np.cov(points, rowvar=False))


def pairwise_cosine(points):
    units = points / np.linalg.norm(points, axis=1, keepdims=True)
    cosines = units @ units.T
    return np.mean(cosines[~np.eye(len(points), dtype=bool)])


def partition(points):
    directions = np.linalg.svd(points)[2]
    logs = [
        scipy.special.logsumexp(sign * points @ direction)
        for direction in directions
        for sign in (1, -1)
    ]
    return np.exp(min(logs) - max(logs))


def twonn(points):
    skdim = pytest.importorskip("skdim")
    return skdim.id.TwoNN().fit(np.unique(points, axis=0)).dimension_


def top_share(points, top):
    variances = np.sort(np.var(points, axis=0))
    return np.sum(variances[-top:]) / np.sum(variances)


DEFINITIONS = {
    "isoscore": lambda p: oracle.score(oracle.covariance(p)),
    "isoscore_star": lambda p: oracle.score(oracle.shrunk(p, 0.3)),
    "participation_ratio": lambda p: (
        np.sum(eigenvalues(p)) ** 2 / np.sum(eigenvalues(p) ** 2)
    ),
    "effective_rank": lambda p: np.exp(scipy.stats.entropy(eigenvalues(p))),
    "average_cosine": pairwise_cosine,
    "partition_isotropy": partition,
    "partition_tokens": len,
    "top_1_variance": lambda p: top_share(p, 1),
    "top_3_variance": lambda p: top_share(p, 3),
    "top_10_variance": lambda p: 1.0,
    "outliers": lambda p: 1,
    "mean_norm": lambda p: np.mean(np.linalg.norm(p, axis=1)),
    "twonn_dimension": twonn,
    "twonn_tokens": len,
}


@pytest.mark.parametrize("column", DEFINITIONS)
def test_measure_follows_its_definition(column, x, points):
    points = points.astype("float32").astype("float64")
    if column.startswith("partition"):  # Else exp overflows in the oracle.
        x, points = x / 30, points / 30
    name = next(n for n, m in measures.MEASURES.items() if column in m.names)
    report = measure_states(x, [name], shrinkage=0.3)
    expected = DEFINITIONS[column](points)
    for layer in ("states", "union"):
        assert values_of(report, layer)[column] == pytest.approx(
            expected, rel=2e-4
        )


def test_definitions_cover_all_columns(x):
    pytest.importorskip("skdim")
    assert list(values_of(measure_states(x))) == list(DEFINITIONS)


def test_report_describes_the_covariance(x, points):
    (row, union) = measure_states(x, "isoscore").rows
    assert row.tokens == union.tokens == len(points)
    np.testing.assert_allclose(row.means, points.mean(0), rtol=1e-4, atol=1e-5)
    variances = np.var(points, axis=0, ddof=1)
    np.testing.assert_allclose(row.variances, variances, rtol=1e-4)
    np.testing.assert_allclose(
        row.spectrum, eigenvalues(points)[::-1], rtol=1e-4
    )
    assert row.outlier_dimensions == [2]


def test_outliers_are_listed_widest_first():
    variances = np.array([1.0, 60.0, 1, 90, 1, 1, 1, 1] + [1] * 30)
    assert measures.outlier_dimensions(variances).tolist() == [3, 1]
    at_the_limit = np.array([5.0, 0, 0, 0, 0])
    assert measures.outlier_dimensions(at_the_limit).tolist() == []


def test_equal_points_have_no_isotropy():
    values = values_of(measure_states(np.ones((4, 5, 6))))
    for column in ("isoscore", "isoscore_star", "effective_rank"):
        assert values[column] == 0.0
    assert values["average_cosine"] == pytest.approx(1.0, abs=1e-6)
    assert values["outliers"] == 0


def test_twonn_counts_copies_once(rng):
    pytest.importorskip("skdim")
    points = rng.normal(size=(50, 6))
    dimension, used = measures.twonn(np.concatenate([points, points[:20]]))
    assert used == 50
    assert dimension == pytest.approx(twonn(points))
    assert np.isnan(measures.twonn(points[:9])[0])


def test_zero_vectors_have_cosine_zero(rng):
    points = rng.normal(size=(5, 6))
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Identity(name="states")(inputs))
    padded = np.concatenate([points, np.zeros((3, 6))])
    report = measure(model, padded, "states", measures="average_cosine")
    expected = pairwise_cosine(points) * (5 * 4) / (8 * 7)
    cosine = values_of(report)["average_cosine"]
    assert cosine == pytest.approx(expected, abs=1e-6)


def test_far_off_centre_states_keep_their_digits(rng):
    points = rng.normal(size=(40, 7, 6)) * [1, 2, 3, 4, 5, 6]
    shift = np.array([0, 0, 0, 4096.0, 0, 0])
    near, far = (
        values_of(measure_states(p, "isoscore"))["isoscore"]
        for p in (points, points + shift)
    )
    assert far == pytest.approx(near, rel=1e-3)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batches_do_not_matter(x, batch_size):
    whole = values_of(measure_states(x, batch_size=40))
    parts = values_of(measure_states(x, batch_size=batch_size))
    for column, value in whole.items():
        assert parts[column] == pytest.approx(value, rel=1e-4), column


def test_pass_ends_with_the_batch_that_has_enough(x):
    report = measure_states(
        np.ones_like(x), "isoscore", max_tokens=100, batch_size=10
    )
    assert report.rows[0].tokens == 140


def test_union_joins_all_layers(x):
    inputs = keras.Input((None, 6))
    wide = keras.layers.Rescaling(3.0, name="wide")(inputs)
    model = keras.Model(inputs, keras.layers.Rescaling(2.0, name="top")(wide))
    report = measure(model, x, ["wide", "top"])
    assert [row.layer for row in report.rows] == ["wide", "top", "union"]
    flat = x.reshape(-1, 6)
    points = np.concatenate([3 * flat, 6 * flat]).astype("float32")
    union = values_of(report, "union")
    for column in ("isoscore", "effective_rank", "mean_norm", "twonn_tokens"):
        expected = (
            len(np.unique(points, axis=0))
            if column == "twonn_tokens"
            else DEFINITIONS[column](points)
        )
        assert union[column] == pytest.approx(expected, rel=1e-4), column


class TestSample:
    def draw(self, batches, size=20, seed=0, mask=None):
        sample = RunningSample(Variables(), 2, size, seed)
        for batch in batches:
            sample.add(HiddenState(batch, mask))
        return sample.value()

    def test_keeps_all_points_while_there_is_room(self, rng):
        batches = rng.normal(size=(3, 6, 2)).astype("float32")
        sample = self.draw(batches)
        assert sample.shape == (18, 2)
        np.testing.assert_array_equal(
            np.sort(sample, axis=0), np.sort(batches.reshape(-1, 2), axis=0)
        )

    def test_is_deterministic(self, rng):
        batches = rng.normal(size=(9, 6, 2)).astype("float32")
        np.testing.assert_array_equal(self.draw(batches), self.draw(batches))
        assert np.any(self.draw(batches) != self.draw(batches, seed=1))

    def test_leaves_masked_points_out(self, rng):
        batches = rng.normal(size=(2, 6, 2)).astype("float32")
        batches[:, 2:] = np.nan
        mask = np.arange(6) < 2
        sample = self.draw(batches, mask=mask)
        assert sample.shape == (4, 2)
        assert np.all(np.isfinite(sample))

    def test_treats_all_of_the_stream_alike(self):
        # 200 points, 20 places: each has chance 0.1, 60 times over.
        stream = np.arange(400, dtype="float32").reshape(10, 20, 2)
        drawn = [self.draw(stream, seed=seed) for seed in range(60)]
        assert all(len(np.unique(sample, axis=0)) == 20 for sample in drawn)
        position = np.concatenate(drawn)[:, 0] / 2
        counts = np.histogram(position, bins=10, range=(0, 200))[0]
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def hidden_states(backbone, inputs):
    """Outputs of the two blocks, in NumPy, and the mask."""
    outputs = [
        backbone.get_layer(f"transformer_layer_{i}").output for i in range(2)
    ]
    states = keras.Model(backbone.inputs, outputs).predict(inputs, verbose=0)
    return states, np.asarray(inputs["padding_mask"], bool)


def test_task_takes_raw_strings(tiny_classifier, sentences):
    task, (texts, _) = tiny_classifier(), sentences
    report = measure(task, list(texts), measures="isoscore", batch_size=5)
    inputs = task.preprocessor(list(texts))
    states, mask = hidden_states(task.backbone, inputs)
    assert [row.layer for row in report.rows] == ["layer_0", "layer_1", "union"]
    clouds = [state[mask] for state in states]
    for row, cloud in zip(
        report.rows, [*clouds, np.concatenate(clouds)], strict=True
    ):
        assert row.tokens == len(cloud)
        expected = oracle.score(oracle.covariance(cloud))
        assert row.values["isoscore"] == pytest.approx(expected, rel=1e-4)


def test_backbone_takes_dicts_of_arrays(tiny_classifier, sentences):
    task, (texts, _) = tiny_classifier(), sentences
    inputs = task.preprocessor(list(texts))
    inputs = {k: keras.ops.convert_to_numpy(v) for k, v in inputs.items()}
    a = measure(task.backbone, inputs, measures="isoscore", batch_size=5)
    b = measure(task, list(texts), measures="isoscore", batch_size=5)
    assert a.rows == b.rows


def test_dataset_with_labels(x, rng):
    tf = pytest.importorskip("tensorflow")
    labels = rng.normal(size=(40, 7, 1))
    data = tf.data.Dataset.from_tensor_slices((x, labels)).batch(8)
    assert measure_states(data).rows[0].tokens == int(np.sum(np.any(x, -1)))


def test_model_stays_as_it_was(tiny_classifier, sentences):
    task, (texts, labels) = tiny_classifier(), sentences
    task.compile("sgd", "sparse_categorical_crossentropy")
    before = task.predict(texts, verbose=0)
    attributes = set(vars(task.backbone)) | set(vars(task))
    layers = keras_private.find_layers(task, keras.layers.Layer)
    measure(task, texts)
    np.testing.assert_array_equal(task.predict(texts, verbose=0), before)
    assert set(vars(task.backbone)) | set(vars(task)) == attributes
    assert keras_private.find_layers(task, keras.layers.Layer) == layers
    task.fit(texts, labels, verbose=0)


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="Keras runs no recomputed model in inference on TensorFlow",
)
def test_model_that_recomputes_itself(x, points):
    with keras.RematScope(mode="full"):
        model = masking_model()
    before = dict(vars(model))
    report = measure(model, x, "states", measures="isoscore")
    assert report.rows[0].tokens == len(points)
    assert vars(model) == before


def test_attached_models_compare_with_others(tiny_classifier, sentences):
    task, (texts, labels) = tiny_classifier(), sentences
    before = measure(task, texts, measures="isoscore_star", shrinkage=0.4)
    layer = keras_istar.attach(task, layers=[0, 1], strength=-1.0)
    layer.set_shrinkage_covariance(np.diag(np.arange(1.0, 9.0)))
    after = measure(task, texts, measures="isoscore_star", shrinkage=0.4)
    assert before.shrinkage_target == after.shrinkage_target
    assert "isotropic" in after.shrinkage_target
    states, mask = hidden_states(task.backbone, task.preprocessor(list(texts)))
    expected = oracle.score(oracle.shrunk(states[1][mask], 0.4))
    for report in (before, after):
        star = values_of(report, "layer_1")["isoscore_star"]
        assert star == pytest.approx(expected, rel=1e-4)
    task.compile("sgd", "sparse_categorical_crossentropy")
    assert "isoscore" in task.fit(texts, labels, verbose=0).history


def test_only_what_is_asked_for_is_computed(x, monkeypatch):
    def fail(cloud):
        raise AssertionError("computed")

    for name in set(measures.MEASURES) - {"mean_norm", "outliers"}:
        broken = measures.MEASURES[name]._replace(compute=fail)
        monkeypatch.setitem(measures.MEASURES, name, broken)
    values = values_of(measure_states(x, ["outliers", "mean_norm"]))
    assert sorted(values) == ["mean_norm", "outliers"]


def test_missing_package(x, monkeypatch):
    absent = measures.MEASURES["twonn"]._replace(needs_package="no_such_module")
    monkeypatch.setitem(measures.MEASURES, "twonn", absent)
    with pytest.raises(ImportError, match=r"keras-istar\[report\]"):
        measure_states(x, ["twonn"])
    report = measure_states(x)
    assert "twonn_dimension" not in values_of(report)
    assert "Left out" in str(report) and "twonn" in str(report)


def test_tokens_that_are_all_masked(x):
    for count in (0, 1):
        x = np.zeros_like(x)
        x[:count, 0] = 1.0
        with pytest.raises(ValueError, match=f"two unmasked.*with {count} in"):
            measure_states(x)


def test_subclassed_models(x):
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ValueError, match="Received: model of type Own"):
        measure(Own(), x)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_states_that_are_not_finite(x, points, value):
    x[0, 0, 0] = x[1, 0, 0] = x[1, 0, 1] = value
    model = masking_model()
    attributes = set(vars(model))
    message = f"NaN or infinity in.*'states': '2 of {len(points)} tokens'"
    with pytest.raises(ValueError, match=message):
        measure(model, x, "states")
    assert set(vars(model)) == attributes


def test_states_too_large_to_square(x):
    with pytest.raises(ValueError, match="squared in float32.*'states'"):
        measure_states(x * 1e25)


class Subclassed(keras.Model):
    """Calls a regularizer itself."""

    def __init__(self):
        super().__init__()
        self.first = keras.layers.Dense(4, "tanh")
        self.istar = keras_istar.IStarRegularization(-1.0, name="mine")
        self.last = keras.layers.Dense(1)

    def call(self, x, training=None):
        x = self.first(x)
        x = self.istar([x, 2.0 * x], training=training)
        return self.last(x)


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("layers", ["all", "mine"])
def test_subclassed_model_that_holds_a_regularizer(rng, built, layers):
    model = Subclassed()
    x = rng.normal(size=(16, 5, 3)).astype("float32")
    if built:
        model(x)
    report = keras_istar.measure(
        model, x, layers, measures=["isoscore", "mean_norm"], verbose=0
    )
    states = keras.ops.convert_to_numpy(model.first(x)).reshape(-1, 4)
    first, second, union = report.rows
    assert (first.layer, second.layer) == model.istar.state_names
    assert (first.tokens, union.tokens) == (80, 160)
    expected = oracle.score(oracle.covariance(states))
    assert first.values["isoscore"] == pytest.approx(expected, abs=1e-5)
    assert second.values["mean_norm"] == pytest.approx(
        2 * first.values["mean_norm"], rel=1e-5
    )


def test_subclassed_model_without_or_with_other_regularizers(rng):
    x = rng.normal(size=(16, 5, 3)).astype("float32")
    with pytest.raises(ValueError, match=r"\['mine'\]"):
        keras_istar.measure(Subclassed(), x, "other", verbose=0)
    with pytest.raises(ValueError, match="`mask` and `pooling` must be None"):
        keras_istar.measure(Subclassed(), x, mask=False, verbose=0)


def test_warnings_are_shown_after_measuring():
    """scikit-dimension turns them off as it is imported, the first time."""
    pytest.importorskip("skdim")
    program = (
        "import warnings; import numpy as np; "
        "from keras_istar._src.measure.measures import twonn; "
        "before = list(warnings.filters); "
        "twonn(np.random.default_rng(0).normal(size=(20, 3))); "
        "assert warnings.filters == before"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
