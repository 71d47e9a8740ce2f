"""The dense half of a model as TensorFlow has it, for engines that run TensorFlow or ONNX graphs.

Every engine of the suite is given the same task: the dense half's inputs in (what the host program computes:
looked-up vectors, masks, numbers), scores out. What is the user's comes as one row. Where the model itself
repeats the user's features before the lookups (the ids are tiled, so the looked-up vectors are), the graph
begins with that repetition; where it does so after, the repetition stays where it is. So TensorFlow's graph
does here what it does in TensorFlow Serving, without the lookups.
"""

import glob
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from converters.errors import ConversionError
from converters.flat_graph import FlatGraph
from converters.loaders import load
from converters.plan import Plan, make_plan
from jaxrank.host_program import BlockColumn, HostProgram
from jaxrank.manifest import Manifest

OPSET = 18


@dataclass(frozen=True)
class DenseGraph:
    """`graph_def` has a placeholder `[1, ...]` or `[None, ...]` for each of `columns`, named `input_<i>`, and
    an identity `output_<i>` for each of `outputs`."""

    graph_def: Any
    columns: tuple[BlockColumn, ...]
    outputs: tuple[str, ...]

    @property
    def specs(self) -> list[tf.TensorSpec]:
        """Of the placeholders, in order."""
        return [
            tf.TensorSpec((1 if c.scope == "request" else None, *c.shape), c.dtype, f"input_{i}")
            for i, c in enumerate(self.columns)
        ]

    def onnx(self, rows: int | None = None) -> bytes:
        """The same graph through tf2onnx, as its users call it, for any number of candidates or for exactly
        `rows`.

        Raises `ConversionError` where tf2onnx stops, or leaves ops that ONNX does not have.
        """
        import onnx
        import tf2onnx

        logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # what it leaves, we report
        fixed = {f"{s.name}:0": [s.shape[0] or rows, *s.shape[1:]] for s in self.specs}
        try:
            model, _ = tf2onnx.convert.from_graph_def(
                self.graph_def,
                input_names=[f"{s.name}:0" for s in self.specs],
                output_names=[f"output_{i}:0" for i in range(len(self.outputs))],
                opset=OPSET,
                shape_override=fixed if rows is not None else None,
            )
        except Exception as error:  # tf2onnx raises bare ValueErrors and AssertionErrors
            raise ConversionError(f"tf2onnx does not convert the dense half: {error}") from error
        strange = sorted({n.op_type for n in model.graph.node if not onnx.defs.has(n.op_type, n.domain)})
        if strange:
            raise ConversionError(f"tf2onnx leaves ops that ONNX does not have: {', '.join(strange)}")
        _drop_empty_unsqueezes(model)
        return model.SerializeToString()


def cut_dense_graph(saved_model: Path, manifest: Manifest) -> DenseGraph:
    """The dense half of a bundle's SavedModel, cut where the converter cuts it.

    Raises `ConversionError` where the cut at one row does not separate the graph at any number of rows.
    """
    signature = manifest.signature
    outputs = [t.name for t in signature.outputs]
    of_request = sorted({glob.escape(t.feature or t.name) for t in signature.inputs if t.scope == "request"})
    plan = make_plan(load(saved_model, signature.name, outputs=outputs), request_inputs=of_request)
    layout, live = plan.layouts[0], plan.model.live.flat
    columns = plan.program.columns
    names = [f"{layout.flat.source_name(t.op)}:{t.value_index}" for t in layout.frontier.crossing]
    found = dict(zip([t.name for t in plan.source.outputs], live.results, strict=True))
    outputs = tuple(plan.dense_outputs(layout))
    with tf.Graph().as_default() as graph:
        feeds = [
            tf.compat.v1.placeholder(c.dtype, (1 if c.scope == "request" else None, *c.shape), f"input_{i}")
            for i, c in enumerate(columns)
        ]
        rows = next(
            (tf.shape(f)[0] for f, c in zip(feeds, columns, strict=True) if c.scope == "candidate"), 1
        )
        replaced = _rows_only(plan, live.graph, rows)
        for name, feed, column in zip(names, feeds, columns, strict=True):
            original = _tensor(live, name, plan)
            replaced[original.name] = _as_in_the_model(feed, original, column, rows)
        results = tf.graph_util.import_graph_def(
            live.graph.as_graph_def(),
            input_map=replaced,
            return_elements=[found[o].name for o in outputs],
            name="dense",
        )
        for i, result in enumerate(results):
            tf.identity(result, f"output_{i}")
        keep = [*(f.op.name for f in feeds), *(f"output_{i}" for i in range(len(outputs)))]
        pruned = tf.compat.v1.graph_util.extract_sub_graph(graph.as_graph_def(), keep)
    stand_ins = {n.name for n in pruned.node if n.name.startswith("rows_of_")}
    others = {n.name for n in pruned.node if n.op == "Placeholder" and not n.name.startswith("input_")}
    others |= {
        i
        for n in pruned.node
        for i in n.input
        if n.op != "Shape" and n.name not in stand_ins and i.partition(":")[0] in stand_ins
    }
    if others:
        raise ConversionError(
            f"{saved_model}: with open rows the dense half still reads {', '.join(sorted(others))}"
        )
    return DenseGraph(pruned, columns, outputs)


