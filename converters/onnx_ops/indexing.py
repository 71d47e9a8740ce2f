"""Reading and writing at indices; values found by a condition. Negative indices count from the end."""

import numpy as np

from converters.onnx_ops.registry import (
    Operand,
    Result,
    axis_of,
    call,
    changed,
    dtype_name,
    onnx_dtype,
    op,
    short,
)
from converters.onnx_ops.registry import scalar as number


@op("Gather", constants=(1,))
def gather(x: Operand, indices: Operand | np.ndarray, *, axis: int = 0) -> str:
    at = axis_of(axis, x)
    if isinstance(indices, np.ndarray):
        if indices.ndim == 0:
            return f"{x}[{', '.join([':'] * at + [str(int(indices))])}]"
        return f"jnp.take({x}, jnp.array({indices.tolist()}, int), axis={at})"
    return call("jnp.take", x, indices, axis=at)


@op("GatherElements")
def gather_elements(x: Operand, indices: Operand, *, axis: int = 0) -> str:
    at = axis_of(axis, x)
    inner = all(i == at or a == b for i, (a, b) in enumerate(zip(x.shape, indices.shape, strict=True)))
    return call("jnp.take_along_axis" if inner else "layers.gather_elements", x, indices, axis=at)


@op("GatherND")
def gather_nd(x: Operand, indices: Operand, *, batch_dims: int = 0) -> str:
    return call("layers.gather_nd", x, indices, batch_dims=changed(batch_dims, 0))


@op("ScatterND")
def scatter_nd(x: Operand, indices: Operand, updates: Operand, *, reduction: bytes = b"none") -> str:
    return call("layers.scatter_nd", x, indices, updates, reduction=changed(reduction.decode(), "none"))


@op("ScatterElements", "Scatter")
def scatter_elements(
    x: Operand, indices: Operand, updates: Operand, *, axis: int = 0, reduction: bytes = b"none"
) -> str:
    return call(
        "layers.scatter_elements",
        x,
        indices,
        updates,
        axis=axis_of(axis, x),
        reduction=changed(reduction.decode(), "none"),
    )


@op("TensorScatter")
def tensor_scatter(
    cache: Operand, update: Operand, starts: Operand | None = None, *, mode: bytes = b"linear", axis: int = -2
) -> str:
    return call(
        "layers.tensor_scatter",
        cache,
        update,
        starts,
        axis=axis_of(axis, cache),
        circular=changed(mode == b"circular", False),
    )


@op("OneHot", static=(1,))
def one_hot(indices: Operand, depth: np.ndarray, values: Operand, *, axis: int = -1) -> str:
    """`values` are the off value and the on value; an index out of range gives a row of off values."""
    return call("layers.one_hot", indices, int(number(depth)), values, axis=changed(axis, -1))


@op("Compress", static=(1,))
def compress(x: Operand, condition: np.ndarray, *, axis: int | None = None) -> str:
    kept = f"jnp.array({np.flatnonzero(condition).tolist()}, int)"
    if axis is None:
        return f"jnp.ravel({x})[{kept}]"
    return call("jnp.take", x, kept, axis=axis_of(axis, x))


@op("NonZero")
def non_zero(x: Operand, *, results: tuple[Result, ...]) -> str:
    """Only where the model declares how many values are not zero."""
    shape = _declared(results[0])
    return f"jnp.stack(jnp.nonzero({x}, size={shape[1]}))"


@op("Unique", outputs=None)
def unique(x: Operand, *, axis: int | None = None, sorted: int = 1, results: tuple[Result, ...]) -> str:
    """Only where the model declares how many unique values there are. Values in the order of the first
    occurrence where `sorted` is 0."""
    shape = _declared(results[0])
    text = call(
        "layers.unique",
        x,
        shape[0 if axis is None else axis],
        axis=None if axis is None else axis_of(axis, x),
        in_order=changed(not sorted, False),
    )
    return f"{text}[0]" if len(results) == 1 else f"{text}[:{len(results)}]"


@op("NonMaxSuppression", static=(2, 3, 4))
def non_max_suppression(
    boxes: Operand,
    scores: Operand,
    limit: np.ndarray | None = None,
    iou_threshold: np.ndarray | None = None,
    score_threshold: np.ndarray | None = None,
    *,
    center_point_box: int = 0,
    results: tuple[Result, ...],
) -> str:
    """Only where the model declares how many boxes are selected."""
    return call(
        "layers.non_max_suppression",
        boxes,
        scores,
        _declared(results[0])[0],
        limit=0 if limit is None else number(limit),
        iou_threshold=0.0 if iou_threshold is None else short(number(iou_threshold)),
        score_threshold=None if score_threshold is None else short(number(score_threshold)),
        center_point_box=changed(bool(center_point_box), False),
    )


@op("Trilu", static=(1,))
def trilu(x: Operand, k: np.ndarray | None = None, *, upper: int = 1) -> str:
    return call("jnp.triu" if upper else "jnp.tril", x, k=None if k is None else changed(number(k), 0))


@op("EyeLike")
def eye_like(x: Operand, *, dtype: int | None = None, k: int = 0) -> str:
    rows, columns = x.shape
    wanted = dtype_name(x.dtype if dtype is None else onnx_dtype(dtype))
    return call("jnp.eye", rows, columns, k=changed(k, 0), dtype=wanted)


def _declared(result: Result) -> tuple[int, ...]:
    if result.known_shape is None:
        raise ValueError("a number of results that depends on values; the model must declare a fixed one")
    return result.known_shape
