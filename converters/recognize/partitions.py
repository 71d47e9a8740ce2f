"""A lookup in a partitioned variable (tf.nn.embedding_lookup of a list) is one lookup in the whole table.

TensorFlow finds each id's partition and row (`mod`: i % P and i // P; `div`: consecutive rows), splits the
ids with DynamicPartition, gathers from every partition, and stitches the rows together again.
"""

from typing import Any

import numpy as np

from converters.frontier import is_table_lookup
from converters.host_ops import HostProgramWriter
from converters.names import table_name
from converters.recognize.matching import scalar, through_views
from converters.source import Weight


def partitioned_lookup(writer: HostProgramWriter, op: Any) -> bool:
    """DynamicStitch of rows gathered from the partitions of one table."""
    count = len(op.inputs) // 2
    places, rows = op.inputs[:count], op.inputs[count:]
    gathers = [through_views(t).op for t in rows]
    if not all(is_table_lookup(g, writer.flat) for g in gathers):
        return False
    by_id, by_place = (through_views(t).op for t in (gathers[0].inputs[1], places[0]))
    if by_id.type != "DynamicPartition" or by_place.type != "DynamicPartition":
        return False
    split_alike = all(
        through_views(g.inputs[1]) is by_id.outputs[i] and through_views(p) is by_place.outputs[i]
        for i, (g, p) in enumerate(zip(gathers, places, strict=True))
    )
    if not split_alike or by_id.inputs[1] is not by_place.inputs[1]:
        return False
    weights = [writer.weight(g.inputs[0]) for g in gathers]
    if any(len(w.parts) > 1 for w in weights) or len({w.shape[1:] for w in weights}) > 1:
        return False
    found = _mod(by_id, count) or _div(by_id, [len(w.parts[0]) for w in weights])
    if found is None:
        return False
    ids, strategy = found
    whole = Weight(weights[0].name, tuple(w.parts[0] for w in weights), strategy)
    key = (strategy, *(g.inputs[0].op.name for g in gathers))
    name = writer.partitioned.get(key)
    if name is None:
        name = writer.partitioned[key] = writer.new_table(table_name(whole.name), whole)
    writer.lookup(op, name, ids, list(whole.shape[1:]))
    return True


def _mod(split: Any, count: int) -> tuple[Any, Any] | None:
    """The ids of `new_ids = ids // P`, `partition = ids % P`."""
    new_ids, partition = (through_views(t).op for t in split.inputs)
    if new_ids.type != "FloorDiv" or partition.type != "FloorMod":
        return None
    same = through_views(new_ids.inputs[0]) is through_views(partition.inputs[0])
    if not same or scalar(new_ids.inputs[1]) != count or scalar(partition.inputs[1]) != count:
        return None
    return new_ids.inputs[0], "mod"


def _div(split: Any, sizes: list[int]) -> tuple[Any, Any] | None:
    """The ids of the `div` strategy: `partition = max(ids // (n + 1), (ids - extras) // n)` with n rows for
    each partition and one more for the first `extras`."""
    partition = through_views(split.inputs[1]).op
    if partition.type != "Maximum":
        return None
    long, short = (through_views(t).op for t in partition.inputs)
    if long.type != "FloorDiv" or short.type != "FloorDiv":
        return None
    less = through_views(short.inputs[0]).op
    if less.type != "Sub" or through_views(less.inputs[0]) is not through_views(long.inputs[0]):
        return None
    per_partition, extras = divmod(int(np.sum(sizes)), len(sizes))
    expected = [per_partition + 1] * extras + [per_partition] * (len(sizes) - extras)
    constants = (scalar(long.inputs[1]), scalar(short.inputs[1]), scalar(less.inputs[1]))
    if sizes != expected or constants != (per_partition + 1, per_partition, extras):
        return None
    return long.inputs[0], "concat"
