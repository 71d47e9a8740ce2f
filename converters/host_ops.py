"""The host half of a cut graph as a host program: one short function for each TensorFlow op that may run
there.

Each function checks the op's attributes and appends one operator, or folds the op into the one before it:
Keras writes one vocabulary lookup as four ops and one embedding lookup as five, and they are recognised as
the one operator that was meant.
"""

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from msgspec.structs import replace

from converters.errors import ConversionError, Unsupported, UnsupportedOpsError
from converters.frontier import Frontier, is_table_lookup, unplaced_control_flow
from converters.names import UniqueNames, identifier, layer_name
from converters.savedmodel import SourceModel
from converters.tables import write_table, write_vocabulary
from jaxrank.host_program import HOST_SCHEMA_VERSION, BlockColumn, HostOperator, HostProgram
from jaxrank.manifest import Scope, Table, Vocabulary

_ELEMENTWISE = {
    "Equal": "equal",
    "NotEqual": "not_equal",
    "Less": "less",
    "LessEqual": "less_equal",
    "Greater": "greater",
    "GreaterEqual": "greater_equal",
    "Add": "add",
    "AddV2": "add",
    "Sub": "subtract",
    "Mul": "multiply",
    "FloorMod": "floor_mod",
    "FloorDiv": "floor_divide",
    "Maximum": "maximum",
    "Minimum": "minimum",
    "LogicalAnd": "logical_and",
    "LogicalOr": "logical_or",
    "LogicalNot": "logical_not",
    "Select": "select",
    "SelectV2": "select",
}


