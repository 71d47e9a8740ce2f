"""From a Flax module to IREE modules.

Entry point: `compile.compile_bundle`. A model flows through these files: `rows.py` (the generated module as
one function of two feature blocks, vmapped over candidates) -> `jaxpr.py` (one flat jaxpr) -> `rewrites/`
(algebra on it) -> `split.py` (request tower, candidate tower, state) -> `lower.py` (StableHLO) -> `passes/`
(what IREE needs) -> `iree.py` (one module per target, weights beside it) -> `check.py` (the compiled module
against TensorFlow's recorded outputs).
"""
