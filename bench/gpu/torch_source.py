# The jaxpr objects of JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""A flat jaxpr as straight-line Python source for `torch.compile`: one statement for each equation.

The source is one function for any number of candidates:

    def scores(xp, convert, weights, request, candidate): ...

It uses only names that NumPy 2 and PyTorch share, with positional arguments where their keywords differ, so
the same text runs with `xp=numpy` and `xp=torch`. What the two spell differently is `convert(array, dtype)`.
"""

import math
import re
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import lax
from jax.extend import core

from mlir_pipeline.errors import CompileError

Rule = Callable[[core.JaxprEqn, Sequence[str]], str]
"""Given an equation and the texts of its operands, the text of its result."""

_DTYPES = ("float32", "float16", "int32", "int64", "int8", "uint8", "bool")


def torch_source(closed: core.ClosedJaxpr) -> tuple[str, list[np.ndarray]]:
    """The source of a flat jaxpr of (request block, candidate block), and the arrays that it takes as
    `weights`, in order.

    Raises `CompileError` with everything that it has no statement for.
    """
    jaxpr = closed.jaxpr
    names: dict[core.Var, str] = dict(zip(jaxpr.invars, ("request", "candidate"), strict=True))
    names.update((var, f"weights[{i}]") for i, var in enumerate(jaxpr.constvars))
    scalars: dict[tuple[str, str], str] = {}

    def text(atom: Any) -> str:
        if not isinstance(atom, core.Literal):
            return names[atom]
        key = (_scalar(atom.val), _dtype(atom.aval.dtype))
        return scalars.setdefault(key, f"c{len(scalars)}")

    body, refused = [], []
    for eqn in jaxpr.eqns:
        outputs = []
        for var in eqn.outvars:
            names[var] = f"v{len(names)}"
            outputs.append(names[var])
        rule = RULES.get(eqn.primitive.name)
        if rule is None:
            refused.append(eqn.primitive.name)
            continue
        try:
            body.append(f"{', '.join(outputs)} = {rule(eqn, [text(v) for v in eqn.invars])}")
        except CompileError as error:
            refused.append(f"{eqn.primitive.name}: {error}")
    results = "".join(f"{text(v)}, " for v in jaxpr.outvars)
    if refused:
        raise CompileError(
            f"no PyTorch source for {'; '.join(dict.fromkeys(refused))}; add it to bench/gpu/torch_source.py"
        )
    fixed = [
        f"{name} = xp.full((), {value}, dtype={dtype}, device=request.device)"
        for (value, dtype), name in scalars.items()
    ]
    lines = ["n = candidate.shape[0]", *fixed, *body, f"return ({results})"]
    header = "def scores(xp, convert, weights, request, candidate):\n"
    return header + "".join(f"    {line}\n" for line in lines), [np.asarray(c) for c in closed.consts]


def run_with_numpy(
    source: str, weights: Sequence[np.ndarray], request: np.ndarray, candidate: np.ndarray
) -> list[np.ndarray]:
    """What the source computes, as NumPy executes it."""
    scope: dict[str, Any] = {}
    exec(compile(source, "source_torch.py", "exec"), scope)
    with np.errstate(over="ignore"):  # exp(-x) of a logistic function may be infinite, and 1 / inf is right
        found = scope["scores"](np, lambda x, dtype: np.asarray(x).astype(dtype), weights, request, candidate)
    return [np.asarray(value) for value in found]


def _scalar(value: Any) -> str:
    value = np.asarray(value).item()
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def _dtype(dtype: Any) -> str:
    name = np.dtype(dtype).name
    if name not in _DTYPES:
        raise CompileError(f"values of dtype {name}")
    return f"xp.{name}"


def _dim(dim: Any) -> str:
    """A size as Python, with `n` for the number of candidates."""
    found = str(dim).replace("^", "**")
    if not re.fullmatch(r"[n0-9 +*-]+", found):
        raise CompileError(f"the size {found}")
    return found


def _tuple(items: Sequence[str]) -> str:
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


def _shape(dims: Sequence[Any]) -> str:
    return _tuple([_dim(d) for d in dims])


# --- elementwise --------------------------------------------------------------------------------------------


def _form(form: str, boolean: str | None = None, integers: bool = True) -> Rule:
    """`form` with the operands in the places of {0}, {1}, ...; another one for booleans."""

    def rule(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
        kind = np.dtype(eqn.invars[0].aval.dtype).kind
        if kind in "iu" and not integers:
            raise CompileError(f"operands of dtype {eqn.invars[0].aval.dtype}")
        return (boolean if kind == "b" and boolean else form).format(*operands)

    return rule


def _function(name: str) -> Rule:
    return _form(f"xp.{name}({{0}})", integers=name in ("abs", "sign"))


def _integer_pow(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    power = eqn.params["y"]
    return f"{operands[0]} ** {power}" if power >= 0 else f"1.0 / {operands[0]} ** {-power}"


def _round(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    if eqn.params["rounding_method"] != lax.RoundingMethod.TO_NEAREST_EVEN:
        raise CompileError("rounding halves away from zero")
    return f"xp.round({operands[0]})"


def _select(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    if len(operands) != 3 or np.dtype(eqn.invars[0].aval.dtype).kind != "b":
        raise CompileError("a choice that is not between two cases by a boolean")
    which, no, yes = operands
    return f"xp.where({which}, {yes}, {no})"


def _convert(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    return f"convert({operands[0]}, {_dtype(eqn.params['new_dtype'])})"


# --- shapes -------------------------------------------------------------------------------------------------


def _broadcast(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    shape, axes = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    line: list[Any] = [1] * len(shape)
    for own, axis in enumerate(axes):
        line[axis] = eqn.invars[0].aval.shape[own]
    return f"xp.broadcast_to(xp.reshape({operands[0]}, {_shape(line)}), {_shape(shape)})"


def _reshape(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    if eqn.primitive.name == "reshape" and eqn.params["dimensions"] is not None:
        raise CompileError("a reshape that permutes dimensions")
    return f"xp.reshape({operands[0]}, {_shape(eqn.outvars[0].aval.shape)})"


def _permuted(operand: str, order: Sequence[int]) -> str:
    if list(order) == list(range(len(order))):
        return operand
    return f"xp.moveaxis({operand}, {_shape(order)}, {_shape(range(len(order)))})"


def _transpose(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    return _permuted(operands[0], eqn.params["permutation"])


def _slice(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or [1] * len(starts)
    cuts = [f"{_dim(a)}:{_dim(b)}:{c}" for a, b, c in zip(starts, limits, strides, strict=True)]
    return f"{operands[0]}[{', '.join(cuts)}]"


def _split(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    place, pieces = 0, []
    for size in eqn.params["sizes"]:
        pieces.append(f"{operands[0]}[{':, ' * eqn.params['axis']}{place}:{place + size}]")
        place += size
    return ", ".join(pieces)


def _concatenate(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    return f"xp.concatenate({_tuple(operands)}, {eqn.params['dimension']})"


def _pad(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    """Blocks of the fill value on both sides, one axis after the other."""
    found, fill = operands
    shape = list(eqn.invars[0].aval.shape)
    for axis, (low, high, inner) in enumerate(eqn.params["padding_config"]):
        if low < 0 or high < 0 or inner:
            raise CompileError("a pad that cuts, or pads between elements")
        pieces = [found]
        for size, where in ((low, 0), (high, 2)):
            if size:
                block = [*shape[:axis], size, *shape[axis + 1 :]]
                pieces.insert(where, f"xp.broadcast_to({fill}, {_shape(block)})")
        if len(pieces) > 1:
            found = f"xp.concatenate({_tuple(pieces)}, {axis})"
        shape[axis] += low + high
    return found


def _iota(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    line: list[Any] = [1] * len(shape)
    line[axis] = shape[axis]
    dtype = _dtype(eqn.params["dtype"])
    places = f"xp.arange({_dim(shape[axis])}, dtype={dtype}, device=request.device)"
    return f"xp.broadcast_to(xp.reshape({places}, {_shape(line)}), {_shape(shape)})"


def _dim_as_value(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    dtype = _dtype(eqn.outvars[0].aval.dtype)
    return f"xp.full((), {_dim(eqn.params['dim'])}, dtype={dtype}, device=request.device)"


def _bitcast(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    new, old = np.dtype(eqn.params["new_dtype"]), np.dtype(eqn.invars[0].aval.dtype)
    if new.itemsize != old.itemsize:
        raise CompileError(f"bits of {old} as {new}")
    return f"{operands[0]}.view({_dtype(new)})"


def _gather(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    """Elements along one axis, for indices that are inside or clipped."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape = eqn.invars[0].aval.shape
    clip = eqn.params["mode"] == lax.GatherScatterMode.CLIP
    if not clip and eqn.params["mode"] != lax.GatherScatterMode.PROMISE_IN_BOUNDS:
        raise CompileError(f"mode {eqn.params['mode']}")
    if numbers.operand_batching_dims or len(numbers.start_index_map) != 1:
        raise CompileError("indices of several axes, or an operand with batch dimensions")
    (axis,) = numbers.start_index_map
    others = [s == d for i, (s, d) in enumerate(zip(sizes, shape, strict=True)) if i != axis]
    if tuple(numbers.collapsed_slice_dims) != (axis,) or sizes[axis] != 1 or not all(others):
        raise CompileError("slices that are not one element of one axis")
    index = f"convert({operands[1]}[..., 0], xp.int64)"
    if clip:
        index = f"xp.clip({index}, 0, {_dim(shape[axis])} - 1)"
    # Indexing puts the indices' axes where the axis was; the equation wants them in any place.
    rank = len(eqn.outvars[0].aval.shape)
    offset = list(numbers.offset_dims)
    batch = [d for d in range(rank) if d not in offset]
    made = [*offset[:axis], *batch, *offset[axis:]]
    return _permuted(f"{operands[0]}[{':, ' * axis}{index}]", [made.index(d) for d in range(rank)])