class HostProgramWriter:
    """Collects operators, tables and vocabularies of one model. `write` returns the finished program."""

    def __init__(self, model: SourceModel, frontier: Frontier, bundle: Path):
        self.model = model
        self.frontier = frontier
        self.bundle = bundle
        self.tables: dict[str, Table] = {}
        self.vocabularies: dict[str, Vocabulary] = {}
        self._operators: dict[str, HostOperator] = {}
        self._names = UniqueNames()
        self._by_tensor = {t.tensor_name.split(":")[0] + ":0": self._names.take(t.name) for t in model.inputs}
        self._raw = {name: {name} for name in self._by_tensor.values()}

    def write(self) -> HostProgram:
        """Converts every host op. Raises `UnsupportedOpsError` with all ops that have no host operator."""
        missing = unplaced_control_flow(self.model)
        for op in self.frontier.host:
            known = is_table_lookup(op, self.model) or op.type in _ELEMENTWISE or op.type in _OPS
            if not known and all(op.name != m.name for m in missing):
                reason = self.frontier.reasons[op.name]
                missing.append(
                    Unsupported(
                        self.model.source_name(op),
                        op.type,
                        f"it runs on the host ({reason}), where jaxrank has no operator for it; compute "
                        "it before the "
                        "request is sent, or express it with the ops listed in docs/convert.md",
                    )
                )
        if missing:
            raise UnsupportedOpsError(missing)
        for op in self.frontier.host:
            if is_table_lookup(op, self.model):
                _embedding_lookup(self, op)
            elif op.type in _ELEMENTWISE:
                _elementwise(self, op)
            else:
                _OPS[op.type](self, op)
        columns = self._columns()
        operators = self._used({c.tensor for c in columns})
        # Operators that were folded into others took names; what is left gets them without counters.
        names = UniqueNames(tuple(t.name for t in self.model.inputs))
        renamed = {t.name: t.name for t in self.model.inputs}
        renamed.update((o.output, names.take(re.sub(r"_\d+$", "", o.output))) for o in operators)
        return HostProgram(
            schema_version=HOST_SCHEMA_VERSION,
            operators=tuple(
                replace(o, inputs=tuple(renamed[i] for i in o.inputs), output=renamed[o.output])
                for o in operators
            ),
            columns=tuple(replace(c, tensor=renamed[c.tensor], feature=renamed[c.tensor]) for c in columns),
        )

    def add(self, op: Any, kind: str, inputs: tuple[str, ...], name: str, **attrs: Any) -> None:
        """Appends an operator that makes the op's first output; `name` describes the value."""
        output = self._names.take(identifier(name))
        self._raw[output] = set().union(*(self._raw[i] for i in inputs))
        self._by_tensor[op.outputs[0].name] = output
        self._operators[output] = HostOperator(
            op=kind,
            name=self.model.source_name(op),
            inputs=inputs,
            output=output,
            scope=self.frontier.scopes[op.outputs[0].name],
            attrs=attrs,
        )

    def tensor(self, tensor: Any) -> str:
        """The host name of a tensor that an earlier op or an input of the model makes."""
        return self._by_tensor[tensor.name]

    def described(self, inputs: tuple[str, ...], what: str) -> str:
        """`movie_id_mask`: the raw features that a value comes from, then what it is."""
        raw = sorted(set().union(*(self._raw[i] for i in inputs)))
        return "_".join([*raw[:2], what])

    def raw_inputs(self, tensor: Any) -> set[str]:
        """Names of the model inputs that a tensor is computed from."""
        return self._raw[self.tensor(tensor)]

    def operator(self, name: str) -> HostOperator | None:
        return self._operators.get(name)

    def _used(self, wanted: set[str]) -> list[HostOperator]:
        kept: list[HostOperator] = []
        for output, operator in reversed(self._operators.items()):
            if output in wanted:
                kept.append(operator)
                wanted.update(operator.inputs)
        return kept[::-1]

    def _columns(self) -> tuple[BlockColumn, ...]:
        columns: list[BlockColumn] = []
        ends: dict[Scope, int] = {"request": 0, "candidate": 0}
        for tensor in self.frontier.crossing:
            shape = tensor.shape.as_list()
            if not shape or shape[0] != 1:
                raise ConversionError(
                    f"{self.model.source_name(tensor.op)} has shape {shape} at one candidate: its first "
                    "dimension must be "
                    "the row. A model that mixes rows before its lookups cannot be cut there"
                )
            scope = self.frontier.scopes[tensor.name]
            row = tuple(shape[1:])
            name = self.tensor(tensor)
            dtype = "bool" if tensor.dtype == tf.bool else "float32"
            columns.append(
                BlockColumn(
                    tensor=name, feature=name, scope=scope, offset=ends[scope], shape=row, dtype=dtype
                )
            )
            ends[scope] += int(np.prod(row, dtype=np.int64))
        return tuple(columns)


def encode_constant(value: np.ndarray) -> dict[str, Any]:
    """A constant as JSON: dtype, shape and flat values; strings in base64, because they are bytes."""
    value = np.asarray(value)
    if value.dtype == object or value.dtype.kind == "S":
        values = [base64.b64encode(bytes(v)).decode() for v in value.ravel()]
        return {"dtype": "string", "shape": list(value.shape), "values": values}
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ConversionError(
            "a host op has a constant that is not finite, which host_program.json cannot hold"
        )
    return {"dtype": value.dtype.name, "shape": list(value.shape), "values": value.ravel().tolist()}


