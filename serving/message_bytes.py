"""How many bytes of messages a server holds at once, over gRPC and HTTP together: a request holds its message
while it waits and is answered, so the number of requests alone does not bound memory."""

import threading

from serving.errors import OverloadedError

UNCOUNTED = 4096
"""Bytes of a message that are not counted: whoever asks how the server is finds an answer when nothing else
fits, and the number of calls bounds the sum."""

MESSAGE_BYTES = "message_bytes"
"""`OverloadedError.reason` of a message that does not fit beside those that are held."""


class MessageBytes:
    """Thread-safe.

    Attributes:
        held: bytes of the messages that are here now.
    """

    def __init__(self, most: int):
        """At most so many bytes are held."""
        self.held, self._most = 0, most
        self._lock = threading.Lock()

    def hold(self) -> "Held":
        """Room for one message, of which nothing has come yet."""
        return Held(self)

    def _take(self, size: int) -> None:
        with self._lock:
            held = self.held
            if fits := held + size <= self._most:
                self.held += size
        if not fits:
            raise OverloadedError(
                f"messages of requests that wait or are answered are {held} bytes, and {size} more do not "
                "fit (--max-in-flight-mib); try again later, or another replica",
                MESSAGE_BYTES,
            )

    def _give_back(self, size: int) -> None:
        with self._lock:
            self.held -= size


class Held:
    """The message of one request, until `end`; used by one thread at a time."""

    __slots__ = ("_messages", "_size", "_counted")

    def __init__(self, messages: MessageBytes):
        self._messages, self._size, self._counted = messages, 0, 0

    def add(self, size: int) -> None:
        """So many more bytes have come. Raises `OverloadedError` where they do not fit."""
        self._size += size
        if self._size > UNCOUNTED:
            self._messages._take(self._size - self._counted)
            self._counted = self._size

    def end(self) -> None:
        """The message is no longer needed. Again: nothing."""
        if self._counted:
            self._messages._give_back(self._counted)
        self._size = self._counted = 0
