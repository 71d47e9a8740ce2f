"""What values each input of a model may take, read from the graph: the vocabularies and tables that it
feeds, the boundaries it is compared with, the value it is padded with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from converters.examples.domains import Domain, ExampleDomain, FeatureDomain, ParsedFeature
from converters.flat_graph import FlatGraph
from converters.frontier import is_table_lookup
from converters.source import SourceTensor, TableContents

# Ops whose outputs hold values of their first inputs, or some of them.
_SAME_VALUES = {
    "Cast", "ConcatV2", "DynamicPartition", "ExpandDims", "Gather", "GatherNd", "GatherV2", "Maximum",
    "Minimum", "Pack", "RaggedTensorToSparse", "RaggedTensorToTensor", "Reshape", "Select", "SelectV2",
    "Slice", "SparseFillEmptyRows", "SparseReorder", "SparseReshape", "SparseSlice", "SparseToDense",
    "Squeeze", "StridedSlice", "Tile", "Transpose", "Unique", "UniqueV2", "Where",
}  # fmt: skip
_TEXT = {
    "RegexReplace", "StaticRegexReplace", "StringJoin", "StringLower", "StringStrip", "StringUpper", "Substr",
}  # fmt: skip
_SCALED = {
    "Add", "AddV2", "Cast", "ExpandDims", "Identity", "Mul", "RealDiv", "Reshape", "Squeeze", "StridedSlice",
}  # fmt: skip
_PARTITIONING = {"Cast", "FloorDiv", "FloorMod", "Maximum", "Reshape", "Select", "SelectV2", "Sub", "Unique"}
_POSITIVE = {"Log", "Log1p", "Sqrt", "Rsqrt", "Pow"}
_ALONG = {
    "AddV2", "Cast", "Equal", "ExpandDims", "Gather", "GatherV2", "Greater", "GreaterEqual", "Less",
    "LessEqual", "LogicalAnd", "LogicalNot", "LogicalOr", "LookupTableFindV2", "Mul", "NotEqual", "RealDiv",
    "Reshape", "SelectV2", "StringToHashBucketFast", "Sub", "Unique", "Where",
}  # fmt: skip
"""Ops whose output has a value for each value of a feature of variable length."""
_SPLITS = {"StringSplit", "StringSplitV2"}
_PARSERS = {"ParseExample", "ParseExampleV2"}
_JOINED = 64
"""Made-up joined strings of a feature that the graph splits."""

Tables = Callable[[str], TableContents]


def find(flat: FlatGraph, inputs: Sequence[SourceTensor], tables: Tables) -> list[Domain]:
    """A domain for every input, by its name (or that of the sparse or ragged feature it belongs to)."""
    found: list[Domain] = []
    for tensor in inputs:
        if tensor.part not in ("rows", "sparse_values", "flat_values"):
            continue
        value = flat.graph.get_tensor_by_name(f"{tensor.placeholder}:0")
        parser = next((op for op in value.consumers() if op.type in _PARSERS), None)
        name = tensor.feature or tensor.name
        if parser is not None:
            found.append(ExampleDomain(name=name, features=_parsed(parser, flat, tables)))
        else:
            found.append(_domain(name, value, flat, tables))
    variable = {
        t.feature: flat.graph.get_tensor_by_name(f"{t.placeholder}:0")
        for t in inputs
        if t.part in ("sparse_values", "flat_values")
    }
    like = _equal_lengths(variable)
    return [replace(d, structure_of=like[d.name]) if d.name in like else d for d in found]


def _equal_lengths(variable: Mapping[str, Any]) -> dict[str, str]:
    """Features of variable length that the graph combines value by value (ids with their weights), each
    with the one whose lengths it has."""
    owner: dict[str, str] = {tensor.name: name for name, tensor in variable.items()}
    like: dict[str, str] = {}
    pending = list(variable.values())
    while pending:
        tensor = pending.pop()
        for op in tensor.consumers():
            if op.type not in _ALONG:
                continue
            mine = owner[tensor.name]
            for other in {owner[t.name] for t in op.inputs if t.name in owner} - {mine}:
                first, second = sorted((mine, other))
                if like.get(first) != second and like.get(second, first) == first:
                    like[second] = first
            for output in op.outputs:
                if output.name not in owner:
                    owner[output.name] = mine
                    pending.append(output)
    return {name: like.get(of, of) for name, of in like.items()}


def _domain(name: str, value: Any, flat: FlatGraph, tables: Tables) -> FeatureDomain:
    keys: list[np.ndarray] = []
    limits: list[int] = []
    boundaries: list[float] = []
    pads: list[Any] = []
    separator: bytes | None = None
    numeric: list[bytes] = []
    seen: set[str] = set()
    pending = [value]
    while pending:
        tensor = pending.pop()
        if tensor.name in seen:
            continue
        seen.add(tensor.name)
        for op in tensor.consumers():
            if op.type == "LookupTableFindV2" and op.inputs[0].op.name in flat.tables:
                keys.append(tables(flat.tables[op.inputs[0].op.name]).keys)
            elif is_table_lookup(op, flat):
                limits.append(int(op.inputs[0].shape[0]))
            elif op.type == "OneHot" and (depth := tf.get_static_value(op.inputs[1])) is not None:
                limits.append(int(depth))
            elif op.type == "Bucketize":
                boundaries.extend(op.get_attr("boundaries"))
            elif op.type in ("LowerBound", "UpperBound"):
                bounds = tf.get_static_value(op.inputs[0])
                boundaries.extend([] if bounds is None else bounds.ravel().tolist())
            elif op.type in ("Equal", "NotEqual", "Greater") and tensor is value and len(value.shape) > 1:
                constant = tf.get_static_value(op.inputs[1])
                if constant is not None and constant.size == 1:
                    pads.append(constant.item())
            elif op.type in _SPLITS:
                given = tf.get_static_value(op.inputs[1])
                separator = given.item() if given is not None and given.item() else b" "
                pending.append(op.outputs[1])
            elif op.type == "StringToNumber":
                numeric = [b"0", b"1", b"17", b"300"]
                numeric += [] if _wants_positive(op.outputs[0]) else [b"-2"]
                numeric += [] if op.get_attr("out_type").is_integer else [b"0.125", b"2.5e1"]
            if op.type in _TEXT and op.outputs[0].dtype == tensor.dtype:
                pending.append(op.outputs[0])
            if op.type in _SAME_VALUES and not is_table_lookup(op, flat):
                pending.extend(
                    t for t in op.outputs if t.dtype.base_dtype == tensor.dtype or op.type == "Cast"
                )
    if value.dtype.is_integer and (rows := _partitioned_rows(value, flat)):
        limits.append(rows)
    known = np.concatenate(keys) if keys and len({k.dtype for k in keys}) == 1 else None
    if numeric:
        known = _strings(numeric)
    if separator is not None:
        known = _joined(known, separator)
    if value.dtype == tf.string and known is not None and known.dtype != object:
        known = None
    pad = pads[0] if pads else None
    return FeatureDomain(
        name=name,
        keys=known if known is not None and known.size else None,
        unknown=not numeric,
        positive=value.dtype.is_floating and _wants_positive(value),
        ids=(0, min(limits)) if limits and value.dtype.is_integer else None,
        boundaries=tuple(sorted(set(boundaries))),
        pad=pad,
    )


def _partitioned_rows(value: Any, flat: FlatGraph) -> int:
    """Rows of the partitioned table that integers are looked up in; 0 if they are not."""
    pending, seen = [value], set()
    while pending:
        for op in pending.pop().consumers():
            if op.type == "DynamicPartition":
                lookups = {u for t in op.outputs for u in t.consumers() if is_table_lookup(u, flat)}
                if lookups:
                    return sum(int(u.inputs[0].shape[0]) for u in lookups)
            elif op.type in _PARTITIONING | _SAME_VALUES and op.name not in seen:
                seen.add(op.name)
                pending.extend(op.outputs)
    return 0


def _wants_positive(value: Any) -> bool:
    """Whether the model takes a logarithm or root of the value, scaled or shifted."""
    pending, seen = [value], set()
    while pending:
        tensor = pending.pop()
        for op in tensor.consumers():
            if op.type in _POSITIVE:
                return True
            if op.type in _SCALED and op.name not in seen and op.inputs[0] is tensor:
                seen.add(op.name)
                pending.append(op.outputs[0])
    return False


def _joined(keys: np.ndarray | None, separator: bytes) -> np.ndarray:
    """Strings of up to five parts, as the graph will split them."""
    parts = _strings([b"a", b"b", b"7"]) if keys is None else keys
    rng = np.random.default_rng(7)
    return _strings([separator.join(rng.choice(parts, rng.integers(1, 6))) for _ in range(_JOINED)])


def _strings(values: list[bytes]) -> np.ndarray:
    out = np.empty(len(values), object)
    out[:] = values
    return out


def _parsed(op: Any, flat: FlatGraph, tables: Tables) -> tuple[ParsedFeature, ...]:
    """The features that a parse op reads."""
    inputs = list(op.inputs)
    if op.type == "ParseExampleV2":
        sparse, dense, ragged = (_keys(t) for t in inputs[2:5])
        defaults = inputs[5:]
    else:
        sparse_count, dense_count = op.get_attr("Nsparse"), op.get_attr("Ndense")
        sparse = [k for t in inputs[2 : 2 + sparse_count] for k in _keys(t)]
        dense = [k for t in inputs[2 + sparse_count : 2 + sparse_count + dense_count] for k in _keys(t)]
        ragged, defaults = [], inputs[2 + sparse_count + dense_count :]
    outputs = list(op.outputs)
    count = len(sparse)
    features = [
        _feature(name, "var", outputs[count + i], (), True, flat, tables) for i, name in enumerate(sparse)
    ]
    at = 3 * count
    for i, name in enumerate(dense):
        shape = op.get_attr("dense_shapes")[i]
        dims = [d.size for d in shape.dim] if hasattr(shape, "dim") else shape.as_list()
        variable = bool(dims) and dims[0] in (-1, None)
        kind = "sequence" if variable else "fixed"
        optional = variable or defaults[i].shape.num_elements() != 0
        shape = tuple(d for d in dims[1:]) if variable else tuple(dims)
        features.append(_feature(name, kind, outputs[at + i], shape, optional, flat, tables))
    at += len(dense)
    features += [
        _feature(name, "var", outputs[at + i], (), True, flat, tables) for i, name in enumerate(ragged)
    ]
    values = {f.name: outputs[count + i] for i, f in enumerate(features[:count])}
    like = _equal_lengths(values)
    return tuple(
        replace(f, domain=replace(f.domain, structure_of=like[f.name])) if f.domain and f.name in like else f
        for f in features
    )


def _feature(
    name: str, kind: Any, value: Any, shape: tuple[int, ...], optional: bool, flat: FlatGraph, tables: Tables
) -> ParsedFeature:
    return ParsedFeature(
        name=name,
        kind=kind,
        dtype=value.dtype.name,
        shape=shape,
        optional=optional,
        domain=_domain(name, value, flat, tables),
    )


def _keys(tensor: Any) -> list[str]:
    found = tf.get_static_value(tensor)
    return [] if found is None else [bytes(k).decode() for k in np.atleast_1d(found).ravel().tolist()]
