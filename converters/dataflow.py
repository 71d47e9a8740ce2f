"""Nodes of graphs and function bodies in the order that data flows through them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from converters.control_flow import functionalize
from converters.errors import ConversionError

VARIABLES = {"VarHandleOp", "VariableV2", "Variable"}
TABLES = {"HashTable", "HashTableV2", "MutableHashTable", "MutableHashTableV2", "AnonymousHashTable"}
# Ops that do nothing at run time of a served model.
PASS_THROUGH = {
    "Identity",
    "IdentityN",
    "StopGradient",
    "PreventGradient",
    "Snapshot",
    "EnsureShape",
    "PlaceholderWithDefault",
    "CheckNumerics",
    "CheckNumericsV2",
    "Print",
    "LoopCond",
    "Enter",
    "RefIdentity",
}


@dataclass
class Body:
    """Nodes of a graph or function by name, the flat names of a function's results, and its arguments."""

    nodes: dict[str, Any]
    results: list[str]
    arguments: list[str]


def split_name(text: str) -> tuple[str, int]:
    """Node and output index of a tensor name."""
    name, _, index = text.partition(":")
    return name, int(index or 0)


def read(env: Mapping[str, Mapping[int, Any]], text: str) -> Any:
    name, index = split_name(text)
    return env[name][index]


def tags_of(tags: Mapping[tuple[str, int], frozenset], text: str) -> frozenset:
    name, index = split_name(text.lstrip("^"))
    return tags.get((name, index), frozenset()) | tags.get((name, -1), frozenset())


def data_flow_order(
    nodes: Mapping[str, Any], roots: Sequence[str], env: Mapping[str, Mapping[int, Any]]
) -> Iterator[Any]:
    """The nodes that the root tensors need and `env` does not have, each after its inputs (and after what
    it is controlled by where that decides which branch it is in)."""
    done: set[str] = set()
    open_: set[str] = set()
    stack = [(name, False) for name in reversed(roots)]
    while stack:
        text, ready = stack.pop()
        name, index = split_name(text)
        if index in env.get(name, ()) or name in done:
            continue
        if ready:
            done.add(name)
            open_.discard(name)
            yield nodes[name]
            continue
        if name not in nodes:
            raise ConversionError(f"the graph has no node {name}, which it needs; it is damaged")
        if name in open_:
            raise ConversionError(f"{name} depends on itself; the graph is not one that TensorFlow would run")
        open_.add(name)
        stack.append((name, True))
        for text in nodes[name].input:
            if not text.startswith("^"):
                stack.append((text, False))
            elif _decides_branch(nodes, text[1:]):
                stack.append((text[1:], False))


def _decides_branch(nodes: Mapping[str, Any], name: str) -> bool:
    """Whether a control input is the pivot of a TF1 conditional."""
    node = nodes.get(name)
    while node is not None and node.op == "Identity" and node.input:
        node = nodes.get(node.input[0].split(":")[0].lstrip("^"))
    return node is not None and node.op == "Switch"


def function_body(function: Any, functions: Mapping[str, Any]) -> Body:
    """A FunctionDef as flat nodes: inputs named `node:0` as in a graph, instead of `node:output_name:0`."""
    offsets: dict[tuple[str, str], int] = {}
    for node in function.node_def:
        definition = op_def_registry.get(node.op)
        if definition is None:
            definition = functions[node.op].signature
        at = 0
        for output in definition.output_arg:
            offsets[node.name, output.name] = at
            if output.number_attr:
                at += node.attr[output.number_attr].i
            elif output.type_list_attr:
                at += len(node.attr[output.type_list_attr].list.type)
            else:
                at += 1

    def flat(text: str) -> str:
        if text.startswith("^") or ":" not in text:
            return text
        name, output, index = text.split(":")
        return f"{name}:{offsets[name, output] + int(index)}"

    nodes = {}
    for node in function.node_def:
        copy = tf.compat.v1.NodeDef()
        copy.CopyFrom(node)
        copy.input[:] = [flat(t) for t in node.input]
        nodes[node.name] = copy
    results = [flat(function.ret[o.name]) for o in function.signature.output_arg]
    return Body(functionalize(nodes), results, [a.name for a in function.signature.input_arg])


def argument_itself(body: Body, text: str) -> int | None:
    """The argument that a result only passes through."""
    name = text.split(":")[0]
    while name in body.nodes and body.nodes[name].op in PASS_THROUGH:
        name = body.nodes[name].input[0].split(":")[0]
    return body.arguments.index(name) if name in body.arguments else None
