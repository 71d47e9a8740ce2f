"""Feature crosses: every combination of one value of each column, row by row, as a joined string or a
hash."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from serving.host.operators.ragged import spread
from serving.host.operators.registry import Lookups, Operator, check, refuse, scalar, strings
from serving.native._core import fingerprints, keyed_hashes

_MUL = np.uint64(0xC6A4A7935BD1E995)
_SHIFT = np.uint64(47)


@dataclass(frozen=True)
class _Column:
    """The values of all rows one after the other, and how many each row has."""

    values: np.ndarray
    counts: np.ndarray
    dense: bool = False


def _dense_column(values: np.ndarray) -> _Column:
    check(values.ndim == 2, f"a dense column must be a matrix, found shape {list(values.shape)}")
    return _Column(values.ravel(), np.full(len(values), values.shape[1], np.int64), dense=True)


def _sparse_column(indices: np.ndarray, values: np.ndarray, shape: np.ndarray) -> _Column:
    check(shape.size == 2 and indices.ndim == 2 and indices.shape[1] == 2, "a sparse column must be a matrix")
    rows = indices[:, 0]
    check(len(rows) == values.size, f"{len(rows)} sparse indices for {values.size} values")
    inside = rows.size == 0 or (rows.min() >= 0 and rows.max() < shape[0] and (np.diff(rows) >= 0).all())
    check(inside, "the rows of a sparse column are out of order or out of range")
    return _Column(values, np.bincount(rows, minlength=int(shape[0])))


def _combine(columns: Sequence[_Column]) -> tuple[np.ndarray, list[np.ndarray]]:
    """How many combinations each row has, and for each column the position of its value in each combination.
    The last column varies fastest."""
    rows = {len(c.counts) for c in columns}
    check(len(rows) == 1, f"columns of {sorted(rows)} rows to cross")
    counts = np.prod([c.counts for c in columns], axis=0, dtype=np.int64)
    within = spread(np.zeros(counts.size, np.int64), counts)
    picks, faster = [], np.ones_like(counts)
    for column in reversed(columns):
        starts = np.cumsum(column.counts) - column.counts
        size, stride = np.repeat(column.counts, counts), np.repeat(faster, counts)
        picks.append(np.repeat(starts, counts) + within // stride % size)
        faster = faster * column.counts
    return counts, picks[::-1]


def _mix(value: np.ndarray) -> np.ndarray:
    return value ^ (value >> _SHIFT)


def fingerprint_cat(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """TensorFlow's FingerprintCat64 of uint64 arrays."""
    result = ((first ^ _MUL) ^ (_mix(second * _MUL) * _MUL)) * _MUL
    return _mix(_mix(result) * _MUL)


def _plain_fingerprints(column: _Column) -> np.ndarray:
    """Strings by their fingerprint; integers are their own."""
    values = column.values
    if values.dtype.kind != "O":
        return values.astype(np.int64).view(np.uint64)
    out = np.empty(values.size, np.uint64)
    fingerprints(values.tolist(), out)
    return out


def _salted_fingerprints(column: _Column, strong: bool, salt: Sequence[int]) -> np.ndarray:
    values = column.values
    # TensorFlow 2.21 crashes on this, so there is nothing to be equal to.
    crashes = strong and column.dense and values.dtype.kind != "O"
    check(not crashes, "a strong hash of dense integers is not supported: hash them as strings or sparse")
    if column.dense and not strong:  # TensorFlow hashes integers of sparse columns only
        return _plain_fingerprints(column)
    if values.dtype.kind != "O":
        # TensorFlow hashes `sizeof(dtype enum)` = 4 bytes of each int64: the low half.
        low = np.ascontiguousarray(values.astype("<i8")).view("<i4").reshape(-1, 2)[:, 0]
        texts = [v.tobytes() for v in low]
    else:
        texts = values.tolist()
    out = np.empty(values.size, np.uint64)
    if strong:
        keyed_hashes(texts, salt[0] % 2**64, salt[1] % 2**64, out)
    else:
        fingerprints(texts, out)
    return out


def _buckets(hashes: np.ndarray, buckets: int) -> np.ndarray:
    return (hashes % np.uint64(buckets if buckets > 0 else 2**63 - 1)).astype(np.int64)


def _hash(
    columns: Sequence[_Column],
    picks: Sequence[np.ndarray],
    start: int | None,
    buckets: int,
    hashes_of: Callable[[_Column], np.ndarray],
) -> np.ndarray:
    """The bucket of each combination. `start` is the first fingerprint; without one it is the first
    column's."""
    parts = [hashes_of(c)[at] for c, at in zip(columns, picks, strict=True)]
    if start is None:
        total, *parts = parts
    else:
        total = np.full(picks[0].size, start % 2**64, np.uint64)
    for part in parts:
        total = fingerprint_cat(total, part)
    return _buckets(total, buckets)


def _texts(values: np.ndarray) -> list[bytes]:
    return values.tolist() if values.dtype.kind == "O" else [b"%d" % v for v in values.tolist()]


