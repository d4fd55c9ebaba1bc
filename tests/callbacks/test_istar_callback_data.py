"""What the callback and `measure` take as data, and copies of the callback."""

import copy

import keras
import numpy as np
import pytest

import keras_istar
from keras_istar import IStarCallback

KERNEL = np.random.default_rng(5).normal(size=(4, 4)).astype("float32")
TEXTS = ["the movie was great", "a movie", "great", "the cat sat"] * 3


def _dense(*shapes, structure=lambda *inputs: list(inputs)):
    """A model of inputs of these shapes, by the names "a", "b" and so on."""
    inputs = [
        keras.Input(shape, name=name)
        for shape, name in zip(shapes, "abcd", strict=False)
    ]
    joined = inputs[0]
    if len(inputs) > 1:
        joined = keras.layers.Concatenate()(inputs)
    states = keras.layers.Dense(4, name="block")(joined)
    outputs = keras.layers.Dense(1)(states)
    model = keras.Model(structure(*inputs), outputs)
    model.get_layer("block").set_weights([KERNEL, np.zeros(4)])
    keras_istar.attach(model, "block", strength=-1.0)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model


def _scores(model, data, y, layers="block"):
    """IsoScore of the union by the callback and by `measure`."""
    report = keras_istar.measure(
        model, data, layers, measures=["isoscore"], verbose=0
    )
    callback = IStarCallback(data, batch_size=5, verbose=0)
    history = model.fit(data, y, verbose=0, callbacks=[callback]).history
    logged = history["isoscore_union"][-1]
    return [logged, report.rows[-1].values["isoscore"]]


@pytest.fixture
def pandas():
    return pytest.importorskip("pandas")


def _columns(pandas):
    """A frame of texts, whose index counts nothing."""
    frame = pandas.DataFrame({"text": TEXTS, "other": TEXTS[::-1]})
    return frame.set_index(pandas.Index(np.arange(12) * 1.5 + 3))


TEXT_COLUMNS = {
    "list": lambda pandas: TEXTS,
    "bytes": lambda pandas: [text.encode() for text in TEXTS],
    "unicode array": lambda pandas: np.array(TEXTS),
    "bytes array": lambda pandas: np.array(TEXTS, "S"),
    "object array": lambda pandas: np.array(TEXTS, object),
    "column": lambda pandas: _columns(pandas).text,
    "object column": lambda pandas: _columns(pandas).text.astype(object),
    "string column": lambda pandas: _columns(pandas).text.astype("string"),
    "categories": lambda pandas: _columns(pandas).text.astype("category"),
    "values": lambda pandas: _columns(pandas).text.values,
    "index": lambda pandas: pandas.Index(TEXTS),
    "column of a filtered frame": lambda pandas: pandas.concat(
        [_columns(pandas), _columns(pandas).assign(text="sat")]
    ).query("text != 'sat'").text,
}  # fmt: skip


@pytest.fixture
def classifier(tiny_classifier):
    model = tiny_classifier()
    keras_istar.attach(model, strength=-1.0)
    model.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    return model


def test_texts_of_a_task(classifier, pandas):
    y = np.arange(12) % 2
    expected, _ = _scores(classifier, TEXTS, y, "all")
    for column in (TEXT_COLUMNS["list"], TEXT_COLUMNS["column"]):
        seen = _scores(classifier, column(pandas), y, "all")
        assert seen == pytest.approx([expected] * 2, rel=1e-4)
    for kind, column in TEXT_COLUMNS.items():
        report = keras_istar.measure(
            classifier, column(pandas), measures=["isoscore"], verbose=0
        )
        seen = report.rows[-1].values["isoscore"]
        assert seen == pytest.approx(expected, rel=1e-4), kind


def test_pairs_of_columns_of_a_task(classifier, pandas):
    frame = _columns(pandas)
    y = np.arange(12) % 2
    expected, _ = _scores(classifier, (TEXTS, TEXTS[::-1]), y, "all")
    seen = _scores(classifier, (frame.text, frame.other), y, "all")
    assert seen == pytest.approx([expected] * 2, rel=1e-4)


