"""For users of KerasHub: fine-tune a text classifier on raw strings.

Trains first without `attach`, then with it. `attach` finds the encoder blocks
and the padding by itself; `fit` takes strings as before. Prints accuracy on
held-out sentences, which stays, and IsoScore, which rises.
"""

import itertools

import keras
import keras_hub
import numpy as np

import keras_istar

GOOD = "great|funny|moving|clever|charming|warm|brilliant".split("|")
BAD = "dull|boring|weak|clumsy|tedious|cold|terrible".split("|")
SENTENCE = [
    "the plot|the cast|the music|every scene|the ending|this film".split("|"),
    "is|was|seems|felt really|looks quite|was not only".split("|"),
    BAD + GOOD,
]

keras.utils.set_random_seed(0)
texts = [" ".join(words) for words in itertools.product(*SENTENCE)]
texts = np.random.default_rng(0).permutation(texts)
labels = np.array([text.split()[-1] in GOOD for text in texts], "int32")

# A tiny BERT with random weights, so that nothing is downloaded. To start from
# a pretrained one, replace this section by
# `BertTextClassifier.from_preset("bert_base_en_uncased", num_classes=2)`.
words = sorted({word for text in texts for word in text.split()})
tokenizer = keras_hub.tokenizers.BertTokenizer(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words], lowercase=True
)
classifier = keras_hub.models.BertTextClassifier(
    keras_hub.models.BertBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        intermediate_dim=64,
        max_sequence_length=10,
    ),
    num_classes=2,
    preprocessor=keras_hub.models.BertTextClassifierPreprocessor(
        tokenizer, sequence_length=10
    ),
)
classifier.compile(
    keras.optimizers.Adam(1e-3),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)


def show(moment):
    _, accuracy = classifier.evaluate(texts[400:], labels[400:], verbose=0)
    report = keras_istar.measure(
        classifier, texts[400:], measures=["isoscore"], verbose=0
    )
    print(f"accuracy {moment}: {accuracy:.3f}")
    for row in report.rows:
        print(f"IsoScore of {row.layer} {moment}: {row.values['isoscore']:.3f}")


# A random encoder learns the task first: a penalty from the first step on would
# spread the states out before they mean anything.
training = {"batch_size": 16, "epochs": 3, "verbose": 0}
classifier.fit(texts[:400], labels[:400], **training)
show("before")

keras_istar.attach(classifier, strength=1.0)
callback = keras_istar.IStarCallback(texts[:400], verbose=0)
classifier.fit(texts[:400], labels[:400], callbacks=[callback], **training)
show("after")
