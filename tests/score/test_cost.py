"""Operations and memory of the penalty, read from graphs, not from clocks."""

import collections
import itertools

import keras
import numpy as np
import pytest
from keras import ops

import keras_istar

BACKEND = keras.backend.backend()
TOKENS, DIM = (6, 7), 5
TOKEN_SIZED = 6 * 7 * DIM
PRODUCTS = ("MatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum")

on_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="reads a TensorFlow graph"
)
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="reads a jaxpr")
masked_or_not = pytest.mark.parametrize("masked", [True, False])
any_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def _arguments(number, masked, dtype="float32"):
    """Constant states and a mask, or None."""
    states = [ops.ones((*TOKENS, DIM), dtype)] * number
    return states, ops.ones(TOKENS, "bool") if masked else None


def _penalty(number, **options):
    """The layer's penalty as a function of states and mask."""
    layer = keras_istar.IStarRegularization(**({"strength": -1.0} | options))
    layer(_arguments(number, False)[0])

    def penalty(states, mask):
        layer(states, mask=mask, training=True)
        return layer.losses[-1]

    return penalty


# TensorFlow


def _traced(number, masked, dtype="float32", **options):
    """Operations of the penalty's forward and of its backward pass."""
    import tensorflow as tf

    penalty = _penalty(number, **options)
    states, mask = _arguments(number, masked, dtype)
    forward = []

    @tf.function
    def step(states, mask):
        with tf.GradientTape() as tape:
            tape.watch(states)
            value = penalty(states, mask)
        forward.extend(tf.compat.v1.get_default_graph().get_operations())
        return tape.gradient(value, states)

    concrete = step.get_concrete_function(states, mask)
    names = {op.name for op in forward}
    operations = concrete.graph.get_operations()
    return (
        [op for op in operations if op.name in names],
        [op for op in operations if op.name not in names],
    )


def _count_products(operations):
    """Matrix products in which every token takes part."""
    tokens = int(np.prod(TOKENS))
    return sum(
        any(tokens in tensor.shape for tensor in op.inputs)
        for op in operations
        if op.type in PRODUCTS
    )


def _retained(forward, backward):
    """Tensors of the forward pass that the backward pass reads."""
    made = {t.name for op in forward for t in op.outputs}
    read = {t.name: t for op in backward for t in op.inputs}
    return [tensor for name, tensor in read.items() if name in made]


def _source(tensor):
    """The tensor whose memory this one shares."""
    while tensor.op.type in ("Reshape", "Identity"):
        tensor = tensor.op.inputs[0]
    return tensor


def _size(tensor):
    return tensor.shape.num_elements()


@on_tensorflow
@masked_or_not
@any_dtype
def test_one_product_forward_and_one_backward_for_each_state(masked, dtype):
    forward, backward = _traced(3, masked, dtype)
    assert _count_products(forward) == 3
    assert _count_products(backward) == 3


@on_tensorflow
@masked_or_not
@any_dtype
def test_backward_products_wait_for_each_other(masked, dtype):
    """Else an executor computes all that they need at once, and keeps it."""
    _, backward = _traced(3, masked, dtype)
    _assert_in_turn([op for op in backward if _count_products([op])])


@on_tensorflow
@masked_or_not
@any_dtype
def test_backward_draws_become_all_tokens_in_turn(masked, dtype):
    _, backward = _traced(3, masked, dtype, max_tokens=12)
    tokens = int(np.prod(TOKENS))
    _assert_in_turn(
        [
            op
            for op in backward
            if op.type == "GatherV2" and op.outputs[0].shape[0] == tokens
        ]
    )


def _assert_in_turn(operations):
    assert len(operations) == 3
    for before, after in itertools.pairwise(operations):
        assert before in _ancestors(after)


def _ancestors(operation):
    """Operations that must run before this one."""
    found, waiting = set(), [operation]
    while waiting:
        for tensor in waiting.pop().inputs:
            if tensor.op not in found:
                found.add(tensor.op)
                waiting.append(tensor.op)
    return found


@on_tensorflow
@masked_or_not
@any_dtype
def test_of_token_size_only_the_states_are_retained(masked, dtype):
    retained = _retained(*_traced(3, masked, dtype))
    large = {_source(t).name: _source(t) for t in retained}
    large = [t for t in large.values() if _size(t) >= TOKEN_SIZED]
    assert len(large) == 3
    assert {t.op.type for t in large} == {"Placeholder"}
    assert {t.dtype.name for t in large} == {dtype}


@on_tensorflow
@masked_or_not
def test_retained_matrices_do_not_grow_with_the_number_of_states(masked):
    counts = []
    for number in (2, 4):
        retained = _retained(*_traced(number, masked))
        counts.append(sum(tuple(t.shape) == (DIM, DIM) for t in retained))
    assert counts[0] == counts[1]


@on_tensorflow
@masked_or_not
@any_dtype
def test_no_compiler_can_keep_what_the_backward_pass_recomputes(masked, dtype):
    forward, backward = _traced(3, masked, dtype)
    first = _first_of_equals(forward + backward)
    made = {op.name for op in forward}
    large = [
        op.name
        for op in backward
        if first[op.name] in made
        and any(_size(t) >= TOKEN_SIZED for t in op.outputs)
    ]
    assert not large


