"""Keeps the request's part of a concatenation apart from the candidates'.

A model that concatenates a user's history of ids with a candidate's id and looks both up at once (BST) makes
everything after the concatenation the candidates'. Rules, with `h` a request's and `c` a candidate's:

    f(concat(h, c))  =  concat(f(h), f(c))        elementwise, a lookup by ids, a view that keeps the axis

    stack(h, c)  =  concat(h[:, None], c[:, None])

The first rule is applied until the dense half reads the value, and the concatenation is made there: `f(h)` is
computed once, and travels in the request's block.

Condition: the host makes the concatenation, along another axis than that of the rows, of parts of fixed size
of both scopes. Effect: none on any value, since every element is computed from the same elements by the same
op. An op that has no rule reads the concatenation as it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from converters.flat_graph import FlatGraph, Part
from converters.frontier import Frontier, ancestors, is_table_lookup, repeats_a_constant
from converters.tf_ops import attribute_key, build_op, valid_name
from jaxrank.manifest import Scope

_ELEMENTWISE = {
    "Abs", "Add", "AddV2", "AsString", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Bucketize", "Cast",
    "ClipByValue", "Div", "DivNoNan", "Equal", "FloorDiv", "FloorMod", "Greater", "GreaterEqual", "Invert",
    "IsFinite", "IsInf", "IsNan", "LeftShift", "Less", "LessEqual", "LogicalAnd", "LogicalNot", "LogicalOr",
    "Maximum", "Minimum", "Mod", "Mul", "Neg", "NotEqual", "OnesLike", "RealDiv", "RegexFullMatch",
    "RegexReplace", "RightShift", "Select", "SelectV2", "Sign", "StaticRegexFullMatch", "StaticRegexReplace",
    "StringJoin", "StringLength", "StringLower", "StringStrip", "StringToHashBucket",
    "StringToHashBucketFast", "StringToHashBucketStrong", "StringToNumber", "StringUpper", "Sub", "Substr",
    "TruncateDiv", "TruncateMod", "ZerosLike",
}  # fmt: skip
"""Ops that compute every element of their output from the elements at its place."""
_MASKS = {
    "ExpandDims", "LogicalAnd", "LogicalNot", "LogicalOr", "Reshape", "Squeeze", "StridedSlice", "Transpose",
}  # fmt: skip
"""Ops on bools that the dense half does as well as the host."""


@dataclass(frozen=True)
class _Split:
    """How a tensor is a concatenation along `axis`: sizes and scopes of its parts, and what makes each.
    `source` is the source graph's concatenation."""

    source: str
    axis: int
    sizes: tuple[int, ...]
    scopes: tuple[Scope, ...]
    make: Callable[[int], Any]

    def bounds(self, index: int) -> tuple[int, int]:
        start = sum(self.sizes[:index])
        return start, start + self.sizes[index]


_Piece = tuple[int, Scope | None, Callable[[], Any]]
"""Size, scope (None for a constant) and what makes it."""


def keep_request_parts(flat: FlatGraph, frontier: Frontier) -> bool:
    """Applies the rules to a graph that was evaluated at one row and cut; returns whether anything changed,
    in which case it must be cut again. `flat.joins` are the concatenations that the dense half is to make,
    `flat.parts` says of which part of the source graph's tensor a new one is."""
    with flat.graph.as_default():
        return _Splitter(flat, frontier).run()


