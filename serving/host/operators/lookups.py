"""Vocabularies and embedding tables. These operators are fused: each stands for a sub-graph of TensorFlow
ops."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from serving.host.operators.indexing import check_ids
from serving.host.operators.registry import Lookups, Operator, check, refuse
from serving.host.operators.segments import reduce_segments

Combiner = Literal["sum", "mean", "sqrtn"]


def vocabulary_lookup(
    lookups: Lookups, keys: np.ndarray, *, vocabulary: str, override: Mapping[str, Any] | None = None
) -> np.ndarray:
    """int64 value of each key. `override` is one more entry, `{key, value}`, that wins over the
    vocabulary."""
    found = lookups.vocabularies[vocabulary](keys)
    if override is not None:
        found = np.where(np.asarray(keys == override["key"], bool), override["value"], found)
    return found


def embedding_lookup(
    lookups: Lookups,
    ids: np.ndarray,
    *,
    table: str,
    negative_ids: str = "error",
    max_norm: float | None = None,
    row_shape: list[int] | None = None,
) -> np.ndarray:
    """Row of each id, `[..., dim]`, or `[..., *row_shape]` where the variable has no or several dimensions
    besides its rows. An id outside of the table is refused, as TensorFlow refuses it
    on a CPU.

    With `negative_ids="wrap"` (Keras 3) an id of -1 is the last row. Rows longer than `max_norm` are scaled
    to it.
    """
    rows = lookups.tables[table]
    if ids.size:
        low, high = int(ids.min()), int(ids.max())
        lowest = -len(rows) if negative_ids == "wrap" else 0
        if low < lowest or high >= len(rows):
            bad = low if low < lowest else high
            refuse(f"id {bad} is outside of table {table!r}, which has rows [{lowest}, {len(rows)})")
    found = _clip(np.asarray(rows[ids]), max_norm)
    return found if row_shape is None else found.reshape(*ids.shape, *row_shape)


def _clip(rows: np.ndarray, max_norm: float | None) -> np.ndarray:
    """As tf.clip_by_norm over the last axis."""
    if max_norm is None:
        return rows
    limit = rows.dtype.type(max_norm)
    norms = np.sqrt(np.sum(rows * rows, axis=-1, keepdims=True, dtype=rows.dtype))
    return rows * limit / np.maximum(norms, limit)


def wrap_negative(lookups: Lookups, ids: np.ndarray, *, rows: int) -> np.ndarray:
    """Ids with negative ones counted from the end."""
    return np.where(ids < 0, ids + rows, ids)


def ids_within(lookups: Lookups, ids: np.ndarray, *, rows: int) -> np.ndarray:
    """The ids, for a table of `rows` rows in the dense program, which does not look: an id outside is
    refused."""
    check_ids(ids, rows, "id")
    return ids


def multi_hot(lookups: Lookups, ids: np.ndarray, *, depth: int) -> np.ndarray:
    """`[..., K]` ids to `[..., depth]` float32 with 1.0 at every id that occurs; ids outside of the depth are
    dropped."""
    flat = ids.reshape(-1, ids.shape[-1])
    # One column more than the depth takes the ids that TensorFlow's one_hot would drop.
    where = np.where((flat < 0) | (flat >= depth), depth, flat)
    out = np.zeros((len(flat), depth + 1), np.float32)
    out[np.arange(len(flat))[:, None], where] = 1.0
    return out[:, :depth].reshape(*ids.shape[:-1], depth)


def embedding_bag(
    lookups: Lookups,
    indices: np.ndarray,
    ids: np.ndarray,
    dense_shape: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    table: str,
    combiner: Combiner,
    max_norm: float | None = None,
    safe: bool = False,
    default_id: int | None = None,
) -> np.ndarray:
    """The rows of a sparse tensor of ids, each one combined into one embedding.

    Args:
        indices: `[nnz, rank]` int64, ids: `[nnz]` integers, dense_shape: `[rank]` int64; rank is at least 2.
        weights: `[nnz]` floats, or none.
        table: name of the table; an id outside of it is refused.
        combiner: with weights, `mean` divides by their sum and `sqrtn` by the root of the sum of their
            squares; 0 where that is 0.
        max_norm: rows of the table that are longer are scaled to this length.
        safe: False is tf.nn.embedding_lookup_sparse: the rows are the first dimension up to the last one that
            has an id, in order, and one without ids is 0. True is tf.nn.safe_embedding_lookup_sparse: every
            row of the dense shape, ids below 0 are dropped, and unless the combiner is `sum` so are ids whose
            weight is not above 0.
        default_id: with `safe`, the id that stands in an empty row; without it that row is 0.

    Returns:
        `[rows, dim]` float32; with `safe`, `[*dense_shape[:-1], dim]`.
    """
    vectors = lookups.tables[table]
    check(indices.ndim == 2 and len(indices) == ids.size, f"{ids.size} ids for indices {list(indices.shape)}")
    check(dense_shape.size == indices.shape[1] >= 2, "a bag of ids must have rows")
    check(weights is None or weights.shape == ids.shape, "weights do not fit the ids")
    if safe:
        outer = tuple(int(n) for n in dense_shape[:-1])
        rows = int(np.prod(outer, dtype=np.int64))
        segments = _row_of(indices, dense_shape)
        check_ids(segments, rows, "row")
        segments, ids, weights = _prune(segments, ids, weights, combiner)
        if default_id is not None:
            segments, ids, weights = _fill(segments, ids, weights, rows, default_id)
    else:
        segments = indices[:, 0]
        ordered = segments.size == 0 or (segments[0] >= 0 and (np.diff(segments) >= 0).all())
        check(ordered, "the rows of a bag of ids are not in order")
        rows = int(segments[-1]) + 1 if segments.size else 0
        outer = (rows,)
    check_ids(ids, len(vectors), f"table {table!r}: id")
    found = _clip(np.asarray(vectors[ids]), max_norm)
    return _combine(found, segments, rows, weights, combiner).reshape(*outer, vectors.shape[1])


def _row_of(indices: np.ndarray, dense_shape: np.ndarray) -> np.ndarray:
    """The row, all dimensions but the last taken together."""
    row = indices[:, 0]
    for i in range(1, len(dense_shape) - 1):
        row = row * dense_shape[i] + indices[:, i]
    return row


def _prune(
    segments: np.ndarray, ids: np.ndarray, weights: np.ndarray | None, combiner: Combiner
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Only what counts, in the order of the rows."""
    kept = ids >= 0
    if weights is not None and combiner != "sum":
        kept &= weights > 0
    at = np.flatnonzero(kept)
    at = at[np.argsort(segments[at], kind="stable")]
    return segments[at], ids[at], None if weights is None else weights[at]


