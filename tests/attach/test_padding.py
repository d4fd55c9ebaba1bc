"""Which tokens count: masks that are found, and masks that are said."""

import warnings

import keras
import numpy as np
import oracle
import pytest
from keras import ops

import keras_istar

LENGTH = 6


@pytest.fixture
def ids(rng):
    """Sentences of two to six tokens; 0 is padding."""
    ids = rng.integers(1, 9, size=(8, LENGTH))
    lengths = rng.integers(2, LENGTH, size=(8, 1))
    return (ids * (np.arange(LENGTH) < lengths)).astype("int32")


def _model(mask_zero=False, mask_name=None, length=None, prefix=0):
    """Token ids -> embedding (after a prefix) -> encoder -> mean."""
    inputs = {
        "token_ids": keras.Input((length,), dtype="int32", name="token_ids")
    }
    embedding = keras.layers.Embedding(
        9, 4, mask_zero=mask_zero, embeddings_initializer="glorot_normal"
    )
    x = embedding(inputs["token_ids"])
    if prefix:
        start = keras.layers.Lambda(
            lambda x: ops.repeat(x[:, :1], prefix, axis=1)
        )(x)
        x = keras.layers.Concatenate(axis=1)([start, x])
    x = keras.layers.Dense(4, "tanh", name="encoder")(x)
    pooled = keras.layers.GlobalAveragePooling1D()(x)
    if mask_name:
        inputs[mask_name] = keras.Input(
            (length,), dtype="int32", name=mask_name
        )
        pooled += 0.0 * ops.cast(ops.sum(inputs[mask_name]), "float32")
    return keras.Model(inputs, keras.layers.Dense(1)(pooled))


def _cloud(model, ids, mask):
    layer = model.get_layer("encoder")
    embedding = next(
        x for x in model.layers if isinstance(x, keras.layers.Embedding)
    )
    states = ops.convert_to_numpy(layer(embedding(ids)))
    return oracle.unmasked([states], [mask])


def _penalty(model, x):
    model.compile(keras.optimizers.SGD(0.0), "mse")
    size = len(x["token_ids"])
    logs = model.fit(x, np.zeros((size, 1)), batch_size=size, verbose=0)
    return logs.history["istar_penalty"][0]


SAID = {
    "input": ("token_ids", 0),
    "id 0": ({"token_ids": 0}, 0),
    "id 3": ({"token_ids": 3}, 3),
    "function": (lambda x: x["token_ids"] != 0, 0),
    "function of ops": (lambda x: ops.not_equal(x["token_ids"], 3), 3),
    "False": (False, None),
}


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("length", [None, LENGTH])
def test_what_the_user_says(ids, name, length):
    mask, padding = SAID[name]
    model = _model(length=length)
    counts = np.ones_like(ids) if padding is None else ids != padding
    expected = oracle.penalty(_cloud(model, ids, counts), 1.0)
    layer = keras_istar.attach(model, "encoder", strength=1.0, mask=mask)
    assert _penalty(model, {"token_ids": ids}) == pytest.approx(
        expected, abs=1e-5
    )
    report = keras_istar.measure(
        model,
        {"token_ids": ids},
        "encoder",
        measures=["isoscore"],
        mask=mask,
        verbose=0,
    )
    assert report.rows[0].tokens == np.sum(counts != 0)
    assert layer.attachment.masks[0]


def _measured(model, ids, layers):
    report = keras_istar.measure(
        model, {"token_ids": ids}, layers, measures=["mean_norm"], verbose=0
    )
    return report.rows[0].tokens


