"""Elementwise operators against TensorFlow."""

from collections.abc import Callable

import numpy as np
import pytest

from serving.errors import InvalidRequestError
from serving.host.operators import OPERATORS
from tests.host.comparison import EMPTY, FLOATS, INTS, NUMBERS, Case, Cases, random_strings, run_cases, values

_SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.5, 1e-30, 1e30]
# Eigen and NumPy approximate these differently, within a few units in the last place of float32.
_APPROXIMATE = 1e-6


def _binary(dtypes: tuple[str, ...], rtol: float = 0.0) -> Callable[[np.random.Generator], Cases]:
    def cases(rng: np.random.Generator) -> Cases:
        for dtype in dtypes:
            for a, b in [((3, 4), (3, 4)), ((3, 1), (4,)), ((), (2, 3)), ((0, 3), (1, 3)), ((2, 3), (4, 3))]:
                yield Case((values(rng, a, dtype), values(rng, b, dtype)), rtol=rtol)
            if dtype.startswith("float"):
                special = np.array(_SPECIAL, dtype)
                yield Case((special[:, None], special[None]), rtol=rtol)
            elif dtype != "bool" and dtype != "string":
                info = np.iinfo(dtype)
                extreme = np.array([info.min, info.max, 1, 2, 7], dtype)
                yield Case((extreme[:, None], np.array([1, 2, 3], dtype)[None]))

    return cases


def _unary(dtypes: tuple[str, ...], rtol: float = 0.0, positive: bool = False) -> Callable:
    def cases(rng: np.random.Generator) -> Cases:
        for dtype in dtypes:
            for shape in [(5, 7), (), (0, 3)]:
                x = values(rng, shape, dtype)
                yield Case((np.abs(x) if positive else x,), rtol=rtol)
            if dtype.startswith("float"):
                yield Case((np.array(_SPECIAL, dtype),), rtol=rtol)
                yield Case((np.array(rng.normal(size=200) * 10, dtype),), rtol=rtol)

    return cases


def _equality(rng: np.random.Generator) -> Cases:
    yield from _binary((*NUMBERS, "bool", "string"))(rng)
    for shapes in [((2,), (3,)), ((2, 1), (3,))]:
        a, b = (values(rng, shape, "int64") for shape in shapes)
        yield Case((a, b), {"incompatible_shape_error": False})


def _approximate_equal(rng: np.random.Generator) -> Cases:
    x = rng.normal(size=50).astype(np.float32)
    yield Case((x, (x + rng.normal(size=50) * 0.1).astype(np.float32)), {"tolerance": 0.1})
    yield Case((x, x[:3]), {"tolerance": 0.1})


def _pow(rng: np.random.Generator) -> Cases:
    for dtype in FLOATS:
        yield Case((np.abs(values(rng, (6, 5), dtype)), values(rng, (6, 5), dtype)), rtol=_APPROXIMATE)
        yield Case((np.array([-2, 0, 2], dtype), np.array([3, 0, -1], dtype)))
    for dtype in ("int32", "int64", "int8", "int16"):
        yield Case((values(rng, (6,), dtype), rng.integers(0, 5, 6).astype(dtype)))
        yield Case((np.array([2, 3], dtype), np.array([1, -1], dtype)))


def _shift(rng: np.random.Generator) -> Cases:
    for dtype in INTS:
        x = np.array([1, 2, 100, np.iinfo(dtype).max, np.iinfo(dtype).min], dtype)
        y = [0, 1, 7, 31, 63, 100] + ([] if dtype.startswith("u") else [-1, -5])
        yield Case((x[:, None], np.array(y, dtype)[None]))


def _select(rng: np.random.Generator) -> Cases:
    for dtype in (*NUMBERS, "bool", "string"):
        for condition, shape in [
            ((), (3, 2)),
            ((3,), (3, 2)),
            ((3, 2), (3, 2)),
            ((3,), (3,)),
            ((2,), (3, 2)),
        ]:
            x, y = values(rng, shape, dtype), values(rng, shape, dtype)
            yield Case((values(rng, condition, "bool"), x, y))


def _select_v2(rng: np.random.Generator) -> Cases:
    for dtype in (*NUMBERS, "bool", "string"):
        for shapes in [((), (3, 2), ()), ((2,), (3, 2), (3, 1)), ((3, 1), (2,), (1, 2)), ((0,), (3, 0), ())]:
            condition, x, y = shapes
            yield Case((values(rng, condition, "bool"), values(rng, x, dtype), values(rng, y, dtype)))
    yield Case((values(rng, (3,), "bool"), values(rng, (2,), "int32"), values(rng, (2,), "int32")))


def _clip(rng: np.random.Generator) -> Cases:
    for dtype in NUMBERS:
        x = values(rng, (4, 3), dtype)
        yield Case((x, np.array(1, dtype), np.array(3, dtype)))
        yield Case((x, np.array(3, dtype), np.array(1, dtype)))
        yield Case((x, np.full((4, 3), 1, dtype), values(rng, (4, 3), dtype)))
    yield Case((np.array(_SPECIAL, np.float32), np.float32(-1), np.float32(1)))


def _add_n(rng: np.random.Generator) -> Cases:
    for dtype in NUMBERS:
        yield Case(([values(rng, (3, 2), dtype) for _ in range(3)],), rtol=1e-6 if dtype in FLOATS else 0)
    yield Case(([np.zeros(2), np.zeros(3)],))


