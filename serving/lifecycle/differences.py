"""How the scores of two versions differ on the same requests."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from jaxrank import ranking
from jaxrank.certificate import TOLERANCE

TOP = 10


@dataclass(frozen=True)
class OutputDifference:
    """Of one output, over all requests that were scored on both versions. Columns of an output with several
    are rankings of their own; `top10_overlap` and inversions are of requests with at least two candidates.

    Attributes:
        max_abs, mean_abs: of the difference of two scores, where both are finite.
        not_finite: scores that are no finite number on one version only.
        top10_overlap: share of the ten best candidates of one version that are among those of the other, on
            average; 1 without a ranking.
        inversions: pairs of candidates that the answering version orders by more than the certificate's
            tolerance, and the other one not in the same way.
        ordered_pairs: all pairs that it orders so.
    """

    max_abs: float
    mean_abs: float
    not_finite: int
    top10_overlap: float
    inversions: int
    ordered_pairs: int


@dataclass
class Difference:
    """Adds up the differences of one output. Not thread-safe."""

    scores: int = 0
    sum_abs: float = 0.0
    max_abs: float = 0.0
    not_finite: int = 0
    rankings: int = 0
    overlap: float = 0.0
    inversions: int = 0
    ordered: int = 0

    def add(self, answered: np.ndarray, other: np.ndarray) -> None:
        """Scores of one request, `[rows, ...]` each."""
        a, b = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (answered, other))
        finite = np.isfinite(a) & np.isfinite(b)
        difference = np.abs(a[finite] - b[finite])
        self.scores += difference.size
        self.sum_abs += float(difference.sum())
        self.max_abs = max(self.max_abs, float(difference.max(initial=0.0)))
        self.not_finite += int((np.isfinite(a) != np.isfinite(b)).sum())
        if len(a) < 2:
            return
        for x, y in zip(a.T, b.T, strict=True):
            self.rankings += 1
            self.overlap += ranking.top_overlap(x, y, TOP)
            inverted, ordered = ranking.inversions(x, y, TOLERANCE)
            self.inversions += inverted
            self.ordered += ordered

    def report(self) -> OutputDifference:
        return OutputDifference(
            self.max_abs,
            self.sum_abs / self.scores if self.scores else 0.0,
            self.not_finite,
            self.overlap / self.rankings if self.rankings else 1.0,
            self.inversions,
            self.ordered,
        )


@dataclass
class Differences:
    """Adds up those of all outputs that both versions have in numbers and of one shape."""

    outputs: dict[str, Difference] = field(default_factory=dict)

    def add(self, answered: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
        for name, value in answered.items():
            found = other.get(name)
            if found is not None and value.dtype.kind in "fiub" and found.shape == value.shape and value.ndim:
                self.outputs.setdefault(name, Difference()).add(value, found)

    def report(self) -> dict[str, OutputDifference]:
        return {name: difference.report() for name, difference in self.outputs.items()}