def _join(columns: Sequence[_Column], picks: Sequence[np.ndarray], separator: bytes) -> np.ndarray:
    parts = []
    for column, at in zip(columns, picks, strict=True):
        texts = _texts(column.values)
        parts.append([texts[i] for i in at.tolist()])
    return strings([separator.join(combination) for combination in zip(*parts, strict=True)])


def _sparse_result(counts: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = np.repeat(np.arange(counts.size), counts)
    indices = np.column_stack([rows, spread(np.zeros(counts.size, np.int64), counts)]).astype(np.int64)
    return indices, values, np.array([counts.size, counts.max(initial=0)], np.int64)


def _columns(inputs: Sequence[np.ndarray], sparse: int, dense: int) -> list[_Column]:
    """Columns from indices, values and shapes of `sparse` sparse columns, then `dense` dense ones."""
    check(len(inputs) == 3 * sparse + dense, f"{len(inputs)} inputs of a cross")
    parts = [inputs[i * sparse : (i + 1) * sparse] for i in range(3)]
    columns = [_sparse_column(*part) for part in zip(*parts, strict=True)]
    columns += [_dense_column(v) for v in inputs[3 * sparse :]]
    check(columns, "a cross of no columns")
    return columns


def sparse_cross(
    lookups: Lookups,
    *inputs: np.ndarray,
    hashed_output: bool,
    num_buckets: int,
    hash_key: int,
    out_type: str,
    internal_type: str,
    sparse_types: Sequence[str],
    dense_types: Sequence[str],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sparse matrix of combinations joined with `_X_`, or hashed into buckets. Inputs: all sparse indices,
    values and shapes, then the dense columns."""
    columns = _columns(inputs, len(sparse_types), len(dense_types))
    same = internal_type != "string" or all(c.values.dtype.kind == "O" for c in columns)
    check(same, "a cross of strings has a column that is not of strings")
    counts, picks = _combine(columns)
    if hashed_output:
        return _sparse_result(counts, _hash(columns, picks, hash_key, num_buckets, _plain_fingerprints))
    return _sparse_result(counts, _join(columns, picks, b"_X_"))


def sparse_cross_v2(
    lookups: Lookups, *inputs: np.ndarray, sparse_types: Sequence[str], dense_types: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sparse matrix of combinations joined with the separator that is the last input."""
    columns = _columns(inputs[:-1], len(sparse_types), len(dense_types))
    counts, picks = _combine(columns)
    return _sparse_result(counts, _join(columns, picks, scalar(inputs[-1], "sep")))


def sparse_cross_hashed(
    lookups: Lookups, *inputs: np.ndarray, sparse_types: Sequence[str], dense_types: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sparse matrix of hashed combinations; the last inputs are num_buckets, strong_hash and salt."""
    *tensors, num_buckets, strong_hash, salt = inputs
    check(salt.size == 2, f"a salt has two values, found {salt.size}")
    columns = _columns(tensors, len(sparse_types), len(dense_types))
    counts, picks = _combine(columns)
    strong, key = bool(scalar(strong_hash, "strong_hash")), salt.ravel().tolist()
    buckets = scalar(num_buckets, "num_buckets")
    return _sparse_result(
        counts, _hash(columns, picks, None, buckets, lambda c: _salted_fingerprints(c, strong, key))
    )


def ragged_cross(
    lookups: Lookups,
    *inputs: np.ndarray,
    input_order: str,
    hashed_output: bool,
    num_buckets: int,
    hash_key: int,
    ragged_values_types: Sequence[str],
    ragged_splits_types: Sequence[str],
    sparse_values_types: Sequence[str],
    dense_types: Sequence[str],
    out_values_type: str,
    out_row_splits_type: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Values and row splits of the combinations of ragged (R), sparse (S) and dense (D) columns in
    `input_order`."""
    ragged, sparse = len(ragged_values_types), len(sparse_values_types)
    queues: dict[str, list[_Column]] = {"R": [], "S": [], "D": []}
    for values, splits in zip(inputs[:ragged], inputs[ragged : 2 * ragged], strict=True):
        check(values.ndim == 1 and splits.size > 0, "a ragged column must have rank 2")
        lengths = np.diff(splits)
        fits = splits[0] == 0 and splits[-1] == values.size and (lengths >= 0).all()
        check(fits, "the row splits of a ragged column do not fit its values")
        queues["R"].append(_Column(values, lengths))
    rest = inputs[2 * ragged :]
    both = _columns(rest, sparse, len(dense_types)) if rest else []
    queues["S"], queues["D"] = both[:sparse], both[sparse:]
    columns = [queues[kind].pop(0) for kind in input_order]
    counts, picks = _combine(columns)
    if hashed_output:
        found = _hash(columns, picks, hash_key, num_buckets, _plain_fingerprints)
    elif out_values_type == "string":
        found = _join(columns, picks, b"_X_")
    else:
        refuse(f"a cross that is not hashed has strings, not {out_values_type}")
    return found, np.concatenate([[0], np.cumsum(counts)]).astype(out_row_splits_type)


OPERATORS: dict[str, Operator] = {
    "sparse_cross": sparse_cross,
    "sparse_cross_v2": sparse_cross_v2,
    "sparse_cross_hashed": sparse_cross_hashed,
    "ragged_cross": ragged_cross,
}
