"""A life of the package in a process that cannot import TensorFlow."""

import sys
import traceback

import numpy as np


class Without:
    """A finder that does not find TensorFlow, and notes who asked for it."""

    def __init__(self, finder):
        self._finder = finder
        self.askers = []

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorboard"):
            self.askers.append(_asker())
            return None
        return self._finder.find_spec(name, path, target)


def _asker():
    files = [frame.filename for frame in reversed(traceback.extract_stack())]
    return next(
        file for file in files if "importlib" not in file and file != __file__
    )


def main(output):
    sys.meta_path[:] = finders = [Without(f) for f in sys.meta_path]
    import keras

    import keras_istar

    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8))
    hidden = keras.layers.Dense(12, name="encoder")(inputs)
    hidden = keras_istar.IStarRegularization(-1.0, name="by_hand")(hidden)
    outputs = keras.layers.GlobalAveragePooling1D()(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1)(outputs))
    keras_istar.attach(model, layers="encoder", strength=-1.0)
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((16, 6, 8)), rng.standard_normal((16, 1))
    callback = keras_istar.IStarCallback(x, max_tokens=50, verbose=0)
    history = model.fit(
        x, y, validation_data=(x, y), verbose=0, callbacks=[callback]
    ).history
    keras_istar.detach(model)
    np.savez(
        output,
        backend=keras.backend.backend(),
        askers=np.array([a for f in finders for a in f.askers], dtype=str),
        imported=any(name.startswith("tensorflow") for name in sys.modules),
        logs=np.array(sorted(history)),
        values=np.array([value for (value,) in history.values()]),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
