"""Measures what the penalty costs; see `python benchmarks --help`."""