def dense_inputs(program: HostProgram, request: np.ndarray, candidate: np.ndarray) -> list[np.ndarray]:
    """What the placeholders are fed, from feature blocks `[1, R]` and `[N, C]`: one contiguous array for each
    column, `[1, ...]` or `[N, ...]`."""
    blocks: Mapping[str, np.ndarray] = {"request": request, "candidate": candidate}
    found = []
    for column in program.columns:
        width = int(np.prod(column.shape, dtype=np.int64))
        value = np.ascontiguousarray(blocks[column.scope][:, column.offset : column.offset + width])
        if column.dtype == "int32":
            value = value.view(np.int32)
        value = value.reshape(len(value), *column.shape)
        found.append(value != 0 if column.dtype == "bool" else value)
    return found


def _drop_empty_unsqueezes(model: Any) -> None:
    """tf2onnx writes an einsum with Unsqueeze nodes that add no axes; OpenVINO 2026.4 takes them for more
    than that and refuses the graph."""
    from onnx import numpy_helper

    empty = {i.name for i in model.graph.initializer if numpy_helper.to_array(i).size == 0}
    for node in model.graph.node:
        if node.op_type == "Unsqueeze" and node.input[1] in empty:
            node.op_type = "Identity"
            del node.input[1]


def _rows_only(plan: Plan, graph: Any, rows: Any) -> dict[str, Any]:
    """A tensor of zeros for each input of the model: a graph that repeats the user's row asks another input
    for the number of rows, and for nothing else."""
    found = {}
    for source in plan.source.inputs:
        original = graph.get_tensor_by_name(f"{source.placeholder}:0")
        if original.shape.rank and original.shape[0] is None and original.shape[1:].is_fully_defined():
            shape = tf.stack([rows, *original.shape.as_list()[1:]])
            name = f"rows_of_{source.placeholder}"
            if original.dtype == tf.string:
                found[original.name] = tf.fill(shape, "", name=name)
            else:
                found[original.name] = tf.fill(shape, tf.zeros([], original.dtype), name=name)
    return found


def _tensor(live: FlatGraph, name: str, plan: Plan) -> Any:
    """The tensor of the graph with open rows; an input of the model is its placeholder."""
    if name.partition(":")[0] in {t.placeholder for t in plan.source.inputs}:
        return live.graph.get_tensor_by_name(name)
    tensor = live.tensors.get(name)
    if not isinstance(tensor, tf.Tensor):
        raise ConversionError(f"{plan.source.path}: {name} crosses into the dense half at one row only")
    return tensor


def _as_in_the_model(feed: Any, original: Any, column: BlockColumn, rows: Any) -> Any:
    """The fed value with the rows, rank and dtype that the model's own tensor has."""
    value = tf.cast(feed, original.dtype)
    shape = original.shape
    if shape.rank is None:
        raise ConversionError(f"{original.name}: TensorFlow does not know its rank")
    if column.scope == "request" and (shape.rank == 0 or shape[0] != 1):
        value = tf.tile(value, [rows, *[1] * (value.shape.rank - 1)])
    if shape.rank != value.shape.rank:
        value = tf.reshape(value, [-1 if d is None else d for d in shape.as_list()])
    return value
