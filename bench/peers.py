"""The engines that a team would otherwise run its dense half with, each set up as its own guides say.

An engine takes a request's dense inputs as NumPy arrays and returns NumPy arrays of scores; conversions,
padding and copies are part of its time. All may use every core.

| engine | runs | shapes |
|---|---|---|
| `jaxrank` | the bundle, compiled with `--engine auto` | one program for any number of candidates |
| `tensorflow` | the dense half of the SavedModel's graph in a `tf.function` | any |
| `tensorflow_xla` | the same with `jit_compile=True` | compiled for each number, not timed |
| `onnxruntime` | the same graph through tf2onnx, all optimizations | any |
| `openvino` | the same ONNX graph, latency hint, float32 | compiled for each number, not timed |
| `jax` | the bundle's Flax module under `jax.jit` | padded; four sizes for each power of two |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.dense_graph import DenseGraph, cut_dense_graph, dense_inputs
from bench.user_models import UserModelError
from jaxrank import bundle as files
from jaxrank.errors import JaxrankError
from jaxrank.manifest import Manifest
from serving.cores import usable_cores
from serving.host.program import FeatureBlocks

if TYPE_CHECKING:
    from bench.dense_build import Built

Call = Callable[[], list[np.ndarray]]
Prepare = Callable[[FeatureBlocks], Call]
"""`blocks -> call`: everything up to the request's arrival, then the call that is timed."""


@dataclass(frozen=True)
class Task:
    """One model's dense half in the forms that engines take."""

    bundle: Path
    manifest: Manifest
    tensorflow: DenseGraph | JaxrankError
    """Its graph, or why there is none."""

    @classmethod
    def of(cls, built: "Built") -> "Task":
        """Of a model on disk."""
        columns = files.read_host_program(built.bundle).columns
        try:
            graph = cut_dense_graph(built.saved, built.manifest)
        except JaxrankError as error:
            return cls(built.bundle, built.manifest, error)
        if [(c.scope, c.shape, c.dtype) for c in graph.columns] == [
            (c.scope, c.shape, c.dtype) for c in columns
        ]:
            return cls(built.bundle, built.manifest, graph)
        why = f"the bundle's dense half begins elsewhere than that of {built.saved} converted without options"
        return cls(built.bundle, built.manifest, UserModelError(why))

    @property
    def graph(self) -> DenseGraph:
        """Raises `JaxrankError` where the model's TensorFlow graph is not known."""
        if isinstance(self.tensorflow, JaxrankError):
            raise self.tensorflow
        return self.tensorflow

    @property
    def outputs(self) -> list[str]:
        """Names of the scores, in the order of every engine."""
        by_host = {o.output for o in files.read_host_program(self.bundle).outputs}
        return [t.name for t in self.manifest.signature.outputs if t.name not in by_host]


CORES = usable_cores()


def jaxrank_engine(task: Task) -> Prepare:
    """The bundle's engine, on feature blocks, with a stream for each core."""
    from jaxrank.targets import choose_target
    from serving.engines import load_engine

    target = choose_target(task.bundle, task.manifest, "cpu")
    engine = load_engine(task.bundle, task.manifest, target)
    return lambda blocks: partial(engine.run, blocks)


def tensorflow_engine(task: Task, jit_compile: bool = False) -> Prepare:
    """The dense half's graph as one function, after grappler."""
    import tensorflow as tf

    names = [s.name for s in task.graph.specs]
    definition = tf.compat.v1.GraphDef()
    definition.CopyFrom(task.graph.graph_def)
    # XLA refuses placeholders, used or not.
    del definition.node[:]
    definition.node.extend(n for n in task.graph.graph_def.node if n.name not in names)

    def imported(*inputs: Any) -> list[Any]:
        return tf.graph_util.import_graph_def(
            definition,
            input_map=dict(zip(names, inputs, strict=True)),
            return_elements=[f"output_{i}:0" for i in range(len(task.graph.outputs))],
            name="",
        )

    function = tf.function(imported, input_signature=task.graph.specs, jit_compile=jit_compile)
    concrete = function.get_concrete_function()

    def prepare(blocks: FeatureBlocks) -> Call:
        inputs = dense_inputs_of(task, blocks)

        def call() -> list[np.ndarray]:
            found: Any = (function if jit_compile else concrete)(*(tf.constant(i) for i in inputs))
            return [value.numpy() for value in found]

        return call

    return prepare


def onnxruntime_engine(task: Task) -> Prepare:
    """One session with a thread for each core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(task.graph.onnx(), options, providers=["CPUExecutionProvider"])
    names = [f"{s.name}:0" for s in task.graph.specs]

    def prepare(blocks: FeatureBlocks) -> Call:
        inputs = dict(zip(names, dense_inputs_of(task, blocks), strict=True))
        return lambda: [np.asarray(value) for value in session.run(None, inputs)]

    return prepare


def openvino_engine(task: Task) -> Prepare:
    """One model for each number of candidates: the CPU plugin plans a static shape better, and its ONNX
    reader refuses shape arithmetic whose rank it does not see."""
    import openvino

    core = openvino.Core()
    names = [f"{s.name}:0" for s in task.graph.specs]
    config: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": CORES,
        "INFERENCE_PRECISION_HINT": "f32",
    }

    @lru_cache(maxsize=2)
    def compiled(rows: int) -> Any:
        model = core.read_model(task.graph.onnx(rows), b"")
        return core.compile_model(model, "CPU", config).create_infer_request()

    def prepare(blocks: FeatureBlocks) -> Call:
        request = compiled(len(blocks.candidate))
        inputs = dict(zip(names, dense_inputs_of(task, blocks), strict=True))

        def call() -> list[np.ndarray]:
            found = request.infer(inputs, share_inputs=True, share_outputs=False)
            return [np.asarray(found[i]) for i in range(len(task.graph.outputs))]

        return call

    return prepare


def jax_engine(task: Task) -> Prepare:
    """XLA on the module that we compile too, before any of our rewrites. `vmap` leaves the user's part of it
    without candidates."""
    import jax

    from jaxrank.flax_module import rows_function

    function = jax.jit(rows_function(task.bundle))

    def prepare(blocks: FeatureBlocks) -> Call:
        rows = len(blocks.candidate)
        padding = padded(rows) - rows if task.manifest.row_wise else 0

        def call() -> list[np.ndarray]:
            candidate = np.pad(blocks.candidate, ((0, padding), (0, 0))) if padding else blocks.candidate
            return [np.asarray(v)[:rows] for v in function(blocks.request, candidate)]

        return call

    return prepare


def padded(rows: int) -> int:
    """The number of candidates that XLA is compiled for: at most a quarter more, so that a service of 1 to
    5,000 candidates compiles about 40 shapes."""
    step = 1 << max(0, rows.bit_length() - 3)
    return -(-rows // step) * step


def dense_inputs_of(task: Task, blocks: FeatureBlocks) -> list[np.ndarray]:
    """What TensorFlow's graph of the dense half takes, in order."""
    return dense_inputs(files.read_host_program(task.bundle), blocks.request, blocks.candidate)


OURS, TENSORFLOW = "jaxrank", "tensorflow"
ENGINES: Mapping[str, Callable[[Task], Prepare]] = {
    OURS: jaxrank_engine,
    TENSORFLOW: tensorflow_engine,
    "tensorflow_xla": partial(tensorflow_engine, jit_compile=True),
    "onnxruntime": onnxruntime_engine,
    "openvino": openvino_engine,
    "jax": jax_engine,
}
"""Every engine by name; the first is ours, the second is what the others are compared with."""
