"""Each JAX primitive in ONNX: a function for each, in one table.

A function takes the graph, the equation's parameters, its operands and the avals of its results, and returns
the results. Matrix products, gathers and loops have files of their own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlir_pipeline.engines.onnx_gather import gather
from mlir_pipeline.engines.onnx_graph import Graph, Tensor, onnx_type
from mlir_pipeline.engines.onnx_products import convolution, dot_general
from mlir_pipeline.errors import CompileError

Params = dict[str, Any]
Rule = Callable[[Graph, Params, Sequence[Tensor], Sequence[Any]], list[Tensor]]
Build = Callable[..., str]
"""Given a graph and names of operands, the name of the result."""


def _elementwise(build: Build) -> Rule:
    """Operands may be narrow as long as one of them has the full size of every axis."""

    def rule(g: Graph, params: Params, operands: Sequence[Tensor], avals: Sequence[Any]) -> list[Tensor]:
        repeated = [t.repeated for t in operands if t.shape]
        common = frozenset.intersection(*repeated) if repeated else frozenset()
        names = [t.narrow or t.name for t in operands]
        result = build(g, *names)
        return [g.broadcast(result, common, avals[0].shape, avals[0].dtype)]

    return rule


def _op(name: str, **attributes: Any) -> Rule:
    return _elementwise(lambda g, *names: g.node(name, *names, **attributes))


def _typed(build: Callable[[Graph, np.dtype, Params, Sequence[str]], str]) -> Rule:
    """Elementwise, with a spelling that depends on the operands' dtype or on parameters."""

    def rule(g: Graph, params: Params, operands: Sequence[Tensor], avals: Sequence[Any]) -> list[Tensor]:
        dtype = operands[-1].dtype
        inner = _elementwise(lambda g, *names: build(g, dtype, params, names))
        return inner(g, params, operands, avals)

    return rule


def _view(build: Callable[[Graph, Params, Tensor, Any], str]) -> Rule:
    """One full operand, one result."""

    def rule(g: Graph, params: Params, operands: Sequence[Tensor], avals: Sequence[Any]) -> list[Tensor]:
        return [_result(build(g, params, operands[0], avals[0]), avals[0])]

    return rule


def _result(name: str, aval: Any) -> Tensor:
    return Tensor(name, tuple(aval.shape), np.dtype(aval.dtype))


def _same(g: Graph, params: Params, operands: Sequence[Tensor], avals: Sequence[Any]) -> list[Tensor]:
    return list(operands)


# --- elementwise --------------------------------------------------------------------------------------------


def _near_zero(g: Graph, x: str, dtype: np.dtype, accurate: str, plain: str) -> str:
    """`accurate` where |x| < 0.5."""
    small = g.node("Less", g.node("Abs", x), g.constant(0.5, dtype))
    return g.node("Where", small, accurate, plain)


def _log1p(g: Graph, dtype: np.dtype, params: Params, names: Sequence[str]) -> str:
    """Kahan's form: `log(u) x / (u - 1)` for `u = 1 + x` cancels the rounding of `u`."""
    (x,), one = names, g.constant(1, dtype)
    u = g.node("Add", x, one)
    log, difference = g.node("Log", u), g.node("Sub", u, one)
    exact = g.node("Equal", difference, g.constant(0, dtype))
    ratio = g.node("Div", g.node("Mul", log, x), g.node("Where", exact, one, difference))
    return _near_zero(g, x, dtype, g.node("Where", exact, x, ratio), log)


def _expm1(g: Graph, dtype: np.dtype, params: Params, names: Sequence[str]) -> str:
    """Kahan's form: `(u - 1) x / log(u)` for `u = exp(x)`."""
    (x,), one = names, g.constant(1, dtype)
    u = g.node("Exp", x)
    difference, log = g.node("Sub", u, one), g.node("Log", u)
    exact = g.node("Equal", difference, g.constant(0, dtype))
    ratio = g.node("Div", g.node("Mul", difference, x), g.node("Where", exact, one, log))
    return _near_zero(g, x, dtype, g.node("Where", exact, x, ratio), difference)


