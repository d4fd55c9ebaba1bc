"""Sizes of what is compiled: small, but the penalty's products dominate it."""

LAYERS, DIM, LENGTH, EXAMPLES_PER_CHIP = 2, 128, 64, 8

TOKENS_PER_CHIP = LENGTH * EXAMPLES_PER_CHIP

# 2 n d² operations forward and 2 n d² backward for each hidden state.
PENALTY_FLOPS = LAYERS * 4 * TOKENS_PER_CHIP * DIM**2
