"""The dense half of a cut graph as ONNX, through tf2onnx, on a graph that we have already flattened, folded
and cut."""

import logging
from collections.abc import Mapping
from typing import Any

import onnx
import tensorflow as tf
from onnx import shape_inference

from converters.einsum import keep_einsum
from converters.errors import ConversionError
from converters.evaluate import evaluate
from converters.flat_graph import FlatGraph
from converters.frontier import Frontier
from converters.lowerings import LOWERINGS
from jaxrank.host_program import BlockColumn

OPSET = 18
OWN_DOMAIN = "jaxrank"
# Elementwise TensorFlow ops that ONNX has no name for; they pass through tf2onnx and have their own Flax
# forms.
KEPT_OPS = ("BesselI0e", "BesselI1e", "Digamma", "Erfc", "Erfinv", "Expm1", "Lgamma", "Log1p", "Ndtri")


def to_onnx(
    flat: FlatGraph,
    frontier: Frontier,
    columns: tuple[BlockColumn, ...],
    outputs: Mapping[str, Any],
    rows: int = 1,
) -> onnx.ModelProto:
    """An ONNX model at a fixed number of candidates whose inputs are the feature columns.

    `outputs` are tensors of the flat graph by the name that they get.

    Raises `ConversionError` when tf2onnx stops; ops that it leaves unconverted are in the graph under their
    TensorFlow names and are reported by `flax_writer` together with the ONNX ops that have no Flax form.
    """
    # tf2onnx imports slowly and configures logging; only this function needs it.
    import tf2onnx.optimizer
    import tf2onnx.tfonnx

    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # what it cannot convert, we report
    dense = _dense_graph(flat, frontier, columns, outputs, rows)
    inputs = [f"{c.feature}:0" for c in columns]
    try:
        with dense.graph.as_default():
            converted = tf2onnx.tfonnx.process_tf_graph(
                dense.graph,
                opset=OPSET,
                input_names=inputs,
                output_names=[f"output/{name}:0" for name in outputs],
                custom_op_handlers={
                    "SelectV2": (_select, []),
                    "Einsum": (keep_einsum, []),
                    **{name: (_keep, []) for name in KEPT_OPS},
                },
                extra_opset=[onnx.helper.make_opsetid(OWN_DOMAIN, 1)],
                continue_on_error=True,
            )
        optimized = tf2onnx.optimizer.optimize_graph(converted)
        proto = optimized.make_model("dense half of a jaxrank bundle")
        _add_shapes(proto, optimized)
    except Exception as error:  # tf2onnx raises bare ValueErrors and AssertionErrors
        raise ConversionError(f"tf2onnx could not convert the dense half: {error}") from error
    return shape_inference.infer_shapes(proto, data_prop=True)


def _add_shapes(proto: onnx.ModelProto, graph: Any) -> None:
    """Shapes that TensorFlow knew; ONNX's inference stops at ops of our own domain."""
    for node in graph.get_nodes():
        for name in node.output:
            shape, dtype = graph.get_shape(name), graph.get_dtype(name)
            if shape is not None and dtype is not None and all(d is not None and d >= 0 for d in shape):
                proto.graph.value_info.append(onnx.helper.make_tensor_value_info(name, dtype, shape))


def _select(context: Any, node: Any, name: str, arguments: list[Any]) -> Any:
    """tf2onnx spells a float select as `c * x + !c * y`, which makes NaN of an infinity in the branch not
    taken; ONNX has Where (https://github.com/onnx/tensorflow-onnx/issues, "Select converted to Mul")."""
    node.type = "Where"
    node.domain = ""
    return node


def _keep(context: Any, node: Any, name: str, arguments: list[Any]) -> Any:
    node.domain = OWN_DOMAIN
    return node


def _dense_graph(
    flat: FlatGraph,
    frontier: Frontier,
    columns: tuple[BlockColumn, ...],
    outputs: Mapping[str, Any],
    rows: int,
) -> FlatGraph:
    """The dense half alone: its inputs are placeholders named after the feature columns."""
    crossing = list(zip(frontier.crossing, columns, strict=True))
    shapes = {t.name: (rows if c.scope == "candidate" else 1, *c.shape) for t, c in crossing}
    evaluated = evaluate(
        flat.graph.as_graph_def(),
        [t.name for t in outputs.values()],
        {t.name: (t.dtype, shapes[t.name]) for t, _ in crossing},
        flat.weights,
        inputs_names={t.name: c.feature for t, c in crossing},
        weights_as_constants=True,
        lowerings=LOWERINGS,
        given={name: value for name, value in flat.here.items() if name not in shapes},
        shapes={
            t.name: t.shape.as_list()
            for op in flat.graph.get_operations()
            for t in op.outputs
            if t.shape.is_fully_defined()
        },
        reshape={t.name: t.shape.as_list() for t, _ in crossing if tuple(t.shape) != shapes[t.name]},
    )
    with evaluated.graph.as_default():
        for name, result in zip(outputs, evaluated.results, strict=True):
            tf.identity(result, name=f"output/{name}")
    return evaluated