@pytest.mark.parametrize("missing", [None, np.nan, 3])
def test_columns_with_something_else_than_texts(classifier, pandas, missing):
    column = pandas.Series([*TEXTS, missing], dtype=object)
    with pytest.raises(ValueError, match="`data` must hold one text"):
        keras_istar.measure(classifier, column)


def test_frames_of_texts_are_refused_as_by_fit(classifier, pandas):
    with pytest.raises(ValueError, match="`data` must hold one text"):
        keras_istar.measure(classifier, _columns(pandas))


def _parts(x):
    return [x[:, :2], x[:, 2:3], x[:, 3:]]


NUMBERS = {
    "frame": lambda pandas, x: pandas.DataFrame(x, columns=list("pqrs")),
    "frame of two types": lambda pandas, x: pandas.DataFrame(x).assign(
        **{"0": 1}
    )[[0, 1, 2, 3]],
    "list of one frame": lambda pandas, x: [pandas.DataFrame(x)],
    "dict of a frame": lambda pandas, x: {"a": pandas.DataFrame(x)},
}


@pytest.fixture(scope="module")
def numbers():
    """An array, and the score that it gives a model."""
    x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
    expected, _ = _scores(_dense((4,)), x, x[:, :1])
    return x, expected


@pytest.mark.parametrize("kind", NUMBERS)
def test_frames_of_numbers(pandas, numbers, kind):
    x, expected = numbers
    seen = _scores(_dense((4,)), NUMBERS[kind](pandas, x), x[:, :1])
    assert seen == pytest.approx([expected] * 2, rel=1e-4)


STRUCTURES = {
    "list of dicts": (
        lambda a, b, c: [{"a": a, "b": b}, {"c": c}],
        lambda a, b, c: [{"a": a, "b": b}, {"c": c}],
    ),
    "dict of lists": (
        lambda a, b, c: {"p": [a, b], "q": c},
        lambda a, b, c: {"p": [a, b], "q": c},
    ),
    "list of lists": (
        lambda a, b, c: [[a, b], [c]],
        lambda a, b, c: [[a, b], [c]],
    ),
    "tuple of dicts": (
        lambda a, b, c: [{"a": a}, {"b": b, "c": c}],
        lambda a, b, c: ({"a": a}, {"b": b, "c": c}),
    ),
    "list for dicts": (
        lambda a, b, c: [{"a": a, "b": b}, {"c": c}],
        lambda a, b, c: [a, b, c],
    ),
    "dict with None": (
        lambda a, b, c: {"a": a, "b": b, "c": c},
        lambda a, b, c: {"a": a, "b": b, "c": c, "d": None},
    ),
}


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("kind", STRUCTURES)
@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_nested_inputs(pandas, numbers, kind, frames):
    structure, fill = STRUCTURES[kind]
    x, expected = numbers
    model = _dense((2,), (1,), (1,), structure=structure)
    parts = _parts(x)
    if frames:
        parts = [
            pandas.DataFrame(parts[0]),
            pandas.Series(parts[1][:, 0]),
            pandas.Series(parts[2][:, 0]),
        ]
    seen = _scores(model, fill(*parts), x[:, :1])
    assert seen == pytest.approx([expected] * 2, rel=1e-4)


def test_an_input_that_is_not_there(rng):
    model = _dense((2,), (2,), structure=lambda a, b: [{"a": a}, {"b": b}])
    with pytest.raises(
        ValueError, match="one array for each input.* 1 arrays for 2"
    ):
        keras_istar.measure(model, [{"a": np.ones((3, 2))}], "block")
    with pytest.raises(ValueError, match="`data` must be of one length"):
        keras_istar.measure(
            model, [{"a": np.ones((3, 2))}, {"b": np.ones((4, 2))}], "block"
        )


def test_sparse_arrays(rng):
    sparse = pytest.importorskip("scipy.sparse")
    if keras.backend.backend() == "torch":
        pytest.skip("Keras has no sparse tensors on PyTorch")
    x = (rng.normal(size=(12, 4)) * (rng.random((12, 4)) < 0.5)).astype("f4")
    model = _dense((4,))
    expected, _ = _scores(model, x, x[:, :1])
    seen = _scores(model, sparse.csr_matrix(x), x[:, :1])
    assert seen == pytest.approx([expected] * 2, rel=1e-4)