def _leaky(rng: np.random.Generator) -> Cases:
    for dtype in FLOATS:
        yield Case((np.array(_SPECIAL, dtype),), {"alpha": 0.3})
        yield Case((values(rng, (9,), dtype),), {"alpha": 0.01})


def _division(rng: np.random.Generator) -> Cases:
    for dtype in INTS:
        divisor = values(rng, (6, 5), dtype)
        yield Case((values(rng, (6, 5), dtype), np.where(divisor == 0, 1, divisor).astype(dtype)))
        yield Case((np.array([1, 2], dtype), np.array([1, 0], dtype)))
        yield Case((np.zeros(0, dtype), np.zeros((), dtype)))
    for dtype in FLOATS:
        special = np.array(_SPECIAL, dtype)
        yield Case((special[:, None], special[None]))
        yield Case((values(rng, (40,), dtype) * 9, values(rng, (40,), dtype)))


def _add(rng: np.random.Generator) -> Cases:
    yield from _binary(NUMBERS)(rng)
    yield Case((random_strings(rng, (3, 2)), random_strings(rng, (2,))))


_ALL = (*NUMBERS, "bool", "string")
CASES: dict[str, Callable[[np.random.Generator], Cases]] = {
    "Equal": _equality,
    "NotEqual": _equality,
    "Less": _binary(NUMBERS),
    "LessEqual": _binary(NUMBERS),
    "Greater": _binary(NUMBERS),
    "GreaterEqual": _binary(NUMBERS),
    "ApproximateEqual": _approximate_equal,
    "LogicalAnd": _binary(("bool",)),
    "LogicalOr": _binary(("bool",)),
    "LogicalNot": _unary(("bool",)),
    "Add": _add,
    "AddV2": _add,
    "AddN": _add_n,
    "Sub": _binary(NUMBERS),
    "Mul": _binary(NUMBERS),
    "Div": _division,
    "RealDiv": _division,
    "TruncateDiv": _division,
    "FloorDiv": _division,
    "Mod": _division,
    "TruncateMod": _division,
    "FloorMod": _division,
    "DivNoNan": _binary(FLOATS),
    "MulNoNan": _binary(FLOATS),
    "Xdivy": _binary(FLOATS),
    "Xlogy": _binary(FLOATS, _APPROXIMATE),
    "Xlog1py": _binary(FLOATS, _APPROXIMATE),
    "SquaredDifference": _binary(NUMBERS),
    "Pow": _pow,
    "Maximum": _binary(NUMBERS),
    "Minimum": _binary(NUMBERS),
    "Atan2": _binary(FLOATS, _APPROXIMATE),
    "BitwiseAnd": _binary(INTS),
    "BitwiseOr": _binary(INTS),
    "BitwiseXor": _binary(INTS),
    "LeftShift": _shift,
    "RightShift": _shift,
    "Invert": _unary(INTS),
    "Abs": _unary(NUMBERS),
    "Neg": _unary(NUMBERS),
    "Sign": _unary(NUMBERS),
    "Square": _unary(NUMBERS),
    "Reciprocal": _unary(FLOATS, _APPROXIMATE),
    "Inv": _unary(FLOATS, _APPROXIMATE),
    "Sqrt": _unary(FLOATS),
    "Rsqrt": _unary(FLOATS, _APPROXIMATE),
    "Exp": _unary(FLOATS, _APPROXIMATE),
    "Expm1": _unary(FLOATS, _APPROXIMATE),
    "Log": _unary(FLOATS, _APPROXIMATE),
    "Log1p": _unary(FLOATS, _APPROXIMATE),
    "Sin": _unary(FLOATS, _APPROXIMATE),
    "Cos": _unary(FLOATS, _APPROXIMATE),
    "Tan": _unary(FLOATS, _APPROXIMATE),
    "Asin": _unary(FLOATS, _APPROXIMATE),
    "Acos": _unary(FLOATS, _APPROXIMATE),
    "Atan": _unary(FLOATS, _APPROXIMATE),
    "Sinh": _unary(FLOATS, _APPROXIMATE),
    "Cosh": _unary(FLOATS, _APPROXIMATE),
    "Tanh": _unary(FLOATS, _APPROXIMATE),
    "Sigmoid": _unary(FLOATS, _APPROXIMATE),
    "Softplus": _unary(FLOATS, _APPROXIMATE),
    "Softsign": _unary(FLOATS),
    "Relu": _unary(NUMBERS),
    "Relu6": _unary(NUMBERS),
    "Elu": _unary(FLOATS, _APPROXIMATE),
    "Selu": _unary(FLOATS, _APPROXIMATE),
    "LeakyRelu": _leaky,
    "Floor": _unary(FLOATS),
    "Ceil": _unary(FLOATS),
    "Round": _unary(FLOATS),
    "Rint": _unary(FLOATS),
    "IsNan": _unary(FLOATS),
    "IsInf": _unary(FLOATS),
    "IsFinite": _unary(FLOATS),
    "Select": _select,
    "SelectV2": _select_v2,
    "ClipByValue": _clip,
    "ZerosLike": _unary(_ALL),
    "OnesLike": _unary((*NUMBERS, "bool")),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("op_type", CASES)
def test_as_tensorflow(op_type: str, seed: int) -> None:
    run_cases(op_type, CASES[op_type](np.random.default_rng(seed)))


def test_round_refuses_integers() -> None:
    """TensorFlow's kernel gives 0 for every int32; `tf.round` never calls it."""
    with pytest.raises(InvalidRequestError, match="int32"):
        OPERATORS["round"](EMPTY, np.arange(3, dtype=np.int32))
