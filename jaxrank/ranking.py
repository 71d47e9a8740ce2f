"""How differently two lists of scores rank the same rows: rank correlation, top-k overlap, inversions; and
how well one list ranks labelled rows.

Every function but `auc` takes `expected` and `found`, float64 `[rows]` of one output column, in the same
row order. A higher score ranks first.
"""

import numpy as np


def spearman(expected: np.ndarray, found: np.ndarray) -> float:
    """Spearman's rank correlation; ties share their mean rank.

    1.0 for a single row. A constant list has no ranks to correlate: 1.0 if both are constant, 0.0 if one is.
    """
    if len(expected) < 2:
        return 1.0
    a, b = _mean_ranks(expected), _mean_ranks(found)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 1.0 if np.ptp(a) == np.ptp(b) else 0.0
    return float(np.corrcoef(a, b)[0, 1])


def top_overlap(expected: np.ndarray, found: np.ndarray, k: int) -> float:
    """Share of the `k` best rows by `found` that are among the `k` best by `expected` (all rows if there are
    fewer); a row that ties with the k-th expected score is among them. A NaN ranks last."""
    k = min(k, len(expected))
    expected, found = (np.where(np.isnan(scores), -np.inf, scores) for scores in (expected, found))
    top = np.argsort(-found, kind="stable")[:k]
    kth = np.sort(expected)[::-1][k - 1]
    return float(np.mean(expected[top] >= kth))


def inversions(expected: np.ndarray, found: np.ndarray, tolerance: float) -> tuple[int, int]:
    """`(inverted, ordered)`: pairs that `expected` orders by more than `tolerance`, and how many of them
    `found` orders the other way round or not at all.

    The tolerance is absolute for scores up to 1 and relative to the higher score beyond. A NaN has no place
    in an order: pairs with one are in neither number. O(n log n).
    """
    comparable = ~(np.isnan(expected) | np.isnan(found))
    expected, found = expected[comparable], found[comparable]
    order = np.argsort(expected, kind="stable")
    expected, found = expected[order], found[order]
    # Row i is ordered above exactly the rows [0, clearly_below[i]) of the sorted list.
    sizes = np.where(np.isinf(expected), 0.0, np.maximum(np.abs(expected), 1.0))
    limits = expected - tolerance * sizes
    clearly_below = np.searchsorted(expected, limits, side="left")
    _, ranks = np.unique(found, return_inverse=True)
    inverted = _count_at_least(ranks.astype(np.int64), clearly_below)
    return int(inverted.sum()), int(clearly_below.sum())


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the share of pairs of a positive and a negative row in which the positive one
    has the higher score, ties counting half. `labels` are bool `[rows]`. A NaN ranks last.

    NaN where all labels are the same.
    """
    positive = int(labels.sum())
    negative = len(labels) - positive
    if not positive or not negative:
        return float("nan")
    ranks = _mean_ranks(np.where(np.isnan(scores), -np.inf, scores))
    below = ranks[labels].sum() - positive * (positive - 1) / 2
    return float(below / (positive * negative))


def _count_at_least(ranks: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """For every i, how many of `ranks[: ends[i]]` are at least `ranks[i]`.

    A wavelet matrix over the bits of the ranks, highest first: at each level the values are partitioned
    stably by one bit, and each query's range `[low, high)` follows the side that its own rank is on. Ranges
    left behind on the side of the ones are larger.
    """
    values, counts = ranks, np.zeros(len(ranks), np.int64)
    low, high = np.zeros(len(ranks), np.int64), ends.astype(np.int64)
    for bit in reversed(range(int(ranks.max(initial=0)).bit_length())):
        ones = (values >> bit) & 1
        ones_before = np.concatenate([[0], np.cumsum(ones)])
        low_ones, high_ones = ones_before[low], ones_before[high]
        on_ones = ((ranks >> bit) & 1).astype(bool)
        counts += np.where(on_ones, 0, high_ones - low_ones)
        zeros = len(values) - ones_before[-1]
        low = np.where(on_ones, zeros + low_ones, low - low_ones)
        high = np.where(on_ones, zeros + high_ones, high - high_ones)
        values = np.concatenate([values[ones == 0], values[ones == 1]])
    return counts + high - low


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]
