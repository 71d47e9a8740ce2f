"""Lookups in static hash tables, with the mask and the wrapping of negative ids that Keras puts around
them."""

from typing import Any

import tensorflow as tf

from converters.errors import ConversionError
from converters.frontier import is_table_lookup
from converters.host_ops import HostProgramWriter, encode_constant
from converters.names import UniqueNames


def vocabulary_lookup(writer: HostProgramWriter, op: Any) -> bool:
    """A lookup of strings or integers in a table of constants."""
    handle, keys, default = op.inputs
    default_value = tf.get_static_value(default)
    value_dtype = op.outputs[0].dtype
    supported = (tf.string, tf.int32, tf.int64)
    if default_value is None or keys.dtype not in supported or value_dtype not in (*supported, tf.float32):
        raise ConversionError(
            f"{writer.flat.source_name(op)} looks up {keys.dtype.name} -> {value_dtype.name}; string and "
            "integer "
            "keys with a constant default are supported"
        )
    node = writer.flat.tables[handle.op.name]
    default_value = default_value.item() if value_dtype != tf.string else bytes(default_value)
    entry = (node, keys.dtype, value_dtype, default_value)
    name = next((n for n, known in writer.vocabularies.items() if known == entry), None)
    if name is None:
        raw = sorted(writer.raw_inputs(keys))
        wanted = f"{raw[0].replace('/', '_')}_vocabulary" if raw else "vocabulary"
        name = UniqueNames((*writer.vocabularies, *writer.tables)).take(wanted)
        writer.vocabularies[name] = entry
    inputs = (writer.tensor(keys),)
    writer.add(op, "vocabulary_lookup", inputs, writer.described(inputs, "index"), vocabulary=name)
    return True


def masked_lookup(writer: HostProgramWriter, op: Any) -> bool:
    """select(equal(x, key), value, lookup(x)) is the lookup with one more entry."""
    condition, then, otherwise = op.inputs
    if condition.op.type != "Equal" or then.op.type != "Const" or otherwise.op.type != "LookupTableFindV2":
        return False
    key, value = tf.get_static_value(condition.op.inputs[1]), tf.get_static_value(then)
    if condition.op.inputs[0] is not otherwise.op.inputs[1] or key is None or key.ndim or value.ndim:
        return False
    lookup = writer.operator(writer.tensor(otherwise))
    if lookup is None or lookup.op != "vocabulary_lookup" or otherwise.dtype == tf.string:
        return False
    override = {"key": encode_constant(key), "value": value.item()}
    writer.add(op, lookup.op, lookup.inputs, lookup.outputs[0], **{**lookup.attrs, "override": override})
    return True


def wrapped_ids(writer: HostProgramWriter, op: Any) -> bool:
    """select(x < 0, x + rows, x) feeding lookups in a table of that many rows is how Keras reads a negative
    id."""
    condition, then, otherwise = op.inputs
    if condition.op.type != "Less" or then.op.type not in ("Add", "AddV2"):
        return False
    zero, rows = tf.get_static_value(condition.op.inputs[1]), tf.get_static_value(then.op.inputs[1])
    same = condition.op.inputs[0] is otherwise and then.op.inputs[0] is otherwise
    users = [u for u in op.outputs[0].consumers() if u.name in writer.host]
    if not same or zero is None or rows is None or zero.ndim or rows.ndim or zero != 0 or not users:
        return False
    for user in users:
        if not is_table_lookup(user, writer.flat) or int(user.inputs[0].shape[0]) != rows:
            return False
    inputs = (writer.tensor(otherwise),)
    writer.add(op, "wrap_negative", inputs, writer.described(inputs, "ids"), rows=int(rows))
    return True
