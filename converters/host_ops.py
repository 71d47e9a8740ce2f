"""The host half of a cut graph as a host program.

Most TensorFlow ops have a host operator of the same name and meaning, and are written down as they are. What
TensorFlow spells as several ops but means as one (a vocabulary with a mask, an embedding bag) is recognised
first: `converters/recognize/` has one file for each.
"""

import base64
import inspect
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from msgspec.structs import replace
from tensorflow.python.framework import op_def_registry

from converters.errors import ConversionError, Unsupported, UnsupportedOpsError
from converters.flat_graph import FlatGraph
from converters.frontier import Frontier, is_table_lookup
from converters.names import UniqueNames, identifier, table_name
from converters.source import SourceTensor, Weight
from converters.tables import ROW_FORMATS
from jaxrank.host_program import (
    HOST_SCHEMA_VERSION,
    TABLE_PREFIX,
    BlockColumn,
    HostOperator,
    HostOutput,
    HostProgram,
)
from jaxrank.manifest import Scope
from serving.host.operators import OPERATORS, operator_name

Recognizer = Any
"""`(writer, op) -> bool`: writes the op, or folds it into an operator before it, and says whether it did."""

_BROADCASTING = {
    "Abs", "Add", "AddV2", "AsString", "Bucketize", "Cast", "Div", "DivNoNan", "Equal", "Exp",
    "FloorDiv", "FloorMod", "Gather", "GatherV2", "Greater", "GreaterEqual", "IsNan", "Less",
    "LessEqual", "Log", "Log1p", "LogicalAnd", "LogicalNot", "LogicalOr", "LookupTableFindV2",
    "Maximum", "Minimum", "Mod", "Mul", "Neg", "NotEqual", "OneHot", "RealDiv", "Round", "SelectV2",
    "Sign", "Sqrt", "Square", "StringLength", "StringLower", "StringStrip", "StringToHashBucketFast",
    "StringToHashBucketStrong", "StringToNumber", "StringUpper", "Sub",
}  # fmt: skip
"""Ops that treat every element alone: a request's single row stands for all rows of candidates."""


_FUSED_BY_ROW = {"embedding_lookup", "multi_hot", "vocabulary_lookup", "wrap_negative"}


@dataclass(frozen=True)
class Lookup:
    """A lookup that was written: its table, the tensor of its ids, and the norm that rows are clipped to."""

    table: str
    ids: Any
    max_norm: float | None


