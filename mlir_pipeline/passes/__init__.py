"""MLIR passes on StableHLO: what stands between what JAX emits and what IREE takes.

Entry point: `run.run_passes` with `run.PASSES`. A pass (`program.Pass`) is one file, says what it requires
and ensures, and has a golden test. What cannot be compiled is marked on the way and reported at once by
`verify_supported.py`.
"""
