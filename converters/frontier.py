"""Cuts a flat graph at the lookups.

Host: strings, tables of keys, sparse and ragged features, embedding lookups, arithmetic on ids, and whatever
these need. Dense: everything after. Values cross from host to dense as float32, bool or integers, each a
range of columns of its scope's feature block.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from converters.errors import ConversionError
from converters.flat_graph import FlatGraph
from jaxrank.manifest import Scope

GATHERS = {"Gather", "GatherV2", "GatherNd"}
_STRICT_PREFIXES = (
    "Sparse",
    "Ragged",
    "String",
    "Lookup",
    "Parse",
    "Decode",
    "Encode",
    "Regex",
    "Segment",
    "UnsortedSegment",
)
_STRICT = {
    "AsString",
    "Bincount",
    "Bucketize",
    "DenseBincount",
    "DynamicPartition",
    "DynamicStitch",
    "LowerBound",
    "ParallelDynamicStitch",
    "ReduceJoin",
    "StaticRegexReplace",
    "StaticRegexFullMatch",
    "Substr",
    "Unique",
    "UniqueV2",
    "UniqueWithCounts",
    "UpperBound",
    "Where",
}
"""Ops that only the host can do, whatever their neighbours are: strings, and results of unknown sizes."""
_LOOPS = {"While", "StatelessWhile", "If", "StatelessIf"}
_FLEXIBLE = {"OneHot"}
"""Ops that the host does where their inputs are there."""
_CROSSING = (tf.float32, tf.bool, tf.int32, tf.int64)
_INTEGERS = (tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16, tf.uint32, tf.uint64)


@dataclass(frozen=True)
class Frontier:
    """The cut graph, in data-flow order.

    `crossing` are the tensors that the dense half reads: outputs of host ops, or numbers of the request
    itself.
    `host_results` are outputs of the model that the host makes. `scopes` has the scope of every tensor, by
    its name in the flat graph.
    """

    host: tuple[Any, ...]
    dense: tuple[Any, ...]
    crossing: tuple[Any, ...]
    host_results: tuple[Any, ...]
    scopes: dict[str, Scope]
    reasons: dict[str, str]


def cut(
    flat: FlatGraph,
    input_scopes: Mapping[str, Scope],
    device_table_limit: int = 0,
    per_row_is_candidate: bool = False,
) -> Frontier:
    """Places every op.

    Args:
        input_scopes: by the name of the input's placeholder.
        device_table_limit: embedding tables of at most this many bytes stay in the dense half.
        per_row_is_candidate: a constant that depends on the number of candidates makes its readers
            candidate-scope; needed where the graph is not evaluated at one candidate.

    Raises:
        ConversionError: a tensor of a dtype that cannot cross would have to.
    """
    order = list(ancestors(flat.results))
    scopes: dict[str, Scope] = {}
    reasons: dict[str, str] = {}
    for op in order:
        if op.name in input_scopes:
            scope: Scope = input_scopes[op.name]
        else:
            grows = per_row_is_candidate and any(t.op.name in flat.per_row for t in op.inputs)
            grows = grows or op.name in flat.growing
            candidate = grows or any(scopes.get(t.name) == "candidate" for t in op.inputs)
            scope = "candidate" if candidate else "request"
        scopes.update((t.name, scope) for t in op.outputs)

    data = [op for op in order if op.type not in ("Const", "Placeholder")]
    host: set[Any] = set()
    for op in data:
        reason = _host_reason(op, host, input_scopes, flat, device_table_limit)
        if reason:
            host.add(op)
            reasons[op.name] = reason
    for op in reversed(data):
        if op in host:
            for tensor in op.inputs:
                if tensor.op not in host and tensor.op.type not in ("Const", "Placeholder"):
                    host.add(tensor.op)
                    reasons[tensor.op.name] = f"the host op {flat.source_name(op)} needs it"
    dense = [op for op in data if op not in host]
    crossing: list[Any] = []
    for op in dense:
        for tensor in op.inputs:
            made_outside = tensor.op in host or tensor.op.name in input_scopes
            if tensor.name in flat.here:
                continue  # a shape, which the dense half knows
            if made_outside and not any(tensor is t for t in crossing):
                crossing.append(tensor)
    for tensor in crossing:
        if tensor.dtype not in _CROSSING:
            users = ", ".join(
                f"{flat.source_name(op)} ({op.type})" for op in dense if any(t is tensor for t in op.inputs)
            )
            raise ConversionError(
                f"the {tensor.dtype.name} tensor {flat.source_name(tensor.op)} would have to cross into the "
                f"dense half, read by {users}; only float32, bool, int32 and int64 cross. Cast it in the "
                "model"
            )
    reasons.update((op.name, "after the lookups") for op in dense)
    joins = [op for op in dense if op.name in flat.joins]
    reasons.update((op.name, "joins what is the request's with what is a candidate's") for op in joins)
    return Frontier(
        host=tuple(op for op in data if op in host),
        dense=tuple(dense),
        crossing=tuple(crossing),
        host_results=tuple(t for t in flat.results if t.op not in dense),
        scopes=scopes,
        reasons=reasons,
    )


def is_table_lookup(op: Any, flat: FlatGraph) -> bool:
    """Whether the op reads rows of a weight (or constant matrix) by ids along its first axis."""
    if op.type not in ("Gather", "GatherV2"):
        return False
    params = op.inputs[0]
    if params.op.name not in flat.weights and params.op.type != "Const":
        return False
    if op.type == "GatherV2":
        return tf.get_static_value(op.inputs[2]) == 0 and op.get_attr("batch_dims") == 0
    return True


def repeats_a_constant(op: Any, flat: FlatGraph) -> bool:
    """Whether the op makes a constant row as often as there are candidates, as a start token before ids."""
    if op.type not in ("Fill", "Tile", "BroadcastTo") or any(t.op.type != "Const" for t in op.inputs):
        return False
    known = flat.here.get(op.outputs[0].name)
    count, constant = op.inputs if op.type == "Fill" else (op.inputs[1], op.inputs[0])
    growth = flat.per_row.get(count.op.name)
    if known is None or known.shape[:1] != (1,) or growth is None or constant.op.name in flat.per_row:
        return False
    return growth.tolist() == [1] + [0] * (growth.size - 1)


def _host_reason(
    op: Any, host: set[Any], inputs: Mapping[str, Scope], flat: FlatGraph, device_table_limit: int
) -> str:
    if op.name in flat.joins:
        return ""
    constant = ("Const",)
    data = [t for t in op.inputs if t.op.type not in constant and t.op.name not in flat.weights]
    if op.type in ("ConcatV2", "Pack"):
        data = [t for t in data if not repeats_a_constant(t.op, flat)]
    from_host = all(t.op in host or t.op.name in inputs or t.dtype == tf.resource for t in data)
    if is_table_lookup(op, flat) and from_host and data:
        size = op.inputs[0].shape.num_elements() * op.inputs[0].dtype.size
        return "embedding lookup" if size > device_table_limit else ""
    if op.type.startswith(_STRICT_PREFIXES) or op.type in _STRICT:
        return "string, vocabulary, sparse or ragged op"
    if any(t.dtype in (tf.string, tf.variant) for t in (*op.inputs, *op.outputs)):
        is_list = any(t.dtype == tf.variant for t in (*op.inputs, *op.outputs))
        return "" if is_list else "works on strings"
    if not data or not from_host or op.type in _LOOPS:
        return ""
    if all(t.dtype == tf.bool for t in (*data, *op.outputs)) and any(t.op in host for t in data):
        return "a mask of host tensors"
    if any(t.dtype not in (*_CROSSING, *_INTEGERS, tf.variant) for t in data):
        return "works on numbers that cannot cross"
    if op.type in _FLEXIBLE:
        return "category encoding"
    if op.type in ("ZerosLike", "OnesLike") and any(t.op in host for t in data):
        return "has the shape of a host tensor"
    if _ends_a_bag(op):
        return "the end of an embedding lookup"
    if any(t.dtype in _INTEGERS for t in data) or op.outputs and op.outputs[0].dtype in _INTEGERS:
        return "works on ids"
    if any(not t.shape.is_fully_defined() for t in (*data, *op.outputs)) and any(t.op in host for t in data):
        return "its size depends on the request"
    if op.type == "Max" and len(data) == 1 and data[0].op in host and data[0].op.type == "OneHot":
        return "multi-hot encoding"
    return ""


def _ends_a_bag(op: Any) -> bool:
    """Whether the op is one of the last of an embedding bag: the division by weights, or zeros for empty
    rows."""
    if op.type == "DivNoNan":
        divisor = op.inputs[1].op
        divisor = divisor.inputs[0].op if divisor.type == "Sqrt" else divisor
        return op.inputs[0].op.type == "SegmentSum" and divisor.type == "SegmentSum"
    if op.type == "Sqrt":
        return op.inputs[0].op.type == "SegmentSum"
    if op.type in ("Tile", "Reshape", "ExpandDims", "Select", "SelectV2"):
        tensor = op.inputs[0]
        while tensor.op.type in ("Tile", "Reshape", "ExpandDims"):
            tensor = tensor.op.inputs[0]
        return tensor.dtype == tf.bool and tensor.op.type == "SparseFillEmptyRows"
    return False


def ancestors(tensors: Sequence[Any]) -> Iterator[Any]:
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