def test_no_data_is_refused_at_once():
    with pytest.raises(ValueError) as error:
        IStarCallback(None)
    assert str(error.value).startswith("`data` must be what the model's `fit`")
    assert str(error.value).endswith("Received: data of type NoneType")


# Copies.


def _history(callback, x):
    model = _dense((4,))
    return model.fit(x, x[:, :1], verbose=0, callbacks=[callback]).history


@pytest.fixture
def dataset(rng):
    tf = pytest.importorskip("tensorflow")
    x = rng.normal(size=(12, 4)).astype("float32")
    return x, tf.data.Dataset.from_tensor_slices(x).batch(5)


def test_copies_share_the_dataset(dataset):
    x, data = dataset
    callback = IStarCallback(data, 500, update_freq=1, verbose=0)
    early = keras.callbacks.EarlyStopping("loss")
    copied, other = copy.deepcopy([callback, early])
    assert copied is not callback and other is not early
    assert copied.data is data
    assert (copied.max_tokens, copied.update_freq) == (500, 1)
    expected = _history(callback, x)["isoscore_union"]
    assert _history(copied, x)["isoscore_union"] == pytest.approx(expected)


def test_copy_after_and_while_training(dataset, tmp_path):
    x, data = dataset
    callback = IStarCallback(data, verbose=0)
    copies = []
    copying = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: copies.append(copy.deepcopy(callback))
    )
    model = _dense((4,))
    model.fit(x, x[:, :1], verbose=0, callbacks=[callback, copying])
    copies.append(copy.deepcopy(callback))
    assert callback.model is model
    for copied in copies:
        assert copied.model is None
        assert "isoscore_union" in _history(copied, x)


def test_copies_write_for_themselves(dataset, tmp_path):
    pytest.importorskip("tensorboard")
    x, data = dataset
    callback = IStarCallback(data, verbose=0, log_dir=tmp_path)
    _history(callback, x)
    files = set(tmp_path.iterdir())
    _history(copy.deepcopy(callback), x)
    assert len(set(tmp_path.iterdir()) - files) == 1


def test_copies_of_a_subclass(dataset):
    x, data = dataset

    class Mine(IStarCallback):
        def __init__(self, data):
            super().__init__(data, verbose=0)
            self.mine = [1]

    callback = Mine(data)
    copied = copy.deepcopy(callback)
    copied.mine.append(2)
    assert type(copied) is Mine
    assert callback.mine == [1]
    assert "isoscore_union" in _history(copied, x)


# How much is read, and when.


def test_all_tokens(rng, capsys):
    x = rng.normal(size=(12, 4)).astype("float32")
    callback = IStarCallback(x, max_tokens=None, batch_size=5)
    (seen,) = _history(callback, x)["isoscore_union"]
    model = _dense((4,))
    states = x @ KERNEL
    assert seen == pytest.approx(float(keras_istar.isoscore(states)), rel=1e-4)
    assert capsys.readouterr().out == ""
    report = keras_istar.measure(
        model, x, "block", None, ["isoscore"], batch_size=5
    )
    assert report.rows[-1].tokens == 12


def test_a_pass_at_the_start_only(rng):
    x = rng.normal(size=(12, 4)).astype("float32")
    model = _dense((4,))
    keras_istar.detach(model)
    layer = keras_istar.attach(model, "block", shrinkage=0.5, strength=-1.0)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = x @ np.asarray(model.get_layer("block").kernel)
    callback = IStarCallback(x, update_freq="start", verbose=0)
    history = model.fit(
        x, x[:, :1], epochs=2, verbose=0, callbacks=[callback]
    ).history
    assert set(history) == {"loss", "istar_penalty", "isoscore"}
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(layer.shrinkage_covariance.value),
        np.cov(before, rowvar=False),
        rtol=1e-3,
        atol=1e-5,
    )


def test_no_files_of_passes_that_are_not_made(tmp_path):
    with pytest.raises(ValueError, match="`log_dir` must be `None`"):
        IStarCallback(np.ones(3), update_freq="start", log_dir=tmp_path)