def _operands(writer: HostProgramWriter, op: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Named inputs, and constants by their position among the op's operands."""
    names: list[str] = []
    constants: dict[str, Any] = {}
    for i, tensor in enumerate(op.inputs):
        if tensor.op.type == "Const":
            constants[str(i)] = encode_constant(tf.get_static_value(tensor))
        else:
            names.append(writer.tensor(tensor))
    return tuple(names), constants


def _elementwise(writer: HostProgramWriter, op: Any) -> None:
    if op.type in ("Select", "SelectV2") and (_fold_mask(writer, op) or _fold_wrap(writer, op)):
        return
    inputs, constants = _operands(writer, op)
    kind = _ELEMENTWISE[op.type]
    what = "mask" if op.outputs[0].dtype == tf.bool else kind
    writer.add(
        op, kind, inputs, writer.described(inputs, what), **({"constants": constants} if constants else {})
    )


def _fold_mask(writer: HostProgramWriter, op: Any) -> bool:
    """select(equal(x, key), value, lookup(x)) is the lookup with one more entry."""
    condition, then, otherwise = op.inputs
    if condition.op.type != "Equal" or then.op.type != "Const" or otherwise.op.type != "LookupTableFindV2":
        return False
    key, value = tf.get_static_value(condition.op.inputs[1]), tf.get_static_value(then)
    if condition.op.inputs[0] is not otherwise.op.inputs[1] or key is None or key.ndim or value.ndim:
        return False
    lookup = writer.operator(writer.tensor(otherwise))
    assert lookup is not None
    override = {"key": encode_constant(key), "value": int(value)}
    writer.add(op, lookup.op, lookup.inputs, lookup.output, **{**lookup.attrs, "override": override})
    return True


def _fold_wrap(writer: HostProgramWriter, op: Any) -> bool:
    """select(x < 0, x + rows, x) feeding lookups in a table of that many rows is how Keras reads a negative
    id."""
    condition, then, otherwise = op.inputs
    if condition.op.type != "Less" or then.op.type not in ("Add", "AddV2"):
        return False
    zero, rows = tf.get_static_value(condition.op.inputs[1]), tf.get_static_value(then.op.inputs[1])
    same = condition.op.inputs[0] is otherwise and then.op.inputs[0] is otherwise
    users = op.outputs[0].consumers()
    if not same or zero is None or rows is None or zero.ndim or rows.ndim or zero != 0:
        return False
    if not all(is_table_lookup(u, writer.model) and int(u.inputs[0].shape[0]) == rows for u in users):
        return False
    name = writer.tensor(otherwise)
    inputs = (name,)
    writer.add(op, "wrap_negative", inputs, writer.described(inputs, "ids"), rows=int(rows))
    return True


def _vocabulary_lookup(writer: HostProgramWriter, op: Any) -> None:
    handle, keys, default = op.inputs
    default_value = tf.get_static_value(default)
    if op.outputs[0].dtype != tf.int64 or keys.dtype not in (tf.string, tf.int64) or default_value is None:
        raise ConversionError(
            f"{writer.model.source_name(op)} looks up {keys.dtype.name} -> {op.outputs[0].dtype.name}; "
            "only string and int64 "
            "keys to int64 values with a constant default are supported"
        )
    resource = f"{handle.op.name} {int(default_value)}"
    if resource not in writer.vocabularies:
        taken = {v.name for v in writer.vocabularies.values()} | {t.name for t in writer.tables.values()}
        name = UniqueNames(tuple(taken)).take(f"{sorted(writer.raw_inputs(keys))[0]}_vocabulary")
        writer.vocabularies[resource] = write_vocabulary(
            writer.bundle, name, writer.model.tables[handle.op.name], keys.dtype, int(default_value)
        )
    vocabulary = writer.vocabularies[resource]
    inputs = (writer.tensor(keys),)
    writer.add(op, "vocabulary_lookup", inputs, writer.described(inputs, "index"), vocabulary=vocabulary.name)


def _hash_bucket_fast(writer: HostProgramWriter, op: Any) -> None:
    inputs = (writer.tensor(op.inputs[0]),)
    writer.add(
        op,
        "hash_bucket_fast",
        inputs,
        writer.described(inputs, "bucket"),
        buckets=int(op.get_attr("num_buckets")),
    )


def _embedding_lookup(writer: HostProgramWriter, op: Any) -> None:
    params = op.inputs[0].op
    if params.name not in writer.tables:
        taken = tuple(t.name for t in writer.tables.values())
        name = UniqueNames(taken).take(layer_name(writer.model.source_name(op)))
        value = writer.model.variables.get(params.name)
        value = tf.constant(tf.get_static_value(op.inputs[0])) if value is None else value
        if value.dtype != tf.float32:
            raise ConversionError(
                f"embedding table {name} is {value.dtype.name}; only float32 tables are supported"
            )
        writer.tables[params.name] = write_table(writer.bundle, name, value)
    table = writer.tables[params.name]
    ids = writer.tensor(op.inputs[1])
    wrap = writer.operator(ids)
    negative = "error"
    if wrap is not None and wrap.op == "wrap_negative":
        ids, negative = wrap.inputs[0], "wrap"
    writer.add(
        op,
        "embedding_lookup",
        (ids,),
        writer.described((ids,), "embedding"),
        table=table.name,
        negative_ids=negative,
    )


def _one_hot(writer: HostProgramWriter, op: Any) -> None:
    depth, on, off = (tf.get_static_value(t) for t in op.inputs[1:4])
    if depth is None or on is None or off is None or op.get_attr("axis") not in (-1, len(op.inputs[0].shape)):
        raise ConversionError(
            f"{writer.model.source_name(op)}: one_hot must have a constant depth and the last axis"
        )
    if not (np.isfinite(on) and np.isfinite(off)):
        raise ConversionError(
            f"{writer.model.source_name(op)}: one_hot with the values {on} and {off} is not supported"
        )
    inputs = (writer.tensor(op.inputs[0]),)
    writer.add(
        op,
        "one_hot",
        inputs,
        writer.described(inputs, "one_hot"),
        depth=int(depth),
        on=float(on),
        off=float(off),
    )


def _multi_hot(writer: HostProgramWriter, op: Any) -> None:
    """max over the values of one feature of their one-hot rows."""
    one_hot = writer.operator(writer.tensor(op.inputs[0]))
    axes = np.atleast_1d(tf.get_static_value(op.inputs[1])) % len(op.inputs[0].shape)
    rank = len(op.inputs[0].shape)
    plain = (
        one_hot is not None
        and one_hot.op == "one_hot"
        and (one_hot.attrs["on"], one_hot.attrs["off"]) == (1.0, 0.0)
    )
    if not plain or list(axes) != [rank - 2] or op.get_attr("keep_dims"):
        raise ConversionError(
            f"{writer.model.source_name(op)}: a maximum over one-hot rows must reduce the axis before "
            "the last"
        )
    assert one_hot is not None
    depth = one_hot.attrs["depth"]
    writer.add(op, "multi_hot", one_hot.inputs, writer.described(one_hot.inputs, "multi_hot"), depth=depth)


def _cast(writer: HostProgramWriter, op: Any) -> None:
    inputs = (writer.tensor(op.inputs[0]),)
    dtype = op.outputs[0].dtype.name
    writer.add(op, "cast", inputs, writer.described(inputs, dtype), dtype=dtype)


def _reshape(writer: HostProgramWriter, op: Any) -> None:
    """Reshape, Squeeze, ExpandDims: the result's shape at one candidate, whose first dimension holds the
    rows."""
    inputs = (writer.tensor(op.inputs[0]),)
    shape = op.outputs[0].shape.as_list()
    writer.add(
        op, "reshape", inputs, writer.described(inputs, "reshaped"), shape=[-1, *shape[1:]] if shape else [-1]
    )


def _concat(writer: HostProgramWriter, op: Any) -> None:
    axis = int(tf.get_static_value(op.inputs[len(op.inputs) - 1])) % len(op.outputs[0].shape)
    if axis == 0 or any(t.op.type == "Const" for t in op.inputs[: len(op.inputs) - 1]):
        raise ConversionError(f"{writer.model.source_name(op)}: ids can be concatenated only within a row")
    inputs = tuple(writer.tensor(t) for t in op.inputs[: len(op.inputs) - 1])
    writer.add(op, "concat", inputs, writer.described(inputs, "concat"), axis=axis)


_OPS: dict[str, Callable[[HostProgramWriter, Any], None]] = {
    "LookupTableFindV2": _vocabulary_lookup,
    "StringToHashBucketFast": _hash_bucket_fast,
    "OneHot": _one_hot,
    "Max": _multi_hot,
    "Cast": _cast,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "ExpandDims": _reshape,
    "ConcatV2": _concat,
}
