"""Runs of one task that train side by side on one GPU, in JAX."""
