"""How long a request's calls take on a stream, learned from those that ran."""

# Weight of the newest request. A model's speed changes with what runs beside it, within seconds.
_NEWEST = 0.05


class Costs:
    """Stream time for each candidate, by key. Not thread-safe."""

    def __init__(self) -> None:
        self._per_row: dict[object, float] = {}
        self._rows: dict[object, float] = {}

    def observe(self, key: object, rows: int, seconds: float) -> None:
        """A request of so many candidates took that much stream time in all."""
        rows = max(rows, 1)
        for known, value in ((self._per_row, seconds / rows), (self._rows, float(rows))):
            known[key] = known[key] + _NEWEST * (value - known[key]) if key in known else value

    def seconds(self, key: object, rows: int | None = None) -> float:
        """Expected stream time of a request; of an average one for None. 0 before the first request."""
        if key not in self._per_row:
            return 0.0
        return self._per_row[key] * (self._rows[key] if rows is None else max(rows, 1))

    def forget(self, key: object) -> None:
        """Drops what is known of a key whose engine closed."""
        self._per_row.pop(key, None)
        self._rows.pop(key, None)
