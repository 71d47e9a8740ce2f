"""How long a request's calls take on a stream, learned from those that ran."""

import math

# Weight of the newest request. A model's speed changes with what runs beside it, within seconds.
_NEWEST = 0.05


class Costs:
    """Stream time for each candidate, by key. Not thread-safe."""

    def __init__(self) -> None:
        self._per_row: dict[object, float] = {}
        self._rows: dict[object, float] = {}
        self._rows_of_call: dict[object, float] = {}

    def observe(self, key: object, rows: int, seconds: float, calls: int) -> None:
        """A request of so many candidates took that much stream time in all, in so many calls."""
        rows = max(rows, 1)
        self._rows_of_call[key] = max(self._rows_of_call.get(key, 0.0), rows / max(calls, 1))
        for known, value in ((self._per_row, seconds / rows), (self._rows, float(rows))):
            known[key] = known[key] + _NEWEST * (value - known[key]) if key in known else value

    def seconds(self, key: object, rows: int | None = None) -> float:
        """Expected stream time of a request; of an average one for None. 0 before the first request."""
        if key not in self._per_row:
            return 0.0
        return self._per_row[key] * (self._rows[key] if rows is None else max(rows, 1))

    def calls(self, key: object, rows: int | None = None) -> int:
        """Into how many calls a request is cut, of which as many may run at once; 1 before the first request.
        A model that mixes candidates has one call for as many candidates as it was ever seen to take."""
        if key not in self._rows_of_call:
            return 1
        return math.ceil((self._rows[key] if rows is None else max(rows, 1)) / self._rows_of_call[key])

    def forget(self, key: object) -> None:
        """Drops what is known of a key whose engine closed."""
        for known in (self._per_row, self._rows, self._rows_of_call):
            known.pop(key, None)