def test_what_attach_was_told_also_holds_for_measure(ids):
    """For states that it fits, as long as it is attached."""
    model = _model(prefix=3)
    embedding = next(
        x for x in model.layers if isinstance(x, keras.layers.Embedding)
    )
    keras_istar.attach(model, embedding.name, mask={"token_ids": 0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _measured(model, ids, embedding.name) == np.sum(ids != 0)
    with pytest.warns(UserWarning, match="padding"):
        assert _measured(model, ids, "encoder") == ids.size + 3 * len(ids)
    keras_istar.detach(model)
    with pytest.warns(UserWarning, match="padding"):
        assert _measured(model, ids, embedding.name) == ids.size


def test_all_tokens_count_for_measure_if_they_do_for_attach(ids):
    model = _model(mask_name="padding_mask")
    keras_istar.attach(model, "encoder", mask=False)
    x = {"token_ids": ids, "padding_mask": (ids != 0).astype("int32")}
    report = keras_istar.measure(
        model, x, "encoder", measures=["mean_norm"], verbose=0
    )
    assert report.rows[0].tokens == ids.size


def test_nobody_is_asked_about_an_embedding_of_each_example():
    inputs = keras.Input((8,), dtype="int32", name="token_ids")
    states = keras.layers.Embedding(9, 4)(inputs)
    pooled = keras.layers.GlobalAveragePooling1D(name="pooled")(states)
    model = keras.Model(inputs, keras.layers.Dense(1)(pooled))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = keras_istar.attach(model, "pooled", strength=0.0)
    assert "all tokens count" not in str(layer)


def test_the_user_is_asked():
    with pytest.warns(UserWarning) as said:
        layer = keras_istar.attach(_model(), "encoder", strength=-1.0)
    (warning,) = said
    text = str(warning.message)
    assert "padding" in text and 'mask={"token_ids": 0}' in text
    assert layer.attachment.masks == ("none found, all tokens count",)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"mask_zero": True}, "its Keras mask"),
        ({"mask_name": "padding_mask"}, "input 'padding_mask'"),
    ],
)
def test_masks_that_are_found(ids, options, words):
    model = _model(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = keras_istar.attach(model, "encoder", strength=1.0)
    assert layer.attachment.masks == (words,)
    x = {"token_ids": ids}
    if "mask_name" in options:
        x["padding_mask"] = (ids != 0).astype("int32")
    assert _penalty(model, x) == pytest.approx(
        oracle.penalty(_cloud(model, ids, ids != 0), 1.0), abs=1e-5
    )


ATTENTION = ["attention_0", "attention_1", "attention_2"]
SUMS = ["sum_0", "sum_1", "sum_2"]


def _attention(adds=False):
    """Token ids -> three blocks of attention, and what each returns.

    Attention removes the masks of its inputs.
    """
    inputs = keras.Input((LENGTH,), dtype="int32", name="token_ids")
    x = keras.layers.Embedding(9, 4, mask_zero=True)(inputs)
    states = []
    for attention, together in zip(ATTENTION, SUMS, strict=True):
        y = keras.layers.MultiHeadAttention(2, 2, name=attention)(x, x)
        x = keras.layers.Add(name=together)([x, y]) if adds else y
        states.append(x)
    return inputs, states


def _finish(inputs, x):
    pooled = keras.layers.GlobalAveragePooling1D()(x)
    named = {"token_ids": inputs}
    return keras.Model(named, keras.layers.Dense(1)(pooled))


def _expected(inputs, states, ids, mask):
    outputs = {str(i): x for i, x in enumerate(states)}
    values = keras.Model(inputs, outputs)(ids).values()
    values = [ops.convert_to_numpy(x) for x in values]
    return oracle.penalty(oracle.unmasked(values, [mask] * len(values)), 1.0)


def test_masks_that_attention_removes_from_its_inputs(ids):
    inputs, states = _attention()
    model = _finish(inputs, states[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = keras_istar.attach(model, ATTENTION, strength=1.0)
    assert layer.attachment.masks == ("its Keras mask",) * 3
    expected = _expected(inputs, states, ids, ids != 0)
    assert expected != pytest.approx(
        _expected(inputs, states, ids, ids >= 0), abs=1e-3
    )
    assert _penalty(model, {"token_ids": ids}) == pytest.approx(
        expected, abs=1e-5
    )
    report = keras_istar.measure(
        model, {"token_ids": ids}, ATTENTION, measures=["mean_norm"], verbose=0
    )
    assert [row.tokens for row in report.rows[:3]] == [np.sum(ids != 0)] * 3


def test_detaching_leaves_nothing_that_keeps_masks():
    inputs, states = _attention()
    model = _finish(inputs, states[-1])
    before = [set(vars(x)) for x in model.layers]
    keras_istar.attach(model, ATTENTION, strength=1.0)
    keras_istar.attach_regularizer(
        model, keras_istar.CosineRegularization(1.0), ATTENTION
    )
    keras_istar.detach(model)
    assert [set(vars(x)) for x in model.layers] == before


def test_the_user_is_asked_where_masks_are_lost_as_the_model_runs():
    """Symbolically, the sum has a mask; attention has removed it by then."""
    inputs, states = _attention(adds=True)
    model = _finish(inputs, states[-1])
    with pytest.warns(UserWarning, match="No padding mask was found"):
        layer = keras_istar.attach(model, SUMS, strength=1.0)
    assert layer.attachment.masks == ("none found, all tokens count",) * 3


class _HiddenMask(keras.layers.Layer):
    """An embedding whose mask shows only when it runs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.table = keras.layers.Embedding(9, 4)

    def call(self, ids):
        return self.table(ids)

    def compute_mask(self, inputs, mask=None):
        if isinstance(inputs, keras.KerasTensor):
            return None
        return ops.not_equal(inputs, 0)


def test_masks_that_show_only_when_the_model_runs(ids):
    inputs = keras.Input((LENGTH,), dtype="int32", name="token_ids")
    x = keras.layers.Dense(4, name="encoder")(_HiddenMask()(inputs))
    model = _finish(inputs, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = keras_istar.attach(model, "encoder", strength=1.0)
    assert layer.attachment.masks == ("its Keras mask",)
    assert _penalty(model, {"token_ids": ids}) == pytest.approx(
        _expected(inputs, [x], ids, ids != 0), abs=1e-5
    )


def test_masks_of_states_that_are_given_by_hand(ids, tmp_path):
    inputs, states = _attention()
    layer = keras_istar.IStarRegularization(1.0)
    model = _finish(inputs, layer(states))
    expected = _expected(inputs, states, ids, ids != 0)
    file = tmp_path / "model.keras"
    model.save(file)
    for x in (model, keras.models.load_model(file)):
        x({"token_ids": ids}, training=True)
        assert float(x.losses[-1]) == pytest.approx(expected, abs=1e-5)


class _Masked(keras.layers.Layer):
    """A block that is given a mask."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(4)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, padding_mask=None):
        return self.dense(x)

    def compute_output_spec(self, x, padding_mask=None):
        return keras.KerasTensor(x.shape, x.dtype)


def _siamese(mask_of):
    """An encoder that computes its mask inside, called on two texts."""
    inner = keras.Input((LENGTH,), dtype="int32", name="inner_ids")
    x = keras.layers.Embedding(9, 4)(inner)
    x = _Masked(name="block")(x, padding_mask=mask_of(inner, x))
    encoder = keras.Model(inner, x, name="encoder")
    texts = [
        keras.Input((LENGTH,), dtype="int32", name=name) for name in ("a", "b")
    ]
    outputs = keras.layers.Subtract()([encoder(text) for text in texts])
    pooled = keras.layers.GlobalAveragePooling1D()(outputs)
    named = dict(zip(("a", "b"), texts, strict=True))
    return keras.Model(named, keras.layers.Dense(1)(pooled))


def test_a_mask_that_a_model_called_twice_computes_inside(ids):
    model = _siamese(lambda ids, _: ids != 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = keras_istar.attach(model, "block", strength=1.0)
    assert layer.attachment.masks == ("argument 'padding_mask' of 'block'",) * 2
    report = keras_istar.measure(
        model,
        {"a": ids, "b": np.ones_like(ids)},
        "block",
        measures=["mean_norm"],
        verbose=0,
    )
    counts = [row.tokens for row in report.rows[:2]]
    assert counts == [np.sum(ids != 0), ids.size]


def test_a_mask_from_weights_in_a_model_called_twice():
    model = _siamese(lambda _, x: keras.layers.Dense(1)(x)[..., 0] > 0)
    with pytest.warns(UserWarning, match="No padding mask was found"):
        layer = keras_istar.attach(model, "block", strength=1.0)
    assert layer.attachment.masks == ("none found, all tokens count",) * 2


def test_a_layer_that_returns_its_input_has_the_mask_of_that(ids):
    """In inference, dropout returns what attention has since looked at."""
    inputs = keras.Input((LENGTH,), dtype="int32", name="token_ids")
    x = keras.layers.Embedding(9, 4, mask_zero=True, name="embedding")(inputs)
    y = keras.layers.MultiHeadAttention(2, 2)(x, x)
    late = keras.layers.Dropout(0.5, name="late")(x)
    y = keras.layers.Dense(4)(keras.layers.Dense(4)(y))
    model = _finish(inputs, keras.layers.Add()([late, y]))
    names = ["embedding", "late"]
    report = keras_istar.measure(
        model, {"token_ids": ids}, names, measures=["mean_norm"], verbose=0
    )
    assert [row.tokens for row in report.rows[:2]] == [np.sum(ids != 0)] * 2


class _Eager(keras.layers.Layer):
    """Cannot be run symbolically, but on PyTorch."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True

    def call(self, x):
        ops.convert_to_numpy(x)
        return x

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="PyTorch is always eager"
)
def test_what_is_said_if_the_model_cannot_be_looked_at():
    inputs, states = _attention()
    x = keras.layers.Dense(1)(_Eager()(states[-1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = keras_istar.attach(
            keras.Model(inputs, x), ATTENTION, strength=1.0
        )
    assert layer.attachment.masks == ("Keras masks, if any",) * 3


class _AddsLoss(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.supports_masking = True

    def call(self, x):
        self.add_loss(ops.mean(x))
        return x


@pytest.mark.filterwarnings("ignore:The model does not have any trainable")
def test_looking_for_masks_changes_nothing(ids):
    inputs, states = _attention()
    x = keras.layers.BatchNormalization()(_AddsLoss()(states[-1]))
    model = _finish(inputs, keras.layers.Dropout(0.5)(x))
    x = {"token_ids": ids}
    model(x, training=True)
    first = keras_istar.attach(model, ATTENTION, strength=1.0)
    keras_istar.measure(model, x, ATTENTION, measures=["mean_norm"], verbose=0)
    model(x, training=True)
    before = [ops.convert_to_numpy(v) for v in model.non_trainable_variables]
    losses = [float(loss) for loss in model.losses]
    assert len(losses) == 2
    cosine = keras_istar.CosineRegularization(0.0)
    keras_istar.attach_regularizer(model, cosine, ATTENTION)
    assert [float(loss) for loss in model.losses] == losses
    after = [ops.convert_to_numpy(v) for v in model.non_trainable_variables]
    for value in before:
        assert any(np.array_equal(value, other) for other in after)
    # The first layer can still give its one warning.
    for layer in model.layers:
        layer.trainable = False
    with pytest.warns(UserWarning, match="trains nothing"):
        model.compile("sgd", "mse")
        model.fit(x, np.zeros((8, 1)), verbose=0)
    assert first.attachment.masks == ("its Keras mask",) * 3


def test_masks_that_are_lost_before_a_call_by_hand(ids):
    inputs, states = _attention(adds=True)
    model = _finish(inputs, keras_istar.IStarRegularization(1.0)(states))
    with pytest.warns(UserWarning, match=r"hidden states \[0, 1, 2\]"):
        model({"token_ids": ids}, training=True)


def test_the_mask_of_a_nested_model_that_is_given_by_hand(ids):
    encoder = keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            keras.layers.Embedding(9, 4, mask_zero=True),
            keras.layers.Dense(4),
        ]
    )
    inputs = keras.Input((LENGTH,), dtype="int32", name="token_ids")
    x = encoder(inputs)
    attended = keras.layers.MultiHeadAttention(2, 2)(x, x)
    x = attended + keras_istar.IStarRegularization(1.0)(x)
    model = _finish(inputs, x)
    model({"token_ids": ids}, training=True)
    states = ops.convert_to_numpy(encoder(ids))
    points = oracle.unmasked([states], [ids != 0])
    assert float(model.losses[-1]) == pytest.approx(
        oracle.penalty(points, 1.0), abs=1e-5
    )


class _Labelled(keras_istar.HiddenStateRegularization):
    """Has arguments of its own before `mask`, or no `mask` at all."""

    def measure(self, hidden_states, masks):
        self.masks = masks
        return ops.mean(hidden_states[0])

    def loss(self, measure):
        return measure

    def call(self, hidden_states, labels=None, mask=None, training=None):
        self.labels = labels
        return super().call(hidden_states, mask=mask, training=training)


class _WithoutMask(_Labelled):
    def call(self, hidden_states, training=None):
        return super().call(hidden_states, training=training)


def test_regularizers_with_other_arguments(ids):
    x, labels = np.ones((2, 4, 3), "float32"), np.ones((2, 4), "int32")
    labelled = _Labelled(1.0)
    labelled(x, labels, training=True)
    assert labelled.labels is not None and labelled.masks == [None]
    _WithoutMask(1.0)(x, training=True)


def test_masks_that_are_lost_in_a_call_by_hand(ids):
    """Of a subclassed model, no graph tells which layers make the states."""
    layer = keras_istar.IStarRegularization(1.0)
    embedding = keras.layers.Embedding(9, 4, mask_zero=True)
    blocks = [keras.layers.MultiHeadAttention(2, 2) for _ in range(3)]

    def run(**options):
        x, states = embedding(ids), []
        for block in blocks:
            x = block(x, x)
            states.append(x)
        layer(states, training=True, **options)

    with pytest.warns(UserWarning, match=r"hidden states \[0, 1\].* `mask`"):
        run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = keras_istar.IStarRegularization(1.0)
        run(mask=ids != 0)
        # Another sequence has tokens of its own.
        layer([embedding(ids), ops.ones((8, LENGTH + 1, 4))], training=True)


@pytest.mark.parametrize("length", [None, LENGTH])
def test_a_mask_of_another_sequence_is_not_taken(ids, length):
    model = _model(mask_name="padding_mask", prefix=3, length=length)
    x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    before = model.predict(x, verbose=0)
    with pytest.warns(UserWarning, match="padding"):
        keras_istar.attach(model, "encoder", strength=-1.0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    assert np.isfinite(_penalty(model, x))
    model.evaluate(x, np.zeros((8, 1)), verbose=0)
    keras_istar.detach(model)
    with pytest.raises(ValueError, match="`mask` must have the shape"):
        keras_istar.attach(model, "encoder", mask="padding_mask", strength=-1.0)
    # A function can say what counts in the longer sequence.
    keras_istar.attach(
        model,
        "encoder",
        strength=1.0,
        mask=lambda x: ops.pad(
            x["token_ids"] != 0, [(0, 0), (3, 0)], constant_values=True
        ),
    )
    longer = np.concatenate([ids[:, :1].repeat(3, axis=1), ids], axis=1)
    counts = np.concatenate([np.ones((8, 3)), ids != 0], axis=1)
    assert _penalty(model, x) == pytest.approx(
        oracle.penalty(_cloud(model, longer, counts), 1.0), abs=1e-5
    )


def test_a_mask_that_fits_by_chance_alone(ids):
    """Sampled down, a sequence is not as long as its mask."""
    inputs = {
        "features": keras.Input((None, 3), name="features"),
        "padding_mask": keras.Input((None,), name="padding_mask"),
    }
    x = keras.layers.Conv1D(4, 3, strides=2, name="encoder")(inputs["features"])
    pooled = keras.layers.GlobalAveragePooling1D()(x)
    pooled += 0.0 * ops.sum(inputs["padding_mask"])
    model = keras.Model(inputs, keras.layers.Dense(1)(pooled))
    layer = keras_istar.attach(model, "encoder", strength=-1.0)
    assert layer.attachment.masks == ("Keras masks, if any",)
    data = {
        "features": np.random.default_rng(0).normal(size=(4, 9, 3)),
        "padding_mask": np.ones((4, 9)),
    }
    model.predict(data, verbose=0)
    model.compile("sgd", "mse")
    model.fit(data, np.zeros((4, 1)), verbose=0)


def test_a_function_of_the_only_input(ids):
    inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(9, 4, embeddings_initializer="glorot_normal")(
        inputs
    )
    x = keras.layers.Dense(4, "tanh", name="encoder")(x)
    model = keras.Model(
        inputs, keras.layers.Dense(1)(keras.layers.GlobalMaxPooling1D()(x))
    )
    expected = oracle.penalty(_cloud(model, ids, ids != 0), 1.0)
    keras_istar.attach(model, "encoder", strength=1.0, mask=lambda x: x != 0)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    logs = model.fit(ids, np.zeros((8, 1)), batch_size=8, verbose=0).history
    assert logs["istar_penalty"][0] == pytest.approx(expected, abs=1e-5)


def test_masks_of_a_model_called_twice(ids):
    """Each call has its own mask."""
    inner = _model(mask_name="padding_mask")
    names = ("token_ids", "padding_mask")
    inputs = {
        f"{side}_{name}": keras.Input(
            (None,), dtype="int32", name=f"{side}_{name}"
        )
        for side in ("a", "b")
        for name in names
    }
    calls = [
        inner({name: inputs[f"{side}_{name}"] for name in names})
        for side in ("a", "b")
    ]
    model = keras.Model(inputs, keras.layers.Subtract()(calls))
    other = np.roll(ids, 1, axis=0)
    cloud = [_cloud(inner, part, part != 0) for part in (ids, other)]
    keras_istar.attach(model, "encoder", strength=1.0)
    x = {
        "a_token_ids": ids,
        "a_padding_mask": ids != 0,
        "b_token_ids": other,
        "b_padding_mask": other != 0,
    }
    x = {name: value.astype("int32") for name, value in x.items()}
    model.compile(keras.optimizers.SGD(0.0), "mse")
    logs = model.fit(x, np.zeros((8, 1)), batch_size=8, verbose=0).history
    assert logs["istar_penalty"][0] == pytest.approx(
        oracle.penalty(np.concatenate(cloud), 1.0), abs=1e-5
    )


@pytest.mark.parametrize(
    "mask, message",
    [
        (True, "`mask` must be None, False, the name of an input"),
        (3, "`mask` must be None, False, the name of an input"),
        ({}, "`mask` must be None, False, the name of an input"),
        ({"token_ids": "x"}, "`mask` must be None, False, the name of an inp"),
        ("no_such", "`mask` must name an input of"),
        ({"no_such": 0}, "`mask` must name an input of"),
        (lambda x: x["no_such"], "a function that raised KeyError"),
        (lambda x: x["token_ids"][:, :2] != 0, "`mask` must have the shape"),
        (lambda x: 1, "`mask` must "),
    ],
)
def test_wrong_masks_leave_the_model_as_it_was(mask, message):
    model = _model()
    before = dict(vars(model)), len(model.weights)
    with pytest.raises(ValueError) as error:
        keras_istar.attach(model, "encoder", mask=mask, strength=-1.0)
    assert message in str(error.value)
    assert (dict(vars(model)), len(model.weights)) == before
    keras_istar.attach(model, "encoder", mask=False, strength=-1.0)


class Block(keras.layers.Layer):
    """Looks at its own tokens, and at those of a memory."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.factor = self.add_weight((), keras.initializers.Constant(2.0))

    def call(self, x, padding_mask=None, memory=None, memory_mask=None):
        return ops.tanh(self.factor * x)

    def compute_output_shape(self, shape, *others):
        return shape


def _sequences(rng, **lengths):
    """Inputs, and values of each, with a mask beside it."""
    inputs, values = {}, {}
    for name, length in lengths.items():
        mask = f"{name}_padding_mask"
        inputs[name] = keras.Input((length, 4), name=name)
        inputs[mask] = keras.Input((length,), name=mask)
        number = length or LENGTH
        values[name] = rng.normal(size=(8, number, 4)).astype("float32")
        counts = rng.integers(2, number, size=(8, 1))
        values[mask] = (np.arange(number) < counts).astype("float32")
    return inputs, values


def _penalty_of(model, inputs, values, layers):
    """What was logged, and the states that were scored."""
    keras_istar.attach(model, layers, strength=1.0)
    states = keras.Model(inputs, model.get_layer(layers).output)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    logs = model.fit(values, np.zeros((8, 1)), batch_size=8, verbose=0).history
    return logs["istar_penalty"][0], states.predict(values, verbose=0)


def _means(*states):
    pooled = [keras.layers.GlobalAveragePooling1D()(x) for x in states]
    return keras.layers.Dense(1)(sum(pooled))


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("names", [("text", "context"), ("a", "layer"), "qd"])
def test_a_block_has_the_mask_that_it_is_given(rng, names, is_named):
    inputs, values = _sequences(rng, **dict.fromkeys(names, LENGTH))
    states = []
    for name in names:
        mask = inputs[f"{name}_padding_mask"]
        given = {"padding_mask": mask} if is_named else {}
        args = () if is_named else (mask,)
        states.append(Block(name=f"{name}_block")(inputs[name], *args, **given))
    model = keras.Model(list(inputs.values()), _means(*states))
    _, second = names
    flat = list(values.values())
    penalty, states = _penalty_of(
        model, list(inputs.values()), flat, f"{second}_block"
    )
    mask = values[f"{second}_padding_mask"]
    assert penalty == pytest.approx(
        oracle.penalty(states[mask > 0], 1.0), abs=1e-5
    )


@pytest.mark.parametrize("length", [None, LENGTH])
def test_a_mask_of_an_input_that_the_block_does_not_see(rng, length):
    inputs, values = _sequences(rng, text=length)
    mask = inputs.pop("text_padding_mask")
    inputs |= {"padding_mask": mask, "audio": keras.Input((length, 4))}
    values["padding_mask"] = values.pop("text_padding_mask")
    values["audio"] = rng.normal(size=(8, LENGTH, 4)).astype("float32")
    text = inputs["text"] * ops.expand_dims(mask, -1)
    text = keras.layers.Dense(4, "tanh", name="text_block")(text)
    audio = keras.layers.Dense(4, "tanh", name="audio_block")(inputs["audio"])
    order = ["text", "padding_mask", "audio"]
    inputs = [inputs[name] for name in order]
    values = [values[name] for name in order]
    model = keras.Model(inputs, _means(text, audio))
    penalty, states = _penalty_of(model, inputs, values, "audio_block")
    expected = oracle.penalty(states.reshape(-1, 4), 1.0)
    assert penalty == pytest.approx(expected, abs=1e-5)
    keras_istar.detach(model)
    penalty, states = _penalty_of(model, inputs, values, "text_block")
    expected = oracle.penalty(states[values[1] > 0], 1.0)
    assert penalty == pytest.approx(expected, abs=1e-5)


def test_a_mask_of_the_memory_is_not_that_of_the_block(rng):
    inputs, values = _sequences(rng, x=LENGTH, memory=LENGTH)
    del inputs["x_padding_mask"], values["x_padding_mask"]
    states = Block(name="block")(
        inputs["x"],
        memory=inputs["memory"],
        memory_mask=inputs["memory_padding_mask"],
    )
    model = keras.Model(inputs, _means(states))
    penalty, states = _penalty_of(model, inputs, values, "block")
    expected = oracle.penalty(states.reshape(-1, 4), 1.0)
    assert penalty == pytest.approx(expected, abs=1e-5)


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
@pytest.mark.parametrize("name", ["padding_mask", "attention_mask"])
def test_a_mask_has_the_name_by_which_the_model_takes_it(rng, name):
    inputs, values = _sequences(rng, x=LENGTH)
    values[name] = values.pop("x_padding_mask")
    inputs = {"x": inputs["x"], name: keras.Input((LENGTH,))}
    states = keras.layers.Dense(4, "tanh", name="block")(inputs["x"])
    weighted = states * ops.expand_dims(inputs[name], -1)
    model = keras.Model(inputs, _means(weighted))
    penalty, states = _penalty_of(model, inputs, values, "block")
    expected = oracle.penalty(states[values[name] > 0], 1.0)
    assert penalty == pytest.approx(expected, abs=1e-5)


def _embedded(inputs):
    return keras.layers.Embedding(9, 4)(inputs)


LOST = {
    "ids that are floats": (keras.Input((LENGTH,)), _embedded),
    "ids of pairs": (
        keras.Input((2, LENGTH), dtype="int32"),
        lambda x: keras.layers.Reshape((2 * LENGTH, 4))(_embedded(x)),
    ),
    "a mask that an operation drops": (
        keras.Input((LENGTH, 4)),
        lambda x: keras.layers.Masking()(x) + 1.0,
    ),
    "a mask that a layer drops": (
        keras.Input((LENGTH, 4)),
        lambda x: keras.layers.Lambda(ops.tanh)(keras.layers.Masking()(x)),
    ),
}


@pytest.mark.parametrize("name", LOST)
@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
def test_the_user_is_asked_where_a_mask_was_lost(name):
    inputs, function = LOST[name]
    states = keras.layers.Dense(4, name="block")(function(inputs))
    model = keras.Model(inputs, _means(states))
    with pytest.warns(UserWarning, match="No padding mask was found for block"):
        keras_istar.attach(model, "block")