class HostProgramWriter:
    """Collects operators, tables and vocabularies of one model. `write` returns the finished program.

    `tables` and `vocabularies` say what must be written to the bundle: weights by table name, and the source
    node, key dtype, value dtype and default of every vocabulary by its name.
    """

    def __init__(
        self,
        flat: FlatGraph,
        frontier: Frontier,
        inputs: tuple[SourceTensor, ...],
        rows: int = 1,
        repeated: tuple[str, ...] = (),
    ):
        """Args:
        rows: candidates at which `flat` was evaluated.
        repeated: request-scope inputs that the graph wants once for every candidate.
        """
        self.flat = flat
        self.frontier = frontier
        self.rows = rows
        self.missing: list[Unsupported] = []
        self.tables: dict[str, Weight] = {}
        self.vocabularies: dict[str, tuple[str, tf.DType, tf.DType, Any]] = {}
        self.host = {op.name for op in frontier.host}
        self._operators: dict[str, HostOperator] = {}
        self._names = UniqueNames()
        self._by_tensor = {f"{t.placeholder}:0": self._names.take(t.name) for t in inputs}
        self._raw = {name: {name} for name in self._by_tensor.values()}
        self._table_names: dict[str, str] = {}
        self._done: set[str] = set()
        self._rows = {self._by_tensor[f"{t.placeholder}:0"] for t in inputs if t.part == "rows"}
        self._declared = {self._by_tensor[f"{t.placeholder}:0"]: t.shape[0] for t in inputs if t.shape}
        self._clones: dict[str, str] = {}
        self._cloning = False
        self.lookups: dict[str, Lookup] = {}
        self.bags: dict[str, Any] = {}
        self.partitioned: dict[tuple[str, ...], str] = {}
        for name in repeated:
            self._by_tensor[f"{name.replace(':', '_')}:0"] = self._repeat(name, name)

    def write(self, outputs: tuple[str, ...]) -> HostProgram:
        """Converts every host op; those that have no host operator are in `missing` afterwards, and the
        program is of no use then. `outputs` are the signature's, in the order of `flat.results`."""
        for op in self.frontier.host:
            if op.name in self._done:
                continue
            try:
                self._write(op)
            except UnsupportedOpsError as error:
                self.missing.extend(error.found)
                for tensor in op.outputs:
                    self._by_tensor.setdefault(tensor.name, self._names.take("unsupported"))
                    self._raw.setdefault(self._by_tensor[tensor.name], set())
        columns = self._columns()
        if self.missing:
            return HostProgram(schema_version=HOST_SCHEMA_VERSION, operators=(), columns=columns)
        for t in self.frontier.host_results:
            if t.op.type == "Const":
                constants = {"0": self.constant(t, "request")}
                self.add(t.op, "identity", (), "constant", constants=constants, scope="request")
        host_outputs = tuple(
            HostOutput(output=name, tensor=self.tensor(t), constant=not self._raw[self.tensor(t)])
            for name, t in zip(outputs, self.flat.results, strict=True)
            if any(t is r for r in self.frontier.host_results)
        )
        operators = self._used({c.tensor for c in columns} | {o.tensor for o in host_outputs})
        self._keep_read(operators)
        # Operators that were folded into others took names; what is left gets them without counters.
        raw = [name for name, source in self._raw.items() if source == {name}]
        names = UniqueNames(tuple(raw))
        renamed = {name: name for name in raw}
        for o in operators:
            renamed.update((out, names.take(re.sub(r"_\d+$", "", out))) for out in o.outputs)
        return HostProgram(
            schema_version=HOST_SCHEMA_VERSION,
            operators=tuple(
                replace(
                    o,
                    inputs=tuple(renamed.get(i, i) for i in o.inputs),
                    outputs=tuple(renamed[i] for i in o.outputs),
                )
                for o in operators
            ),
            columns=tuple(replace(c, tensor=renamed[c.tensor], feature=renamed[c.tensor]) for c in columns),
            outputs=tuple(replace(o, tensor=renamed[o.tensor]) for o in host_outputs),
        )

    def _write(self, op: Any) -> None:
        from converters.recognize import RECOGNIZERS

        if not any(recognize(self, op) for recognize in RECOGNIZERS.get(op.type, ())):
            self._same(op)

    def add(
        self,
        op: Any,
        kind: str,
        inputs: tuple[str, ...],
        name: str,
        *,
        constants: dict[str, Any] | None = None,
        outputs: int = 1,
        scope: Scope | None = None,
        **attrs: Any,
    ) -> None:
        """Appends an operator that makes the op's first `outputs` outputs; `name` describes the value."""
        names = tuple(self._names.take(identifier(name)) for _ in range(outputs))
        raw = set().union(*(self._raw.get(i, set()) for i in inputs))
        operator = HostOperator(
            op=kind,
            name=self.flat.source_name(op),
            inputs=inputs,
            outputs=names,
            scope=scope or self.scope(op.outputs[0]),
            attrs=attrs,
            constants=constants or {},
        )
        alone = kind in _FUSED_BY_ROW or op.type in _BROADCASTING
        for output, tensor in zip(names, op.outputs[:outputs], strict=True):
            self._raw[output] = raw
            (self._clones if self._cloning else self._by_tensor)[tensor.name] = output
            self._operators[output] = operator
            if alone and inputs and all(i in self._rows or i.startswith(TABLE_PREFIX) for i in inputs):
                self._rows.add(output)

    def done(self, *ops: Any) -> None:
        """Marks ops that a recognised operator took in."""
        self._done.update(op.name for op in ops)

    def scope(self, tensor: Any) -> Scope:
        return "candidate" if self._cloning else self.frontier.scopes[tensor.name]

    def tensor(self, tensor: Any) -> str:
        """The host name of a tensor that an earlier op or an input of the model makes."""
        return self._for_candidates(tensor) if self._cloning else self._by_tensor[tensor.name]

    def operand(self, tensor: Any, scope: Scope) -> str:
        """The host name of an operand of an operator of some scope."""
        if tensor.op.name in self.flat.weights:
            return TABLE_PREFIX + self.table(tensor)
        return self.tensor(tensor) if scope == "request" else self._for_candidates(tensor)

    def _for_candidates(self, tensor: Any) -> str:
        """A request's value as an operator of the candidates reads it: a row is repeated for every candidate;
        anything else (a sparse feature's indices) is computed again from repeated inputs."""
        if self.frontier.scopes[tensor.name] == "candidate":
            return self._by_tensor[tensor.name]
        if tensor.name in self._clones:
            return self._clones[tensor.name]
        name = self._by_tensor[tensor.name]
        source = self.flat.source_name(tensor.op)
        if name in self._rows:
            self._clones[tensor.name] = self._repeat(name, source)
            return self._clones[tensor.name]
        if tensor.op.type == "Placeholder" or any(self._declared.get(r) == 1 for r in self._raw[name]):
            raise ConversionError(
                f"{source} is the same for a whole request but is not a row, and an op of the candidates "
                "reads it; "
                "make its input a candidate's (leave it out of --request-inputs)"
            )
        before, self._cloning = self._cloning, True
        try:
            self._write(tensor.op)
        finally:
            self._cloning = before
        return self._clones[tensor.name]

    def _repeat(self, name: str, source: str) -> str:
        repeated = f"{name}_rows"
        if repeated not in self._operators:
            self._operators[repeated] = HostOperator(
                op="repeat_rows", name=source, inputs=(name,), outputs=(repeated,), scope="candidate"
            )
            self._raw[repeated] = self._raw[name]
            self._rows.add(repeated)
        return repeated

    def table(self, tensor: Any) -> str:
        """The name of the table that holds a weight; the weight is written to the bundle."""
        node = tensor.op.name
        if node not in self._table_names:
            weight = self.weight(tensor)
            self._table_names[node] = self.new_table(table_name(weight.name), weight)
        return self._table_names[node]

    def weight(self, tensor: Any) -> Weight:
        """The weight (or constant) that a tensor is."""
        weight = self.flat.weights.get(tensor.op.name)
        if weight is None:
            value = np.asarray(tf.get_static_value(tensor))
            weight = Weight(self.flat.source_name(tensor.op), (value,))
        return weight

    def new_table(self, name: str, weight: Weight) -> str:
        if weight.dtype.name not in ROW_FORMATS:
            raise ConversionError(f"table {name} is {weight.dtype}; tables are {', '.join(ROW_FORMATS)}")
        name = UniqueNames((*self.tables, *self.vocabularies)).take(name)
        self.tables[name] = weight
        return name

    def described(self, inputs: tuple[str, ...], what: str) -> str:
        """`movie_id_mask`: the raw features that a value comes from, then what it is."""
        raw = sorted(set().union(*(self._raw.get(i, set()) for i in inputs)))
        return "_".join([*(r.replace("/", "_") for r in raw[:2]), what])

    def raw_inputs(self, tensor: Any) -> set[str]:
        """Names of the model inputs that a tensor is computed from."""
        return self._raw[self._by_tensor[tensor.name]]

    def operator(self, name: str) -> HostOperator | None:
        return self._operators.get(name)

    def _same(self, op: Any) -> None:
        """The host operator that does what the op does."""
        if is_table_lookup(op, self.flat):
            self.lookup(op, self.table(op.inputs[0]), op.inputs[1], op.inputs[0].shape.as_list()[1:])
            return
        name = operator_name(op.type)
        function = OPERATORS.get(name)
        if function is None:
            reason = self.frontier.reasons[op.name]
            raise UnsupportedOpsError(
                [
                    self._unsupported(
                        op, f"it runs on the host ({reason}), where jaxrank has no operator for it"
                    )
                ]
            )
        attrs = self._attributes(op, function)
        scope = self.scope(op.outputs[0])
        names: list[str] = []
        constants: dict[str, Any] = {}
        for i, tensor in enumerate(op.inputs):
            if tensor.op.type == "Const":
                constants[str(i)] = self.constant(tensor, scope)
            elif op.type in _BROADCASTING and tensor.op.name not in self.flat.weights:
                names.append(self.tensor(tensor))
            else:
                names.append(self.operand(tensor, scope))
        inputs = tuple(names)
        what = "mask" if op.outputs[0].dtype == tf.bool else name.removesuffix("_v2")
        self.add(
            op,
            name,
            inputs,
            self.described(inputs, what),
            constants=constants,
            outputs=len(op.outputs),
            scope=scope,
            **attrs,
        )

    def constant(self, tensor: Any, scope: Scope) -> dict[str, Any]:
        """A constant operand as JSON, with what it adds for every candidate."""
        value = tf.get_static_value(tensor)
        per_row = self.flat.per_row.get(tensor.op.name)
        grows = per_row is not None and scope == "candidate"
        if per_row is not None and np.isfinite(per_row).all():
            value = value - per_row * (self.rows - 1)
        found = encode_constant(value)
        if per_row is not None and grows:
            if not np.isfinite(per_row).all():
                raise ConversionError(
                    f"{self.flat.source_name(tensor.op)} depends on the number of candidates in a way "
                    "that is not "
                    "a multiple of it, and the host needs it"
                )
            found["per_row"] = np.asarray(per_row).ravel().tolist()
        return found

    def _attributes(self, op: Any, function: Any) -> dict[str, Any]:
        """The op's attributes that its operator honours. Any other one must be a type or have its default."""
        honoured = {
            p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
        }
        found: dict[str, Any] = {}
        definition: Any = op_def_registry.get(op.type)
        counts = {a.number_attr for a in (*definition.input_arg, *definition.output_arg)}
        for attribute in definition.attr:
            value = op.node_def.attr[attribute.name]
            if value.WhichOneof("value") is None:
                value = attribute.default_value
            if attribute.name in honoured:
                found[attribute.name] = _plain(value)
                continue
            shown = attribute.type in ("type", "list(type)") or attribute.name in counts
            if not shown and value != attribute.default_value and not _without_effect(attribute.name):
                what = f"with {attribute.name}={_plain(value)!r} it has no host operator"
                raise UnsupportedOpsError([self._unsupported(op, what)])
        return found

    def _unsupported(self, op: Any, what: str) -> Unsupported:
        return Unsupported(
            self.flat.source_name(op),
            op.type,
            f"{what}; compute it before the request is sent, or express it with the ops that "
            f"docs/convert.md lists",
        )

    def lookup(
        self, op: Any, table: str, ids: Any, row: list[int] | None, max_norm: float | None = None
    ) -> None:
        """Adds the lookup of ids in a table. `row` is the shape of a row; None if it is a vector."""
        if ids.op.type == "Const":
            constants, inputs = {"0": self.constant(ids, "request")}, ()
        else:
            constants, inputs = {}, (self.tensor(ids),)
        wrap = self.operator(inputs[0]) if inputs else None
        attrs: dict[str, Any] = {"table": table, "negative_ids": "error"}
        if wrap is not None and wrap.op == "wrap_negative":
            inputs, attrs["negative_ids"] = (wrap.inputs[0],), "wrap"
        if row is not None and len(row) != 1:
            attrs["row_shape"] = row
        if max_norm is not None:
            attrs["max_norm"] = max_norm
        self.add(
            op, "embedding_lookup", inputs, self.described(inputs, "embedding"), constants=constants, **attrs
        )
        self.lookups[op.outputs[0].name] = Lookup(table, ids, max_norm)

    def _keep_read(self, operators: list[HostOperator]) -> None:
        """Forgets tables and vocabularies that only recognised ops read."""
        read = {str(o.attrs.get(kind)) for o in operators for kind in ("table", "vocabulary")}
        read |= {
            i.removeprefix(TABLE_PREFIX) for o in operators for i in o.inputs if i.startswith(TABLE_PREFIX)
        }
        self.tables = {name: weight for name, weight in self.tables.items() if name in read}
        self.vocabularies = {name: entry for name, entry in self.vocabularies.items() if name in read}

    def _used(self, wanted: set[str]) -> list[HostOperator]:
        kept: list[HostOperator] = []
        distinct = {id(o): o for o in self._operators.values()}
        for operator in reversed(distinct.values()):
            if wanted.intersection(operator.outputs):
                kept.append(operator)
                wanted.update(operator.inputs)
        return kept[::-1]

    def _checked_ids(self, tensor: Any) -> str:
        """A crossing tensor by its host name; ids of tables in the dense half are checked first."""
        name = self.tensor(tensor)
        dense = {op.name for op in self.frontier.dense}
        users = [op for op in tensor.consumers() if op.name in dense]
        rows = [
            int(op.inputs[0].shape[0])
            for op in users
            if is_table_lookup(op, self.flat) and op.inputs[1] is tensor
        ]
        if not rows:
            return name
        checked = self._names.take(f"{name}_checked")
        self._raw[checked] = self._raw[name]
        self._operators[checked] = HostOperator(
            op="ids_within",
            name=self.flat.source_name(users[0]),
            inputs=(name,),
            outputs=(checked,),
            scope=self.scope(tensor),
            attrs={"rows": min(rows)},
        )
        return checked

    def _columns(self) -> tuple[BlockColumn, ...]:
        columns: list[BlockColumn] = []
        ends: dict[Scope, int] = {"request": 0, "candidate": 0}
        for tensor in self.frontier.crossing:
            shape = tensor.shape
            if shape.rank is None or not shape.is_fully_defined():
                raise ConversionError(
                    f"{self.flat.source_name(tensor.op)} has shape {shape} for one candidate: its size "
                    "depends on the "
                    "request, and a compiled program needs a fixed one. Pad or pool it in the model"
                )
            scope = self.frontier.scopes[tensor.name]
            row = column_shape(tensor, scope, self.flat, self.rows)
            name = self._checked_ids(tensor)
            kinds: dict[Any, Any] = {tf.bool: "bool", tf.float32: "float32"}
            columns.append(
                BlockColumn(
                    tensor=name,
                    feature=name,
                    scope=scope,
                    offset=ends[scope],
                    shape=row,
                    dtype=kinds.get(tensor.dtype, "int32"),
                )
            )
            ends[scope] += int(np.prod(row, dtype=np.int64))
        return tuple(columns)


