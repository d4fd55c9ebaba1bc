"""What attaching does to every model of KerasHub, as a table.

    python tests/support/supported_models.py [NAME ...] [--write FILE]

prints a line for each family, or writes the table. Models are as small as they
can be built, with random weights.
"""

import argparse
import inspect
import pathlib
import tempfile
import warnings
import zipfile

import hub_models
import keras
import keras_hub
import numpy as np
import oracle
from private_keras import all_layers
from private_keras import snapshot

import keras_istar

BATCH, LENGTH = 4, 6
COLUMNS = (
    "Backbone",
    "Blocks taken",
    "Padding mask",
    "Same outputs",
    "NumPy's penalty",
    "Fits",
    "Same texts",
    "Plain file",
    "Tasks",
)
TEXT = """# Supported models

What `keras_istar.attach` does to every backbone of KerasHub {version}, and to the tasks that take it, on TensorFlow. Each is built as small as it can be, with random weights and without dropout. The slow tests repeat the page, and this command writes it anew:

```text
PYTHONPATH=. python tests/support/supported_models.py --write docs/supported_models.md
```

- *Blocks taken*: how many hidden states `attach(model)` regularizes, and the classes of the layers that return them. Where `layers` has to say more, each line is shown: of blocks of several widths, one width is attached at a time; several encoders are attached by a line each, at once.
- *Padding mask*: where it comes from. "None found" means that `attach` warns and asks for `mask`.
- *Same outputs*: bit for bit, while attached and after `detach`.
- *NumPy's penalty*: what one step of training adds to the loss is what NumPy computes in float64 from the outputs of the blocks.
- *Fits*: a step of training changes the weights.
- *Same texts*: greedy generation gives the same before `attach`, while attached, and after `detach`.
- *Plain file*: a `.keras` file saved while attached loads as a model that holds nothing of this package and gives the same outputs.
- *Tasks*: those for which all of this was found as well; a dash introduces what differs.
- An error in a cell is KerasHub's own: it is raised without `attach`, too.

{table}

Without blocks, `attach` refuses "all" and lists the layers that it takes by name.
"""  # noqa: E501