def _first_of_equals(operations):
    """For each operation, the first that does the same with the same."""
    first, seen = {}, {}
    for op in operations:
        operands = [(first[t.op.name], t.value_index) for t in op.inputs]
        attributes = sorted((k, str(v)) for k, v in op.node_def.attr.items())
        is_source = not operands and op.type != "Const"
        does = op.name if is_source else str((op.type, operands, attributes))
        first[op.name] = seen.setdefault(does, op.name)
    return first


@on_tensorflow
def test_sampling_touches_no_more_than_the_sample_with_products():
    forward, backward = _traced(2, True, max_tokens=8)
    assert _count_products(forward + backward) == 0
    drawn = [
        op
        for op in forward + backward
        if op.type in PRODUCTS and any(8 in t.shape for t in op.inputs)
    ]
    assert len(drawn) == 2


@on_tensorflow
def test_draws_for_many_states_are_hardly_more_operations():
    sizes = [
        sum(map(len, _traced(number, True, max_tokens=8 * number)))
        for number in (2, 4, 12)
    ]
    per_state = (sizes[2] - sizes[1]) / 8
    assert (sizes[1] - sizes[0]) / 2 == pytest.approx(per_state, abs=3)
    assert per_state < 60


@on_tensorflow
def test_attached_model_adds_two_products_for_each_block(tiny_bert):
    import tensorflow as tf

    def added(num_layers):
        counts = []
        for attached in (True, False):
            model = tiny_bert(num_layers=num_layers)
            if attached:
                keras_istar.attach(model, strength=-1.0)
            inputs = {
                name: tf.ones((4, 6), "int32")
                for name in ("token_ids", "segment_ids", "padding_mask")
            }

            @tf.function
            def step(inputs, model=model):
                with tf.GradientTape() as tape:
                    outputs = model(inputs, training=True)
                    loss = tf.add_n(
                        [tf.reduce_sum(o) for o in outputs.values()]
                        + model.losses
                    )
                return tape.gradient(loss, model.trainable_variables)

            graph = step.get_concrete_function(inputs).graph
            types = [op.type for op in graph.get_operations()]
            counts.append(sum(t in PRODUCTS for t in types))
        return counts[0] - counts[1]

    assert added(4) - added(2) == 2 * 2


@on_tensorflow
def test_inference_of_an_attached_model_is_the_same_graph(tiny_bert):
    import tensorflow as tf

    model = tiny_bert()
    inputs = {
        name: tf.ones((4, 6), "int32")
        for name in ("token_ids", "segment_ids", "padding_mask")
    }

    def operations():
        function = tf.function(lambda x: model(x, training=False))
        graph = function.get_concrete_function(inputs).graph
        return collections.Counter(op.type for op in graph.get_operations())

    before = operations()
    keras_istar.attach(model, momentum=0.9, max_tokens=8, strength=-1.0)
    assert operations() == before


# JAX


def _equations(jaxpr):
    """Equations of a jaxpr and of those inside of it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)


@on_jax
@masked_or_not
@any_dtype
def test_one_product_a_pass_for_each_state_on_jax(masked, dtype):
    import jax

    states, mask = _arguments(3, masked, dtype)
    penalty = _penalty(3)

    def count(function):
        jaxpr = jax.make_jaxpr(function)(states, mask).jaxpr
        tokens = int(np.prod(TOKENS))
        return sum(
            any(tokens in v.aval.shape for v in equation.invars)
            for equation in _equations(jaxpr)
            if equation.primitive.name == "dot_general"
        )

    assert count(penalty) == 3
    assert count(jax.grad(penalty)) == 6


@on_jax
@masked_or_not
@any_dtype
def test_of_token_size_only_the_states_are_retained_on_jax(masked, dtype):
    import jax

    states, mask = _arguments(3, masked, dtype)
    states = [state * i for i, state in enumerate(states)]
    penalty = _penalty(3)
    _, backward = jax.vjp(lambda *x: penalty(list(x), mask), *states)
    retained = [x for x in jax.tree.leaves(backward) if x.ndim]
    large = [x for x in retained if x.size >= TOKEN_SIZED]
    assert {str(x.dtype) for x in large} == {dtype}
    for x in large:
        tokens = np.asarray(x, "float32").reshape(*TOKENS, DIM)
        assert any(np.array_equal(tokens, s) for s in states)
    assert len(large) == 3


@on_jax
@masked_or_not
@any_dtype
def test_gradient_of_draws_adds_nothing_to_zeros_on_jax(masked, dtype):
    """XLA would write the zeros for all states at once, and keep them."""
    import jax

    states, mask = _arguments(3, masked, dtype)
    gradient = jax.grad(_penalty(3, max_tokens=12))
    jaxpr = jax.make_jaxpr(gradient)(states, mask).jaxpr
    added = [
        equation
        for equation in _equations(jaxpr)
        if equation.primitive.name.startswith("scatter")
        and equation.outvars[0].aval.size >= TOKEN_SIZED
    ]
    assert not added


@on_jax
def test_inference_of_an_attached_model_is_the_same_jaxpr(tiny_bert):
    import jax

    model = tiny_bert()
    inputs = {
        name: np.ones((4, 6), "int32")
        for name in ("token_ids", "segment_ids", "padding_mask")
    }

    def primitives():
        jaxpr = jax.make_jaxpr(lambda x: model(x, training=False))(inputs)
        names = [e.primitive.name for e in _equations(jaxpr.jaxpr)]
        return collections.Counter(names)

    before = primitives()
    keras_istar.attach(model, momentum=0.9, max_tokens=8, strength=-1.0)
    assert primitives() == before