def _integer_pow(g: Graph, dtype: np.dtype, params: Params, names: Sequence[str]) -> str:
    (x,), power = names, params["y"]
    result, square, rest = None, x, abs(power)
    while rest:
        if rest & 1:
            result = square if result is None else g.node("Mul", result, square)
        rest >>= 1
        square = g.node("Mul", square, square) if rest else square
    if result is None:
        # x^0; a sum with x keeps its shape, as 1 alone would not.
        return g.node("Pow", x, g.constant(0, dtype))
    return g.node("Div", g.constant(1, dtype), result) if power < 0 else result


def _round(g: Graph, dtype: np.dtype, params: Params, names: Sequence[str]) -> str:
    if int(params["rounding_method"]):
        return g.node("Round", names[0])
    away = g.node("Floor", g.node("Add", g.node("Abs", names[0]), g.constant(0.5, dtype)))
    return g.node("Mul", g.node("Sign", names[0]), away)


def _select(g: Graph, dtype: np.dtype, params: Params, names: Sequence[str]) -> str:
    """`select_n(which, *cases)` of two cases; the first is for false."""
    if len(names) != 3:
        raise CompileError(f"a choice between {len(names) - 1} cases; ONNX's Where takes two")
    which, no, yes = names
    if dtype.kind == "b":
        chosen = g.node("And", which, yes), g.node("And", g.node("Not", which), no)
        return g.node("Or", *chosen)
    return g.node("Where", which, yes, no)


def _logical(boolean: str, bits: str) -> Rule:
    return _typed(lambda g, dtype, params, names: g.node(boolean if dtype.kind == "b" else bits, *names))


def _extreme(name: str, boolean: str) -> Rule:
    return _typed(lambda g, dtype, params, names: g.node(boolean if dtype.kind == "b" else name, *names))


def _compare(name: str, negated: bool = False) -> Rule:
    """Booleans compare as integers."""

    def build(g: Graph, dtype: np.dtype, params: Params, names: Sequence[str]) -> str:
        if dtype.kind == "b" and name != "Equal":
            names = [g.node("Cast", n, to=onnx_type(np.int32)) for n in names]
        found = g.node(name, *names)
        return g.node("Not", found) if negated else found

    return _typed(build)


def _convert(g: Graph, dtype: np.dtype, params: Params, names: Sequence[str]) -> str:
    if np.dtype(params["new_dtype"]) == dtype:
        return names[0]
    return g.node("Cast", names[0], to=onnx_type(params["new_dtype"]))


def _rsqrt(g: Graph, x: str) -> str:
    return g.node("Reciprocal", g.node("Sqrt", x))


def _is_finite(g: Graph, x: str) -> str:
    return g.node("Not", g.node("Or", g.node("IsInf", x), g.node("IsNaN", x)))


def _clamp(g: Graph, low: str, x: str, high: str) -> str:
    return g.node("Min", g.node("Max", x, low), high)


# --- shapes -------------------------------------------------------------------------------------------------


def _broadcast_in_dim(
    g: Graph, params: Params, operands: Sequence[Tensor], avals: Sequence[Any]
) -> list[Tensor]:
    """New axes of size 1, which elementwise operators repeat by themselves."""
    x, shape, axes = operands[0], params["shape"], params["broadcast_dimensions"]
    name = x.narrow or x.name
    new = [a for a in range(len(shape)) if a not in axes]
    if new:
        name = g.node("Unsqueeze", name, g.constant(new, np.int64))
    grown = {axis for own, axis in enumerate(axes) if own in x.repeated or x.shape[own] != shape[axis]}
    repeated = grown | {a for a in new if shape[a] != 1}
    return [g.broadcast(name, frozenset(repeated), shape, x.dtype)]


