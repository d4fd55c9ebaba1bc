"""Small models and data that workers train, the same in every process."""

import keras
import numpy as np

LENGTH, WIDTH, WORDS = 12, 16, 40


def bert_classifier(seed=0):
    """A KerasHub BERT classifier without dropout."""
    import keras_hub

    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=WORDS,
        num_layers=2,
        num_heads=2,
        hidden_dim=WIDTH,
        intermediate_dim=2 * WIDTH,
        dropout=0.0,
        max_sequence_length=LENGTH,
    )
    return keras_hub.models.BertTextClassifier(
        backbone, num_classes=2, dropout=0.0
    )


def token_batches(examples, batch_size, seed=0):
    """Inputs and labels; within a batch, later sentences are shorter."""
    rng = np.random.default_rng(seed)
    place = np.arange(examples) % batch_size / batch_size
    lengths = np.ceil(LENGTH * (1 - place)).astype(int)
    padding_mask = np.arange(LENGTH) < lengths[:, None]
    shape = (examples, LENGTH)
    x = {
        "token_ids": rng.integers(1, WORDS, shape) * padding_mask,
        "padding_mask": padding_mask,
        "segment_ids": np.zeros(shape),
    }
    x = {name: value.astype("int32") for name, value in x.items()}
    return x, rng.integers(0, 2, examples).astype("int32")


def flat_weights(model):
    """All trainable weights as one vector, in float64."""
    weights = [keras.ops.convert_to_numpy(v) for v in model.trainable_weights]
    return np.concatenate([w.ravel() for w in weights]).astype("float64")
