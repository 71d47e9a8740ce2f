"""Single TensorFlow ops: built into a graph again, or computed on known values."""

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context as eager_context
from tensorflow.python.eager.execute import execute

from converters.errors import ConversionError

_RESHAPES = {"Reshape", "Squeeze", "ExpandDims"}


def build_op(node: Any, inputs: list[Any], name: str) -> list[Any]:
    """Adds an op to the current graph, from its NodeDef, on other inputs. Returns its outputs."""
    # Reading an absent attribute of a protobuf map puts an empty one there.
    attributes = {k: v for k, v in node.attr.items() if k[0] != "_" and v.WhichOneof("value")}
    graph = tf.compat.v1.get_default_graph()
    return list(graph.create_op(node.op, inputs, name=name, attrs=attributes).outputs)


def compute_op(node: Any, definition: Any, inputs: list[np.ndarray]) -> list[Any]:
    """An op's outputs on known values, as eager tensors."""
    count = 0
    for output in definition.output_arg:
        if output.number_attr:
            count += node.attr[output.number_attr].i
        else:
            count += len(node.attr[output.type_list_attr].list.type) if output.type_list_attr else 1
    attributes: list[Any] = []
    for attribute in definition.attr:
        value = node.attr[attribute.name]
        if value.WhichOneof("value") is None:
            value = attribute.default_value
        if value.WhichOneof("value") is not None:
            attributes += [attribute.name, plain_attribute(value)]
    with eager_context.eager_mode():  # tf.init_scope does not leave a plain graph
        tensors = [tf.constant(v) for v in inputs]
        return list(execute(node.op.encode(), count, tensors, tuple(attributes), eager_context.context()))


def plain_attribute(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "shape":
        return tf.TensorShape(value.shape)
    if kind == "list":
        items = value.list
        for name in ("s", "i", "f", "b", "type"):
            if getattr(items, name):
                return list(getattr(items, name))
        return [tf.TensorShape(s) for s in items.shape]
    return getattr(value, kind)


def attribute_key(node: Any) -> Any:
    return tuple(
        sorted(
            (k, v.SerializeToString(deterministic=True))
            for k, v in node.attr.items()
            if k[0] != "_" and v.WhichOneof("value")
        )
    )


def refuse_random(node: Any, name: str) -> None:
    if "Random" in node.op or node.op in ("Multinomial", "TruncatedNormal"):
        raise ConversionError(
            f"{name} ({node.op}) draws random numbers, so the model has no scores to keep; "
            "export it for inference"
        )


def reshaped_back(tensor: Any) -> Any:
    """An earlier tensor with the same elements and shape, seen through ops that only reshape; else the tensor
    itself."""
    found, source = tensor, tensor
    while source.op.type in _RESHAPES:
        source = source.op.inputs[0]
        if (
            tensor.shape.is_fully_defined()
            and source.shape.is_fully_defined()
            and source.shape == tensor.shape
        ):
            found = source
    return found


def valid_name(name: str) -> str:
    """A name that TensorFlow accepts for an op."""
    kept = "".join(c if c.isalnum() or c in "._/-\\" else "_" for c in name).strip("/")
    return kept if kept and (kept[0].isalnum() or kept[0] == ".") else f"op{kept}"
