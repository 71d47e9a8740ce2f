"""Cuts a folded graph at the lookups.

Host: strings, tables of keys, embedding lookups, arithmetic on ids, and whatever these need. Dense:
everything after. Values cross from host to dense only as float32 or bool tensors, each a range of columns of
its scope's feature block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from converters.errors import ConversionError, Unsupported
from converters.savedmodel import SourceModel
from jaxrank.manifest import Scope

# Ops that can only run on the host, whatever their neighbours are.
HOST_ONLY = {"LookupTableFindV2", "StringToHashBucketFast", "OneHot"}
GATHERS = {"Gather", "GatherV2"}
_FLOATS = (tf.float32, tf.bool)


@dataclass(frozen=True)
class Frontier:
    """The cut graph, in data-flow order.

    `crossing` are the tensors that the dense half reads: outputs of host ops, or float inputs of the model
    itself. `scopes` has the scope of every tensor, by its name in the graph.
    """

    host: tuple[Any, ...]
    dense: tuple[Any, ...]
    crossing: tuple[Any, ...]
    scopes: dict[str, Scope]
    reasons: dict[str, str]


def cut(model: SourceModel, input_scopes: dict[str, Scope]) -> Frontier:
    """Places every op. Raises `ConversionError` where a tensor of another dtype would have to cross."""
    input_ops = {t.tensor_name.split(":")[0]: t.name for t in model.inputs}
    order = list(_ancestors(model.results))
    scopes: dict[str, Scope] = {}
    reasons: dict[str, str] = {}
    for op in order:
        if op.name in input_ops:
            scope: Scope = input_scopes[input_ops[op.name]]
        else:
            candidate = any(scopes.get(t.name) == "candidate" for t in op.inputs)
            scope = "candidate" if candidate else "request"
        scopes.update((t.name, scope) for t in op.outputs)

    data = [op for op in order if op.type not in ("Const", "Placeholder")]
    host: set[Any] = set()
    for op in data:
        reason = _host_reason(op, host, input_ops, model)
        if reason:
            host.add(op)
            reasons[op.name] = reason
    for op in reversed(data):
        if op in host:
            for tensor in op.inputs:
                if tensor.op.type not in ("Const", "Placeholder") and tensor.op not in host:
                    host.add(tensor.op)
                    reasons[tensor.op.name] = f"the host op {op.name} needs it"
    dense = [op for op in data if op not in host]
    crossing: list[Any] = []
    for op in dense:
        for tensor in op.inputs:
            made_outside = tensor.op in host or tensor.op.name in input_ops
            if made_outside and not any(tensor is t for t in crossing):
                crossing.append(tensor)
    for tensor in crossing:
        if tensor.dtype not in _FLOATS:
            users = ", ".join(f"{op.name} ({op.type})" for op in dense if any(t is tensor for t in op.inputs))
            raise ConversionError(
                f"the {tensor.dtype.name} tensor {tensor.name} would have to cross into the dense half, "
                f"read by {users}; "
                "only float32 and bool cross. Cast it in the model, or turn it into an embedding or a one-hot"
            )
    outside = [t for t in model.results if t.op not in dense]
    if outside:
        raise ConversionError(
            f"output {outside[0].name} is made by the host half ({outside[0].op.type}); a ranking output "
            "must be computed"
        )
    reasons.update((op.name, "after the lookups") for op in dense)
    in_order = [op for op in data if op in host]
    return Frontier(tuple(in_order), tuple(dense), tuple(crossing), scopes, reasons)


def is_table_lookup(op: Any, model: SourceModel) -> bool:
    """Whether the op reads rows of a variable or constant matrix by ids along its first axis."""
    if op.type not in GATHERS or len(op.inputs[0].shape) != 2:
        return False
    params = op.inputs[0].op
    if params.name not in model.variables and params.type != "Const":
        return False
    if op.type == "GatherV2":
        return tf.get_static_value(op.inputs[2]) == 0 and op.get_attr("batch_dims") == 0
    return True


def unplaced_control_flow(model: SourceModel) -> list[Unsupported]:
    """Ops with bodies of their own, which this version neither inlines nor runs."""
    bodies = {
        "If",
        "StatelessIf",
        "While",
        "StatelessWhile",
        "PartitionedCall",
        "StatefulPartitionedCall",
        "Case",
    }
    return [
        Unsupported(
            op.name, op.type, "control flow is not supported yet; export the branch that serving takes"
        )
        for op in _ancestors(model.results)
        if op.type in bodies
    ]


def _host_reason(op: Any, host: set[Any], input_ops: dict[str, str], model: SourceModel) -> str:
    data = [t for t in op.inputs if t.op.type != "Const" and t.op.name not in model.variables]
    from_host = all(t.op in host or t.op.name in input_ops or t.dtype == tf.resource for t in data)
    if is_table_lookup(op, model) and from_host:
        return "embedding lookup"
    if op.type in HOST_ONLY:
        return "string, vocabulary or category op"
    if data and from_host and any(t.dtype.is_integer or t.dtype == tf.string for t in data):
        return "works on ids or strings"
    if op.type == "Max" and len(data) == 1 and data[0].op in host and data[0].op.type == "OneHot":
        return "multi-hot encoding"
    return ""


def _ancestors(tensors: tuple[Any, ...]) -> Iterator[Any]:
    """Every op that the tensors need, each after its inputs."""
    done: set[str] = set()
    stack = [(t.op, False) for t in reversed(tensors)]
    while stack:
        op, ready = stack.pop()
        if ready:
            yield op
        elif op.name not in done:
            done.add(op.name)
            stack.append((op, True))
            stack.extend((t.op, False) for t in reversed(list(op.inputs)))
