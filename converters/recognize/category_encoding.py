"""One-hot rows of several values, reduced by a maximum, are a multi-hot row."""

from typing import Any

import numpy as np
import tensorflow as tf

from converters.host_ops import HostProgramWriter


def multi_hot(writer: HostProgramWriter, op: Any) -> bool:
    """max over the axis before the last of one_hot(ids, depth) with 1 and 0."""
    one_hot = op.inputs[0].op
    if one_hot.type != "OneHot" or one_hot.get_attr("axis") != -1:
        return False
    depth, on, off = (tf.get_static_value(t) for t in one_hot.inputs[1:])
    axes = tf.get_static_value(op.inputs[1])
    if depth is None or axes is None or op.inputs[0].dtype != tf.float32 or op.get_attr("keep_dims"):
        return False
    rank = len(op.inputs[0].shape)
    if (on, off) != (1.0, 0.0) or [int(a) % rank for a in np.atleast_1d(axes)] != [rank - 2] or rank < 3:
        return False
    inputs = (writer.tensor(one_hot.inputs[0]),)
    writer.add(op, "multi_hot", inputs, writer.described(inputs, "multi_hot"), depth=int(depth))
    return True
