"""What a tier refuses. Every message says what was found, where, and what to do; none holds a secret."""

from jaxrank.errors import JaxrankError


class TierError(JaxrankError):
    """Base of the family."""


class TierConfigError(TierError):
    """The tables config cannot be read, or a field of it is wrong; the message names the field."""


class StoreUnavailableError(TierError):
    """A store cannot be reached, or does not let us in."""


class TableNotStoredError(TierError):
    """A store does not hold a table, or holds only a part of it."""


class StoredTableError(TierError):
    """A stored table does not fit what the model or the bundle has: dimension, row format, keys, rows."""


class StoreFullError(TierError):
    """A store took no more rows. What it took stays, and the next push goes on from there."""
