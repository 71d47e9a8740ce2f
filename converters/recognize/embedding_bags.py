"""An embedding bag: the nineteen or more ops of tf.nn.embedding_lookup_sparse and
safe_embedding_lookup_sparse are one operator.

TensorFlow (python/ops/embedding_ops.py) drops ids below 0 and weights that are not above 0, fills empty rows,
looks every distinct id up once, reduces the rows of each bag, and puts zeros where a bag was empty.
"""

from dataclasses import dataclass, replace
from typing import Any

from converters.host_ops import HostProgramWriter
from converters.recognize.matching import first_column, scalar, through_views

_COMBINERS = {"SparseSegmentSum": "sum", "SparseSegmentMean": "mean", "SparseSegmentSqrtN": "sqrtn"}


@dataclass(frozen=True)
class Bag:
    """The tensors that an embedding bag is made of. `fill` is the op that fills empty rows, for a safe
    lookup."""

    indices: Any
    ids: Any
    shape: Any | None
    weights: Any | None
    fill: Any | None
    table: str
    combiner: str
    max_norm: float | None
    filled_weights: Any | None = None
    only_positive: bool = False
    """Whether weights that are not above 0 were dropped."""


def clipped_lookup(writer: HostProgramWriter, op: Any) -> bool:
    """rows * c / max(norm(rows), c): a lookup with max_norm c (tf.clip_by_norm)."""
    scaled, norm = op.inputs[0].op, op.inputs[1].op
    if scaled.type != "Mul" or norm.type != "Maximum":
        return False
    limit = scalar(scaled.inputs[1])
    lookup = writer.lookups.get(scaled.inputs[0].name)
    if limit is None or lookup is None or scalar(norm.inputs[1]) != limit or lookup.max_norm is not None:
        return False
    if not _norm_of(norm.inputs[0], scaled.inputs[0]):
        return False
    writer.lookup(op, lookup.table, lookup.ids, None, max_norm=float(limit))
    return True


def _norm_of(norm: Any, rows: Any) -> bool:
    """Whether `norm` is the root of the sum of squares of `rows`, guarded for zero."""
    pending, seen = [norm], set()
    while pending:
        tensor = pending.pop()
        if tensor is rows or tensor.op.name in seen or tensor.op.type == "Const":
            continue
        seen.add(tensor.op.name)
        if tensor.op.type == "Mul" and any(t is not rows for t in tensor.op.inputs):
            return False
        if tensor.op.type not in (
            "Select",
            "SelectV2",
            "Sqrt",
            "Sum",
            "Mul",
            "Square",
            "Greater",
            "Fill",
            "Shape",
            "OnesLike",
        ):
            return False
        pending.extend(tensor.op.inputs)
    return True


def unweighted_bag(writer: HostProgramWriter, op: Any) -> bool:
    """SparseSegment{Sum,Mean,SqrtN} of looked-up rows."""
    unique = through_views(op.inputs[1]).op
    lookup = writer.lookups.get(through_views(op.inputs[0]).name)
    if unique.type != "Unique" or lookup is None or through_views(lookup.ids) is not unique.outputs[0]:
        return False
    if through_views(op.inputs[1]) is not unique.outputs[1]:
        return False
    bag = _bag(unique.inputs[0], op.inputs[2], None, lookup, _COMBINERS[op.type])
    return bag is not None and _write(writer, op, bag)


def weighted_sum(writer: HostProgramWriter, op: Any) -> bool:
    """SegmentSum of looked-up rows times weights."""
    product = op.inputs[0].op
    if product.type != "Mul":
        return False
    rows, weights = product.inputs
    gather = rows.op
    if gather.type not in ("Gather", "GatherV2"):
        return False
    lookup = writer.lookups.get(through_views(gather.inputs[0]).name)
    unique = through_views(gather.inputs[1]).op
    if lookup is None or unique.type != "Unique" or through_views(lookup.ids) is not unique.outputs[0]:
        return False
    bag = _bag(unique.inputs[0], op.inputs[1], through_views(weights), lookup, "sum")
    if bag is not None and bag.only_positive:
        writer.bags[op.outputs[0].name] = bag  # the sum of a mean, which has no operator of its own
        return False
    return bag is not None and _write(writer, op, bag)


def weighted_mean(writer: HostProgramWriter, op: Any) -> bool:
    """A weighted sum divided by the sum of its weights, or by the root of the sum of their squares."""
    total = writer.bags.get(op.inputs[0].name)
    if total is None or total.weights is None or total.combiner != "sum":
        return False
    divisor, combiner = op.inputs[1].op, "mean"
    if divisor.type == "Sqrt":
        divisor, combiner = divisor.inputs[0].op, "sqrtn"
    if divisor.type != "SegmentSum" or divisor.inputs[1] is not op.inputs[0].op.inputs[1]:
        return False
    summed = through_views(divisor.inputs[0])
    if combiner == "sqrtn":
        power = summed.op
        if power.type == "Pow" and scalar(power.inputs[1]) == 2.0 or power.type == "Square":
            summed = through_views(power.inputs[0])
        else:
            return False
    if summed is not total.filled_weights or total.only_positive != (total.fill is not None):
        return False
    return _write(writer, op, replace(total, combiner=combiner))


