"""The dense half of a cut graph as ONNX, through tf2onnx, on a graph that we have already flattened, folded
and cut."""

import logging
from typing import Any

import onnx
import tensorflow as tf
from onnx import shape_inference

from converters.errors import ConversionError
from converters.folding import data_flow_order, fold, import_node
from converters.frontier import Frontier
from converters.savedmodel import SourceModel
from jaxrank.host_program import BlockColumn

OPSET = 18
OWN_DOMAIN = "jaxrank"
# Elementwise TensorFlow ops that ONNX has no name for; they pass through tf2onnx and have their own Flax
# forms.
KEPT_OPS = ("Erfc", "Expm1", "Log1p")


def to_onnx(model: SourceModel, frontier: Frontier, columns: tuple[BlockColumn, ...]) -> onnx.ModelProto:
    """An ONNX model at one candidate whose inputs are the feature columns and whose outputs are the
    signature's.

    Raises `ConversionError` when tf2onnx stops; ops that it leaves unconverted are in the graph under their
    TensorFlow names and are reported by `flax_writer` together with the ONNX ops that have no Flax form.
    """
    # tf2onnx imports slowly and configures logging; only this function needs it.
    import tf2onnx.optimizer
    import tf2onnx.tfonnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    graph_def = _dense_graph(model, frontier, columns)
    inputs = [f"{c.feature}:0" for c in columns]
    outputs = [f"output/{t.name}:0" for t in model.outputs]
    try:
        with tf.Graph().as_default() as graph:
            tf.graph_util.import_graph_def(graph_def, name="")
            converted = tf2onnx.tfonnx.process_tf_graph(
                graph,
                opset=OPSET,
                input_names=inputs,
                output_names=outputs,
                custom_op_handlers={"SelectV2": (_select, []), **{name: (_keep, []) for name in KEPT_OPS}},
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


def _dense_graph(model: SourceModel, frontier: Frontier, columns: tuple[BlockColumn, ...]) -> Any:
    used = {tensor.op.name for op in frontier.dense for tensor in op.inputs}
    weights = {name: variable.numpy() for name, variable in model.variables.items() if name in used}
    with tf.Graph().as_default() as graph:
        values: dict[str, Any] = {}
        for tensor, column in zip(frontier.crossing, columns, strict=True):
            values[tensor.name] = tf.compat.v1.placeholder(tensor.dtype, tensor.shape, name=column.feature)
        for op in frontier.dense:
            inputs = [_dense_input(tensor, values, weights, model) for tensor in op.inputs]
            node = op.node_def
            node.name = model.source_name(op)
            made = import_node(node, inputs, tf.compat.v1.GraphDef().library)
            values.update((old.name, new) for old, new in zip(op.outputs, made, strict=True))
        for source, result in zip(model.outputs, model.results, strict=True):
            tf.identity(values[result.name], name=f"output/{source.name}")
        graph_def = graph.as_graph_def()
    # Weights are constants now: what only they feed (a batch norm's scale) folds to one constant.
    folded, _ = fold(graph_def, [f"output/{t.name}" for t in model.outputs], keep_identities=True)
    return _reachable(folded.as_graph_def(), [f"output/{t.name}" for t in model.outputs])


def _reachable(graph_def: Any, outputs: list[str]) -> Any:
    """Only the nodes that the outputs need."""
    kept = tf.compat.v1.GraphDef(versions=graph_def.versions)
    kept.node.extend(data_flow_order({node.name: node for node in graph_def.node}, outputs))
    return kept


def _dense_input(tensor: Any, values: dict[str, Any], weights: dict[str, Any], model: SourceModel) -> Any:
    if tensor.name not in values:
        weight = weights.get(tensor.op.name)
        value = tf.get_static_value(tensor) if weight is None else weight
        values[tensor.name] = tf.constant(
            value, dtype=tensor.dtype, name=model.source_name(tensor.op).replace(":", "_")
        )
    return values[tensor.name]
