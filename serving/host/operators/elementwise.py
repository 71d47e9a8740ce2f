"""Elementwise operators: comparison, logic, arithmetic, rounding, and the functions of one variable.

Operands broadcast as in TensorFlow (and NumPy); the result has the operands' dtype, or is bool.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from serving.host.operators.registry import Lookups, Operator, array, check, filled, refuse

_Function = Callable[..., Any]


def broadcast_shape(*arrays: np.ndarray) -> tuple[int, ...]:
    """The common shape. Raises `InvalidRequestError` if there is none."""
    try:
        return np.broadcast_shapes(*(a.shape for a in arrays))
    except ValueError:
        shapes = " and ".join(str(list(a.shape)) for a in arrays)
        refuse(f"tensors of shapes {shapes} do not broadcast")


def _unary(function: _Function, dtype: type | None = None) -> Operator:
    def run(lookups: Lookups, x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return array(function(x), dtype or x.dtype)

    return run


def _binary(function: _Function) -> Operator:
    def run(lookups: Lookups, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        broadcast_shape(x, y)
        with np.errstate(all="ignore"):
            return array(function(x, y), x.dtype)

    return run


def _comparison(function: _Function) -> Operator:
    """Comparison of object arrays gives objects; the result is always bool."""

    def run(lookups: Lookups, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        broadcast_shape(x, y)
        return array(function(x, y), bool)

    return run


def _equality(function: _Function, different: bool) -> Operator:
    def run(
        lookups: Lookups, x: np.ndarray, y: np.ndarray, *, incompatible_shape_error: bool = True
    ) -> np.ndarray:
        if not incompatible_shape_error:
            try:
                np.broadcast_shapes(x.shape, y.shape)
            except ValueError:
                return array(different, bool)
        broadcast_shape(x, y)
        return array(function(x, y), bool)

    return run


def approximate_equal(
    lookups: Lookups, x: np.ndarray, y: np.ndarray, *, tolerance: float = 1e-5
) -> np.ndarray:
    """bool: |x - y| < tolerance."""
    check(x.shape == y.shape, f"x and y must be of the same shape, found {list(x.shape)} and {list(y.shape)}")
    with np.errstate(all="ignore"):
        return array(np.abs(x - y) < x.dtype.type(tolerance), bool)


def _divisor(function: _Function) -> _Function:
    """TensorFlow refuses a zero divisor of integers; NumPy would give 0."""

    def run(x: np.ndarray, y: np.ndarray) -> Any:
        if y.dtype.kind in "iu" and (y == 0).any() and broadcast_size(x, y):
            refuse("integer division by zero")
        return function(x, y)

    return run


def broadcast_size(*arrays: np.ndarray) -> int:
    """Elements of the common shape."""
    return int(np.prod(broadcast_shape(*arrays), dtype=np.int64))


def _truncate_divide(x: np.ndarray, y: np.ndarray) -> Any:
    """C++ division: of integers it rounds towards zero."""
    if x.dtype.kind == "f":
        return x / y
    quotient = x // y
    return quotient + ((quotient < 0) & (quotient * y != x)) if x.dtype.kind == "i" else quotient


def _truncate_to_integer(x: np.ndarray, y: np.ndarray) -> Any:
    return np.trunc(x / y) if x.dtype.kind == "f" else _truncate_divide(x, y)


def _floor_divide(x: np.ndarray, y: np.ndarray) -> Any:
    return np.floor(x / y) if x.dtype.kind == "f" else x // y


def _floor_mod(x: np.ndarray, y: np.ndarray) -> Any:
    if x.dtype.kind != "f":
        return np.mod(x, y)
    remainder = np.fmod(x, y)
    return np.where((remainder != 0) & ((y < 0) != (remainder < 0)), remainder + y, remainder)


def _zero_where(condition: Callable[[np.ndarray, np.ndarray], Any], function: _Function) -> _Function:
    """0 where the condition holds, whatever the function would give there (NaN, infinity)."""
    return lambda x, y: np.where(condition(x, y), x.dtype.type(0), function(x, y))


def _power(x: np.ndarray, y: np.ndarray) -> Any:
    if y.dtype.kind == "i" and (y < 0).any():
        refuse("an integer to a negative integer power")
    return np.power(x, y)


def _shift(function: _Function) -> _Function:
    """TensorFlow clamps the shift to [0, bits - 1]; C++ leaves it undefined outside."""
    return lambda x, y: function(x, np.clip(y, 0, 8 * x.dtype.itemsize - 1))


def _round(x: np.ndarray) -> np.ndarray:
    """Half to even. TensorFlow's kernel gives 0 for every integer: nobody can want that."""
    check(x.dtype.kind == "f", f"round of {x.dtype}")
    return np.rint(x)


