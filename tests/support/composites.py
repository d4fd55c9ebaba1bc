"""Layers that keep blocks inside, in the ways in which people write them."""

import keras
from keras import ops

DIM, LENGTH = 4, 6


@keras.saving.register_keras_serializable("tests")
class Block(keras.layers.Layer):
    """A residual block with a part that looks like a block."""

    def __init__(self, dim=DIM, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim
        self.scale = scale
        self.norm = keras.layers.LayerNormalization()
        self.mlp = keras.Sequential(
            [
                keras.layers.Dense(2 * dim, "tanh"),
                keras.layers.Dense(dim),
            ]
        )

    def build(self, input_shape):
        self.norm.build(input_shape)
        self.mlp.build(input_shape)

    def call(self, x):
        return x + self.scale * self.mlp(self.norm(x))

    def get_config(self):
        own = {"dim": self.dim, "scale": self.scale}
        return super().get_config() | own


class Composite(keras.layers.Layer):
    """Base class: three blocks."""

    number = 3

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = keras.layers.Dropout(0.0)
        self.norm = keras.layers.LayerNormalization()
        self.make_parts()

    def make_parts(self):
        self.blocks = [Block(name=f"part_{i}") for i in range(self.number)]

    def build(self, input_shape):
        for part in self._flatten_layers(include_self=False, recursive=False):
            if not part.built:
                part.build(input_shape)

    def parts(self):
        """The blocks, in the order of their calls."""
        return self.blocks

    def states(self, x):
        """What the blocks return, without dropout."""
        states = []
        for part in self.parts():
            x = part(x)
            states.append(x)
        return states

    def call(self, x):
        x = self.dropout(x)
        for block in self.parts():
            x = block(x)
        return self.norm(x)


@keras.saving.register_keras_serializable("tests")
class Listed(Composite):
    """As in a Vision Transformer."""


@keras.saving.register_keras_serializable("tests")
class OneListed(Composite):
    """The same, of one block."""

    number = 1


@keras.saving.register_keras_serializable("tests")
class Named(Composite):
    """Blocks that are attributes."""

    def make_parts(self):
        self.first = Block(name="part_0")
        self.second = Block(name="part_1")

    def parts(self):
        return [self.first, self.second]


@keras.saving.register_keras_serializable("tests")
class Stacked(Composite):
    """Blocks in a Sequential model."""

    def make_parts(self):
        self.stack = keras.Sequential([Block(name=f"part_{i}") for i in (0, 1)])

    def parts(self):
        return self.stack.layers

    def call(self, x):
        return self.norm(self.stack(x))


@keras.saving.register_keras_serializable("tests")
class Shared(Composite):
    """One block, called three times."""

    def make_parts(self):
        self.block = Block(name="part")

    def parts(self):
        return [self.block] * 3


@keras.saving.register_keras_serializable("tests")
class Outputs(Composite):
    """Also returns what each block returns."""

    def call(self, x):
        outputs = {}
        for i, block in enumerate(self.blocks):
            x = outputs[f"stage_{i}"] = block(x)
        return self.norm(x), outputs


@keras.saving.register_keras_serializable("tests")
class Nested(Composite):
    """Two composite layers of two blocks."""

    def make_parts(self):
        self.stages = [Named(name="stage_0"), Named(name="stage_1")]

    def parts(self):
        return [part for stage in self.stages for part in stage.parts()]

    def call(self, x):
        for stage in self.stages:
            x = stage(x)
        return x

    def states(self, x):
        states = []
        for stage in self.stages:
            states += stage.states(x)
            x = stage.norm(states[-1])
        return states


@keras.saving.register_keras_serializable("tests")
class Keyed(Composite):
    """Blocks in a dict, with something in between."""

    def make_parts(self):
        self.blocks_by_name = {f"b{i}": Block(name=f"part_{i}") for i in (0, 1)}

    def build(self, input_shape):
        super().build(input_shape)
        self.built = True

    def parts(self):
        return list(self.blocks_by_name.values())

    def call(self, x):
        for block in self.parts():
            x = 2.0 * block(x)
        return self.norm(x)

    def states(self, x):
        states = []
        for part in self.parts():
            states.append(part(x))
            x = 2.0 * states[-1]
        return states


STACKS = [Listed, OneListed, Named, Stacked, Shared, Outputs, Nested, Keyed]


@keras.saving.register_keras_serializable("tests")
class TwoFeedForwards(keras.layers.Layer):
    """One block, with two parts of one class."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = Block(), Block()

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build(input_shape)

    def call(self, x):
        x = x + 0.5 * self.first(x)
        return x + 0.5 * self.second(x)


@keras.saving.register_keras_serializable("tests")
class Experts(keras.layers.Layer):
    """One block, with experts in a list."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.experts = [Block(), Block(), Block()]

    def build(self, input_shape):
        for expert in self.experts:
            expert.build(input_shape)

    def call(self, x):
        return x + ops.mean(ops.stack([f(x) for f in self.experts]), axis=0)


def model_of(composite):
    """A model with a composite layer between two dense ones."""
    inputs = keras.Input((LENGTH, 5), name="features")
    x = keras.layers.Dense(DIM, name="embedding")(inputs)
    x = composite(x)
    x = keras.tree.flatten(x)[0]
    return keras.Model(inputs, keras.layers.Dense(1, name="head")(x))


def explicit_model_of(model, kind):
    """The same model and layers, where the graph calls the blocks."""
    (composite,) = [x for x in model.layers if isinstance(x, kind)]
    x = model.get_layer("embedding").output
    x = composite.dropout(x)
    for block in composite.parts():
        x = block(x)
    outputs = model.get_layer("head")(composite.norm(x))
    return keras.Model(model.inputs, outputs)


@keras.saving.register_keras_serializable("tests")
class Scanned(Block):
    """A block that runs only if it knows how many tokens there are."""

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, x):
        tokens = [x[:, i] / (i + 1) for i in range(x.shape[1])]
        return super().call(ops.stack(tokens, axis=1))


@keras.saving.register_keras_serializable("tests")
class Stream(Block):
    """A block of several streams `(2, batch, length, dim)`."""


@keras.saving.register_keras_serializable("tests")
class Streams(Composite):
    """Blocks between layers that make several streams of one, and one again."""

    def make_parts(self):
        self.blocks = [Stream(name=f"part_{i}") for i in range(2)]

    def build(self, input_shape):
        for block in self.blocks:
            block.build((2, *input_shape))
        self.norm.build(input_shape)

    def call(self, x):
        x = ops.stack([x, 2.0 * x])
        for block in self.blocks:
            x = block(x)
        return self.norm(x[0])
