import keras
import numpy as np
import pytest

from keras_istar._src.compat import keras_data


class Doubling:
    """A task whose preprocessor doubles."""

    preprocessor = "there is one"

    def preprocess_samples(self, x, y=None, sample_weight=None):
        x = x["a"] if isinstance(x, dict) else x
        return keras.utils.pack_x_y_sample_weight(
            {"doubled": 2 * np.asarray(x)}, y, sample_weight
        )


@pytest.mark.parametrize(
    "data, count",
    [
        (np.zeros((7, 2)), 7),
        (["a", "b"], 2),
        ({"a": np.zeros(3), "b": {"c": np.zeros(3)}}, 3),
        ((np.zeros(4), ["a"] * 4), 4),
        ([], 0),
        ({}, 0),
        (np.zeros((0, 3)), 0),
    ],
)
def test_counted_examples(data, count):
    assert keras_data.count_examples(Doubling(), data) == count


@pytest.mark.parametrize(
    "data, count",
    [
        (np.zeros((7, 2)), 7),
        ([np.zeros((5, 2))], 5),
        ([{"a": np.zeros(4), "b": [np.zeros(4)]}, (np.zeros(4),)], 4),
        ({"a": np.zeros((6, 1)), "b": None}, 6),
        ([], 0),
    ],
)
def test_counted_examples_of_plain_models(data, count):
    assert keras_data.count_examples(keras.Sequential(), data) == count


def test_datasets_are_not_counted():
    tf = pytest.importorskip("tensorflow")

    dataset = tf.data.Dataset.range(3).batch(2)
    assert keras_data.count_examples(keras.Sequential(), dataset) is None


def test_arrays_of_plain_models_pass_unchanged():
    model, x = keras.Sequential(), np.zeros((7, 2))
    data, batch_size = keras_data.preprocessed(model, x, 4)
    assert data is x
    assert batch_size == 4


@pytest.mark.parametrize("shape", [None, (None, None), (None, 4)])
def test_datasets_that_know_little_of_their_shapes_are_taken(shape):
    tf = pytest.importorskip("tensorflow")

    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    dataset = tf.data.Dataset.from_generator(
        lambda: iter([np.zeros((3, 4))]),
        output_signature=tf.TensorSpec(shape),
    )
    keras_data.check_data(model, dataset)
    wrong = tf.data.Dataset.from_tensors(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="`data` must fit the input"):
        keras_data.check_data(model, wrong)


def test_datasets_of_plain_models_keep_their_batches():
    tf = pytest.importorskip("tensorflow")

    dataset = tf.data.Dataset.range(3).batch(2)
    data, batch_size = keras_data.preprocessed(keras.Sequential(), dataset, 4)
    assert data is dataset
    assert batch_size is None


@pytest.mark.parametrize("wrap", [lambda x: x, list, lambda x: {"a": x}])
def test_arrays_are_preprocessed_batch_by_batch(wrap):
    x = np.arange(7)
    data, batch_size = keras_data.preprocessed(Doubling(), wrap(x), 3)
    assert batch_size is None
    assert len(data) == 3
    batches = [data[i][0]["doubled"] for i in range(3)]
    assert [len(batch) for batch in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(batches), 2 * x)


def test_preprocessor_of_sentence_pairs(tiny_classifier, sentences):
    task = tiny_classifier()
    texts, _ = sentences
    pairs = (texts, texts[::-1])
    data, _ = keras_data.preprocessed(task, pairs, 8)
    for name, expected in task.preprocess_samples(pairs).items():
        actual = np.concatenate([data[i][0][name] for i in range(2)])
        np.testing.assert_array_equal(actual, expected)
    assert np.any(data[0][0]["segment_ids"] == 1)


def test_dataset_of_a_task_is_mapped(tiny_classifier, sentences):
    tf = pytest.importorskip("tensorflow")

    task = tiny_classifier()
    texts, labels = sentences
    dataset = tf.data.Dataset.from_tensor_slices((texts, labels)).batch(8)
    data, batch_size = keras_data.preprocessed(task, dataset, 4)
    assert batch_size is None
    x, y = next(iter(data))
    np.testing.assert_array_equal(y, labels[:8])
    expected = task.preprocessor(texts[:8])
    np.testing.assert_array_equal(x["token_ids"], expected["token_ids"])


@pytest.mark.parametrize("labelled", [False, True])
def test_grain_dataset_of_a_task_is_mapped(labelled):
    grain = pytest.importorskip("grain")
    x = np.arange(8)
    examples = list(zip(x, -x, strict=True)) if labelled else x
    dataset = grain.MapDataset.source(examples).batch(4)
    data, batch_size = keras_data.preprocessed(Doubling(), dataset, 3)
    assert batch_size is None
    batches = [batch[0] if labelled else batch for batch in data]
    doubled = np.concatenate([batch["doubled"] for batch in batches])
    np.testing.assert_array_equal(doubled, 2 * x)


def test_iterables_that_cannot_be_preprocessed():
    class Batches:
        def __iter__(self):
            return iter([np.zeros(2)])

    with pytest.raises(ValueError) as error:
        keras_data.preprocessed(Doubling(), Batches(), 3)
    assert str(error.value) == (
        "`data` must be what the task's `fit` takes as `x`: strings, arrays, "
        "nested tuples or dicts of them, or a `tf.data` or Grain dataset. "
        "Received: data of type Batches"
    )


def test_integer_masks_of_arrays_and_tensors():
    mask = np.array([[True, False], [True, True]])
    data = {"mask": mask, "tensor": keras.ops.convert_to_tensor(mask)}
    made, labels, number = keras_data.integer_masks((data, np.zeros(2), 3))
    for value in made.values():
        assert keras.backend.standardize_dtype(value.dtype) == "int32"
        np.testing.assert_array_equal(value, mask.astype("int32"))
    assert labels.dtype == "float64"
    assert number == 3
    assert data["mask"].dtype == bool


@pytest.mark.parametrize("has_labels", [False, True])
def test_integer_masks_of_datasets(has_labels):
    tf = pytest.importorskip("tensorflow")
    x = {"mask": np.array([True, False]), "ids": np.array([3, 4])}
    parts = (x, np.array([0, 1])) if has_labels else x
    dataset = tf.data.Dataset.from_tensor_slices(parts).batch(2)
    (batch,) = list(keras_data.integer_masks(dataset).as_numpy_iterator())
    made = batch[0] if has_labels else batch
    assert made["mask"].dtype == np.int32
    assert made["mask"].tolist() == [1, 0]
    assert made["ids"].tolist() == [3, 4]
