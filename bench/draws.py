"""Ids that lookups are measured with."""

from dataclasses import dataclass

import numpy as np

BAG = 20
"""Ids of a bag on average, such as a user's history."""


@dataclass(frozen=True)
class Bags:
    """`ids` `[n]` and `offsets` `[bags + 1]` int64."""

    ids: np.ndarray
    offsets: np.ndarray


def draw(rng: np.random.Generator, rows: int, count: int, zipf: bool) -> Bags:
    """Ids that are uniform or Zipf-distributed (exponent 1.05, most frequent rows anywhere in the table)."""
    ids = skewed(rng, rows, count, 1.05) if zipf else rng.integers(0, rows, count)
    inner = np.sort(rng.integers(0, count + 1, count // BAG - 1))
    return Bags(ids, np.concatenate([[0], inner, [count]]).astype(np.int64))


def skewed(rng: np.random.Generator, rows: int, count: int, exponent: float) -> np.ndarray:
    """Zipf-distributed ids, int64 `[count]`; uniform ones for an exponent of 0."""
    if exponent == 1.0:
        rank = float(rows) ** rng.random(count)
    else:
        # The inverse of the continuous distribution: NumPy's own has no upper end.
        power = 1 - exponent
        rank = (1 - rng.random(count) * (1 - float(rows) ** power)) ** (1 / power)
    return (rank.astype(np.int64) * 0x9E3779B1) % rows
