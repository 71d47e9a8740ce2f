"""Segment reductions: rows of a tensor combined by a segment number, sorted or not, with or without a gather
before.

Float sums run row after row, as TensorFlow's do up to the rounding of its blocks of eight.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from serving.host.operators.indexing import check_ids
from serving.host.operators.registry import Lookups, Operator, check, filled, scalar, strings


def segment_starts(ids: np.ndarray) -> np.ndarray:
    """Where each run of equal ids begins."""
    return (
        np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])) if ids.size else np.zeros(0, np.int64)
    )


def reduce_segments(ufunc: np.ufunc, rows: np.ndarray, ids: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Writes `ufunc` over the rows of each run of equal ids to `out[id]`; the ids are sorted."""
    if ids.size:
        starts = segment_starts(ids)
        with np.errstate(all="ignore"):
            out[ids[starts]] = ufunc.reduceat(rows, starts, axis=0, dtype=rows.dtype)
    return out


def _sorted_rows(data: np.ndarray, segment_ids: np.ndarray) -> int:
    """Checks sorted segment ids; the number of segments."""
    check(segment_ids.ndim == 1, f"segment ids of shape {list(segment_ids.shape)}")
    check(
        data.ndim >= 1 and len(data) == segment_ids.size, f"{segment_ids.size} segment ids for {data.shape}"
    )
    ordered = segment_ids.size == 0 or (segment_ids[0] >= 0 and (np.diff(segment_ids) >= 0).all())
    check(ordered, "segment ids are not increasing from 0 on")
    return int(segment_ids[-1]) + 1 if segment_ids.size else 0


