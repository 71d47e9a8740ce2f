"""What a device's streams did, and what waited for them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StreamLoad:
    """How busy the streams of a device are.

    Attributes:
        running: streams that run a call now.
        waiting: requests that have calls to give to a stream.
        busy_seconds: of all calls so far; `streams` of them for each second is all there is.
    """

    streams: int
    running: int
    waiting: int
    busy_seconds: float


@dataclass(frozen=True)
class KeyLoad:
    """Of one key, and of all keys together.

    Attributes:
        streams: of the device.
        started: requests of the key whose first call began.
        waited_seconds: that these had waited in all.
        own_seconds: stream time of the key's calls.
        all_seconds: stream time of all calls.
    """

    streams: int
    started: int
    waited_seconds: float
    own_seconds: float
    all_seconds: float

    def since(self, earlier: "KeyLoad") -> "KeyLoad":
        """What came between; all of it where the counts began again, as a new version's do."""
        own = earlier if self.started >= earlier.started else KeyLoad(self.streams, 0, 0.0, 0.0, 0.0)
        return KeyLoad(
            self.streams,
            self.started - own.started,
            self.waited_seconds - own.waited_seconds,
            self.own_seconds - own.own_seconds,
            self.all_seconds - earlier.all_seconds,
        )

    def plus(self, other: "KeyLoad") -> "KeyLoad":
        """Two keys of one device as one."""
        return KeyLoad(
            self.streams,
            self.started + other.started,
            self.waited_seconds + other.waited_seconds,
            self.own_seconds + other.own_seconds,
            max(self.all_seconds, other.all_seconds),
        )