def empty_rows_are_zero(writer: HostProgramWriter, op: Any) -> bool:
    """select(row was empty, 0, bag): a safe lookup without a default id."""
    condition, zeros, value = op.inputs
    bag = writer.bags.get(value.name)
    while condition.op.type in ("Tile", "Reshape", "ExpandDims", "BroadcastTo"):
        condition = condition.op.inputs[0]
    if bag is None or bag.fill is None or condition is not bag.fill.outputs[2]:
        return False
    if zeros.op.type != "ZerosLike" and scalar(zeros) != 0 and not _zeros(zeros):
        return False
    return _write(writer, op, bag, default=False)


def _zeros(tensor: Any) -> bool:
    import tensorflow as tf

    value = tf.get_static_value(tensor)
    if value is None and tensor.op.type == "Fill":
        value = tf.get_static_value(tensor.op.inputs[1])
    return value is not None and not value.any()


def _bag(ids: Any, segments: Any, weights: Any | None, lookup: Any, combiner: str) -> Bag | None:
    """The parts of a bag whose filled (or plain) ids, segments and weights these are."""
    indices = first_column(segments)
    if indices is None or not ids.dtype.is_integer or (weights is not None and weights.shape.rank != 1):
        return None
    ids = through_views(ids)
    fill = ids.op
    if fill.type != "SparseFillEmptyRows":
        if weights is not None and weights.op.type == "SparseFillEmptyRows":
            return None
        return Bag(indices, ids, None, weights, None, lookup.table, combiner, lookup.max_norm, weights)
    if indices is not fill.outputs[0] or ids is not fill.outputs[1] or scalar(fill.inputs[3]) is None:
        return None
    kept_weights = None
    if weights is not None:
        fill_weights = weights.op
        if fill_weights.type != "SparseFillEmptyRows" or scalar(fill_weights.inputs[3]) != 1.0:
            return None
        kept_weights = fill_weights.inputs[1]
    before = _before_pruning(fill.inputs[0], fill.inputs[1], kept_weights)
    if before is None:
        return None
    indices, raw_ids, raw_weights, only_positive = before
    shape = fill.inputs[2]
    if indices.op.type == "SparseReshape":
        indices, shape = indices.op.inputs[:2]
    if shape.shape.rank != 1 or shape.shape[0] != 2:
        return None
    return Bag(
        indices,
        raw_ids,
        shape,
        raw_weights,
        fill,
        lookup.table,
        combiner,
        lookup.max_norm,
        weights,
        only_positive,
    )


def _before_pruning(indices: Any, ids: Any, weights: Any | None) -> tuple[Any, Any, Any | None, bool] | None:
    """The sparse feature before ids below 0, and then weights that are not above 0, were dropped; and
    whether the weights were."""
    only_positive = False
    while indices.op.type == ids.op.type == "GatherV2":
        positions = ids.op.inputs[1]
        parts = [indices, ids] if weights is None else [indices, ids, weights]
        if any(t.op.type != "GatherV2" or t.op.inputs[1] is not positions for t in parts):
            return None
        where = through_views(positions).op
        if where.type != "Where":
            return None
        indices, ids = indices.op.inputs[0], ids.op.inputs[0]
        weights = None if weights is None else weights.op.inputs[0]
        condition = where.inputs[0].op
        if (
            condition.type == "Greater"
            and condition.inputs[0] is weights
            and scalar(condition.inputs[1]) == 0
        ):
            only_positive = True
            continue
        if condition.type == "LogicalAnd":
            if not _always_true(condition.inputs[1]):
                return None
            condition = condition.inputs[0].op
        if (
            condition.type == "GreaterEqual"
            and condition.inputs[0] is ids
            and scalar(condition.inputs[1]) == 0
        ):
            return indices, ids, weights, only_positive
        return None
    return None


def _always_true(tensor: Any) -> bool:
    """Whether a mask is ones_like of something."""
    if tensor.op.type == "OnesLike":
        return True
    return scalar(tensor.op.inputs[1]) is True if tensor.op.type == "Fill" else scalar(tensor) is True


def _write(writer: HostProgramWriter, op: Any, bag: Bag, default: bool = True) -> bool:
    scope = writer.scope(op.outputs[0])
    inputs = [writer.operand(bag.indices, scope), writer.operand(bag.ids, scope)]
    constants = {}
    if bag.shape is None:
        constants["2"] = {"dtype": "int64", "shape": [2], "values": [0, 0]}
    elif bag.shape.op.type == "Const":
        constants["2"] = writer.constant(bag.shape, scope)
    else:
        inputs.append(writer.operand(bag.shape, scope))
    if bag.weights is not None:
        inputs.append(writer.operand(bag.weights, scope))
    attrs: dict[str, Any] = {"table": bag.table, "combiner": bag.combiner, "safe": bag.fill is not None}
    if bag.max_norm is not None:
        attrs["max_norm"] = bag.max_norm
    if bag.fill is not None and default:
        attrs["default_id"] = int(scalar(bag.fill.inputs[3]))
    names = tuple(inputs)
    writer.add(op, "embedding_bag", names, writer.described(names, "embedding"), constants=constants, **attrs)
    writer.bags[op.outputs[0].name] = bag
    return True
