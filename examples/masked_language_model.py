"""For pre-training: a masked language model with KerasHub's `BertMaskedLM`.

The preprocessor masks words at random, anew in every epoch; `attach` works as
for any task. Prints how often a masked word is found and the IsoScore of every
block, before and after: with a positive strength, all of them rise.
"""

import itertools

import keras
import keras_hub
import numpy as np

import keras_istar

SENTENCE = [
    "a|the|one|every|my".split("|"),
    "cat|dog|bird|horse".split("|"),
    "sees|hears|follows|likes".split("|"),
    "the|a|some|another".split("|"),
    "tree|river|house|road".split("|"),
]

keras.utils.set_random_seed(0)
texts = [" ".join(words) for words in itertools.product(*SENTENCE)]
texts = np.random.default_rng(0).permutation(texts)

# A tiny BERT with random weights, so that nothing is downloaded. To start from
# a pretrained one, replace this section by
# `BertMaskedLM.from_preset("bert_base_en_uncased")`.
words = sorted(set(itertools.chain(*SENTENCE)))
tokenizer = keras_hub.tokenizers.BertTokenizer(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words], lowercase=True
)
masked_lm = keras_hub.models.BertMaskedLM(
    keras_hub.models.BertBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        intermediate_dim=64,
        max_sequence_length=8,
    ),
    preprocessor=keras_hub.models.BertMaskedLMPreprocessor(
        tokenizer,
        sequence_length=8,
        mask_selection_rate=0.3,
        mask_selection_length=2,
    ),
)
masked_lm.compile(
    keras.optimizers.Adam(3e-3),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    weighted_metrics=["accuracy"],
)


def show(moment):
    results = masked_lm.evaluate(texts[250:], return_dict=True, verbose=0)
    report = keras_istar.measure(
        masked_lm, texts[250:], measures=["isoscore"], verbose=0
    )
    print(f"masked words found {moment}: {results['accuracy']:.3f}")
    for row in report.rows:
        print(f"IsoScore of {row.layer} {moment}: {row.values['isoscore']:.3f}")


show("before")
keras_istar.attach(masked_lm, strength=1.0)
callback = keras_istar.IStarCallback(texts[:250], verbose=0)
masked_lm.fit(texts[:250], epochs=20, callbacks=[callback], verbose=0)
show("after")
