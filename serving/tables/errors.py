"""What a table refuses. Every message says what was found, where, and what to do."""

from jaxrank.errors import JaxrankError


class TableError(JaxrankError):
    """Base of the family; also a file that cannot be opened, mapped or locked."""


class DamagedTableError(TableError):
    """The file is truncated, garbled, or of no table at all."""


class TableVersionError(TableError):
    """The file is of a version that this jaxrank does not read."""


class TableMismatchError(TableError):
    """What was asked for does not fit the table: dimension, dtype, row format, keys, offsets."""


class TableWriteError(TableError):
    """A table cannot be written: no room, a weight that is not finite, a key that occurs twice. Nothing of it
    is left."""


class DeltaMismatchError(TableError):
    """A delta does not continue the table: made of another one, or forked off."""


class DeltaGapError(DeltaMismatchError):
    """Deltas before it are missing."""


class RowNotFoundError(TableError):
    """An id without a row, in a table whose default row is an error.

    Attributes:
        id: the first such id of the call.
    """

    def __init__(self, message: str, id: int):
        super().__init__(message)
        self.id = id
