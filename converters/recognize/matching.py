"""Steps that several recognizers take through a graph."""

from typing import Any

import numpy as np
import tensorflow as tf

_VIEWS = {"Identity", "Reshape", "ExpandDims", "Squeeze"}


def scalar(tensor: Any) -> Any:
    """The value of a constant of one element; None for anything else."""
    value = tf.get_static_value(tensor)
    return value.item() if isinstance(value, np.ndarray | np.generic) and value.size == 1 else None


def through_views(tensor: Any) -> Any:
    """The tensor whose elements these are, in the same order; integers may have another width."""
    while tensor.op.type in _VIEWS or _widens(tensor.op):
        tensor = tensor.op.inputs[0]
    return tensor


def _widens(op: Any) -> bool:
    return op.type == "Cast" and op.inputs[0].dtype.is_integer and op.outputs[0].dtype in (tf.int32, tf.int64)


def first_column(tensor: Any) -> Any | None:
    """`x` of `x[:, 0]`; None for anything else."""
    op = through_views(tensor).op
    if op.type != "StridedSlice" or op.get_attr("shrink_axis_mask") != 2:
        return None
    begin, strides = tf.get_static_value(op.inputs[1]), tf.get_static_value(op.inputs[3])
    whole = op.get_attr("begin_mask") & op.get_attr("end_mask") & 1
    if (
        not whole
        or begin is None
        or begin.tolist()[1:] != [0]
        or strides is None
        or set(strides.tolist()) != {1}
    ):
        return None
    return op.inputs[0]
