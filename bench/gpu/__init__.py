"""Measurements on a machine with a GPU and no network: what is carried there, and what runs it.

`pack.py` compiles the suite's models here and writes a kit; `run.py`, which is part of it, checks and times
it there with NumPy and iree.runtime alone, beside JAX and PyTorch. `torch_source.py` writes what PyTorch
compiles.
"""
