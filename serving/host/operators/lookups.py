"""Vocabularies and embedding tables. These operators are fused: each stands for a sub-graph of TensorFlow
ops."""

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from serving.host.operators.indexing import check_ids
from serving.host.operators.registry import Lookups, Operator, check, refuse
from serving.host.operators.segments import reduce_segments
from serving.tables import Combiner, RowNotFoundError, RowSource, Table, pool_rows


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
    rows = lookups.tables[table].rows
    wanted = wrap_negative(lookups, _flat(ids), rows=rows) if negative_ids == "wrap" else ids
    found = _clip(_fetch(lookups, table, wanted, lowest=-rows if negative_ids == "wrap" else 0), max_norm)
    return found.reshape(*ids.shape, *(found.shape[1:] if row_shape is None else row_shape))


def _fetch(lookups: Lookups, table: str, ids: np.ndarray, lowest: int = 0) -> np.ndarray:
    """The row of each id, in a flat list. Ids have been counted from `lowest`, for the message of a
    refusal."""
    source = lookups.tables[table]
    out = np.empty((ids.size, source.dim), source.dtype)
    try:
        missing = source.fetch(_flat(ids), out, lookups.budget.deadline)
    except RowNotFoundError as error:
        _refuse_id(table, source, error.id + (lowest if error.id < 0 else 0), lowest)
    if missing is not None:
        lookups.budget.count_default_rows(table, int(missing.sum()))
    return out


def _flat(ids: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(ids, np.int64).reshape(-1)


def _refuse_id(table: str, source: RowSource, id: int, lowest: int = 0) -> NoReturn:
    refuse(f"id {id} is outside of table {table!r}, which has rows [{lowest}, {source.rows})")


def _clip(rows: np.ndarray, max_norm: float | None) -> np.ndarray:
    """`[n, dim]` rows as tf.clip_by_norm gives them."""
    if max_norm is None:
        return rows
    if rows.dtype == np.float32:
        out = np.empty_like(rows)
        pool_rows(rows, np.arange(len(rows) + 1), None, "sum", max_norm, out)
        return out
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
    source = lookups.tables[table]
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
    if source.dtype == np.float32:
        found = _pool(lookups, table, segments, ids, rows, weights, combiner, max_norm)
    else:
        found = _combine(_clip(_fetch(lookups, table, ids), max_norm), segments, rows, weights, combiner)
    return found.reshape(*outer, source.dim)


def _pool(
    lookups: Lookups,
    table: str,
    segments: np.ndarray,
    ids: np.ndarray,
    rows: int,
    weights: np.ndarray | None,
    combiner: Combiner,
    max_norm: float | None,
) -> np.ndarray:
    """`[rows, dim]`: the rows of a float32 table summed by segment (sorted), and divided as the combiner
    says."""
    source = lookups.tables[table]
    offsets = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(segments, minlength=rows), out=offsets[1:])
    out = np.empty((rows, source.dim), np.float32)
    weights = None if weights is None else weights.astype(np.float32)
    if not isinstance(source, Table):
        pool_rows(_fetch(lookups, table, ids), offsets, weights, combiner, max_norm, out)
        return out
    try:
        source.pool(_flat(ids), offsets, weights, combiner, max_norm, out)
    except RowNotFoundError as error:
        _refuse_id(table, source, error.id)
    return out


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
