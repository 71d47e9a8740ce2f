"""The name of a request whose features a server holds."""

import re
from dataclasses import dataclass

from serving.errors import InvalidRequestError
from serving.state.digest import SIZE

_FORM = re.compile(rf"(\d{{1,18}})-([0-9a-f]{{{2 * SIZE}}})")


@dataclass(frozen=True)
class Handle:
    """`version` of the model that prepared the request, and the digest of the request's features."""

    version: int
    digest: bytes

    def __str__(self) -> str:
        return f"{self.version}-{self.digest.hex()}"

    @classmethod
    def parse(cls, text: str) -> "Handle":
        """Raises `InvalidRequestError` for a text that is none."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise InvalidRequestError(
                f"{text[:100]!r} is not a state handle; send the handle of a PrepareRequest's answer as it is"
            )
        return cls(int(found[1]), bytes.fromhex(found[2]))