def data_for(model, lengths):
    """Random inputs; half of every other sentence is padding, with id 0."""
    rng = np.random.default_rng(0)

    def one(tensor):
        length = lengths.get(tensor.name, LENGTH)
        shape = [BATCH, *(length if s is None else s for s in tensor.shape[1:])]
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        counts = np.ones(shape)
        if len(shape) == 2 and "label" not in tensor.name:
            counts[1::2, length // 2 :] = 0
        if "padding_mask" in tensor.name:
            return counts.astype(dtype)
        if "attention_mask" in tensor.name:
            return np.ones(shape, dtype)
        if "mask" in tensor.name or "segment" in tensor.name:
            return np.zeros(shape, dtype)
        if "int" in dtype:
            return (rng.integers(1, 15, shape) * counts).astype(dtype)
        return rng.normal(size=shape).astype(dtype)

    return keras.tree.map_structure(one, model.input)


def outputs_of(model, x):
    """All outputs as arrays."""
    outputs = keras.tree.flatten(model(x, training=False))
    return [keras.ops.convert_to_numpy(y) for y in outputs]


def same(a, b):
    """Whether two lists of arrays are the same, bit for bit."""
    return all(np.array_equal(*pair) for pair in zip(a, b, strict=True))


def states_of(model, x, owner, classes):
    """What layers of such classes in a nested model return, in `model(x)`."""
    states = []

    def recorded(call):
        def wrapper(*args, **kwargs):
            outputs = call(*args, **kwargs)
            states.append(keras.tree.flatten(outputs)[0])
            return outputs

        return wrapper

    blocks = [
        layer for layer in all_layers(owner) if type(layer).__name__ in classes
    ]
    before = [vars(block).copy() for block in blocks]
    for block in blocks:
        vars(block)["call"] = recorded(block.call)
    outputs_of(model, x)
    for block, attributes in zip(blocks, before, strict=True):
        del vars(block)["call"]
        vars(block).update(attributes)
    return [keras.ops.convert_to_numpy(state) for state in states]


def expected_penalty(layer, states, x, entry):
    """From the blocks' outputs, in NumPy."""
    states = [state for state in states if state.shape[-1] == layer.dim]
    tokens = []
    for state, source in zip(states, layer.attachment.masks, strict=True):
        counts = np.ones(state.shape[:-1], bool)
        if entry.mask is not None and source.startswith("argument"):
            counts = entry.mask(x)
        elif source.startswith("input"):
            counts = x[source.split("'")[1]] != 0
        tokens.append(state[counts])
    return oracle.penalty(np.concatenate(tokens), 1.0)


def train_step(model, x):
    """The logs of a step that makes outputs smaller; the weights it changes.

    All weights are as before in the end.
    """
    keras.Model.compile(
        model,
        keras.optimizers.SGD(0.01),
        lambda y_true, y_pred: keras.ops.mean(keras.ops.square(y_pred)),
        jit_compile=False,
        # A graph takes seconds to make; that of the backbone will do.
        run_eagerly=isinstance(model, keras_hub.models.Task),
    )
    y = keras.tree.map_structure(
        lambda y: np.zeros((*y.shape[:-1], 1)), model(x, training=False)
    )
    before = [np.copy(w.numpy()) for w in model.weights]
    logs = keras.Model.fit(model, x, y, batch_size=BATCH, verbose=0).history
    changed = [
        weight.path
        for weight, value in zip(model.weights, before, strict=True)
        if weight.trainable and not np.array_equal(weight, value)
    ]
    for weight, value in zip(model.weights, before, strict=True):
        weight.assign(value)
    return {name: values[0] for name, values in logs.items()}, changed


def generated(task, x):
    """Tokens that a model generates; None if it generates none."""
    kinds = (keras_hub.models.CausalLM, keras_hub.models.Seq2SeqLM)
    if not isinstance(task, kinds):
        return None
    task.compile(sampler="greedy", run_eagerly=True)
    texts = task.generate(x, stop_token_ids=None)
    return [keras.ops.convert_to_numpy(t) for t in keras.tree.flatten(texts)]


def is_plain(model, x, before):
    """Whether a file of a model loads without the package, and is the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.keras")
        model.save(path)
        assert b"istar" not in zipfile.ZipFile(path).read("config.json")
        loaded = keras.saving.load_model(path)
    held = [x for x in all_layers(loaded) if "istar" in x.__module__]
    return not held and same(outputs_of(loaded, x), before)


def attempt(function, *args):
    """What a function returns and raises."""
    try:
        return function(*args), None
    except Exception as e:
        return None, type(e).__name__


def examine(model, entry):
    """The cells about a model, backbone or task."""
    x = data_for(model, entry.lengths)
    before, weights = outputs_of(model, x), len(model.weights)
    texts, cannot_generate = attempt(generated, model, x)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        layers = [
            keras_istar.attach(model, line, strength=1.0)
            for line in entry.layers
        ]
    numbers = [len(layer.state_names) for layer in layers]
    assert numbers == [entry.number] * len(layers), numbers
    masks = [m for layer in layers for m in layer.attachment.masks]
    asked = any("padding" in str(w.message) for w in said)
    assert asked == any("none found" in mask for mask in masks), masks
    owners = {part.name: part for part in all_layers(model)}
    expected = sum(
        expected_penalty(
            layer,
            states_of(model, x, owners[layer.owner_name], entry.blocks.split()),
            x,
            entry,
        )
        for layer in layers
    )
    is_same = [same(outputs_of(model, x), before)]
    same_texts = [texts is None or same(generated(model, x), texts)]
    plain, cannot_save = attempt(is_plain, model, x, before)
    logs, changed = train_step(model, x)
    logged = sum(v for k, v in logs.items() if k.endswith("istar_penalty"))
    keras_istar.detach(model)
    assert len(model.weights) == weights
    is_same.append(same(outputs_of(model, x), before))
    same_texts.append(texts is None or same(generated(model, x), texts))
    if cannot_save:
        assert attempt(is_plain, model, x, before)[1] == cannot_save
    return {
        "Padding mask": "; ".join(dict.fromkeys(masks)),
        "Same outputs": _word(all(is_same)),
        "NumPy's penalty": "yes"
        if abs(logged - expected) < 1e-4
        else f"no: {logged:.4f}, NumPy {expected:.4f}",
        "Fits": _word(changed and np.isfinite([*logs.values()]).all()),
        "Same texts": cannot_generate
        or (_word(all(same_texts)) if texts is not None else ""),
        "Plain file": cannot_save or _word(plain),
    }


def _word(value):
    return "yes" if value else "no"


def refusal_of(model, entry):
    """Why a model without blocks is refused, which leaves nothing behind."""
    outputs_of(model, data_for(model, entry.lengths))
    before = snapshot(model)
    try:
        keras_istar.attach(model)
    except ValueError as e:
        reason = str(e).removeprefix("`layers` cannot choose blocks, for ")
        assert "no encoder blocks" in reason or len(reason) < len(str(e)), e
    else:
        raise AssertionError("attached to a model that should have no blocks")
    assert snapshot(model) == before
    is_plain_word = "no encoder blocks" in reason
    return "none" if is_plain_word else f"none: {reason.partition('. ')[0]}"


def tasks_of(backbone):
    """Names of the tasks that take a backbone, each class once."""
    kind = getattr(keras_hub.models, backbone)
    return [
        name
        for name, task in _classes(keras_hub.models.Task)
        if task.backbone_cls is kind
    ]


def _classes(kind):
    """Names and subclasses of `kind` in KerasHub, each class once."""
    found = {}
    for name in dir(keras_hub.models):
        value = getattr(keras_hub.models, name)
        if inspect.isclass(value) and issubclass(value, kind):
            is_own_name = value.__name__ == name
            if is_own_name or value not in found:
                found[value] = name
    return sorted((name, value) for value, name in found.items())


def build_task(name, backbone):
    """A task of a backbone, without a preprocessor."""
    kind = getattr(keras_hub.models, name)
    known = {
        "backbone": hub_models.build(backbone),
        "preprocessor": None,
        "num_classes": 2,
        "depth_estimation_type": "relative",
    }
    names = inspect.signature(kind.__init__).parameters
    return kind(**{k: v for k, v in known.items() if k in names})


def row_of(name):
    """The cells of the line about a family."""
    entry = hub_models.MODELS[name]
    if isinstance(entry, str):
        return [name, f"not built: {entry}", *[""] * 7]
    model = hub_models.build(name)
    if not entry.number:
        return [name, refusal_of(model, entry), *[""] * 7]
    cells = examine(model, entry)
    tasks = []
    for task in tasks_of(name):
        model, problem = attempt(build_task, task, name)
        if problem:
            tasks.append(f"{task} – cannot be built so: {problem}")
            continue
        others = examine(model, entry)
        cells["Same texts"] = cells["Same texts"] or others["Same texts"]
        differing = [
            f"{column}: {others[column]}"
            for column, value in cells.items()
            if others[column] not in ("", value)
        ]
        tasks.append(" – ".join([task, *differing]))
    blocks = entry.blocks.replace(" ", ", ")
    if entry.layers == ("all",):
        taken = f"{entry.number} ({blocks})"
    else:
        lines = " and ".join(f"`layers={line!r}`" for line in entry.layers)
        taken = f"{entry.number} ({blocks}) by {lines}"
    return [name, taken, *cells.values(), ", ".join(tasks)]


def line_of(cells):
    """A line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def backbones():
    """Names of all backbones of KerasHub, each class once; no towers."""
    models = keras_hub.models
    return [
        name
        for name, kind in _classes(models.Backbone)
        if kind not in (models.Backbone, models.FeaturePyramidBackbone)
        and not name.endswith("Encoder")
    ]


def main():
    """Prints or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="of backbones; default: all")
    parser.add_argument("--write", type=pathlib.Path, help="file for the page")
    options = parser.parse_args()
    lines = [line_of(COLUMNS), "|---" * len(COLUMNS) + "|"]
    for name in options.names or backbones():
        lines.append(line_of(row_of(name)))
        print(lines[-1], flush=True)
    if options.write:
        text = TEXT.format(
            version=keras_hub.__version__, table="\n".join(lines)
        )
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
