"""A tf2onnx handler that keeps an Einsum whole; tf2onnx's own takes it apart into transposes, reshapes and a
product."""

from typing import Any


def keep_einsum(context: Any, node: Any, name: str, arguments: list[Any]) -> Any:
    """TensorFlow's Einsum is ONNX's (opset 12), without the dtype attributes; an ellipsis means the same."""
    equation = node.attr["equation"]
    for attribute in list(node.attr):
        if attribute != "equation":
            del node.attr[attribute]
    node.attr["equation"] = equation
    return node
