"""Reads what matters to a TPU off the text of compiled programs."""

import re

# `%name = f32[8,128]{layout} opcode(` or `%name = (f32[8]{0}, f32[]) opcode(`.
_INSTRUCTION = re.compile(
    r"= (\(.*?\)|\S+) ([a-z][a-z0-9-]*)\(", flags=re.MULTILINE
)
_SHAPE = re.compile(r"\b([a-z]+\d*\w*\[[\d,<=]*\])")
_CUSTOM_CALL = re.compile(
    r'custom_call_target="([^"]+)"|stablehlo\.custom_call @(\w+)'
)
_HOST = re.compile(
    r"is_host_transfer ?= ?true|\b(?:infeed|outfeed)\(|"
    r'custom_call @\w*callback|custom_call_target="[^"]*callback'
)
_EIGEN_SOLVER = re.compile("eig|svd|qr|cholesky|householder", re.IGNORECASE)


def problems(program):
    """What a TPU forbids, or does slowly, and this program does.

    Args:
        program: Dict with the texts `lowered` and `compiled`.
    """
    texts = program["lowered"], program["compiled"]
    kernels = set().union(*map(custom_calls, texts))
    checks = {
        "float64": any(map(has_float64, texts)),
        "dynamic shape": any(map(has_dynamic_shapes, texts)),
        "host": any(map(reaches_for_host, texts)),
        "eigen solver": any(map(_EIGEN_SOLVER.search, kernels)),
        "loop": count(program["compiled"], "while") > 0,
    }
    return [problem for problem, is_there in checks.items() if is_there]


def count(text, opcode):
    """Instructions of one kind, `while` for example."""
    return sum(found == opcode for _, found in _INSTRUCTION.findall(text))


def all_reduces(text):
    """For each all-reduce, the shapes it carries, `"f32[8,128]"`."""
    return [
        _SHAPE.findall(shapes)
        for shapes, opcode in _INSTRUCTION.findall(text)
        if opcode in ("all-reduce", "all-reduce-start")
    ]


def custom_calls(text):
    """Kernels that a program takes from elsewhere."""
    return {a or b for a, b in _CUSTOM_CALL.findall(text)}


def reaches_for_host(text):
    """Whether a program hands anything to the host while it runs."""
    return bool(_HOST.search(text))


def has_float64(text):
    """Whether any tensor of HLO or StableHLO is float64."""
    return bool(re.search(r"\bf64\[|xf64>|<f64>", text))


def has_dynamic_shapes(text):
    """Whether any tensor of HLO or StableHLO lacks a size."""
    return bool(re.search(r"\[[\d,]*<=|tensor<[\dx]*\?", text))