def column_shape(tensor: Any, scope: Scope, flat: FlatGraph, rows: int = 1) -> tuple[int, ...]:
    """Shape of one row of a crossing tensor, given its shape at `rows` rows of candidates."""
    shape = tensor.shape.as_list()
    count = rows if scope == "candidate" else 1
    if not shape and scope == "request":
        return ()
    if shape and shape[0] == count:
        return tuple(shape[1:])
    if shape and shape[0] % count == 0 and shape[0]:
        return (shape[0] // count, *shape[1:])
    raise ConversionError(
        f"{flat.source_name(tensor.op)} has shape {shape} at {count} rows: its first dimension must be "
        "the rows. A "
        "model that mixes rows before its lookups cannot be cut there"
    )


def encode_constant(value: Any) -> dict[str, Any]:
    """A constant as JSON: dtype, shape and flat values; strings in base64, because they are bytes, and
    numbers that JSON has no word for as text."""
    value = np.asarray(value)
    if value.dtype == object or value.dtype.kind == "S":
        values = [base64.b64encode(bytes(v)).decode() for v in value.ravel()]
        return {"dtype": "string", "shape": list(value.shape), "values": values}
    flat = value.ravel().tolist()
    if value.dtype.kind == "f":
        flat = [v if np.isfinite(v) else str(v) for v in flat]
    return {"dtype": value.dtype.name, "shape": list(value.shape), "values": flat}


def _plain(value: Any) -> Any:
    """An attribute as JSON."""
    kind = value.WhichOneof("value")
    if kind == "type":
        return tf.as_dtype(value.type).name
    if kind == "s":
        return value.s.decode("utf-8", "backslashreplace")
    if kind == "shape":
        return [d.size for d in value.shape.dim] if not value.shape.unknown_rank else None
    if kind == "list":
        items = value.list
        if items.type:
            return [tf.as_dtype(t).name for t in items.type]
        if items.shape:
            return [None if s.unknown_rank else [d.size for d in s.dim] for s in items.shape]
        return [v.decode() for v in items.s] or list(items.i) or list(items.f) or list(items.b)
    return getattr(value, kind) if kind else None


def _without_effect(attribute: str) -> bool:
    """Attributes that say how TensorFlow runs an op, not what it computes."""
    return attribute in ("validate_indices", "parallel_iterations", "use_locking", "container", "shared_name")
