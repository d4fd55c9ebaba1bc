"""For decoders: fine-tune a causal language model with LoRA and I-STAR.

`enable_lora` freezes the model except for small matrices, and the penalty
reaches the hidden states only through these. Prints loss, IsoScore of every
block and a generated text, before and after. With a negative strength, which
the paper recommends for fine-tuning, isotropy falls; the loss stays as it is.
"""

import itertools

import keras
import keras_hub
import numpy as np

import keras_istar

SENTENCE = """the|a cat|dog|bird|horse|child|man sees|hears|likes|draws
    the|a tree|house|boat|river|road ."""
keras.utils.set_random_seed(0)
places = [place.split("|") for place in SENTENCE.split()]
words = sorted(set(itertools.chain(*places)))
sentences = np.array(
    [[words.index(word) for word in s] for s in itertools.product(*places)]
)
tokens, y = sentences[:, :-1], sentences[:, 1:]
x = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}

# A tiny GPT-2 that takes the numbers of words, trained here so that nothing is
# downloaded. `GPT2CausalLM.from_preset("gpt2_base_en")` is a pretrained one; it
# takes strings in `fit(texts)`, `generate(texts)` and `IStarCallback(texts)`.
causal_lm = keras_hub.models.GPT2CausalLM(
    keras_hub.models.GPT2Backbone(
        vocabulary_size=len(words),
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        intermediate_dim=64,
        max_sequence_length=8,
    )
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
causal_lm.compile(keras.optimizers.Adam(1e-2), loss, sampler="greedy")
causal_lm.fit(x, y, epochs=10, verbose=0)


def show(moment):
    print(f"loss {moment}: {causal_lm.evaluate(x, y, verbose=0)[0]:.3f}")
    report = keras_istar.measure(causal_lm, x, measures=["isoscore"], verbose=0)
    for row in report.rows:
        print(f"IsoScore of {row.layer} {moment}: {row.values['isoscore']:.3f}")
    # The mask says which words are given; the others are generated.
    prompt = {
        "token_ids": sentences[:1],
        "padding_mask": np.array([[1, 1, 0, 0, 0, 0]]),
    }
    (numbers,) = causal_lm.generate(prompt, stop_token_ids=None)["token_ids"]
    print(f"text {moment}: {' '.join(words[number] for number in numbers)}")


show("before")
causal_lm.backbone.enable_lora(rank=4)
keras_istar.attach(causal_lm, strength=-0.3)
trained = sum(np.prod(w.shape) for w in causal_lm.trainable_weights)
print(f"weights that train: {trained} of {causal_lm.count_params()}")
# Compiled again, since other weights train now.
causal_lm.compile(keras.optimizers.Adam(1e-2), loss, sampler="greedy")
callback = keras_istar.IStarCallback(x, verbose=0)
causal_lm.fit(x, y, epochs=10, callbacks=[callback], verbose=0)
show("after")