def _reshape(g: Graph, params: Params, x: Tensor, aval: Any) -> str:
    if params["dimensions"] is not None:
        raise CompileError("a reshape that permutes dimensions")
    shape = list(aval.shape)
    dynamic = [i for i, d in enumerate(shape) if not isinstance(d, int)]
    if len(dynamic) == 1 and 0 not in shape:
        shape[dynamic[0]] = -1
    return g.node("Reshape", x.name, g.integers(shape), allowzero=1)


def _squeeze(g: Graph, params: Params, operands: Sequence[Tensor], avals: Sequence[Any]) -> list[Tensor]:
    x, gone = operands[0], set(params["dimensions"])
    left = [a for a in range(len(x.shape)) if a not in gone]
    name = x.narrow or x.name
    if gone:
        name = g.node("Squeeze", name, g.constant(sorted(gone), np.int64))
    repeated = frozenset(i for i, a in enumerate(left) if a in x.repeated)
    return [g.broadcast(name, repeated, avals[0].shape, x.dtype)]


def _transpose(g: Graph, params: Params, operands: Sequence[Tensor], avals: Sequence[Any]) -> list[Tensor]:
    x, order = operands[0], params["permutation"]
    name = g.node("Transpose", x.narrow or x.name, perm=list(order))
    repeated = frozenset(i for i, a in enumerate(order) if a in x.repeated)
    return [g.broadcast(name, repeated, avals[0].shape, x.dtype)]


def _slice(g: Graph, params: Params, x: Tensor, aval: Any) -> str:
    starts, limits = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or [1] * len(starts)
    cut = [
        a
        for a, (start, limit, step, size) in enumerate(zip(starts, limits, strides, x.shape, strict=True))
        if (start, limit, step) != (0, size, 1)
    ]
    if not cut:
        return x.name
    picked = [[values[a] for a in cut] for values in (starts, limits, range(len(starts)), strides)]
    return g.node("Slice", x.name, *(g.integers(values) for values in picked))


def _dynamic_slice(
    g: Graph, params: Params, operands: Sequence[Tensor], avals: Sequence[Any]
) -> list[Tensor]:
    """XLA moves a slice that does not fit inside."""
    x, sizes = operands[0], params["slice_sizes"]
    starts = []
    for start, size, dim in zip(operands[1:], sizes, x.shape, strict=True):
        place = g.node("Cast", start.name, to=onnx_type(np.int64))
        last = g.node("Sub", g.size(dim), g.size(size))
        place = g.node("Min", g.node("Max", place, g.constant([0], np.int64)), last)
        starts.append(place)
    begin = g.node("Concat", *starts, axis=0)
    found = g.node("Slice", x.name, begin, g.node("Add", begin, g.integers(sizes)))
    return [_result(found, avals[0])]


def _rev(g: Graph, params: Params, x: Tensor, aval: Any) -> str:
    axes = list(params["dimensions"])
    vectors = [[-1] * len(axes), [np.iinfo(np.int64).min] * len(axes), axes, [-1] * len(axes)]
    return g.node("Slice", x.name, *(g.constant(v, np.int64) for v in vectors))


def _pad(g: Graph, params: Params, operands: Sequence[Tensor], avals: Sequence[Any]) -> list[Tensor]:
    x, fill = operands
    if any(inner for _, _, inner in params["padding_config"]):
        raise CompileError("a pad between elements")
    low, high = ([edge[i] for edge in params["padding_config"]] for i in (0, 1))
    if x.dtype.kind == "b":
        wide = [g.node("Cast", t.name, to=onnx_type(np.int32)) for t in (x, fill)]
        padded = g.node("Pad", wide[0], g.integers([*low, *high]), wide[1])
        return [_result(g.node("Cast", padded, to=onnx_type(bool)), avals[0])]
    return [_result(g.node("Pad", x.name, g.integers([*low, *high]), fill.name), avals[0])]


def _concatenate(g: Graph, params: Params, operands: Sequence[Tensor], avals: Sequence[Any]) -> list[Tensor]:
    return [_result(g.node("Concat", *(t.name for t in operands), axis=params["dimension"]), avals[0])]