def _reciprocal(x: np.ndarray) -> Any:
    return x.dtype.type(1) / x if x.dtype.kind == "f" else _divisor(_truncate_divide)(np.ones_like(x), x)


def _sigmoid(x: np.ndarray) -> Any:
    return 1 / (1 + np.exp(-x))


def _softplus(x: np.ndarray) -> Any:
    return np.logaddexp(x, x.dtype.type(0))


def _relu(x: np.ndarray) -> Any:
    return np.maximum(x, x.dtype.type(0))


def _elu(x: np.ndarray) -> Any:
    return np.where(x < 0, np.expm1(x), x)


def _selu(x: np.ndarray) -> Any:
    # Klambauer et al. 2017, as TensorFlow rounds the two constants.
    scale, scale_alpha = x.dtype.type(1.0507009873554805), x.dtype.type(1.7580993408473768)
    return np.where(x < 0, scale_alpha * np.expm1(x), scale * x)


def leaky_relu(lookups: Lookups, features: np.ndarray, *, alpha: float = 0.2) -> np.ndarray:
    """x where x > 0, else alpha * x."""
    return array(
        np.where(features > 0, features, features * features.dtype.type(np.float32(alpha))), features.dtype
    )


def select(lookups: Lookups, condition: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x where the condition holds, else y. The condition is a scalar, has x's shape, or is a vector of
    rows."""
    check(x.shape == y.shape, f"then {list(x.shape)} and else {list(y.shape)} must be of the same shape")
    if condition.ndim == 1 and x.ndim > 1:
        check(len(condition) == len(x), f"{len(condition)} conditions for {len(x)} rows")
        condition = condition.reshape(-1, *[1] * (x.ndim - 1))
    else:
        fits = condition.ndim == 0 or condition.shape == x.shape
        check(fits, f"the condition's shape {list(condition.shape)} is not {list(x.shape)}")
    return array(np.where(condition, x, y), x.dtype)


def select_v2(lookups: Lookups, condition: np.ndarray, t: np.ndarray, e: np.ndarray) -> np.ndarray:
    """t where the condition holds, else e; all three broadcast."""
    broadcast_shape(condition, t, e)
    return array(np.where(condition, t, e), t.dtype)


def clip_by_value(
    lookups: Lookups, t: np.ndarray, clip_value_min: np.ndarray, clip_value_max: np.ndarray
) -> np.ndarray:
    """max(min(t, high), low); the limits are scalars or of t's shape. NaN stays NaN."""
    for limit in (clip_value_min, clip_value_max):
        fits = limit.size == 1 or limit.shape == t.shape
        check(fits, f"a clip limit of shape {list(limit.shape)} for a tensor of shape {list(t.shape)}")
    low, high = (v.reshape(()) if v.shape != t.shape else v for v in (clip_value_min, clip_value_max))
    return array(np.maximum(np.minimum(t, high), low), t.dtype)


def add_n(lookups: Lookups, *inputs: np.ndarray) -> np.ndarray:
    """The sum of tensors of one shape."""
    total = inputs[0].copy()
    for value in inputs[1:]:
        check(value.shape == total.shape, f"cannot add {list(value.shape)} to {list(total.shape)}")
        total = array(total + value, total.dtype)
    return total


def zeros_like(lookups: Lookups, x: np.ndarray) -> np.ndarray:
    """Zeros (empty strings) of x's shape and dtype."""
    return filled(x.shape, b"" if x.dtype.kind == "O" else 0, x.dtype)


def ones_like(lookups: Lookups, x: np.ndarray) -> np.ndarray:
    """Ones of x's shape and dtype."""
    return np.ones_like(x)


OPERATORS: dict[str, Operator] = {
    "equal": _equality(np.equal, False),
    "not_equal": _equality(np.not_equal, True),
    "less": _comparison(np.less),
    "less_equal": _comparison(np.less_equal),
    "greater": _comparison(np.greater),
    "greater_equal": _comparison(np.greater_equal),
    "approximate_equal": approximate_equal,
    "logical_and": _binary(np.logical_and),
    "logical_or": _binary(np.logical_or),
    "logical_not": _unary(np.logical_not),
    "add": _binary(np.add),
    "add_v2": _binary(np.add),
    "add_n": add_n,
    "sub": _binary(np.subtract),
    "mul": _binary(np.multiply),
    "div": _binary(_divisor(_truncate_divide)),
    "real_div": _binary(_divisor(_truncate_divide)),
    "truncate_div": _binary(_divisor(_truncate_to_integer)),
    "floor_div": _binary(_divisor(_floor_divide)),
    "mod": _binary(_divisor(np.fmod)),
    "truncate_mod": _binary(_divisor(np.fmod)),
    "floor_mod": _binary(_divisor(_floor_mod)),
    "div_no_nan": _binary(_zero_where(lambda x, y: y == 0, np.divide)),
    "mul_no_nan": _binary(_zero_where(lambda x, y: y == 0, np.multiply)),
    "xdivy": _binary(_zero_where(lambda x, y: x == 0, np.divide)),
    "xlogy": _binary(_zero_where(lambda x, y: x == 0, lambda x, y: x * np.log(y))),
    "xlog1py": _binary(_zero_where(lambda x, y: x == 0, lambda x, y: x * np.log1p(y))),
    "squared_difference": _binary(lambda x, y: (x - y) * (x - y)),
    "pow": _binary(_power),
    "maximum": _binary(np.maximum),
    "minimum": _binary(np.minimum),
    "atan2": _binary(np.arctan2),
    "bitwise_and": _binary(np.bitwise_and),
    "bitwise_or": _binary(np.bitwise_or),
    "bitwise_xor": _binary(np.bitwise_xor),
    "left_shift": _binary(_shift(np.left_shift)),
    "right_shift": _binary(_shift(np.right_shift)),
    "invert": _unary(np.invert),
    "abs": _unary(np.abs),
    "neg": _unary(np.negative),
    "sign": _unary(np.sign),
    "square": _unary(np.square),
    "reciprocal": _unary(_reciprocal),
    "inv": _unary(_reciprocal),
    "sqrt": _unary(np.sqrt),
    "rsqrt": _unary(lambda x: x.dtype.type(1) / np.sqrt(x)),
    "exp": _unary(np.exp),
    "expm1": _unary(np.expm1),
    "log": _unary(np.log),
    "log1p": _unary(np.log1p),
    "sin": _unary(np.sin),
    "cos": _unary(np.cos),
    "tan": _unary(np.tan),
    "asin": _unary(np.arcsin),
    "acos": _unary(np.arccos),
    "atan": _unary(np.arctan),
    "sinh": _unary(np.sinh),
    "cosh": _unary(np.cosh),
    "tanh": _unary(np.tanh),
    "sigmoid": _unary(_sigmoid),
    "softplus": _unary(_softplus),
    "softsign": _unary(lambda x: x / (1 + np.abs(x))),
    "relu": _unary(_relu),
    "relu6": _unary(lambda x: np.minimum(_relu(x), x.dtype.type(6))),
    "elu": _unary(_elu),
    "selu": _unary(_selu),
    "leaky_relu": leaky_relu,
    "floor": _unary(np.floor),
    "ceil": _unary(np.ceil),
    "round": _unary(_round),
    "rint": _unary(np.rint),
    "is_nan": _unary(np.isnan, bool),
    "is_inf": _unary(np.isinf, bool),
    "is_finite": _unary(np.isfinite, bool),
    "select": select,
    "select_v2": select_v2,
    "clip_by_value": clip_by_value,
    "zeros_like": zeros_like,
    "ones_like": ones_like,
}