def _mean_of(total: np.ndarray, ids: np.ndarray, root: bool = False) -> np.ndarray:
    """The sums of segments divided by their sizes, or the roots of their sizes."""
    counts = np.bincount(ids, minlength=len(total)).reshape(-1, *[1] * (total.ndim - 1))
    divisor = np.maximum(counts, 1).astype(total.dtype)
    if root:
        divisor = np.sqrt(divisor)
    if total.dtype.kind == "f":
        return total / divisor
    return (np.sign(total) * (np.abs(total) // divisor)).astype(total.dtype)  # C++ cuts towards zero


def _sorted_segments(ufunc: np.ufunc, empty: int) -> Operator:
    def run(lookups: Lookups, data: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
        out = filled((_sorted_rows(data, segment_ids), *data.shape[1:]), empty, data.dtype)
        return reduce_segments(ufunc, data, segment_ids, out)

    return run


def segment_mean(lookups: Lookups, data: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
    """Mean of the rows of each segment; segments without rows give 0."""
    out = np.zeros((_sorted_rows(data, segment_ids), *data.shape[1:]), data.dtype)
    return _mean_of(reduce_segments(np.add, data, segment_ids, out), segment_ids)


def _unsorted_segments(ufunc: np.ufunc, empty: Callable[[np.dtype], Any]) -> Operator:
    def run(
        lookups: Lookups, data: np.ndarray, segment_ids: np.ndarray, num_segments: np.ndarray
    ) -> np.ndarray:
        """Rows with a negative id are dropped."""
        fits = data.shape[: segment_ids.ndim] == segment_ids.shape
        check(fits, f"segment ids of shape {list(segment_ids.shape)} for {list(data.shape)}")
        count, ids = scalar(num_segments, "num_segments"), segment_ids.ravel()
        check(count >= 0, f"{count} segments")
        check_ids(ids[ids >= 0], count, "segment id")
        rows = data.reshape(ids.size, *data.shape[segment_ids.ndim :])
        kept = np.flatnonzero(ids >= 0)
        order = kept[np.argsort(ids[kept], kind="stable")]
        out = filled((count, *rows.shape[1:]), empty(data.dtype), data.dtype)
        return reduce_segments(ufunc, rows[order], ids[order], out)

    return run


def _finite_lowest(dtype: np.dtype) -> Any:
    return np.finfo(dtype).min if dtype.kind == "f" else np.iinfo(dtype).min


def _finite_highest(dtype: np.dtype) -> Any:
    return np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max


def unsorted_segment_join(
    lookups: Lookups,
    inputs: np.ndarray,
    segment_ids: np.ndarray,
    num_segments: np.ndarray,
    *,
    separator: str = "",
) -> np.ndarray:
    """Strings of each segment joined in their order."""
    fits = inputs.shape[: segment_ids.ndim] == segment_ids.shape and segment_ids.ndim > 0
    check(fits, f"segment ids of shape {list(segment_ids.shape)} for {list(inputs.shape)}")
    count, ids = scalar(num_segments, "num_segments"), segment_ids.ravel()
    check(count >= 0, f"{count} segments")
    check_ids(ids, count, "segment id")
    rows, between = inputs.reshape(ids.size, -1), separator.encode()
    joined = [[b""] * rows.shape[1] for _ in range(count)]
    for number, row in zip(ids.tolist(), rows.tolist(), strict=True):
        # No separator follows what is still empty, even if an empty string was there.
        joined[number] = [a + between + b if a else b for a, b in zip(joined[number], row, strict=True)]
    flat = [text for row in joined for text in row]
    return strings(flat, (count, *inputs.shape[segment_ids.ndim :]))


def _sparse_segments(combiner: str) -> tuple[Operator, Operator]:
    """The op without and with `num_segments`."""

    def reduce(data: np.ndarray, indices: np.ndarray, ids: np.ndarray, count: int | None) -> np.ndarray:
        check(data.ndim >= 1, "segments of a scalar")
        check(indices.shape == ids.shape and ids.ndim == 1, f"{indices.size} indices, {ids.size} segment ids")
        segments = _sorted_rows(ids, ids)
        if count is not None:
            check(count >= segments, f"segment id {segments - 1} is not below num_segments {count}")
            segments = count
        check_ids(indices, len(data))
        out = np.zeros((segments, *data.shape[1:]), data.dtype)
        total = reduce_segments(np.add, data[indices], ids, out)
        return total if combiner == "sum" else _mean_of(total, ids, root=combiner == "sqrtn")

    def run(
        lookups: Lookups,
        data: np.ndarray,
        indices: np.ndarray,
        segment_ids: np.ndarray,
        *,
        sparse_gradient: bool = False,
    ) -> np.ndarray:
        return reduce(data, indices, segment_ids, None)

    def run_with_count(
        lookups: Lookups,
        data: np.ndarray,
        indices: np.ndarray,
        segment_ids: np.ndarray,
        num_segments: np.ndarray,
        *,
        sparse_gradient: bool = False,
    ) -> np.ndarray:
        count = scalar(num_segments, "num_segments")
        check(count >= 0, f"{count} segments")
        return reduce(data, indices, segment_ids, count)

    return run, run_with_count


_SPARSE_SUM, _SPARSE_MEAN, _SPARSE_SQRT_N = (_sparse_segments(c) for c in ("sum", "mean", "sqrtn"))

OPERATORS: dict[str, Operator] = {
    "segment_sum": _sorted_segments(np.add, 0),
    "segment_mean": segment_mean,
    "segment_max": _sorted_segments(np.maximum, 0),
    "segment_min": _sorted_segments(np.minimum, 0),
    "segment_prod": _sorted_segments(np.multiply, 1),
    "unsorted_segment_sum": _unsorted_segments(np.add, lambda dtype: 0),
    "unsorted_segment_prod": _unsorted_segments(np.multiply, lambda dtype: 1),
    "unsorted_segment_max": _unsorted_segments(np.maximum, _finite_lowest),
    "unsorted_segment_min": _unsorted_segments(np.minimum, _finite_highest),
    "unsorted_segment_join": unsorted_segment_join,
    "sparse_segment_sum": _SPARSE_SUM[0],
    "sparse_segment_sum_with_num_segments": _SPARSE_SUM[1],
    "sparse_segment_mean": _SPARSE_MEAN[0],
    "sparse_segment_mean_with_num_segments": _SPARSE_MEAN[1],
    "sparse_segment_sqrt_n": _SPARSE_SQRT_N[0],
    "sparse_segment_sqrt_n_with_num_segments": _SPARSE_SQRT_N[1],
}