# --- products and reductions --------------------------------------------------------------------------------


def _dot_general(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    lhs, rhs = (v.aval for v in eqn.invars)
    wanted = eqn.outvars[0].aval.dtype
    if not lhs.dtype == rhs.dtype == wanted:
        raise CompileError(f"a product of {lhs.dtype} and {rhs.dtype} to {wanted}")
    plain = not left_batch and tuple(left) == (lhs.ndim - 1,) and tuple(right) == (0,)
    if plain and rhs.ndim == 2:
        return f"xp.matmul({operands[0]}, {operands[1]})"
    letters = iter(string.ascii_letters)
    a, b = [next(letters) for _ in range(lhs.ndim)], [next(letters) for _ in range(rhs.ndim)]
    for i, j in zip((*left_batch, *left), (*right_batch, *right), strict=True):
        b[j] = a[i]
    result = [a[i] for i in left_batch]
    result += [a[i] for i in range(lhs.ndim) if i not in (*left_batch, *left)]
    result += [b[i] for i in range(rhs.ndim) if i not in (*right_batch, *right)]
    equation = f"{''.join(a)},{''.join(b)}->{''.join(result)}"
    return f'xp.einsum("{equation}", {operands[0]}, {operands[1]})'


def _reduce(name: str) -> Rule:
    """Integers are summed in 64 bits by both libraries, and in their own by JAX."""

    def rule(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
        axes = sorted(eqn.params["axes"])
        if not axes:
            return operands[0]
        if name == "prod" and len(axes) != 1:
            raise CompileError("over several axes")
        found = f"xp.{name}({operands[0]}, {axes[0] if len(axes) == 1 else tuple(axes)})"
        dtype = eqn.outvars[0].aval.dtype
        return f"convert({found}, {_dtype(dtype)})" if np.dtype(dtype).kind in "iu" else found

    return rule


def _arg(name: str) -> Rule:
    def rule(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
        (axis,) = eqn.params["axes"]
        return f"convert(xp.{name}({operands[0]}, {axis}), {_dtype(eqn.params['index_dtype'])})"

    return rule


def _cumsum(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    if eqn.params["reverse"] or np.dtype(eqn.outvars[0].aval.dtype).kind != "f":
        raise CompileError("backwards, or of integers")
    return f"xp.cumsum({operands[0]}, {eqn.params['axis']})"


def _rev(eqn: core.JaxprEqn, operands: Sequence[str]) -> str:
    return f"xp.flip({operands[0]}, {_shape(eqn.params['dimensions'])})"


_FUNCTIONS = (
    "abs", "ceil", "cos", "exp", "exp2", "expm1", "floor", "log", "log1p", "sign", "sin", "sqrt", "tan",
    "tanh",
)  # fmt: skip
RULES: dict[str, Rule] = {
    **{name: _function(name) for name in _FUNCTIONS},
    "add": _form("{0} + {1}"),
    "add_any": _form("{0} + {1}"),
    "and": _form("{0} & {1}"),
    "argmax": _arg("argmax"),
    "argmin": _arg("argmin"),
    "bitcast_convert_type": _bitcast,
    "broadcast_in_dim": _broadcast,
    "clamp": _form("xp.minimum(xp.maximum({1}, {0}), {2})"),
    "concatenate": _concatenate,
    "convert_element_type": _convert,
    "copy": _form("{0}"),
    "copy_p": _form("{0}"),
    "cumsum": _cumsum,
    "dim_as_value": _dim_as_value,
    "div": _form("{0} / {1}", integers=False),
    "dot_general": _dot_general,
    "eq": _form("{0} == {1}"),
    "gather": _gather,
    "ge": _form("{0} >= {1}"),
    "gt": _form("{0} > {1}"),
    "integer_pow": _integer_pow,
    "iota": _iota,
    "is_finite": _form("xp.isfinite({0})"),
    "le": _form("{0} <= {1}"),
    "logistic": _form("1.0 / (1.0 + xp.exp(-{0}))"),
    "lt": _form("{0} < {1}"),
    "max": _form("xp.maximum({0}, {1})", boolean="{0} | {1}"),
    "min": _form("xp.minimum({0}, {1})", boolean="{0} & {1}"),
    "mul": _form("{0} * {1}", boolean="{0} & {1}"),
    "ne": _form("{0} != {1}"),
    "neg": _form("-{0}"),
    "not": _form("~{0}"),
    "or": _form("{0} | {1}"),
    "pad": _pad,
    "pow": _form("{0} ** {1}", integers=False),
    "reduce_and": _reduce("all"),
    "reduce_max": _reduce("amax"),
    "reduce_min": _reduce("amin"),
    "reduce_or": _reduce("any"),
    "reduce_prod": _reduce("prod"),
    "reduce_sum": _reduce("sum"),
    "rem": _form("xp.fmod({0}, {1})"),
    "reshape": _reshape,
    "rev": _rev,
    "round": _round,
    "rsqrt": _form("1.0 / xp.sqrt({0})"),
    "select_n": _select,
    "slice": _slice,
    "split": _split,
    "square": _form("{0} * {0}"),
    "squeeze": _reshape,
    "stop_gradient": _form("{0}"),
    "sub": _form("{0} - {1}"),
    "transpose": _transpose,
    "xor": _form("{0} ^ {1}"),
}
"""The statement of each primitive. Loops, sorts and convolutions are not here."""
