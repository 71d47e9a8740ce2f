"""TensorFlow to bundles. The only place that imports tensorflow or tf2onnx.

Entry point: `convert.convert`. A model flows through these files: `loaders.py` (any format; `source.py` is
what comes out) -> `flat_model.py` with `evaluate.py` (calls inlined, constants folded, loops made
functional) -> `plan.py`: `scopes.py` and `row_wise.py` (what is the request's, what mixes candidates),
`frontier.py` (the cut at the lookups), `request_parts.py` (concatenations of both scopes), `host_ops.py` with
`recognize/` (the host program) -> `dense.py` (tf2onnx) -> `onnx_graph.py`, `lifting/` (layers for arithmetic)
and `flax_writer.py` with the table `onnx_ops/` (model.py and params.safetensors) -> `tables.py`, `examples/`
(recorded or drawn requests for the certificate) and `report/` (what became of every op).
"""
