"""The content of a request's features, in 16 bytes."""

import hashlib
import secrets
from collections.abc import Sequence

import msgspec
import numpy as np

_KEY = secrets.token_bytes(32)
"""Of this process. Without it nobody can look for two requests with one digest, nor guess a digest, which is
why one can be a client's handle and why nothing is compared when one is found."""

SIZE = 16


def digest(values: Sequence[np.ndarray]) -> bytes:
    """Keyed BLAKE2b of arrays in an agreed order and of agreed dtypes; strings are object arrays of bytes.

    Arrays whose bits differ have different digests: -0.0 is not 0.0.
    """
    found = hashlib.blake2b(digest_size=SIZE, key=_KEY)
    for value in values:
        if value.dtype == object:
            found.update(msgspec.msgpack.encode((value.shape, value.ravel().tolist())))
        else:
            # The shape says where the next array begins.
            found.update(msgspec.msgpack.encode(value.shape))
            found.update(value.tobytes())
    return found.digest()
