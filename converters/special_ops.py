"""Ops that become something else when a graph is evaluated: reads of variables, sizes of lookup tables, and
TF1 TensorArrays, which become the lists of TF2."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from converters.flat_graph import Handle, ListHandle

if TYPE_CHECKING:
    from converters.evaluate import Evaluator


def _read_variable(run: "Evaluator", node: Any, inputs: list[Any], name: str) -> list[Any]:
    return [run.materialize(inputs[0]) if isinstance(inputs[0], Handle) else inputs[0]]


def _resource_gather(run: "Evaluator", node: Any, inputs: list[Any], name: str) -> list[Any]:
    """ResourceGather reads rows of a variable exactly as Gather reads rows of a tensor."""
    gather = tf.compat.v1.NodeDef(name=node.name, op="GatherV2", input=[*node.input, "axis"])
    gather.attr["batch_dims"].i = node.attr["batch_dims"].i
    gather.attr["Tparams"].type, gather.attr["Taxis"].type = (
        node.attr["dtype"].type,
        tf.int32.as_datatype_enum,
    )
    gather.attr["Tindices"].type = node.attr["Tindices"].type
    axis = run.constant(np.array(node.attr["batch_dims"].i, np.int32), tf.int32, "axis")
    return run.op(gather, [*_read_variable(run, node, inputs, name), inputs[1], axis], name)


def _resource_gather_nd(run: "Evaluator", node: Any, inputs: list[Any], name: str) -> list[Any]:
    gather = tf.compat.v1.NodeDef(name=node.name, op="GatherNd", input=node.input)
    gather.attr["Tparams"].type = node.attr["dtype"].type
    gather.attr["Tindices"].type = node.attr["Tindices"].type
    return run.op(gather, [*_read_variable(run, node, inputs, name), inputs[1]], name)


def _variable_shape(run: "Evaluator", node: Any, inputs: list[Any], name: str) -> list[Any]:
    (weight,) = _read_variable(run, node, inputs, name)
    return [run.constant(np.array(weight.shape.as_list(), np.int32), tf.int32, name)]


def _table_size(run: "Evaluator", node: Any, inputs: list[Any], name: str) -> list[Any]:
    return [run.constant(np.array(len(run.table(inputs[0]).keys), np.int64), tf.int64, name)]


# TF1 TensorArrays become the lists of TF2, carried in the flow value.


def _array_new(run: "Evaluator", node: Any, inputs: list[Any], name: str) -> list[Any]:
    dtype = tf.as_dtype(node.attr["dtype"].type)
    shape = _declared_shape(node)
    flow = tf.raw_ops.TensorListReserve(
        element_shape=_element_shape(shape), num_elements=inputs[0], element_dtype=dtype
    )
    return [ListHandle(dtype, shape), flow]


def _declared_shape(node: Any) -> Any:
    given = node.attr["element_shape"]
    return tf.TensorShape(given.shape) if given.WhichOneof("value") == "shape" else tf.TensorShape(None)  # pyright: ignore[reportArgumentType]


def _element_shape(shape: Any) -> Any:
    if shape.rank is None:
        return tf.constant(-1, tf.int32)
    return tf.constant([-1 if d is None else d for d in shape.as_list()], tf.int32)


def _array_scatter(run: "Evaluator", node: Any, inputs: list[Any], name: str) -> list[Any]:
    _, indices, value, flow = inputs
    known = run.static(indices)
    if known is not None and (known == np.arange(len(known))).all() or indices.op.type == "Range":
        return [tf.raw_ops.TensorListFromTensor(tensor=value, element_shape=_element_shape(value.shape[1:]))]
    return [tf.raw_ops.TensorListScatterIntoExistingList(input_handle=flow, tensor=value, indices=indices)]


def _array_read(run: "Evaluator", node: Any, inputs: list[Any], name: str) -> list[Any]:
    handle, index, flow = inputs
    return [
        tf.raw_ops.TensorListGetItem(
            input_handle=flow,
            index=index,
            element_shape=_element_shape(handle.element_shape),
            element_dtype=handle.dtype,
        )
    ]


def _array_write(run: "Evaluator", node: Any, inputs: list[Any], name: str) -> list[Any]:
    _, index, value, flow = inputs
    return [tf.raw_ops.TensorListSetItem(input_handle=flow, index=index, item=value)]


def _array_gather(run: "Evaluator", node: Any, inputs: list[Any], name: str) -> list[Any]:
    handle, indices, flow = inputs
    shape = _declared_shape(node)
    shape = _element_shape(shape if shape.rank is not None else handle.element_shape)
    known = run.static(indices)
    if known is not None and (known == np.arange(len(known))).all() or indices.op.type == "Range":
        return [
            tf.raw_ops.TensorListStack(
                input_handle=flow,
                element_shape=shape,
                element_dtype=handle.dtype,
                num_elements=-1 if known is None else len(known),
            )
        ]
    return [
        tf.raw_ops.TensorListGather(
            input_handle=flow, indices=indices, element_shape=shape, element_dtype=handle.dtype
        )
    ]


def _array_size(run: "Evaluator", node: Any, inputs: list[Any], name: str) -> list[Any]:
    return [tf.raw_ops.TensorListLength(input_handle=inputs[1])]


SPECIAL: dict[str, Callable[["Evaluator", Any, list[Any], str], list[Any]]] = {
    "ReadVariableOp": _read_variable,
    "ResourceGather": _resource_gather,
    "ResourceGatherNd": _resource_gather_nd,
    "VariableShape": _variable_shape,
    "LookupTableSizeV2": _table_size,
    "TensorArrayV3": _array_new,
    "TensorArrayScatterV3": _array_scatter,
    "TensorArrayReadV3": _array_read,
    "TensorArrayWriteV3": _array_write,
    "TensorArrayGatherV3": _array_gather,
    "TensorArraySizeV3": _array_size,
}
