"""MLIR passes on StableHLO, one a file, each with its test: what stands between what JAX emits and what IREE
takes."""
