"""Engines whose packages are large and are no part of `jaxrank[bench]`: measured where somebody installed
them (`pip install torch`, `pip install apache-tvm`), listed as not measured with the reason otherwise.

NVIDIA's PyTriton, the one third-party server that a package brings whole, is not run: its last release
(0.7.0) needs NumPy below 2, and this project NumPy 2. `python -m bench serve --tfs-address` measures a server
that speaks TensorFlow Serving's protocol, in whatever environment it runs.
"""

import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers import CORES, Call, Prepare, Task, dense_inputs_of
from serving.host.program import FeatureBlocks


def torch_engine(task: Task) -> Prepare:
    """`torch.compile` on the bundle's module as PyTorch source, before any of our rewrites; compiled for each
    number of candidates, not timed."""
    # Triton has an LLVM of its own, which ends a process that has TensorFlow's; a CPU needs none of it.
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
    import torch  # pyright: ignore[reportMissingImports]

    from bench.gpu.torch_source import torch_source
    from mlir_pipeline.rewrites.known_gathers import known_gathers
    from mlir_pipeline.rewriting import flat_module

    torch.set_num_threads(CORES)
    torch.set_float32_matmul_precision("highest")
    source, arrays = torch_source(known_gathers(flat_module(task.bundle, None)))
    weights = [torch.from_numpy(np.array(a)) for a in arrays]

    def prepare(blocks: FeatureBlocks) -> Call:
        scope: dict[str, Any] = {}  # a function for each size: PyTorch limits recompilations of one
        exec(compile(source, "scores", "exec"), scope)

        def scores(request: Any, candidate: Any) -> Any:
            return scope["scores"](torch, lambda x, dtype: x.to(dtype), weights, request, candidate)

        compiled = torch.compile(scores, dynamic=False, fullgraph=True)

        def call() -> list[np.ndarray]:
            with torch.no_grad():
                found = compiled(torch.from_numpy(blocks.request), torch.from_numpy(blocks.candidate))
            return [value.numpy() for value in found]

        return call

    return prepare


def tvm_engine(task: Task) -> Prepare:
    """Apache TVM on the ONNX graph with its own schedules for a CPU: tuning them takes hours for each number
    of candidates, for which they are compiled anyway, not timed."""
    import onnx
    import tvm  # pyright: ignore[reportMissingImports]
    from tvm import relax  # pyright: ignore[reportMissingImports]
    from tvm.relax.frontend.onnx import from_onnx  # pyright: ignore[reportMissingImports]

    target = tvm.target.Target({"kind": "llvm", "num-cores": CORES})

    @lru_cache(maxsize=2)
    def compiled(rows: int) -> Any:
        module = from_onnx(onnx.load_from_string(_folded(task.graph.onnx(rows))))
        return relax.VirtualMachine(tvm.compile(module, target), tvm.cpu())

    def prepare(blocks: FeatureBlocks) -> Call:
        machine = compiled(len(blocks.candidate))
        inputs = dense_inputs_of(task, blocks)

        def call() -> list[np.ndarray]:
            found = machine["main"](*(tvm.runtime.tensor(i) for i in inputs))
            outputs = found if len(task.graph.outputs) > 1 else [found]
            return [outputs[i].numpy() for i in range(len(task.graph.outputs))]

        return call

    return prepare


def _folded(model: bytes) -> bytes:
    """The ONNX graph without shape arithmetic, which TVM's reader takes for data: ONNX Runtime's basic
    optimizations compute it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as directory:
        options.optimized_model_filepath = str(Path(directory) / "folded.onnx")
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return Path(options.optimized_model_filepath).read_bytes()


OPTIONAL: Mapping[str, Callable[[Task], Prepare]] = {"torch_compile": torch_engine, "tvm": tvm_engine}
PACKAGES: Mapping[str, str] = {"torch_compile": "torch", "tvm": "apache-tvm"}
"""What to install for each."""
