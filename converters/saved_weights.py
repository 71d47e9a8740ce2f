"""Which variable of a graph is where in its checkpoint."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from converters.checkpoint import Checkpoint
from converters.dataflow import VARIABLES
from converters.graph_files import called_function
from converters.source import Weight


def saved_weights(meta: Any, checkpoint: Checkpoint | None) -> dict[str, Weight]:
    """Values of the variables, by the name of their node.

    The graph itself says what it restores where. Keras 3 exports restore copies of the variables and leave
    out those that the functions read; the object graph knows which objects a function captures.
    """
    if checkpoint is None:
        return {}
    variables = [n for n in meta.graph_def.node if n.op in VARIABLES]
    nodes = {n.name: n.attr["shared_name"].s.decode() or n.name for n in variables}
    found = restored_by_graph(meta.graph_def)
    keys = checkpoint.object_keys()
    for node, number in _captured(meta).items():
        if node in nodes and node not in found and number in keys:
            found[node] = (keys[number], "")
    return {
        node: Weight(nodes[node], checkpoint.parts(key, spec))
        for node, (key, spec) in found.items()
        if node in nodes
    }


def _captured(meta: Any) -> dict[str, int]:
    """The object that a node of the main graph stands for: the last arguments of a call are the objects
    that the function captures."""
    captures = {name: f.bound_inputs for name, f in meta.object_graph_def.concrete_functions.items()}
    found: dict[str, int] = {}
    for node in meta.graph_def.node:
        bound = captures.get(node.attr["f"].func.name, ())
        arguments = [text.split(":")[0] for text in node.input if not text.startswith("^")]
        if bound:
            found.update(zip(arguments[-len(bound) :], bound, strict=True))
    return found


def restored_by_graph(graph_def: Any) -> dict[str, tuple[str, str]]:
    """(key, slice) in the checkpoint of every variable node that the graph's restore ops assign to."""
    functions = {f.signature.name: f for f in graph_def.library.function}
    found = dict(_restored(graph_def.node, {}))
    for node in graph_def.node:
        function = functions.get(called_function(node))
        if function is None or not any(n.op == "RestoreV2" for n in function.node_def):
            continue
        outer = [text.split(":")[0] for text in node.input if not text.startswith("^")]
        arguments = dict(zip((a.name for a in function.signature.input_arg), outer, strict=True))
        found.update(_restored(function.node_def, arguments))
    return found


def _restored(nodes: Any, arguments: Mapping[str, str]) -> list[tuple[str, tuple[str, str]]]:
    """Pairs of a variable's node and the (key, slice) of the checkpoint that a RestoreV2 assigns to it."""
    by_name = {n.name: n for n in nodes}

    def strings(text: str) -> list[str]:
        node = by_name[text.split(":")[0]]
        return [s.decode() for s in tf.make_ndarray(node.attr["value"].tensor).ravel().tolist()]

    pairs = []
    for node in nodes:
        if node.op not in ("Assign", "AssignVariableOp"):
            continue
        value = node.input[1]
        while value.split(":")[0] in by_name and by_name[value.split(":")[0]].op == "Identity":
            value = by_name[value.split(":")[0]].input[0]
        restore = by_name.get(value.split(":")[0])
        if restore is None or restore.op != "RestoreV2":
            continue
        last = value.split(":")[-1]
        index = int(last) if ":" in value else 0
        key, spec = strings(restore.input[1])[index], strings(restore.input[2])[index]
        target = node.input[0].split(":")[0]
        pairs.append((arguments.get(target, target), (key, spec)))
    return pairs
