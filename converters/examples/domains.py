"""What values an input may take, for drawing requests that look like traffic."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, kw_only=True)
class FeatureDomain:
    """The values of one input, or of one composite feature (named as its parts name it).

    The first of `keys`, `ids` and `boundaries` that is given says what is drawn; with none of them, numbers
    are standard normal, integers are in `[0, 100)` and strings are a few of every kind.
    """

    name: str
    keys: np.ndarray | None = None
    """Known keys of the vocabulary that the input feeds, `[n]`: object array of bytes, or integers."""
    unknown: bool = True
    """Beside known keys: whether to draw keys that the vocabulary does not have, the empty string among
    them."""
    ids: tuple[int, int] | None = None
    """`[low, high)`: ids that feed a table or a one-hot."""
    out_of_range: bool = False
    """Beside `ids`: whether to draw `high` and more, which some lookups answer and others refuse."""
    negative: bool = False
    """Whether to draw negative integers."""
    boundaries: Sequence[float] = ()
    """Bucket boundaries: numbers are drawn on, just below, just above and between them, and beyond the
    ends."""
    positive: bool = False
    """Whether numbers are drawn from 0 up, because the model takes their logarithm or root."""
    pad: bytes | float | None = None
    """What fills a row that has fewer values than its fixed length; rows are drawn with every length, 0
    included. `None`: rows are always full."""
    structure_of: str | None = None
    """Composite features: the name of another that has equal row lengths, as the weights of a bag have."""


@dataclass(frozen=True, kw_only=True)
class ParsedFeature:
    """One feature of a serialized tf.Example, as the model's parse op names it.

    `kind`: `fixed` has all values of `shape`; `sequence` has any number of rows of `shape`
    (FixedLenSequenceFeature); `var` has any number of values (VarLenFeature, RaggedFeature).
    """

    name: str
    kind: Literal["fixed", "sequence", "var"]
    dtype: Literal["float32", "int64", "string"]
    shape: tuple[int, ...] = ()
    optional: bool = False
    """Whether an Example may lack it: a `fixed` feature with a default, and any other."""
    domain: FeatureDomain | None = None


@dataclass(frozen=True, kw_only=True)
class ExampleDomain:
    """A string input that takes serialized tf.Examples, one for each row."""

    name: str
    features: tuple[ParsedFeature, ...]


Domain = FeatureDomain | ExampleDomain