def _split(g: Graph, params: Params, operands: Sequence[Tensor], avals: Sequence[Any]) -> list[Tensor]:
    sizes = g.integers(params["sizes"])
    found = g.node("Split", operands[0].name, sizes, outputs=len(avals), axis=params["axis"])
    found = [found] if len(avals) == 1 else found
    return [_result(name, aval) for name, aval in zip(found, avals, strict=True)]


def _iota(g: Graph, params: Params, operands: Sequence[Tensor], avals: Sequence[Any]) -> list[Tensor]:
    shape, axis, dtype = params["shape"], params["dimension"], np.dtype(params["dtype"])
    line = [1] * len(shape)
    line[axis] = -1
    if isinstance(shape[axis], int):
        name = g.constant(np.arange(shape[axis]).reshape(line), dtype)
    else:
        scalar = g.node("Squeeze", g.size(shape[axis]))
        count = g.node("Range", g.constant(0, np.int64), scalar, g.constant(1, np.int64))
        name = g.node("Cast", count, to=onnx_type(dtype))
        name = g.node("Reshape", name, g.constant(line, np.int64))
    repeated = frozenset(a for a, size in enumerate(shape) if a != axis and size != 1)
    return [g.broadcast(name, repeated, shape, dtype)]


def _dim_as_value(g: Graph, params: Params, operands: Sequence[Tensor], avals: Sequence[Any]) -> list[Tensor]:
    name = g.node("Squeeze", g.size(params["dim"]))
    return [_result(g.node("Cast", name, to=onnx_type(avals[0].dtype)), avals[0])]


def _bitcast(g: Graph, params: Params, x: Tensor, aval: Any) -> str:
    if np.dtype(params["new_dtype"]).itemsize != x.dtype.itemsize:
        raise CompileError(f"bits of {x.dtype} as {np.dtype(params['new_dtype'])}, which has another size")
    return g.node("BitCast", x.name, to=onnx_type(params["new_dtype"]))


# --- reductions and order -----------------------------------------------------------------------------------


def _reduce(name: str) -> Rule:
    """Over no axis ONNX would reduce all of them; booleans are reduced as integers."""

    def build(g: Graph, params: Params, x: Tensor, aval: Any) -> str:
        if not params["axes"]:
            return x.name
        source = g.node("Cast", x.name, to=onnx_type(np.int32)) if x.dtype.kind == "b" else x.name
        axes = g.constant(sorted(params["axes"]), np.int64)
        found = g.node(name, source, axes, keepdims=0)
        return g.node("Cast", found, to=onnx_type(bool)) if x.dtype.kind == "b" else found

    return _view(build)


def _arg(name: str) -> Rule:
    def build(g: Graph, params: Params, x: Tensor, aval: Any) -> str:
        (axis,) = params["axes"]
        source = g.node("Cast", x.name, to=onnx_type(np.int32)) if x.dtype.kind == "b" else x.name
        found = g.node(name, source, axis=axis, keepdims=0)
        return g.node("Cast", found, to=onnx_type(params["index_dtype"]))

    return _view(build)


def _cumsum(g: Graph, params: Params, x: Tensor, aval: Any) -> str:
    return g.node("CumSum", x.name, g.constant(params["axis"], np.int64), reverse=int(params["reverse"]))


def _top_k(g: Graph, params: Params, operands: Sequence[Tensor], avals: Sequence[Any]) -> list[Tensor]:
    count = g.constant([params["k"]], np.int64)
    axis = params.get("axis", params.get("operand_axis", -1))
    values, places = g.node("TopK", operands[0].name, count, outputs=2, axis=axis)
    places = g.node("Cast", places, to=onnx_type(avals[1].dtype))
    return [_result(values, avals[0]), _result(places, avals[1])]


