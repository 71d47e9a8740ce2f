"""From a Flax module to IREE modules.

Entry point: `compile.compile_bundle`. A model flows through these files: `rewriting.py` (the generated
module on two feature blocks, vmapped over candidates, as one flat jaxpr (`jaxpr.py`); algebra on it in
`rewrites/`, the formats of its products in `precision/`) -> `split.py` (request tower, candidate tower,
state) -> `lower.py` (StableHLO) -> `passes/` (what IREE needs; `passes/run.py` has them in order) ->
`iree_programs.py` (IREE's programs of one target, measured by `tune.py`) or `engines/` (those of other
engines) -> `check.py` (against TensorFlow's outputs). `dump.py` writes every stage; `explain/` says where the
work and the time go.
"""
