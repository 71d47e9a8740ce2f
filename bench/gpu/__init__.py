"""Measurements on a machine with a GPU and no network: what is carried there, and what runs it.

`pack.py` compiles the suite's models here and writes a kit; `run.py`, which is part of it, checks and times
it there with NumPy and iree.runtime alone, beside JAX, PyTorch and ONNX Runtime. `torch_source.py` and
`onnx_source.py` write what the last two run. `pack_serve.py` writes a kit for our server, and `serve.py` puts
it under load there. `kits.py` is what both commands that pack share.
"""