def _fill(
    segments: np.ndarray, ids: np.ndarray, weights: np.ndarray | None, rows: int, default_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The default id, of weight 1, in every empty row."""
    empty = np.flatnonzero(np.bincount(segments, minlength=rows) == 0)
    at = np.searchsorted(segments, empty)
    filled_weights = None if weights is None else np.insert(weights, at, 1)
    return np.insert(segments, at, empty), np.insert(ids, at, default_id), filled_weights


def _combine(
    found: np.ndarray, segments: np.ndarray, rows: int, weights: np.ndarray | None, combiner: Combiner
) -> np.ndarray:
    """`[rows, dim]`: the found rows summed by segment (sorted), and divided as the combiner says."""
    scale = None if weights is None else weights.astype(found.dtype)[:, None]
    total = np.zeros((rows, found.shape[1]), found.dtype)
    with np.errstate(all="ignore"):
        reduce_segments(np.add, found if scale is None else found * scale, segments, total)
        if combiner == "sum":
            return total
        if scale is None:
            divisor = np.maximum(np.bincount(segments, minlength=rows), 1).astype(found.dtype)[:, None]
        else:
            divisor = np.zeros((rows, 1), found.dtype)
            reduce_segments(np.add, scale if combiner == "mean" else scale * scale, segments, divisor)
        if combiner == "sqrtn":
            divisor = np.sqrt(divisor)
        return np.where(divisor == 0, found.dtype.type(0), total / divisor)


OPERATORS: dict[str, Operator] = {
    "vocabulary_lookup": vocabulary_lookup,
    "embedding_lookup": embedding_lookup,
    "embedding_bag": embedding_bag,
    "ids_within": ids_within,
    "wrap_negative": wrap_negative,
    "multi_hot": multi_hot,
}