def _sort(g: Graph, params: Params, operands: Sequence[Tensor], avals: Sequence[Any]) -> list[Tensor]:
    """By the last key first: `TopK` keeps equal elements in their order, so each earlier key has the last
    word."""
    axis, count = params["dimension"], g.size(operands[0].shape[params["dimension"]])
    order = None
    for key in reversed(operands[: params["num_keys"]]):
        if key.dtype.kind == "b":
            raise CompileError("a sort by booleans")
        name = key.name if order is None else g.node("GatherElements", key.name, order, axis=axis)
        _, places = g.node("TopK", name, count, outputs=2, axis=axis, largest=0)
        order = places if order is None else g.node("GatherElements", order, places, axis=axis)
    assert order is not None
    return [
        _result(g.node("GatherElements", x.name, order, axis=axis), aval)
        for x, aval in zip(operands, avals, strict=True)
    ]


RULES: dict[str, Rule] = {
    "abs": _op("Abs"),
    "acos": _op("Acos"),
    "add": _op("Add"),
    "add_any": _op("Add"),
    "and": _logical("And", "BitwiseAnd"),
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "asin": _op("Asin"),
    "atan": _op("Atan"),
    "bitcast_convert_type": _view(_bitcast),
    "broadcast_in_dim": _broadcast_in_dim,
    "ceil": _op("Ceil"),
    "clamp": _elementwise(_clamp),
    "concatenate": _concatenate,
    "conv_general_dilated": convolution,
    "convert_element_type": _typed(_convert),
    "copy": _same,
    "copy_p": _same,
    "cos": _op("Cos"),
    "cumsum": _view(_cumsum),
    "dim_as_value": _dim_as_value,
    "div": _op("Div"),
    "dot_general": dot_general,
    "dynamic_slice": _dynamic_slice,
    "eq": _compare("Equal"),
    "erf": _op("Erf"),
    "erfc": _typed(lambda g, dtype, p, names: g.node("Sub", g.constant(1, dtype), g.node("Erf", names[0]))),
    "exp": _op("Exp"),
    "exp2": _typed(lambda g, dtype, p, names: g.node("Pow", g.constant(2, dtype), names[0])),
    "expm1": _typed(_expm1),
    "floor": _op("Floor"),
    "gather": gather,
    "ge": _compare("GreaterOrEqual"),
    "gt": _compare("Greater"),
    "integer_pow": _typed(_integer_pow),
    "iota": _iota,
    "is_finite": _elementwise(_is_finite),
    "le": _compare("LessOrEqual"),
    "log": _op("Log"),
    "log1p": _typed(_log1p),
    "logistic": _op("Sigmoid"),
    "lt": _compare("Less"),
    "max": _extreme("Max", "Or"),
    "min": _extreme("Min", "And"),
    "mul": _extreme("Mul", "And"),
    "ne": _compare("Equal", negated=True),
    "neg": _op("Neg"),
    "not": _logical("Not", "BitwiseNot"),
    "optimization_barrier": _same,
    "or": _logical("Or", "BitwiseOr"),
    "pad": _pad,
    "pow": _op("Pow"),
    "reduce_and": _reduce("ReduceMin"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_or": _reduce("ReduceMax"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_sum": _reduce("ReduceSum"),
    "rem": _op("Mod", fmod=1),
    "reshape": _view(_reshape),
    "rev": _view(_rev),
    "round": _typed(_round),
    "rsqrt": _elementwise(_rsqrt),
    "select_n": _typed(_select),
    "sign": _op("Sign"),
    "sin": _op("Sin"),
    "slice": _view(_slice),
    "sort": _sort,
    "split": _split,
    "sqrt": _op("Sqrt"),
    "square": _elementwise(lambda g, x: g.node("Mul", x, x)),
    "squeeze": _squeeze,
    "stop_gradient": _same,
    "sub": _op("Sub"),
    "tan": _op("Tan"),
    "tanh": _op("Tanh"),
    "top_k": _top_k,
    "transpose": _transpose,
    "xor": _logical("Xor", "BitwiseXor"),
}
"""Every primitive without a body of its own. What is not here is refused by name."""