class _Splitter:
    def __init__(self, flat: FlatGraph, frontier: Frontier):
        self.flat, self.frontier = flat, frontier
        self.host = {op.name for op in frontier.host}
        self.splits: dict[str, _Split] = {}
        self._joined: dict[str, Any] = {}
        self._rows: dict[str, Any] = {}
        self._slices: dict[tuple[str, int, int, int], Any] = {}
        self._rules = {
            "ConcatV2": self._concatenation,
            "Pack": self._stack,
            "Gather": self._lookup,
            "GatherV2": self._lookup,
            "LookupTableFindV2": self._vocabulary,
            "OneHot": self._one_hot,
            "ExpandDims": self._expand_dims,
            "Squeeze": self._squeeze,
            "StridedSlice": self._new_axes,
            "Reshape": self._reshape,
            "Transpose": self._transpose,
            **dict.fromkeys(_ELEMENTWISE, self._elementwise),
        }
        # What is there already is not built again: a model may look the history up elsewhere, too.
        self._made = {_key(op, list(op.inputs)): op.outputs for op in ancestors(flat.results)}

    def run(self) -> bool:
        before = list(ancestors(self.flat.results))
        for op in before:
            if op.name not in self.host and not is_table_lookup(op, self.flat):
                continue  # the dense half's own concatenations are the compiler's
            rule = self._rules.get(op.type)
            if rule is None or len(op.outputs) != 1 or not op.outputs[0].shape.is_fully_defined():
                continue
            tensor = op.outputs[0]
            if tensor.name in self.flat.here or op.name in self.flat.growing or tensor.shape[:1] != [1]:
                continue
            split = rule(op)
            if split is not None and {"request", "candidate"} <= set(split.scopes):
                self.splits[tensor.name] = split
        for op in (*self.frontier.dense, *self.frontier.host):
            if any(t.name in self.splits for t in op.outputs):
                continue
            if op.name in self.host and not self._may_leave_the_host(op):
                continue
            for i, tensor in enumerate(op.inputs):
                if tensor.name in self.splits:
                    op._update_input(i, self._join(tensor))
        after = {self.flat.source_name(op) for op in ancestors(self.flat.results)}
        for name, op in ((self.flat.source_name(op), op) for op in before):
            if name not in after and op.type != "Const":
                self.flat.removed.append((name, op.type, "its parts are joined after the lookups"))
        return bool(self._joined)

    def _may_leave_the_host(self, op: Any) -> bool:
        """Whether it and what the host makes of it are masks, which the dense half can make as well."""
        tensors = (*op.inputs, *op.outputs)
        masks = [t for t in tensors if t.op.type != "Const"]
        return (
            op.type in _MASKS
            and all(t.dtype == tf.bool and t.shape.is_fully_defined() for t in masks)
            and not any(t.op.name in self.flat.per_row or t.name in self.flat.here for t in tensors)
            and all(
                self._may_leave_the_host(user)
                for t in op.outputs
                for user in t.consumers()
                if user.name in self.host
            )
        )

    def _join(self, tensor: Any) -> Any:
        """The concatenation of a tensor's parts, for the dense half."""
        if tensor.name not in self._joined:
            split = self.splits[tensor.name]
            parts = [split.make(i) for i in range(len(split.sizes))]
            joined = self._concat(parts, split.axis, split.source)
            self.flat.joins.add(joined.op.name)
            self._joined[tensor.name] = joined
        return self._joined[tensor.name]

    # Where a value comes apart.

    def _concatenation(self, op: Any) -> _Split | None:
        *values, axis = op.inputs
        along = self._constant(axis)
        if along is None:
            return None
        at = int(along) % op.outputs[0].shape.rank
        return self._beside(op, list(op.inputs[:-1]), at, at) or self._parts_along(op, at, values, None)

    def _stack(self, op: Any) -> _Split | None:
        at = op.get_attr("axis") % op.outputs[0].shape.rank
        stacked = self._beside(op, list(op.inputs), at, None)
        return stacked or self._parts_along(op, at, list(op.inputs), at)

    def _beside(self, op: Any, values: list[Any], at: int, own: int | None) -> _Split | None:
        """Values that come apart alike, put beside each other along an axis of their own (`own` is where they
        have it already)."""
        first = next((self.splits[v.name] for v in values if v.name in self.splits), None)
        if first is None or first.axis == own or at == 0:
            return None
        axis = first.axis + (own is None and at <= first.axis)
        rest = op.inputs[len(values) :]
        picks = [self._pick(v, first, v.shape.rank - first.axis) for v in values]
        return self._mapped(op, first, axis, [*picks, *(_same(t) for t in rest)], values)

    def _parts_along(self, op: Any, at: int, values: list[Any], expand: int | None) -> _Split | None:
        """A concatenation (or stack) of both scopes: a part for every run of values of one scope, a constant
        with the run before it."""
        values = [self._the_same_for_all(v) for v in values]
        if at == 0 or not all(self._is_row(v) for v in values):
            return None
        pieces: list[_Piece] = []
        start = 0
        for value in values:
            split = self.splits.get(value.name)
            if split is not None and split.axis == at and expand is None:
                for i, size in enumerate(split.sizes):
                    pieces.append((size, split.scopes[i], partial(split.make, i)))
                start += sum(split.sizes)
                continue
            scope = None if value.op.type == "Const" else self.frontier.scopes[value.name]
            if expand is None:
                pieces.append((int(value.shape[at]), scope, partial(_itself, value)))
                start += value.shape[at]
            else:
                part = Part(at, start, start + 1)
                pieces.append((1, scope, partial(self._expanded, value, at, op, part)))
                start += 1
        if not all(size for size, _, _ in pieces):
            return None
        runs = _runs(pieces)
        sizes = tuple(sum(size for size, _, _ in run) for _, run in runs)
        source = self.flat.source_name(op)

        def make(index: int) -> Any:
            parts = [build() for _, _, build in runs[index][1]]
            begin = sum(sizes[:index])
            part = Part(at, begin, begin + sizes[index])
            return parts[0] if len(parts) == 1 else self._concat(parts, at, source, part)

        return _Split(source, at, sizes, tuple(scope for scope, _ in runs), make)

    # What may be done to the parts instead.

    def _elementwise(self, op: Any) -> _Split | None:
        inputs, rank = list(op.inputs), op.outputs[0].shape.rank
        splits = [self.splits[t.name] for t in inputs if t.name in self.splits]
        if not splits or any(t.shape.rank not in (0, rank) and t.op.type != "Const" for t in inputs):
            return None
        if op.type == "Select" and any(t.shape != op.outputs[0].shape for t in inputs):
            return None  # its condition may be a vector of rows
        from_the_end = rank - splits[0].axis
        picks = [self._pick(t, splits[0], from_the_end) for t in inputs]
        return self._mapped(op, splits[0], splits[0].axis, picks, inputs)

    def _pick(self, tensor: Any, like: _Split, from_the_end: int) -> Callable[[int], Any] | None:
        """What stands for an operand in part `i`: its own part, itself where it is the same for all, or a
        slice of a constant. None if it does not come apart that way."""
        own = self.splits.get(tensor.name)
        if own is not None:
            alike = (own.axis, own.sizes) == (like.axis, like.sizes)
            return own.make if alike and tensor.shape.rank - own.axis == from_the_end else None
        if tensor.op.name in self.flat.per_row or tensor.name in self.flat.here:
            return None
        if self.frontier.scopes.get(tensor.name) == "candidate" or not tensor.shape.is_fully_defined():
            return None
        axis = tensor.shape.rank - from_the_end
        if axis < 0 or tensor.shape[axis] == 1:
            return _same(tensor)
        if tensor.op.type != "Const" or tensor.shape[axis] != sum(like.sizes):
            return None
        return lambda i: self._slice(tensor, axis, *like.bounds(i))

    def _lookup(self, op: Any) -> _Split | None:
        split = self.splits.get(op.inputs[1].name)
        if split is None or not is_table_lookup(op, self.flat):
            return None
        picks = [_same(op.inputs[0]), split.make, *(_same(t) for t in op.inputs[2:])]
        return self._mapped(op, split, split.axis, picks, [op.inputs[1]])

    def _vocabulary(self, op: Any) -> _Split | None:
        table, keys, default = op.inputs
        split = self.splits.get(keys.name)
        if split is None or default.shape != [] or default.op.type != "Const":
            return None
        return self._mapped(op, split, split.axis, [_same(table), split.make, _same(default)], [keys])

    def _one_hot(self, op: Any) -> _Split | None:
        split = self.splits.get(op.inputs[0].name)
        fixed = all(self._constant(t) is not None for t in op.inputs[1:])
        if split is None or not fixed or op.get_attr("axis") not in (-1, op.inputs[0].shape.rank):
            return None
        picks = [split.make, *(_same(t) for t in op.inputs[1:])]
        return self._mapped(op, split, split.axis, picks, [op.inputs[0]])

    def _expand_dims(self, op: Any) -> _Split | None:
        position = self._constant(op.inputs[1])
        if position is None:
            return None
        new = int(position.reshape(())) % op.outputs[0].shape.rank
        return self._view(op, lambda axis: axis + (new <= axis) if new > 0 else None)

    def _squeeze(self, op: Any) -> _Split | None:
        gone = {d % op.inputs[0].shape.rank for d in op.get_attr("squeeze_dims")}
        if not gone or 0 in gone:
            return None
        return self._view(op, lambda axis: axis - sum(d < axis for d in gone) if axis not in gone else None)

    def _transpose(self, op: Any) -> _Split | None:
        order = self._constant(op.inputs[1])
        if order is None or order[0] != 0:
            return None
        return self._view(op, lambda axis: order.tolist().index(axis))

    def _new_axes(self, op: Any) -> _Split | None:
        """`x[:, None, :]` and the like: nothing but new axes."""
        strides = self._constant(op.inputs[3])
        names = ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
        begin, end, ellipsis, new, shrink = (op.get_attr(f"{n}_mask") for n in names)
        if strides is None or (strides != 1).any() or shrink & ~new:
            return None
        entries = range(len(strides))
        if any(not ((begin & end) | new | ellipsis) >> i & 1 for i in entries):
            return None
        kept = sum(not (new | ellipsis) >> i & 1 for i in entries)
        places: list[int] = []  # of every old axis among the new ones
        at = 0
        for i in entries:
            if not ellipsis >> i & 1 and new >> i & 1:
                at += 1
                continue
            count = op.inputs[0].shape.rank - kept if ellipsis >> i & 1 else 1
            places += range(at, at + count)
            at += count
        places += range(at, at + op.inputs[0].shape.rank - len(places))
        return self._view(op, lambda axis: places[axis] if places[0] == 0 else None)

    def _view(self, op: Any, moved: Callable[[int], int | None]) -> _Split | None:
        """An op that only moves axes: `moved` is where the split axis goes."""
        split = self.splits.get(op.inputs[0].name)
        axis = None if split is None else moved(split.axis)
        if split is None or axis is None:
            return None
        if self._may_leave_the_host(op):
            return None  # views of one mask would cross beside it
        picks = [split.make, *(_same(t) for t in op.inputs[1:])]
        return self._mapped(op, split, axis, picks, [op.inputs[0]])

    def _reshape(self, op: Any) -> _Split | None:
        """A reshape that keeps the rows and the split axis."""
        split, target = self.splits.get(op.inputs[0].name), self._constant(op.inputs[1], per_row=True)
        if split is None or target is None:
            return None
        growth = self.flat.per_row.get(op.inputs[1].op.name)
        if growth is None:
            keeps_rows = target[0] == -1
        else:
            keeps_rows = target[0] == 1 and growth.tolist() == [1] + [0] * (len(target) - 1)
        before, after = op.inputs[0].shape.as_list(), op.outputs[0].shape.as_list()
        inner = int(np.prod(before[1 : split.axis]))
        axis = next(
            (
                i
                for i in range(1, len(after))
                if after[i] == before[split.axis] and int(np.prod(after[1:i])) == inner
            ),
            None,
        )
        if not keeps_rows or axis is None:
            return None

        def shape(index: int) -> Any:
            return tf.constant([-1, *after[1:axis], split.sizes[index], *after[axis + 1 :]], tf.int32)

        return self._mapped(op, split, axis, [split.make, shape], [op.inputs[0]])

    # Building.

    def _mapped(
        self,
        op: Any,
        like: _Split,
        axis: int,
        picks: Sequence[Callable[[int], Any] | None],
        operands: Sequence[Any],
    ) -> _Split | None:
        """The op on each part of its operands. None if one of them does not come apart (`picks`)."""
        if axis < 1 or any(pick is None for pick in picks):
            return None
        whole = op.outputs[0].shape.as_list()
        if whole[axis] != sum(like.sizes):
            return None
        found = [self.splits[t.name] for t in operands if t.name in self.splits]
        scopes: list[Scope] = [
            "candidate" if any(s.scopes[i] == "candidate" for s in found) else "request"
            for i in range(len(like.sizes))
        ]

        def make(index: int) -> Any:
            inputs = [pick(index) for pick in picks if pick is not None]
            key = _key(op, inputs)
            if key not in self._made:
                outputs = build_op(op.node_def, inputs, valid_name(op.name))
                outputs[0].set_shape([*whole[:axis], like.sizes[index], *whole[axis + 1 :]])
                self._made[key] = outputs
                self._note(outputs[0], self.flat.source_name(op), Part(axis, *like.bounds(index)))
            return self._made[key][0]

        return _Split(like.source, axis, like.sizes, tuple(scopes), make)

    def _concat(self, values: list[Any], axis: int, source: str, part: Part | None = None) -> Any:
        key = ("ConcatV2", axis, tuple(v.name for v in values))
        if key not in self._made:
            made = tf.raw_ops.ConcatV2(values=values, axis=axis, name=valid_name(source))
            self._made[key] = [made]
            self._note(made, source, part)
        return self._made[key][0]

    def _expanded(self, tensor: Any, axis: int, stack: Any, part: Part) -> Any:
        key = ("ExpandDims", axis, tensor.name)
        if key not in self._made:
            made = tf.expand_dims(tensor, axis, name=valid_name(stack.name))
            self._made[key] = [made]
            self._note(made, self.flat.source_name(stack), part)
        return self._made[key][0]

    def _slice(self, tensor: Any, axis: int, start: int, stop: int) -> Any:
        key = (tensor.name, axis, start, stop)
        if key not in self._slices:
            value = np.take(tf.get_static_value(tensor), range(start, stop), axis)
            name = valid_name(tensor.op.name)
            self._slices[key] = tf.constant(value, tensor.dtype, value.shape, name)
        return self._slices[key]

    def _the_same_for_all(self, tensor: Any) -> Any:
        """A constant that is repeated for every row (a start token) as its row; else the tensor itself."""
        if not repeats_a_constant(tensor.op, self.flat):
            return tensor
        if tensor.name not in self._rows:
            value = self.flat.here[tensor.name]
            name = valid_name(tensor.op.name)
            self._rows[tensor.name] = tf.constant(value, tensor.dtype, value.shape, name)
        return self._rows[tensor.name]

    def _note(self, tensor: Any, source: str, part: Part | None) -> None:
        self.flat.sources[tensor.op.name] = source
        if part is not None:
            self.flat.parts[tensor.name] = part

    def _constant(self, tensor: Any, per_row: bool = False) -> np.ndarray | None:
        """A constant's value; None where it depends on the number of rows, unless `per_row`."""
        if tensor.op.type != "Const" or (tensor.op.name in self.flat.per_row and not per_row):
            return None
        return np.asarray(tf.get_static_value(tensor))

    def _is_row(self, tensor: Any) -> bool:
        known = tensor.name not in self.flat.here and tensor.op.name not in self.flat.per_row
        return known and tensor.shape.is_fully_defined() and tensor.shape[:1] == [1]


def _runs(pieces: Sequence[_Piece]) -> list[tuple[Scope, list[_Piece]]]:
    """Neighbours of one scope, together; a constant belongs to the run before it, or to the first one."""
    known: list[Scope] = [scope for _, scope, _ in pieces if scope is not None]
    first: Scope = known[0] if known else "request"
    runs: list[tuple[Scope, list[_Piece]]] = []
    for piece in pieces:
        scope: Scope = piece[1] or (runs[-1][0] if runs else first)
        if runs and runs[-1][0] == scope:
            runs[-1][1].append(piece)
        else:
            runs.append((scope, [piece]))
    return runs


def _same(tensor: Any) -> Callable[[int], Any]:
    return lambda index: tensor


def _itself(tensor: Any) -> Any:
    return tensor


def _key(op: Any, inputs: Sequence[Any]) -> Any:
    return op.type, attribute_key(op.node_def), tuple(t.name for t in inputs)
