"""What an op is without being computed: a simpler op, its own input, or a shape that is known."""

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from converters.tf_ops import build_op, valid_name

if TYPE_CHECKING:
    from converters.evaluate import Evaluator


def as_gather(run: "Evaluator", node: Any, inputs: list[Any], name: str) -> Any | None:
    """`x[:, i, None]` as a gather and new axes: ONNX's Slice wants constants, and tf2onnx writes new
    axes beside an index as a slice with a step of 1e9. None for other slices."""
    masks = [node.attr[f"{m}_mask"].i for m in ("begin", "end", "shrink_axis", "new_axis", "ellipsis")]
    full, full_end, shrink, new, ellipsis = masks
    known, strides = run.static(inputs[1]), run.static(inputs[3])
    if ellipsis or strides is None or (strides != 1).any() or (known is not None and not new):
        return None
    if known is None and inputs[1].op.type != "Pack":
        return None
    entries = range(len(strides))
    at = next((i for i in entries if (shrink & ~new) >> i & 1), -1)
    if shrink & ~new != 1 << at if at >= 0 else True:
        return None
    if known is None and any(run.static(inputs[1].op.inputs[i]) is None for i in entries if i != at):
        return None
    if any(not ((full & full_end) | new) >> i & 1 for i in entries if i != at):
        return None
    index = inputs[1].op.inputs[at] if known is None else tf.constant(known[at])
    if known is not None and known[at] < 0:
        return None
    axis = sum(not new >> i & 1 for i in range(at))
    found = tf.gather(inputs[0], index, axis=axis, name=valid_name(name))
    for position, i in enumerate(i for i in entries if i != at):
        if new >> i & 1:
            found = tf.expand_dims(found, position)
    return found


def unchanged_input(run: "Evaluator", node: Any, inputs: list[Any]) -> Any | None:
    """The tensor that a Tile by ones, a broadcast to its own shape, or a cast to its own dtype gives
    back."""
    if node.op in ("Tile", "BroadcastTo"):
        argument = run.static(inputs[1])
        if argument is None or (node.op == "BroadcastTo" and not inputs[0].shape.is_fully_defined()):
            return None
        if inputs[1].op.name in run.flat.per_row and run.static(inputs[0]) is not None:
            return None  # a constant, once for every row
        same = (argument == 1).all() if node.op == "Tile" else list(argument) == inputs[0].shape.as_list()
        return inputs[0] if same else None
    if node.op == "Cast" and node.attr["SrcT"].type == node.attr["DstT"].type:
        return inputs[0]
    return None


def shape_value(node: Any, inputs: list[Any]) -> np.ndarray | None:
    """A shape, a size, or zeros and ones of a known shape; None for anything else."""
    if node.op in ("Shape", "Size", "Rank") and inputs[0].shape.rank is not None:
        dtype = np.dtype(np.int32)
        if node.op != "Rank":
            dtype = np.dtype(tf.as_dtype(node.attr["out_type"].type or tf.int32).as_numpy_dtype)
        if node.op == "Rank":
            return np.array(inputs[0].shape.rank, dtype)
        if inputs[0].shape.is_fully_defined():
            shape = inputs[0].shape.as_list()
            return np.array(shape if node.op == "Shape" else int(np.prod(shape, dtype=np.int64)), dtype)
    if node.op == "StridedSlice" and inputs[0].op.type == "Shape":
        found = tf.get_static_value(build_op(node, inputs, "shape")[0])
        return None if found is None else np.asarray(found)
    if (
        node.op in ("ZerosLike", "OnesLike")
        and inputs[0].shape.is_fully_defined()
        and inputs[0].dtype.is_numpy_compatible
        and inputs[0].dtype != tf.string
    ):
        make = np.zeros if node.op == "ZerosLike" else np.ones
        return make(inputs[0].shape.as_list(), inputs[0].dtype.as_numpy_dtype)
    return None
