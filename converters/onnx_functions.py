"""Operators that ONNX defines by a function of simpler ones, expanded into it."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx


def expand(node: Any, opset: int, input_types: Sequence[onnx.TypeProto]) -> list[Any] | None:
    """The nodes that do the same as a node; None if its schema has no function.

    Args:
        opset: the version of the node's domain.
        input_types: for each operand; of some operators the function depends on them. Empty where not known.
    """
    if not onnx.defs.has(node.op_type, opset, node.domain):
        return None
    schema: Any = onnx.defs.get_schema(node.op_type, opset, node.domain)  # its stubs lack functions
    function = onnx.FunctionProto()
    if schema.has_function:
        version = _newest(schema.function_opset_versions, opset)
        function.ParseFromString(schema.get_function_with_opset_version(version))
    elif schema.has_context_dependent_function:
        version = _newest(schema.context_dependent_function_opset_versions, opset)
        types = [t.SerializeToString() for t in input_types]
        body = schema.get_context_dependent_function_with_opset_version(
            version, node.SerializeToString(), types
        )
        function.ParseFromString(body)
    else:
        return None
    attributes = {name: a.default_value for name, a in schema.attributes.items() if a.default_value.name}
    attributes.update({a.name: a for a in node.attribute})
    outer = next(name for name in node.output if name)
    names = {formal: "" for formal in (*function.input, *function.output)}
    names.update(zip(function.input, node.input, strict=False))
    names.update(
        (f, actual or f"{outer}/{f}") for f, actual in zip(function.output, node.output, strict=False)
    )
    names.update((f, f"{outer}/{f}") for f in function.output[len(node.output) :])
    nodes = [_renamed(inner, names, f"{outer}/", attributes) for inner in function.node]
    for inner in nodes:
        inner.name = node.name or node.op_type
    return nodes


def _newest(versions: Sequence[int], opset: int) -> int:
    return max((v for v in versions if v <= opset), default=min(versions))


def _renamed(node: Any, names: Mapping[str, str], prefix: str, attributes: Mapping[str, Any]) -> Any:
    """A copy with the caller's names and attributes; every name of a function is local to it."""

    def rename(name: str) -> str:
        return names.get(name, f"{prefix}{name}") if name else ""

    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.input[:] = [rename(n) for n in node.input]
    made.output[:] = [rename(n) for n in node.output]
    del made.attribute[:]
    for attribute in node.attribute:
        source = attribute
        if attribute.ref_attr_name:
            if attribute.ref_attr_name not in attributes:
                continue
            source = attributes[attribute.ref_attr_name]
        copy = made.attribute.add()
        copy.CopyFrom(source)
        copy.name = attribute.name
        # A graph that the caller gave has the caller's names.
        if copy.type == onnx.AttributeProto.GRAPH and source is attribute:
            inner = [_renamed(n, names, prefix, attributes) for n in attribute.g.node]
            del copy.g.node[:]
            copy.g.node.extend(inner)
            for value in (*copy.g.input, *copy.g.output, *copy.g.value_info, *copy.g.initializer):
                value.name = rename(value.name)
    return made
