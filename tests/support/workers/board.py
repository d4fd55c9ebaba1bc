"""Trains for two epochs with event files, on several devices or processes.

Arguments: the file to write, the folder of event files, and `mirrored`; or
`processes`, the address of the first process, and this process's index.
"""

import contextlib
import sys

import numpy as np

BATCH = 8


def mirrored():
    """A scope for the model, and how many examples a batch has here."""
    from mirrored import make_strategy

    return make_strategy(2).scope(), BATCH


def processes(address, index):
    from jax_distribution import set_distribution

    set_distribution("processes", address, index)
    return contextlib.nullcontext(), BATCH // 2


def main(output, folder, kind, *place):
    scope, batch_size = globals()[kind](*place)
    import keras
    from small_models import bert_classifier
    from small_models import token_batches

    import keras_istar

    with scope:
        model = bert_classifier()
        keras_istar.attach(model, strength=-1.0)
        model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = token_batches(4 * BATCH, BATCH)
    callback = keras_istar.IStarCallback(
        x, 10**6, batch_size=batch_size, verbose=0, log_dir=folder
    )
    history = model.fit(
        x, y, batch_size, epochs=2, verbose=0, callbacks=[callback]
    ).history
    np.savez(output, backend=keras.backend.backend(), **history)


if __name__ == "__main__":
    main(*sys.argv[1:])
