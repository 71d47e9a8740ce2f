"""TensorFlow ops of the dense half that tf2onnx does not have, or gets wrong, expressed in ops that it has.

Each function takes the op's attributes and inputs and builds the same value. The formulas are those of
TensorFlow's own documentation of the ops.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from converters.plugins import Lowering


def _unary(function: Callable[[Any], Any]) -> Lowering:
    return lambda attributes, inputs: [function(inputs[0])]


def _binary(function: Callable[[Any, Any], Any]) -> Lowering:
    return lambda attributes, inputs: [function(inputs[0], inputs[1])]


def _zero(x: Any) -> Any:
    return tf.constant(0, x.dtype)


def _safe(x: Any) -> Any:
    """x where it is not 0, else 1: no NaN appears in the branch that is not taken."""
    return tf.where(tf.equal(x, _zero(x)), tf.constant(1, x.dtype), x)


def _div_no_nan(x: Any, y: Any) -> Any:
    return tf.where(tf.equal(y, _zero(y)), _zero(x), x / _safe(y))


def _mul_no_nan(x: Any, y: Any) -> Any:
    return tf.where(tf.equal(y, _zero(y)), _zero(x), x * y)


def _xdivy(x: Any, y: Any) -> Any:
    return tf.where(tf.equal(x, _zero(x)), _zero(x), x / y)


def _xlogy(x: Any, y: Any) -> Any:
    return tf.where(tf.equal(x, _zero(x)), _zero(x), x * tf.math.log(y))


def _xlog1py(x: Any, y: Any) -> Any:
    return tf.where(tf.equal(x, _zero(x)), _zero(x), x * tf.math.log1p(y))


def _truncate_div(x: Any, y: Any) -> Any:
    return tf.sign(x) * tf.sign(y) * (tf.abs(x) // tf.abs(y))


def _floor_div(x: Any, y: Any) -> Any:
    """Towards minus infinity; ONNX divides integers towards zero."""
    if x.dtype.is_floating:
        return tf.floor(x / y)
    quotient = _truncate_div(x, y)
    rest = x - quotient * y
    opposite = tf.not_equal(tf.less(x, _zero(x)), tf.less(y, _zero(y)))
    below = tf.logical_and(tf.not_equal(rest, _zero(x)), opposite)
    return quotient - tf.cast(below, x.dtype)


def _lin_space(attributes: Mapping[str, Any], inputs: Sequence[Any]) -> Sequence[Any]:
    start, stop, count = inputs
    number = tf.get_static_value(count)
    steps = (
        tf.range(int(number), dtype=start.dtype)
        if number is not None
        else tf.range(tf.cast(count, start.dtype))
    )
    last = tf.maximum(tf.cast(count, start.dtype) - 1, 1)
    return [start + steps * ((stop - start) / last)]


LOWERINGS: dict[str, Lowering] = {
    "DivNoNan": _binary(_div_no_nan),
    "FloorDiv": _binary(_floor_div),
    "FloorMod": _binary(lambda x, y: x - _floor_div(x, y) * y),
    "Inv": _unary(lambda x: 1 / x),
    "L2Loss": _unary(lambda x: tf.reduce_sum(tf.square(x)) / 2),
    "LinSpace": _lin_space,
    "Mod": _binary(lambda x, y: x - _truncate_div(x, y) * y),
    "MulNoNan": _binary(_mul_no_nan),
    "TruncateMod": _binary(lambda x, y: x - _truncate_div(x, y) * y),
    "Xdivy": _binary(_xdivy),
    "Xlog1py": _binary(_xlog1py),
    "Xlogy": _binary(_xlogy),
}
