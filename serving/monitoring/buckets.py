"""Bounds of histograms, and percentiles of what was counted in them."""

from collections.abc import Sequence

import numpy as np

_TENSORFLOW_BASE = 1e-5
_TENSORFLOW_GROWTH = 1.8
_TENSORFLOW_BOUNDS = 26

SECONDS: tuple[float, ...] = tuple(
    float(f"{_TENSORFLOW_BASE * _TENSORFLOW_GROWTH ** (n / 2):.6g}")
    for n in range(2 * _TENSORFLOW_BOUNDS - 1)
)
"""Upper bounds, 10 us to 24 s. Every second one is of TensorFlow Serving's latencies, whose histograms
are made of the same counts; those between make a percentile right within a third."""

ROWS: tuple[float, ...] = tuple(float(1 << n) for n in range(15))
"""TensorFlow Serving's bounds for examples in a request."""


def percentile(bounds: Sequence[float], counts: np.ndarray, share: float) -> float | None:
    """The value below which a share of what was counted lies, with even spread inside of a bucket.

    Args:
        counts: `[len(bounds) + 1]` of each bucket, not cumulative.

    Returns:
        None where nothing was counted; the last bound for what lies beyond it.
    """
    total = int(counts.sum())
    if not total:
        return None
    before = np.cumsum(counts) - counts
    bucket = int(np.searchsorted(np.cumsum(counts), share * total))
    if bucket >= len(bounds):
        return bounds[-1]
    low = bounds[bucket - 1] if bucket else 0.0
    inside = (share * total - before[bucket]) / counts[bucket]
    return low + float(inside) * (bounds[bucket] - low)
