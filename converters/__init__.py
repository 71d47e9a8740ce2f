"""From a TensorFlow SavedModel to a bundle. The only folder that imports TensorFlow and tf2onnx.

Entry point: `convert.convert`. A model flows through these files: `savedmodel.py` (load, inline, fold at one
candidate) -> `scopes.py` (request or candidate, for every input) -> `frontier.py` (cut at the lookups: every
op is host, dense, folded or unsupported) -> `host_ops.py` + `tables.py` (the host program and its tables) and
`dense.py` (tf2onnx) -> `flax_writer.py` with `onnx_ops.py` (model.py and params.safetensors) -> `examples.py`
(the bundle against TensorFlow on real rows).
"""
