"""A bundle's files for ONNX Runtime: one ONNX model for each tower."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxrank import bundle as files
from jaxrank.manifest import Manifest, Target
from jaxrank.towers import CANDIDATE_TOWER, REQUEST_TOWER
from mlir_pipeline.errors import CompileError
from mlir_pipeline.split import Towers
from serving.engines.onnxruntime import PROGRAM_SCHEMA
from serving.engines.weights import TowerProgram, WeightSpec


def build_onnxruntime(
    towers: Towers,
    manifest: Manifest,
    target: str,
    work: Path,
    directory: Path,
    weight_name: Callable[[np.ndarray], str | None],
) -> Target:
    """Writes `<tower>.onnx` and `program.json`. Raises `CompileError`: a target without a provider, a
    primitive without an ONNX spelling, the library `onnx` missing."""
    try:
        import onnx

        from mlir_pipeline.engines.onnx import tower_to_onnx
    except ImportError as error:
        raise CompileError(
            f"the engine 'onnxruntime' needs ONNX: pip install 'jaxrank[compile,onnxruntime]' ({error})"
        ) from error
    kind = target.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise CompileError(f"ONNX Runtime has no provider for {target!r}; its targets are cpu and cuda:*")
    if any(rule.format.startswith("bf16") for rule in manifest.precision):
        raise CompileError("the engine 'onnxruntime' takes no bfloat16: give --precision f16 or f32 modules")
    names, weights = {}, {}
    wanted = {REQUEST_TOWER: towers.request} if towers.state else {}
    for tower, closed in {**wanted, CANDIDATE_TOWER: towers.candidate}.items():
        model = tower_to_onnx(closed, weight_name)
        names[tower] = f"{tower}.onnx"
        # Protocol buffers promise the same bytes only when asked.
        (directory / names[tower]).write_bytes(model.SerializeToString(deterministic=True))
        weights[tower] = tuple(
            WeightSpec(t.name, tuple(t.dims), onnx.helper.tensor_dtype_to_np_dtype(t.data_type).name)
            for t in model.graph.initializer
            if t.data_location == onnx.TensorProto.EXTERNAL
        )
    program = TowerProgram(schema_version=PROGRAM_SCHEMA, towers=names, weights=weights)
    files.write_json(directory / "program.json", program)
    return Target(
        name=target,
        engine="onnxruntime",
        driver=kind,
        module=(directory / "program.json").relative_to(work).as_posix(),
        flags=(),
        compiler=f"onnx {onnx.__version__}",
        certificate=None,
    )
