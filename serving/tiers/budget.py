"""What one request may spend in stores, and what it did not get."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import quote

DEFAULT_ROWS = "jaxrank-default-rows"
"""The key of the trailing metadata that tells a client."""


@dataclass
class LookupBudget:
    """One for a request, shared by all of its lookups."""

    deadline: float | None = None
    """On the clock of `time.monotonic`; None waits."""
    default_rows: Counter[str] = field(default_factory=Counter)
    """By table, rows of this request whose place the default row took because they did not arrive."""

    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count_default_rows(self, table: str, count: int) -> None:
        """Lookups of one request run at once."""
        with self._lock:
            self.default_rows[table] += count

    @classmethod
    def of_request(cls, budget_ms: float, reserve_ms: float, remaining_s: float | None) -> "LookupBudget":
        """The configured budget, or what the caller's own deadline leaves, whichever ends first."""
        seconds = budget_ms / 1e3
        if remaining_s is not None:
            seconds = max(0.0, min(seconds, remaining_s - reserve_ms / 1e3))
        return cls(time.monotonic() + seconds)


def described(budget: LookupBudget) -> str:
    """ "item_table=2,user_table=3": the tables with rows that did not arrive, for a client."""
    return ",".join(
        f"{quote(table, safe='/')}={count}" for table, count in sorted(budget.default_rows.items())
    )
