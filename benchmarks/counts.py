"""Operations, bytes, products and fusions of compiled programs, on JAX.

They are exact, and the same whenever the same versions compile for the same
kind of processor, so that two versions of the code can be compared. Products
are listed with the shapes and types that the program asks for; beside them
stands how many the optimized program has. Its types would mislead: the compiler
for CPUs widens bfloat16 operands, that for GPUs does not.
"""

import collections
import re

import jax
import keras
from jax.extend.core import ClosedJaxpr

from benchmarks import models
from benchmarks import train_step
from benchmarks.penalty import hidden_states
from benchmarks.penalty import penalty
from benchmarks.report import Row
from benchmarks.report import number_row

_ATTACHED = "every token"
_SMALL = models.Encoder("small", 2, 128, batch=32, length=128, vocabulary=1000)


def rows(device: str, tiny: bool) -> list[Row]:
    """Rows of the penalty, and of train steps against the plain one."""
    tokens, dim = (64, 8) if tiny else (4096, 768)
    encoder = models.TINY if tiny else _SMALL
    found = []
    for dtype in ("float32", "bfloat16"):
        found += _penalty_rows(tokens, dim, dtype)
    for policy in (
        ("mixed_bfloat16",) if tiny else ("float32", "mixed_bfloat16")
    ):
        keras.config.set_dtype_policy(policy)
        found += _step_rows(f"{encoder}, {policy}", encoder)
    return found


def _penalty_rows(tokens, dim, dtype):
    states = hidden_states(3 * tokens, dim, dtype, width=tokens)
    traced = jax.jit(jax.value_and_grad(penalty(states))).trace(states)
    case = f"penalty, 3 states of {tokens:,} × {dim:,}, {dtype}"
    numbers = program_counts(traced.lower().compile())
    numbers |= sorted(products(traced.jaxpr).items())
    return [Row(case, name, number, "") for name, number in numbers.items()]


def _step_rows(case, encoder):
    sides = (_ATTACHED, train_step.PLAIN)
    steps = {side: train_step.make_step(encoder, side) for side in sides}
    numbers = {s: program_counts(step.program) for s, step in steps.items()}
    found = [
        number_row(
            f"{case}, {name}", {s: numbers[s][name] for s in sides}, *sides
        )
        for name in numbers[train_step.PLAIN]
    ]
    attached, plain = [products(step.traced.jaxpr) for step in steps.values()]
    for product, number in sorted((attached - plain).items()):
        found.append(Row(f"{case}, {_ATTACHED}, added", product, number, ""))
    return found


def program_counts(program: jax.stages.Compiled) -> dict[str, float]:
    """Counts what an optimized program does in one call."""
    cost, text = program.cost_analysis(), program.as_text()
    return {
        "operations": cost["flops"],
        "bytes accessed": cost["bytes accessed"],
        "fusions": len(re.findall(r" fusion\(", text)),
        "products": len(re.findall(r" dot\(", text)),
    }


def products(jaxpr: ClosedJaxpr) -> collections.Counter:
    """Counts matrix products by shapes and types of operands and result.

    Example:
        >>> a, b = jax.numpy.ones((2, 3)), jax.numpy.ones((3, 4))
        >>> products(jax.make_jaxpr(lambda a, b: a @ b)(a, b))
        Counter({'f32[2,3] · f32[3,4] → f32[2,4]': 1})
    """
    counted = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            a, b, result = (
                variable.aval.str_short(short_dtypes=True)
                for variable in (*equation.invars, *equation.outvars)
            )
            counted[f"{a} · {b} → {result}"] += 1
        for parameter in jax.tree.leaves(equation.params):
            if hasattr(parameter, "eqns"):
                counted += products(parameter)
    return counted
