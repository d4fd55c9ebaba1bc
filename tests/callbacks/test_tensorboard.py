import dataclasses
import importlib.util
import io
import sys
import warnings

import keras
import numpy as np
import oracle
import pytest
from workers.launch import free_port
from workers.launch import run_worker
from workers.launch import run_workers

import keras_istar
from keras_istar._src.callbacks import monitor
from keras_istar._src.measure import plots
from keras_istar._src.measure.streaming_pass import StatesPass

event_accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator"
)
tensor_util = pytest.importorskip("tensorboard.util.tensor_util")
pytest.importorskip("tensorflow")

SCORES = [
    "isoscore_union",
    "isoscore_lower",
    "isoscore_upper",
    "between_layers",
]
SPECTRA = ["spectrum_union", "spectrum_lower", "spectrum_upper"]
NUMBERS = ["strength", "shrinkage"]


@pytest.fixture
def data(rng):
    x = (rng.normal(size=(32, 6, 5)) * [1, 2, 3, 4, 5]).astype("float32")
    return x, rng.normal(size=(32, 6, 1)).astype("float32")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "logs"


def _model(learning_rate=0.05, **kwargs):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((None, 5))
    # Orthogonal weights keep all eigenvalues well above rounding.
    lower = keras.layers.Dense(4, "tanh", True, "orthogonal", name="lower")
    upper = keras.layers.Dense(4, None, True, "orthogonal", name="upper")
    upper = upper(lower(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(upper))
    kwargs = {"strength": -1.0} | kwargs
    layer = keras_istar.attach(model, ["lower", "upper"], **kwargs)
    model.compile(keras.optimizers.SGD(learning_rate), "mse")
    return model, layer


def _callback(data, **kwargs):
    return keras_istar.IStarCallback(data[0], 10_000, verbose=0, **kwargs)


def _fit(model, data, istar_callback, **kwargs):
    kwargs = {"batch_size": 8, "shuffle": False, "verbose": 0} | kwargs
    return model.fit(*data, callbacks=istar_callback, **kwargs).history


def _events(folder):
    events = event_accumulator.EventAccumulator(str(folder), {"tensors": 0})
    return events.Reload()


def _tags(folder):
    return set(_events(folder).Tags()["tensors"])


def _series(folder, tag):
    """Steps and values of a tag."""
    found = _events(folder).Tensors(tag)
    return (
        [event.step for event in found],
        [tensor_util.make_ndarray(event.tensor_proto) for event in found],
    )


def _in_group(*names):
    return {f"isotropy/{name}" for name in names}


def _clouds(model, x):
    lower = np.asarray(model.get_layer("lower")(x))
    upper = np.asarray(model.get_layer("upper")(lower))
    clouds = {"lower": lower.reshape(-1, 4), "upper": upper.reshape(-1, 4)}
    return {"union": np.concatenate(list(clouds.values())), **clouds}


def test_scalars_are_those_of_the_history(data, folder):
    model, _ = _model()
    history = _fit(model, data, [_callback(data, log_dir=folder)], epochs=3)
    assert _tags(folder) == _in_group(*SCORES, *NUMBERS, *SPECTRA, "report")
    for name in SCORES:
        steps, values = _series(folder, f"isotropy/{name}")
        assert steps == [0, 1, 2]
        assert values == pytest.approx(history[name], abs=1e-7)


def test_scores_are_those_of_the_states(data, folder):
    model, _ = _model()
    _fit(model, data, [_callback(data, log_dir=str(folder))])
    for name, cloud in _clouds(model, data[0]).items():
        _, values = _series(folder, f"isotropy/isoscore_{name}")
        expected = oracle.score(oracle.covariance(cloud))
        assert values == pytest.approx([expected], abs=1e-5)


def test_schedules_are_seen(data, folder):
    model, layer = _model(shrinkage=0.5)

    def schedule(epoch, logs):
        layer.strength, layer.shrinkage = 0.25 * epoch, 0.5 / (1 + epoch)

    _fit(
        model,
        data,
        [
            _callback(data, log_dir=folder),
            keras.callbacks.LambdaCallback(on_epoch_begin=schedule),
        ],
        epochs=5,
        initial_epoch=2,
    )
    steps, values = _series(folder, "isotropy/strength")
    assert steps == [2, 3, 4]
    assert values == [0.5, 0.75, 1.0]
    _, values = _series(folder, "isotropy/shrinkage")
    assert values == pytest.approx([0.5 / 3, 0.5 / 4, 0.5 / 5])


def test_histogram_covers_the_eigenvalues(data, folder):
    model, _ = _model(learning_rate=0.0)
    _fit(model, data, [_callback(data, log_dir=folder)], epochs=2)
    for name, cloud in _clouds(model, data[0]).items():
        logarithms = np.log10(np.linalg.eigvalsh(oracle.covariance(cloud)))
        steps, values = _series(folder, f"isotropy/spectrum_{name}")
        assert steps == [0, 1]
        for left, right, count in (value.T for value in values):
            assert left[0] == pytest.approx(logarithms[0], abs=1e-2)
            assert right[-1] == pytest.approx(logarithms[-1], abs=1e-2)
            expected, _ = np.histogram(logarithms, len(count))
            np.testing.assert_array_equal(count, expected)


def test_eigenvalues_that_rounding_makes_are_left_out(data, folder):
    inputs = keras.Input((None, 5))
    narrow = keras.layers.Dense(2, use_bias=False)(inputs)
    wide = keras.layers.Dense(8, name="wide")(narrow)
    model = keras.Model(inputs, keras.layers.Dense(1)(wide))
    keras_istar.attach(model, "wide", strength=-1.0)
    model.compile("sgd", "mse")
    _fit(model, data, [_callback(data, log_dir=folder)])
    _, (histogram,) = _series(folder, "isotropy/spectrum_wide")
    assert np.sum(histogram[:, 2]) == 2


def test_image_is_the_figure_of_the_report(data, folder):
    image = pytest.importorskip("matplotlib.image")
    model, layer = _model(shrinkage=0.9)
    _fit(model, data, [_callback(data, log_dir=folder)])
    steps, ((width, height, png),) = _series(folder, "isotropy/report")
    assert steps == [0]
    shown = image.imread(io.BytesIO(png), format="png")
    assert shown.shape == (int(height), int(width), 3) == (220, 1020, 3)
    report = keras_istar.measure(
        model,
        data[0],
        ["lower", "upper"],
        measures=["isoscore"],
        verbose=0,
    )
    # In training, IsoScore* shrinks towards Σ_S, which a report does not know.
    outputs = [model.get_layer(n).output for n in ("lower", "upper")]
    states = keras.Model(model.input, outputs).predict(data[0], verbose=0)
    clouds = [x.reshape(-1, x.shape[-1]) for x in states]
    target = np.asarray(layer.shrinkage_covariance.value)
    stars = [
        oracle.score(oracle.shrunk(cloud, 0.9, target))
        for cloud in [*clouds, np.concatenate(clouds)]
    ]
    rows = tuple(
        dataclasses.replace(row, values=row.values | {"isoscore_star": star})
        for row, star in zip(report.rows, stars, strict=True)
    )
    report = dataclasses.replace(report, rows=rows)
    buffer = io.BytesIO()
    figure = plots.report_figure(report.rows, for_card=True)
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    expected = image.imread(buffer)[..., :3]
    assert np.mean(np.any(shown != expected, axis=-1)) < 0.01
    assert np.mean(np.any(expected != 1, axis=-1)) > 0.03


def test_image_shows_both_scores(data, folder, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    draw = plots.report_image
    monkeypatch.setattr(
        plots, "report_image", lambda rows: drawn.append(rows) or draw(rows)
    )
    model, layer = _model(shrinkage=0.9)
    _fit(model, data, [_callback(data, log_dir=folder)])
    target = np.asarray(keras.ops.convert_to_tensor(layer.shrinkage_covariance))
    ((*states, union),) = drawn
    assert [row.layer for row in states] == ["lower", "upper"]
    for row in (*states, union):
        covariance = oracle.covariance(_clouds(model, data[0])[row.layer])
        shrunk = 0.1 * covariance + 0.9 * target
        assert row.values == pytest.approx(
            {
                "isoscore": oracle.score(covariance),
                "isoscore_star": oracle.score(shrunk),
            },
            abs=1e-5,
        )


def test_no_pass_more(data, folder, monkeypatch):
    passes = []
    run = StatesPass.run
    monkeypatch.setattr(
        StatesPass, "run", lambda self: passes.append(1) or run(self)
    )
    model, _ = _model()
    _fit(model, data, [_callback(data, log_dir=folder)], epochs=3)
    assert len(passes) == 1 + 3


def test_without_log_dir_there_is_no_file(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, _ = _model()
    _fit(model, data, [_callback(data)])
    assert list(tmp_path.rglob("*")) == []


def test_no_file_before_there_is_something_to_write(data, folder):
    model, _ = _model()
    seen = []

    class Spy(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(folder.exists())

    spy = Spy()
    _fit(model, data, [_callback(data, log_dir=folder), spy], epochs=2)
    assert seen == [False, True]
    empty = data[0][:0], data[1][:0]
    elsewhere = folder / "elsewhere"
    with pytest.raises(ValueError, match="`data` must hold"):
        _fit(model, data, [_callback(empty, log_dir=elsewhere)])
    assert not elsewhere.exists()


class Killed(Exception):
    pass


def test_interrupted_training_leaves_all_of_it_readable(data, folder):
    def kill(epoch, logs):
        if epoch == 2:
            raise Killed

    model, _ = _model()
    callback = _callback(data, log_dir=folder)
    killer = keras.callbacks.LambdaCallback(on_epoch_begin=kill)
    with pytest.raises(Killed):
        _fit(model, data, [callback, killer], epochs=4)
    for name in (*SCORES, *NUMBERS, *SPECTRA, "report"):
        steps, values = _series(folder, f"isotropy/{name}")
        assert steps == [0, 1] and len(values) == 2
    _fit(model, data, [callback], initial_epoch=2, epochs=4)
    steps, _ = _series(folder, "isotropy/isoscore_union")
    assert steps == [0, 1, 2, 3]
    assert len(list(folder.iterdir())) == 2


@pytest.mark.slow
def test_several_fits_with_one_callback(data, folder):
    callback = _callback(data, log_dir=folder)
    for first in (0, 2):
        model, _ = _model()
        _fit(model, data, [callback], initial_epoch=first, epochs=first + 2)
    steps, _ = _series(folder, "isotropy/strength")
    assert steps == [0, 1, 2, 3]


def test_layers_of_ones_own_names(data, folder):
    inputs = keras.Input((None, 5))
    states = keras.layers.Dense(4)(inputs)
    for name in ("first", "second"):
        states = keras_istar.IStarRegularization(-1.0, name=name)(states)
    model = keras.Model(inputs, keras.layers.Dense(1)(states))
    model.compile("sgd", "mse")
    _fit(model, data, [_callback(data, log_dir=folder)])
    states = [f"{kind}_{state}" for kind in ("isoscore", "spectrum")
              for state in ("union", "layer_0")]  # fmt: skip
    assert _tags(folder) == _in_group(
        *(
            f"{layer}_{name}"
            for layer in ("first", "second")
            for name in (*states, *NUMBERS, "report")
        )
    )


def test_states_that_are_not_finite_leave_out_their_pictures(data, folder):
    bad = data[0].copy(), data[1]
    bad[0][0, 0, 0] = np.nan
    model, _ = _model()
    with pytest.warns(UserWarning, match="is not finite"):
        _fit(model, data, [_callback(bad, log_dir=folder)])
    assert _tags(folder) == _in_group(*SCORES, *NUMBERS)
    _, values = _series(folder, "isotropy/isoscore_union")
    assert np.all(np.isnan(values))


def test_states_that_do_not_vary(data, folder):
    model, _ = _model(learning_rate=0.0)
    constant = np.ones_like(data[0]), data[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _fit(model, constant, [_callback(constant, log_dir=folder)])
    _, values = _series(folder, "isotropy/isoscore_upper")
    assert values == [0.0]
    _, (histogram,) = _series(folder, "isotropy/spectrum_upper")
    assert np.sum(histogram[:, 2] if len(histogram) else 0) == 0


def test_stock_callback_shows_the_same_scalars(data, folder):
    model, _ = _model()
    stock = keras.callbacks.TensorBoard(folder)
    _fit(model, data, [_callback(data, log_dir=folder), stock], epochs=3)
    for name in SCORES:
        shown = _series(folder, f"isotropy/{name}")
        assert shown[0] == [0, 1, 2]
        assert shown == _series(folder / "train", f"epoch_{name}")


def test_other_callbacks_do_not_restrict_recording(data, folder):
    model, _ = _model()
    # Records batches 0, 3, 6 and so on, and mutes whatever comes between.
    stock = keras.callbacks.TensorBoard(folder, update_freq=3)
    _fit(model, data, [_callback(data, log_dir=folder), stock], epochs=3)
    for name in (*SCORES, *NUMBERS, *SPECTRA, "report"):
        assert _series(folder, f"isotropy/{name}")[0] == [0, 1, 2]
    assert not any("isotropy" in tag for tag in _tags(folder / "train"))


def test_folder_of_another_file_system(data):
    """As `gs://` is; this one is in memory, and TensorFlow alone knows it."""
    import tensorflow as tf

    folder = "ram://isotropy_logs"
    _fit(_model()[0], data, [_callback(data, log_dir=folder)], epochs=2)
    (name,) = tf.io.gfile.listdir(folder)
    events = tf.data.TFRecordDataset(f"{folder}/{name}")
    tags = [
        (event.step, value.tag)
        for event in map(
            tf.compat.v1.Event.FromString, events.as_numpy_iterator()
        )
        for value in event.summary.value
    ]
    assert tags.count((1, "isotropy/isoscore_union")) == 1
    assert {tag for _, tag in tags} >= _in_group(*SCORES, *NUMBERS, *SPECTRA)


def test_folder_that_cannot_be_made(data, tmp_path):
    (tmp_path / "file").write_text("no folder")
    model, _ = _model()
    callback = _callback(data, log_dir=tmp_path / "file" / "logs")
    message = "From step 0 on, .* log_dir='.*file/logs': /.*/file is not a"
    for _ in range(2):
        with pytest.warns(UserWarning, match=message) as caught:
            history = _fit(model, data, [callback], epochs=2)
        assert len(caught) == 1
        assert len(history["isoscore_union"]) == 2


def test_disk_that_fills_up(data, folder):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(epoch, logs):
        if epoch == 2:
            (file,) = folder.iterdir()
            limit = file.stat().st_size + 5_000
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    model, _ = _model()
    filler = keras.callbacks.LambdaCallback(on_epoch_begin=fill)
    try:
        with pytest.warns(
            UserWarning, match="From step 2 on, .* full disk$"
        ) as caught:
            history = _fit(
                model, data, [_callback(data, log_dir=folder), filler], epochs=5
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(caught) == 1
    assert len(history["isoscore_union"]) == 5
    assert _series(folder, "isotropy/report")[0] == [0, 1]


def test_monitor_shows_the_same_of_a_model_without_a_regularizer(data, folder):
    pytest.importorskip("matplotlib")
    model = _model()[0]
    keras_istar.detach(model)
    model.compile("sgd", "mse")
    monitor = keras_istar.IsotropyMonitor(
        data[0],
        ["lower", "upper"],
        measures=["isoscore"],
        log_dir=folder,
        verbose=0,
    )
    _fit(model, data, [monitor], epochs=2)
    assert _tags(folder) == _in_group(*SCORES, *SPECTRA, "report")
    assert _series(folder, "isotropy/report")[0] == [0, 1]


def test_without_matplotlib_the_image_is_left_out(data, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = r"no pictures, .* `pip install keras-istar\[report\]`"
    with pytest.warns(UserWarning, match=message) as caught:
        callback = _callback(data, log_dir=folder)
        _fit(_model()[0], data, [callback], epochs=2)
    assert len(caught) == 1
    assert _tags(folder) == _in_group(*SCORES, *NUMBERS, *SPECTRA)


def test_picture_that_cannot_be_drawn(data, folder, monkeypatch):
    def fail(rows):
        raise RuntimeError("no fonts")

    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plots, "report_image", fail)
    with pytest.warns(UserWarning, match="From step 0 on, no pict") as caught:
        callback = _callback(data, log_dir=folder)
        _fit(_model()[0], data, [callback], epochs=2)
    assert len(caught) == 1
    assert str(caught[0].message).endswith("RuntimeError: no fonts")
    assert _series(folder, "isotropy/spectrum_union")[0] == [0, 1]
    assert "isotropy/report" not in _tags(folder)


@pytest.mark.parametrize("missing", ["tensorflow", "tensorboard"])
def test_without_tensorboard(data, folder, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError) as error:
        _callback(data, log_dir=folder)
    assert str(error.value) == (
        "`log_dir` needs TensorFlow and TensorBoard: "
        "`pip install tensorflow tensorboard`."
    )


def test_only_the_chief_writes(data, folder, monkeypatch):
    monkeypatch.setattr(monitor, "is_chief", lambda model: False)
    model, _ = _model()
    history = _fit(model, data, [_callback(data, log_dir=folder)])
    assert len(history["isoscore_union"]) == 1
    assert not folder.exists()


def _assert_history_is_shown(folder, history):
    names = ["isoscore_union", "isoscore_layer_0", "isoscore_layer_1"]
    for name in names:
        steps, values = _series(folder, f"isotropy/{name}")
        assert steps == [0, 1]
        assert values == pytest.approx(list(history[name]), abs=1e-7)
    assert _in_group("spectrum_union", "report") <= _tags(folder)


@pytest.mark.slow
def test_mirrored_strategy(tmp_path, folder):
    pytest.importorskip("keras_hub")
    history = run_worker(tmp_path, "board", folder, "mirrored")
    assert history["backend"] == "tensorflow"
    _assert_history_is_shown(folder, history)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("jax", "keras_hub"))),
    reason="needs JAX and KerasHub",
)
@pytest.mark.slow
def test_two_processes_on_jax(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    folders = [tmp_path / "first", tmp_path / "second"]
    jobs = [
        ([folder, "processes", address, index], {})
        for index, folder in enumerate(folders)
    ]
    history, _ = run_workers(tmp_path, "board", jobs)
    assert history["backend"] == "jax"
    _assert_history_is_shown(folders[0], history)
    assert not folders[1].exists()
