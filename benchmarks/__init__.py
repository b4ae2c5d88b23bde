"""Benchmarks: each module of this package with a `run` is one; `python -m benchmarks` runs them."""
