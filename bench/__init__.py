"""Measurements: every figure comes from a command in this repository and is written by `results.py` to
`bench/results/`."""
