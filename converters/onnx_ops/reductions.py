"""Reductions, searches along an axis, running sums, softmax."""

import numpy as np

from converters.onnx_ops.registry import (
    OPS,
    OnnxOp,
    Operand,
    axis_of,
    call,
    changed,
    dtype_name,
    op,
    tuple_text,
)
from converters.onnx_ops.registry import scalar as number


def _reduction(name: str, template: str) -> None:
    def reduce(
        x: Operand,
        axes: np.ndarray | list[int] | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> str:
        """The axes are an attribute before opset 18 (ReduceSum: 13)."""
        if axes is None or not len(axes):
            wanted = [] if noop_with_empty_axes else list(range(x.rank))
        else:
            wanted = [axis_of(int(a), x) for a in axes]
        keep = ", keepdims=True" if keepdims else ""
        if x.dtype.kind in "iu" and ("jnp.sum" in template or "jnp.prod" in template):
            keep += ", promote_integers=False"
        if name in ("ReduceMax", "ReduceMin") and any(x.shape[a] == 0 for a in wanted):
            keep += f", initial={_identity(x.dtype, largest=name == 'ReduceMin')}"
        text = template.format(x=x, axis=tuple_text(wanted), keep=keep)
        whole = x.dtype.kind in "iu" and name in ("ReduceMean", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp")
        return f"{text}.astype({dtype_name(x.dtype)})" if whole else text

    OPS[name] = OnnxOp(reduce, static=(1,))


def _identity(dtype: np.dtype, largest: bool) -> str:
    if dtype.kind == "b":
        return str(largest)
    if dtype.kind in "iu":
        return str(np.iinfo(dtype).max if largest else np.iinfo(dtype).min)
    return "jnp.inf" if largest else "-jnp.inf"


for _name, _template in {
    "ReduceMax": "jnp.max({x}, axis={axis}{keep})",
    "ReduceMin": "jnp.min({x}, axis={axis}{keep})",
    "ReduceMean": "jnp.mean({x}, axis={axis}{keep})",
    "ReduceProd": "jnp.prod({x}, axis={axis}{keep})",
    "ReduceSum": "jnp.sum({x}, axis={axis}{keep})",
    "ReduceL1": "jnp.sum(jnp.abs({x}), axis={axis}{keep})",
    "ReduceL2": "jnp.sqrt(jnp.sum(jnp.square({x}), axis={axis}{keep}))",
    "ReduceSumSquare": "jnp.sum(jnp.square({x}), axis={axis}{keep})",
    "ReduceLogSum": "jnp.log(jnp.sum({x}, axis={axis}{keep}))",
    "ReduceLogSumExp": "jax.scipy.special.logsumexp({x}, axis={axis}{keep})",
}.items():
    _reduction(_name, _template)


def _arg(name: str, function: str) -> None:
    def find(x: Operand, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> str:
        at = axis_of(axis, x)
        keep = ", keepdims=True" if keepdims else ""
        if not select_last_index:
            return f"{function}({x}, axis={at}{keep})"
        return f"({x.shape[at] - 1} - {function}(jnp.flip({x}, {at}), axis={at}{keep}))"

    OPS[name] = OnnxOp(find)


_arg("ArgMax", "jnp.argmax")
_arg("ArgMin", "jnp.argmin")


@op("Softmax")
def softmax(x: Operand, *, axis: int = -1) -> str:
    return f"jax.nn.softmax({x}, axis={axis})"


@op("LogSoftmax")
def log_softmax(x: Operand, *, axis: int = -1) -> str:
    return f"jax.nn.log_softmax({x}, axis={axis})"


@op("Hardmax")
def hardmax(x: Operand, *, axis: int = -1) -> str:
    """1 at the first largest value, 0 elsewhere."""
    at = axis_of(axis, x)
    first = f"jnp.argmax({x}, axis={at})"
    return f"jax.nn.one_hot({first}, {x.shape[at]}, axis={at}, dtype={dtype_name(x.dtype)})"


def _running(name: str, function: str) -> None:
    def run(x: Operand, axis: np.ndarray, *, exclusive: int = 0, reverse: int = 0) -> str:
        at = axis_of(number(axis), x)
        if not exclusive and not reverse:
            return call(
                f"jnp.{function}", x, axis=at, dtype=dtype_name(x.dtype) if x.dtype.kind == "i" else None
            )
        return call(
            f"layers.{function}",
            x,
            axis=at,
            exclusive=changed(bool(exclusive), False),
            reverse=changed(bool(reverse), False),
        )

    OPS[name] = OnnxOp(run, static=(1,))


_running("CumSum", "cumsum")
_running("CumProd", "cumprod")


@op("TopK", static=(1,), outputs=2)
def top_k(x: Operand, k: np.ndarray, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> str:
    """Always sorted, which ONNX allows where it does not ask for it; of equal values the first comes
    first."""
    return call("layers.top_k", x, number(k), axis=axis_of(axis, x), largest=changed(bool(largest), True))
