"""What became of one model's requests, and what they went without."""

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

log = logging.getLogger("jaxrank")


@dataclass(frozen=True)
class Quality:
    """One model's degradation until now; counts since the server started.

    Attributes:
        level: now; 0 is full quality.
        level_changes: how often it changed.
        answered: requests by the level that they were answered at.
        missed: requests refused for their deadline, or that ended after it.
        candidates_ranked_below: candidates that were not scored by the model that answered.
        history_values: values of histories that were dropped.
        other_model: calls of models in this one's place, or for the candidates that it did not score.
        skipped: requests for which a step could not be applied, by step.
    """

    level: int
    level_changes: int
    answered: Mapping[int, int]
    missed: int
    candidates_ranked_below: int
    history_values: int
    other_model: int
    skipped: Mapping[str, int]


@dataclass
class Tally:
    """Counts of one model. Thread-safe.

    Attributes:
        model: its name, for the log.
    """

    model: str
    _answered: Counter[int] = field(default_factory=Counter)
    _counts: Counter[str] = field(default_factory=Counter)
    _skipped: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, level: int) -> None:
        """A request was answered at a level."""
        with self._lock:
            self._answered[level] += 1

    def count(self, **counts: int) -> None:
        """Adds to counts by the names that `Quality` has."""
        with self._lock:
            self._counts.update(counts)

    def skip(self, step: str, reason: Exception) -> None:
        """A step could not be applied to a request; the first one is logged."""
        with self._lock:
            self._skipped[step] += 1
            first = self._skipped[step] == 1
        if first:
            log.warning("model %s runs without its degradation step %s: %s", self.model, step, reason)

    def totals(self) -> tuple[int, int]:
        """Requests that were answered, and that were missed."""
        with self._lock:
            return self._answered.total(), self._counts["missed"]

    def quality(self, level: int, level_changes: int) -> Quality:
        """A copy."""
        with self._lock:
            counts = {
                name: self._counts[name]
                for name in ("missed", "candidates_ranked_below", "history_values", "other_model")
            }
            return Quality(
                level=level, level_changes=level_changes, answered=dict(self._answered),
                skipped=dict(self._skipped), **counts,
            )  # fmt: skip
